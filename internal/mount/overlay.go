package mount

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// MaxLower is the number of lower directories that the kernel stacks in one overlay.
const MaxLower = 500

// TooManyError says that an overlay would have more than MaxLower lower directories.
type TooManyError struct {
	// Lowers is how many there are.
	Lowers int
}

func (e *TooManyError) Error() string {
	return fmt.Sprintf("%d layers are more than the %d that the kernel stacks in one overlay", e.Lowers, MaxLower)
}

// Overlay describes an overlay mount. See Documentation/filesystems/overlayfs.rst of the Linux source.
type Overlay struct {
	// Lower are the lower directories, topmost first. Any path will do, of any length.
	Lower []string
	// Upper is the directory that takes the changes, and Work an empty one on the same file system that the kernel needs.
	// Without them the file system is read-only, and there must be two lower directories at least: the kernel does not make an
	// overlay of one. Nobody can make such a file system writable, whatever becomes of the flags of its mounts.
	//
	// Unmounting leaves Work/work and, if Volatile, Work/work/incompat/volatile behind: before Upper is mounted again the
	// latter has to go, and when Upper becomes a lower directory all of Work can.
	Upper, Work string
	// Volatile leaves out every sync of Upper, also the one when the mount goes. After a crash of the machine Upper is worth
	// nothing unless the caller has synced it.
	Volatile bool
	// UserXattr keeps the marks in user.overlay instead of trusted.overlay attributes, as a mount in a user namespace needs.
	UserXattr bool
	// IDMap maps the ids of Lower and Upper, and may be nil. With one, Upper and Work must be in the same directory.
	IDMap *IDMap
}

// Mount returns the overlay as a detached mount. Directories that are renamed are copied by whoever renames them (the kernel
// says EXDEV), and marks of redirects and of metadata-only copies in lower layers are not followed. Errors are *Error,
// *TooManyError or ErrNoIDMap, wrapped.
//
// The mount is never one of the directories themselves. So what a process does in it reaches no lower directory, and reaches
// Upper only as overlayfs lets it: the names of the overlay's own attributes are hidden or escaped, and nobody makes a whiteout.
func (o Overlay) Mount() (*os.File, error) {
	if len(o.Lower) > MaxLower {
		return nil, &TooManyError{Lowers: len(o.Lower)}
	}
	switch {
	case (o.Upper == "") != (o.Work == ""):
		return nil, &Error{FS: "overlay", Call: "upper and work directory go together", Err: unix.EINVAL}
	case len(o.Lower) == 0 || len(o.Lower) == 1 && o.Upper == "":
		return nil, &Error{FS: "overlay", Call: "too few directories", Err: unix.EINVAL}
	}
	if o.Upper == "" {
		return o.mount()
	}
	return o.mountWritable()
}

// mountWritable mounts an overlay that is to be written to. Where the kernel cannot make a directory in Work, as on a disk that is
// full, it mounts the overlay read-only and tells its log alone why. Making a directory there as well gives the errno; where that
// works, as when another step has just freed space, mounting is tried again.
func (o Overlay) mountWritable() (*os.File, error) {
	const tries = 5
	for range tries {
		f, err := o.mount()
		if err != nil {
			return nil, err
		}
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || st.Flags&unix.ST_RDONLY == 0 {
			return f, nil
		}
		f.Close()
		if err := o.IDMap.AsRoot(o.probe); err != nil {
			return nil, &Error{FS: "overlay", Call: "make a directory in " + o.Work, Err: err}
		}
	}
	return nil, &Error{FS: "overlay", Call: "make directories in " + o.Work, Err: unix.ENOSPC}
}

// probe makes a directory in Work and removes it. It returns the errno of the first call that fails.
func (o Overlay) probe() error {
	dir := filepath.Join(o.Work, "probe")
	if err := unix.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return unix.Rmdir(dir)
}

// mount mounts the overlay once, on any kernel.
func (o Overlay) mount() (*os.File, error) {
	if !appends() {
		if o.IDMap != nil {
			return nil, ErrNoIDMap
		}
		return o.mountString()
	}
	c, err := open("overlay")
	if err != nil {
		return nil, err
	}
	defer c.close()
	attr := ReadOnly
	if o.Upper != "" {
		attr = 0
	}
	if o.IDMap != nil {
		layers, err := o.setMapped(c)
		defer func() {
			for _, f := range layers {
				f.Close()
			}
		}()
		if err != nil {
			return nil, err
		}
	} else if err := o.setDirs(c); err != nil {
		return nil, err
	}
	// An index would tie Upper to its lower directories; redirects and metadata-only copies would make it no layer; a UUID
	// would be written to it.
	options := []Option{{"source", "overlay"}, {"index", "off"}, {"metacopy", "off"}, {"redirect_dir", "nofollow"},
		{"uuid", "null"}}
	if o.Volatile && o.Upper != "" {
		options = append(options, Option{"volatile", ""})
	}
	if o.UserXattr {
		options = append(options, Option{"userxattr", ""})
	}
	for _, opt := range options {
		if err := c.set(opt.Name, opt.Value); err != nil {
			return nil, err
		}
	}
	// What the overlay itself does in Upper and Work it does as who mounts it.
	var f *os.File
	err = o.IDMap.AsRoot(func() (err error) {
		f, err = c.mount(attr)
		return err
	})
	return f, err
}

// setDirs sets the options that are directories.
func (o Overlay) setDirs(c *fscontext) error {
	for _, dir := range o.Lower {
		if err := c.setDir("lowerdir+", dir); err != nil {
			return err
		}
	}
	if o.Upper == "" {
		return nil
	}
	if err := c.setDir("upperdir", o.Upper); err != nil {
		return err
	}
	return c.setDir("workdir", o.Work)
}

// setDir sets an option to a directory by way of a descriptor: a value is cut at 255 bytes, and some of its characters mean
// something to the kernel.
func (c *fscontext) setDir(name, dir string) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &Error{FS: c.fs, Call: "open " + dir, Err: err}
	}
	defer unix.Close(fd)
	return c.check(unix.FsconfigSetString(c.fd, name, "/proc/self/fd/"+strconv.Itoa(fd)), "fsconfig "+name+"="+dir)
}

// Bind returns a detached mount of the directory itself, with its ids mapped unless ids is nil. Whoever is given it may be able to
// remove the attributes, so it is not for a directory that must not change.
func Bind(dir string, attr Attr, ids *IDMap) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &Error{FS: "bind", Call: "open " + dir, Err: err}
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	m, err := Clone(f, false)
	if err != nil {
		return nil, err
	}
	if ids != nil {
		if err := MapIDs(m, ids); err != nil {
			m.Close()
			return nil, fmt.Errorf("%w: %w", ErrNoIDMap, err)
		}
	}
	if attr != 0 {
		if err := SetAttr(m, attr, false); err != nil {
			m.Close()
			return nil, err
		}
	}
	return m, nil
}
