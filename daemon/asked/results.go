package asked

import (
	"iter"
	"maps"
	"reflect"
	"slices"
	"sync"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

// Results are the root file systems that frontends have made for builds that go on, by what their definitions ask for. Those of one user
// say nothing to others. It is safe for concurrent use.
type Results struct {
	mu  sync.Mutex
	all map[result]map[*Build][]*Request
	// makers are the builds for which outputs of an op were made.
	makers map[op]map[*Build]bool
}

// op is an op of the definition of a result.
type op struct{ user, digest string }

// result is the output of an op that a definition asks for.
type result struct {
	op
	index int64
}

// NewResults returns Results without any.
func NewResults() *Results {
	return &Results{all: map[result]map[*Build][]*Request{}, makers: map[op]map[*Build]bool{}}
}

// Build is a build that goes on.
type Build struct {
	// Root is what the client asked for.
	Root *Request
	// Session is that of the client. It does not change once something was made.
	Session string

	results *Results
	user    string
	own     map[result]bool
}

// Begin begins a build of a user, who asks for what Request describes. Close must be called.
func (r *Results) Begin(user, frontend string, attrs map[string]string, inputs map[string]*pb.Definition) *Build {
	b := &Build{results: r, user: user, own: map[result]bool{}}
	b.Root = b.Request(frontend, attrs, inputs)
	return b
}

// Close forgets what was made for the build.
func (b *Build) Close() {
	b.results.mu.Lock()
	defer b.results.mu.Unlock()
	for made := range b.own {
		if delete(b.results.all[made], b); len(b.results.all[made]) == 0 {
			delete(b.results.all, made)
		}
		if delete(b.results.makers[made.op], b); len(b.results.makers[made.op]) == 0 {
			delete(b.results.makers, made.op)
		}
	}
	clear(b.own)
}

// result returns what a definition asks for; false if that is nothing.
func (b *Build) result(def *pb.Definition) (result, bool) {
	if len(def.GetDef()) == 0 {
		return result{}, false
	}
	last := &pb.Op{}
	if err := last.Unmarshal(def.Def[len(def.Def)-1]); err != nil || len(last.Inputs) == 0 {
		return result{}, false // whoever decodes it says so
	}
	return result{op{b.user, last.Inputs[0].GetDigest()}, last.Inputs[0].GetIndex()}, true
}

// Made notes that the client has a definition of what a request made.
func (b *Build) Made(def *pb.Definition, r *Request) {
	made, ok := b.result(def)
	if !ok {
		return
	}
	b.results.mu.Lock()
	defer b.results.mu.Unlock()
	before := b.results.all[made][b]
	if len(before) > 1 || slices.ContainsFunc(before, r.same) {
		return // two are as good as more: nobody knows which it was
	}
	if b.results.all[made] == nil {
		b.results.all[made] = map[*Build][]*Request{}
	}
	b.results.all[made][b] = append(before, r)
	if b.results.makers[made.op] == nil {
		b.results.makers[made.op] = map[*Build]bool{}
	}
	b.results.makers[made.op][b] = true
	b.own[made] = true
}

// Makers returns the sessions of the other builds for which results were made that are among ops.
func (b *Build) Makers(ops iter.Seq[digest.Digest]) []string {
	b.results.mu.Lock()
	defer b.results.mu.Unlock()
	sessions := map[string]bool{}
	for d := range ops {
		for maker := range b.results.makers[op{b.user, d.String()}] {
			if maker.Session != "" && maker.Session != b.Session {
				sessions[maker.Session] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(sessions))
}

// same reports whether requests have the same description.
func (r *Request) same(other *Request) bool {
	return r == other || reflect.DeepEqual(r.Asked, other.Asked)
}

// find returns the request that made what a definition asks for; nil if none is known, or several are that differ.
func (b *Build) find(def *pb.Definition) *Request {
	made, ok := b.result(def)
	if !ok {
		return nil
	}
	b.results.mu.Lock()
	defer b.results.mu.Unlock()
	var found *Request
	for _, requests := range b.results.all[made] {
		for _, r := range requests {
			if found != nil && !found.same(r) {
				return nil
			}
			found = r
		}
	}
	return found
}
