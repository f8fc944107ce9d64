package llbpb

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/passwd"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/llb"
)

// extensionField is the number of a field in pb.Op that BuildKit does not have.
const extensionField protowire.Number = 50_200

// extension is what kiln says of an op that LLB cannot say. The op then is what the extension says, and the rest is for other programs.
type extension struct {
	// Inputs are those of the vertex: numbers of the op's, or -1 for nothing.
	Inputs []int
	// Platform and NoCache are those of llb.Meta.
	Platform string `json:",omitempty"`
	NoCache  bool   `json:",omitempty"`
	// One of these is set. A Git is never one that the user of the machine named.
	Exec  *llb.Exec  `json:",omitempty"`
	File  *llb.File  `json:",omitempty"`
	Git   *llb.Git   `json:",omitempty"`
	HTTP  *llb.HTTP  `json:",omitempty"`
	Blob  *llb.Blob  `json:",omitempty"`
	Merge *llb.Merge `json:",omitempty"`
	Diff  *llb.Diff  `json:",omitempty"`

	Passthrough *llb.Passthrough `json:",omitempty"`
}

// extensionOf returns the extension of an op; nil if it has none.
func extensionOf(o *pb.Op) (*extension, error) {
	rest := o.ProtoReflect().GetUnknown()
	var ext *extension
	for len(rest) > 0 {
		number, kind, n := protowire.ConsumeTag(rest)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		size := protowire.ConsumeFieldValue(number, kind, rest[n:])
		if size < 0 {
			return nil, protowire.ParseError(size)
		}
		if number != extensionField || kind != protowire.BytesType || ext != nil {
			return nil, &UnsupportedError{fmt.Sprintf("the field %d", number)}
		}
		value, _ := protowire.ConsumeBytes(rest[n:])
		d := json.NewDecoder(bytes.NewReader(value))
		d.DisallowUnknownFields()
		ext = &extension{}
		if err := d.Decode(ext); err != nil {
			return nil, fmt.Errorf("read the field %d: %w", number, err)
		}
		rest = rest[n+size:]
	}
	return ext, nil
}

// fits reports whether an op is of the kind that its extension says it is.
func (ext *extension) fits(o *pb.Op) bool {
	switch o.Op.(type) {
	case *pb.Op_Exec:
		return ext.Exec != nil
	case *pb.Op_File:
		return ext.File != nil
	case *pb.Op_Source:
		return ext.Git != nil || ext.HTTP != nil || ext.Blob != nil
	case *pb.Op_Merge:
		return ext.Merge != nil
	case *pb.Op_Diff:
		return ext.Diff != nil
	case *pb.Op_Passthrough:
		return ext.Passthrough != nil
	}
	return false
}

// extended makes the vertex of an op that has an extension.
func (d *decoder) extended(o *op, ext *extension, given []llb.Output) error {
	inputs := make([]llb.Output, len(ext.Inputs))
	for i, in := range ext.Inputs {
		switch {
		case in == -1:
			inputs[i] = d.scratch()
		case in < 0 || in >= len(given):
			return fmt.Errorf("it has no input %d", in)
		default:
			inputs[i] = given[in]
		}
		if _, local := inputs[i].Vertex.Op().(llb.Local); local && (i == 0 || ext.File == nil) {
			return fmt.Errorf("its input %d is a directory of the client, and no root file system", in)
		}
	}
	if len(inputs) == 0 {
		return errors.New("it has no inputs")
	}
	var op llb.Op
	var err error
	set := 0
	if ext.Exec != nil {
		set++
		if err = checkExec(*ext.Exec, len(inputs)); err == nil {
			err = d.options.allowed(*ext.Exec)
		}
		if err == nil && ext.Exec.Network != llb.NetworkDefault && ext.Exec.Network != llb.NetworkNone && ext.Exec.Network != llb.NetworkHost {
			err = fmt.Errorf("its network %q is not known", clip(string(ext.Exec.Network)))
		}
		if err == nil && ext.Exec.Security != llb.SecuritySandbox && ext.Exec.Security != llb.SecurityInsecure {
			err = fmt.Errorf("invalid security mode %q", clip(string(ext.Exec.Security)))
		}
		op = *ext.Exec
	}
	if ext.File != nil {
		set++
		err = checkFile(*ext.File, len(inputs))
		op = *ext.File
	}
	if ext.Git != nil {
		set++
		op, err = d.extendedGit(*ext.Git, len(inputs))
	}
	if ext.HTTP != nil {
		set++
		op, err = d.extendedHTTP(*ext.HTTP)
	}
	if ext.Blob != nil {
		set++
		op, err = d.extendedBlob(*ext.Blob)
	}
	if ext.Merge != nil {
		set++
		op = *ext.Merge
	}
	if ext.Diff != nil {
		set++
		if len(inputs) != 2 {
			err = fmt.Errorf("it is the difference of %d inputs", len(inputs))
		}
		op = *ext.Diff
	}
	if ext.Passthrough != nil {
		set++
		missing := func(i int) bool { return i < 0 || i >= len(inputs) }
		if len(ext.Passthrough.Outputs) == 0 || slices.ContainsFunc(ext.Passthrough.Outputs, missing) {
			err = errors.New("it has an output that is no input, or none")
		}
		op = *ext.Passthrough
	}
	if set != 1 || !ext.fits(o.Op) {
		err = errors.New("what it is said to be is not one thing")
	}
	if err != nil {
		return err
	}
	m := d.metaOf(o)
	m.NoCache = ext.NoCache
	if m.Platform = ext.Platform; m.Platform != "" {
		if _, err := llb.ParsePlatform(m.Platform, llb.Platform{}); err != nil {
			return err
		}
	}
	if e := ext.Exec; e != nil {
		// What is not in its JSON is where it always is.
		x := &execDecoder{decoder: d, o: o}
		x.process(o.GetExec().GetMeta(), m.Platform)
		e.Proxy, e.Limits = x.exec.Proxy, x.exec.Limits
		op = *e
	}
	v := d.add(o, op, m, inputs...)
	outputs := make([]llb.Output, len(llb.Bases(op)))
	for i := range outputs {
		outputs[i] = v.Output(i)
	}
	return o.made(outputs...)
}

func (d *decoder) extendedGit(g llb.Git, inputs int) (llb.Op, error) {
	address := g.Remote
	if g.Ref != "" || g.Subdir != "" {
		address += "#" + g.Ref + ":" + g.Subdir
	}
	s, err := remoteurl.ParseGit(address)
	if err != nil {
		return nil, err
	}
	if s.Remote != g.Remote || s.Ref != g.Ref || s.Subdir != g.Subdir || s.User != "" || g.Context {
		return nil, fmt.Errorf("%q is no repository", clip(remoteurl.WithoutUser(g.Remote)))
	}
	if g.Checksum != "" {
		if err := s.SetChecksum(g.Checksum); err != nil {
			return nil, err
		}
	}
	if g.FetchByCommit && !remoteurl.IsHash(g.Checksum) || g.Object != "" && !remoteurl.IsHash(g.Object) {
		return nil, errors.New("it names no commit")
	}
	if g.Bundled && (inputs != 2 || !remoteurl.IsHash(g.Checksum)) || g.AsBundle && (g.KeepGitDir || g.Subdir != "") {
		return nil, errors.New("it is no bundle, or comes from none")
	}
	return admit(d, address, g, false)
}

func (d *decoder) extendedHTTP(h llb.HTTP) (llb.Op, error) {
	file, err := remoteurl.ParseHTTP(h.URL)
	if err != nil {
		return nil, err
	}
	if file.URL != h.URL || strings.ContainsAny(h.Filename, "/\x00") || strings.Trim(h.Filename, ".") == "" {
		return nil, fmt.Errorf("%q is no address of a file", clip(remoteurl.Shown(h.URL)))
	}
	if h.Checksum != "" {
		if err := digest.Digest(h.Checksum).Validate(); err != nil {
			return nil, err
		}
	}
	return admit(d, h.URL, h, false)
}

func (d *decoder) extendedBlob(b llb.Blob) (llb.Op, error) {
	name, err := imagename.Parse(b.Ref + "@" + b.Digest)
	if err != nil {
		return nil, err
	}
	file := !strings.ContainsAny(b.Filename, "/\x00") && strings.Trim(b.Filename, ".") != ""
	if name.Tag != "" || !strings.HasPrefix(b.Digest, "sha256:") || !file {
		return nil, fmt.Errorf("%q is no blob", clip(b.Ref))
	}
	b.Session = d.session(b.Session)
	return admit(d, b.Ref+"@"+b.Digest, b, false)
}

// Encode returns the definition of an output. It has no credentials, and no directories of OCI layouts. Decode makes vertices of it that
// have the same digests.
func Encode(o llb.Output) (*pb.Definition, error) { return EncodeFor(o, "") }

// EncodeFor is Encode for use in other builds as well: directories of the build's own client are those of a session.
func EncodeFor(o llb.Output, session string) (*pb.Definition, error) {
	def, _, err := encodeVertices(o, session)
	return def, err
}

// EncodeVertices is Encode, and returns what the vertices have become as well; "" for those that are nothing in LLB.
func EncodeVertices(o llb.Output) (*pb.Definition, map[llb.Digest]digest.Digest, error) {
	return encodeVertices(o, "")
}

func encodeVertices(o llb.Output, session string) (*pb.Definition, map[llb.Digest]digest.Digest, error) {
	e := &encoder{
		session: session,
		def:     &pb.Definition{Metadata: map[string]*pb.OpMetadata{}}, done: map[llb.Digest]digest.Digest{},
		check: &decoder{options: Options{Session: session}, graph: &llb.Graph{}, result: &Graph{}},
	}
	last := &pb.Op{}
	// Inputs first, without recursion: a graph can be thousands of steps deep.
	type visit struct {
		v    *llb.Vertex
		next int
	}
	stack := []visit{{v: o.Vertex}}
	for len(stack) > 0 {
		top := &stack[len(stack)-1]
		if _, ok := e.done[top.v.Digest()]; !ok && top.next < len(top.v.Inputs()) {
			in := top.v.Inputs()[top.next].Vertex
			top.next++
			stack = append(stack, visit{v: in})
			continue
		}
		v := top.v
		stack = stack[:len(stack)-1]
		if _, ok := e.done[v.Digest()]; !ok {
			if err := e.vertex(v); err != nil {
				return nil, nil, fmt.Errorf("encode %s: %w", v.Meta().Name(), err)
			}
		}
	}
	if e.done[o.Vertex.Digest()] == "" {
		return &pb.Definition{}, e.done, nil // nothing, which LLB says so
	}
	last.Inputs = []*pb.Input{e.input(o)}
	_, err := e.put(last)
	return e.def, e.done, err
}

// encoder is a definition that is being written.
type encoder struct {
	// session is that of directories that name none.
	session string
	def     *pb.Definition
	done    map[llb.Digest]digest.Digest // of the ops of vertices; "" for an llb.Scratch
	check   *decoder
}

// put adds an op.
func (e *encoder) put(o *pb.Op) (digest.Digest, error) {
	data, err := o.Marshal()
	if err != nil {
		return "", err
	}
	d := digest.FromBytes(data)
	if e.def.Metadata[d.String()] == nil {
		e.def.Def = append(e.def.Def, data)
		e.def.Metadata[d.String()] = &pb.OpMetadata{}
	}
	return d, nil
}

// input returns an output that is not nothing as an input.
func (e *encoder) input(o llb.Output) *pb.Input {
	return &pb.Input{Digest: e.done[o.Vertex.Digest()].String(), Index: int64(o.Index)}
}

// vertex adds the op of a vertex whose inputs are there.
func (e *encoder) vertex(v *llb.Vertex) error {
	if _, ok := v.Op().(llb.Scratch); ok {
		e.done[v.Digest()] = ""
		return nil
	}
	o := &pb.Op{}
	ext := &extension{Platform: v.Meta().Platform, NoCache: v.Meta().NoCache}
	var given []llb.Output
	index := make([]int64, len(v.Inputs())) // of the vertex's inputs among those of the op
	for i, in := range v.Inputs() {
		index[i] = int64(pb.Empty)
		if e.done[in.Vertex.Digest()] != "" {
			index[i] = int64(len(o.Inputs))
			o.Inputs = append(o.Inputs, e.input(in))
			given = append(given, in)
		}
		ext.Inputs = append(ext.Inputs, int(index[i]))
	}
	if err := e.op(o, ext, v, index); err != nil {
		return err
	}
	if !e.says(o, v, given) {
		if ext.Exec == nil && ext.File == nil && ext.Git == nil && ext.HTTP == nil && ext.Blob == nil && ext.Merge == nil && ext.Diff == nil &&
			ext.Passthrough == nil {
			ext = nil // it has no more to say
		}
		if err := extend(o, ext); err != nil {
			return err
		}
	}
	d, err := e.put(o)
	if err != nil {
		return err
	}
	m := e.def.Metadata[d.String()]
	if m.Description != nil && m.IgnoreCache != v.Meta().NoCache && ext != nil {
		// There is an equal op that differs in this alone.
		if err := extend(o, ext); err != nil {
			return err
		}
		if d, err = e.put(o); err != nil {
			return err
		}
		m = e.def.Metadata[d.String()]
	}
	m.IgnoreCache = v.Meta().NoCache
	m.Description = map[string]string{"llb.customname": v.Meta().Name()}
	e.done[v.Digest()] = d
	return nil
}

// extend adds an extension to an op, which has none.
func extend(o *pb.Op, ext *extension) error {
	if ext == nil {
		return nil
	}
	data, err := json.Marshal(ext)
	if err != nil {
		return err
	}
	field := protowire.AppendBytes(protowire.AppendTag(nil, extensionField, protowire.BytesType), data)
	o.ProtoReflect().SetUnknown(field)
	return nil
}

// says reports whether an op is read as the vertex.
func (e *encoder) says(o *pb.Op, v *llb.Vertex, given []llb.Output) bool {
	d := &decoder{
		options: Options{Host: llb.Host(), Allow: []string{"network.host", "security.insecure"}}, graph: &llb.Graph{},
		def: &pb.Definition{}, ops: map[digest.Digest]*op{}, aliases: map[alias]bool{}, copies: map[llb.Output]llb.Output{},
		result: &Graph{Digests: map[llb.Digest][]digest.Digest{}},
	}
	read := &op{Op: o, meta: &pb.OpMetadata{IgnoreCache: v.Meta().NoCache}}
	for i := range given {
		name := digest.Digest(strconv.Itoa(i))
		outputs := make([]llb.Output, given[i].Index+1)
		outputs[given[i].Index] = given[i]
		d.ops[name] = &op{outputs: outputs}
	}
	inputs := o.Inputs
	defer func() { o.Inputs = inputs }()
	o.Inputs = nil
	for i, in := range inputs {
		o.Inputs = append(o.Inputs, &pb.Input{Digest: strconv.Itoa(i), Index: in.Index})
	}
	if err := d.lowerOp(read); err != nil || len(read.outputs) < len(llb.Bases(v.Op())) {
		return false
	}
	for i := range llb.Bases(v.Op()) {
		if got := read.outputs[i]; got.Vertex.Digest() != v.Digest() || got.Index != i {
			return false
		}
	}
	return true
}

// op fills in an op, and the op of its extension.
func (e *encoder) op(o *pb.Op, ext *extension, v *llb.Vertex, index []int64) error {
	switch op := v.Op().(type) {
	case llb.Image:
		return encodeImage(o, op)
	case llb.Local:
		op.Session = cmp.Or(op.Session, e.session)
		return encodeLocal(o, op)
	case llb.HTTP:
		ext.HTTP = &op
		encodeHTTP(o, op)
	case llb.Blob:
		op.Session = cmp.Or(op.Session, sessionOf(op.Store, e.session))
		ext.Blob = &op
		encodeBlob(o, op)
	case llb.Git:
		op.Context = false // that is for the machine that it was on
		ext.Git = &op
		encodeGit(o, op)
	case llb.Exec:
		ext.Exec = &op
		return encodeExec(o, op, v.Meta().Platform, index)
	case llb.File:
		ext.File = &op
		encodeFile(o, op, index)
	case llb.Merge:
		ext.Merge = &op
		m := &pb.MergeOp{}
		for i := range o.Inputs {
			m.Inputs = append(m.Inputs, &pb.MergeInput{Input: int64(i)})
		}
		o.Op = &pb.Op_Merge{Merge: m}
	case llb.Passthrough:
		ext.Passthrough = &op
		p := &pb.PassthroughOp{Id: "outputs"}
		for _, in := range op.Outputs {
			p.Outputs = append(p.Outputs, index[in])
		}
		o.Op = &pb.Op_Passthrough{Passthrough: p}
	case llb.Diff:
		ext.Diff = &op
		o.Op = &pb.Op_Diff{Diff: &pb.DiffOp{Lower: &pb.LowerDiffInput{Input: index[0]}, Upper: &pb.UpperDiffInput{Input: index[1]}}}
	default:
		return fmt.Errorf("BUG: unknown op %q", op.Kind())
	}
	return nil
}

func source(o *pb.Op, identifier string, attrs map[string]string) {
	for name, v := range attrs {
		if v == "" {
			delete(attrs, name)
		}
	}
	o.Op = &pb.Op_Source{Source: &pb.SourceOp{Identifier: identifier, Attrs: attrs}}
}

// platformOf returns a platform of llb.Meta; nil for none.
func platformOf(s string) (*pb.Platform, error) {
	if s == "" {
		return nil, nil
	}
	p, err := llb.ParsePlatform(s, llb.Platform{})
	return &pb.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion}, err
}

func encodeImage(o *pb.Op, op llb.Image) (err error) {
	if o.Platform, err = platformOf(op.Platform); err != nil {
		return err
	}
	layers := ""
	if op.Layers > 0 {
		layers = strconv.Itoa(op.Layers)
	}
	if op.Store != "" || op.Layout != "" {
		name := "layout"
		if op.Ref != "" {
			name += ":" + op.Ref
		}
		source(o, "oci-layout://"+name+"@"+op.Digest, map[string]string{
			pb.AttrOCILayoutStoreID: op.Store, pb.AttrOCILayoutSessionID: op.Session, pb.AttrOCILayoutLayerLimit: layers,
		})
		return nil
	}
	ref := op.Ref
	if op.Digest != "" && !strings.Contains(ref, "@") {
		ref += "@" + op.Digest
	}
	modes := map[llb.Pull]string{llb.PullAlways: pb.AttrImageResolveModeForcePull, llb.PullLocal: pb.AttrImageResolveModePreferLocal}
	source(o, "docker-image://"+ref, map[string]string{
		pb.AttrImageResolveMode: modes[op.Pull], pb.AttrImageChecksum: op.Checksum, pb.AttrImageLayerLimit: layers,
	})
	return nil
}

func encodeLocal(o *pb.Op, op llb.Local) error {
	attrs := map[string]string{pb.AttrLocalSessionID: op.Session, pb.AttrSharedKeyHint: op.Shared}
	for name, list := range map[string][]string{
		pb.AttrIncludePatterns: op.Include, pb.AttrExcludePatterns: op.Exclude, pb.AttrFollowPaths: op.Follow,
		pb.AttrMetadataTransferExclude: op.Whole,
	} {
		if len(list) == 0 {
			continue
		}
		data, err := json.Marshal(list)
		if err != nil {
			return err
		}
		attrs[name] = string(data)
	}
	if op.Unlike {
		attrs[pb.AttrLocalDiffer] = pb.AttrLocalDifferNone
	}
	if op.Metadata {
		attrs[pb.AttrMetadataTransfer] = "true"
	}
	source(o, "local://"+op.Name, attrs)
	return nil
}

func encodeHTTP(o *pb.Op, op llb.HTTP) {
	attrs := map[string]string{pb.AttrHTTPFilename: op.Filename, pb.AttrHTTPChecksum: op.Checksum, pb.AttrHTTPAuthHeaderSecret: op.Secret}
	if op.ServerNames {
		delete(attrs, pb.AttrHTTPFilename)
	}
	for _, h := range op.Header {
		attrs[pb.AttrHTTPHeaderPrefix+h.Name] = h.Value
	}
	source(o, op.URL, attrs)
}

// sessionOf returns the session of an OCI layout; "" for a registry.
func sessionOf(store, session string) string {
	if store == "" {
		return ""
	}
	return session
}

func encodeBlob(o *pb.Op, op llb.Blob) {
	attrs := map[string]string{pb.AttrOCILayoutStoreID: op.Store, pb.AttrOCILayoutSessionID: op.Session}
	scheme := schemeImageBlob
	if op.Store != "" {
		scheme = schemeLayoutBlob
	}
	if op.Filename != digest.Digest(op.Digest).Encoded() {
		attrs[pb.AttrHTTPFilename] = op.Filename
	}
	source(o, scheme+"://"+op.Ref+"@"+op.Digest, attrs)
}

func encodeGit(o *pb.Op, op llb.Git) {
	id := op.Remote
	if _, rest, ok := strings.Cut(id, "://"); ok {
		id = rest
	}
	if op.Ref != "" || op.Subdir != "" {
		id += "#" + op.Ref
		if op.Subdir != "" {
			id += ":" + op.Subdir
		}
	}
	attrs := map[string]string{
		pb.AttrFullRemoteURL: op.Remote, pb.AttrGitChecksum: op.Checksum, pb.AttrAuthHeaderSecret: op.HeaderSecret,
		pb.AttrAuthTokenSecret: op.TokenSecret, pb.AttrMountSSHSock: op.Agent, pb.AttrKnownSSHHosts: op.KnownHosts,
	}
	for name, set := range map[string]bool{
		pb.AttrKeepGitDir: op.KeepGitDir, pb.AttrGitSkipSubmodules: op.SkipSubmodules, pb.AttrGitFetchByCommit: op.FetchByCommit,
		pb.AttrGitCheckoutBundle: op.AsBundle,
	} {
		if set {
			attrs[name] = "true"
		}
	}
	source(o, "git://"+id, attrs)
}

func encodeExec(o *pb.Op, op llb.Exec, platform string, index []int64) (err error) {
	if o.Platform, err = platformOf(platform); err != nil {
		return err
	}
	m := &pb.Meta{
		Args: op.Args, Env: op.Env, Cwd: op.Cwd, User: op.User, Hostname: op.Hostname, CgroupParent: op.CgroupParent,
		RemoveMountStubsRecursive: true,
	}
	for _, h := range op.ExtraHosts {
		m.ExtraHosts = append(m.ExtraHosts, &pb.HostIP{Host: h.Host, IP: h.IP})
	}
	for _, u := range op.Ulimits {
		m.Ulimit = append(m.Ulimit, &pb.Ulimit{Name: u.Name, Soft: int64(u.Soft), Hard: int64(u.Hard)})
	}
	for _, s := range op.ExitStatus {
		m.ValidExitCodes = append(m.ValidExitCodes, int32(s))
	}
	x := &pb.ExecOp{Meta: m}
	for mode, n := range networks {
		if n == op.Network {
			x.Network = mode
		}
	}
	for mode, s := range securities {
		if s == op.Security {
			x.Security = mode
		}
	}
	x.Mounts = []*pb.Mount{{Input: index[0], Dest: pb.RootMount, Readonly: op.ReadOnly}}
	for _, mount := range op.Mounts {
		if mount.Type == llb.MountSecret && mount.Env != "" {
			x.Secretenv = append(x.Secretenv, &pb.SecretEnv{ID: mount.ID, Name: mount.Env, Optional: !mount.Required})
			if mount.Target == "" {
				continue
			}
		}
		x.Mounts = append(x.Mounts, encodeMount(mount, index))
	}
	if op.ShmSize > 0 {
		x.Mounts = append(x.Mounts, &pb.Mount{
			Input: int64(pb.Empty), Output: int64(pb.SkipOutput), Dest: "/dev/shm", MountType: pb.MountType_TMPFS,
			TmpfsOpt: &pb.TmpfsOpt{Size: op.ShmSize},
		})
	}
	for _, d := range op.Devices {
		x.CdiDevices = append(x.CdiDevices, &pb.CDIDevice{Name: d.Name, Optional: !d.Required})
	}
	o.Op = &pb.Op_Exec{Exec: x}
	return nil
}

func encodeMount(m llb.Mount, index []int64) *pb.Mount {
	out := &pb.Mount{Input: int64(pb.Empty), Output: int64(pb.SkipOutput), Dest: m.Target, Readonly: m.ReadOnly}
	switch m.Type {
	case llb.MountBind, llb.MountCache:
		if m.Input > 0 {
			out.Input = index[m.Input]
		}
		if m.Source != "/" {
			out.Selector = m.Source
		}
		if m.Output > 0 {
			out.Output = int64(m.Output)
		}
		if m.Type == llb.MountBind {
			break
		}
		out.MountType, out.CacheOpt = pb.MountType_CACHE, &pb.CacheOpt{ID: "/" + m.CacheID}
		for mode, s := range sharings {
			if s == m.Sharing {
				out.CacheOpt.Sharing = mode
			}
		}
	case llb.MountTmpfs:
		out.MountType, out.TmpfsOpt = pb.MountType_TMPFS, &pb.TmpfsOpt{Size: m.Size}
	case llb.MountSecret:
		out.MountType = pb.MountType_SECRET
		out.SecretOpt = &pb.SecretOpt{ID: m.ID, Uid: uint32(m.UID), Gid: uint32(m.GID), Mode: m.Mode, Optional: !m.Required}
	case llb.MountSSH:
		out.MountType = pb.MountType_SSH
		out.SSHOpt = &pb.SSHOpt{ID: m.ID, Uid: uint32(m.UID), Gid: uint32(m.GID), Mode: m.Mode, Optional: !m.Required}
	}
	return out
}

// encodeFile makes an action of each source of a copy.
func encodeFile(o *pb.Op, op llb.File, index []int64) {
	f := &pb.FileOp{}
	for _, a := range op.Actions {
		made := a.Attributes()
		owner, timestamp := encodeOwner(made, index), int64(noTime)
		if made.Epoch != nil {
			timestamp = *made.Epoch*1e9 + int64(made.Nanos)
		}
		add := func(secondary int64, action pb.IsFileAction) {
			in := index[0]
			if n := len(f.Actions); n > 0 {
				in = int64(len(o.Inputs) + n - 1)
			}
			f.Actions = append(f.Actions, &pb.FileAction{Input: in, SecondaryInput: secondary, Output: int64(pb.SkipOutput), Action: action})
		}
		switch {
		case a.Copy != nil:
			for _, s := range a.Copy.Sources {
				add(index[s.Input], &pb.FileAction_Copy{Copy: encodeCopy(a.Copy, s, owner, timestamp)})
			}
		case a.Mkfile != nil:
			m := a.Mkfile
			add(int64(pb.Empty), &pb.FileAction_Mkfile{Mkfile: &pb.FileActionMkFile{
				Path: path.Join(m.Path, m.Name), Data: m.Content, Owner: owner, Timestamp: timestamp, Mode: modeNumber(m.Chmod, 0o644),
			}})
		case a.Mkdir != nil:
			m := a.Mkdir
			add(int64(pb.Empty), &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{
				Path: m.Path, MakeParents: !m.NoParents, Owner: owner, Timestamp: timestamp, Mode: modeNumber(m.Chmod, 0o755),
			}})
		case a.Remove != nil:
			r := a.Remove
			rm := &pb.FileActionRm{Path: r.Path, AllowNotFound: r.AllowMissing, AllowWildcard: r.AllowWildcard}
			add(int64(pb.Empty), &pb.FileAction_Rm{Rm: rm})
		case a.Symlink != nil:
			l := a.Symlink
			add(int64(pb.Empty), &pb.FileAction_Symlink{Symlink: &pb.FileActionSymlink{
				Oldpath: l.Target, Newpath: l.Path, Owner: owner, Timestamp: timestamp,
			}})
		}
	}
	if n := len(f.Actions); n > 0 {
		f.Actions[n-1].Output = 0
	}
	o.Op = &pb.Op_File{File: f}
}

func encodeCopy(c *llb.Copy, s llb.CopySource, owner *pb.ChownOpt, timestamp int64) *pb.FileActionCopy {
	out := &pb.FileActionCopy{
		Src: s.Path, Dest: c.Dest, Owner: owner, Mode: -1, FollowSymlink: !c.NoFollow, DirCopyContents: !c.AsDir,
		AttemptUnpackDockerCompatibility: s.Unpack, CreateDestPath: !c.NoParents, AllowWildcard: !c.NoWildcards,
		AllowEmptyWildcard: !c.NoWildcards && !c.MustMatch, Timestamp: noTime, IncludePatterns: c.Include, ExcludePatterns: c.Exclude,
		RequiredPaths: c.Required, AlwaysReplaceExistingDestPaths: c.Replace,
	}
	if c.Dated {
		out.Timestamp = timestamp
	}
	if n, err := strconv.ParseUint(c.Chmod, 8, 12); err == nil && fmt.Sprintf("%04o", n) == c.Chmod {
		out.Mode = int32(n)
	} else {
		out.ModeStr = c.Chmod
	}
	if c.Parents {
		src, pattern, ok := strings.Cut(s.Path, "/./")
		if !ok {
			src, pattern = "/", s.Path
		}
		out.Src, out.IncludePatterns = src, append(out.IncludePatterns, strings.TrimPrefix(pattern, "/"))
	}
	return out
}

// modeNumber returns a mode as a number; the usual one for one that is none.
func modeNumber(mode string, usual int32) int32 {
	if n, err := strconv.ParseUint(mode, 8, 12); err == nil {
		return int32(n)
	}
	return usual
}

func encodeOwner(a llb.Attributes, index []int64) *pb.ChownOpt {
	if a.Chown == "" {
		return nil
	}
	one := func(name string, in int) *pb.UserOpt {
		if n, err := strconv.ParseUint(name, 10, 31); err == nil && !passwd.NeedsFiles(name) {
			return &pb.UserOpt{User: &pb.UserOpt_ByID{ByID: uint32(n)}}
		}
		return &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: name, Input: index[in]}}}
	}
	user, group, ok := strings.Cut(a.Chown, ":")
	owner := &pb.ChownOpt{}
	if user != "" {
		owner.User = one(user, a.UsersIn)
	}
	if ok && group != "" {
		owner.Group = one(group, a.GroupsIn)
	}
	return owner
}
