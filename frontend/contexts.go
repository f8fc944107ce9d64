package frontend

import (
	"fmt"
	"strings"

	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/llb"
)

// namedContext is a --build-context that stands for a stage or an image.
type namedContext struct {
	// name is the key in Options.NamedContexts.
	name string
	// dir is set for a directory, remote for files from elsewhere: an llb.Git or llb.HTTP. Else the context is an image, the
	// empty one if ref is "scratch".
	dir         bool
	remote      llb.Op
	ref, layout string
	// replacesStage says that the context stands for a whole stage, and not only for the image that a FROM names.
	replacesStage bool
}

// namedContext returns the context for a stage or image name, nil for none. A context "name::os/architecture" is for that
// platform alone.
func (b *builder) namedContext(name string, p llb.Platform) (*namedContext, error) {
	if len(b.opts.NamedContexts) == 0 || strings.EqualFold(name, "scratch") || strings.EqualFold(name, "context") {
		return nil, nil
	}
	want := familiarName(name)
	var found, value string
	for key, v := range b.opts.NamedContexts {
		ref, platform, ok := strings.Cut(key, "::")
		if familiarName(ref) != want {
			continue
		}
		if ok {
			kp, err := llb.ParsePlatform(platform, b.opts.BuildPlatform)
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
	return parseContext(found, value)
}

// parseContext reads the value of a --build-context.
func parseContext(name, value string) (*namedContext, error) {
	c := &namedContext{name: name}
	scheme, rest, _ := strings.Cut(value, "://")
	switch {
	case scheme == "docker-image" && rest == "scratch":
		c.ref = "scratch"
	case scheme == "docker-image":
		ref, err := normalizeRef(rest)
		if err != nil {
			return nil, fmt.Errorf("named context %s: %w", name, err)
		}
		c.ref = ref
	case scheme == "oci-layout":
		dir, digest, isDigest := strings.Cut(rest, "@")
		dir, tag := splitTag(dir)
		c.layout, c.ref = dir, digest
		if !isDigest {
			c.ref = tag
		}
		if c.ref == "" {
			c.ref = "latest"
		}
		if c.layout == "" {
			return nil, fmt.Errorf("named context %s: %q names no directory", name, value)
		}
	case isGit(value):
		source, err := remoteurl.ParseGit(value)
		if err != nil {
			return nil, fmt.Errorf("named context %s: %w", name, err)
		}
		c.remote = GitContext(source)
	case isHTTP(value):
		op, err := httpOp(value, "context")
		if err != nil {
			return nil, fmt.Errorf("named context %s: %w", name, err)
		}
		c.remote = op
	case strings.HasPrefix(value, "target:") || strings.HasPrefix(value, "input:"):
		return nil, unsupported("the named context %s=%s: a context from another target", name, value)
	default:
		c.dir = true
	}
	return c, nil
}

// contextOutput returns the output whose files a context that is no image has.
func (b *builder) contextOutput(c *namedContext) llb.Output {
	meta := func(text string) llb.Meta {
		return llb.Meta{Place: llb.Place{Project: b.opts.Project, Group: "context " + c.name}, Text: text}
	}
	switch op := c.remote.(type) {
	case llb.Git:
		return b.graph.Add(op, meta("load git source "+gitName(op)), b.scratch()).Output(0)
	case llb.HTTP:
		file := b.graph.Add(op, meta("download "+remoteurl.Shown(op.URL)), b.scratch()).Output(0)
		return b.graph.Add(UnpackContext(op.Filename), meta("unpack "+remoteurl.Shown(op.URL)), b.scratch(), file).Output(0)
	}
	return b.graph.Add(llb.Local{Name: c.name}, meta("load from client")).Output(0)
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

// IsDirContext says whether the value of a --build-context is a directory of the client.
func IsDirContext(value string) bool {
	c, err := parseContext("", value)
	return err == nil && c.dir
}
