package frontend

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

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
	// setTriggers are what triggers returns, once hasTriggers says so.
	setTriggers []string
	hasTriggers bool
	// number is its place among the builder's stages.
	number int
	// needed says that the stage is lowered, exported that the target's image begins with it, lowered that all fields below are final.
	needed, exported, lowered bool

	root llb.Output
	// local is that of a named context that is a directory: what COPY --from and mounts read from.
	local llb.Output
	// localRoot is the root file system made of local, before the stage's own instructions.
	localRoot llb.Output
	// op is the image that the stage begins with, if Ref is set; image is its whole configuration.
	op    llb.Image
	image dockerspec.DockerOCIImage
	// found is what the stage has of its image; nil for none.
	found *foundImage
	// config is the image configuration but for its environment, which is vars. Its maps may be those of the base, unless ownsMaps.
	config   dockerspec.DockerOCIImageConfig
	vars     *environ
	ownsMaps bool
	author   string
	// history are the stage's own entries. One that is not exported has none.
	history []History
	// size is about what the configuration takes as JSON, without vars, and sizes are parts of that: see sized.
	size  int
	sizes map[string]int
	// env are ENV and ARG, args the ARGs alone.
	env  *environ
	args *arguments

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

// inherit takes over what a stage has from the stage that it is built on. Nothing is copied before it is changed: of n
// stages, each built on the one before, the last would have n times what the first has.
func (s *stage) inherit() {
	b := s.base
	s.root, s.platform, s.author = b.root, b.platform, b.author
	s.image = b.image
	s.config = b.config
	s.config.OnBuild = nil
	s.vars, s.env, s.args = b.vars.fork(), b.env.fork(), b.args.fork()
	s.size, s.sizes = b.size, maps.Clone(b.sizes)
	s.sized("onbuild", 0)
	s.workdirSet = b.workdirSet
}

// begin makes the variables of a stage that has its base.
func (s *stage) begin(b *budget) error {
	if s.implicit {
		return nil // it has no instructions
	}
	if s.base == nil {
		s.env, s.args = newEnviron(b), &arguments{budget: b, at: map[string]int{}}
		if s.found != nil {
			s.vars = s.found.vars.fork()
			s.vars.budget = b
		} else {
			s.vars = newEnviron(b)
			s.vars.fill(s.config.Env)
		}
	}
	if _, ok := s.vars.Get("PATH"); !ok {
		if err := s.vars.replace("PATH", defaultPath); err != nil {
			return err
		}
	}
	if err := b.spend(s.vars.size); err != nil {
		return err
	}
	for _, kv := range s.vars.all() {
		k, v, _ := strings.Cut(kv, "=")
		if err := s.env.set(k, v); err != nil {
			return err
		}
	}
	return nil
}

// historySize is what an entry of the history takes beside its text, with the digest of its layer if it has one.
const historySize = 100

// jsonSize returns how many bytes encoding/json makes of a text, with quotes and a comma.
func jsonSize(text string) int {
	n := len(text) + 3
	for i, r := range text {
		switch {
		case r == '"' || r == '\\' || r == '\n' || r == '\r' || r == '\t' || r == '\b' || r == '\f':
			n++
		case r < ' ' || r == '<' || r == '>' || r == '&':
			n += 5
		case r == '\u2028' || r == '\u2029':
			n += 3
		case r == utf8.RuneError && text[i] != '\xef':
			n += 5 // no UTF-8
		}
	}
	return n
}

// commit adds a history entry; vertex is nil for an instruction without a layer.
func (s *stage) commit(createdBy string, vertex *llb.Vertex) {
	if !s.exported {
		return
	}
	s.history = append(s.history, History{
		CreatedBy: createdBy,
		Comment:   "buildkit.dockerfile.v0",
		Empty:     vertex == nil,
		Vertex:    vertex,
	})
	s.size += historySize + jsonSize(createdBy)
}

// allHistory returns the history from the base image's on.
func (s *stage) allHistory() []History {
	var all []*stage
	for ; s != nil; s = s.base {
		all = append(all, s)
	}
	var out []History
	for _, s := range slices.Backward(all) {
		if s.found != nil {
			out = append(out, s.found.history...)
		}
		out = append(out, s.history...)
	}
	return out
}

// sized notes how many bytes a part of the configuration has, in the place of what it had.
func (s *stage) sized(part string, bytes int) {
	s.size += bytes - s.sizes[part]
	if s.sizes == nil {
		s.sizes = map[string]int{}
	}
	s.sizes[part] = bytes
}

// sizedList is sized for a list.
func (s *stage) sizedList(part string, list []string) {
	bytes := 0
	for _, text := range list {
		bytes += jsonSize(text)
	}
	s.sized(part, bytes)
}

// checkSize refuses a configuration that is too large. What it takes exactly is known when it is written.
func (s *stage) checkSize() error {
	if s.exported && s.size+s.vars.size > maxConfig {
		return fmt.Errorf("the image's configuration, which has environment, labels and history, becomes larger than %d MiB", maxConfig>>20)
	}
	return nil
}

// ownMaps sees to it that the maps of the configuration can be changed.
func (s *stage) ownMaps(b *budget) error {
	if s.ownsMaps {
		return nil
	}
	bytes := 0
	for k, v := range s.config.Labels {
		bytes += len(k) + len(v)
	}
	if err := b.spend(bytes + entrySize*(len(s.config.Labels)+len(s.config.ExposedPorts)+len(s.config.Volumes))); err != nil {
		return err
	}
	s.config.Labels = maps.Clone(s.config.Labels)
	s.config.ExposedPorts = maps.Clone(s.config.ExposedPorts)
	s.config.Volumes = maps.Clone(s.config.Volumes)
	s.ownsMaps = true
	return nil
}

// setLabel sets a label. The maps are the stage's own.
func (s *stage) setLabel(key, value string) {
	if s.config.Labels == nil {
		s.config.Labels = map[string]string{}
	}
	if old, ok := s.config.Labels[key]; ok {
		s.size -= jsonSize(key) + jsonSize(old)
	}
	s.config.Labels[key] = value
	s.size += jsonSize(key) + jsonSize(value)
}

// add puts a name into the set of ports or volumes, which the stage owns.
func (s *stage) add(set *map[string]struct{}, name string) {
	if *set == nil {
		*set = map[string]struct{}{}
	}
	if _, ok := (*set)[name]; !ok {
		(*set)[name] = struct{}{}
		s.size += jsonSize(name) + len(":{}")
	}
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

// stepMeta returns the description of the stage's next step: text is the instruction, in which words expands variables, but for those whose
// name is that of a secret.
func (b *builder) stepMeta(s *stage, text string, words *expander, env shell.EnvGetter, at []moby.Range) llb.Meta {
	if expanded, _, err := words.word(text, shown{env}); err == nil {
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
