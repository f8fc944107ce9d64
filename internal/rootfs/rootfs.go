// Package rootfs resolves paths inside a directory tree by file descriptor, so that nothing in the tree, neither symbolic
// links nor "..", leads out of it. It does not know about layers or mounts.
package rootfs

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Root is a directory that paths are resolved in, as chroot(2) would: absolute names and absolute symbolic links start at
// the directory, ".." stops at it, and magic links of proc(5) are refused. See openat2(2), RESOLVE_IN_ROOT.
type Root struct {
	dir *os.File
	// host is the directory's path on the host, which errors begin with; "" if only paths in the root mean something to people.
	host string
}

// Open opens the directory called name, which itself is an ordinary path of the host.
func Open(name string) (*Root, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &Root{dir: os.NewFile(uintptr(fd), name), host: name}, nil
}

// At returns a Root for a directory that is already open; the Root takes dir over and Close closes it. Its errors have paths in the root.
func At(dir *os.File) *Root { return &Root{dir: dir} }

// OnHost is At for a directory whose name is a path of the host, and so are the paths in errors.
func OnHost(dir *os.File) *Root { return &Root{dir: dir, host: dir.Name()} }

// Error is the error of an operation on a path in a root.
type Error struct {
	Op string
	// Path begins with a slash.
	Path string
	Err  error
}

func (e *Error) Error() string { return e.Op + " " + e.Path + ": " + e.Err.Error() }

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// failed returns the error of an operation on a path: an *fs.PathError if the path of the root is known, else an *Error.
func (r *Root) failed(op, name string, err error) error {
	if r.host != "" {
		return &fs.PathError{Op: op, Path: r.shown(name), Err: err}
	}
	return &Error{Op: op, Path: r.shown(name), Err: err}
}

// shown returns the path on the host of a path in the root; if that is not known, the path itself.
func (r *Root) shown(name string) string {
	if r.host == "" {
		return path.Join("/", name)
	}
	return path.Join(r.host, name)
}

// Close closes the directory.
func (r *Root) Close() error { return r.dir.Close() }

// File returns the directory itself, opened with O_PATH perhaps. It stays the Root's.
func (r *Root) File() *os.File { return r.dir }

// Fd returns the directory's descriptor, which is valid until Close.
func (r *Root) Fd() int { return int(r.dir.Fd()) }

// OpenFile opens a path in the root with open(2) flags (O_CLOEXEC is added) and, for O_CREAT, permission bits.
// Every symbolic link is followed inside the root, the last one too unless flags hold O_NOFOLLOW.
func (r *Root) OpenFile(name string, flags int, perm uint32) (*os.File, error) {
	return r.open(name, flags, perm, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
}

// OpenNoSymlinks is like OpenFile but fails with ELOOP if any component of the path is a symbolic link.
func (r *Root) OpenNoSymlinks(name string, flags int, perm uint32) (*os.File, error) {
	return r.open(name, flags, perm, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_MAGICLINKS)
}

func (r *Root) open(name string, flags int, perm uint32, resolve uint64) (*os.File, error) {
	rel := strings.TrimLeft(name, "/")
	if rel == "" {
		rel = "."
	}
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Resolve: resolve}
	if flags&(unix.O_CREAT|unix.O_TMPFILE) != 0 {
		how.Mode = uint64(perm)
	}
	fd, err := retry(func() (int, error) { return unix.Openat2(r.Fd(), rel, &how) })
	if err != nil {
		return nil, r.failed("open", rel, err)
	}
	return os.NewFile(uintptr(fd), r.shown(rel)), nil
}

// Parent opens the directory that holds the last component of name, following links on the way, and returns it with that
// component, which is not followed. The path's last component must be a name: "", ".", ".." and "/" are EINVAL.
func (r *Root) Parent(name string) (*os.File, string, error) {
	dir, base := path.Split(strings.TrimRight(name, "/"))
	if base == "" || base == "." || base == ".." {
		return nil, "", r.failed("open", name, unix.EINVAL)
	}
	f, err := r.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, "", err
	}
	return f, base, nil
}

// MkdirAll makes the directory called name and its missing parents, following links inside the root, with permission
// bits perm regardless of the umask. It returns the paths that it created, outermost first: "/a/b" for "/a/b".
func (r *Root) MkdirAll(name string, perm uint32) ([]string, error) {
	clean := path.Clean("/" + name)
	if clean == "/" {
		return nil, nil
	}
	f, err := r.OpenFile(clean, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err == nil {
		return nil, f.Close()
	}
	if !errors.Is(err, unix.ENOENT) {
		return nil, err
	}
	made, err := r.MkdirAll(path.Dir(clean), perm)
	if err != nil {
		return made, err
	}
	dir, base, err := r.Parent(clean)
	if err != nil {
		return made, err
	}
	defer dir.Close()
	if err := unix.Mkdirat(int(dir.Fd()), base, perm); err != nil {
		return made, r.failed("mkdir", clean, err)
	}
	made = append(made, clean)
	if err := unix.Fchmodat(int(dir.Fd()), base, perm, 0); err != nil {
		return made, r.failed("chmod", clean, err)
	}
	return made, nil
}

// retry calls f again while it is interrupted, or while openat2 lost a race with a rename (EAGAIN).
func retry(f func() (int, error)) (int, error) {
	for range 128 {
		n, err := f()
		if err != unix.EINTR && err != unix.EAGAIN {
			return n, err
		}
	}
	return -1, unix.EAGAIN
}
