// Package source reads what a Dockerfile and --build-context name: images, git repositories, files of HTTP servers, directories.
package source

import "github.com/kilnbuild/kiln/internal/imagename"

// NormalizeRef returns an image name of a Dockerfile in full: "debian" is "docker.io/library/debian:latest".
func NormalizeRef(s string) (string, error) {
	n, err := imagename.Parse(s)
	if err != nil {
		return "", err
	}
	return n.String(), nil
}

// FamiliarName returns an image name in its short form: the names of named contexts are compared in it. What is not an image name is
// returned as it is.
func FamiliarName(name string) string {
	n, err := imagename.Parse(name)
	if err != nil {
		return name
	}
	return n.Familiar()
}
