// Package ops knows what each op does: it is the solver's Runner. It does not know Dockerfiles, nor when or why a step
// runs.
package ops

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/internal/cdi"
	"github.com/kilnbuild/kiln/internal/git"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/network"
	"github.com/kilnbuild/kiln/internal/reach"
	"github.com/kilnbuild/kiln/internal/sshagent"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/sandbox"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/solver"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Images gives the layers of images that have been resolved. It is safe for concurrent use.
type Images interface {
	// Layers returns the layers of an image, the lowest first. Nothing is fetched for it but the manifest and config.
	Layers(ctx context.Context, op llb.Image) ([]ImageLayer, error)
	// Open returns the bytes of a layer's blob as it is in the registry, compressed perhaps; they end in io.EOF only if
	// they have the descriptor's digest and size.
	Open(ctx context.Context, op llb.Image, l ImageLayer) (io.ReadCloser, error)
}

// ImageLayer is a layer of an image as its manifest and its config name it.
type ImageLayer struct {
	Blob   ocispec.Descriptor
	DiffID digest.Digest
}

// Secrets gives the values of secrets.
type Secrets interface {
	// Secret returns a secret's value; false if the build was given none of that id.
	Secret(id string) ([]byte, bool, error)
}

// Config is what a Runner needs.
type Config struct {
	Snapshots *snapshot.Store
	Images    Images
	Secrets   Secrets
	// Agents are ssh agents by id.
	Agents map[string]*sshagent.Agent
	// CDIDirs are where specifications of devices are, and Allow the entitlements of the build.
	CDIDirs []string
	Allow   []string
	// Limits bound each RUN, and Timeout the time that one takes; 0 is no limit. What a step makes does not depend on them, so
	// they are no part of its key.
	Limits  sandbox.Limits
	Timeout time.Duration
	// MayRun, where not nil, waits until steps may run; its error, or ctx's, is that of a step.
	MayRun func(ctx context.Context) error
	// Note takes what need not concern the user, and may be nil.
	Note func(text string)
	// IDs returns the map of ids of RUN's user namespace, and may return nil: then RUN has the ids of kiln. What a step makes is the
	// same with and without.
	IDs func() (*mount.IDMap, error)
	// SharedProc is as in sandbox.Spec.
	SharedProc bool
	// Limit is of the hosts that ADD names; nil is for anywhere.
	Limit reach.Limit
	// Local are the trees of llb.Local by their names: directories of the client, or what took the place of one.
	Local map[string]layer.Tree
	// Root is kiln's root directory, for cache mounts and locks.
	Root string
	// Tmp is a directory of this process's own on the same file system.
	Tmp string
	// Warn shows people what they should know, and may be nil.
	Warn func(text string)
}

// Runner implements solver.Runner.
type Runner struct {
	Config

	unpacked map[string]bool     // by digest, the images that are unpacked in any case; nil: all
	inFiles  map[llb.Digest]bool // the vertices whose files something needs
	// selections are what the steps of the build use of contexts: sources of COPY and ADD and of mounts.
	selections map[llb.Digest][]string
	pack       Pack // nil: every layer has files

	mu      sync.Mutex
	sources map[string]source         // of layers of images, by id
	ready   map[string]*materialising // by id
	commits map[string]*resolving     // of git repositories

	noPidsLimit sync.Once // said that there is none

	git      *git.Client
	cdi      func() *cdi.Registry
	networks network.Pool
	groups   sandbox.Pool
	copies   sync.Once // that roots are copies is said once
}

// Pack makes a blob of a layer that is about to be committed under an id and whose tar is what tar writes, and returns the note
// of it for snapshot.Pending.Pack. If tar fails there is no blob.
type Pack func(ctx context.Context, id string, tar func(io.Writer) error) (note string, data []byte, err error)

// source is where a layer of an image comes from.
type source struct {
	image llb.Image
	layer ImageLayer
}

// New returns a Runner.
func New(c Config) *Runner {
	if c.IDs == nil {
		c.IDs = func() (*mount.IDMap, error) { return nil, nil }
	}
	r := &Runner{Config: c, sources: map[string]source{}, ready: map[string]*materialising{}, commits: map[string]*resolving{}}
	r.cdi = sync.OnceValue(func() *cdi.Registry { return cdi.Load(c.CDIDirs...) })
	if c.SharedProc {
		r.networks.Make = sandbox.NewUserNamespace
	}
	r.git = git.New(filepath.Join(c.Root, "git"), c.Tmp, r.secret)
	r.git.Limit = c.Limit
	return r
}

// Close ends what the steps' networks have left, and removes their control groups. No step may run any more.
func (r *Runner) Close() error {
	r.networks.Close()
	return r.groups.Close()
}

// Missing implements solver.Runner.
func (r *Runner) Missing(l solver.Layer) error {
	_, err := r.Snapshots.Manifest(l.ID)
	return err
}

// Plan implements solver.Runner.
func (r *Runner) Plan(ctx context.Context, v *llb.Vertex, in []*solver.Chain) (solver.Step, error) {
	switch op := v.Op().(type) {
	case llb.Scratch, llb.Local:
		return solver.Step{Done: true}, nil
	case llb.Image:
		root, err := r.image(ctx, op)
		return solver.Step{Done: true, Root: root}, err
	case llb.Merge:
		return solver.Step{Done: true, Root: merge(in)}, nil
	case llb.Exec:
		return r.planExec(ctx, v, op, in)
	case llb.File:
		return r.planFile(ctx, v, op, in)
	case llb.HTTP:
		return r.planHTTP(ctx, v, op)
	case llb.Git:
		return r.planGit(ctx, v, op)
	default:
		return solver.Step{}, fmt.Errorf("BUG: no op %q", v.Op().Kind())
	}
}

// merge stacks the layers of the later inputs onto the first.
func merge(in []*solver.Chain) *solver.Chain {
	root := in[0]
	for _, c := range in[1:] {
		for _, l := range c.Layers() {
			root = root.Push(l)
		}
	}
	return root
}

// tree returns the file tree of an input, realising its layers.
func (r *Runner) tree(ctx context.Context, v llb.Output, c *solver.Chain) (layer.Tree, error) {
	if local, ok := v.Vertex.Op().(llb.Local); ok {
		d := r.Local[local.Name]
		if d == nil {
			return nil, fmt.Errorf("BUG: no local directory %q", local.Name)
		}
		return d, nil
	}
	return r.rootTree(ctx, c)
}

func (r *Runner) rootTree(ctx context.Context, c *solver.Chain) (*snapshot.Tree, error) {
	ids, err := r.Realise(ctx, c)
	if err != nil {
		return nil, err
	}
	return r.Snapshots.Tree(ids)
}

// destination returns the tree of the root o that is about to change, with its files or, where nobody needs those, without.
func (r *Runner) destination(ctx context.Context, o llb.Output, c *solver.Chain, files bool) (layer.Tree, error) {
	img, ok := bottom(o).Op().(llb.Image)
	if !ok || files || r.unpacked == nil || r.unpacked[img.Digest] {
		return r.rootTree(ctx, c)
	}
	return r.look(ctx, c)
}

// warn is Warn, which may be nil.
func (r *Runner) warn(text string) {
	if r.Warn != nil {
		r.Warn(text)
	}
}

// committed turns a layer of the store into the solver's.
func committed(c snapshot.Committed) solver.Layer {
	return solver.Layer{ID: c.ID, Content: solver.Content(c.Content)}
}

// common are the key inputs that every op has.
func common(v *llb.Vertex) []solver.Input {
	return []solver.Input{{Name: "op", Value: v.Op().Kind()}}
}

func contentInput(name string, c solver.Content) solver.Input {
	return solver.Input{Name: name, Value: hex.EncodeToString(c[:])}
}
