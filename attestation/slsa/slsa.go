// Package slsa has the predicates that describe builds: SLSA Provenance, versions 1 and 0.2, with the extensions that BuildKit has, under
// the same names, and with steps as kiln has them. It does not know how anything is built.
package slsa

import (
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/attestation"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// BuildType says what the parameters and steps of a Provenance mean, and BuilderID who builds if nobody says so.
const (
	BuildType = "https://github.com/kilnbuild/kiln/blob/main/docs/supply-chain.md#provenance"
	BuilderID = "https://github.com/kilnbuild/kiln"
)

// The build types of BuildKit, for builds that its clients ask for: see Config.Definition.
const (
	BuildKitType   = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md"
	BuildKitType02 = "https://mobyproject.org/buildkit@v1"
)

// Provenance is the predicate of SLSA Provenance v1 (https://slsa.dev/spec/v1.1/provenance).
type Provenance struct {
	BuildDefinition Definition `json:"buildDefinition"`
	RunDetails      Run        `json:"runDetails"`
}

// Definition is what was to be built.
type Definition struct {
	BuildType            string     `json:"buildType"`
	ExternalParameters   External   `json:"externalParameters"`
	InternalParameters   Internal   `json:"internalParameters"`
	ResolvedDependencies []Material `json:"resolvedDependencies,omitempty"`
}

// Material is something that the build took from elsewhere. Digests are hexadecimal, by the names of their algorithms.
type Material struct {
	URI    string            `json:"uri"`
	Digest map[string]string `json:"digest,omitempty"`
}

// External are the parameters that the user gave.
type External struct {
	ConfigSource ConfigSource `json:"configSource"`
	Request      Request      `json:"request"`
}

// ConfigSource is where the Dockerfile is: the address of a context that is not a directory, and the path in it.
type ConfigSource struct {
	URI    string            `json:"uri,omitempty"`
	Digest map[string]string `json:"digest,omitempty"`
	Path   string            `json:"path,omitempty"`
}

// Request are the parameters of the Dockerfile's build.
type Request struct {
	Frontend string `json:"frontend,omitempty"`
	// Args are build arguments, "build-arg:NAME", labels, "label:KEY", "target", and other options.
	Args map[string]string `json:"args,omitempty"`
	// Secrets and SSH are what steps asked for, by their IDs.
	Secrets []Needed `json:"secrets,omitempty"`
	SSH     []Needed `json:"ssh,omitempty"`
	// Locals are the directories of the client that were read.
	Locals []Local `json:"locals,omitempty"`
	// Inputs are the requests that made the named contexts which are results of other ones, and Root is the client's own one if that was
	// another. Both are of BuildKit's clients.
	Inputs map[string]*Asked `json:"inputs,omitempty"`
	Root   *Asked            `json:"root,omitempty"`
}

// All returns the request, those that made its inputs, those that made theirs, and the client's own one. r may be nil.
func (r *Request) All() iter.Seq[*Request] { return func(yield func(*Request) bool) { r.each(yield) } }

func (r *Request) each(yield func(*Request) bool) (more bool) {
	if r == nil {
		return true
	}
	if !yield(r) {
		return false
	}
	for _, name := range slices.Sorted(maps.Keys(r.Inputs)) {
		if in := r.Inputs[name]; in != nil && !in.Request.each(yield) {
			return false
		}
	}
	return r.Root == nil || r.Root.Request.each(yield)
}

// Asked is what a frontend was asked for.
type Asked struct {
	ConfigSource ConfigSource `json:"configSource"`
	Request      *Request     `json:"request,omitempty"`
}

// Needed is a secret or an ssh agent that a step asks for.
type Needed struct {
	ID       string `json:"id"`
	Optional bool   `json:"optional,omitempty"`
}

// Local is a directory of the client by its name: "context", "dockerfile", or that of a named context.
type Local struct {
	Name string `json:"name"`
}

// Internal are the parameters that the builder chose.
type Internal struct {
	BuildConfig     *Config `json:"buildConfig,omitempty"`
	BuilderPlatform string  `json:"builderPlatform"`
	TargetPlatform  string  `json:"targetPlatform,omitempty"`
	// DockerfileVersion is that of the frontend, if it is the builder's own.
	DockerfileVersion string `json:"dockerfileVersion,omitempty"`
	// Env has more, by its names, as the operator of the builder wants. It is written beside the others.
	Env map[string]any `json:"-"`
}

// MarshalJSON implements json.Marshaler.
func (i Internal) MarshalJSON() ([]byte, error) {
	type plain Internal
	return withEnv(plain(i), i.Env)
}

// withEnv returns an object with more members; its own count where there are some of the same name.
func withEnv(object any, env map[string]any) ([]byte, error) {
	data, err := json.Marshal(object)
	if err != nil || len(env) == 0 {
		return data, err
	}
	all := map[string]any{}
	for name, value := range env {
		all[name] = value
	}
	own := map[string]json.RawMessage{}
	if err := json.Unmarshal(data, &own); err != nil {
		return nil, err
	}
	for name, value := range own {
		all[name] = value
	}
	return json.Marshal(all)
}

// Config are the steps of a build, each after those whose outputs it reads.
type Config struct {
	Steps []Step `json:"steps,omitempty"`
	// Definition are the steps as ops of LLB, if BuildKit's clients are to read them.
	Definition []Op `json:"llbDefinition,omitempty"`
	// DigestMapping are the IDs of steps by the digests of their vertices.
	DigestMapping map[string]string `json:"digestMapping,omitempty"`
}

// Step is a step of the graph.
type Step struct {
	// ID is "stepN".
	ID string `json:"id"`
	// Name is what progress shows, without the place in the stage.
	Name string `json:"name,omitempty"`
	// Platform is what the step runs on.
	Platform string `json:"platform,omitempty"`
	// Op has one member, whose name is the kind of the op.
	Op map[string]any `json:"op"`
	// Inputs are "stepN:OUTPUT".
	Inputs []string `json:"inputs"`
}

// Op is a step as an op of LLB.
type Op struct {
	ID     string          `json:"id"`
	Op     json.RawMessage `json:"op"`
	Inputs []string        `json:"inputs,omitempty"`
}

// Run is how it was built.
type Run struct {
	Builder  Builder  `json:"builder"`
	Metadata Metadata `json:"metadata"`
}

// Builder is who built it.
type Builder struct {
	ID      string            `json:"id"`
	Version map[string]string `json:"version,omitempty"`
}

// Metadata describes one build.
type Metadata struct {
	InvocationID string       `json:"invocationId,omitempty"`
	StartedOn    *time.Time   `json:"startedOn,omitempty"`
	FinishedOn   *time.Time   `json:"finishedOn,omitempty"`
	BuildKit     BuildKit     `json:"buildkit_metadata,omitzero"`
	Hermetic     bool         `json:"buildkit_hermetic,omitempty"`
	Completeness Completeness `json:"buildkit_completeness"`
	Reproducible bool         `json:"buildkit_reproducible,omitempty"`
}

// BuildKit is metadata that SLSA has no place for.
type BuildKit struct {
	VCS    map[string]string `json:"vcs,omitempty"`
	Source *Source           `json:"source,omitempty"`
	// Layers are the blobs of layers by the output of the step that made them, "stepN:OUTPUT".
	Layers map[string][][]ocispec.Descriptor `json:"layers,omitempty"`
}

// Source is the text that steps come from.
type Source struct {
	// Locations are where in Infos steps are, by their IDs.
	Locations map[string]Locations `json:"locations,omitempty"`
	Infos     []SourceInfo         `json:"infos,omitempty"`
}

// SourceInfo is a file. Values of secrets are hidden in its data.
type SourceInfo struct {
	Filename string `json:"filename,omitempty"`
	Language string `json:"language,omitempty"`
	Data     []byte `json:"data,omitempty"`
	// Definition are the steps that make the directory with the file, and DigestMapping their IDs by the digests that LLB gives them.
	Definition    []Op              `json:"llbDefinition,omitempty"`
	DigestMapping map[string]string `json:"digestMapping,omitempty"`
}

// Locations are the places of a step.
type Locations struct {
	Locations []Location `json:"locations"`
}

// Location is a place in the file of Infos with this index.
type Location struct {
	SourceIndex int     `json:"sourceIndex,omitempty"`
	Ranges      []Range `json:"ranges"`
}

// Range are lines, counted from 1.
type Range struct {
	Start Position `json:"start"`
	End   Position `json:"end"`
}

// Position is a line.
type Position struct {
	Line int `json:"line"`
}

// Completeness says whether parts of a Provenance are complete.
type Completeness struct {
	Request              bool `json:"request"`
	ResolvedDependencies bool `json:"resolvedDependencies"`
}

// Provenance02 is the predicate of SLSA Provenance v0.2 (https://slsa.dev/spec/v0.2/provenance).
type Provenance02 struct {
	Builder     Builder02   `json:"builder"`
	BuildType   string      `json:"buildType"`
	Invocation  Invocation  `json:"invocation"`
	BuildConfig *Config     `json:"buildConfig,omitempty"`
	Metadata    *Metadata02 `json:"metadata,omitempty"`
	Materials   []Material  `json:"materials,omitempty"`
}

// Builder02 is who built it.
type Builder02 struct {
	ID string `json:"id"`
}

// Invocation is what the user asked for.
type Invocation struct {
	ConfigSource ConfigSource02 `json:"configSource"`
	Parameters   Request        `json:"parameters"`
	Environment  Environment    `json:"environment"`
}

// ConfigSource02 is a ConfigSource.
type ConfigSource02 struct {
	URI        string            `json:"uri,omitempty"`
	Digest     map[string]string `json:"digest,omitempty"`
	EntryPoint string            `json:"entryPoint,omitempty"`
}

// Environment is what it was built on.
type Environment struct {
	Platform string `json:"platform"`
	// DockerfileVersion and Env are as in Internal.
	DockerfileVersion string         `json:"dockerfileVersion,omitempty"`
	Env               map[string]any `json:"-"`
}

// MarshalJSON implements json.Marshaler.
func (e Environment) MarshalJSON() ([]byte, error) {
	type plain Environment
	return withEnv(plain(e), e.Env)
}

// Metadata02 is a Metadata.
type Metadata02 struct {
	BuildInvocationID string         `json:"buildInvocationID,omitempty"`
	BuildStartedOn    *time.Time     `json:"buildStartedOn,omitempty"`
	BuildFinishedOn   *time.Time     `json:"buildFinishedOn,omitempty"`
	Completeness      Completeness02 `json:"completeness"`
	Reproducible      bool           `json:"reproducible"`
	BuildKit          BuildKit       `json:"https://mobyproject.org/buildkit@v1#metadata,omitzero"`
	Hermetic          bool           `json:"https://mobyproject.org/buildkit@v1#hermetic,omitempty"`
}

// Completeness02 is a Completeness.
type Completeness02 struct {
	Parameters  bool `json:"parameters"`
	Environment bool `json:"environment"`
	Materials   bool `json:"materials"`
}

// Parse reads a predicate of one of the types attestation.SLSA1 and attestation.SLSA02. The error is that of encoding/json.
func Parse(predicateType string, predicate json.RawMessage) (*Provenance, error) {
	if predicateType == attestation.SLSA02 {
		var old Provenance02
		if err := json.Unmarshal(predicate, &old); err != nil {
			return nil, err
		}
		return old.V1(), nil
	}
	p := &Provenance{}
	if err := json.Unmarshal(predicate, p); err != nil {
		return nil, err
	}
	return p, nil
}

// V02 returns the same in version 0.2. It has no place for the version of the builder and for the target platform, which is in the name
// of the subject.
func (p *Provenance) V02() *Provenance02 {
	d, m := &p.BuildDefinition, &p.RunDetails.Metadata
	source, i, buildType := d.ExternalParameters.ConfigSource, &d.InternalParameters, d.BuildType
	if buildType == BuildKitType {
		buildType = BuildKitType02
	}
	return &Provenance02{
		Builder: Builder02{p.RunDetails.Builder.ID}, BuildType: buildType,
		Invocation: Invocation{
			ConfigSource: ConfigSource02{URI: source.URI, Digest: source.Digest, EntryPoint: source.Path},
			Parameters:   d.ExternalParameters.Request, Environment: Environment{i.BuilderPlatform, i.DockerfileVersion, i.Env},
		},
		BuildConfig: d.InternalParameters.BuildConfig,
		Metadata: &Metadata02{
			BuildInvocationID: m.InvocationID, BuildStartedOn: m.StartedOn, BuildFinishedOn: m.FinishedOn,
			Completeness: Completeness02{Parameters: m.Completeness.Request, Environment: true, Materials: m.Completeness.ResolvedDependencies},
			Reproducible: m.Reproducible, BuildKit: m.BuildKit, Hermetic: m.Hermetic,
		},
		Materials: d.ResolvedDependencies,
	}
}

// V1 returns the same in version 1.
func (p *Provenance02) V1() *Provenance {
	source := p.Invocation.ConfigSource
	out := &Provenance{
		BuildDefinition: Definition{
			BuildType: p.BuildType, ResolvedDependencies: p.Materials,
			ExternalParameters: External{
				ConfigSource: ConfigSource{URI: source.URI, Digest: source.Digest, Path: source.EntryPoint}, Request: p.Invocation.Parameters,
			},
			InternalParameters: Internal{BuildConfig: p.BuildConfig, BuilderPlatform: p.Invocation.Environment.Platform},
		},
		RunDetails: Run{Builder: Builder{ID: p.Builder.ID}},
	}
	if m := p.Metadata; m != nil {
		out.RunDetails.Metadata = Metadata{
			InvocationID: m.BuildInvocationID, StartedOn: m.BuildStartedOn, FinishedOn: m.BuildFinishedOn,
			Completeness: Completeness{Request: m.Completeness.Parameters, ResolvedDependencies: m.Completeness.Materials},
			Reproducible: m.Reproducible, BuildKit: m.BuildKit, Hermetic: m.Hermetic,
		}
	}
	return out
}

// Min leaves out what may be private, as BuildKit's mode=min does: values of build arguments and labels, what steps asked for, and the
// steps.
func (p *Provenance) Min() {
	request, m := &p.BuildDefinition.ExternalParameters.Request, &p.RunDetails.Metadata
	if request.min() {
		m.Completeness.Request = false
	}
	p.BuildDefinition.InternalParameters.BuildConfig = nil
	m.BuildKit.Source, m.BuildKit.Layers = nil, nil
}

// min leaves out what may be private, and reports whether arguments were.
func (r *Request) min() (less bool) {
	for one := range r.All() {
		before := len(one.Args)
		maps.DeleteFunc(one.Args, func(name, _ string) bool { return private(name) })
		less = less || len(one.Args) < before
		one.Secrets, one.SSH = nil, nil
	}
	return less
}

// Encode returns a predicate as JSON, as people read it.
func Encode(predicate any) (json.RawMessage, error) {
	data, err := json.MarshalIndent(predicate, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the provenance: %w", err)
	}
	return data, nil
}

// ArgPrefix and LabelPrefix begin the names of build arguments and labels among the Args of a Request.
const (
	ArgPrefix   = "build-arg:"
	LabelPrefix = "label:"
)

// private reports whether the value of an argument of a Request may be private.
func private(name string) bool {
	return strings.HasPrefix(name, ArgPrefix) || strings.HasPrefix(name, LabelPrefix)
}
