package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"golang.org/x/sys/unix"
)

// Root is a root file system that is mounted nowhere and held by its descriptor.
type Root struct {
	*os.File
	// Refusal is why the root is a copy and not an overlay, nil if it is one.
	Refusal error
	// copy is a copy that goes with the mount; nil for none.
	copy *Pending
	// blank is a directory that goes with the mount: see Store.blank; "" for none.
	blank string
	// devices are what stands for devices, byID the same by what it is known by: see holdDevices.
	devices []heldDevice
	byID    map[fileID]layer.Entry
}

// Close lets the mount go.
func (r *Root) Close() error {
	for _, d := range r.devices {
		d.file.Close()
	}
	r.devices = nil
	err := r.File.Close()
	if r.copy != nil {
		r.copy.Close()
	}
	if r.blank != "" {
		err = errors.Join(err, dirtree.Remove(r.blank))
	}
	return err
}

// Mount mounts the root file system made of these layers, the lowest first, with the ids of files mapped unless idmap is nil. Without
// a pending layer it is read-only; with one, what is written goes there, and its Changes tells of it.
//
// The root is an overlay of the layers or, where the kernel does not overlay in the store's directory, a copy of their files. It is never a
// layer's own directory, so that no process in it can change a committed layer, whatever privileges it has in its mount namespace.
func (s *Store) Mount(ctx context.Context, ids []string, up *Pending, idmap *mount.IDMap) (*Root, error) {
	r, err := s.mount(ctx, ids, up, idmap)
	if err != nil || up == nil || !s.ns.Nested {
		return r, err
	}
	tree, err := s.Tree(ids)
	if err == nil {
		err = r.holdDevices(tree)
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

func (s *Store) mount(ctx context.Context, ids []string, up *Pending, idmap *mount.IDMap) (*Root, error) {
	if !s.copies() {
		r, err := s.mountOverlay(ids, up, idmap)
		if err == nil {
			return r, nil
		}
		if _, refused := errors.AsType[*mount.Error](err); !refused || errors.Is(err, unix.ENOSPC) || !s.doubt() {
			return nil, err
		}
	}
	return s.mountCopy(ctx, ids, up, idmap)
}

// mountOverlay makes a root for Mount that is an overlay.
func (s *Store) mountOverlay(ids []string, up *Pending, idmap *mount.IDMap) (*Root, error) {
	o, err := s.overlay(ids, up)
	if err != nil {
		return nil, err
	}
	o.IDMap = idmap
	r := &Root{}
	if up == nil || len(o.Lower) == 0 {
		if r.blank, err = s.blank(ids); err != nil {
			return nil, err
		}
	}
	if len(o.Lower) == 0 {
		o.Lower = []string{filepath.Join(r.blank, blankBottom)}
	}
	if up == nil {
		o.Lower = slices.Insert(o.Lower, 0, filepath.Join(r.blank, blankTop))
	}
	if r.File, err = o.Mount(); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// The names in a blank directory.
const (
	blankTop    = "top"
	blankBottom = "bottom"
)

// blank makes a directory with two empty ones for an overlay. The top one has the attributes of the root directory of a root made of
// these layers, for a root that is not written to: an overlay takes them from its uppermost directory, and those of a layer's own
// directory say nothing, as the layer may lie over others than it was made over. The bottom one is for a root without any layer.
func (s *Store) blank(ids []string) (string, error) {
	tree, err := s.Tree(ids)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(s.tmp, "blank-")
	if err != nil {
		return "", fmt.Errorf("make an empty directory: %w", err)
	}
	if err := s.fillBlank(tree, dir); err != nil {
		return "", errors.Join(fmt.Errorf("make an empty directory: %w", err), dirtree.Remove(dir))
	}
	return dir, nil
}

func (s *Store) fillBlank(tree *Tree, dir string) error {
	for _, name := range []string{blankTop, blankBottom} {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.Mkdir(name, 0o755), os.Chmod(name, 0o755)); err != nil {
			return err
		}
	}
	top, err := rootfs.Open(filepath.Join(dir, blankTop))
	if err != nil {
		return err
	}
	defer top.Close()
	e, _, err := tree.Lookup("")
	if err != nil {
		return err
	}
	return s.setRoot(top, e)
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
		return fmt.Errorf("an overlay in %s: %s: %w", rootdir.Shown(filepath.Dir(s.dir)), what, err)
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
