package registry

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/config"
	"github.com/opencontainers/go-digest"
)

// defaultTag is the tag of a name that has neither tag nor digest.
const defaultTag = "latest"

// maxReference bounds an image name in bytes: a repository has 255 at most, a tag 128, a host name 253.
const maxReference = 1024

// maxRepository is the most that registries take for a name with what is put before a short one, in bytes.
const maxRepository = 255

// Reference is an image name in full.
type Reference struct {
	// Registry is the registry's name: "docker.io", "ghcr.io", "127.0.0.1:5000".
	Registry string
	// Repository is the name in the registry: "library/debian".
	Repository string
	// Tag is "" only when there is a Digest.
	Tag string
	// Digest is "" when only the tag was given. Where it is given, the tag says nothing.
	Digest digest.Digest
}

// ParseReference returns the image name s in full, as Docker completes short ones: "debian" is
// docker.io/library/debian:latest.
func ParseReference(s string) (Reference, error) {
	r, err := parseReference(s)
	if err != nil {
		return Reference{}, fmt.Errorf("parse image name %.200q: %w", s, err)
	}
	return r, nil
}

func parseReference(s string) (Reference, error) {
	var r Reference
	if len(s) > maxReference {
		return r, fmt.Errorf("it is longer than %d bytes", maxReference)
	}
	base, sum, pinned := strings.Cut(s, "@")
	if pinned {
		d, err := cas.ParseDigest(sum)
		if err != nil {
			return r, err
		}
		r.Digest = d
	}
	tag, err := name.NewTag(base, name.WithDefaultTag(""))
	if err != nil {
		return r, err
	}
	r.Registry, r.Repository, r.Tag = tag.RegistryStr(), tag.RepositoryStr(), tag.TagStr()
	if len(r.Repository) > maxRepository {
		return r, fmt.Errorf("its repository, %.40s…, is longer than %d bytes", r.Repository, maxRepository)
	}
	if err := checkRegistry(r.Registry); err != nil {
		return r, err
	}
	// The library checks the characters alone; "a/../b" would lead elsewhere in an address.
	for part := range strings.SplitSeq(r.Repository, "/") {
		if part == "" || !alphanumeric(part[0]) || !alphanumeric(part[len(part)-1]) {
			return r, fmt.Errorf("%q in it does not begin and end with a letter or digit", part)
		}
	}
	if r.Tag != "" && !alphanumeric(r.Tag[0]) && r.Tag[0] != '_' {
		return r, fmt.Errorf("tag %q does not begin with a letter or digit", r.Tag)
	}
	if r.Tag == "" && !pinned {
		r.Tag = defaultTag
	}
	if r.Registry == name.DefaultRegistry || r.Registry == hubHost {
		r.Registry = config.DockerHub
	}
	return r, nil
}

// checkRegistry returns an error unless s is a host name or an address, with a port or without.
func checkRegistry(s string) error {
	host := s
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		host = s[:i]
		if _, err := strconv.ParseUint(s[i+1:], 10, 16); err != nil {
			return fmt.Errorf("%q in it is no port", s[i+1:])
		}
	}
	if !strings.HasPrefix(host, "[") && (host == "" || !alphanumeric(host[0]) || !alphanumeric(host[len(host)-1])) {
		return fmt.Errorf("%q in it is no host name", host)
	}
	return nil
}

func alphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// String returns "registry/repository[:tag][@digest]", which ParseReference reads back.
func (r Reference) String() string {
	s := r.Name()
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + string(r.Digest)
	}
	return s
}

// Name returns "registry/repository".
func (r Reference) Name() string { return r.Registry + "/" + r.Repository }

// identifier returns what names the manifest in an address.
func (r Reference) identifier() string {
	if r.Digest != "" {
		return string(r.Digest)
	}
	return r.Tag
}
