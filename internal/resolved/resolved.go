// Package resolved remembers what registries said of images. What the names of images stood for when their registries were asked last is
// for all, so that an image that is in the store can be used while its registry does not answer. Which manifests a registry has shown to a
// client of a daemon is for that client's user. Like the image store it is shared by all processes that use a root directory.
package resolved

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/kilnbuild/kiln/internal/atomicfile"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/internal/regularfile"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/opencontainers/go-digest"
)

// maxNote bounds a note in bytes: it has a name and digests.
const maxNote = 16 << 10

// Names remembers names of images in a root directory. Its methods may be called from several goroutines.
type Names struct {
	dir, tmp string
}

// note is the file of one name, or of one document that a user has had. Its mtime is when the registry was asked, or when the user last
// relied on it.
type note struct {
	Name   string
	Digest digest.Digest
	// User is the digest of the user's name; "" in the note of a name, which is for all.
	User digest.Digest `json:",omitempty"`
}

// In returns the names of the root directory root. Files are made in tmp, a directory of this process on the same file system.
func In(root, tmp string) *Names {
	return &Names{dir: filepath.Join(root, rootdir.Resolved), tmp: tmp}
}

// Part returns the names of the root directory root as a part of it. trash is a directory of this process on the same file system.
func Part(root, trash string) part.Part {
	return &part.Files{
		Root: root, Dir: rootdir.Resolved, Trash: trash, Kind: part.Resolved, Names: part.Hash,
		Sound:  func(path string) error { _, err := read(path); return err },
		Effect: "the image cannot be used before its registry has answered",
	}
}

func (n *Names) path(name string) string {
	sum := sha256.Sum256([]byte(name))
	return filepath.Join(n.dir, hex.EncodeToString(sum[:]))
}

// Remember notes that a name, in full and with a tag, stands for the manifest or index with a digest now.
func (n *Names) Remember(name string, d digest.Digest) error {
	path := n.path(name)
	is := note{Name: name, Digest: d}
	if old, err := read(path); err == nil && old == is {
		now := time.Now()
		return os.Chtimes(path, now, now)
	}
	return n.write(path, is)
}

func (n *Names) write(path string, is note) error {
	data, err := json.Marshal(is)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return err
	}
	return atomicfile.WriteBytes(path, n.tmp, data)
}

// Recall returns what a name stood for when Remember was called last, and when that was. It returns false if that is not known.
func (n *Names) Recall(name string) (d digest.Digest, at time.Time, ok bool) {
	path := n.path(name)
	info, err := os.Stat(path)
	if err != nil {
		return "", time.Time{}, false
	}
	known, err := read(path)
	return known.Digest, info.ModTime(), err == nil && known.Name == name
}

func read(path string) (note, error) {
	var n note
	data, err := regularfile.Read(path, maxNote)
	if err != nil {
		return n, err
	}
	if json.Unmarshal(data, &n) != nil || n.Name == "" {
		return n, errors.New("it is not a note of an image's name")
	}
	_, err = cas.ParseDigest(string(n.Digest))
	return n, err
}
