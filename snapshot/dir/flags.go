package dir

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Flags are the attributes that chattr(1) sets on a file.
type Flags struct {
	flags   int    // of inodeFlags
	project uint32 // see quotactl(2)
}

// The flags of linux/fs.h that restrict the use of a file, or that a step can read back. The others do not matter to a layer:
// they belong to the file system, or control how it stores the bytes, for example compressed; and FS_TOPDIR_FL is set by kiln
// itself, see package scratch.
const (
	flagSecureRemoval = 0x1
	flagUndelete      = 0x2
	flagSync          = 0x8
	flagImmutable     = 0x10
	flagAppend        = 0x20
	flagNoDump        = 0x40
	flagNoAtime       = 0x80
	flagJournalData   = 0x4000
	flagNoTail        = 0x8000
	flagDirSync       = 0x10000
	flagProjInherit   = 0x20000000
	flagCasefold      = 0x40000000

	inodeFlags = flagSecureRemoval | flagUndelete | flagSync | flagImmutable | flagAppend | flagNoDump |
		flagNoAtime | flagJournalData | flagNoTail | flagDirSync | flagProjInherit | flagCasefold
)

// fsxattr is struct fsxattr of linux/fs.h. The constants below are the ioctl(2) numbers that read and write it.
type fsxattr struct {
	flags, extentSize, extents, project, cowExtentSize uint32
	_                                                  [8]byte
}

const (
	fsGetXattr = 0x801c581f
	fsSetXattr = 0x401c5820
)

// noFlagsErrors are the errors of a file system that does not support flags or projects.
var noFlagsErrors = []error{unix.ENOTTY, unix.ENOTSUP, unix.EINVAL, unix.ENOSYS}

// flagsOf returns the flags of an open file or directory.
func (f *FS) flagsOf(fd int) (i Flags, err error) {
	if f.noFlags.Load() {
		return Flags{}, nil
	}
	i.flags, err = unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if isAny(err, noFlagsErrors) {
		f.noFlags.Store(true)
		return Flags{}, nil
	}
	if err != nil {
		return Flags{}, err
	}
	i.flags &= inodeFlags
	if f.NS.Nested {
		return i, nil // the project cannot be changed in a user namespace
	}
	x, err := getFsxattr(fd)
	if isAny(err, noFlagsErrors) {
		return i, nil
	}
	i.project = x.project
	return i, err
}

func isAny(err error, list []error) bool {
	return slices.ContainsFunc(list, func(e error) bool { return errors.Is(err, e) })
}

func getFsxattr(fd int) (x fsxattr, err error) {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fsGetXattr, uintptr(unsafe.Pointer(&x)))
	if errno != 0 {
		err = errno
	}
	return x, err
}

// beyond returns the flags in i that a file does not inherit from a directory with the flags base.
func (i Flags) beyond(base Flags) Flags {
	extra := Flags{flags: i.flags &^ base.flags}
	if i.project != base.project {
		extra.project = i.project
	}
	return extra
}

// String formats the flags like lsattr(1).
func (i Flags) String() string {
	var b strings.Builder
	for _, f := range []struct {
		flag int
		name byte
	}{
		{flagSecureRemoval, 's'}, {flagUndelete, 'u'}, {flagSync, 'S'}, {flagDirSync, 'D'}, {flagImmutable, 'i'}, {flagAppend, 'a'},
		{flagNoDump, 'd'}, {flagNoAtime, 'A'}, {flagJournalData, 'j'}, {flagNoTail, 't'}, {flagProjInherit, 'P'}, {flagCasefold, 'F'},
	} {
		if i.flags&f.flag != 0 {
			b.WriteByte(f.name)
		}
	}
	if i.project != 0 {
		fmt.Fprintf(&b, " (project %d)", i.project)
	}
	return b.String()
}

// clear removes the flags in extra from an open file or directory.
func (extra Flags) clear(fd int, base Flags) error {
	if extra.flags != 0 {
		flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
		if err == nil {
			err = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags&^extra.flags)
		}
		if err != nil {
			return fmt.Errorf("clear the flags %v of chattr(1): %w", Flags{flags: extra.flags}, err)
		}
	}
	if extra.project == 0 {
		return nil
	}
	x, err := getFsxattr(fd)
	if err != nil {
		return fmt.Errorf("clear the project of chattr(1): %w", err)
	}
	x.project = base.project
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fsSetXattr, uintptr(unsafe.Pointer(&x))); errno != 0 {
		return fmt.Errorf("clear the project of chattr(1): %w", errno)
	}
	return nil
}

// FlagsOf returns the flags of a directory.
func (f *FS) FlagsOf(dir string) (Flags, error) {
	d, err := os.Open(dir)
	if err != nil {
		return Flags{}, err
	}
	defer d.Close()
	return f.flagsOf(int(d.Fd()))
}
