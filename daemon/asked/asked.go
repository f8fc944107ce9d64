// Package asked knows which requests to frontends made the root file systems that clients of BuildKit's API have, and describes both for
// provenance. It makes nothing itself.
package asked

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/moby/buildkit/solver/pb"

	"github.com/kilnbuild/kiln/attestation/slsa"
	"github.com/kilnbuild/kiln/build/provenance"
)

// Attributes of frontends that provenance has in other places, or not at all.
const (
	defaultContext = "context"
	attrContextKey = "contextkey"
	attrFilename   = "filename"
	prefixContext  = "context:"
	prefixVCS      = "vcs:"
	prefixAttest   = "attest:"
)

// CgroupParent is the attribute with the control group in which steps get theirs.
const CgroupParent = "cgroup-parent"

// ofHost are attributes that say nothing of what is built.
var ofHost = []string{CgroupParent, "image-resolve-mode", "platform", "cache-imports"}

// Limits of the requests that made the inputs of one request, with those of their inputs. What is beyond is not described.
const (
	// maxInputs bounds their attributes in bytes, where every request and every attribute counts for some more, and maxNested how many of
	// them may be the inputs of each other.
	maxInputs  = 4 << 20
	maxNested  = 32
	perRequest = 1 << 10
	perAttr    = 64
)

// Request is a request for a frontend, or for what a client makes without one. It does not change.
type Request struct {
	Frontend string
	Attrs    map[string]string
	// Asked is how provenance describes it, with the requests that made its inputs, and without credentials. It is shared.
	Asked slsa.Asked
	// Partial says that not all of these are described.
	Partial bool

	// size is as maxInputs counts it, and nested how many requests are the inputs of each other from it on.
	size, nested int
}

// Request returns a request of the build. Inputs are those that the client gives; who made them is looked up now.
func (b *Build) Request(frontend string, attrs map[string]string, inputs map[string]*pb.Definition) *Request {
	r := &Request{Frontend: frontend, Attrs: attrs, Asked: describe(frontend, attrs)}
	made := map[string]*slsa.Asked{}
	for _, name := range slices.Sorted(maps.Keys(inputs)) {
		in := b.find(inputs[name])
		switch {
		case in == nil:
		case r.size+in.size > maxInputs || in.nested == maxNested:
			r.Partial = true
		default:
			made[name] = &in.Asked
			r.size, r.nested = r.size+in.size, max(r.nested, in.nested)
			r.Partial = r.Partial || in.Partial
		}
	}
	if len(made) > 0 {
		r.Asked.Request.Inputs = made
	}
	r.nested++
	r.size += perRequest
	for name, value := range attrs {
		r.size += perAttr + len(name) + len(value)
	}
	return r
}

// As returns the same request for another frontend.
func (r *Request) As(frontend string, attrs map[string]string) *Request {
	other := *r
	other.Frontend, other.Attrs, other.Asked = frontend, attrs, describe(frontend, attrs)
	other.Asked.Request.Inputs = r.Asked.Request.Inputs
	return &other
}

// describe returns how provenance describes a request without its inputs.
func describe(frontend string, attrs map[string]string) slsa.Asked {
	a := slsa.Asked{Request: &slsa.Request{Frontend: frontend}}
	args := map[string]string{}
	context := contextName(attrs)
	for name, value := range attrs {
		switch {
		case slices.Contains(ofHost, name) || strings.HasPrefix(name, prefixAttest) || strings.HasPrefix(name, prefixVCS):
		case name == context && value != "":
			a.ConfigSource.URI = provenance.Redacted(value)
		case name == attrFilename && value != "":
			a.ConfigSource.Path = value
		case strings.HasPrefix(name, prefixContext):
			args[name] = provenance.Redacted(value)
		default:
			args[name] = value
		}
	}
	if len(args) > 0 {
		a.Request.Args = args
	}
	return a
}

// contextName returns the name of the attribute with the address of the build context.
func contextName(attrs map[string]string) string {
	return cmp.Or(attrs[attrContextKey], defaultContext)
}

// context returns the address of the build context as the client wrote it; "" for none.
func (r *Request) context() string { return r.Attrs[contextName(r.Attrs)] }

// vcs returns how the attributes describe the working copy that the context is.
func (r *Request) vcs() map[string]string {
	vcs := map[string]string{}
	for name, value := range r.Attrs {
		if name, ok := strings.CutPrefix(name, prefixVCS); ok && value != "" {
			vcs[name] = provenance.Redacted(value)
		}
	}
	return vcs
}

// Describe describes what made a result: the request of its frontend, nil if no frontend made it, and the client's own one.
func Describe(made, root *Request) *provenance.API {
	if made == nil {
		made = &Request{Asked: describe("", nil)}
	}
	api := &provenance.API{
		Asked: made.Asked, Partial: made.Partial, Context: made.context(), VCS: made.vcs(), Addresses: []string{made.context(), root.context()},
	}
	if !reflect.DeepEqual(made.Asked, root.Asked) {
		request := *made.Asked.Request
		request.Root = &root.Asked
		api.Asked.Request = &request
		api.Partial = api.Partial || root.Partial
	}
	return api
}
