// Package dirtree walks and removes directory trees of any depth with few open directories. A process in a sandbox can make a tree that is
// deeper than a process may have descriptors, and whose paths are longer than PATH_MAX. The package does not know what the trees are for.
package dirtree

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxOpen is how many directories of one tree are open at once.
const maxOpen = 32

// RemoveError reports the part of a tree that could not be removed. The rest of the tree has been removed.
type RemoveError struct {
	// Path is the first name that could not be removed: the argument of Remove or a path below it. A long one is shortened.
	// Names deep in the tree are reported at the place that the removal has moved them to.
	Path string
	// More is how many others could not be removed.
	More int
	// Err is why Path could not be removed.
	Err error
}

// Error implements error.
func (e *RemoveError) Error() string {
	more := ""
	if e.More > 0 {
		more = fmt.Sprintf(" (and %d more)", e.More)
	}
	return fmt.Sprintf("remove %s: %v%s", e.Path, e.Err, more)
}

// Unwrap returns why the first name could not be removed.
func (e *RemoveError) Unwrap() error { return e.Err }

// Remove removes the file or directory called name, with everything in it. See RemoveAt.
func Remove(name string) error {
	dir, err := unix.Open(filepath.Dir(name), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return &RemoveError{Path: name, Err: err}
	}
	defer unix.Close(dir)
	return removeAt(dir, filepath.Base(name), name)
}

// RemoveAt removes a name of the directory dir, which may be opened with O_PATH, and everything below it. A name that does not exist
// is not an error. RemoveAt continues if something cannot be removed; its error is a *RemoveError. Directories that lack permissions for
// their owner get them, and immutable files (ioctl_iflags(2)) lose that flag, if the process may change it. Symbolic links are not
// followed, and mounts in the tree are left alone.
//
// Directories that lie more than maxOpen levels below name are moved to a new directory in name and removed from there, so
// the number of open directories is bounded, and the time is linear in the number of files.
func RemoveAt(dir int, name string) error { return removeAt(dir, name, name) }

// ID identifies a directory: the device and the inode of stat(2).
type ID struct{ Dev, Ino uint64 }

// Identify returns the ID of an open file.
func Identify(f *os.File) (ID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return ID{}, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return ID{st.Dev, st.Ino}, nil
}

// ErrOther is the error of RemoveDirAt for a name that does not lead to the directory.
var ErrOther = errors.New("the directory was moved or replaced")

// RemoveDirAt is RemoveAt for the directory id. If name does not exist or is anything else, it removes nothing and returns ErrOther.
func RemoveDirAt(dir int, name string, id ID) error {
	top, err := openSame(dir, name, id)
	if err == ErrOther {
		return err
	}
	if err != nil {
		return &RemoveError{Path: name, Err: err}
	}
	defer top.Close()
	r := &remover{at: []string{name}}
	r.directory(top, dir, name)
	return r.result()
}

// openSame opens the directory id, which is called name, for reading. If the owner lacks permission to read it, the permission is added.
func openSame(dir int, name string, id ID) (*os.File, error) {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
		return nil, ErrOther
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	found, err := Identify(f)
	if err != nil {
		return nil, err
	}
	if found != id {
		return nil, ErrOther
	}
	return openDir(fd, ".")
}

func removeAt(dir int, name, shown string) error {
	r := &remover{at: []string{shown}}
	r.tree(dir, name)
	return r.result()
}

// result returns the error of the removal.
func (r *remover) result() error {
	if r.failed == 0 {
		return nil
	}
	return &RemoveError{Path: r.path, More: r.failed - 1, Err: r.err}
}

// remover removes one tree.
type remover struct {
	at     []string // the names that lead to the directory which is being removed
	failed int      // how many names could not be removed
	path   string   // the first of them
	err    error    // and why
	top    *os.File // the tree's directory
	// deep is the directory that takes what is too deep, and deepName its name in top; nil and "" for none.
	deep     *os.File
	deepName string
	moved    int // how many directories were moved into one so far
}

// fail records that a name of the current directory could not be removed; "" is the directory itself.
func (r *remover) fail(name string, err error) {
	if r.failed++; r.failed > 1 {
		return
	}
	path := strings.Join(r.at, "/")
	if name != "" {
		path += "/" + name
	}
	r.path, r.err = clip(path), err
}

// clip shortens a long path to its beginning and its end.
func clip(path string) string {
	const most = 200
	if len(path) <= most {
		return path
	}
	return path[:most/2] + "…" + path[len(path)-most/2:]
}

// tree removes the name that the tree begins with. Its directory is the caller's and stays as it is.
func (r *remover) tree(dir int, name string) {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || err == unix.ENOENT {
		return
	}
	top, openErr := openDir(dir, name)
	switch {
	case openErr == unix.ENOTDIR || openErr == unix.ELOOP:
		if err == unix.EPERM {
			allow(dir, name)
			err = unix.Unlinkat(dir, name, 0)
		}
		if err != nil {
			r.fail("", err)
		}
		return
	case openErr == unix.ENOENT:
		return
	case openErr != nil:
		r.fail("", openErr)
		return
	}
	defer top.Close()
	r.directory(top, dir, name)
}

// directory removes the tree of top, which is called name in dir. If name is another directory by now, that is removed only if it is empty.
func (r *remover) directory(top *os.File, dir int, name string) {
	r.top = top
	r.empty(top, func() error {
		for r.deep != nil {
			r.removeDeep()
		}
		if r.failed > 0 {
			return nil
		}
		err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
		if err == unix.EPERM {
			allow(dir, name)
			err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
		}
		return err
	})
}

// removeDeep removes what was moved because it was too deep.
func (r *remover) removeDeep() {
	deep, name := r.deep, r.deepName
	r.deep, r.deepName = nil, ""
	defer deep.Close()
	r.at = append(r.at, name)
	r.empty(deep, func() error { return unix.Unlinkat(int(r.top.Fd()), name, unix.AT_REMOVEDIR) })
	r.at = r.at[:len(r.at)-1]
}

// empty removes everything in dir, the current directory, and then dir itself by rmdir.
func (r *remover) empty(dir *os.File, rmdir func() error) {
	before := r.failed
	for {
		found := r.pass(dir)
		err := rmdir()
		if r.failed > before || err == nil || err == unix.ENOENT {
			return
		}
		// Some file systems skip names while others are removed: the next pass finds them.
		if err == unix.ENOTEMPTY && found > 0 {
			_, err = dir.Seek(0, io.SeekStart)
		}
		if err != nil {
			r.fail("", err)
			return
		}
	}
}

// pass removes what one reading of dir finds, and returns how many names that were.
func (r *remover) pass(dir *os.File) (found int) {
	for {
		entries, err := dir.ReadDir(1024)
		for _, e := range entries {
			if len(r.at) == 1 && e.Name() == r.deepName {
				continue
			}
			found++
			r.entry(dir, e)
		}
		if err == io.EOF {
			return found
		}
		if err != nil {
			r.fail("", err)
			return found
		}
	}
}

// entry removes one name of dir.
func (r *remover) entry(dir *os.File, e os.DirEntry) {
	name, fd := e.Name(), int(dir.Fd())
	if !e.IsDir() {
		if err := unlink(fd, name, 0); err != nil {
			r.fail(name, err)
		}
		return
	}
	if len(r.at) == maxOpen {
		if err := r.move(fd, name); err != nil {
			r.fail(name, err)
		}
		return
	}
	sub, err := openDir(fd, name)
	if err == unix.ENOENT {
		return
	}
	if err != nil {
		r.fail(name, err)
		return
	}
	defer sub.Close()
	r.at = append(r.at, name)
	r.empty(sub, func() error { return unlink(fd, name, unix.AT_REMOVEDIR) })
	r.at = r.at[:len(r.at)-1]
}

// unlink is unlinkat(2) in a directory of the tree, which may first have to become writable. A name that does not exist is not an error.
func unlink(dir int, name string, flags int) error {
	err := unix.Unlinkat(dir, name, flags)
	if err == unix.EACCES || err == unix.EPERM {
		_ = unix.Fchmod(dir, 0o700)
		clearFlags(dir)
		allow(dir, name)
		err = unix.Unlinkat(dir, name, flags)
	}
	if err == unix.ENOENT {
		return nil
	}
	return err
}

// move takes a directory that is too deep to where it is removed later, or removes it if it is empty.
func (r *remover) move(dir int, name string) error {
	if unlink(dir, name, unix.AT_REMOVEDIR) == nil {
		return nil
	}
	if r.deep == nil {
		if err := r.makeDeep(); err != nil {
			return err
		}
	}
	r.moved++
	to := strconv.Itoa(r.moved)
	err := unix.Renameat(dir, name, int(r.deep.Fd()), to)
	if err == unix.EACCES || err == unix.EPERM {
		_ = chmod(dir, name) // rename(2): the directory itself has to be writable, since its ".." changes
		err = unix.Renameat(dir, name, int(r.deep.Fd()), to)
	}
	if err == unix.ENOENT {
		return nil
	}
	return err
}

// makeDeep makes the directory that takes what is too deep.
func (r *remover) makeDeep() error {
	for n := r.moved; ; n++ {
		name := ".kiln-removes-" + strconv.Itoa(n)
		err := unix.Mkdirat(int(r.top.Fd()), name, 0o700)
		if err == unix.EEXIST {
			continue
		}
		if err != nil {
			return err
		}
		r.deepName = name
		r.deep, err = openDir(int(r.top.Fd()), name)
		return err
	}
}

// openDir opens a directory for reading. If the owner lacks permission to read it, the permission is added. A mount point is EBUSY.
func openDir(dir int, name string) (*os.File, error) {
	f, err := openIn(dir, name)
	if err == unix.EACCES && chmod(dir, name) == nil {
		f, err = openIn(dir, name)
	}
	return f, err
}

func openIn(dir int, name string) (*os.File, error) {
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_XDEV}
	for {
		fd, err := unix.Openat2(dir, name, &how)
		switch err {
		case nil:
			return os.NewFile(uintptr(fd), name), nil
		case unix.EINTR, unix.EAGAIN:
		case unix.EXDEV:
			return nil, unix.EBUSY
		default:
			return nil, err
		}
	}
}

// chmod gives the owner of a directory all permissions.
func chmod(dir int, name string) error {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// Before Linux 6.6 only the link in /proc can change a file opened with O_PATH.
	return unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), 0o700)
}

// allow clears the flags that keep a name from being removed, if the process may.
func allow(dir int, name string) {
	var st unix.Stat_t
	if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return // other types have no flags, and opening them can have effects
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	clearFlags(fd)
}

// The flags of ioctl_iflags(2) that keep a file from being removed: FS_IMMUTABLE_FL and FS_APPEND_FL of linux/fs.h.
const immutable, appendOnly = 0x10, 0x20

func clearFlags(fd int) {
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err == nil && flags&(immutable|appendOnly) != 0 {
		_ = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags&^(immutable|appendOnly))
	}
}
