// Package llbpb translates between BuildKit's form of a build graph, pb.Definition, and kiln's. It runs nothing and asks nobody. What it
// reads comes from clients, so everything in it is checked and limited.
//
// Most ops of one form are one op of the other. Where an op of LLB is several of kiln's, as the file op with several outputs, all of them
// have its digest in Graph.Digests. Where kiln has what LLB cannot say, as COPY --link, Encode adds a protobuf field of its own to the op,
// which other programs skip: see extension.
package llbpb

import (
	"context"
	"fmt"

	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/llb"
)

// The limits of a definition, and of all together that its ops define.
const (
	// MaxBytes is how long all ops may be together, and MaxOps how many there may be.
	MaxBytes = 64 << 20
	MaxOps   = 50_000
	// MaxDepth is how many ops there may be from one to another through their inputs.
	MaxDepth = 5_000
	// MaxFields is how many fields the messages of all ops may have together: a field takes two bytes, and some hundred once it is read.
	MaxFields = 2_000_000
	// MaxNested is how deep the builds may be nested that ops read from the results of others.
	MaxNested = 8
	// MaxNames is of how many ops a vertex knows that it comes from them.
	MaxNames = 1000
	// MaxText is how long what an op is called may be. The rest is cut off.
	MaxText = 4 << 10
)

// Options say how a definition is read.
type Options struct {
	// Host is the platform of ops that name none; the zero value is that of the machine.
	Host llb.Platform
	// Session is the id of the client's own session: a directory of that one is like one of no session.
	Session string
	// Allow are the entitlements that are granted, as in frontend.Options. NoInsecure is why no process may have privileges, whatever is
	// allowed; "" if it may.
	Allow      []string
	NoInsecure string
	// Admit says whether a source may be used, and can replace it by another one. It is called from several goroutines, once for each source
	// that the output needs; nil allows all.
	Admit func(ctx context.Context, source *pb.SourceOp, platform *pb.Platform) error
	// Source says what is fetched for an llb.Image, llb.HTTP or llb.Git, as in frontend.Options; nil for what the definition names. An op
	// that was not admitted is one of kiln's own, which Source says everything about.
	Source func(written string, op llb.Op, admitted bool) (llb.Op, error)
	// Read returns a file of a root file system, of at most limit bytes, for ops that build what another one has made the definition of;
	// nil if there can be no such ops.
	Read func(o llb.Output, file string, limit int64) ([]byte, error)
	// Project is that of the vertices' Place.
	Project string

	// Of a build that another op defines.
	nested int
	graph  *llb.Graph
	left   *budget
}

// budget is what a definition may still take of the limits, with all that are defined inside it.
type budget struct{ bytes, ops, fields int }

// Graph is a definition as kiln has it.
type Graph struct {
	// Output is what is asked for.
	Output llb.Output
	// Digests are those of the ops that a vertex comes from, each once, in the order of the definition.
	Digests map[llb.Digest][]digest.Digest
	// Ops are the ops that Output needs, by their digests.
	Ops map[digest.Digest]*Op
	// Sources are the files that Op.Locations are in.
	Sources []*pb.SourceInfo
	// Named are the sources that are repositories and images of OCI layouts, as the definition has them: with credentials, and names.
	Named []*pb.SourceOp
}

// Op is an op of a definition.
type Op struct {
	// Name is what it is called.
	Name   string
	Inputs []digest.Digest
	// Group is what it is displayed with; nil for none.
	Group *pb.ProgressGroup
	// Locations are where it comes from.
	Locations []*pb.Location
	// Vertices are what it became; none if it only passes on what others make.
	Vertices []llb.Digest
}

// Error is an op that cannot be read or done.
type Error struct {
	// Digest is the op's; "" if it is not known, or the error is not of one op.
	Digest digest.Digest
	// Kind is what kind of op it is, "exec"; "" for none.
	Kind string
	Err  error
}

func (e *Error) Error() string {
	switch {
	case e.Kind != "":
		return fmt.Sprintf("invalid %s op %s: %v", e.Kind, e.Digest, e.Err)
	case e.Digest != "":
		return fmt.Sprintf("invalid op %s: %v", e.Digest, e.Err)
	}
	return fmt.Sprintf("invalid definition: %v", e.Err)
}

// Unwrap returns what is wrong.
func (e *Error) Unwrap() error { return e.Err }

// LimitError is what is too large.
type LimitError struct {
	// What is counted: "ops", and Max how many there may be.
	What string
	Max  int
}

func (e *LimitError) Error() string { return fmt.Sprintf("it has more than %d %s", e.Max, e.What) }

// UnsupportedError is something of BuildKit's that kiln does not have.
type UnsupportedError struct {
	What string
}

func (e *UnsupportedError) Error() string { return e.What + " is not supported" }

// EntitlementError is something that the client is not allowed.
type EntitlementError struct {
	// Entitlement is what would allow it: "network.host".
	Entitlement string
	// Why is why nothing can allow it; "" otherwise.
	Why string
}

func (e *EntitlementError) Error() string {
	if e.Why != "" {
		return fmt.Sprintf("%s is not possible here: %s", e.Entitlement, e.Why)
	}
	return e.Entitlement + " is not allowed"
}
