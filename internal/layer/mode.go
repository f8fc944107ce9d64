package layer

import "io/fs"

// special are the bits of a mode besides permissions, as Linux and as package fs has them.
var special = []struct {
	bit  uint32
	flag fs.FileMode
}{{0o4000, fs.ModeSetuid}, {0o2000, fs.ModeSetgid}, {0o1000, fs.ModeSticky}}

// FSMode returns the bits of Entry.Mode as package fs has them.
func FSMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	for _, s := range special {
		if mode&s.bit != 0 {
			m |= s.flag
		}
	}
	return m
}

// LinuxMode is the inverse of FSMode. The type of the file is ignored.
func LinuxMode(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	for _, s := range special {
		if m&s.flag != 0 {
			mode |= s.bit
		}
	}
	return mode
}

// FSMode returns the mode and the type of an entry as package fs has them. A Hardlink has the type of a File.
func (e *Entry) FSMode() fs.FileMode {
	mode := FSMode(e.Mode)
	switch e.Type {
	case Dir:
		mode |= fs.ModeDir
	case Symlink:
		mode |= fs.ModeSymlink
	case Fifo:
		mode |= fs.ModeNamedPipe
	case Char:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	case Block:
		mode |= fs.ModeDevice
	}
	return mode
}
