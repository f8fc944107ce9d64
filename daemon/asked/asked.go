// Package asked describes requests for frontends as provenance has them: what was asked for, and the steps that came of it as LLB.
package asked

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

// Request is a request for a frontend.
type Request struct {
	// Frontend is its name, and Attrs are its attributes.
	Frontend string
	Attrs    map[string]string
	// Inputs are the requests that made those inputs which frontends have made, by the names of the inputs.
	Inputs map[string]*Request
}

// Attributes of frontends that provenance has in other places, or not at all.
const (
	defaultContext = "context"
	attrContextKey = "contextkey"
	attrFilename   = "filename"
	prefixVCS      = "vcs:"
	prefixContext  = "context:"
	prefixAttest   = "attest:"
)

// CgroupParent is the attribute with the control group in which steps get theirs.
const CgroupParent = "cgroup-parent"

// ofHost are attributes that say nothing of what is built.
var ofHost = []string{CgroupParent, "image-resolve-mode", "platform", "cache-imports"}

// MaxInputs bounds the requests that provenance names of those that made inputs, and inputs of inputs. Others are left out: each can have
// been made of the same few.
const MaxInputs = 100

// Describe returns how provenance describes a request for a frontend, without credentials. room is for how many inputs.
func (r *Request) Describe(room *int) *slsa.Asked {
	a := describe(r.Frontend, r.Attrs)
	for _, name := range slices.Sorted(maps.Keys(r.Inputs)) {
		if *room == 0 {
			break
		}
		*room--
		if a.Request.Inputs == nil {
			a.Request.Inputs = map[string]*slsa.Asked{}
		}
		a.Request.Inputs[name] = r.Inputs[name].Describe(room)
	}
	return a
}

// describe is Describe without inputs.
func describe(frontend string, attrs map[string]string) *slsa.Asked {
	a := &slsa.Asked{Request: &slsa.Request{Frontend: frontend, Args: map[string]string{}}}
	context := contextName(attrs)
	for name, value := range attrs {
		switch {
		case slices.Contains(ofHost, name) || strings.HasPrefix(name, prefixAttest) || strings.HasPrefix(name, prefixVCS):
		case name == context && value != "":
			a.ConfigSource.URI = provenance.Redacted(value)
		case name == attrFilename && value != "":
			a.ConfigSource.Path = value
		case strings.HasPrefix(name, prefixContext):
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

// Context returns the address of the build context; "" for none.
func (r *Request) Context() string { return r.Attrs[contextName(r.Attrs)] }

// VCS returns how the attributes describe the working copy that the context is.
func (r *Request) VCS() map[string]string {
	vcs := map[string]string{}
	for name, value := range r.Attrs {
		if name, ok := strings.CutPrefix(name, prefixVCS); ok && value != "" {
			vcs[name] = provenance.Redacted(value)
		}
	}
	return vcs
}

// Equal reports whether two descriptions are of the same request, whatever its inputs.
func Equal(a, b *slsa.Asked) bool {
	return a.ConfigSource.URI == b.ConfigSource.URI && a.ConfigSource.Path == b.ConfigSource.Path &&
		a.Request.Frontend == b.Request.Frontend && maps.Equal(a.Request.Args, b.Request.Args)
}

// Define returns the steps of a root file system as LLB.
func Define(root llb.Output) (*provenance.Definition, error) {
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
