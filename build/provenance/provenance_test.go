package provenance

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	slsa1 "github.com/in-toto/attestation/go/predicates/provenance/v1"
	intoto "github.com/in-toto/attestation/go/v1"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/attestation/slsa"
	"github.com/kilnbuild/kiln/frontend"
	"github.com/kilnbuild/kiln/internal/material"
	"github.com/kilnbuild/kiln/llb"
)

// bases has an image of one layer by every name.
type bases struct{}

func (bases) ResolveImage(_ context.Context, req frontend.ImageRequest) (*frontend.BaseImage, error) {
	img := &frontend.BaseImage{Digest: "sha256:" + strings.Repeat("ab", 32)}
	img.Config = dockerspec.DockerOCIImage{Image: ocispec.Image{
		Platform: ocispec.Platform{OS: req.Platform.OS, Architecture: req.Platform.Architecture},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.Digest(img.Digest)}},
		History:  []ocispec.History{{CreatedBy: "base"}},
	}}
	return img, nil
}

const dockerfile = `# syntax=docker/dockerfile:1
ARG GIT_TOKEN=sesame-default
FROM debian:bookworm AS build
ARG GIT_TOKEN
ARG VERSION
ENV COPIED=$GIT_TOKEN
RUN --mount=type=secret,id=key,required=true --mount=type=ssh --mount=type=secret,id=other,env=OTHER \
    curl -H $GIT_TOKEN https://host/$VERSION
RUN --network=none <<E
echo more
E
FROM scratch
COPY --from=build /made /$VERSION/
ADD https://host/file?canary-free /file
ADD https://host/r.git#v1 /src
COPY a b /context/
ARG GIT_TOKEN
COPY <<E /conf
token=$GIT_TOKEN
E
LABEL x=y
`

// lowered returns the build of the Dockerfile with arguments.
func lowered(t *testing.T, args map[string]string, platforms ...llb.Platform) *Build {
	t.Helper()
	result, err := frontend.Build(t.Context(), []byte(dockerfile), frontend.Options{
		BuildArgs: args, BuildPlatform: llb.Host(), Platforms: platforms, Labels: map[string]string{"owner": "me " + args["GIT_TOKEN"]},
	}, bases{})
	if err != nil {
		t.Fatal(err)
	}
	return &Build{
		ID: "20261130T000000Z", Started: time.Unix(1e9, 0), Context: "/home/canary/src", LocalContext: true,
		Dockerfile: []byte(dockerfile), Filename: "Dockerfile", LocalDockerfile: true,
		Request: Request{
			Target: "", Args: args, Labels: map[string]string{"owner": "me " + args["GIT_TOKEN"]},
			Named: map[string]string{"lib": "/home/canary/lib", "img": "docker-image://alpine", "out": "oci-layout:///home/canary/l:v1",
				"repo": "https://user:canary@host/x.git"},
			RunOptions: llb.RunOptions{ExtraHosts: []llb.ExtraHost{{Host: "h", IP: "1.2.3.4"}}, Ulimits: []llb.Ulimit{{Name: "nofile", Soft: 1, Hard: 2}}},
		},
		Images: result.Images,
		Materials: []material.Material{
			{Kind: material.Git, Name: "https://host/r.git#v1", Digest: material.Commit(strings.Repeat("0", 40))},
			{Kind: material.File, Name: "https://host/file?canary-free", Digest: "sha256:" + strings.Repeat("1", 64)},
			{Kind: material.Image, Name: "docker.io/library/debian:bookworm", Digest: "sha256:" + strings.Repeat("2", 64),
				Platform: llb.Host().String(), Manifest: "sha256:" + strings.Repeat("ab", 32)},
			{Kind: material.Layout, Name: "/home/canary/layout:v1", Digest: "sha256:" + strings.Repeat("3", 64), Platform: "linux/arm64"},
		},
	}
}

func (b *Build) encoded(t *testing.T, o attestation.Provenance) string {
	t.Helper()
	predicate, err := b.Of(0, nil, time.Unix(1e9+5, 0), &o)
	if err != nil {
		t.Fatal(err)
	}
	data, err := slsa.Encode(predicate)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

var maxV1 = attestation.Provenance{Max: true, PredicateType: attestation.SLSA1}

// TestSecrets holds that no value of a secret is in a description, nor where things are on the client.
func TestSecrets(t *testing.T) {
	b := lowered(t, map[string]string{"GIT_TOKEN": "canary-given", "VERSION": "7", "HTTP_PROXY": "http://u:canary@proxy"})
	for _, version := range []string{attestation.SLSA1, attestation.SLSA02} {
		text := b.encoded(t, attestation.Provenance{Max: true, PredicateType: version})
		for _, data := range regexp.MustCompile(`"data": "([^"]+)"`).FindAllStringSubmatch(text, -1) {
			plain, err := base64.StdEncoding.DecodeString(data[1])
			if err != nil {
				t.Fatal(err)
			}
			text += string(plain)
		}
		text = strings.ReplaceAll(text, "canary-free", "")
		for _, secret := range []string{"canary", "sesame", "/home"} {
			if i := strings.Index(text, secret); i >= 0 {
				t.Errorf("%s: %q is in it: …%s…", version, secret, text[i:min(i+50, len(text))])
			}
		}
		for _, want := range []string{
			`"build-arg:GIT_TOKEN": "****"`, `"build-arg:VERSION": "7"`, `"label:owner": "me ****"`, `"context:lib": "local:lib"`,
			`"context:out": "oci-layout://out"`, `"context:repo": "https://xxxxx@host/x.git"`, `"GIT_TOKEN=****"`, `"COPIED=****"`, `token=****`, `GIT_TOKEN=****`,
			`"ulimit": "nofile=1:2"`, `"pkg:oci/layout@v1?platform=linux%2Farm64"`,
		} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: it lacks %s", version, want)
			}
		}
	}
}

// TestSecretsOfClients holds that no value of a secret is in the description of a build that a client of BuildKit's API asked for, wherever
// the client has it, and that all else stays as it is.
func TestSecretsOfClients(t *testing.T) {
	b := lowered(t, map[string]string{"VERSION": "7"})
	in64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	in := &slsa.Request{Args: map[string]string{
		"build-arg:API_TOKEN": "canary-input", "build-arg:IS_SECRET": "true", "build-arg:http_proxy": "http://u:canary-proxy@p",
		"label:l":          "a canary-input",
		"input-metadata:x": `{"containerimage.config":"` + in64(`{"Env":["A=canary-input"],"b":true}`) + `"}`,
	}}
	b.API = &API{
		Asked: slsa.Asked{Request: &slsa.Request{Frontend: "gateway.v0", Inputs: map[string]*slsa.Asked{"x": {Request: in}}}},
		Define: func(llb.Output) (*Definition, error) {
			op := `{"mounts":[{"readonly":true,"n":10000000000000001}],"path":"/canary-input","data":"` + in64("token=canary-input") + `"}`
			return &Definition{
				Ops:    []slsa.Op{{ID: "step0", Op: json.RawMessage(op)}},
				Source: &slsa.Source{Infos: []slsa.SourceInfo{{Filename: "main.hcl", Data: []byte("x = canary-input")}}},
			}, nil
		},
	}
	text := b.encoded(t, maxV1)
	for range 2 { // what is in base64 may have more in it
		for _, data := range regexp.MustCompile(`[A-Za-z0-9+/]{10,}=*`).FindAllString(text, -1) {
			if plain, err := base64.StdEncoding.DecodeString(data); err == nil {
				text += string(plain)
			}
		}
	}
	for _, secret := range []string{"canary-input", "canary-proxy"} {
		if i := strings.Index(text, secret); i >= 0 {
			t.Errorf("a secret is in it: …%s…", text[max(0, i-50):i+20])
		}
	}
	for _, want := range []string{
		`"build-arg:API_TOKEN": "****"`, `"label:l": "a ****"`, `"path": "/****"`, `"readonly": true`, `10000000000000001`,
		`token=****`, `x = ****`,
		`"A=****"`, `"b":true`, `"filename": "Dockerfile"`, `"filename": "main.hcl"`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("it lacks %s", want)
		}
	}
	if in.Args["build-arg:API_TOKEN"] != "canary-input" {
		t.Error("the request was changed")
	}
}

// TestDepths holds which step made which layers of an image without a history.
func TestDepths(t *testing.T) {
	g := &llb.Graph{}
	scratch := g.Add(llb.Scratch{}, llb.Meta{}).Output(0)
	base := g.Add(llb.Image{Ref: "debian"}, llb.Meta{}).Output(0)
	passed := g.Add(llb.Passthrough{Outputs: []int{0}}, llb.Meta{}, base).Output(0)
	made := g.Add(llb.File{Actions: []llb.Action{{Mkdir: &llb.Mkdir{Path: "/d"}}}}, llb.Meta{}, scratch).Output(0)
	top := g.Add(llb.Merge{}, llb.Meta{}, passed, made, made).Output(0)
	blobs := []ocispec.Descriptor{{Digest: "sha256:1"}, {Digest: "sha256:2"}, {Digest: "sha256:3"}, {Digest: "sha256:4"}}
	graph := newGraph(top, hider{})
	got := graph.layers(frontend.Image{Root: top}, blobs, map[llb.Output]int{base: 2, passed: 2, top: 4})
	lower, upper := got[graph.output(base)], got[graph.output(top)]
	if len(got) != 2 || len(lower[0]) != 2 || len(upper[0]) != 2 || upper[0][0].Digest != "sha256:3" {
		t.Errorf("%v", got)
	}
}

// TestSchema holds that what is written has what the specifications require, and that in-toto's own library reads version 1.
func TestSchema(t *testing.T) {
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	schema, err := compiler.Compile("testdata/statement.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if schema.Validate(map[string]any{"_type": attestation.StatementType, "predicateType": attestation.SLSA1, "predicate": map[string]any{}}) == nil {
		t.Fatal("the schema requires nothing")
	}
	b := lowered(t, map[string]string{"VERSION": "7"})
	for _, o := range []attestation.Provenance{
		maxV1, {PredicateType: attestation.SLSA1}, {PredicateType: attestation.SLSA1, Anonymous: true},
		{Max: true, PredicateType: attestation.SLSA02}, {PredicateType: attestation.SLSA02, Anonymous: true, BuilderID: "https://ci.example/1"},
	} {
		a := attestation.Attestation{PredicateType: o.PredicateType, Predicate: json.RawMessage(b.encoded(t, o))}
		data, err := json.Marshal(a.Statement([]attestation.Resource{{Name: "_", Digest: map[string]string{"sha256": strings.Repeat("0", 64)}}}))
		if err != nil {
			t.Fatal(err)
		}
		plain, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(plain); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
		var s intoto.Statement
		if err := protojson.Unmarshal(data, &s); err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(); err != nil {
			t.Error(err)
		}
		if o.PredicateType != attestation.SLSA1 {
			continue
		}
		var p slsa1.Provenance
		// SLSA allows further fields with a prefix, such as buildkit_metadata.
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(a.Predicate, &p); err != nil {
			t.Fatal(err)
		}
		if err := p.Validate(); err != nil {
			t.Error(err)
		}
		base := "pkg:docker/debian@bookworm?platform=" + strings.ReplaceAll(llb.Host().String(), "/", "%2F")
		if got := p.GetBuildDefinition().GetResolvedDependencies(); len(got) != 4 || got[0].GetUri() != base {
			t.Errorf("materials: %v", got)
		}
	}
}

// TestGraph holds that each step comes after those that it reads from, and where steps and layers are.
func TestGraph(t *testing.T) {
	b := lowered(t, map[string]string{"VERSION": "7"})
	blobs := []ocispec.Descriptor{{Digest: "sha256:1"}, {Digest: "sha256:2"}, {Digest: "sha256:3"}, {Digest: "sha256:4"}, {Digest: "sha256:5"}}
	predicate, err := b.Of(0, blobs, time.Unix(1e9+5, 0), &maxV1)
	if err != nil {
		t.Fatal(err)
	}
	p, ok := predicate.(*slsa.Provenance)
	if !ok {
		t.Fatal("it is of another version")
	}
	c := p.BuildDefinition.InternalParameters.BuildConfig
	seen := map[string]bool{}
	for _, s := range c.Steps {
		for _, in := range s.Inputs {
			if id, _, _ := strings.Cut(in, ":"); !seen[id] {
				t.Errorf("%s reads from %s, which is not before it", s.ID, in)
			}
		}
		seen[s.ID] = true
	}
	m := p.RunDetails.Metadata
	if len(c.DigestMapping) != len(c.Steps) || len(m.BuildKit.Layers) != len(blobs) {
		t.Errorf("%d steps, %d digests, layers of %d steps", len(c.Steps), len(c.DigestMapping), len(m.BuildKit.Layers))
	}
	for id, l := range m.BuildKit.Source.Locations {
		i := slices.IndexFunc(c.Steps, func(s slsa.Step) bool { return s.ID == id })
		name, _, _ := strings.Cut(c.Steps[i].Name, " ")
		line := strings.Split(dockerfile, "\n")[l.Locations[0].Ranges[0].Start.Line-1]
		if !strings.HasPrefix(line, name) && !strings.HasPrefix(c.Steps[i].Name, "FROM") {
			if c.Steps[i].Op["http"] == nil && c.Steps[i].Op["git"] == nil {
				t.Errorf("%s is %q, and its line %q", id, c.Steps[i].Name, line)
			}
		}
	}
	request := p.BuildDefinition.ExternalParameters.Request
	if want := []slsa.Needed{{ID: "key"}, {ID: "other", Optional: true}}; !slices.Equal(request.Secrets, want) {
		t.Errorf("secrets: %v", request.Secrets)
	}
	if want := []slsa.Needed{{ID: "default", Optional: true}}; !slices.Equal(request.SSH, want) {
		t.Errorf("agents: %v", request.SSH)
	}
	if m.Hermetic || m.Completeness.ResolvedDependencies || !m.Completeness.Request {
		t.Errorf("%+v", m)
	}
	old := p.V02().V1()
	old.RunDetails.Builder.Version, old.BuildDefinition.InternalParameters.TargetPlatform = p.RunDetails.Builder.Version, llb.Host().String()
	before, _ := slsa.Encode(p)
	after, err := slsa.Encode(old)
	if err != nil || string(before) != string(after) {
		t.Errorf("version 0.2 has something else: %s", after)
	}
}

// TestMin holds that mode=min has nothing that may be private, and that an anonymous description is the same each time.
func TestMin(t *testing.T) {
	b := lowered(t, map[string]string{"VERSION": "7.7.7"})
	text := b.encoded(t, attestation.Provenance{PredicateType: attestation.SLSA1})
	for _, private := range []string{"7.7.7", "owner", "key", "steps", "echo", "locations"} {
		if strings.Contains(text, private) {
			t.Errorf("%q is in it", private)
		}
	}
	o := attestation.Provenance{Max: true, PredicateType: attestation.SLSA1, Anonymous: true}
	first := b.encoded(t, o)
	b = lowered(t, map[string]string{"VERSION": "7.7.7"})
	b.ID, b.Started, b.Request.NoCache = "another", time.Unix(5, 0), true
	if b.encoded(t, o) != first {
		t.Error("it differs")
	}
}
