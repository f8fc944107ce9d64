package build

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/frontend/source"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/sshagent"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/registry/layout"
)

// Options say what one build has to do. They are checked values, as far as they can be checked without looking at files:
// names are in full, environment variables are resolved. Paths on the client are absolute: see Absolute.
type Options struct {
	// ContextDir is the build context: a directory, the address of a git repository or of an archive or Dockerfile, or "-" for
	// an archive or Dockerfile on Stdin.
	ContextDir string
	// Dockerfile is the file's path; "" for the one in the context, as DockerfilePath finds it. It is relative to the root of a
	// context that is no directory. An http or https address and "-", for Stdin, stand for a file from there.
	Dockerfile string
	// Stdin is read where ContextDir or Dockerfile say so.
	Stdin io.Reader
	// Tags are names for the image, each a valid reference without digest, as written: "app", "registry:5000/app:v1".
	Tags []string
	// Target names the stage to build; "" for the last one.
	Target string
	// BuildArgs are values of ARG, SOURCE_DATE_EPOCH included.
	BuildArgs map[string]string
	// BuildContexts are named contexts: a directory, docker-image://REF, oci-layout://PATH[:TAG][@DIGEST], the address of a git
	// repository or of an archive or file, by name.
	BuildContexts map[string]string
	// NoCache makes every step run; NoCacheFilter those of the stages it names.
	NoCache       bool
	NoCacheFilter []string
	// FreshCaches has cache mounts begin empty.
	FreshCaches bool
	// Pull asks the registry about images even where the store has them.
	Pull bool
	// Platforms are what to build for, normalised, without repeats; empty for the machine's own.
	Platforms []llb.Platform
	// Labels are added to the image's.
	Labels map[string]string
	// Annotations are for every output that is an image, after those of its own.
	Annotations []exporter.Annotation
	// Outputs are what becomes of the result; empty to put it in the store alone.
	Outputs []Output
	// IIDFile is a file that the image's id is written to; "" for none.
	IIDFile string
	// MetadataFile is a file for the result's digests and names, as JSON; "" for none.
	MetadataFile string
	// Network is that of steps whose RUN names none; NetworkDefault where the user named none.
	Network    llb.Network
	ExtraHosts []llb.ExtraHost
	Ulimits    []llb.Ulimit
	// ShmSize is the size of steps' /dev/shm in bytes; 0 for the default.
	ShmSize int64
	// CgroupParent is the control group that steps' groups are made in; "" for none.
	CgroupParent string
	// Limits bound each step; what they do not name, kiln.toml may.
	Limits Limits
	// Userns is which ids RUN has, as CheckUserns takes it; "" for what kiln.toml says.
	Userns string
	// NoProcessSandbox lets each RUN see kiln's own /proc, for containers in which none can be mounted; kiln.toml may say so as well.
	NoProcessSandbox bool
	// Allow are the entitlements granted to the build: "network.host", "security.insecure", "device", "device=NAME".
	Allow   []string
	Secrets []Secret
	// Agents are ssh agents by id, for RUN --mount=type=ssh; the one called "default" also for git over ssh.
	Agents map[string]*sshagent.Agent
	// Debug says also what need not concern the user.
	Debug bool
	// Explain says of each step that ran why it did.
	Explain bool
	// VerifyCache runs steps again that are cached, and tells whether they make the same; what is in the cache is used.
	VerifyCache bool
	// Check asks for the Dockerfile's warnings in place of a build.
	Check bool
	// Describe asks for a description of the Dockerfile in place of a build: "outline" or "targets"; "" for none.
	Describe string
}

// Absolute makes the paths absolute that are relative to the working directory. It is called before that changes.
func (o *Options) Absolute() error {
	var failed error
	abs := func(path *string) {
		if *path == "" || *path == stdin || failed != nil {
			return
		}
		*path, failed = filepath.Abs(*path)
	}
	if isDir(o.ContextDir) {
		abs(&o.ContextDir)
		if !elsewhere(o.Dockerfile) {
			abs(&o.Dockerfile)
		}
	}
	contexts := map[string]string{}
	for name, value := range o.BuildContexts {
		if dir, ok := strings.CutPrefix(value, layout.Scheme); ok {
			abs(&dir)
			value = layout.Scheme + dir
		} else if source.IsDirContext(value) {
			abs(&value)
		}
		contexts[name] = value
	}
	o.BuildContexts = contexts
	for i := range o.Outputs {
		abs(&o.Outputs[i].Dest)
	}
	for i := range o.Secrets {
		abs(&o.Secrets[i].Src)
	}
	abs(&o.IIDFile)
	abs(&o.MetadataFile)
	return failed
}

// OutputType is a kind of Output.
type OutputType string

// The types of --output. "image" with push=true is OutputRegistry: they ask for the same.
const (
	// OutputImage puts the image into the store.
	OutputImage OutputType = "image"
	// OutputRegistry pushes the image and gives it no name in the store.
	OutputRegistry OutputType = "registry"
	// OutputDocker writes a tar that docker load reads; with no Dest the image is loaded into the store.
	OutputDocker OutputType = "docker"
	// OutputOCI writes an OCI image layout: a tar, or with tar=false a directory.
	OutputOCI OutputType = "oci"
	// OutputLocal writes the root file system's files to a directory.
	OutputLocal OutputType = "local"
	// OutputTar writes the root file system as a tar.
	OutputTar OutputType = "tar"
	// OutputCacheOnly fills the cache and keeps no image.
	OutputCacheOnly OutputType = "cacheonly"
)

// Output is one thing to do with the result.
type Output struct {
	Type OutputType
	// Dest is a file or directory; "-" is standard output, "" none. OutputOCI, OutputLocal and OutputTar always have one.
	Dest string
	// Attrs are the other keys of --output, in lower case, as written: "name", "compression", "tar", …
	Attrs map[string]string
}

// Secret is a secret that RUN --mount=type=secret can ask for by ID. Exactly one of Src, a file's path, and Env, an
// environment variable's name, says where it is.
type Secret struct {
	ID  string
	Src string
	Env string
}

// Warning is what a check found in a Dockerfile.
type Warning struct {
	// Rule is the check's name, for example "JSONArgsRecommended".
	Rule string
	// Message says what is wrong with this Dockerfile; Description what the rule is about; URL where to read more.
	Message     string
	Description string
	URL         string
	Location    llb.Location
	// Advice says that BuildKit has no such check, so that it alone makes no check fail.
	Advice bool
}

// CheckTag returns an error unless s can be a new image's name: "app", "registry:5000/app:v1", without digest.
func CheckTag(s string) error {
	r, err := imagename.Parse(s)
	if err != nil {
		return err
	}
	if r.Digest != "" {
		return fmt.Errorf("%q has a digest, which is not for the user to choose", s)
	}
	return nil
}

// DockerfilePath returns the path of the Dockerfile: the option, or Dockerfile or dockerfile in the context, whichever
// is there first. The error, an *input.Error, says that neither is.
func (o *Options) DockerfilePath() (string, error) {
	if o.Dockerfile != "" {
		return o.Dockerfile, nil
	}
	for _, name := range []string{"Dockerfile", "dockerfile"} {
		path := filepath.Join(o.ContextDir, name)
		_, err := os.Stat(path)
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", &input.Error{Err: fmt.Errorf("look for the Dockerfile: %w", err)}
		}
	}
	return "", &input.Error{Err: fmt.Errorf("there is no Dockerfile in %s; name one with -f", rootdir.Shown(o.ContextDir))}
}
