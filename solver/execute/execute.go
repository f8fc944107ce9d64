// Package execute does the work of steps on this machine: it is the solver's Executor. It does not know Dockerfiles, nor when or why a
// step runs.
package execute

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/internal/cdi"
	"github.com/kilnbuild/kiln/internal/git"
	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/network"
	"github.com/kilnbuild/kiln/internal/reach"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/sandbox"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/session"
	"github.com/kilnbuild/kiln/solver/work"
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

// Config is what an Executor needs of the machine.
type Config struct {
	Snapshots *snapshot.Store
	Images    Images
	// Pack, where not nil, makes blobs of layers that need no files.
	Pack Pack
	// CDIDirs are where specifications of devices are.
	CDIDirs []string
	// Limits bound each RUN, and Timeout the time that one takes; 0 is no limit. What a step makes does not depend on them, so
	// they are no part of its key.
	Limits  sandbox.Limits
	Timeout time.Duration
	// IDs returns the map of ids of RUN's user namespace, and may return nil: then RUN has the ids of kiln. What a step makes is the
	// same with and without.
	IDs func() (*mount.IDMap, error)
	// SharedProc is as in sandbox.Spec.
	SharedProc bool
	// Limit is of the hosts that ADD names; nil is for anywhere.
	Limit reach.Limit
	// Root is kiln's root directory, for cache mounts and locks.
	Root string
	// Tmp is a directory of this process's own on the same file system.
	Tmp string
}

// Pack makes a blob, of the form that a solver.Demand names, of a layer that is about to be committed under an id and whose tar is what
// tar writes, and returns the note of it for snapshot.Pending.Pack. If tar fails there is no blob.
type Pack func(ctx context.Context, form, id string, tar func(io.Writer) error) (note string, data []byte, err error)

// Executor does the work of the steps of one build. It implements solver.Executor, plan.Layers and plan.Sources.
type Executor struct {
	Config
	*session.Session

	mu      sync.Mutex
	sources map[string]source               // of layers of images, by id
	demands map[string]func() solver.Demand // what is expected to be needed of those
	ready   map[string]*materialising       // by id
	commits map[string]*resolving           // of git repositories
	files   map[string]string               // that were downloaded and are no layers yet, by address and digest

	noPidsLimit sync.Once // said that there is none

	git      *git.Client
	cdi      func() *cdi.Registry
	networks network.Pool
	groups   sandbox.Pool
	copies   sync.Once // that roots are copies is said once
	emptied  emptied
}

// source is where a layer of an image comes from.
type source struct {
	image llb.Image
	layer ImageLayer
}

// New returns an Executor for the build that a session is of. Close must be called.
func New(c Config, s *session.Session) *Executor {
	if c.IDs == nil {
		c.IDs = func() (*mount.IDMap, error) { return nil, nil }
	}
	x := &Executor{
		Config: c, Session: s, sources: map[string]source{}, demands: map[string]func() solver.Demand{}, ready: map[string]*materialising{},
		commits: map[string]*resolving{}, files: map[string]string{},
	}
	x.cdi = sync.OnceValue(func() *cdi.Registry { return cdi.Load(c.CDIDirs...) })
	if c.SharedProc {
		x.networks.Make = sandbox.NewUserNamespace
	}
	x.git = git.New(filepath.Join(c.Root, rootdir.Git), c.Tmp, s.Secret)
	x.git.Limit = c.Limit
	return x
}

// Close ends what the steps' networks have left, and removes their control groups. No step may run any more. When ctx ends, what steps
// sent is no longer waited for.
func (x *Executor) Close(ctx context.Context) error {
	x.networks.Close(ctx)
	err := x.groups.Close()
	for _, file := range x.files {
		err = errors.Join(err, os.Remove(file))
	}
	return err
}

// Missing implements solver.Executor.
func (x *Executor) Missing(_ context.Context, l solver.Layer) error {
	_, err := x.Snapshots.Manifest(l.ID)
	return err
}

// Expect implements solver.Executor.
func (x *Executor) Expect(r solver.Ref, demand func() solver.Demand) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, l := range r.Changes() {
		if x.demands[l.ID] == nil {
			x.demands[l.ID] = demand
		}
	}
}

// Execute implements solver.Executor.
func (x *Executor) Execute(ctx context.Context, w solver.Work, job solver.Job) ([]solver.Made, error) {
	switch w := w.(type) {
	case work.File:
		return x.file(ctx, w, job)
	case work.Exec:
		return x.exec(ctx, w, job)
	case work.HTTP:
		return x.download(ctx, w, job)
	case work.Git:
		return x.checkout(ctx, w, job)
	case work.Diff:
		return x.diff(ctx, w)
	case work.Explicit:
		return x.explicit(ctx, w)
	}
	return nil, fmt.Errorf("BUG: work of type %T", w)
}

// made is the one layer of a step's output 0.
func made(c snapshot.Committed) []solver.Made {
	return []solver.Made{{Layer: committed(c)}}
}

// committed turns a layer of the store into the solver's.
func committed(c snapshot.Committed) solver.Layer {
	return solver.Layer{ID: c.ID, Content: solver.Content(c.Content)}
}
