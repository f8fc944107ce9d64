package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lease"
	"github.com/kilnbuild/kiln/internal/lock"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/snapshot/blob"
	"github.com/kilnbuild/kiln/snapshot/dir"
	"golang.org/x/sys/unix"
)

// opened is a layer that jobs of this process have opened. It is opened in two steps. The first, open, takes one flock(2) and one
// mmap(2), and is enough for the manifest. The second, check, verifies that the carriers are sound. The last job that releases
// the layer closes it.
type opened struct {
	id       layer.ID
	manifest *layer.Manifest
	lock     *lock.Lock // see package lease; nil for EntriesOnly
	base     *opened    // base of a Delta; nil for other forms
	absent   error      // for EntriesOnly, why there are no carriers
	blobs    blob.Store // holds the blobs that the layer uses

	// Store.mu guards the fields below.
	refs  int
	boot  string     // boot in which it was made, if it may not be on disk yet
	form  Form       // changes when files are made from a blob
	sound bool       // check has succeeded
	gone  error      // if not nil, why it must not be used any more
	files *dir.Files // nil if not opened yet
}

// acquire opens a layer for the caller, who must release it. A layer that is already open is shared.
func (s *Store) acquire(id layer.ID) (*opened, error) {
	s.mu.Lock()
	if o := s.open[id]; o != nil {
		o.refs++
		s.mu.Unlock()
		return o, nil
	}
	s.mu.Unlock()
	o, err := s.openLayer(id)
	if err != nil {
		return nil, err
	}
	return s.share(o), nil
}

// share lets others use a layer that was just opened. If another goroutine was faster, it returns that one's, and closes o.
func (s *Store) share(o *opened) *opened {
	s.mu.Lock()
	other := s.open[o.id]
	if other == nil {
		s.open[o.id] = o
	} else {
		other.refs++
	}
	s.mu.Unlock()
	if other == nil {
		return o
	}
	_ = s.close(o) // nothing was written
	return other
}

func (s *Store) release(o *opened) error {
	s.mu.Lock()
	o.refs--
	last := o.refs == 0
	if last && s.open[o.id] == o {
		delete(s.open, o.id)
	}
	s.mu.Unlock()
	if !last {
		return nil
	}
	return s.close(o)
}

// close frees the resources of a layer without references.
func (s *Store) close(o *opened) error {
	if o.files != nil {
		o.files.Close()
	}
	err := o.manifest.Close()
	if o.lock != nil {
		err = errors.Join(err, o.lock.Release(), o.blobs.CAS.Release())
	}
	if o.base != nil {
		err = errors.Join(err, s.release(o.base))
	}
	return err
}

// openLayer opens a layer in any form. It has one reference.
func (s *Store) openLayer(id layer.ID) (*opened, error) {
	if !id.Valid() {
		return nil, fmt.Errorf("layer id %q: %w", id, fs.ErrNotExist)
	}
	o, err := s.openCarried(id)
	if err == nil {
		return o, nil
	}
	index, indexErr := layer.OpenManifest(s.IndexPath(id))
	if indexErr != nil {
		return nil, err
	}
	lease.Used(s.IndexPath(id), nil)
	return &opened{id: id, manifest: index, form: EntriesOnly, absent: err, refs: 1}, nil
}

// openCarried opens a layer that has carriers.
func (s *Store) openCarried(id layer.ID) (_ *opened, err error) {
	l, err := lease.Take(s.Path(id))
	if err != nil {
		return nil, err
	}
	o := &opened{id: id, lock: l, refs: 1, blobs: s.blobs.Job()}
	defer func() {
		if err != nil {
			_ = l.Release() // nothing was written
		}
	}()
	var base layer.ID
	if o.form, base, err = formOf(s.Path(id)); err != nil {
		return nil, err
	}
	if o.boot, err = s.unsynced(id); err != nil {
		return nil, err
	}
	if o.form.is().base {
		if o.base, err = s.acquireBase(id, base); err != nil {
			return nil, err
		}
	}
	if o.manifest, err = layer.OpenManifest(s.manifestPath(id)); err != nil {
		if o.base != nil {
			err = errors.Join(err, s.release(o.base))
		}
		return nil, err
	}
	return o, nil
}

// acquireBase acquires the base of a Delta.
func (s *Store) acquireBase(id, base layer.ID) (*opened, error) {
	b, err := s.acquire(base)
	if err != nil {
		return nil, fmt.Errorf("the base of layer %s: %w", id, err)
	}
	s.mu.Lock()
	form := b.form
	s.mu.Unlock()
	if form != Whole {
		// kiln makes no such layers
		return nil, errors.Join(fmt.Errorf("the base of layer %s is %v: %w", id, form, layer.ErrDamaged), s.release(b))
	}
	return b, nil
}

// state returns the mutable state of a layer.
func (s *Store) state(o *opened) (f Form, boot string, sound bool, gone error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return o.form, o.boot, o.sound, o.gone
}

// forget makes later calls open the layer anew, because of err. Jobs that have it open close it as usual.
func (s *Store) forget(o *opened, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, other := range s.open {
		if other == o || other.base == o {
			other.gone = err
			delete(s.open, id)
		}
	}
}

// replaced reports whether another process has replaced the layer with a new one since it was opened.
func (s *Store) replaced(o *opened) bool {
	was, err := o.lock.File().Stat()
	if err != nil {
		return false
	}
	is, err := os.Lstat(s.Path(o.id))
	return err == nil && !os.SameFile(was, is)
}

// check verifies that the carriers of a layer are unchanged since it was made. If the layer was replaced meanwhile, it is
// forgotten, without an error.
func (s *Store) check(ctx context.Context, o *opened) (err error) {
	form, boot, sound, gone := s.state(o)
	if sound || gone != nil {
		return gone
	}
	defer func() {
		switch {
		case err != nil && s.replaced(o): // check read another layer than the one opened
			s.forget(o, err)
			err = nil
		case missing(err):
			s.forget(o, err)
		}
	}()
	if o.base != nil {
		if err := s.check(ctx, o.base); err != nil {
			return fmt.Errorf("the base of layer %s: %w", o.id, err)
		}
	}
	if form.is().files && !form.is().overlay && s.fs.TryOverlay() == nil {
		return fmt.Errorf("layer %s was made where overlayfs could not be used: %w", o.id, layer.ErrDamaged)
	}
	if boot != "" && boot != s.boot {
		if err := s.survived(ctx, o, form); err != nil {
			return err
		}
	}
	if form.is().needsBlob {
		if _, ok := o.blobs.Any(s.Path(o.id)); !ok {
			return fmt.Errorf("the blob of layer %s: %w", o.id, fs.ErrNotExist)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o.sound = true
	return nil
}

// fill opens the files of a layer whose carriers are sound, and makes them first if they do not exist.
func (s *Store) fill(ctx context.Context, o *opened) error {
	s.mu.Lock()
	form, have := o.form, o.files != nil
	s.mu.Unlock()
	if have {
		return nil
	}
	if !form.is().files {
		if err := s.unpackBlob(ctx, o); err != nil {
			return err
		}
		var err error
		if form, _, err = formOf(s.Path(o.id)); err != nil {
			return err
		}
	}
	var own map[string]bool
	var base *dir.Files
	if o.base != nil {
		if err := s.fill(ctx, o.base); err != nil {
			return err
		}
		own, base = dir.Differing(o.manifest, o.base.manifest), o.base.files
	}
	files, err := s.fs.OpenFiles(o.id, s.fsOf(o, form), own, base)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.files != nil { // a Delta of the layer was faster
		files.Close()
		return nil
	}
	o.files = files
	if !o.form.is().files {
		o.form, o.boot = form, s.boot
	}
	return nil
}

// unpackBlob makes the files of a layer from its blob, in the layer's directory. Other processes may do the same at the same
// time.
func (s *Store) unpackBlob(ctx context.Context, o *opened) error {
	if f, _, err := formOf(s.Path(o.id)); err != nil || f.is().files {
		return err // another process has made them
	}
	b, ok := o.blobs.Any(s.Path(o.id))
	if !ok {
		err := fmt.Errorf("the blob of layer %s: %w", o.id, fs.ErrNotExist)
		s.forget(o, err)
		return err
	}
	tmp, err := os.MkdirTemp(s.tmp, "files-")
	if err != nil {
		return fmt.Errorf("unpack layer %s: %w", o.id, err)
	}
	defer s.throwAway(tmp)
	err = s.unpackInto(ctx, o, b, tmp)
	if errors.Is(err, dir.ErrBlob) && ctx.Err() == nil {
		return fmt.Errorf("%w: %w", s.giveUp(&DamagedError{ID: o.id, Blob: true}), err)
	}
	if err != nil {
		return fmt.Errorf("unpack layer %s: %w", o.id, err)
	}
	return nil
}

func (s *Store) unpackInto(ctx context.Context, o *opened, b blob.Blob, tmp string) error {
	made := filepath.Join(tmp, "fs")
	if err := errors.Join(os.Mkdir(made, 0o755), os.Chmod(made, 0o755)); err != nil {
		return err
	}
	root, err := rootfs.Open(made)
	if err != nil {
		return err
	}
	defer root.Close()
	tarball, err := o.blobs.Open(b)
	if err != nil {
		return fmt.Errorf("%w: %w", dir.ErrBlob, err)
	}
	defer tarball.Close()
	if err := s.fs.Unpack(ctx, o.manifest, tarball, root); err != nil {
		return err
	}
	form := Whole
	if s.fs.Copies() {
		form = NoWhiteouts
	}
	// The note is written first, so that the files are compared with the manifest after a crash.
	if err := s.setNote(o.id, unsyncedNote, []byte(s.boot)); err != nil {
		return err
	}
	err = unix.Renameat2(unix.AT_FDCWD, made, unix.AT_FDCWD, s.fsDir(o.id, form, ""), unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTEMPTY) {
		return nil // another process was faster
	}
	return err
}

// fsOf returns the directory with the files of a layer in a form.
func (s *Store) fsOf(o *opened, f Form) string {
	if o.base != nil {
		return s.fsDir(o.id, f, o.base.id)
	}
	return s.fsDir(o.id, f, "")
}
