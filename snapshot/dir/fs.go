// Package dir writes, reads and compares the files of a layer in a directory that can be a lower directory of an overlay. Every
// path is physical, and every operation is relative to a directory's descriptor. The package does not know which layers exist.
package dir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/internal/userns"
	"golang.org/x/sys/unix"
)

// FS is the file system that stores layers, as this process can use it. It is safe for concurrent use.
type FS struct {
	// NS is the user namespace of the process. If it is not the initial one, overlayfs keeps its own attributes under "user." names
	// (kernel, Documentation/filesystems/overlayfs.rst), and the file system cannot represent everything in a layer.
	NS userns.Namespace
	// Tmp is a directory on the file system that only this process uses.
	Tmp string

	prefix   string // prefix of the names of overlayfs's attributes
	doubtful atomic.Bool
	trying   sync.Once
	refusal  error // why overlays do not work; set by trying

	noFlags    atomic.Bool // the file system does not support flags
	givenOnce  sync.Once
	givenNames []string // see given; set by givenOnce
}

// NewFS returns the file system of tmp, a directory that only this process uses.
func NewFS(tmp string, ns userns.Namespace) (*FS, error) {
	f := &FS{NS: ns, Tmp: tmp, prefix: "trusted.overlay."}
	if ns.Nested {
		f.prefix = "user.overlay."
	}
	var st unix.Statfs_t
	if err := unix.Statfs(tmp, &st); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: tmp, Err: err}
	}
	f.doubtful.Store(!slices.Contains(known, int64(st.Type)) || os.Getenv(mount.TestVariable) == "copy")
	return f, nil
}

// known are file systems on which overlays are known to work.
var known = []int64{unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.TMPFS_MAGIC}

// Copies reports whether root file systems are copies rather than overlays. It tries an overlay only on file systems that are not
// known to support them.
func (f *FS) Copies() bool { return f.doubtful.Load() && f.TryOverlay() != nil }

// TryOverlay creates and uses an overlay the first time it is called, and returns the error, or nil if overlays work. It tries
// every operation that a layer or a step can need.
func (f *FS) TryOverlay() error {
	f.doubtful.Store(true)
	f.trying.Do(func() { f.refusal = f.tryOverlay() })
	return f.refusal
}

func (f *FS) tryOverlay() error {
	if os.Getenv(mount.TestVariable) == "copy" {
		return errors.New(mount.TestVariable + " is set")
	}
	dir, err := os.MkdirTemp(f.Tmp, "overlay-")
	if err != nil {
		return err
	}
	defer dirtree.Remove(dir)
	o := mount.Overlay{Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"), Volatile: true, UserXattr: f.NS.Nested}
	if err := errors.Join(os.Mkdir(o.Upper, 0o755), os.Mkdir(o.Work, 0o700)); err != nil {
		return err
	}
	for _, name := range []string{"lower1", "lower2"} {
		lower := filepath.Join(dir, name)
		err := errors.Join(os.MkdirAll(filepath.Join(lower, "dir"), 0o755), os.WriteFile(filepath.Join(lower, "file"), nil, 0o644))
		if err != nil {
			return err
		}
		o.Lower = append(o.Lower, lower)
	}
	root, err := o.Mount()
	if err != nil {
		return err
	}
	defer root.Close()
	fail := func(what string, err error) error {
		return fmt.Errorf("an overlay in %s: %s: %w", rootdir.Shown(filepath.Dir(f.Tmp)), what, err)
	}
	at := int(root.Fd())
	if err := unix.Unlinkat(at, "file", 0); err != nil {
		return fail("a file cannot be removed", err)
	}
	if err := unix.Unlinkat(at, "dir", unix.AT_REMOVEDIR); err != nil {
		return fail("a directory cannot be removed", err)
	}
	if err := unix.Mkdirat(at, "dir", 0o755); err != nil {
		return fail("a removed directory cannot be created again", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(o.Upper, "file"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		return fail("a removed file has no known whiteout", errors.Join(err, unix.ENOTSUP))
	}
	return nil
}

// SetRoot gives the directory of root the attributes of e, so that it can be the top of a root file system.
func (f *FS) SetRoot(root *rootfs.Root, e layer.Entry) error {
	e.Path, e.Opaque = "", false
	w := f.NewWriter(root)
	defer w.Close()
	if err := w.SetDir(&e); err != nil {
		return err
	}
	return w.SetTime(&e)
}
