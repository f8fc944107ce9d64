// Package part declares what the parts of kiln's root directory have in common, so that what measures, collects and checks the directory
// needs to know nothing else of them. Each part implements it beside its own code; see package store for who walks over them.
package part

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"path/filepath"
	"time"

	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/lock"
	"github.com/kilnbuild/kiln/internal/usage"
	"golang.org/x/sys/unix"
)

// Part is a part of the root directory. One value serves one walk, by one goroutine; other processes may use the part meanwhile.
type Part interface {
	// Name says what the part holds: "layers".
	Name() string
	// Items measures what can be removed. The end of ctx ends it with ctx's error.
	Items(ctx context.Context) iter.Seq2[Item, error]
	// InUse reports whether a live process relies on an item.
	InUse(Item) bool
	// Remove removes an item unless a live process relies on it. It reports whether it did.
	Remove(Item) (bool, error)
	// Check verifies all that the part holds.
	Check(context.Context, *Report) error
}

// Kind says what an Item is, in words for people.
type Kind string

// The kinds of items. Images that have a name are not removed, so they are none.
const (
	Image    Kind = "image"       // without a name
	Blob     Kind = "blob"        // of no image
	Layer    Kind = "layer"       // its files and manifest
	Entries  Kind = "entries"     // of a base image's layer
	Record   Kind = "record"      // of a step, with its log
	Log      Kind = "failed log"  // of a step that failed when it ran last
	Mount    Kind = "cache mount" //
	Git      Kind = "git mirror"
	HTTP     Kind = "http note"      // what a server said of a file
	Resolved Kind = "image note"     // what a registry said of an image
	Scan     Kind = "layer scan"     // which packages are in a layer
	Context  Kind = "context"        // digests of the files of a build context
	Received Kind = "client context" // files that a client sent
	Note     Kind = "note"           // which blob became which by compression
	Build    Kind = "build"          // its events, in the history
)

// Item is one thing that can be removed by itself.
type Item struct {
	Kind Kind
	// ID is the item's name in its part; that of an image or blob is its digest.
	ID string
	// Description is the step that made it, where that is known.
	Description string
	// Size is what it takes on disk in bytes. Used is when it was used last, within an hour.
	Size int64
	Used time.Time
	// Shared says that the item is more than cache: an image that has a name is made of it, or it is kept for the user to read.
	Shared bool

	// Layers are the layers that a record is of: without one of them it is of no use.
	Layers []string
	// Base is the layer that a layer needs; "" for none.
	Base string
	// DiffIDs are those of the tars that a layer is known to have become, in hexadecimal digits.
	DiffIDs []string
}

// Measure fills in size and time of an item that is one file. It reports false if there is none.
func (it *Item) Measure(path string) bool {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return false
	}
	it.Size, it.Used = usage.Stat(&st), time.Unix(st.Mtim.Sec, st.Mtim.Nsec)
	return true
}

// Reap deletes what lease.Remove or lease.Trash, whose results it takes, has taken away. It reports whether that was anything.
func Reap(gone string, ok bool, err error) (bool, error) {
	if !ok {
		return false, err
	}
	// What cannot be removed here is reported when the directory of the process is removed.
	_ = dirtree.Remove(filepath.Dir(gone))
	return true, err
}

// UnderLock calls f while the lock file is locked, which is removed afterwards if remove is set. It returns false if somebody holds it.
func UnderLock(file string, remove bool, f func() (bool, error)) (bool, error) {
	l, err := lock.Try(file, false)
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	gone, err := f()
	if remove {
		return gone, errors.Join(err, l.Remove())
	}
	return gone, errors.Join(err, l.Release())
}
