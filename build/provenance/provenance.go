// Package provenance describes a build: what went into it, what was asked for, and how it was done. It does not know how the description is
// kept.
package provenance

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/attestation/slsa"
	"github.com/kilnbuild/kiln/build/sources"
	"github.com/kilnbuild/kiln/frontend"
	"github.com/kilnbuild/kiln/frontend/source"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/material"
	"github.com/kilnbuild/kiln/internal/purl"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/internal/version"
	"github.com/kilnbuild/kiln/llb"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Build is what is known of a build when its steps are done.
type Build struct {
	// ID is that of the build in the history.
	ID      string
	Started time.Time
	// Context is the build context as the user named it, and LocalContext says that it is of the client, a directory or standard input.
	Context      string
	LocalContext bool
	// Dockerfile is its text, Filename its name in the context, and LocalDockerfile says that it came from the client.
	Dockerfile      []byte
	Filename        string
	LocalDockerfile bool
	// Request is what was asked for beside the context and the Dockerfile.
	Request Request
	// Images are those that were built, and Materials what was taken from elsewhere for all of them.
	Images    []frontend.Image
	Materials []material.Material
	// VCS describes the working copy that the context is: "source", "revision". It may be nil.
	VCS map[string]string
	// Depths are how many layers the root file systems have on the way to images whose history does not say of each step on it that it
	// made a layer.
	Depths map[llb.Output]int
	// API says how a client of BuildKit's API asked for the build; nil if none did.
	API *API
}

// API is what a client of BuildKit's API asked for. Such a build is described in BuildKit's words: its types, and ops of LLB as steps.
type API struct {
	// Asked is the request that made the result, with the attributes of its frontend, and Partial says that not all is described that made
	// its inputs.
	Asked   slsa.Asked
	Partial bool
	// Context is the address of the build context as the client wrote it; "" for none.
	Context string
	// Addresses are those of build contexts and repositories as the client wrote them, with credentials, and Layouts what it calls images of
	// OCI layouts, by their digests.
	Addresses []string
	Layouts   map[string]string
	// Locals are the names of the client's directories that were read, in order.
	Locals []string
	// VCS describes the working copy that the context is.
	VCS map[string]string
	// Materials are what made the result beside the sources of its steps: the image of the frontend.
	Materials []slsa.Material
	// DockerfileVersion is that of the frontend, if it is kiln's own, and Env has more values, as the operator wants.
	DockerfileVersion string
	Env               map[string]any
	// Dockerfile are the steps that make the directory with the Dockerfile; nil if that is not known.
	Dockerfile *Definition
	// Define returns the steps of a root file system.
	Define func(root llb.Output) (*Definition, error)
}

// Definition are the steps of a root file system as ops of LLB.
type Definition struct {
	Ops []slsa.Op
	// Digests are the IDs of the ops by their digests, and Vertices by those of the vertices.
	Digests  map[string]string
	Vertices map[llb.Digest]string
	// Source is the text that they come from, as far as that is not the Dockerfile of the build; nil for none.
	Source *slsa.Source
}

// Request is what was asked for.
type Request struct {
	Target string
	// Args are build arguments, Labels those of the image, and Named the named contexts.
	Args, Labels, Named map[string]string
	// NoCache says that every step was to run, and NoCacheFor the steps of which stages.
	NoCache    bool
	NoCacheFor []string
	Network    llb.Network
	llb.RunOptions
}

// LocalSources returns the names of the sources of the client that an image is made of, in order: the build context and named contexts as
// far as steps read them, and the Dockerfile.
func (b *Build) LocalSources(i int) []string {
	var names []string
	for v := range llb.Vertices([]llb.Output{b.Images[i].Root}) {
		if op, ok := v.Op().(llb.Local); ok && (op.Name != contextName || b.LocalContext) {
			names = append(names, op.Name)
		}
	}
	if b.LocalDockerfile {
		names = append(names, "dockerfile")
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// contextName is the name of the build context among those of llb.Local.
const contextName = "context"

// Of describes the build of an image by its index, whose layers have the blobs of layers, the lowest first. finished is when. Options say
// how much.
func (b *Build) Of(i int, layers []ocispec.Descriptor, finished time.Time, o *attestation.Provenance) (any, error) {
	p := b.whole(i, layers)
	if b.API != nil {
		if err := b.inBuildKitsWords(p, i, layers); err != nil {
			return nil, err
		}
	}
	m := &p.RunDetails.Metadata
	m.Reproducible = o.Reproducible
	if o.BuilderID != "" {
		p.RunDetails.Builder.ID = o.BuilderID
	}
	if o.Anonymous {
		delete(p.BuildDefinition.ExternalParameters.Request.Args, argNoCache)
		p.BuildDefinition.InternalParameters.BuildConfig.DigestMapping = nil // it depends on that, too
		m.BuildKit.VCS = maps.Clone(m.BuildKit.VCS)
		delete(m.BuildKit.VCS, vcsSource)
	} else {
		begin, end := b.Started.UTC(), finished.UTC()
		m.InvocationID, m.StartedOn, m.FinishedOn = b.ID, &begin, &end
	}
	if !o.Max {
		p.Min()
	}
	if o.PredicateType == attestation.SLSA02 {
		return p.V02(), nil
	}
	return p, nil
}

// whole returns all that is known.
func (b *Build) whole(i int, layers []ocispec.Descriptor) *slsa.Provenance {
	img := b.Images[i]
	g := newGraph(img.Root, b.hider(img.Root))
	p := &slsa.Provenance{}
	d, m := &p.BuildDefinition, &p.RunDetails.Metadata
	d.BuildType = slsa.BuildType
	d.ExternalParameters.ConfigSource = b.configSource()
	request := &d.ExternalParameters.Request
	request.Frontend, request.Args = "dockerfile.v0", b.args(g.hide)
	request.Secrets, request.SSH = g.needed()
	locals := b.LocalSources(i)
	for _, name := range locals {
		request.Locals = append(request.Locals, slsa.Local{Name: name})
	}
	d.InternalParameters = slsa.Internal{
		BuildConfig: g.config(), BuilderPlatform: llb.Host().String(), TargetPlatform: img.Platform.String(),
	}
	for _, used := range b.materials(i) {
		d.ResolvedDependencies = append(d.ResolvedDependencies, dependency(used))
	}
	p.RunDetails.Builder = slsa.Builder{ID: slsa.BuilderID, Version: map[string]string{"kiln": version.String()}}
	m.Completeness = slsa.Completeness{Request: true, ResolvedDependencies: len(locals) == 0}
	m.Hermetic = len(locals) == 0 && !g.network()
	m.BuildKit.VCS = b.VCS
	m.BuildKit.Source = g.source(b.Filename, b.shown(g.hide))
	m.BuildKit.Layers = g.layers(img, layers, b.Depths)
	return p
}

// configSource says where the Dockerfile is.
func (b *Build) configSource() slsa.ConfigSource {
	c := slsa.ConfigSource{Path: b.Filename}
	if b.LocalContext {
		return c
	}
	c.URI = remoteurl.WithoutUser(b.Context)
	name := c.URI
	if git, err := remoteurl.ParseGitContext(b.Context); remoteurl.IsGitContext(b.Context) && err == nil {
		name = sources.GitName(source.GitContext(git))
	}
	for _, m := range b.Materials {
		if m.Name == name && (m.Kind == material.Git || m.Kind == material.File) {
			c.Digest = digests(m.Digest)
		}
	}
	return c
}

// dependency returns a material as SLSA has it.
func dependency(m material.Material) slsa.Material {
	out := slsa.Material{URI: m.Name, Digest: digests(m.Digest)}
	switch m.Kind {
	case material.Image:
		if ref, err := imagename.Parse(m.Name); err == nil {
			out.URI = attestation.ImageURL("docker", ref, m.Platform)
		}
	case material.Layout:
		// The directory is the user's, and says nothing to others.
		out.URI = layoutURL(m.Name[strings.LastIndexByte(m.Name, '/')+1:], m.Platform)
	case material.Blob, material.LayoutBlob:
		kind := map[material.Kind]string{material.Blob: "docker", material.LayoutBlob: "oci"}[m.Kind]
		if ref, err := imagename.Parse(m.Name); err == nil {
			out.URI = attestation.ImageURL(kind, ref, "") + "&ref_type=blob"
			if m.BundleOf != "" {
				out.URI = attestation.ImageURL(kind, ref, "") + "&ref_type=bundle&vcs_url=" + purl.Escape(m.BundleOf)
			}
		}
	}
	return out
}

// layoutURL returns the address of an image in an OCI layout, whatever it is called there.
func layoutURL(name, platform string) string {
	ref, err := imagename.Parse(name)
	if err != nil {
		return "pkg:oci/image"
	}
	return attestation.ImageURL("oci", ref, platform)
}

// digests returns a digest "sha256:…" by its algorithm; nil for none.
func digests(d string) map[string]string {
	algorithm, hex, ok := strings.Cut(d, ":")
	if !ok {
		return nil
	}
	return map[string]string{algorithm: hex}
}

// materials returns the materials of an image: all but those that only other images use.
func (b *Build) materials(i int) []material.Material {
	mine, others := map[string]bool{}, map[string]bool{}
	for n, img := range b.Images {
		into := others
		if n == i {
			into = mine
		}
		for v := range llb.Vertices([]llb.Output{img.Root}) {
			switch op := v.Op().(type) {
			case llb.Image:
				into[op.Digest] = true
			case llb.HTTP:
				into[op.URL] = true
			case llb.Git:
				into[sources.GitName(op)] = true
			case llb.Blob:
				into[op.Ref+"@"+op.Digest] = true
			}
		}
	}
	platform := b.Images[i].Platform.String()
	used := slices.DeleteFunc(slices.Clone(b.Materials), func(m material.Material) bool {
		used := m.Name
		if m.Manifest != "" {
			used = m.Manifest
		}
		return others[used] && !mine[used] || m.Platform != platform && slices.ContainsFunc(b.Materials, func(o material.Material) bool {
			// An image of one platform is used for several.
			return m.Manifest != "" && o.Manifest == m.Manifest && o.Name == m.Name && o.Platform == platform
		})
	})
	// As BuildKit has them.
	order := []material.Kind{material.Image, material.Layout, material.Blob, material.LayoutBlob, material.Git, material.File}
	slices.SortStableFunc(used, func(x, y material.Material) int { return slices.Index(order, x.Kind) - slices.Index(order, y.Kind) })
	return used
}

// vcsSource is the address of the repository in Build.VCS.
const vcsSource = "source"

// argNoCache is the argument that says what was not taken from the cache. It changes nothing of what is built.
const argNoCache = "no-cache"

// proxies are predefined arguments that decide no result, and may hold passwords.
var proxies = []string{"http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"}

// args returns the arguments of the request, named as BuildKit's frontend names them.
func (b *Build) args(hide hider) map[string]string {
	r := &b.Request
	args := map[string]string{}
	for name, value := range r.Args {
		if !slices.Contains(proxies, strings.ToLower(name)) {
			args[slsa.ArgPrefix+name] = hide.variable(name, value)
		}
	}
	for key, value := range r.Labels {
		args[slsa.LabelPrefix+key] = hide.text(value)
	}
	for name, value := range r.Named {
		switch scheme, _, _ := strings.Cut(value, "://"); {
		case scheme == "oci-layout":
			value = "oci-layout://" + name
		case source.IsDirContext(value):
			value = "local:" + name
		default:
			value = remoteurl.WithoutUser(value)
		}
		args["context:"+name] = hide.text(value)
	}
	if r.Target != "" {
		args["target"] = r.Target
	}
	if r.NoCache || len(r.NoCacheFor) > 0 {
		args[argNoCache] = strings.Join(r.NoCacheFor, ",")
	}
	if r.Network != "" && r.Network != llb.NetworkDefault {
		args["force-network-mode"] = string(r.Network)
	}
	for _, h := range r.ExtraHosts {
		args["add-hosts"] = strings.TrimPrefix(args["add-hosts"]+","+h.Host+"="+h.IP, ",")
	}
	for name, value := range maps.All(runOptions(r.RunOptions)) {
		args[name] = value
	}
	if len(args) == 0 {
		return nil
	}
	return args
}
