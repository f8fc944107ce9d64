package frontend

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	moby "github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/kilnbuild/kiln/frontend/expand"
	"github.com/kilnbuild/kiln/frontend/fault"
	"github.com/kilnbuild/kiln/frontend/lint"
	"github.com/kilnbuild/kiln/frontend/scan"
	"github.com/kilnbuild/kiln/internal/suggest"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/parser"
)

// builder lowers a Dockerfile for one target platform.
type builder struct {
	ctx    context.Context
	opts   *Options
	graph  *llb.Graph
	images *images
	check  *linter.Linter
	target llb.Platform
	runs   bool // the steps are to run

	budget  *expand.Budget
	suggest *suggest.Suggester
	expanders
	arguments
	stageSet
	epoch    *int64
	triggers int // bytes of those that run
}

// expanders expand the words of a Dockerfile: of instructions, of heredocs, and for what people see of a RUN.
type expanders struct{ words, documents, shown *expand.Expander }

// arguments are what words see before a stage has any of its own.
type arguments struct {
	// buildArgs are the Options', without a SOURCE_DATE_EPOCH that stands for no time.
	buildArgs map[string]string
	// global are the ARGs above the first FROM and the predefined ones.
	global *expand.Env
	// declared are the names of the ARGs above the first FROM, with or without a value; isDeclared is made of it when it is first needed.
	declared   []string
	isDeclared map[string]bool
}

// stageSet are the stages of a build.
type stageSet struct {
	// stages are those of the Dockerfile, in its order, and then the implicit ones.
	stages []*stage
	// named is the number of stages before triggers of base images add any: the only one is not named in progress output.
	named  int
	byName map[string]*stage
	// goal is the stage to build.
	goal *stage
	// external are the implicit stages by what from= says.
	external map[string]*stage
}

// location returns the place of an instruction.
func (b *builder) location(at []moby.Range) llb.Location {
	start, end := parser.Lines(at)
	return llb.Location{File: b.opts.Filename, StartLine: start, EndLine: end}
}

// at gives err a position.
func (b *builder) at(err error, at []moby.Range) error { return parser.At(err, b.opts.Filename, at) }

// ended returns why the build is given up; nil while it goes on. All that is done for each of any number of instructions asks it.
func (b *builder) ended() error {
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	return nil
}

// failed returns the error of a build: no line is to blame for its end.
func (b *builder) failed(err error) error {
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	return parser.At(err, b.opts.Filename, nil)
}

func (b *builder) build(dockerfile []byte) (*Image, error) {
	df, err := parser.Parse(b.ctx, b.opts.Filename, dockerfile, b.check)
	if err != nil {
		return nil, err
	}
	b.buildArgs = maps.Clone(b.opts.BuildArgs)
	b.budget = expand.NewBudget()
	b.words = expand.New(df.Escape, b.budget)
	b.documents, b.shown = b.words.Documents(), b.words.Shown()
	b.suggest = suggest.New()
	lint.Stages(b.check, df.Stages)
	if err := b.setGlobalArgs(df); err != nil {
		return nil, err
	}
	if err := b.setEpoch(df); err != nil {
		return nil, err
	}
	if err := b.addStages(df.Stages); err != nil {
		return nil, err
	}
	var target *stage
	if target, err = b.findTarget(); err != nil {
		return nil, err
	}
	b.goal = target
	for s := target; s != nil; s = s.base {
		s.exported = true
	}
	if err := b.addDependencies(); err != nil {
		return nil, err
	}
	if err := b.resolve(target); err != nil {
		return nil, err
	}
	// Stages without instructions come first: images that are copied from stand behind the others, in no order.
	for _, first := range []bool{true, false} {
		for _, s := range b.stages {
			if (s.implicit || s.isContext) == first && s.needed {
				if err := b.lower(s); err != nil {
					return nil, err
				}
			}
		}
	}
	if err := b.advise(target); err != nil {
		return nil, err
	}
	return b.finish(target)
}

// finish returns the image of the lowered target.
func (b *builder) finish(s *stage) (*Image, error) {
	platform := s.ownPlatform
	if len(b.opts.Platforms) > 0 || platform.OS == "" {
		same := platform.OS == b.target.OS && platform.Architecture == b.target.Architecture
		platform.OS, platform.Architecture = b.target.OS, b.target.Architecture
		if b.target.Variant != "" || !same {
			platform.Variant = b.target.Variant
		}
		if b.target.OSVersion != "" || !same {
			platform.OSVersion = b.target.OSVersion
		}
	}
	for _, k := range slices.Sorted(maps.Keys(b.opts.Labels)) {
		if err := s.config.SetLabel(k, b.opts.Labels[k]); err != nil {
			return nil, err
		}
	}
	if err := s.config.CheckSize(); err != nil {
		return nil, b.at(err, s.src.Location)
	}
	return &Image{
		Platform: platform.Normalize(),
		Root:     s.root,
		Config:   s.config.Spec(),
		Author:   s.config.Author(),
		History:  s.config.History(),
		Scan:     b.scans(s),
	}, nil
}

// scans returns what the Dockerfile wants to be scanned with the image of a stage.
func (b *builder) scans(target *stage) (all []scan.Root) {
	if scan.Asked(scan.Context, target.name, target.args, b.global) {
		all = append(all, scan.OfContext(b.graph, b.scratch(), b.mainContext()))
	}
	for _, s := range b.stages {
		if s != target && s.needed && !s.implicit && !s.isContext && s.root.Vertex != nil && scan.Asked(scan.Stage, s.name, s.args, b.global) {
			all = append(all, scan.Root{Name: s.name, Output: s.root})
		}
	}
	return all
}

// maxNamed is how many stages an error names.
const maxNamed = 10

// findTarget returns the stage to build.
func (b *builder) findTarget() (*stage, error) {
	if b.opts.Target == "" {
		return b.stages[len(b.stages)-1], nil
	}
	if s, ok := b.byName[strings.ToLower(b.opts.Target)]; ok {
		return s, nil
	}
	err := fmt.Errorf("target stage %q could not be found", b.opts.Target)
	if match, ok := b.suggest.Search(b.opts.Target, b.stageNames, true); ok {
		return nil, &parser.Error{File: b.opts.Filename, Msg: err.Error(), Hint: didYouMean(match), Err: err}
	}
	if names := b.stageNames(); len(names) > 0 && len(names) <= maxNamed {
		return nil, &parser.Error{File: b.opts.Filename, Msg: err.Error(), Hint: "there are " + strings.Join(names, ", "), Err: err}
	}
	return nil, err
}

func (b *builder) stageNames() []string {
	var names []string
	for _, s := range b.stages {
		if s.src.Name != "" {
			names = append(names, s.src.Name)
		}
	}
	return names
}

// addDependencies finds the stages that instructions read from.
func (b *builder) addDependencies() error {
	// The implicit stages that this appends have no instructions.
	for _, s := range slices.Clone(b.stages) {
		for _, c := range s.src.Commands {
			if err := b.ended(); err != nil {
				return err
			}
			cmd, err := b.command(s, c)
			if err != nil {
				return b.at(err, c.Location())
			}
			s.commands = append(s.commands, cmd)
		}
		if s.isContext {
			s.commands, s.deps = nil, nil
		}
	}
	b.named = len(b.stages)
	if err := b.checkCycles(); err != nil {
		return err
	}
	return nil
}

// command returns the instruction c of s with its sources, and adds those to the dependencies of s.
func (b *builder) command(s *stage, c instructions.Command) (command, error) {
	cmd := command{Command: c}
	switch c := c.(type) {
	case *instructions.CopyCommand:
		if c.From == "" {
			break
		}
		expanded, err := b.words.Expand(c.From, (*expand.Env)(nil))
		if err != nil {
			return cmd, err
		}
		if expanded.Result != c.From {
			return cmd, &parser.Error{
				Msg:  fault.ErrFromVariable.Error(),
				Hint: "name a stage with FROM and an ARG above the first FROM, and copy from that",
				Err:  fault.ErrFromVariable,
			}
		}
		source, err := b.copySource(c.From, c.Location())
		if err != nil {
			return cmd, err
		}
		cmd.sources = []*stage{source}
	case *instructions.RunCommand:
		for _, m := range instructions.GetMounts(c) {
			var source *stage
			if m.From != "" {
				source = b.from(m.From, c.Location())
			}
			cmd.sources = append(cmd.sources, source)
		}
	}
	for _, source := range cmd.sources {
		if source != nil {
			s.deps = append(s.deps, dependency{source, c.Location()})
		}
	}
	return cmd, nil
}

// copySource returns the stage that COPY --from names, by number or name, or an implicit one for an image.
func (b *builder) copySource(from string, at []moby.Range) (*stage, error) {
	n, err := strconv.Atoi(from)
	if err != nil {
		return b.from(from, at), nil
	}
	if n < 0 || n >= len(b.stages) || b.stages[n].implicit {
		return nil, fmt.Errorf("invalid stage index %d in --from", n)
	}
	return b.stages[n], nil
}

// from returns the stage that --from or from= names, or an implicit one for an image.
func (b *builder) from(name string, at []moby.Range) *stage {
	if s, ok := b.byName[strings.ToLower(name)]; ok {
		return s
	}
	if s, ok := b.external[name]; ok {
		return s
	}
	s := &stage{src: instructions.Stage{BaseName: name, Location: at}, implicit: true, number: len(b.stages)}
	b.external[name] = s
	b.stages = append(b.stages, s)
	return s
}

// checkCycles reports stages that read from each other. It does not recurse: there may be very many.
func (b *builder) checkCycles() error {
	const visiting, done = 1, 2
	state := map[*stage]int{}
	type visit struct {
		s    *stage
		next int // of its dependencies
	}
	for _, s := range b.stages {
		if state[s] != 0 {
			continue
		}
		way := []visit{{s: s}}
		state[s] = visiting
		for len(way) > 0 {
			at := &way[len(way)-1]
			if at.next == len(at.s.deps) {
				state[at.s] = done
				way = way[:len(way)-1]
				continue
			}
			d := at.s.deps[at.next]
			at.next++
			switch state[d.stage] {
			case visiting:
				return b.at(fmt.Errorf("circular dependency detected on stage %s", cmp.Or(at.s.name, "0")), d.at)
			case 0:
				state[d.stage] = visiting
				way = append(way, visit{s: d.stage})
			}
		}
	}
	return nil
}

// need marks a stage, and those that it depends on, as to be lowered, and returns the newly marked ones.
func (b *builder) need(first *stage) []*stage {
	var added []*stage
	for todo := []*stage{first}; len(todo) > 0; {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if s == nil || s.needed {
			continue
		}
		s.needed = true
		added = append(added, s)
		todo = append(todo, s.base)
		for _, d := range s.deps {
			todo = append(todo, d.stage)
		}
	}
	return added
}

// resolve finds the base images of the stages that target needs and the triggers in them, which may need more stages.
func (b *builder) resolve(target *stage) error {
	number := func(x, y *stage) int { return cmp.Compare(x.number, y.number) }
	if err := b.checkNames(); err != nil {
		return err
	}
	more := b.need(target)
	if b.opts.AllStages && b.opts.Target == "" {
		for _, s := range b.stages {
			more = append(more, b.need(s)...)
		}
	}
	for len(more) > 0 {
		if err := b.ended(); err != nil {
			return err
		}
		slices.SortFunc(more, number)
		var bases []*stage
		for _, s := range more {
			if s.base == nil {
				bases = append(bases, s)
			}
		}
		if err := b.resolveBases(bases); err != nil {
			return err
		}
		stages := more
		more = nil
		for _, s := range stages {
			known := len(s.deps)
			if err := b.addTriggers(s); err != nil {
				return err
			}
			for _, d := range s.deps[known:] {
				more = append(more, b.need(d.stage)...)
			}
		}
	}
	return nil
}

// lower turns the instructions of s into vertices.
func (b *builder) lower(s *stage) error {
	if s.base != nil {
		if !s.base.lowered {
			return b.at(fmt.Errorf("stage %q has to stand above the one that is built on it", s.base.name), s.src.Location)
		}
		s.inherit(b.budget)
	}
	if err := s.begin(b.budget); err != nil {
		return b.at(err, s.src.Location)
	}
	if s.image != nil {
		b.addImage(s)
	}
	if s.platform == nil {
		s.platform = &b.target
	}
	if dir := s.config.WorkingDir(); dir != "" {
		dir, err := s.joinWorkdir("", dir)
		if err != nil {
			return b.at(err, s.src.Location)
		}
		s.config.SetWorkingDir(dir)
	}
	for _, c := range s.commands {
		err := b.lowerCommand(s, c)
		if err == nil {
			err = s.config.CheckSize()
		}
		if err != nil {
			return b.at(err, c.Location())
		}
	}
	s.lowered = true
	return nil
}

func (b *builder) lowerCommand(s *stage, c command) error {
	if err := b.ended(); err != nil {
		return err
	}
	s.onBuild = c.onBuild
	check := b.check.WithMergedConfigFromComments(c.Comments())
	if err := b.expand(s, c, check); err != nil {
		return err
	}
	switch cmd := c.Command.(type) {
	case *instructions.AddCommand:
		return b.add(s, cmd, check)
	case *instructions.ArgCommand:
		return b.arg(s, cmd, check)
	case *instructions.CmdCommand:
		return b.cmd(s, cmd, check)
	case *instructions.CopyCommand:
		return b.copy(s, cmd, c.sources, check)
	case *instructions.EntrypointCommand:
		return b.entrypoint(s, cmd, check)
	case *instructions.EnvCommand:
		return b.env(s, cmd, check)
	case *instructions.ExposeCommand:
		return b.expose(s, cmd, check)
	case *instructions.HealthCheckCommand:
		b.healthcheck(s, cmd, check)
	case *instructions.LabelCommand:
		return b.label(s, cmd, check)
	case *instructions.MaintainerCommand:
		b.maintainer(s, cmd)
	case *instructions.OnbuildCommand:
		b.onbuild(s, cmd)
	case *instructions.RunCommand:
		return b.run(s, cmd, c.sources)
	case *instructions.ShellCommand:
		b.shell(s, cmd)
	case *instructions.StopSignalCommand:
		return b.stopSignal(s, cmd)
	case *instructions.UserCommand:
		b.user(s, cmd)
	case *instructions.VolumeCommand:
		return b.volume(s, cmd)
	case *instructions.WorkdirCommand:
		return b.workdir(s, cmd, check)
	default:
		return fmt.Errorf("%s is not supported", strings.ToUpper(c.Name()))
	}
	return nil
}

// expand replaces variables in the words of an instruction.
func (b *builder) expand(s *stage, c command, check *linter.Linter) error {
	with := func(x *expand.Expander) instructions.SingleWordExpander {
		return func(word string) (string, error) {
			expanded, unmatched, err := x.Word(word, s.env)
			b.lintUnmatched(s, c, unmatched, check)
			return expanded, err
		}
	}
	// A default of ARG is only expanded where it is used.
	_, isArg := c.Command.(*instructions.ArgCommand)
	if e, ok := c.Command.(instructions.SupportsSingleWordExpansion); ok && !isArg {
		if err := e.Expand(with(b.words)); err != nil {
			return err
		}
	}
	if e, ok := c.Command.(instructions.SupportsSingleWordExpansionRaw); ok {
		return e.ExpandRaw(with(b.documents))
	}
	return nil
}
