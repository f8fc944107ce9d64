package run

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/sandbox"
)

// addVolumes mounts volumes in the container, after what it has already.
func (c *Container) addVolumes(volumes []Volume) error {
	spec := &c.prepared.Spec
	var targets []*os.File // of the anonymous ones, after the root
	defer func() {
		for _, f := range targets {
			f.Close()
		}
	}()
	root := rootfs.At(spec.Root)
	for _, v := range volumes {
		if v.Kind != Anonymous {
			continue
		}
		f, err := c.directory(root, v.Target)
		if err != nil {
			return fmt.Errorf("volume at %s: %w", v.Target, err)
		}
		targets = append(targets, f)
	}
	var own []*os.File
	if len(targets) > 0 {
		// Before Linux 6.15 the root cannot be attached any more after a part of it was cloned; so it is cloned as well.
		clones, err := mount.AllBelow(spec.Root, false, append([]*os.File{spec.Root}, targets...)...)
		if err != nil {
			return fmt.Errorf("mount the volumes: %w", err)
		}
		for _, f := range clones {
			c.onClose(func() error { return f.Close() })
		}
		spec.Root, own = clones[0], clones[1:]
	}
	for _, v := range volumes {
		m := sandbox.Mount{Target: v.Target, Shared: v.Kind == Bind}
		if v.Kind == Bind {
			f, err := bind(v)
			if err != nil {
				return fmt.Errorf("volume %s: %w", v.Source, err)
			}
			c.onClose(func() error { return f.Close() })
			m.Source = f
		} else {
			m.Source, own = own[0], own[1:]
		}
		spec.Mounts = append(spec.Mounts, m)
	}
	// One below another comes after it.
	slices.SortStableFunc(spec.Mounts, func(a, b sandbox.Mount) int { return cmp.Compare(a.Target, b.Target) })
	return nil
}

// directory opens a directory of the root file system, which it makes where it is missing.
func (c *Container) directory(root *rootfs.Root, name string) (*os.File, error) {
	ids := c.prepared.Spec.Privileges.IDs
	if err := ids.AsRoot(func() error {
		_, err := root.MkdirAll(name, 0o755)
		return err
	}); err != nil {
		return nil, inImage(err)
	}
	f, err := root.OpenFile(name, unix.O_PATH|unix.O_DIRECTORY, 0)
	return f, inImage(err)
}

// inImage returns an error about a path in the image, which says that.
func inImage(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("%s in the image: %w", p.Path, p.Err)
	}
	return err
}

// bind clones the mount of a file or directory of the host, with all that is mounted below it: where kiln is in a user namespace the kernel
// does not uncover what other mounts cover.
func bind(v Volume) (*os.File, error) {
	f, err := os.OpenFile(v.Source, unix.O_PATH, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("it does not exist on this machine; kiln makes no directories here")
	}
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return nil, p.Err
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	clone, err := mount.Clone(f, true)
	if err != nil || !v.ReadOnly {
		return clone, err
	}
	if err := mount.SetAttr(clone, mount.ReadOnly, true); err != nil {
		clone.Close()
		return nil, err
	}
	return clone, nil
}
