package provenance

import (
	"bytes"
	"encoding/base64"
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
	for _, address := range api.Addresses {
		redact(d.ResolvedDependencies, address)
	}
	for n, used := range b.materials(i) {
		if name := api.layoutContext(used); name != "" {
			d.ResolvedDependencies[n].URI = layoutURL(name, used.Platform)
		}
	}
	d.ResolvedDependencies = append(api.Materials[:len(api.Materials):len(api.Materials)], d.ResolvedDependencies...)
	p.RunDetails.Builder = slsa.Builder{}
	m.Completeness = slsa.Completeness{Request: request.Frontend != "" && !api.Partial, ResolvedDependencies: len(api.Locals) == 0}
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
	m.BuildKit.Source = nil
	if b.Dockerfile != nil {
		m.BuildKit.Source = g.source(b.Filename, b.shown(g.hide))
		if from := api.Dockerfile; from != nil {
			file := &m.BuildKit.Source.Infos[0]
			file.Definition, file.DigestMapping = g.hide.ops(from.Ops), from.Digests
		}
	}
	m.BuildKit.Source = g.hide.withSource(m.BuildKit.Source, defined.Source)
	m.BuildKit.Layers = g.layers(img, layers, b.Depths)
	return nil
}

// withSource adds what a definition says of where steps come from, in which secrets are not hidden. It counts where both name a step. Both
// may be nil.
func (h hider) withSource(s, more *slsa.Source) *slsa.Source {
	if more == nil {
		return s
	}
	if s == nil {
		s = &slsa.Source{Locations: map[string]slsa.Locations{}}
	}
	first := len(s.Infos)
	for _, info := range more.Infos {
		info.Data, info.Definition = []byte(h.text(string(info.Data))), h.ops(info.Definition)
		s.Infos = append(s.Infos, info)
	}
	for id, at := range more.Locations {
		var all slsa.Locations
		for _, l := range at.Locations {
			l.SourceIndex += first
			all.Locations = append(all.Locations, l)
		}
		s.Locations[id] = all
	}
	return s
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
	if name := a.Layouts[m.Digest]; name != "" {
		return name
	}
	for r := range a.Asked.Request.All() {
		for attr, value := range r.Args {
			name, ok := strings.CutPrefix(attr, "context:")
			if ok && strings.HasPrefix(value, "oci-layout:") && strings.HasSuffix(value, "@"+m.Digest) {
				return name
			}
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
		switch variable, isArg := strings.CutPrefix(name, slsa.ArgPrefix); {
		case isArg && slices.Contains(proxies, strings.ToLower(variable)):
			delete(out.Args, name)
		case isArg:
			out.Args[name] = h.variable(variable, value)
		case strings.HasPrefix(name, "input-metadata:"):
			out.Args[name] = h.metadata(value)
		default:
			out.Args[name] = h.text(value)
		}
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

// metadata returns what a client says of an input, a JSON object of base64, without secrets.
func (h hider) metadata(text string) string {
	var all map[string][]byte
	if len(h.secrets) == 0 || json.Unmarshal([]byte(text), &all) != nil {
		return h.text(text)
	}
	for name, value := range all {
		all[name] = h.json(value)
	}
	out, err := json.Marshal(all)
	if err != nil {
		return lint.Hidden
	}
	return h.text(string(out))
}

// ops returns steps without values of secrets.
func (h hider) ops(all []slsa.Op) []slsa.Op {
	out := slices.Clone(all)
	for i := range out {
		out[i].Op = h.json(out[i].Op)
	}
	return out
}

// json returns a JSON text without secrets, wherever in its strings they are.
func (h hider) json(text json.RawMessage) json.RawMessage {
	if len(h.secrets) == 0 {
		return text
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var value any
	if err := d.Decode(&value); err != nil {
		return json.RawMessage(`"` + lint.Hidden + `"`)
	}
	out, err := json.Marshal(h.value("", value))
	if err != nil {
		return json.RawMessage(`"` + lint.Hidden + `"`)
	}
	return out
}

// value is json for a value that has been read, the member of an object with this name. The contents of files are in base64.
func (h hider) value(name string, value any) any {
	switch value := value.(type) {
	case map[string]any:
		for name := range value {
			value[name] = h.value(name, value[name])
		}
	case []any:
		for i := range value {
			value[i] = h.value("", value[i])
		}
	case string:
		if data, err := base64.StdEncoding.DecodeString(value); err == nil && name == "data" {
			return []byte(h.text(string(data)))
		}
		return h.text(value)
	}
	return value
}
