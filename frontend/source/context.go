package source

import (
	"errors"
	"fmt"
	"strings"

	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/parser"
)

// Context is the value of a --build-context, which stands for a stage or an image.
type Context struct {
	// Name is its name, with the platform if it has one.
	Name string
	// Dir is set for a directory of the client.
	Dir bool
	// Remote is set for files from elsewhere: an llb.Git or llb.HTTP.
	Remote llb.Op
	// Input names a root file system that was made elsewhere.
	Input string
	// Ref and Layout name an image, as those of an llb.Image, where none of the others is set; Ref is "scratch" for the empty one.
	Ref, Layout string
}

// FindContext returns the context for a stage or image name among values by name, as those of --build-context; nil for none. A
// context "name::os/architecture" is for that platform alone; build completes such a platform.
func FindContext(contexts map[string]string, name string, p, build llb.Platform) (*Context, error) {
	if len(contexts) == 0 || strings.EqualFold(name, "scratch") || strings.EqualFold(name, mainContext) {
		return nil, nil
	}
	want := FamiliarName(name)
	var found, value string
	for key, v := range contexts {
		ref, platform, ok := strings.Cut(key, "::")
		if FamiliarName(ref) != want {
			continue
		}
		if ok {
			kp, err := llb.ParsePlatform(platform, build)
			if err != nil {
				return nil, fmt.Errorf("named context %s: %w", key, err)
			}
			if kp != p.Normalize() {
				continue
			}
			found, value = key, v
			break
		}
		// Of two spellings of one name the first in order is taken, whatever the map's order is.
		if found == "" || key < found {
			found, value = key, v
		}
	}
	if found == "" {
		return nil, nil
	}
	c, err := parseContext(found, value)
	if err == nil && c.Dir && c.Name == mainContext {
		return nil, fmt.Errorf("the named context %s=%s: give the directory another name, this one is the build context's", found, value)
	}
	return c, err
}

// mainContext is the name of the directory that is the build context. A stage of that name is never replaced.
const mainContext = "context"

// parseContext reads the value of a --build-context.
func parseContext(name, value string) (*Context, error) {
	c := &Context{Name: name}
	scheme, rest, _ := strings.Cut(value, "://")
	switch {
	case scheme == "docker-image" && rest == "scratch":
		c.Ref = "scratch"
	case scheme == "docker-image":
		ref, err := NormalizeRef(rest)
		if err != nil {
			return nil, fmt.Errorf("named context %s: %w", name, err)
		}
		c.Ref = ref
	case scheme == "oci-layout":
		dir, digest, isDigest := strings.Cut(rest, "@")
		dir, tag := imagename.SplitTag(dir)
		c.Layout, c.Ref = dir, digest
		if !isDigest {
			c.Ref = tag
		}
		if c.Ref == "" {
			c.Ref = "latest"
		}
		if c.Layout == "" {
			return nil, fmt.Errorf("named context %s: %q names no directory", name, value)
		}
	case remoteurl.IsGit(value):
		remote, err := remoteurl.ParseGit(value)
		if err != nil {
			return nil, fmt.Errorf("named context %s: %w", name, err)
		}
		c.Remote = GitContext(remote)
	case remoteurl.IsHTTP(value):
		op, err := httpOp(value, "context")
		if err != nil {
			return nil, fmt.Errorf("named context %s: %w", name, err)
		}
		c.Remote = op
	case strings.HasPrefix(value, "input:"):
		c.Input = strings.TrimPrefix(value, "input:")
	case strings.HasPrefix(value, "target:"):
		return nil, &parser.Error{
			Msg: fmt.Sprintf("the named context %s=%s: a context from another target is not supported yet", name, value), Err: errors.ErrUnsupported,
		}
	default:
		c.Dir = true
	}
	return c, nil
}

// GitContext returns the op that fetches a repository which the user named as a context.
func GitContext(s *remoteurl.Git) llb.Git {
	op := gitOp(s)
	op.Context = true
	return op
}

// UnpackContext returns the op that makes a context of the file filename in input 1: what is in it if it is an archive,
// else the file itself. Everything belongs to root, as in a directory of the client.
func UnpackContext(filename string) llb.File {
	epoch := int64(0)
	return llb.File{Actions: []llb.Action{{Copy: &llb.Copy{
		Sources:    []llb.CopySource{{Input: 1, Path: "/" + filename, Unpack: true}},
		Dest:       "/",
		Attributes: llb.Attributes{Chown: "0:0", Epoch: &epoch},
	}}}}
}

// IsDirContext reports whether the value of a --build-context is a directory of the client.
func IsDirContext(value string) bool {
	c, err := parseContext("", value)
	return err == nil && c.Dir
}
