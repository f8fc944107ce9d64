package daemon

import (
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/daemon/llbpb"
)

// Limits of what is held for clients.
const (
	// maxKnown is how many builds are known at the same time: those that are worked on, those that wait, and those that ended just now.
	maxKnown = 4096
	// maxRefs is how many results one build has, and maxSent how many bytes its definitions and the attributes of requests have together, of
	// which each counts for perAttr more.
	maxRefs = 10_000
	maxSent = 128 << 20
	perAttr = 64
	// maxRequests is how many requests by LLBBridge are about one build: something is kept of each until that ends.
	maxRequests = 200_000
	// maxFrontends is how many frontends of one build run at the same time that are images: one can call another.
	maxFrontends = 64
	// maxExporters is how many exporters a request has.
	maxExporters = 64
	// maxFailed is how many steps that failed are remembered of a build whose frontend is an image.
	maxFailed = 100
)

// held is what a build holds for its client until it ends. The lock is that of the build.
type held struct {
	refs map[string]*ref
	// graphs are what definitions of the client were decoded to, and definitions what it has sent, for the ops in errors.
	graphs      []*llbpb.Graph
	definitions []given
	// returned are the metadata of the result.
	returned  map[string][]byte
	bytes     int // of definitions and attributes
	frontends int // that run
	requests  int
	// local is what a command line has, which has no client and no record; nil for a client's request.
	local *local
}

// given is a definition that a client has sent, and which sources it may use.
type given struct {
	*pb.Definition
	admission admission
}

// full is the error of a build that would hold too much.
func full(what string, limit int) error {
	return status.Errorf(codes.ResourceExhausted, "the build has more than %d %s", limit, what)
}

// room returns an error unless n more results can be held.
func (b *buildJob) room(n int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.held.refs)+n > maxRefs {
		return full("results", maxRefs)
	}
	return nil
}

// take counts a definition before it is decoded.
func (b *buildJob) take(def *pb.Definition) error { return b.sent(def.SizeVT()) }

// takeAttrs counts the attributes of a request, which its results keep.
func (b *buildJob) takeAttrs(attrs map[string]string) error {
	size := 0
	for name, value := range attrs {
		size += len(name) + len(value) + perAttr
	}
	return b.sent(size)
}

// sent counts bytes that the client has sent.
func (b *buildJob) sent(size int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held.bytes += size; b.held.bytes > maxSent {
		return full("bytes of definitions and attributes", maxSent)
	}
	return nil
}

// enter counts a frontend that begins to run, until leave is called.
func (b *buildJob) enter() (leave func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held.frontends == maxFrontends {
		return nil, full("frontends that run", maxFrontends)
	}
	b.held.frontends++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.held.frontends--
	}, nil
}
