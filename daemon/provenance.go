package daemon

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/attestation/slsa"
	"github.com/kilnbuild/kiln/build/provenance"
	"github.com/kilnbuild/kiln/daemon/llbpb"
	"github.com/kilnbuild/kiln/llb"
)

// Attributes of frontends that provenance has in other places, or not at all.
const (
	defaultContext = "context"
	attrContextKey = "contextkey"
	attrFilename   = "filename"
	prefixVCS      = "vcs:"
	prefixAttest   = "attest:"
)

// ofHost are attributes that say nothing of what is built.
var ofHost = []string{"cgroup-parent", "image-resolve-mode", "platform", "cache-imports"}

// askedFor returns how provenance describes a request for a frontend, without credentials.
func askedFor(frontend string, attrs map[string]string) *slsa.Asked {
	a := &slsa.Asked{Request: &slsa.Request{Frontend: frontend, Args: map[string]string{}}}
	context := contextName(attrs)
	for name, value := range attrs {
		switch {
		case slices.Contains(ofHost, name) || strings.HasPrefix(name, prefixAttest) || strings.HasPrefix(name, prefixVCS):
		case name == context && value != "":
			a.ConfigSource.URI = provenance.Redacted(value)
		case name == attrFilename && value != "":
			a.ConfigSource.Path = value
		case strings.HasPrefix(name, attrContext):
			a.Request.Args[name] = provenance.Redacted(value)
		default:
			a.Request.Args[name] = value
		}
	}
	if len(a.Request.Args) == 0 {
		a.Request.Args = nil
	}
	return a
}

// contextName returns the name of the attribute with the address of the build context.
func contextName(attrs map[string]string) string {
	return cmp.Or(attrs[attrContextKey], defaultContext)
}

// contextOf returns the address; "" for none.
func contextOf(attrs map[string]string) string { return attrs[contextName(attrs)] }

// vcsOf returns how the attributes of a frontend describe the working copy that the context is.
func vcsOf(attrs map[string]string) map[string]string {
	vcs := map[string]string{}
	for name, value := range attrs {
		if name, ok := strings.CutPrefix(name, prefixVCS); ok && value != "" {
			vcs[name] = provenance.Redacted(value)
		}
	}
	return vcs
}

// described returns how the client asked for a result.
func (b *buildJob) described(made *result) *provenance.API {
	req := b.request
	asked, attrs := askedFor("", nil), map[string]string(nil)
	for _, r := range made.all() {
		if r != nil && r.asked != nil {
			asked, attrs = askedFor(r.asked.frontend, r.asked.attrs), r.asked.attrs
			break
		}
	}
	if root := askedFor(req.Frontend, req.FrontendAttrs); !equal(asked, root) {
		asked.Request.Root = root
	}
	api := &provenance.API{
		Asked: *asked, Context: contextOf(attrs), Locals: b.client.Received(), VCS: vcsOf(attrs), Env: b.server.config.ProvenanceEnv,
		Define: define,
	}
	if asked.Request.Frontend == frontendDockerfile {
		api.DockerfileVersion = dockerfileVersion
	}
	return api
}

func equal(a, b *slsa.Asked) bool {
	return a.ConfigSource.URI == b.ConfigSource.URI && a.ConfigSource.Path == b.ConfigSource.Path &&
		a.Request.Frontend == b.Request.Frontend &&
		maps.Equal(a.Request.Args, b.Request.Args)
}

// define returns the steps of a root file system as LLB.
func define(root llb.Output) (*provenance.Definition, error) {
	def, vertices, err := llbpb.EncodeVertices(root)
	if err != nil {
		return nil, err
	}
	d := &provenance.Definition{Digests: map[string]string{}, Vertices: map[llb.Digest]string{}}
	for i, data := range def.Def {
		op := &pb.Op{}
		if err := op.Unmarshal(data); err != nil {
			return nil, fmt.Errorf("read an op: %w", err)
		}
		id := "step" + strconv.Itoa(i)
		step := slsa.Op{ID: id}
		for _, in := range op.Inputs {
			step.Inputs = append(step.Inputs, d.Digests[in.Digest]+":"+strconv.FormatInt(in.Index, 10))
		}
		op.Inputs = nil
		if step.Op, err = json.Marshal(op); err != nil {
			return nil, fmt.Errorf("encode an op: %w", err)
		}
		d.Ops = append(d.Ops, step)
		d.Digests[digest.FromBytes(data).String()] = id
	}
	for v, op := range vertices {
		if id, ok := d.Digests[op.String()]; ok {
			d.Vertices[v] = id
		}
	}
	return d, nil
}
