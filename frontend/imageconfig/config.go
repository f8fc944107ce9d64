// Package imageconfig builds the configuration of an image, instruction by instruction, and bounds what it takes as JSON.
// It does not know the language that the instructions are written in.
package imageconfig

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"time"

	"github.com/kilnbuild/kiln/frontend/expand"
	"github.com/kilnbuild/kiln/llb"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// DefaultPath is the PATH of images that set none.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// maxSize bounds a configuration as JSON: kiln, as other programs, would not read a larger one again (cas.MaxManifest).
const maxSize = 4 << 20

// HistorySize is what an entry of the history takes as JSON beside its text, with the digest of its layer if it has one.
const HistorySize = 100

// Config is an image configuration without platform, root file system and times. Nothing is copied before it is changed: of n stages,
// each built on the one before, the last would have n times what the first has.
type Config struct {
	budget *expand.Budget
	// spec is the configuration without its environment, which is env. Its maps may be those of another Config, unless ownsMaps is set.
	spec     dockerspec.DockerOCIImageConfig
	env      *expand.Env
	ownsMaps bool
	author   string
	// history are the entries since before, whose history comes first; before is nil for none.
	history []History
	before  *Config
	// exported is set for a configuration that is written: the history of others is not kept, and their size is not checked.
	exported bool
	// size is about what the configuration takes as JSON, without env; sizes are the parts of it that instructions replace.
	size  int
	sizes [parts]int
}

// part is a part of the configuration that an instruction replaces as a whole.
type part int

const (
	author part = iota
	cmd
	entrypoint
	healthcheck
	onBuild
	shell
	stopSignal
	user
	workingDir
	parts // how many there are
)

// History is an entry of an image's history.
type History struct {
	CreatedBy string
	Comment   string
	Author    string
	// Empty is set for an entry without a layer.
	Empty bool
	// Created is set for the base image's entries alone.
	Created *time.Time
	// Vertex is the one whose layer the entry describes; for COPY --link that is the llb.Merge. It is nil for an empty entry and
	// for the base image's.
	Vertex *llb.Vertex
	// Base is set for an entry of an image from elsewhere that is known to be its base image's.
	Base bool
}

// New returns the configuration of an image without a base; exported says whether it is written.
func New(b *expand.Budget, exported bool) *Config {
	c := &Config{budget: b, env: expand.NewEnv(b), exported: exported}
	c.spec.WorkingDir = "/"
	return c
}

// Of returns the configuration of an image. It cannot be changed, but its forks can.
func Of(image *dockerspec.DockerOCIImage) *Config {
	c := &Config{spec: image.Config, author: image.Author, env: expand.NewEnv(nil)}
	c.env.Fill(image.Config.Env)
	for _, h := range layered(image) {
		c.history = append(c.history, History{
			CreatedBy: h.CreatedBy, Comment: h.Comment, Author: h.Author, Empty: h.EmptyLayer, Created: h.Created,
		})
		c.size += HistorySize + expand.JSONSize(h.CreatedBy) + expand.JSONSize(h.Comment) + expand.JSONSize(h.Author)
	}
	for k, v := range c.spec.Labels {
		c.size += expand.JSONSize(k) + expand.JSONSize(v)
	}
	for _, set := range []map[string]struct{}{c.spec.ExposedPorts, c.spec.Volumes} {
		for name := range set {
			c.size += memberSize(name)
		}
	}
	c.resizeList(cmd, c.spec.Cmd)
	c.resizeList(entrypoint, c.spec.Entrypoint)
	c.resizeList(shell, c.spec.Shell)
	c.resize(workingDir, expand.JSONSize(c.spec.WorkingDir))
	c.resize(user, expand.JSONSize(c.spec.User))
	c.resize(author, expand.JSONSize(c.author))
	return c
}

// layered returns the history of an image with one entry that is not empty for each layer, as podman and buildah demand. Some tools write
// none, or too few, which then describe the lowest layers; of too many the last ones have no layer. BuildKit repairs it likewise.
func layered(image *dockerspec.DockerOCIImage) []ocispec.History {
	layers := len(image.RootFS.DiffIDs)
	out := slices.Clone(image.History)
	for i := range out {
		switch {
		case out[i].EmptyLayer:
		case layers == 0:
			out[i].EmptyLayer = true
		default:
			layers--
		}
	}
	for range layers {
		out = append(out, ocispec.History{Created: image.Created, Comment: "a layer of the base image without history"})
	}
	return out
}

// Fork returns a copy without the triggers, which takes no time until one of the two is changed. Changes of the copy are paid from b;
// exported says whether it is written.
func (c *Config) Fork(b *expand.Budget, exported bool) *Config {
	other := &Config{
		budget: b, spec: c.spec, env: c.env.Fork(), author: c.author, before: c, exported: exported, size: c.size, sizes: c.sizes,
	}
	other.spec.OnBuild = nil
	other.resize(onBuild, 0)
	other.env.Rebudget(b)
	return other
}

// Exported reports whether the configuration is written.
func (c *Config) Exported() bool { return c.exported }

// Env returns the variables of the configuration. They are changed by SetEnv alone.
func (c *Config) Env() *expand.Env { return c.env }

// User returns the user that the image runs as.
func (c *Config) User() string { return c.spec.User }

// WorkingDir returns the working directory as it was set.
func (c *Config) WorkingDir() string { return c.spec.WorkingDir }

// Cwd returns the working directory, absolute and cleaned.
func (c *Config) Cwd() string { return path.Join("/", c.spec.WorkingDir) }

// Shell returns the command that runs shell forms, nil if none was set.
func (c *Config) Shell() []string { return slices.Clone(c.spec.Shell) }

// ShellSize returns how many bytes Shell takes as JSON.
func (c *Config) ShellSize() int { return c.sizes[shell] }

// Spec returns the configuration with its environment. It must not be changed.
func (c *Config) Spec() dockerspec.DockerOCIImageConfig {
	spec := c.spec
	spec.Env = c.env.All()
	return spec
}

// Author returns the author of the image.
func (c *Config) Author() string { return c.author }

// Size returns about how many bytes the configuration takes as JSON.
func (c *Config) Size() int { return c.size + c.env.Size() }

// CheckSize returns an error for an exported configuration that is too large. The exact size is known when it is written.
func (c *Config) CheckSize() error {
	if c.exported && c.Size() > maxSize {
		return fmt.Errorf("the image's configuration, which has environment, labels and history, becomes larger than %d MiB", maxSize>>20)
	}
	return nil
}

// Commit adds an entry to the history; vertex is nil for an instruction without a layer.
func (c *Config) Commit(createdBy string, vertex *llb.Vertex) {
	if !c.exported {
		return
	}
	c.history = append(c.history, History{
		CreatedBy: createdBy,
		Comment:   "buildkit.dockerfile.v0",
		Empty:     vertex == nil,
		Vertex:    vertex,
	})
	c.size += HistorySize + expand.JSONSize(createdBy)
}

// History returns the history, from that of the base image on.
func (c *Config) History() []History {
	var all []*Config
	for ; c != nil; c = c.before {
		all = append(all, c)
	}
	var out []History
	for _, c := range slices.Backward(all) {
		out = append(out, c.history...)
	}
	return out
}

// SetAuthor sets the author.
func (c *Config) SetAuthor(name string) {
	c.author = name
	c.resize(author, expand.JSONSize(name))
}

// SetCmd sets the arguments that a container runs by default.
func (c *Config) SetCmd(args []string) {
	c.spec.Cmd = args
	//lint:ignore SA1019 BuildKit sets the field, so an image is the same only with it
	c.spec.ArgsEscaped = true
	c.resizeList(cmd, args)
}

// UnsetCmd removes what SetCmd set.
func (c *Config) UnsetCmd() {
	c.spec.Cmd = nil
	c.resize(cmd, 0)
}

// SetEntrypoint sets the command that a container runs.
func (c *Config) SetEntrypoint(args []string) {
	c.spec.Entrypoint = args
	c.resizeList(entrypoint, args)
}

// SetHealthcheck sets how a container is checked.
func (c *Config) SetHealthcheck(h *dockerspec.HealthcheckConfig) {
	c.spec.Healthcheck = h
	c.resizeList(healthcheck, h.Test)
}

// SetShell sets the command that runs shell forms.
func (c *Config) SetShell(args []string) {
	c.spec.Shell = args
	c.resizeList(shell, args)
}

// SetStopSignal sets the signal that stops a container.
func (c *Config) SetStopSignal(name string) {
	c.spec.StopSignal = name
	c.resize(stopSignal, expand.JSONSize(name))
}

// SetUser sets the user that a container runs as.
func (c *Config) SetUser(name string) {
	c.spec.User = name
	c.resize(user, expand.JSONSize(name))
}

// SetWorkingDir sets the working directory.
func (c *Config) SetWorkingDir(dir string) {
	c.spec.WorkingDir = dir
	c.resize(workingDir, expand.JSONSize(dir))
}

// AddTrigger adds an instruction for images that are built on this one.
func (c *Config) AddTrigger(text string) {
	c.spec.OnBuild = append(c.spec.OnBuild, text)
	c.resize(onBuild, c.sizes[onBuild]+expand.JSONSize(text))
}

// Triggers returns the instructions for images that are built on this one.
func (c *Config) Triggers() []string { return c.spec.OnBuild }

// SetEnv sets a variable. The error is that of the budget.
func (c *Config) SetEnv(name, value string) error { return c.env.Replace(name, value) }

// SetLabel sets a label. The error is that of the budget.
func (c *Config) SetLabel(key, value string) error {
	if err := c.own(); err != nil {
		return err
	}
	if c.spec.Labels == nil {
		c.spec.Labels = map[string]string{}
	}
	if old, ok := c.spec.Labels[key]; ok {
		c.size -= expand.JSONSize(key) + expand.JSONSize(old)
	}
	c.spec.Labels[key] = value
	c.size += expand.JSONSize(key) + expand.JSONSize(value)
	return nil
}

// Expose adds ports, "80/tcp". The error is that of the budget.
func (c *Config) Expose(ports []string) error { return c.add(&c.spec.ExposedPorts, ports) }

// AddVolumes adds directories. The error is that of the budget.
func (c *Config) AddVolumes(dirs []string) error { return c.add(&c.spec.Volumes, dirs) }

func (c *Config) add(set *map[string]struct{}, names []string) error {
	if err := c.own(); err != nil {
		return err
	}
	if *set == nil {
		*set = map[string]struct{}{}
	}
	for _, name := range names {
		if _, ok := (*set)[name]; !ok {
			(*set)[name] = struct{}{}
			c.size += memberSize(name)
		}
	}
	return nil
}

// memberSize returns what a port or a volume takes as JSON.
func memberSize(name string) int { return expand.JSONSize(name) + len(":{}") }

// own makes the maps of the configuration its own, so that they can be changed.
func (c *Config) own() error {
	if c.ownsMaps {
		return nil
	}
	bytes := 0
	for k, v := range c.spec.Labels {
		bytes += len(k) + len(v)
	}
	bytes += expand.EntrySize * (len(c.spec.Labels) + len(c.spec.ExposedPorts) + len(c.spec.Volumes))
	if err := c.budget.Spend(bytes); err != nil {
		return err
	}
	c.spec.Labels = maps.Clone(c.spec.Labels)
	c.spec.ExposedPorts = maps.Clone(c.spec.ExposedPorts)
	c.spec.Volumes = maps.Clone(c.spec.Volumes)
	c.ownsMaps = true
	return nil
}

// resize sets how many bytes a part takes.
func (c *Config) resize(p part, bytes int) {
	c.size += bytes - c.sizes[p]
	c.sizes[p] = bytes
}

// resizeList is resize for a list.
func (c *Config) resizeList(p part, list []string) {
	bytes := 0
	for _, text := range list {
		bytes += expand.JSONSize(text)
	}
	c.resize(p, bytes)
}
