// Package cachemount knows where cache mounts of steps lie in the root directory, what identifies one, and who uses it.
//
// A cache is a directory with its files in Files. Whoever uses it holds the lock of Lock in it, whose time is that of the last use. A
// private cache that is in use is replaced by another of the same id, with a number behind it.
package cachemount

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/lock"
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/internal/regularfile"
	"github.com/kilnbuild/kiln/internal/rootdir"
)

// The names in a cache's directory.
const (
	Files   = "fs"
	Lock    = "lock"
	Filling = "filling" // the lock of whoever makes Files
	about   = "about"   // an Identity as JSON

	unverified = "unverified" // an empty file: see Place
)

var names = part.NewPattern(`^[0-9a-f]{64}(-[0-9]+)?$`)

// Part returns the cache mounts in the root directory root as a part of it. trash is a directory of this process on the same file system.
func Part(root, trash string) part.Part {
	return &part.Files{Root: root, Dir: rootdir.Mounts, Trash: trash, Kind: part.Mount, Names: names, LockIn: Lock}
}

// Identity is what makes two mounts of steps the same cache, on any machine.
type Identity struct {
	// ID is that of RUN --mount=type=cache,id=ID, or else its target, below the namespace of BUILDKIT_CACHE_MOUNT_NS.
	ID string `json:"id"`
	// Mode, UID and GID are of the cache's first directory.
	Mode uint32 `json:"mode"`
	UID  int    `json:"uid"`
	GID  int    `json:"gid"`
	// From is the content of the files that the cache starts from; "" for none.
	From string `json:"from,omitempty"`
}

// Key returns the name of the cache's directory: 64 hexadecimal digits.
func (i Identity) Key() string {
	name := fmt.Sprintf("%s\n%o %d:%d", i.ID, i.Mode, i.UID, i.GID)
	if i.From != "" {
		name += "\n" + i.From
	}
	return fmt.Sprintf("%x", sha256.Sum256([]byte(name)))
}

// SameID reports whether an ID is what a user calls it. A target is an ID without a slash at its end, whatever a user puts there.
func SameID(id, given string) bool {
	return id == given || strings.HasPrefix(given, "/") && id == path.Clean(given)
}

// maxAbout bounds the file about, in bytes.
const maxAbout = 64 << 10

// Describe notes in a cache's directory which cache it is, unless that is known. It is for people, so that it cannot be noted is no error.
func Describe(dir string, id Identity) {
	name := filepath.Join(dir, about)
	if _, err := os.Lstat(name); err == nil {
		return
	}
	data, err := json.Marshal(id)
	if err == nil && len(data) <= maxAbout {
		_ = os.WriteFile(name, data, 0o600) // see above
	}
}

// Cache is a cache mount in the root directory.
type Cache struct {
	// Name is that of its directory: the Key of its Identity and, for a further private one, a number.
	Name string
	// Identity is empty if it is not known, since an earlier kiln made the cache.
	Identity
	Used time.Time
}

// Dir returns the cache's directory.
func (c *Cache) Dir(root string) string { return filepath.Join(root, rootdir.Mounts, c.Name) }

// List returns the cache mounts in the root directory root, sorted by name.
func List(root string) ([]Cache, error) {
	entries, err := os.ReadDir(filepath.Join(root, rootdir.Mounts))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []Cache
	for _, e := range entries {
		if !names.MatchString(e.Name()) {
			continue
		}
		c := Cache{Name: e.Name()}
		info, err := os.Lstat(filepath.Join(c.Dir(root), Lock))
		if err != nil {
			continue // it was removed just now
		}
		c.Used = info.ModTime()
		c.Identity = described(c.Dir(root), e.Name())
		all = append(all, c)
	}
	return all, nil
}

// described returns what Describe has noted of the cache in dir, if that is of the given name.
func described(dir, name string) Identity {
	data, err := regularfile.Read(filepath.Join(dir, about), maxAbout)
	var id Identity
	key, _, _ := strings.Cut(name, "-")
	if err != nil || json.Unmarshal(data, &id) != nil || id.Key() != key {
		return Identity{}
	}
	return id
}

// Place gives a cache whose directory is dir the files of the directory fresh, on the same file system, in one step: it has all of them, or
// what it had. That is an error wrapping fs.ErrExist if it has files. verified says that it is known who made the files: see Verified.
func Place(fresh, dir string, verified bool) error {
	note := filepath.Join(dir, unverified)
	err := os.WriteFile(note, nil, 0o600)
	if verified {
		err = Forget(dir)
	}
	if err == nil {
		err = unix.Rename(fresh, filepath.Join(dir, Files)) // an empty directory is replaced, which os.Rename refuses
	}
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		return fs.ErrExist
	}
	if err != nil {
		return &fs.PathError{Op: "place", Path: dir, Err: err}
	}
	return nil
}

// ErrInUse is returned for a cache mount that a build uses.
var ErrInUse = errors.New("a build uses it: try again when that has ended")

// Fill makes the cache with an identity in the root directory root of the files in the directory fresh, on the same file system. The error
// is ErrInUse if a step uses it, and wraps fs.ErrExist if it has files.
func Fill(root, fresh string, id Identity) error {
	for {
		dir := filepath.Join(root, rootdir.Mounts, id.Key())
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		l, err := lock.Try(filepath.Join(dir, Lock), false)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was pruned just now
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			return ErrInUse
		}
		if err != nil {
			return err
		}
		Describe(dir, id)
		return errors.Join(Place(fresh, dir, true), l.Release())
	}
}

// Verified reports whether all files of the cache in the directory dir come from steps that ran here, or from whom the user trusts.
func Verified(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, unverified))
	return errors.Is(err, fs.ErrNotExist)
}

// Forget says that the cache in the directory dir has none of the files any more that it had.
func Forget(dir string) error {
	err := os.Remove(filepath.Join(dir, unverified))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Empty reports whether the cache in the directory dir has no files.
func Empty(dir string) (bool, error) {
	f, err := os.OpenFile(filepath.Join(dir, Files), unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	names, _ := f.Readdirnames(1) // an error is io.EOF, or comes again when the files are used
	return len(names) == 0, nil
}
