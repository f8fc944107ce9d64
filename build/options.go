package build

import (
	"context"

	"github.com/kilnbuild/kiln/build/bases"
	"github.com/kilnbuild/kiln/build/caching"
	"github.com/kilnbuild/kiln/build/confine"
	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/build/outputs"
	"github.com/kilnbuild/kiln/build/sources"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/registry/auth"
	"github.com/kilnbuild/kiln/solver/session"
)

// Options say what one build has to do. They are checked values, as far as they can be checked without looking at files:
// names are in full, environment variables are resolved. Paths on the client are absolute: see Absolute.
type Options struct {
	Source contexts.Source
	Pins   sources.Pins
	Target Target
	Call   Call
	Cache  Caching
	Export Export
	Run    Run
	Client Client
	// Later says that Source, Target and Call are empty: what is to be built is known when Lower or Export is called.
	Later bool
	// Explain says of each step that ran why it did.
	Explain bool
	// Reproducible asks for a result that depends on nothing but the Dockerfile and the contexts; nil is for what kiln.toml says.
	Reproducible *bool
	// Debug shows debug messages.
	Debug bool
	// OnFailure is called with a RUN that failed, when all other steps have ended, and before the build ends with the error of the RUN.
	// It may be nil.
	OnFailure func(ctx context.Context, f *Failure)
}

// Call is what to do with a Dockerfile.
type Call string

// The calls. All but the first describe or check the Dockerfile, and build nothing.
const (
	CallBuild   Call = ""
	CallCheck   Call = "check"
	CallOutline Call = "outline"
	CallTargets Call = "targets"
	// CallLock looks up what the sources of the Dockerfile are, for Result.Lock.
	CallLock Call = "lock"
)

// Target is what to build of a Dockerfile.
type Target struct {
	// Stage is the name of the stage; "" for the last one.
	Stage string
	// Args are values of ARG, SOURCE_DATE_EPOCH included.
	Args map[string]string
	// Platforms are normalised and without repeats; empty for the host's own.
	Platforms []llb.Platform
	// Labels are added to those of the image.
	Labels map[string]string
}

// Caching is what a build takes from caches.
type Caching struct {
	// Off makes every step run, and OffFor those of the stages that it names.
	Off    bool
	OffFor []string
	// FreshMounts has cache mounts begin empty.
	FreshMounts bool
	// Pull asks the registry about images even where the image store has them.
	Pull bool
	// AskFirst asks the registry about images as well, and takes those from the image store that it does not have.
	AskFirst bool
	// Verify runs steps again that are cached, and tells whether they make the same; what is in the cache is used.
	Verify bool
	// Twice runs every step, and then once more. If one makes something else, the build fails, and nothing is exported.
	Twice bool
	// From are caches elsewhere that the build reads, in this order, and To those that it publishes.
	From, To []caching.Spec
}

// What becomes of the result, which package outputs reads.
type (
	Export       = outputs.Export
	Output       = outputs.Output
	OutputType   = outputs.Type
	MetadataMode = outputs.MetadataMode
)

// The types of outputs, and the modes of the metadata's provenance.
const (
	OutputImage     = outputs.Image
	OutputRegistry  = outputs.Registry
	OutputDocker    = outputs.Docker
	OutputStorage   = outputs.Storage
	OutputOCI       = outputs.OCI
	OutputLocal     = outputs.Local
	OutputTar       = outputs.Tar
	OutputCacheOnly = outputs.CacheOnly

	MetadataMin = outputs.MetadataMin
	MetadataMax = outputs.MetadataMax
)

// CheckTag returns an error unless s can be a new image's name: "app", "registry:5000/app:v1", without digest.
func CheckTag(s string) error { return outputs.CheckTag(s) }

// Run is how a build runs RUN.
type Run struct {
	// Network is that of steps whose RUN names none; NetworkDefault where the user named none.
	Network llb.Network
	// RunOptions go into the graph as they are.
	llb.RunOptions
	// Request is how the process of each is confined.
	confine.Request
}

// Client is what the client of a build provides and allows.
type Client struct {
	// Secrets may be nil. It is asked when a step needs a secret.
	Secrets session.Secrets
	// Agents are ssh agents, for RUN --mount=type=ssh; the one called "default" also for git over ssh. They may be nil.
	Agents session.Agents
	// Credentials are those for registries; nil for those of the user of this process.
	Credentials auth.Source
	// User is whose credentials they are: what a registry has shown to a user is for no other one.
	User string
	// Uploads are what a client elsewhere uploads; they may be nil.
	Uploads session.Uploads
	// Locals are the directories of a client elsewhere; nil for one whose directories are named in contexts.Source.
	Locals session.Locals
	// Stores are the OCI layouts of a client elsewhere; nil for one whose layouts are directories of this machine.
	Stores bases.Stores
	// Allow are the entitlements granted to the build: "network.host", "security.insecure", "device", "device=NAME".
	Allow []string
	// Frontends allows the build to run frontends that are images, as kiln.toml can.
	Frontends bool
}

// Absolute makes the paths absolute that are relative to the working directory. It is called before that changes.
func (o *Options) Absolute() error {
	if err := o.Source.Absolute(); err != nil {
		return err
	}
	paths := []*string{&o.Export.IIDFile, &o.Export.MetadataFile}
	for i := range o.Export.Outputs {
		if dest := &o.Export.Outputs[i].Dest; *dest != outputs.Stdout {
			paths = append(paths, dest)
		}
	}
	if files, ok := o.Client.Secrets.(Secrets); ok {
		for i := range files {
			paths = append(paths, &files[i].Src)
		}
	}
	for _, specs := range [][]caching.Spec{o.Cache.From, o.Cache.To} {
		for i := range specs {
			paths = append(paths, specs[i].Paths()...)
		}
	}
	for _, path := range paths {
		if err := rootdir.Absolute(path); err != nil {
			return err
		}
	}
	return nil
}
