package build

import (
	"context"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/build/caching"
	"github.com/kilnbuild/kiln/build/confine"
	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/build/sources"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/signing"
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
	// Verify runs steps again that are cached, and tells whether they make the same; what is in the cache is used.
	Verify bool
	// Twice runs every step, and then once more. If one makes something else, the build fails, and nothing is exported.
	Twice bool
	// From are caches elsewhere that the build reads, in this order, and To those that it publishes.
	From, To []caching.Spec
}

// Export is what becomes of the result.
type Export struct {
	// Tags are names for the image, each a valid reference without digest, as written: "app", "registry:5000/app:v1".
	Tags []string
	// Annotations are for every output that is an image, after those of its own.
	Annotations []exporter.Annotation
	// Outputs are empty to put the image in the image store alone.
	Outputs []Output
	// IIDFile is a file that the image's ID is written to; "" for none.
	IIDFile string
	// Sign are the keys that what is pushed is signed with.
	Sign []*signing.PrivateKey
	// Attest are attestations of the result.
	Attest attestation.Options
	// MetadataFile is a file for the digests and names of the result, as JSON; "" for none.
	MetadataFile string
	// MetadataProvenance says how much Result.Metadata has of the provenance; "" for none.
	MetadataProvenance MetadataMode
}

// MetadataMode is how much of the provenance there is in the metadata of a build.
type MetadataMode string

// The modes of the metadata's provenance.
const (
	MetadataMin MetadataMode = "min"
	MetadataMax MetadataMode = "max"
)

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
	// Credentials are those for registries; nil for those of the user of this process. With MachineCredentials, those count as well where
	// Credentials have none.
	Credentials        auth.Source
	MachineCredentials bool
	// Allow are the entitlements granted to the build: "network.host", "security.insecure", "device", "device=NAME".
	Allow []string
}

// Absolute makes the paths absolute that are relative to the working directory. It is called before that changes.
func (o *Options) Absolute() error {
	if err := o.Source.Absolute(); err != nil {
		return err
	}
	paths := []*string{&o.Export.IIDFile, &o.Export.MetadataFile}
	for i := range o.Export.Outputs {
		if dest := &o.Export.Outputs[i].Dest; *dest != stdout {
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
