package snapshot

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lock"
	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/snapshot/blob"
	"github.com/kilnbuild/kiln/snapshot/compose"
	"github.com/kilnbuild/kiln/snapshot/diff"
	"github.com/kilnbuild/kiln/snapshot/dir"
	"github.com/kilnbuild/kiln/snapshot/roots"
	"golang.org/x/sys/unix"
)

// Pending is a layer under construction.
type Pending struct {
	// Rewrite makes CommitChanges copy the files that a step left. It is set where other processes have the privilege to make the
	// root file system writable again after CommitChanges has sealed it, and may have received a descriptor of it.
	Rewrite bool

	job    *Job
	store  *Store // the job's
	dir    string
	fs     *rootfs.Root
	writer *dir.Writer // created on first use
	form   Form        // Whole, Delta or BlobOnly
	base   layer.ID    // of a Delta
}

// New begins a layer, with an empty directory. The caller must call Close, which does nothing after a Commit.
func (j *Job) New() (*Pending, error) {
	s := j.store
	dir, err := os.MkdirTemp(s.tmp, "layer-")
	if err != nil {
		return nil, fmt.Errorf("begin a layer: %w", err)
	}
	p := &Pending{job: j, store: s, dir: dir}
	// The note is written first, so that the directory never exists on disk without it, even after a crash.
	if err = os.WriteFile(filepath.Join(dir, unsyncedNote), []byte(s.boot), 0o600); err == nil {
		err = os.Mkdir(p.Dir(), 0o755)
	}
	if err == nil {
		if err = os.Chmod(p.Dir(), 0o755); err == nil {
			p.fs, err = rootfs.Open(p.Dir())
		}
	}
	if err != nil {
		_ = dirtree.Remove(dir)
		return nil, fmt.Errorf("begin a layer: %w", err)
	}
	return p, nil
}

// Dir returns the directory that contains the layer's files.
func (p *Pending) Dir() string { return filepath.Join(p.dir, fsName) }

// Root returns Dir as a root in which paths are resolved.
func (p *Pending) Root() *rootfs.Root { return p.fs }

// Writer returns the writer of that directory. It must be used by only one Builder.
func (p *Pending) Writer() *dir.Writer {
	if p.writer == nil {
		p.writer = p.store.fs.NewWriter(p.fs)
	}
	return p.writer
}

// Reuse makes the Writer create hard links to the identical files of a committed layer. If that layer does not exist, or has no
// files on disk, the files are written.
func (p *Pending) Reuse(ctx context.Context, id layer.ID) {
	if o := p.source(ctx, id); o != nil {
		p.Writer().Reuse(o.manifest, o.files)
	}
}

// source opens a layer that has files. It returns nil if there is none.
func (p *Pending) source(ctx context.Context, id layer.ID) *opened {
	o, err := p.job.carried(ctx, id)
	if err != nil {
		return nil
	}
	if form, _, _, _ := p.store.state(o); !form.is().files {
		return nil // making them costs more than it saves
	}
	if o, err = p.job.filled(ctx, id); err != nil {
		return nil
	}
	return o
}

// Delta makes the layer a delta, if possible: of a committed layer or, if that is a delta, of its base. See dir.Writer.SetBase.
// Any later call of the Writer may fail with dir.ErrNoDelta.
func (p *Pending) Delta(ctx context.Context, id layer.ID) {
	if p.store.fs.Copies() {
		return
	}
	o := p.source(ctx, id)
	if o != nil && o.base != nil {
		o = o.base
	}
	if o == nil {
		return
	}
	if form, _, _, _ := p.store.state(o); form != Whole || !dir.CanBeBase(o.manifest) {
		return
	}
	p.form, p.base = Delta, o.id
	p.Writer().SetBase(o.manifest)
}

// Pack makes the pending layer one without files, whose bytes are in the blob b with encoding f. It must be the last call before
// CommitWritten.
func (p *Pending) Pack(f blob.Encoding, b blob.Blob) error {
	err := os.WriteFile(filepath.Join(p.dir, blob.NoteName(f)), b.Note(), 0o600)
	if err == nil {
		err = os.Remove(p.Dir())
	}
	if err != nil {
		return fmt.Errorf("store a layer as its blob: %w", err)
	}
	p.form = BlobOnly
	return nil
}

// Close discards the layer.
func (p *Pending) Close() {
	if p.dir == "" {
		return
	}
	p.release()
	p.store.throwAway(p.dir)
	p.dir = ""
}

// release closes the descriptors.
func (p *Pending) release() {
	if p.writer != nil {
		p.writer.Close()
	}
	p.fs.Close()
}

// Commit puts the layer that b has written here in the store, with a manifest of b's entries. If id is "", the layer is named by
// its identity, and an existing layer of the same identity is used instead.
func (p *Pending) Commit(ctx context.Context, b *compose.Builder, id layer.ID) (Committed, error) {
	w, err := p.Manifest()
	if err != nil {
		return Committed{}, err
	}
	if err := b.Entries(until(ctx, w.Add)); err != nil {
		w.Abort()
		return Committed{}, fmt.Errorf("write a layer's manifest: %w", err)
	}
	sum, err := w.Close(time.Now())
	if err != nil {
		return Committed{}, fmt.Errorf("write a layer's manifest: %w", err)
	}
	return p.CommitWritten(ctx, sum, id)
}

// until returns a function that calls add until ctx ends, and then returns its cause.
func until(ctx context.Context, add func(*layer.Entry) error) func(*layer.Entry) error {
	return func(e *layer.Entry) error {
		if err := ctxio.Ended(ctx); err != nil {
			return err
		}
		return add(e)
	}
}

// Manifest begins the layer's manifest, for CommitWritten.
func (p *Pending) Manifest() (*layer.Writer, error) {
	w, err := layer.NewWriter(filepath.Join(p.dir, "manifest"))
	if err != nil {
		return nil, fmt.Errorf("write a layer's manifest: %w", err)
	}
	return w, nil
}

// CommitWritten is like Commit, for a layer whose manifest has already been written and closed with this summary.
func (p *Pending) CommitWritten(ctx context.Context, sum layer.Summary, id layer.ID) (Committed, error) {
	if id == "" {
		id = layer.ID(hex.EncodeToString(sum.Identity[:]))
		if o, err := p.job.carried(ctx, id); err == nil {
			p.Close()
			return Committed{ID: id, Summary: o.manifest.Summary}, nil
		}
	}
	o, err := p.commit(ctx, id)
	if err != nil {
		return Committed{}, fmt.Errorf("commit layer %s: %w", id, err)
	}
	return Committed{ID: id, Summary: o.manifest.Summary}, nil
}

// commit gives the layer its name, unless a sound layer already has it.
func (p *Pending) commit(ctx context.Context, id layer.ID) (*opened, error) {
	work := p.dir + "-work"
	if err := os.Rename(filepath.Join(p.dir, "work"), work); err == nil {
		p.store.throwAway(work)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove the overlay's work directory from the layer: %w", err)
	}
	if p.form == Whole && p.store.fs.Copies() {
		p.form = NoWhiteouts
	}
	if name := nameOf(p.form, p.base); name != fsName {
		if err := os.Rename(p.Dir(), filepath.Join(p.dir, name)); err != nil {
			return nil, err
		}
	}
	// The layer is locked before it gets its name, so that it cannot be pruned in between.
	l, err := lock.TryExisting(p.dir, true)
	if err != nil {
		return nil, err
	}
	defer l.Release()
	target := p.store.Path(id)
	for try := 1; ; try++ {
		err = unix.Renameat2(unix.AT_FDCWD, p.dir, unix.AT_FDCWD, target, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EEXIST) {
			_, sound := p.job.carried(ctx, id)
			switch {
			case sound == nil:
				p.Close()
				err = nil
			case missing(sound):
				err = p.replace(target)
			default: // unknown whether it is sound
				err = sound
			}
		}
		// ENOENT means that the layer was pruned since.
		if !errors.Is(err, unix.ENOENT) || try == maxTries {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	if p.dir != "" {
		p.release()
		p.dir = ""
	}
	return p.job.carried(ctx, id)
}

// replace exchanges the layer with a damaged one.
func (p *Pending) replace(target string) error {
	if err := unix.Renameat2(unix.AT_FDCWD, p.dir, unix.AT_FDCWD, target, unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	p.Close() // discards the damaged layer, which is at p.dir now
	return nil
}

// Committed is a layer in the store.
type Committed struct {
	ID layer.ID
	layer.Summary
}

// SetRoot gives the pending layer's own directory the attributes of e, so that it can be the top of a root file system.
func (p *Pending) SetRoot(e layer.Entry) error { return p.store.fs.SetRoot(p.fs, e) }

// CommitChanges reads the changes that a step made in a pending layer that was given to Mount for root, whose file system is made
// of below. It closes the root and puts the layer in the store, or uses an existing layer of the same identity. Times between
// started, which diff.Begin returned, and now are taken to come from the clock; see diff.Read for what counts as a change.
//
// Once the layer is committed, its directory contains exactly what its manifest says, and no process can write to it any more,
// even with the descriptor of a file or directory that a process of the step passed on. The error wraps mount.ErrInUse if a
// process outside the step has a file open for writing.
func (p *Pending) CommitChanges(ctx context.Context, root *roots.Root, below *layer.Stack, started time.Time) (Committed, error) {
	if root.Copied == nil {
		root.ForgetRemoved()
		if err := mount.Seal(ctx, root.File); err != nil {
			return Committed{}, fmt.Errorf("close the root file system of the step: %w", err)
		}
	}
	sum, err := p.writeManifest(ctx, root, below, started)
	if err != nil {
		return Committed{}, err
	}
	if err := root.Close(); err != nil {
		return Committed{}, fmt.Errorf("close the root file system of the step: %w", err)
	}
	if root.Copied != nil || p.Rewrite {
		if err := p.rewrite(ctx); err != nil {
			return Committed{}, fmt.Errorf("copy the files that the step left: %w", err)
		}
	}
	return p.CommitWritten(ctx, sum, "")
}

// writeManifest writes the manifest of the step's changes.
func (p *Pending) writeManifest(ctx context.Context, root *roots.Root, below *layer.Stack, started time.Time) (layer.Summary, error) {
	base, err := p.store.fs.FlagsOf(p.dir)
	if err != nil {
		return layer.Summary{}, fmt.Errorf("read the layer: %w", err)
	}
	w, err := p.Manifest()
	if err != nil {
		return layer.Summary{}, err
	}
	err = diff.Read(ctx, p.store.fs, diff.Upper{Root: root, Dir: p.fs, Below: below, Base: base, Started: started}, w.Add)
	if err != nil {
		w.Abort()
		return layer.Summary{}, fmt.Errorf("read the layer: %w", err)
	}
	sum, err := w.Close(time.Now())
	if err != nil {
		err = fmt.Errorf("write a layer's manifest: %w", err)
	}
	return sum, err
}

// rewrite copies the files of the layer, as described by the manifest, to a new directory that replaces the one the step used. So
// nothing else that the step did there remains, and a process with an open file or directory of it cannot change the layer.
func (p *Pending) rewrite(ctx context.Context) error {
	m, err := layer.OpenManifest(filepath.Join(p.dir, "manifest"))
	if err != nil {
		return err
	}
	defer m.Close()
	fresh := filepath.Join(p.dir, "fresh")
	if err := errors.Join(os.Mkdir(fresh, 0o755), os.Chmod(fresh, 0o755)); err != nil {
		return err
	}
	root, err := rootfs.Open(fresh)
	if err != nil {
		return err
	}
	if err := p.store.fs.Rewrite(ctx, m, p.fs, root); err != nil {
		root.Close()
		return err
	}
	left := p.dir + "-left"
	p.release()
	p.writer = nil
	p.fs = root
	if err := os.Rename(p.Dir(), left); err != nil {
		return err
	}
	p.store.throwAway(left)
	return os.Rename(fresh, p.Dir())
}
