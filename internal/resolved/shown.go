package resolved

import (
	"os"
	"time"

	"github.com/opencontainers/go-digest"
)

// Shown are the documents that registries have shown to one user. It implements registry.Shown.
type Shown struct {
	names *Names
	user  digest.Digest
}

// To returns what registries have shown to a user, by any name.
func (n *Names) To(user string) *Shown { return &Shown{n, digest.FromString(user)} }

// note returns the note of a document, and where it is: no name of an image leads there.
func (s *Shown) note(repository string, d digest.Digest) (note, string) {
	return note{repository, d, s.user}, s.names.path(string(s.user) + " " + repository + "@" + string(d))
}

// Has reports whether the user has had the document with a digest from a repository, "registry/repository".
func (s *Shown) Has(repository string, d digest.Digest) bool {
	want, path := s.note(repository, d)
	if is, err := read(path); err != nil || is != want {
		return false
	}
	now := time.Now()
	_ = os.Chtimes(path, now, now) // what is used is kept; if this fails, it is asked for again one day
	return true
}

// Add notes that the user has had a document from a repository.
func (s *Shown) Add(repository string, d digest.Digest) error {
	is, path := s.note(repository, d)
	return s.names.write(path, is)
}
