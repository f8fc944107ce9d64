package provenance

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/attestation/slsa"
	"github.com/kilnbuild/kiln/build/sources"
	"github.com/kilnbuild/kiln/frontend/lint"
	"github.com/kilnbuild/kiln/frontend/source"
	"github.com/kilnbuild/kiln/internal/material"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// inBuildKitsWords makes a description of an image by its index that of a build which a client of BuildKit's API asked for.
func (b *Build) inBuildKitsWords(p *slsa.Provenance, i int, layers []ocispec.Descriptor) error {
	api, img := b.API, b.Images[i]
	g := newGraph(img.Root, b.hider(img.Root))
	d, m := &p.BuildDefinition, &p.RunDetails.Metadata
	d.BuildType = slsa.BuildKitType
	d.ExternalParameters.ConfigSource = b.found(api.Asked.ConfigSource, api.Context)
	request := g.hide.request(api.Asked.Request)
	request.Secrets, request.SSH = g.needed()
	request.Locals = nil
	for _, name := range api.Locals {
		request.Locals = append(request.Locals, slsa.Local{Name: name})
	}
	d.ExternalParameters.Request = *request
	d.InternalParameters.DockerfileVersion, d.InternalParameters.Env = api.DockerfileVersion, api.Env
	redact(d.ResolvedDependencies, api.Context)
	for n, used := range b.materials(i) {
		if name := api.layoutContext(used); name != "" {
			d.ResolvedDependencies[n].URI = layoutURL(name, used.Platform)
		}
	}
	d.ResolvedDependencies = append(api.Materials[:len(api.Materials):len(api.Materials)], d.ResolvedDependencies...)
	p.RunDetails.Builder = slsa.Builder{}
	m.Completeness = slsa.Completeness{Request: request.Frontend != "", ResolvedDependencies: len(api.Locals) == 0}
	m.Hermetic = m.Hermetic && len(api.Locals) == 0
	m.BuildKit = slsa.BuildKit{VCS: api.VCS}
	defined, err := api.Define(img.Root)
	if err != nil {
		return err
	}
	g.ids = defined.Vertices
	config := &slsa.Config{DigestMapping: defined.Digests}
	for _, op := range defined.Ops {
		op.Op = g.hide.json(op.Op)
		config.Definition = append(config.Definition, op)
	}
	if d.InternalParameters.BuildConfig = config; len(config.Definition) == 0 {
		d.InternalParameters.BuildConfig = nil
	}
	if m.BuildKit.Source = g.hide.source(defined.Source); b.Dockerfile != nil {
		m.BuildKit.Source = g.source(b.Filename, b.shown(g.hide))
	}
	m.BuildKit.Layers = g.layers(img, layers)
	return nil
}

// found returns where a Dockerfile is, with the digest of what was found there.
func (b *Build) found(c slsa.ConfigSource, context string) slsa.ConfigSource {
	name := remoteurl.WithoutUser(context)
	if git, err := remoteurl.ParseGitContext(context); remoteurl.IsGitContext(context) && err == nil {
		name = sources.GitName(source.GitContext(git))
	}
	for _, m := range b.Materials {
		if m.Name == name && (m.Kind == material.Git || m.Kind == material.File) {
			c.Digest = digests(m.Digest)
		}
	}
	return c
}

// mask is shown in place of credentials, as by BuildKit.
const mask = "xxxxx"

// Redacted returns an address with a mask in place of credentials, and other texts as they are.
func Redacted(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.User == nil {
		return s
	}
	switch _, password := u.User.Password(); {
	case password && u.User.Username() != "":
		u.User = url.UserPassword(mask, mask)
	case password:
		u.User = url.UserPassword("", mask)
	case u.User.Username() != "":
		u.User = url.User(mask)
	}
	return u.String()
}

// redact has the material that is the build context show that there were credentials, as BuildKit does. Those of other addresses are not
// in the graph.
func redact(materials []slsa.Material, context string) {
	git, err := remoteurl.ParseGitContext(context)
	if !remoteurl.IsGitContext(context) || err != nil {
		return
	}
	name := sources.GitName(source.GitContext(git))
	address, fragment, _ := strings.Cut(context, "#")
	shown := Redacted(address)
	masked := shown != address
	if ref, _, _ := strings.Cut(fragment, ":"); ref != "" {
		shown += "#" + ref
	}
	for i := range materials {
		if masked && materials[i].URI == name {
			materials[i].URI = shown
		}
	}
}

// layoutContext returns the name of the named context that an image of a client's OCI layout is; "" for none.
func (a *API) layoutContext(m material.Material) string {
	if m.Kind != material.Layout {
		return ""
	}
	for attr, value := range a.Asked.Request.Args {
		name, ok := strings.CutPrefix(attr, "context:")
		if ok && strings.HasPrefix(value, "oci-layout:") && strings.HasSuffix(value, "@"+m.Digest) {
			return name
		}
	}
	return ""
}

// request returns a copy of a request without secrets.
func (h hider) request(r *slsa.Request) *slsa.Request {
	if r == nil {
		return nil
	}
	out := *r
	out.Args = maps.Clone(r.Args)
	for name, value := range out.Args {
		out.Args[name] = h.text(value)
	}
	if r.Root != nil {
		out.Root = &slsa.Asked{ConfigSource: r.Root.ConfigSource, Request: h.request(r.Root.Request)}
	}
	if len(r.Inputs) > 0 {
		out.Inputs = map[string]*slsa.Asked{}
		for name, in := range r.Inputs {
			out.Inputs[name] = &slsa.Asked{ConfigSource: in.ConfigSource, Request: h.request(in.Request)}
		}
	}
	return &out
}

// source returns a copy of a source without secrets.
func (h hider) source(s *slsa.Source) *slsa.Source {
	if s == nil {
		return nil
	}
	out := &slsa.Source{Locations: s.Locations, Infos: slices.Clone(s.Infos)}
	for i := range out.Infos {
		out.Infos[i].Data = []byte(h.text(string(out.Infos[i].Data)))
	}
	return out
}

// json returns a JSON text without secrets, wherever in its strings they are.
func (h hider) json(text json.RawMessage) json.RawMessage {
	for _, s := range h.secrets {
		quoted, err := json.Marshal(s)
		if err != nil {
			continue
		}
		text = bytes.ReplaceAll(text, quoted[1:len(quoted)-1], []byte(lint.Hidden))
	}
	return text
}
