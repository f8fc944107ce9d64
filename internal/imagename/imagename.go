// Package imagename parses the names of images: in FROM, on the command line, and in the list of the image store. Its grammar is that of
// github.com/distribution/reference, and it completes short names as Docker does. There is no other parser of them.
package imagename

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
)

// DockerHub is the registry of names that name none.
const DockerHub = "docker.io"

const (
	// defaultTag is the tag of a name that has neither tag nor digest.
	defaultTag = "latest"
	// maxName bounds a name in bytes: a repository has 255 at most, a tag 128, a host name 253.
	maxName = 1024
	// maxRepository is the most that registries accept for a repository, in bytes.
	maxRepository = 255
	// reserved is the repository whose short names would be read as IDs: "sha256:" and digits. Docker makes no such name either.
	reserved = "library/sha256"
)

// Name is an image name in full.
type Name struct {
	// Registry is the name of the registry: "docker.io", "ghcr.io", "127.0.0.1:5000", "[::1]:5000".
	Registry string
	// Repository is the name in the registry: "library/debian".
	Repository string
	// Tag is "" only if there is a Digest.
	Tag string
	// Digest is "" if only the tag was given. Where it is given, the tag selects nothing.
	Digest digest.Digest
}

// Error is a name that is invalid.
type Error struct {
	// Name is what was parsed, Why what is wrong with it.
	Name, Why string
}

func (e *Error) Error() string {
	return fmt.Sprintf("invalid image reference %.200q: %s", e.Name, e.Why)
}

// Parse returns the image name s in full, as Docker completes short ones: "debian" is docker.io/library/debian:latest. The error is
// an *Error.
func Parse(s string) (Name, error) {
	bad := func(why string) (Name, error) { return Name{}, &Error{s, why} }
	if len(s) > maxName {
		return bad(fmt.Sprintf("it is longer than %d bytes", maxName))
	}
	var n Name
	rest, sum, pinned := strings.Cut(s, "@")
	if pinned && !IsDigest(sum) {
		return bad("the digest has to be an algorithm and hexadecimal digits, as sha256: and 64 of them")
	}
	repository, tag := SplitTag(rest)
	if repository != rest && !tagPattern().MatchString(tag) {
		return bad("a tag has letters, digits, underscores, points and dashes, at most 128")
	}
	n.Digest, n.Tag = digest.Digest(sum), tag
	if n.Tag == "" && !pinned {
		n.Tag = defaultTag
	}
	if hexPattern().MatchString(repository) {
		return bad("64 hexadecimal digits are the id of an image")
	}
	n.Registry, n.Repository = split(repository)
	switch {
	case !validRegistry(n.Registry):
		return bad("it does not begin with the name of a registry")
	case strings.ToLower(n.Repository) != n.Repository:
		return bad("the name has to be in lower case")
	case !repositoryPattern().MatchString(n.Repository):
		return bad("a name has lower-case letters and digits, with a point, dashes or an underscore between them")
	case n.Registry == DockerHub && n.Repository == reserved:
		return bad("sha256: begins the id of an image")
	case len(n.Repository) > maxRepository:
		return bad(fmt.Sprintf("the name in the registry is longer than %d bytes", maxRepository))
	}
	return n, nil
}

// split divides a name without tag and digest into registry and repository.
func split(s string) (registry, repository string) {
	registry, repository, ok := strings.Cut(s, "/")
	if !ok || registry != "localhost" && !strings.ContainsAny(registry, ".:") && strings.ToLower(registry) == registry {
		registry, repository = DockerHub, s
	}
	switch registry {
	case "index.docker.io", "registry-1.docker.io":
		registry = DockerHub
	}
	if registry == DockerHub && !strings.Contains(repository, "/") {
		repository = "library/" + repository
	}
	return registry, repository
}

// validRegistry reports whether s is the name or address of a host, with a port or without.
func validRegistry(s string) bool {
	if !registryPattern().MatchString(s) {
		return false
	}
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		_, err := strconv.ParseUint(s[i+1:], 10, 16)
		return err == nil
	}
	return true
}

// String returns "registry/repository[:tag][@digest]", which Parse reads back.
func (n Name) String() string {
	s := n.Name()
	if n.Tag != "" {
		s += ":" + n.Tag
	}
	if n.Digest != "" {
		s += "@" + string(n.Digest)
	}
	return s
}

// Name returns "registry/repository".
func (n Name) Name() string { return n.Registry + "/" + n.Repository }

// Familiar returns the name in its short form, without docker.io/library and the tag latest.
func (n Name) Familiar() string { return strings.TrimSuffix(n.FamiliarTagged(), ":"+defaultTag) }

// FamiliarTagged returns the name without docker.io/library, and with its tag.
func (n Name) FamiliarTagged() string {
	s := strings.TrimPrefix(n.String(), DockerHub+"/")
	if short, ok := strings.CutPrefix(s, "library/"); ok && !strings.Contains(short, "/") {
		s = short
	}
	return s
}

// SplitTag cuts the ":tag" off a name. The colon of a registry's port begins none.
func SplitTag(name string) (rest, tag string) {
	i := strings.LastIndex(name, ":")
	if i < 0 || strings.ContainsAny(name[i:], "/]") {
		return name, ""
	}
	return name[:i], name[i+1:]
}

// IsDigest reports whether s is a digest that a name or a checksum may have.
func IsDigest(s string) bool { return digestPattern().MatchString(s) }

// The patterns are compiled when they are first used: a build is often over before that would have paid.
var (
	digestPattern = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})$`)
	})
	hexPattern      = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9a-f]{64}$`) })
	tagPattern      = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`) })
	registryPattern = sync.OnceValue(func() *regexp.Regexp {
		const label = `[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?`
		return regexp.MustCompile(`^(\[[0-9a-fA-F:]+\]|` + label + `(\.` + label + `)*)(:[0-9]+)?$`)
	})
	repositoryPattern = sync.OnceValue(func() *regexp.Regexp {
		const part = `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
		return regexp.MustCompile(`^` + part + `(/` + part + `)*$`)
	})
)
