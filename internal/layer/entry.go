// Package layer defines the format of layers: their entries, the manifest that lists them, the tar that contains them, and the
// tree made of the manifests of several layers. It does not know where layers are stored.
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

// ID is the name of a layer: 64 hexadecimal digits, of the layer's identity or, for the layer of an image, of its diff ID. A
// layer with any other ID does not exist.
type ID string

// Valid reports whether the ID is well-formed. A valid ID is safe as a file name.
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
	Hardlink Type = 'h' // another name of a file of the same layer; Link is the path of the File
	Char     Type = 'c'
	Block    Type = 'b'
	Fifo     Type = 'p'
	Whiteout Type = 'w' // this path is deleted from lower layers
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
	// Path is relative to the root, without leading or trailing slash, such as "usr/bin/env"; "" is the root itself.
	Path string
	Type Type
	// Mode holds the permission bits with setuid, setgid and sticky: at most 07777.
	Mode uint32
	UID  uint32
	GID  uint32
	// Size is the length of a File in bytes; 0 for other types.
	Size int64
	// Digest is the digest of a File's bytes. It is zero in a tree that has not read the file yet: see Tree.Sum.
	Digest Digest
	// Link is the target of a Symlink as written, or the Path of the File that a Hardlink refers to.
	Link  string
	Major uint32
	Minor uint32
	// Xattrs are sorted by name.
	Xattrs  []Xattr
	ModTime time.Time
	// Clock reports that ModTime came from the clock while the layer was made. It is then not part of the layer's identity.
	Clock bool
	// Opaque reports that the contents of this directory in lower layers are hidden.
	Opaque bool
	// Implied reports that the layer contains a path below this directory, but not the directory itself.
	Implied bool
	// LinkID is not part of the layer: entries of one Tree with the same non-empty LinkID are names of the same file.
	LinkID string
}

// MaxPath is PATH_MAX of limits.h, the maximum length of a path including a terminating zero byte. PathTooLong is the message for
// a longer path.
const (
	MaxPath     = 4096
	PathTooLong = "the path is longer than the 4095 bytes that Linux takes"
)

// Root returns the root directory of a tree in which no layer describes it. Like other directories that are only implied, it has
// the time 0.
func Root() Entry { return Entry{Type: Dir, Mode: 0o755, ModTime: time.Unix(0, 0)} }

// Name returns the last component of the path.
func (e *Entry) Name() string { return e.Path[strings.LastIndexByte(e.Path, '/')+1:] }

// Parent returns the parent directory of a path, or "" for a name in the root.
func Parent(path string) string { return path[:max(0, strings.LastIndexByte(path, '/'))] }

// Compare orders paths so that the contents of a directory directly follow it: like strings.Compare, with the slash before all
// other bytes.
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

// Within reports whether path is dir or is below it. Every path is within "", the root.
func Within(path, dir string) bool {
	return dir == "" || path == dir || len(path) > len(dir) && path[len(dir)] == '/' && path[:len(dir)] == dir
}

// Tree is a readable file tree: a build context or a root file system. Paths are as in Entry, and symbolic links are not
// followed. Implementations are safe for concurrent use.
type Tree interface {
	// Lookup returns the entry of a path, or false if it does not exist. The entry is never a Whiteout or Hardlink: every name of a
	// file is a File with the same LinkID.
	Lookup(path string) (Entry, bool, error)
	// List returns the entries of a directory as returned by Lookup, sorted by name.
	List(dir string) ([]Entry, error)
	// Sum fills in the attributes of the Files among entries, which came from this tree, that are determined by reading them: the
	// digest and, in a tree that may change, all other attributes. A File that was removed becomes a Whiteout.
	Sum(ctx context.Context, entries []*Entry) error
	// Open opens the bytes of a File or Hardlink of this tree.
	Open(e *Entry) (io.ReadCloser, error)
}

// InGitDir reports whether a path is, or is in, something named .git, which git records of no directory.
func InGitDir(path string) bool { return strings.Contains("/"+path+"/", "/.git/") }

// Canonical reduces an entry to what git records of a file: whether its owner may execute it, its bytes, and the target of a link. The mode
// of a file is then 0644 or 0755, that of a directory 0755; the owner is root, and the time is t.
func (e *Entry) Canonical(t time.Time) {
	executable := e.Type == Dir || e.Type == File && e.Mode&0o100 != 0
	switch {
	case e.Type == Symlink || e.Type == Whiteout:
	case executable:
		e.Mode = 0o755
	default:
		e.Mode = 0o644
	}
	e.UID, e.GID, e.ModTime, e.Xattrs, e.LinkID = 0, 0, t, nil, ""
}

// ChangedError is returned for a tree that has changed since something was planned with it. Path is the changed file, or "" if it
// is unknown.
type ChangedError struct{ Path string }

func (e *ChangedError) Error() string {
	if e.Path == "" {
		return "the files changed while they were read: build again when nothing writes to them"
	}
	return "/" + Clip(e.Path) + " changed while it was read: build again when nothing writes to it"
}

// Stale reports that the step can be retried if it is planned again.
func (e *ChangedError) Stale() bool { return true }

// KeepXattr reports whether an extended attribute is content: capabilities, and user and trusted attributes except those of
// overlayfs and those by which XFS represents access control lists. Others are dropped: labels belong to the security modules of
// one host, and no builder records access control lists.
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

// FileError is the error of an operation on a file of a layer, or of a root file system. It is not an *fs.PathError, whose path is one of
// the host.
type FileError struct {
	Op   string
	Path string
	Err  error
}

func (e *FileError) Error() string { return fmt.Sprintf("%s /%s: %v", e.Op, Clip(e.Path), e.Err) }

// Unwrap returns Err.
func (e *FileError) Unwrap() error { return e.Err }

// Join returns the path of a name in a directory. "" is the root.
func Join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// BadName returns the reason why a layer cannot contain a path, or "" if it can.
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
