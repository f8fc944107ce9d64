package execute

import (
	"errors"
	"fmt"
	"os"

	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/llb"
	"golang.org/x/sys/unix"
)

// below mounts the path spec.Source of a tree at spec.Target. The path is resolved inside the tree by descriptor, and what
// was opened is what gets mounted, and returned.
func (m *mounting) below(tree *os.File, spec llb.Mount) (*os.File, error) {
	f, err := rootfs.At(tree).OpenFile(spec.Source, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	clone, err := mount.Below(tree, f, true)
	if err != nil {
		return nil, err
	}
	m.add(clone, spec.Target)
	if spec.ReadOnly {
		return clone, mount.SetAttr(clone, mount.ReadOnly, true)
	}
	return clone, nil
}

// belowMapped is below for a tree whose ids are kiln's.
func (m *mounting) belowMapped(tree *os.File, spec llb.Mount) error {
	clone, err := m.below(tree, spec)
	if err != nil {
		return err
	}
	return m.mapIDs(clone)
}

// SecretError is a secret that a step requires, and that the client did not give.
type SecretError struct{ ID string }

func (e *SecretError) Error() string {
	return fmt.Sprintf("secret %q is required, and the build was not given it: use --secret id=%s,src=FILE or --secret id=%s,env=VARIABLE",
		e.ID, e.ID, e.ID)
}

// secret mounts a secret as a file on a file system of its own in memory, or puts it into the environment.
func (m *mounting) secret(spec llb.Mount) error {
	value, ok, err := m.x.Secret(m.ctx, spec.ID)
	if err != nil {
		return err
	}
	if !ok {
		if spec.Required {
			return &SecretError{spec.ID}
		}
		value = nil
	}
	if spec.Env != "" {
		m.env = append(m.env, spec.Env+"="+string(value)) // empty without one, also where an ENV says otherwise
	}
	if !ok {
		return nil
	}
	if spec.Target == "" {
		return nil
	}
	return m.file(value, spec)
}

// file mounts a file of a content, read-only, with the owner and the mode of spec, on a file system of its own in memory.
func (m *mounting) file(content []byte, spec llb.Mount) error {
	fs, err := mount.Tmpfs(int64(len(content))+1<<20, 0o700, 0, 0)
	if err != nil {
		return err
	}
	defer fs.Close()
	f, err := rootfs.At(fs).OpenFile("file", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chown(spec.UID, spec.GID), unix.Fchmod(int(f.Fd()), spec.Mode&0o7777), f.Close())
	if err != nil {
		return err
	}
	return m.belowMapped(fs, llb.Mount{Source: "/file", Target: spec.Target, ReadOnly: true})
}
