package frontend

import (
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	moby "github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"github.com/kilnbuild/kiln/frontend/expand"
	"github.com/kilnbuild/kiln/frontend/imageconfig"
	"github.com/kilnbuild/kiln/frontend/lint"
	"github.com/kilnbuild/kiln/frontend/source"
	"github.com/kilnbuild/kiln/llb"
)

// stage is a build stage while it is lowered: one of the Dockerfile, or one that a COPY --from or a mount of an image
// stands for.
type stage struct {
	src instructions.Stage
	// name is what progress output calls the stage: its own name, or "stage-N".
	name string
	// number is its place among the builder's stages.
	number int
	// implicit is set for a stage that stands in no FROM.
	implicit bool
	noCache  bool

	// base is the stage that FROM names; nil for an image.
	base *stage
	// context is the named context that stands for the image that FROM names or, if isContext is set, for the whole stage.
	context   *source.Context
	isContext bool
	// image is the image that the stage begins with; nil for none.
	image *stageImage
	// platform is that of FROM --platform, else nil; after lowering it is the platform that the stage runs on.
	platform *llb.Platform
	body
	progress
	state

	root llb.Output
	// dir is set for a stage that begins with a directory.
	dir stageDir
	// ownPlatform is the platform of the configuration that the stage begins with.
	ownPlatform llb.Platform
	config      *imageconfig.Config
	scope
	checks checks
}

// body is what a stage does.
type body struct {
	commands []command
	deps     []dependency
	// setTriggers are what triggers returns, once hasTriggers is set.
	setTriggers []string
	hasTriggers bool
}

// progress is where a stage's progress lines stand: step of steps, onBuild while a trigger is lowered.
type progress struct {
	step, steps int
	onBuild     bool
}

// state is how far a stage is.
type state struct {
	needed   bool // it is lowered, or will be
	exported bool // the target's image begins with it
	lowered  bool // all that comes after state in a stage is final
}

// stageDir is a directory of the client that a stage begins with: local is what COPY --from and mounts read from, root the root
// file system made of it, before the stage's own instructions.
type stageDir struct{ local, root llb.Output }

// stageImage is the image that a stage begins with.
type stageImage struct {
	*foundImage
	op llb.Image
}

// scope is what the words of instructions see: env are ENV and ARG, args the ARGs alone.
type scope struct {
	env  *expand.Env
	args *expand.Args
}

// checks is what the checks remember of a stage.
type checks struct {
	workdirSet                   bool
	cmd, entrypoint, healthcheck []moby.Range
}

// command is an instruction with the stages that it reads from: of COPY one or none, of RUN one for each --mount, nil for
// those without from.
type command struct {
	instructions.Command
	sources []*stage
	onBuild bool
}

// dependency is a stage that an instruction of another reads from.
type dependency struct {
	stage *stage
	at    []moby.Range
}

// inherit takes over what a stage has from the stage that it is built on.
func (s *stage) inherit(b *expand.Budget) {
	base := s.base
	s.root, s.platform, s.ownPlatform = base.root, base.platform, base.ownPlatform
	s.config = base.config.Fork(b, s.exported)
	s.env, s.args = base.env.Fork(), base.args.Fork()
	s.checks.workdirSet = base.checks.workdirSet
}

// begin makes the variables of a stage that has its base.
func (s *stage) begin(b *expand.Budget) error {
	if s.implicit {
		return nil // it has no instructions
	}
	if s.base == nil {
		s.env, s.args = expand.NewEnv(b), expand.NewArgs(b)
	}
	vars := s.config.Env()
	if _, ok := vars.Get("PATH"); !ok && !s.isWindows() { // Windows has one of its own
		if err := s.config.SetEnv("PATH", imageconfig.DefaultPath); err != nil {
			return err
		}
	}
	if err := b.Spend(vars.Size()); err != nil {
		return err
	}
	for _, kv := range vars.All() {
		k, v, _ := strings.Cut(kv, "=")
		if err := s.env.Set(k, v); err != nil {
			return err
		}
	}
	return nil
}

// directory returns the client's directory that the stage is; false for a stage that is anything else, as one that was changed
// since: what is taken from it is then read where it is, and not copied first.
func (s *stage) directory() (llb.Output, bool) {
	if s.root != s.dir.root || s.dir.local.Vertex == nil {
		return llb.Output{}, false
	}
	return s.dir.local, true
}

// shell returns the command that shell forms are run by.
func (s *stage) shell() []string {
	if shell := s.config.Shell(); len(shell) > 0 {
		return shell
	}
	if s.ownPlatform.OS == "windows" { // what the image is, whatever platform it was asked for
		return []string{"cmd", "/S", "/C"}
	}
	return []string{"/bin/sh", "-c"}
}

// stepMeta returns the description of the stage's next step: text is the instruction, in which words expands variables, but for those whose
// name is that of a secret.
func (b *builder) stepMeta(s *stage, text string, words *expand.Expander, env shell.EnvGetter, at []moby.Range) llb.Meta {
	if expanded, _, err := words.Word(text, shown{env}); err == nil {
		text = expanded
	}
	if first, rest, ok := strings.Cut(text, " "); ok {
		text = strings.ToUpper(first) + " " + rest
	}
	if s.onBuild {
		text = "ONBUILD " + text
	}
	place := b.place(s)
	s.step++
	place.Cross = s.platform != nil && isCross(*s.platform, env)
	return llb.Meta{Place: place, Text: text, Location: b.location(at)}
}

// shown is an environment as people may see it.
type shown struct{ shell.EnvGetter }

// Get implements shell.EnvGetter.
func (e shown) Get(name string) (string, bool) {
	value, ok := e.EnvGetter.Get(name)
	if ok && value != "" && lint.IsSecretName(name) {
		value = lint.Hidden
	}
	return value, ok
}

// place returns the place of the stage's next step.
func (b *builder) place(s *stage) llb.Place {
	p := llb.Place{
		Project: b.opts.Project, Stage: s.name, Stages: b.named, Step: s.step + 1, Steps: s.steps,
		Target: b.target.String(), Platforms: max(1, len(b.opts.Platforms)),
	}
	if s.platform != nil {
		p.Platform = s.platform.String()
	}
	return p
}

// isCross reports whether the TARGET arguments of a step that runs on a platform name another processor or operating system.
func isCross(on llb.Platform, env shell.EnvGetter) bool {
	v, ok := env.Get("TARGETPLATFORM")
	if !ok {
		arch, ok := env.Get("TARGETARCH")
		if !ok {
			return false
		}
		v = on.OS + "/" + arch
	}
	p, err := llb.ParsePlatform(v, on)
	return err == nil && (p.OS != on.OS || p.Architecture != on.Architecture)
}

// internalMeta returns the description of a vertex that prepares the stage's next step.
func (b *builder) internalMeta(s *stage, text string, at []moby.Range) llb.Meta {
	return b.groupMeta(s, "internal", text, at)
}

// groupMeta is internalMeta with another name for what the vertex belongs to.
func (b *builder) groupMeta(s *stage, group, text string, at []moby.Range) llb.Meta {
	place := b.place(s)
	place.Group, place.Platforms = group, 1
	return llb.Meta{Place: place, Text: text, Location: b.location(at)}
}
