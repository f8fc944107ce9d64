// Package contexts brings in what a build reads: the build context, named contexts and the Dockerfile, from directories of the client,
// standard input, http and https, and git.
package contexts

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/frontend/source"
	"github.com/kilnbuild/kiln/internal/ignore"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/reach"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/registry/layout"
)

// Source says where a build reads from. Paths on the client are absolute: see Absolute.
type Source struct {
	// Context is the build context: a directory, the address of a git repository or of an archive or Dockerfile, or "-" for an archive or
	// Dockerfile on Stdin.
	Context string
	// Subdir is the directory of a Context that is no directory of the client which counts alone; "" for all.
	Subdir string
	// Dockerfile is the path of the file; "" for the one in the context, as DockerfilePath finds it. It is relative to the root of a
	// context that is not a directory. An http or https address, and "-" for Stdin, stand for a file from there.
	Dockerfile string
	// Stdin is read where Context or Dockerfile say so.
	Stdin io.Reader
	// Named are the named contexts: a directory, docker-image://REF, oci-layout://PATH[:TAG][@DIGEST], the address of a git repository or
	// of an archive or file, by name.
	Named map[string]string
	// Given is a Dockerfile that was read elsewhere. It takes the place of Dockerfile, and directories are opened by whoever gave it. nil for
	// none.
	Given *Given
}

// Given is a Dockerfile that was read elsewhere.
type Given struct {
	// Text is what it says, and Name what errors call it.
	Text []byte
	Name string
	// Ignore is the .dockerignore of the build context; nil for none.
	Ignore *ignore.Matcher
	// Project is what tells the steps of one build context from those of another.
	Project string
}

// Stdin stands for standard input as a context and as a Dockerfile.
const Stdin = "-"

// Main is the name of the build context among those of llb.Local.
const Main = "context"

// Local reports whether the build context is a directory of the client.
func (s *Source) Local() bool { return isDir(s.Context) }

// isDir reports whether a build context is a directory of the client.
func isDir(context string) bool {
	return context != Stdin && !remoteurl.IsGitContext(context) && !remoteurl.IsHTTP(context)
}

// OfClient reports whether the build context, and the Dockerfile, are of the client: a directory, a file, or standard input.
func (s *Source) OfClient() (context, dockerfile bool) {
	context = isDir(s.Context) || s.Context == Stdin
	return context, s.Dockerfile == Stdin || context && !remoteurl.IsHTTP(s.Dockerfile)
}

// Dir returns the directory of the client that is the build context; "" if it is something else.
func (s *Source) Dir() string {
	if !isDir(s.Context) || s.Given != nil {
		return ""
	}
	return s.Context
}

// Check reports whether a build context, or the value of a named one, is a directory of the client. The error is that
// of an address that cannot be read.
func Check(context string) (dir bool, err error) {
	switch {
	case context == Stdin:
	case remoteurl.IsGitContext(context):
		_, err = remoteurl.ParseGitContext(context)
	case remoteurl.IsHTTP(context):
		_, err = remoteurl.ParseHTTP(context)
	case strings.Contains(context, "://"):
		scheme, _, _ := strings.Cut(context, "://")
		err = fmt.Errorf("a context from %s:// is not supported; there are directories, http, https and git, ssh among them", scheme)
	default:
		return true, nil
	}
	return false, err
}

// Absolute makes the paths absolute that are relative to the working directory. It is called before that changes.
func (s *Source) Absolute() error {
	var failed error
	abs := func(path *string) {
		if *path != Stdin && failed == nil {
			failed = rootdir.Absolute(path)
		}
	}
	if isDir(s.Context) {
		abs(&s.Context)
		if !elsewhere(s.Dockerfile) {
			abs(&s.Dockerfile)
		}
	}
	contexts := map[string]string{}
	for name, value := range s.Named {
		if dir, ok := strings.CutPrefix(value, layout.Scheme); ok {
			abs(&dir)
			value = layout.Scheme + dir
		} else if source.IsDirContext(value) {
			abs(&value)
		}
		contexts[name] = value
	}
	s.Named = contexts
	return failed
}

// Project returns what tells the steps of one build context from those of another with a Dockerfile of the same name: the directory, or
// the address without credentials.
func (s *Source) Project() string {
	if s.Given != nil && isDir(s.Context) {
		return s.Given.Project
	}
	if !isDir(s.Context) {
		address, _, _ := strings.Cut(remoteurl.WithoutUser(s.Context), "#") // a branch or commit makes no other project
		return address
	}
	if abs, err := filepath.Abs(s.Context); err == nil {
		return abs
	}
	return s.Context
}

// DockerfilePath returns the path of the Dockerfile: the option, or Dockerfile or dockerfile in the context, whichever
// is there first. The error, an *input.Error, says that neither is.
func (s *Source) DockerfilePath() (string, error) {
	if s.Dockerfile != "" {
		return s.Dockerfile, nil
	}
	for _, name := range []string{"Dockerfile", "dockerfile"} {
		path := filepath.Join(s.Context, name)
		_, err := os.Stat(path)
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", &input.Error{Err: fmt.Errorf("look for the Dockerfile: %w", err)}
		}
	}
	return "", &input.Error{Err: s.noDockerfile()}
}

// HostLimit returns how far in the hosts may be that ADD names. A Dockerfile from another machine is somebody else's: it names none that a
// RUN could not reach, and none closer than where it came from. Those that the user named may be anywhere.
func (s *Source) HostLimit() reach.Limit {
	from := s.Context
	if elsewhere(s.Dockerfile) {
		from = s.Dockerfile
	}
	origin := hostOf(from)
	if origin == "" {
		return nil
	}
	named := []string{origin, hostOf(s.Context)}
	for _, value := range s.Named {
		named = append(named, hostOf(value))
	}
	found := reach.NewTransports(&http.Transport{}, net.Dialer{})
	return func(ctx context.Context, host string) reach.Scope {
		if slices.ContainsFunc(named, func(n string) bool { return strings.EqualFold(n, host) }) {
			return reach.Anywhere
		}
		return max(reach.Private, found.Find(ctx, origin).Low)
	}
}

// hostOf returns the host that an address names, without its port; "" for what is on the client.
func hostOf(address string) string {
	switch {
	case remoteurl.IsGitContext(address):
		if g, err := remoteurl.ParseGitContext(address); err == nil {
			return g.Hostname()
		}
	case remoteurl.IsHTTP(address):
		if u, err := url.Parse(address); err == nil {
			return u.Hostname()
		}
	}
	return ""
}
