package contexts

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lockfile"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot/compose"
)

// LockFile is a lock file that a build has, or may get.
type LockFile struct {
	// Name is what errors call it; "" if the Dockerfile can have none.
	Name string
	// Path is where it is on this machine; "" for one of a context from elsewhere.
	Path string
	// Data is what it has, and Exists says that it is there.
	Data   []byte
	Exists bool
}

// errNoLockFile returns the error of a locked build whose Dockerfile cannot have a lock file.
func errNoLockFile() error {
	return &input.Error{Err: errors.New("the build is locked, and this Dockerfile has no lock file: " +
		"it is neither a file of this machine nor of a context")}
}

// missing returns the error of a lock file that is not there.
func (l *Loader) missing(name string) error {
	if l.Lock != MustLock {
		return nil
	}
	return &input.Error{Err: fmt.Errorf("there is no %s, and the build is locked: kiln lock makes it", name)}
}

// lockFile reads the lock file of the Dockerfile at path.
func (l *Loader) lockFile(path string) error {
	if l.Lock == NoLock {
		return nil
	}
	path += lockfile.Suffix
	l.Open.Lock = LockFile{Name: shownName(path, l.Context), Path: path}
	data, err := readContextFile(l.Context, path, lockfile.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return l.missing(l.Open.Lock.Name)
	}
	if err != nil {
		return &input.Error{Err: fmt.Errorf("read the lock file: %w", err)}
	}
	l.Open.Lock.Data, l.Open.Lock.Exists = data, true
	return nil
}

// lockFileIn reads the lock file of the Dockerfile that a context from elsewhere has under a name.
func (l *Loader) lockFileIn(tree layer.Tree, name string) error {
	if l.Lock == NoLock {
		return nil
	}
	name += lockfile.Suffix
	l.Open.Lock = LockFile{Name: name}
	_, e, err := compose.Resolve(tree.Lookup, name, true)
	if err == nil && e == nil {
		return l.missing(name)
	}
	if err == nil {
		l.Open.Lock.Data, err = readTree(tree, e.Path, lockfile.MaxSize)
	}
	if err != nil {
		return &input.Error{Err: fmt.Errorf("read the lock file: %w", err)}
	}
	l.Open.Lock.Exists = true
	return nil
}

// admitLocal asks whether a directory of this machine, or the Dockerfile, may be read. BuildKit has sources with the same names for them.
func (l *Loader) admitLocal(name string) error {
	_, err := l.admit(llb.Local{Name: name})
	return err
}
