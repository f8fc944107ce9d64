package files

import (
	"cmp"
	"path"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot/compose"
)

// mkdir executes an llb.Mkdir.
type mkdir struct {
	maker
	op *llb.Mkdir
}

func (m *mkdir) do() error {
	dir, _, err := m.b.Resolve(m.op.Path, true)
	if err != nil {
		return err
	}
	existing, ok, err := m.b.Lookup(dir)
	if err != nil || ok && (existing.Type == layer.Dir || m.op.NoParents) {
		return err
	}
	if m.op.NoParents {
		if err := m.parentExists(m.op.Path); err != nil {
			return err
		}
	}
	return m.b.Mkdirs(dir, m.newDir)
}

// mkfile executes an llb.Mkfile.
type mkfile struct {
	maker
	op *llb.Mkfile
}

func (m *mkfile) do() error {
	if m.op.NoParents {
		if err := m.parentExists(m.op.Path); err != nil {
			return err
		}
	}
	dest, err := m.dest(m.op.Path, !m.op.Link)
	if err != nil {
		return err
	}
	if m.op.Name != "" {
		if dest, err = m.target(dest, m.op.Name); err != nil {
			return err
		}
	}
	size := int64(len(m.op.Content))
	e := layer.Entry{Type: layer.File, Mode: 0o644, Size: size, ModTime: m.now.time, Clock: m.now.clock}
	tree := inlineTree{m.op.Content}
	m.number = len(m.trees) + len(m.inline)
	m.inline = append(m.inline, tree)
	return m.leaf(tree, e, dest)
}

// symlink executes an llb.Symlink.
type symlink struct {
	maker
	op *llb.Symlink
}

func (m *symlink) do() error {
	dir, _, err := m.b.Resolve(path.Dir(m.op.Path), true)
	if err != nil {
		return err
	}
	parent, ok, err := m.b.Lookup(dir)
	if err != nil {
		return err
	}
	if !ok || parent.Type != layer.Dir {
		return &layer.PathError{Path: dir, Msg: "is not a directory"}
	}
	at := join(dir, path.Base(m.op.Path))
	if _, exists, err := m.b.Lookup(at); err != nil || exists {
		return cmp.Or(err, error(&layer.PathError{Path: at, Msg: "exists, so a symbolic link cannot be created there"}))
	}
	return m.leaf(inlineTree{}, layer.Entry{Type: layer.Symlink, Mode: 0o777, Link: m.op.Target, ModTime: m.now.time, Clock: m.now.clock}, at)
}

// remove executes an llb.Remove.
type remove struct {
	*run
	op *llb.Remove
}

func (r *remove) wanted() llb.Attributes { return llb.Attributes{} }

func (r *remove) find() error { return nil }

func (r *remove) do() error {
	names, err := r.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		dir, _, err := r.b.Resolve(layer.Parent(name), true)
		if err != nil {
			return err
		}
		at := join(dir, path.Base("/"+name))
		_, exists, err := r.b.Lookup(at)
		if err != nil {
			return err
		}
		if !exists && !r.op.AllowMissing {
			return &layer.PathError{Path: at, Msg: "does not exist, and cannot be removed"}
		}
		if err := r.b.Delete(at); err != nil {
			return err
		}
	}
	return nil
}

// names returns the paths to remove.
func (r *remove) names() ([]string, error) {
	if !r.op.AllowWildcard {
		return []string{strings.TrimPrefix(path.Clean("/"+r.op.Path), "/")}, nil
	}
	return glob(r.b, r.op.Path, true)
}

// setGID is S_ISGID of inode(7).
const setGID = 0o2000

// passOn sets the attributes of a new directory at path that mkdir(2) would inherit: in a directory with the set-group-ID bit,
// that bit and the group.
func passOn(b *compose.Builder, path string, e *layer.Entry) {
	if parent, ok, _ := b.Lookup(layer.Parent(path)); ok && parent.Mode&setGID != 0 {
		e.Mode |= setGID
		e.GID = parent.GID
	}
}

// moment is the time of new directories.
type moment struct {
	time  time.Time
	clock bool
}

func made(a llb.Attributes) moment {
	if a.Epoch != nil {
		return moment{time: time.Unix(*a.Epoch, int64(a.Nanos))}
	}
	return moment{time: time.Now(), clock: true}
}
