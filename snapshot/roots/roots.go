// Package roots mounts the root file systems that layers make together, as overlays or, where the kernel refuses those, as copies. It
// does not know where layers are kept, nor what runs in a root.
package roots

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
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/snapshot/dir"
	"golang.org/x/sys/unix"
)

// Root is a root file system that is mounted nowhere and held by its descriptor.
type Root struct {
	*os.File
	// Refusal is why the root is a copy and not an overlay; nil if it is one.
	Refusal error
	// Copied is set if the root is a copy.
	Copied *Copied

	scratch string // a directory that goes with the mount; "" for none
	// devices are the files that stand for devices, byID the same by their identity: see holdDevices.
	devices []heldDevice
	byID    map[fileID]layer.Entry
}

// Close lets the mount go. It may be called more than once.
func (r *Root) Close() error {
	for _, d := range r.devices {
		d.file.Close()
	}
	r.devices = nil
	err := r.File.Close()
	if r.scratch != "" {
		err = errors.Join(err, dirtree.Remove(r.scratch))
		r.scratch = ""
	}
	return err
}

// Upper takes what is written to a root.
type Upper struct {
	Dir  string
	Root *rootfs.Root // Dir
	// Beside is the directory that Dir is in, which takes what a mount needs besides.
	Beside string
}

// MaxLower is the number of lower directories that a root can have: those that overlayfs stacks, less the empty one on top of a root that
// is only read.
const MaxLower = mount.MaxLower - 1

// Mount mounts the root file system of a tree, whose layers are in the directories lower, topmost first, with the ids of files mapped
// unless idmap is nil. Without an upper it is read-only; with one, what is written goes there.
//
// The root is an overlay or, where the kernel does not overlay in the store's directory, a copy of the files. It is never a layer's own
// directory, so that no process in it can change a committed layer, whatever privileges it has in its mount namespace.
func Mount(ctx context.Context, fs *dir.FS, lower []string, tree *layer.Stack, up *Upper, idmap *mount.IDMap) (*Root, error) {
	r, err := mountAny(ctx, fs, lower, tree, up, idmap)
	if err != nil || up == nil || !fs.NS.Nested {
		return r, err
	}
	if err := r.holdDevices(tree); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

func mountAny(ctx context.Context, fs *dir.FS, lower []string, tree *layer.Stack, up *Upper, idmap *mount.IDMap) (*Root, error) {
	if !fs.Copies() {
		r, err := mountOverlay(fs, lower, tree, up, idmap)
		if err == nil {
			return r, nil
		}
		if _, refused := errors.AsType[*mount.Error](err); !refused || errors.Is(err, unix.ENOSPC) || fs.TryOverlay() == nil {
			return nil, err
		}
	}
	return mountCopy(ctx, fs, tree, up, idmap)
}

// mountOverlay makes a root for Mount that is an overlay.
func mountOverlay(fs *dir.FS, lower []string, tree *layer.Stack, up *Upper, idmap *mount.IDMap) (*Root, error) {
	o := mount.Overlay{Lower: lower, Volatile: true, UserXattr: fs.NS.Nested, IDMap: idmap}
	if up != nil {
		o.Upper, o.Work = up.Dir, filepath.Join(up.Beside, "work")
		if err := os.Mkdir(o.Work, 0o700); err != nil {
			return nil, err
		}
	}
	r := &Root{}
	var err error
	if up == nil || len(lower) == 0 {
		if r.scratch, err = blank(fs, tree); err != nil {
			return nil, err
		}
	}
	if len(o.Lower) == 0 {
		o.Lower = []string{filepath.Join(r.scratch, blankBottom)}
	}
	if up == nil {
		o.Lower = slices.Insert(slices.Clone(o.Lower), 0, filepath.Join(r.scratch, blankTop))
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

// blank makes a directory with two empty ones for an overlay. The top one has the attributes of the tree's root directory, for a root that
// is not written to: an overlay takes them from its uppermost directory, and those of a layer's own directory say nothing, as the layer may
// lie over others than it was made over. The bottom one is for a root without any layer.
func blank(fs *dir.FS, tree *layer.Stack) (string, error) {
	name, err := os.MkdirTemp(fs.Tmp, "blank-")
	if err != nil {
		return "", fmt.Errorf("make an empty directory: %w", err)
	}
	if err := fillBlank(fs, tree, name); err != nil {
		return "", errors.Join(fmt.Errorf("make an empty directory: %w", err), dirtree.Remove(name))
	}
	return name, nil
}

func fillBlank(fs *dir.FS, tree *layer.Stack, name string) error {
	for _, part := range []string{blankTop, blankBottom} {
		part = filepath.Join(name, part)
		if err := errors.Join(os.Mkdir(part, 0o755), os.Chmod(part, 0o755)); err != nil {
			return err
		}
	}
	top, err := rootfs.Open(filepath.Join(name, blankTop))
	if err != nil {
		return err
	}
	defer top.Close()
	e, _, err := tree.Lookup("")
	if err != nil {
		return err
	}
	return fs.SetRoot(top, e)
}
