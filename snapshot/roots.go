package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/kilnbuild/kiln/internal/mount"
	"golang.org/x/sys/unix"
)

// Root is a root file system that is mounted nowhere and held by its descriptor.
type Root struct {
	*os.File
	// Refusal is why the root is a copy and not an overlay, nil if it is one.
	Refusal error
	// copy is a copy that goes with the mount; nil for none.
	copy *Pending
}

// Close lets the mount go.
func (r *Root) Close() error {
	err := r.File.Close()
	if r.copy != nil {
		r.copy.Close()
	}
	return err
}

// Mount mounts the root file system made of these layers, the lowest first, with the ids of files mapped unless idmap is nil. Without
// a pending layer it is read-only; with one, what is written goes there, and its Changes tells of it.
//
// The root is an overlay of the layers or, where the kernel does not overlay in the store's directory, a copy of their files.
func (s *Store) Mount(ctx context.Context, ids []string, up *Pending, idmap *mount.IDMap) (*Root, error) {
	if !s.copies() {
		o, err := s.overlay(ids, up)
		if err != nil {
			return nil, err
		}
		o.IDMap = idmap
		f, err := o.Mount()
		if err == nil {
			return &Root{File: f}, nil
		}
		if _, refused := errors.AsType[*mount.Error](err); !refused || errors.Is(err, unix.ENOSPC) || !s.doubt() {
			return nil, err
		}
	}
	return s.mountCopy(ctx, ids, up, idmap)
}

// copies reports whether roots are copies, as far as is known: see doubt.
func (s *Store) copies() bool { return s.doubtful.Load() && s.doubt() }

// doubt finds out whether the kernel overlays in the store's directory, when something has shown that it may not, and reports whether
// roots are copies. It tries everything that a layer and a step can need, once.
func (s *Store) doubt() bool {
	s.doubtful.Store(true)
	s.trying.Do(func() { s.refusal = s.tryOverlay() })
	return s.refusal != nil
}

// TryOverlay returns why roots are copies and not overlays: nil where they are overlays.
func (s *Store) TryOverlay() error {
	s.doubt()
	return s.refusal
}

// tryOverlay makes an overlay and uses it.
func (s *Store) tryOverlay() error {
	if os.Getenv(mount.TestVariable) == "copy" {
		return errors.New(mount.TestVariable + " is set")
	}
	p, err := s.New()
	if err != nil {
		return err
	}
	defer p.Close()
	work, err := p.WorkDir()
	if err != nil {
		return err
	}
	o := mount.Overlay{Upper: p.Dir(), Work: work, Volatile: true, UserXattr: s.ns.Nested}
	for _, name := range []string{"lower1", "lower2"} {
		dir := filepath.Join(p.dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, "dir"), 0o755), os.WriteFile(filepath.Join(dir, "file"), nil, 0o644)); err != nil {
			return err
		}
		o.Lower = append(o.Lower, dir)
	}
	f, err := o.Mount()
	if err != nil {
		return err
	}
	defer f.Close()
	fail := func(what string, err error) error {
		return fmt.Errorf("an overlay in %s: %s: %w", filepath.Dir(s.dir), what, err)
	}
	at := int(f.Fd())
	if err := unix.Unlinkat(at, "file", 0); err != nil {
		return fail("a file cannot be removed", err)
	}
	if err := unix.Unlinkat(at, "dir", unix.AT_REMOVEDIR); err != nil {
		return fail("a directory cannot be removed", err)
	}
	if err := unix.Mkdirat(at, "dir", 0o755); err != nil {
		return fail("a directory cannot be made anew", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(p.Dir(), "file"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		return fail("a removed file has no mark that kiln knows", errors.Join(err, unix.ENOTSUP))
	}
	return nil
}

// usual are file systems in which overlays are known to work.
var usual = []int64{unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.TMPFS_MAGIC}

// unusual reports whether overlays are to be tried before they are relied on.
func (s *Store) unusual() (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.tmp, &st); err != nil {
		return false, &os.PathError{Op: "statfs", Path: s.tmp, Err: err}
	}
	return !slices.Contains(usual, int64(st.Type)) || os.Getenv(mount.TestVariable) == "copy", nil
}

// bareNote is there beside a layer that was made where roots are copies: it is without the marks by which an overlay sees what it
// deletes.
const bareNote = "bare"
