// Package mount makes detached mounts: file systems that are mounted nowhere and held by a file descriptor, gone when it is
// closed or its process dies. It knows nothing of layers or sandboxes, and never changes the process's mount namespace.
//
// It speaks the kernel's descriptor-based mount calls: fsopen(2), fsconfig(2), fsmount(2), open_tree(2), mount_setattr(2).
// Whoever wants to see a detached mount at a path attaches it with move_mount(2).
package mount

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Attr is a set of mount attributes, the MOUNT_ATTR_ flags of mount_setattr(2).
type Attr uint64

// The attributes that are in use.
const (
	ReadOnly Attr = unix.MOUNT_ATTR_RDONLY
	NoSuid   Attr = unix.MOUNT_ATTR_NOSUID
	NoDev    Attr = unix.MOUNT_ATTR_NODEV
	NoExec   Attr = unix.MOUNT_ATTR_NOEXEC
)

// Error says which file system could not be mounted and why.
type Error struct {
	// FS is the kernel's name of the file system: "overlay", "tmpfs".
	FS string
	// Call is the system call that failed, with the option it was about: `fsconfig lowerdir+=/a`.
	Call string
	// Messages are the kernel's own words about it; there may be none.
	Messages []string
	// Err is the error number.
	Err error
}

func (e *Error) Error() string {
	s := fmt.Sprintf("mount %s: %s: %v", e.FS, e.Call, e.Err)
	if len(e.Messages) > 0 {
		s += " (" + strings.Join(e.Messages, "; ") + ")"
	}
	return s
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// An Option is a mount option of a file system; Value is "" for a flag.
type Option struct{ Name, Value string }

// New mounts a new instance of the file system that the kernel calls fs, which is also its source in mountinfo. The descriptor that it
// returns can be used as a directory for openat(2) and the like, and is close-on-exec. The error is an *Error.
func New(fs string, attr Attr, options ...Option) (*os.File, error) {
	c, err := open(fs)
	if err != nil {
		return nil, err
	}
	defer c.close()
	if err := c.set("source", fs); err != nil {
		return nil, err
	}
	for _, o := range options {
		if err := c.set(o.Name, o.Value); err != nil {
			return nil, err
		}
	}
	return c.mount(attr)
}

// Tmpfs mounts an empty tmpfs of at most size bytes (0: half of the memory) whose root directory has the given permission
// bits and owner. See tmpfs(5).
func Tmpfs(size int64, mode uint32, uid, gid int) (*os.File, error) {
	options := []Option{
		{"mode", strconv.FormatUint(uint64(mode), 8)},
		{"uid", strconv.Itoa(uid)},
		{"gid", strconv.Itoa(gid)},
	}
	if size > 0 {
		options = append(options, Option{"size", strconv.FormatInt(size, 10)})
	}
	return New("tmpfs", 0, options...)
}

// Clone returns a detached bind mount of the directory or file that f is open on, with all mounts below it if recursive.
// f may be open with O_PATH. Before Linux 6.15 f must not itself be in a detached mount: see Below.
func Clone(f *os.File, recursive bool) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(int(f.Fd()), "", flags)
	if err != nil {
		return nil, fmt.Errorf("clone mount %s: %w", f.Name(), os.NewSyscallError("open_tree", err))
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// SetAttr adds attributes to the mount that f is the root of, and to all mounts below it if recursive. It takes none away.
func SetAttr(f *os.File, attr Attr, recursive bool) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	err := whileBusy(func() error {
		return unix.MountSetattr(int(f.Fd()), "", flags, &unix.MountAttr{Attr_set: uint64(attr)})
	})
	if err != nil {
		return fmt.Errorf("set attributes of mount %s: %w", f.Name(), os.NewSyscallError("mount_setattr", err))
	}
	return nil
}

// fscontext is a file system that is being configured, see fsopen(2).
type fscontext struct {
	fs string
	fd int
}

func open(fs string) (*fscontext, error) {
	fd, err := unix.Fsopen(fs, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, &Error{FS: fs, Call: "fsopen", Err: err}
	}
	return &fscontext{fs: fs, fd: fd}, nil
}

func (c *fscontext) close() { unix.Close(c.fd) }

func (c *fscontext) set(name, value string) error {
	if value == "" {
		return c.check(unix.FsconfigSetFlag(c.fd, name), "fsconfig "+name)
	}
	return c.check(unix.FsconfigSetString(c.fd, name, value), "fsconfig "+name+"="+value)
}

func (c *fscontext) mount(attr Attr) (*os.File, error) {
	if err := c.check(unix.FsconfigCreate(c.fd), "fsconfig create"); err != nil {
		return nil, err
	}
	fd, err := unix.Fsmount(c.fd, unix.FSMOUNT_CLOEXEC, int(attr))
	if err := c.check(err, "fsmount"); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), c.fs), nil
}

// check turns a call's error into an *Error with the messages that the kernel has queued on the context, each of which is
// a line that starts with its level and a blank.
func (c *fscontext) check(err error, call string) error {
	if err == nil {
		return nil
	}
	e := &Error{FS: c.fs, Call: call, Err: err}
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(c.fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return e
		}
		line := strings.TrimSpace(string(buf[:n]))
		if len(line) > 2 && line[1] == ' ' {
			line = line[2:]
		}
		e.Messages = append(e.Messages, line)
	}
}
