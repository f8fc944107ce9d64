package frontend

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	moby "github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/llb"
)

// stage is a build stage while it is lowered: one of the Dockerfile, or one that a COPY --from or a mount of an image
// stands for.
type stage struct {
	src instructions.Stage
	// name is what progress output calls the stage: its own name, or "stage-N".
	name string
	// base is the stage that FROM names; nil for an image.
	base *stage
	// platform is that of FROM --platform, else nil; after lowering it is the platform that the stage runs on.
	platform *llb.Platform
	// context is the named context that replaces the stage or its base image.
	context *namedContext
	// implicit is set for a stage that stands in no FROM.
	implicit bool
	noCache  bool
	commands []command
	deps     []dependency
	// resolved says that the base is known, lowered that all fields below are final.
	resolved, triggered, lowered bool

	root llb.Output
	// local is that of a named context that is a directory: what COPY --from and mounts read from.
	local llb.Output
	// localRoot is the root file system made of local, before the stage's own instructions.
	localRoot llb.Output
	// op is the image that the stage begins with, if Ref is set; image is its whole configuration.
	op      llb.Image
	image   dockerspec.DockerOCIImage
	config  dockerspec.DockerOCIImageConfig
	author  string
	history []History
	// env are ENV and ARG, args the ARGs alone.
	env  environ
	args []instructions.KeyValuePairOptional

	// step counts the progress lines of the stage, of steps.
	step, steps int
	onBuild     bool
	// What the checks remember of the stage.
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

// replaced says that a named context stands for the whole stage.
func (s *stage) replaced() bool { return s.context != nil && s.context.replacesStage }

// inherit takes over what a stage has from the stage that it is built on.
func (s *stage) inherit() {
	b := s.base
	s.root, s.platform, s.author = b.root, b.platform, b.author
	s.image = b.image
	s.config = cloneConfig(b.config)
	s.config.OnBuild = nil
	s.history = slices.Clone(b.history)
	s.env = slices.Clone(b.env)
	s.args = slices.Clone(b.args)
	s.workdirSet = b.workdirSet
}

// commit adds a history entry; vertex is nil for an instruction without a layer.
func (s *stage) commit(createdBy string, vertex *llb.Vertex) {
	s.history = append(s.history, History{
		CreatedBy: createdBy,
		Comment:   "buildkit.dockerfile.v0",
		Empty:     vertex == nil,
		Vertex:    vertex,
	})
}

// cwd returns the working directory, absolute and cleaned.
func (s *stage) cwd() string { return path.Join("/", s.config.WorkingDir) }

// directory returns the client's directory that the stage is; false for a stage that is anything else, as one that was changed
// since: what is taken from it is then read where it is, and not copied first.
func (s *stage) directory() (llb.Output, bool) {
	if s.root != s.localRoot || s.local.Vertex == nil {
		return llb.Output{}, false
	}
	return s.local, true
}

// shell returns the command that shell forms are run by.
func (s *stage) shell() []string {
	if len(s.config.Shell) > 0 {
		return slices.Clone(s.config.Shell)
	}
	return []string{"/bin/sh", "-c"}
}

// stepMeta returns the description of the stage's next step: text is the instruction, in which lex expands variables, but for those whose
// name is that of a secret.
func (b *builder) stepMeta(s *stage, text string, lex *shell.Lex, env shell.EnvGetter, at []moby.Range) llb.Meta {
	if expanded, _, err := lex.ProcessWord(text, shown{env}); err == nil {
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
	if ok && value != "" && IsSecretName(name) {
		value = Hidden
	}
	return value, ok
}

// Hidden is shown in place of the value of a secret.
const Hidden = "****"

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

// internalMeta returns the description of a vertex that serves the stage's next step, and is no step itself.
func (b *builder) internalMeta(s *stage, text string, at []moby.Range) llb.Meta {
	return b.groupMeta(s, "internal", text, at)
}

// groupMeta is internalMeta with another name for what the vertex belongs to.
func (b *builder) groupMeta(s *stage, group, text string, at []moby.Range) llb.Meta {
	place := b.place(s)
	place.Group, place.Platforms = group, 1
	return llb.Meta{Place: place, Text: text, Location: b.location(at)}
}

func cloneConfig(c dockerspec.DockerOCIImageConfig) dockerspec.DockerOCIImageConfig {
	c.Env = slices.Clone(c.Env)
	c.Cmd = slices.Clone(c.Cmd)
	c.Entrypoint = slices.Clone(c.Entrypoint)
	c.OnBuild = slices.Clone(c.OnBuild)
	c.Shell = slices.Clone(c.Shell)
	c.ExposedPorts = maps.Clone(c.ExposedPorts)
	c.Volumes = maps.Clone(c.Volumes)
	c.Labels = maps.Clone(c.Labels)
	if c.Healthcheck != nil {
		h := *c.Healthcheck
		h.Test = slices.Clone(h.Test)
		c.Healthcheck = &h
	}
	return c
}
