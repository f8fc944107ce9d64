package llbpb

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/kilnbuild/kiln/llb"
)

// Decode reads a definition. Errors are of type *Error, or of Options.Admit, Options.Source and Options.Read.
func Decode(ctx context.Context, def *pb.Definition, o Options) (*Graph, error) {
	if o.Host == (llb.Platform{}) {
		o.Host = llb.Host()
	}
	if o.left == nil {
		o.left = &budget{MaxBytes, MaxOps, MaxFields}
	}
	d := &decoder{
		ctx: ctx, options: o, def: def, graph: o.graph,
		ops: map[digest.Digest]*op{}, aliases: map[alias]bool{}, copies: map[llb.Output]llb.Output{},
		result: &Graph{Digests: map[llb.Digest][]digest.Digest{}, Ops: map[digest.Digest]*Op{}, Sources: def.GetSource().GetInfos()},
	}
	if d.graph == nil {
		d.graph = &llb.Graph{}
	}
	if err := d.read(); err != nil {
		return nil, err
	}
	if err := d.admitAll(); err != nil {
		return nil, err
	}
	if err := d.lower(); err != nil {
		return nil, err
	}
	d.describe()
	return d.result, nil
}

// decoder is a definition that is being read.
type decoder struct {
	ctx     context.Context
	options Options
	def     *pb.Definition
	graph   *llb.Graph
	ops     map[digest.Digest]*op
	aliases map[alias]bool
	copies  map[llb.Output]llb.Output // of directories of clients, as roots
	order   []*op                     // of the definition
	last    *op
	result  *Graph
}

// alias is a vertex, and an op that it comes from.
type alias struct {
	vertex llb.Digest
	op     digest.Digest
}

// op is an op of the definition.
type op struct {
	*pb.Op
	digest digest.Digest
	meta   *pb.OpMetadata
	state  state
	depth  int
	// outputs are what it makes, and vertices what it became.
	outputs  []llb.Output
	vertices []*llb.Vertex
	// about is what metaOf returns, once it was asked.
	about *llb.Meta
}

type state int

const (
	unseen state = iota
	entered
	lowered
)

// read reads the ops, and checks that inputs are there.
func (d *decoder) read() error {
	left := d.options.left
	if len(d.def.GetDef()) == 0 {
		return &Error{Err: errors.New("it is empty")}
	}
	if left.ops -= len(d.def.Def); left.ops < 0 {
		return &Error{Err: &LimitError{"ops", MaxOps}}
	}
	for _, data := range d.def.Def {
		if d.options.nested > 0 {
			break // the file counts that they are in
		}
		if left.bytes -= len(data); left.bytes < 0 {
			return &Error{Err: &LimitError{"bytes", MaxBytes}}
		}
	}
	for _, data := range d.def.Def {
		dgst := digest.FromBytes(data)
		if err := countFields(data, (*pb.Op)(nil).ProtoReflect().Descriptor(), &left.fields, 0); err != nil {
			return &Error{Digest: dgst, Err: err}
		}
		if d.ops[dgst] != nil {
			d.last = d.ops[dgst]
			continue
		}
		o := &op{Op: &pb.Op{}, digest: dgst, meta: d.def.Metadata[dgst.String()]}
		if err := o.Unmarshal(data); err != nil {
			return &Error{Digest: dgst, Err: err}
		}
		d.ops[dgst], d.last = o, o
		d.order = append(d.order, o)
	}
	for _, o := range d.order {
		for i, in := range o.Inputs {
			if in == nil || in.Index < 0 || in.Index > math.MaxInt32 {
				return o.fail(fmt.Errorf("its input %d has no output %d", i, in.GetIndex()))
			}
			if d.ops[digest.Digest(in.Digest)] == nil {
				return o.fail(fmt.Errorf("its input %d, %q, is missing", i, in.Digest))
			}
		}
	}
	if d.last.Op.Op != nil || len(d.last.Inputs) == 0 {
		return &Error{Err: errors.New("its last op does not say which output is asked for")}
	}
	for dgst, all := range d.def.GetSource().GetLocations() {
		for _, at := range all.GetLocations() {
			if at == nil || at.SourceIndex < 0 || int(at.SourceIndex) >= len(d.result.Sources) {
				return &Error{Err: fmt.Errorf("the location of %q is in no source", dgst)}
			}
		}
	}
	return nil
}

// countFields takes the fields of a message and of the messages in it off left. It fails if there are more, if they are nested without
// end, or if a text is none.
func countFields(data []byte, m protoreflect.MessageDescriptor, left *int, depth int) error {
	if depth > maxMessages {
		return &LimitError{"messages inside each other", maxMessages}
	}
	for len(data) > 0 {
		if *left--; *left < 0 {
			return &LimitError{"fields", MaxFields}
		}
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return protowire.ParseError(n)
		}
		data = data[n:]
		n = protowire.ConsumeFieldValue(number, kind, data)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if kind == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(data)
			switch f := m.Fields().ByNumber(number); {
			case f != nil && f.Message() != nil:
				if err := countFields(value, f.Message(), left, depth+1); err != nil {
					return err
				}
			case f != nil && f.Kind() == protoreflect.StringKind && !utf8.Valid(value):
				return fmt.Errorf("the text %q is not UTF-8", clip(string(value)))
			case f != nil && f.IsList() && f.Kind() != protoreflect.StringKind && f.Kind() != protoreflect.BytesKind:
				*left -= len(value) // packed numbers
			}
		}
		data = data[n:]
	}
	return nil
}

// maxMessages is how deep the messages of an op may be nested: those of BuildKit are nested less deep, but for the sources of sources.
const maxMessages = 16

// lower makes the vertices of what is asked for. It does not recurse: clients choose the depth.
func (d *decoder) lower() error {
	want := d.last.Inputs[0]
	stack := []*op{d.ops[digest.Digest(want.Digest)]}
	for len(stack) > 0 {
		o := stack[len(stack)-1]
		if o.state == lowered {
			stack = stack[:len(stack)-1]
			continue
		}
		waits := false
		for _, in := range o.Inputs {
			other := d.ops[digest.Digest(in.Digest)]
			switch other.state {
			case lowered:
				o.depth = max(o.depth, other.depth+1)
			case entered:
				return o.fail(errors.New("it needs itself"))
			case unseen:
				waits = true
				stack = append(stack, other)
			}
		}
		if waits {
			o.state = entered // all that is put above it on the stack is needed for it
			continue
		}
		if o.depth > MaxDepth {
			return &Error{Err: &LimitError{"ops in a row", MaxDepth}}
		}
		if err := d.lowerOp(o); err != nil {
			return o.fail(err)
		}
		o.state = lowered
	}
	out, err := d.output(want)
	if err != nil {
		return &Error{Err: err}
	}
	d.result.Output = d.asRoot(d.ops[digest.Digest(want.Digest)], out)
	return nil
}

// fail returns an error about the op.
func (o *op) fail(err error) error {
	if _, ok := errors.AsType[*Error](err); ok {
		return err
	}
	return &Error{Digest: o.digest, Kind: o.kind(), Err: err}
}

// kind returns what kind of op it is; "" for one that is not known.
func (o *op) kind() string {
	switch o.Op.Op.(type) {
	case *pb.Op_Source:
		return "source"
	case *pb.Op_Exec:
		return "exec"
	case *pb.Op_File:
		return "file"
	case *pb.Op_Build:
		return "build"
	case *pb.Op_Merge:
		return "merge"
	case *pb.Op_Diff:
		return "diff"
	case *pb.Op_Passthrough:
		return "passthrough"
	}
	return ""
}

// lowerOp makes the vertices of an op whose inputs are lowered.
func (d *decoder) lowerOp(o *op) (err error) {
	inputs := make([]llb.Output, len(o.Inputs))
	for i, in := range o.Inputs {
		if inputs[i], err = d.output(in); err != nil {
			return fmt.Errorf("input %d: %w", i, err)
		}
	}
	if err := checkConstraints(o); err != nil {
		return err
	}
	if ext, err := extensionOf(o.Op); err != nil || ext != nil {
		if err != nil {
			return err
		}
		return d.extended(o, ext, inputs)
	}
	switch op := o.Op.Op.(type) {
	case *pb.Op_Source:
		return d.source(o, op.Source)
	case *pb.Op_Exec:
		return d.exec(o, op.Exec, inputs)
	case *pb.Op_File:
		return d.file(o, op.File, inputs)
	case *pb.Op_Build:
		return d.build(o, op.Build, inputs)
	case *pb.Op_Merge:
		return d.merge(o, op.Merge, inputs)
	case *pb.Op_Diff:
		return d.diff(o, op.Diff, inputs)
	case *pb.Op_Passthrough:
		return d.passthrough(o, op.Passthrough, inputs)
	}
	return errors.New("its kind is not known")
}

// checkConstraints refuses an op that is for other workers than this one: they name labels, and this one has none of a client's choice.
func checkConstraints(o *op) error {
	if len(o.Constraints.GetFilter()) > 0 {
		return &UnsupportedError{fmt.Sprintf("a constraint on workers (%q)", clip(o.Constraints.Filter[0]))}
	}
	return nil
}

// output returns what an input names.
func (d *decoder) output(in *pb.Input) (llb.Output, error) {
	o := d.ops[digest.Digest(in.Digest)]
	if in.Index >= int64(len(o.outputs)) {
		return llb.Output{}, fmt.Errorf("%s has %d outputs, and none with index %d", in.Digest, len(o.outputs), in.Index)
	}
	return o.outputs[in.Index], nil
}

// add adds a vertex of an op.
func (d *decoder) add(o *op, op llb.Op, m llb.Meta, inputs ...llb.Output) *llb.Vertex {
	v := d.graph.Add(op, m, inputs...)
	d.became(o, v)
	return v
}

// became notes that a vertex comes from an op.
func (d *decoder) became(o *op, v *llb.Vertex) {
	a := alias{v.Digest(), o.digest}
	if d.aliases[a] {
		return
	}
	d.aliases[a] = true
	o.vertices = append(o.vertices, v)
	if len(d.result.Digests[v.Digest()]) < MaxNames {
		d.result.Digests[v.Digest()] = append(d.result.Digests[v.Digest()], o.digest)
	}
}

// made says what the outputs of an op are.
func (o *op) made(outputs ...llb.Output) error {
	o.outputs = outputs
	return nil
}

func (d *decoder) scratch() llb.Output { return d.graph.Add(llb.Scratch{}, llb.Meta{}).Output(0) }

// asRoot returns an output that can be the root of a step: a directory of the client is copied.
func (d *decoder) asRoot(o *op, out llb.Output) llb.Output {
	if _, ok := out.Vertex.Op().(llb.Local); !ok {
		return out
	}
	if made, ok := d.copies[out]; ok {
		return made
	}
	copied := llb.File{Actions: []llb.Action{{Copy: &llb.Copy{Sources: []llb.CopySource{{Input: 1, Path: "/"}}, Dest: "/"}}}}
	m := d.metaOf(o)
	m.Platform, m.NoCache = "", false
	m.Text = "copy " + out.Vertex.Meta().Text
	v := d.graph.Add(copied, m, d.scratch(), out)
	for _, dgst := range d.result.Digests[out.Vertex.Digest()] {
		d.became(d.ops[dgst], v)
	}
	d.copies[out] = v.Output(0)
	return v.Output(0)
}

// metaOf returns the description of the vertices of an op. Its platform is "".
func (d *decoder) metaOf(o *op) llb.Meta {
	if o.about == nil {
		m := d.describeOp(o)
		o.about = &m
	}
	return *o.about
}

func (d *decoder) describeOp(o *op) llb.Meta {
	m := llb.Meta{Place: llb.Place{Project: d.options.Project}, Text: o.name(), NoCache: o.meta.GetIgnoreCache()}
	for _, at := range d.def.GetSource().GetLocations()[o.digest.String()].GetLocations() {
		for _, r := range at.Ranges {
			m.Location = llb.Location{
				File: d.result.Sources[at.SourceIndex].GetFilename(), StartLine: int(r.GetStart().GetLine()), EndLine: int(r.GetEnd().GetLine()),
			}
			return m
		}
	}
	return m
}

// platform returns the platform of an op, as llb.Meta has it; "" if it names none.
func (o *op) platform() (string, error) {
	if o.Platform == nil {
		return "", nil
	}
	p := llb.Platform{
		OS: o.Platform.OS, Architecture: o.Platform.Architecture, Variant: o.Platform.Variant, OSVersion: o.Platform.OSVersion,
	}.Normalize()
	if _, err := llb.ParsePlatform(p.String(), llb.Platform{}); err != nil {
		return "", err
	}
	return p.String(), nil
}

// name returns what an op is called.
func (o *op) name() string {
	if name := o.meta.GetDescription()["llb.customname"]; name != "" {
		return clip(name)
	}
	var parts []string
	switch op := o.Op.Op.(type) {
	case *pb.Op_Source:
		return clip(withoutUser(op.Source.GetIdentifier()))
	case *pb.Op_Exec:
		return clip(strings.Join(op.Exec.GetMeta().GetArgs(), " "))
	case *pb.Op_File:
		for _, a := range op.File.GetActions() {
			if parts = append(parts, actionName(a)); len(parts) == 8 {
				break
			}
		}
		return clip(strings.Join(parts, ", "))
	case *pb.Op_Passthrough:
		return clip("passthrough " + op.Passthrough.GetId())
	}
	return o.kind()
}

func actionName(a *pb.FileAction) string {
	switch a := a.GetAction().(type) {
	case *pb.FileAction_Mkdir:
		return "mkdir " + a.Mkdir.GetPath()
	case *pb.FileAction_Mkfile:
		return "mkfile " + a.Mkfile.GetPath()
	case *pb.FileAction_Symlink:
		return "symlink " + a.Symlink.GetNewpath() + " -> " + a.Symlink.GetOldpath()
	case *pb.FileAction_Rm:
		return "rm " + a.Rm.GetPath()
	case *pb.FileAction_Copy:
		return "copy " + a.Copy.GetSrc() + " " + a.Copy.GetDest()
	}
	return ""
}

// clip returns at most MaxText bytes of a text.
func clip(s string) string {
	if len(s) <= MaxText {
		return s
	}
	return strings.ToValidUTF8(s[:MaxText], "") + "…"
}

// describe says what the ops were, in the order of the definition.
func (d *decoder) describe() {
	order := map[digest.Digest]int{}
	for i, o := range d.order {
		order[o.digest] = i
		if o.state != lowered {
			continue
		}
		about := &Op{Name: o.name(), Group: o.meta.GetProgressGroup(),
			Locations: d.def.GetSource().GetLocations()[o.digest.String()].GetLocations()}
		for _, in := range o.Inputs {
			about.Inputs = append(about.Inputs, digest.Digest(in.Digest))
		}
		for _, v := range o.vertices {
			about.Vertices = append(about.Vertices, v.Digest())
		}
		d.result.Ops[o.digest] = about
	}
	for _, digests := range d.result.Digests {
		slices.SortFunc(digests, func(a, b digest.Digest) int { return order[a] - order[b] })
	}
}

func (d *decoder) merge(o *op, m *pb.MergeOp, inputs []llb.Output) error {
	if len(m.GetInputs()) != len(inputs) {
		return fmt.Errorf("it merges %d of its %d inputs", len(m.GetInputs()), len(inputs))
	}
	var roots []llb.Output
	for i, in := range m.GetInputs() {
		if in.GetInput() < 0 || in.GetInput() >= int64(len(inputs)) {
			return fmt.Errorf("it has no input %d", in.GetInput())
		}
		if in.GetInput() != int64(i) {
			return fmt.Errorf("its input %d is in the place of %d", in.GetInput(), i)
		}
		roots = append(roots, d.asRoot(o, inputs[i]))
	}
	switch len(roots) {
	case 0:
		return o.made(d.scratch())
	case 1:
		return o.made(roots[0])
	}
	return o.made(d.add(o, llb.Merge{}, d.metaOf(o), roots...).Output(0))
}

func (d *decoder) diff(o *op, diff *pb.DiffOp, inputs []llb.Output) error {
	side := func(input int64, given bool) (llb.Output, error) {
		switch {
		case !given:
			return llb.Output{}, errors.New("it has no lower or no upper input")
		case input == int64(pb.Empty):
			return d.scratch(), nil
		case input < 0 || input >= int64(len(inputs)):
			return llb.Output{}, fmt.Errorf("it has no input %d", input)
		}
		return d.asRoot(o, inputs[input]), nil
	}
	lower, err := side(diff.GetLower().GetInput(), diff.GetLower() != nil)
	if err != nil {
		return err
	}
	upper, err := side(diff.GetUpper().GetInput(), diff.GetUpper() != nil)
	if err != nil {
		return err
	}
	switch {
	case lower.Vertex.Op() == llb.Op(llb.Scratch{}):
		return o.made(upper)
	case lower == upper:
		return o.made(d.scratch())
	}
	return o.made(d.add(o, llb.Diff{}, d.metaOf(o), lower, upper).Output(0))
}

func (d *decoder) passthrough(o *op, p *pb.PassthroughOp, inputs []llb.Output) error {
	if p.GetId() == "" {
		return errors.New("it has no id")
	}
	if len(p.GetOutputs()) == 0 {
		return errors.New("it has no outputs")
	}
	op := llb.Passthrough{}
	for _, in := range p.GetOutputs() {
		if in < 0 || in >= int64(len(inputs)) {
			return fmt.Errorf("it has no input %d", in)
		}
		op.Outputs = append(op.Outputs, int(in))
	}
	for i := range inputs {
		inputs[i] = d.asRoot(o, inputs[i])
	}
	v := d.add(o, op, d.metaOf(o), inputs...)
	outputs := make([]llb.Output, len(op.Outputs))
	for i := range outputs {
		outputs[i] = v.Output(i)
	}
	return o.made(outputs...)
}

// build reads the definition that another op has made, and takes its output.
func (d *decoder) build(o *op, b *pb.BuildOp, inputs []llb.Output) error {
	in, ok := b.GetInputs()[pb.LLBDefinitionInput]
	switch {
	case b.GetBuilder() != int64(pb.LLBBuilder):
		return &UnsupportedError{"a builder that is another op"}
	case !ok || in.GetInput() < 0 || in.GetInput() >= int64(len(inputs)):
		return errors.New("it has no input with a definition")
	case d.options.Read == nil:
		return &UnsupportedError{"a build that another step defines"}
	case d.options.nested == MaxNested:
		return &LimitError{"builds inside each other", MaxNested}
	}
	file := pb.LLBDefaultDefinitionFile
	for name, value := range b.GetAttrs() {
		if name != pb.AttrLLBDefinitionFilename {
			return &UnsupportedError{fmt.Sprintf("the attribute %q", clip(name))}
		}
		file = value
	}
	data, err := d.options.Read(d.asRoot(o, inputs[in.GetInput()]), file, int64(d.options.left.bytes))
	if err != nil {
		return err
	}
	d.options.left.bytes -= len(data)
	var def pb.Definition
	if err := countFields(data, def.ProtoReflect().Descriptor(), &d.options.left.fields, 0); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	if err := def.Unmarshal(data); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	nested := d.options
	nested.nested++
	nested.graph = d.graph
	g, err := Decode(d.ctx, &def, nested)
	if err != nil {
		return fmt.Errorf("the definition in %s: %w", file, err)
	}
	// Its vertices are those of this op.
	for v := range llb.Vertices([]llb.Output{g.Output}) {
		if _, ok := v.Op().(llb.Scratch); !ok {
			d.became(o, v)
		}
	}
	return o.made(g.Output)
}
