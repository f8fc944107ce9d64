// Package material describes what a build took from elsewhere: base images, files of servers, commits. It does not know who fetches them,
// nor who asks.
package material

import (
	"cmp"
	"maps"
	"slices"
	"sync"
)

// Kind is what a material is.
type Kind string

// The kinds of materials.
const (
	// Image is an image of a registry, or of the image store under such a name.
	Image Kind = "image"
	// Layout is an image of an OCI layout in a directory.
	Layout Kind = "oci-layout"
	// File is a file from an http or https address.
	File Kind = "http"
	// Git is the tree of a commit.
	Git Kind = "git"
	// Blob is a blob of a repository of images, and LayoutBlob one of an OCI layout of a client.
	Blob       Kind = "image-blob"
	LayoutBlob Kind = "oci-layout-blob"
)

// Material is one thing that a build took from elsewhere. It has no credentials.
type Material struct {
	Kind Kind
	// Name is what was asked for: the name of an image in full, "docker.io/library/debian:bookworm"; "DIR:TAG" or "DIR@DIGEST" of an OCI
	// layout; a URL; the address of a repository, with the ref if one was named, "https://host/r.git#v1"; and that of an image repository with
	// the digest of the blob.
	Name string
	// Digest is that of what Name stood for: "sha256:…" of the index or manifest of an image, and of a file; "sha1:…" or "sha256:…" and the
	// hash of a commit.
	Digest string
	// Platform is the one that an image was taken for, as llb.Platform prints it, and Manifest the digest of its manifest, which is Digest
	// unless that is an index's. "" for other kinds.
	Platform, Manifest string
	// Ref is the full name of the ref that a commit was found by, "refs/tags/v1", and Object the hash of what that names, which is an
	// annotated tag or the commit. Both are "" if the commit was named by its hash, and for other kinds.
	Ref, Object string
	// BundleOf is the Name of the commit that a blob is a git bundle of; "" for none.
	BundleOf string
}

// Commit returns the digest of a commit.
func Commit(hash string) string {
	if len(hash) == 64 {
		return "sha256:" + hash
	}
	return "sha1:" + hash
}

// Set is a set of materials. Its zero value is empty. Its methods may be called from several goroutines.
type Set struct {
	mu  sync.Mutex
	all map[Material]bool
}

// Add adds a material, unless the set has it.
func (s *Set) Add(m Material) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[Material]bool{}
	}
	s.all[m] = true
}

// Sorted returns the materials by kind, name and platform.
func (s *Set) Sorted() []Material {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Keys(s.all), func(a, b Material) int {
		return cmp.Or(
			cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Platform, b.Platform), cmp.Compare(a.Digest, b.Digest),
			cmp.Compare(a.Ref, b.Ref), cmp.Compare(a.Manifest, b.Manifest), cmp.Compare(a.Object, b.Object),
			cmp.Compare(a.BundleOf, b.BundleOf),
		)
	})
}
