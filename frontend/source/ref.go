// Package source reads what a Dockerfile and --build-context name: images, git repositories, files of HTTP servers, directories.
package source

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
)

// NormalizeRef returns the whole reference for an image name as a Dockerfile has it: "debian" is
// "docker.io/library/debian:latest". The grammar is that of github.com/distribution/reference.
func NormalizeRef(s string) (string, error) {
	bad := func(why string) error { return fmt.Errorf("invalid image reference %q: %s", s, why) }
	name, digest, hasDigest := strings.Cut(s, "@")
	if hasDigest && !digestPattern().MatchString(digest) {
		return "", bad("the digest has to be sha256: and 64 hexadecimal digits")
	}
	repository, tag := SplitTag(name)
	if hasTag := repository != name; hasTag && !tagPattern().MatchString(tag) {
		return "", bad("a tag has letters, digits, underscores, points and dashes, at most 128")
	}
	domain, path, ok := strings.Cut(repository, "/")
	if !ok || domain != "localhost" && !strings.ContainsAny(domain, ".:") && strings.ToLower(domain) == domain {
		domain, path = "docker.io", repository
	}
	if domain == "index.docker.io" {
		domain = "docker.io"
	}
	if domain == "docker.io" && !strings.Contains(path, "/") {
		path = "library/" + path
	}
	if !domainPattern().MatchString(domain) {
		return "", bad("it does not begin with the name of a registry")
	}
	if strings.ToLower(path) != path {
		return "", bad("the name has to be in lower case")
	}
	if !pathPattern().MatchString(path) || len(path) > 255 {
		return "", bad("a name has lower-case letters and digits, with a point, dashes or an underscore between them")
	}
	ref := domain + "/" + path
	if tag != "" {
		ref += ":" + tag
	} else if !hasDigest {
		ref += ":latest"
	}
	if hasDigest {
		ref += "@" + digest
	}
	return ref, nil
}

// FamiliarName returns an image name in its short form, without docker.io/library and the tag latest: the names of named
// contexts are compared in it. What is no image name is returned as it is.
func FamiliarName(name string) string {
	ref, err := NormalizeRef(name)
	if err != nil {
		return name
	}
	ref = strings.TrimPrefix(ref, "docker.io/")
	if short, ok := strings.CutPrefix(ref, "library/"); ok && !strings.Contains(short, "/") {
		ref = short
	}
	return strings.TrimSuffix(ref, ":latest")
}

// SplitTag cuts the ":tag" off a name; the colon of a registry's port is none.
func SplitTag(name string) (rest, tag string) {
	i := strings.LastIndex(name, ":")
	if i < 0 || strings.Contains(name[i:], "/") {
		return name, ""
	}
	return name[:i], name[i+1:]
}

// The patterns are compiled when they are first used: a build is often over before that would have paid.
var (
	digestPattern = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})$`)
	})
	tagPattern    = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`) })
	domainPattern = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*)(:[0-9]+)?$`)
	})
	pathPattern = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	})
)
