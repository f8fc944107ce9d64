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

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/cachemount"
	"github.com/kilnbuild/kiln/internal/cdi"
	"github.com/kilnbuild/kiln/internal/git"
	"github.com/kilnbuild/kiln/internal/httpsource"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/network"
	"github.com/kilnbuild/kiln/internal/once"
	"github.com/kilnbuild/kiln/internal/reach"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/sandbox"
	"github.com/kilnbuild/kiln/sandbox/emulation"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/snapshot/blob"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/claims"
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
	// Architecture returns the processor that an image is for.
	Architecture(op llb.Image) string
}

// Blobs gives blobs that are named by their digests alone. It is safe for concurrent use.
type Blobs interface {
	// Blob opens a blob, and returns its size. The bytes end in io.EOF only if they are those of the blob.
	Blob(ctx context.Context, op llb.Blob) (io.ReadCloser, int64, error)
}

// Cached gives layers that are kept elsewhere, and come here only when a step needs them. It is safe for concurrent use.
type Cached interface {
	// Layer returns what is known of a layer, if it can be had.
	Layer(id layer.ID) (CachedLayer, bool)
	claims.Source
}

// CachedLayer is a layer that is kept elsewhere.
type CachedLayer struct {
	snapshot.Foreign
	// Hides says that it hides a directory of the layers below it.
	Hides bool
}

// ImageLayer is a layer of an image as its manifest and its config name it.
type ImageLayer struct {
	Blob   ocispec.Descriptor
	DiffID digest.Digest
	// Windows is set for a layer of a Windows image.
	Windows bool
}

// Config is what an Executor needs of the machine.
type Config struct {
	// CDIDirs are where specifications of devices are.
	CDIDirs []string
	// SharedProc is as in sandbox.Spec.
	SharedProc bool
	// Root is kiln's root directory, for cache mounts and locks.
	Root string
	// Tmp is a directory of this process's own on the same file system.
	Tmp string
}

// Options are of one job. What a step makes does not depend on Limits, Timeout and IDs, so they are no part of its key.
type Options struct {
	// Images may be nil where no image is used.
	Images Images
	// Blobs may be nil where no llb.Blob is used.
	Blobs Blobs
	// Snapshots are the layers.
	Snapshots *snapshot.Job
	// Cached are layers that caches elsewhere have; nil for none.
	Cached Cached
	// CacheMounts has what cache mounts were elsewhere; nil for none.
	CacheMounts CacheMounts
	// Blob, if not nil, is how layers whose files nobody needs are written, directly as blobs; see solver.Demand.
	Blob *blob.Encoding
	// Limits bound each RUN, and Timeout the time that one takes; 0 is no limit.
	Limits  sandbox.Limits
	Timeout time.Duration
	// IDs returns the map of ids of RUN's user namespace. It is nil, or returns nil, where RUN has the ids of kiln.
	IDs func() (*mount.IDMap, error)
	// Limit is of the hosts that ADD names; nil is for anywhere.
	Limit reach.Limit
	// KeepFailed keeps what a RUN that fails has left, for Job.Failed.
	KeepFailed bool
	// NoDevices has steps run without devices that do not exist and are not required, whether they are allowed or not, as BuildKit does.
	NoDevices bool
	// KeepLeft makes layers of what a RUN that fails has written, for Job.Left.
	KeepLeft bool
}

// Executor runs steps on this machine, for any number of jobs at once. Jobs share networks and control groups, which take longer to make
// than a short step runs.
type Executor struct {
	Config
	cdi      func() *cdi.Registry
	networks network.Pool
	// emulated are the networks of steps with an emulator, each in a user namespace of its own.
	emulated network.Pool
	groups   sandbox.Pool
	machine  emulation.Machine
}

// Job does the work of the steps of one job. It implements solver.Executor, plan.Layers and plan.Sources.
type Job struct {
	*Executor
	Options
	*session.Session

	ready   once.Group[string, struct{}] // layers of images that are being unpacked or indexed
	commits once.Map[string, git.Commit] // of git repositories
	found   once.Map[string, httpsource.File]

	mu      sync.Mutex
	sources map[string]source // of layers of images, by id
	// unneeded ends the vertices of images that were not there as a whole, and of which nothing was needed.
	unneeded []func()
	demands  map[string]func() solver.Demand // what is expected to be needed of layers that may have to be fetched, by id
	files    map[string]string               // that were downloaded and are no layers yet, by address and digest

	git         *git.Client
	claims      *claims.Claims
	failed      []*Failed
	left        []*Left
	emptied     cachemount.Emptied
	ahead       func(context.Context) error  // see Ahead
	looked      once.Map[struct{}, struct{}] // ahead, and there was nothing wrong
	noPidsLimit sync.Once                    // said that there is none
	copies      sync.Once                    // said that roots are copies
}

// source is where a layer of an image comes from.
type source struct {
	image llb.Image
	layer ImageLayer
	task  *events.Task // of the image
}

// New returns an Executor. Close must be called.
func New(c Config) *Executor {
	x := &Executor{Config: c, cdi: sync.OnceValue(func() *cdi.Registry { return cdi.Load(c.CDIDirs...) })}
	x.emulated.Make, x.machine.SharedProc = sandbox.NewUserNamespace, c.SharedProc
	if c.SharedProc {
		x.networks.Make = sandbox.NewUserNamespace
	}
	return x
}

// Close ends what the steps' networks have left, and removes their control groups. No step may run any more. When ctx ends, what steps
// sent is no longer waited for.
func (x *Executor) Close(ctx context.Context) error {
	var closing sync.WaitGroup
	closing.Go(func() { x.networks.Close(ctx) })
	x.emulated.Close(ctx)
	closing.Wait()
	return x.groups.Close()
}

// Job returns the Job that a session is of. Close must be called, before that of x.
func (x *Executor) Job(s *session.Session, o Options) *Job {
	j := &Job{
		Executor: x, Options: o, Session: s, sources: map[string]source{}, demands: map[string]func() solver.Demand{},
		files: map[string]string{}, claims: claims.New(o.Cached, o.Snapshots),
		git: git.New(filepath.Join(x.Root, rootdir.Git), x.Tmp, s.Secret),
	}
	j.git.Limit = o.Limit
	return j
}

// Close removes what was downloaded for the job. None of its steps may run any more.
func (x *Job) Close() error {
	for _, drop := range x.unneeded {
		drop()
	}
	for _, f := range x.failed {
		f.close()
	}
	var err error
	for _, file := range x.files {
		err = errors.Join(err, os.Remove(file))
	}
	return errors.Join(err, x.claims.Close())
}

// Missing implements solver.Executor. A layer that can be had from elsewhere is not missing.
func (x *Job) Missing(ctx context.Context, l solver.Layer) error {
	err := x.Snapshots.Open(ctx, layer.ID(l.ID))
	if err == nil {
		_, err := x.manifest(ctx, l)
		return err
	}
	if ctx.Err() != nil {
		return err
	}
	if elsewhere, ok := x.cached(layer.ID(l.ID)); ok && elsewhere.Content == l.Content {
		return nil
	}
	return err
}

// manifest returns the manifest of a layer that is here, and an error if the layer is not what its record says.
func (x *Job) manifest(ctx context.Context, l solver.Layer) (*layer.Manifest, error) {
	m, err := x.Snapshots.Manifest(ctx, layer.ID(l.ID))
	if err != nil {
		return nil, err
	}
	return m, x.is(l, m)
}

// is returns an error unless a layer is what a record says, or a cache has said: either may come from elsewhere, and keys of later steps
// depend on it. The layers of images are known by their diff IDs alone, which have been verified.
func (x *Job) is(l solver.Layer, m *layer.Manifest) error {
	if m.Content == l.Content { // never so for the layer of an image
		return nil
	}
	if l.Content == diffIDContent(digest.NewDigestFromEncoded(digest.SHA256, l.ID)) {
		return x.claims.Confirm(layer.ID(l.ID), m)
	}
	return &snapshot.ForeignError{ID: layer.ID(l.ID), Err: errors.New("its content is another than its record says")}
}

// cached returns a layer that is elsewhere.
func (x *Job) cached(id layer.ID) (CachedLayer, bool) {
	if x.Cached == nil {
		return CachedLayer{}, false
	}
	return x.Cached.Layer(id)
}

// Expect implements solver.Executor.
func (x *Job) Expect(r solver.Ref, demand func() solver.Demand) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, l := range r.Changes() {
		if x.demands[l.ID] == nil {
			x.demands[l.ID] = demand
		}
	}
}

// Execute implements solver.Executor.
func (x *Job) Execute(ctx context.Context, w solver.Work, job solver.Job) ([]solver.Made, error) {
	switch w := w.(type) {
	case work.File:
		return x.file(ctx, w, job)
	case work.Exec:
		return x.exec(ctx, w, job)
	case work.HTTP:
		return x.download(ctx, w, job)
	case work.Git:
		return x.checkout(ctx, w, job)
	case work.Blob:
		return x.blob(ctx, w.Op)
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
	return solver.Layer{ID: string(c.ID), Content: solver.Content(c.Content)}
}
