// Package layer is the form of layers: the entries of one, the manifest that lists them, the tar that carries them, and the tree that the
// manifests of several make together. It does not know where layers are kept.
package layer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"time"
)

// ID names a layer: 64 hexadecimal digits, of the layer's identity or, for the layer of an image, of its diff id. Any other ID is of a
// layer that does not exist.
type ID string

// Valid reports whether a layer can have the ID. One that is valid is also safe as the name of a file.
func (id ID) Valid() bool {
	b, err := hex.DecodeString(string(id))
	return err == nil && len(b) == sha256.Size
}

// Type is the kind of an entry.
type Type byte

// The types of entries.
const (
	File     Type = 'f'
	Dir      Type = 'd'
	Symlink  Type = 'l'
	Hardlink Type = 'h' // a further name of a file of the same layer; Link is the name that has the file
	Char     Type = 'c'
	Block    Type = 'b'
	Fifo     Type = 'p'
	Whiteout Type = 'w' // what lower layers have under this name is deleted
)

// Digest is the SHA-256 of a file's bytes.
type Digest [sha256.Size]byte

// Xattr is one extended attribute.
type Xattr struct {
	Name  string
	Value string
}

// Entry is one name of a layer or tree.
type Entry struct {
	// Path is relative to the root, without leading or trailing slash: "usr/bin/env"; "" is the root itself.
	Path string
	Type Type
	// Mode holds the permission bits with setuid, setgid and sticky: at most 07777.
	Mode uint32
	UID  uint32
	GID  uint32
	// Size is the length of a File in bytes; 0 for other types.
	Size int64
	// Digest is of a File's bytes. In a tree that has not read the file yet it is zero: see Tree.Sum.
	Digest Digest
	// Link is a Symlink's target as it stands, or the Path that a Hardlink is another name of.
	Link  string
	Major uint32
	Minor uint32
	// Xattrs are sorted by name.
	Xattrs  []Xattr
	ModTime time.Time
	// Clock says that ModTime came from the clock while the layer was made, so that it is not part of the layer's identity.
	Clock bool
	// Opaque says that nothing of lower layers' directory of this name is seen.
	Opaque bool
	// Implied says that the layer named something below this directory, but not the directory.
	Implied bool
	// LinkID is not part of the layer: entries of one Tree that have the same one, not "", are names of the same file.
	LinkID string
}

// MaxPath is PATH_MAX of limits.h: with the byte that ends it, no path may be longer. PathTooLong says that one is.
const (
	MaxPath     = 4096
	PathTooLong = "the path is longer than the 4095 bytes that Linux takes"
)

// Name returns the last component of the path.
func (e *Entry) Name() string { return e.Path[strings.LastIndexByte(e.Path, '/')+1:] }

// Parent returns the path of the directory that a path's last component is in; "" for a name in the root.
func Parent(path string) string { return path[:max(0, strings.LastIndexByte(path, '/'))] }

// Compare orders paths so that a directory's whole content follows it directly: as strings.Compare, with the slash below
// every other byte.
func Compare(a, b string) int {
	const block = 64
	for len(a) >= block && len(b) >= block && a[:block] == b[:block] {
		a, b = a[block:], b[block:] // long paths mostly have much in common
	}
	for i := 0; i < len(a) && i < len(b); i++ {
		x, y := a[i], b[i]
		if x == y {
			continue
		}
		switch {
		case x == '/':
			return -1
		case y == '/':
			return 1
		case x < y:
			return -1
		default:
			return 1
		}
	}
	return len(a) - len(b)
}

// Within reports whether path is dir or lies below it; "" is the root, which everything lies below.
func Within(path, dir string) bool {
	return dir == "" || path == dir || len(path) > len(dir) && path[len(dir)] == '/' && path[:len(dir)] == dir
}

// Tree is a file tree that can be read: a build context or a root file system. Paths are as in Entry; none is resolved
// through symbolic links. Implementations are safe for concurrent use.
type Tree interface {
	// Lookup returns the entry of a path; false where there is none. It is never a Whiteout or Hardlink: every name of a
	// file is a File, with the LinkID that it shares with the others.
	Lookup(path string) (Entry, bool, error)
	// List returns the entries directly in a directory, as Lookup has them, sorted by name.
	List(dir string) ([]Entry, error)
	// Sum fills in what is found out by reading Files, of those among entries, all of which came from this tree: digests, and of a tree
	// that changes meanwhile all that belongs to them. A File that was removed since becomes a Whiteout.
	Sum(ctx context.Context, entries []*Entry) error
	// Open opens the bytes of a File or Hardlink of this tree.
	Open(e *Entry) (io.ReadCloser, error)
}

// ChangedError is the error of a tree that is not what it was when something was planned with it. Path is what has changed, "" if that is
// not known.
type ChangedError struct{ Path string }

func (e *ChangedError) Error() string {
	if e.Path == "" {
		return "the files changed while they were read: build again when nothing writes to them"
	}
	return "/" + Clip(e.Path) + " changed while it was read: build again when nothing writes to it"
}

// Stale says that what failed can be tried again from its plan on.
func (e *ChangedError) Stale() bool { return true }

// KeepXattr reports whether an extended attribute is content: capabilities, and what user and trusted attributes there are but for those of
// the overlay file system and those in which XFS shows access control lists. All others are dropped: labels are for the security
// modules of one machine, and access control lists are recorded by no builder.
func KeepXattr(name string) bool {
	switch {
	case name == "security.capability":
		return true
	case strings.HasPrefix(name, "trusted."):
		return !strings.HasPrefix(name, "trusted.overlay.") && !strings.HasPrefix(name, "trusted.SGI_")
	case strings.HasPrefix(name, "user."):
		return !strings.HasPrefix(name, "user.overlay.")
	}
	return false
}

// PathError is an error about one path of a root file system.
type PathError struct {
	Path string
	Msg  string
}

func (e *PathError) Error() string { return fmt.Sprintf("/%s: %s", Clip(e.Path), e.Msg) }

// Join returns the path of a name in a directory; "" is the root.
func Join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// BadName says why a layer cannot hold a path; "" if it can.
func BadName(p string) string {
	for c := range strings.SplitSeq(p, "/") {
		if p != "" && (c == "" || c == "." || c == "..") {
			return "the path is not clean"
		}
		if strings.HasPrefix(c, WhiteoutPrefix) {
			return "a file whose name begins with .wh. cannot be kept in an image: the layer format takes it for a deletion"
		}
		if len(c) > maxName {
			return "the name is longer than 255 bytes"
		}
	}
	if strings.IndexByte(p, 0) >= 0 {
		return "the name has a NUL byte"
	}
	return ""
}

// maxName is NAME_MAX of limits.h.
const maxName = 255
