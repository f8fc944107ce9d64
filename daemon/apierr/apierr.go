// Package apierr turns errors into what clients of BuildKit's API understand: a message in BuildKit's words, with details that say which
// vertex failed, how its process ended, and which lines of which file are to blame. Clients quote those lines.
package apierr

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/stack"
	digest "github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/once"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/parser"
	"github.com/kilnbuild/kiln/sandbox"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/execute"
)

// Language is that of Dockerfiles in the details of errors and in warnings.
const Language = "Dockerfile"

// maxMarked is how many lines of a file one error marks.
const maxMarked = 1000

// Ranges returns the lines from start to end, counted from 1, as the API has them: one range for each line.
func Ranges(start, end int) []*pb.Range {
	var all []*pb.Range
	for n := start; n <= min(max(start, end), start+maxMarked-1); n++ {
		all = append(all, &pb.Range{Start: &pb.Position{Line: int32(n)}, End: &pb.Position{Line: int32(n)}})
	}
	return all
}

// Build is what is known of a build whose errors are shown. The zero value knows nothing; all fields may be nil.
type Build struct {
	// Source returns the file of a name that an error is about, with a definition of where it is from; nil if there is none.
	Source func(name string) *pb.SourceInfo
	// Digests returns the digests that the client has for a vertex; none where it has that of the vertex itself.
	Digests func(llb.Digest) []string
	// Located returns the lines from which a client says that it has made a vertex of its own graph, by that digest.
	Located func(digest string) []*errdefs.Source
	// Failed returns the details of a step that failed: its op, and what can be looked at of its inputs and mounts. digest is the client's.
	Failed func(digest string, err *solver.VertexError) *errdefs.Solve
}

// Error returns err as the client of a build is to get it. It wraps err. A nil err gives nil.
func (b *Build) Error(err error) error {
	if err == nil {
		return nil
	}
	if errors.As(err, new(*shown)) { // it has been here already, perhaps before anybody knew the line
		if source := b.quoted(err); source != nil && len(errdefs.Sources(err)) == 0 {
			return errdefs.WithSource(&shown{text: Text(err), code: code(err), err: err}, source)
		}
		return err
	}
	var out error = &shown{text: Text(err), code: code(err), err: err}
	if exit, ok := exitCode(err); ok {
		out = &gateway.ExitError{ExitCode: exit, Err: out}
	}
	out = stack.Enable(out)
	if step, ok := errors.AsType[*solver.VertexError](err); ok {
		dgst := step.Vertex.Digest().String()
		if b.Digests != nil {
			if all := b.Digests(step.Vertex.Digest()); len(all) > 0 {
				dgst = all[0]
			}
		}
		if b.Failed != nil {
			if failed := b.Failed(dgst, step); failed != nil {
				out = &errdefs.SolveError{Solve: failed, Err: out}
			}
		}
		out = errdefs.WrapVertex(out, digest.Digest(dgst))
		if b.Located != nil {
			for _, source := range b.Located(dgst) {
				out = errdefs.WithSource(out, source)
			}
		}
	}
	if source := b.quoted(err); source != nil {
		out = errdefs.WithSource(out, source)
	}
	return out
}

// quoted returns the lines of a Dockerfile that an error is about; nil if it is about none.
func (b *Build) quoted(err error) *errdefs.Source {
	if b.Source == nil {
		return nil
	}
	at := llb.Location{}
	if e, ok := errors.AsType[*solver.VertexError](err); ok {
		at = e.Vertex.Meta().Location
	}
	if e, ok := errors.AsType[*parser.Error](err); ok && e.Line > 0 && at.StartLine == 0 {
		at = llb.Location{File: e.File, StartLine: e.Line, EndLine: e.EndLine}
	}
	if at.StartLine == 0 {
		return nil
	}
	info := b.Source(at.File)
	if info == nil {
		return nil
	}
	return &errdefs.Source{Info: info, Ranges: Ranges(at.StartLine, at.EndLine)}
}

// shown is an error in BuildKit's words.
type shown struct {
	text string
	code codes.Code
	err  error
}

func (e *shown) Error() string { return e.text }

// Unwrap returns the error itself.
func (e *shown) Unwrap() error { return e.err }

// Code implements what package grpcerrors looks for.
func (e *shown) Code() codes.Code { return e.code }

// code returns the status of an error.
func code(err error) codes.Code {
	var invalid *parser.Error
	switch {
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.As(err, new(*solver.PanicError)), errors.As(err, new(*once.PanicError)), errors.As(err, new(*panicError)):
		return codes.Internal
	case errors.As(err, new(*layer.LimitError)):
		return codes.ResourceExhausted
	case errors.As(err, &invalid), errors.As(err, new(*input.Error)):
		return codes.Unknown // as BuildKit has it: a client would show the name of any other
	}
	if c := grpcerrors.Code(err); c != codes.OK {
		return c
	}
	return codes.Unknown
}

// notStarted is the exit code of a program that does not exist, as a shell has it.
const notStarted = 127

// exitCode returns how the process ended of which err says that it failed.
func exitCode(err error) (uint32, bool) {
	if e, ok := errors.AsType[*execute.ExitError](err); ok {
		if e.Status.Signal != 0 {
			return 128 + uint32(e.Status.Signal), true
		}
		return uint32(e.Status.ExitCode), true
	}
	if errors.As(err, new(*sandbox.ExecError)) {
		return notStarted, true
	}
	if errors.As(err, new(*execute.TimeoutError)) {
		return gateway.UnknownExitStatus, true
	}
	return 0, false
}

// The limits of a status, in bytes: clients take 16 MiB of headers, and a detail, such as the op of a step, is in one, in base64. One that
// is larger has no details and a text that is cut.
const (
	maxStatus = 1 << 20
	maxText   = 64 << 10
)

// Status returns an error as a gRPC status, with all its details.
func Status(ctx context.Context, err error) *status.Status {
	if err == nil {
		return nil
	}
	st, ok := grpcerrors.AsGRPCStatus(grpcerrors.ToGRPC(ctx, err))
	if !ok || st == nil {
		st = status.New(codes.Unknown, err.Error())
	}
	return bounded(st)
}

func bounded(st *status.Status) *status.Status {
	if proto.Size(st.Proto()) <= maxStatus {
		return st
	}
	text := st.Message()
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return status.New(st.Code(), text)
}

// panicError is a panic in a call of the API.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("internal error: %v", e.value) }

// Guard calls f, and makes an error of a panic in it. report is told the value and the stack; it may be nil.
func Guard(report func(value any, stack []byte), f func() error) (err error) {
	defer func() {
		if value := recover(); value != nil {
			failed := &panicError{value, debug.Stack()}
			if report != nil {
				report(failed.value, failed.stack)
			}
			err = &shown{text: failed.Error(), code: codes.Internal, err: failed}
		}
	}()
	return f()
}

// Unary returns an interceptor that keeps panics from crossing the socket, and sends errors with their details.
func Unary(report func(value any, stack []byte)) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
		err = Guard(report, func() error {
			resp, err = handler(ctx, req)
			return err
		})
		return resp, sent(ctx, err)
	}
}

// Stream is Unary for streams.
func Stream(report func(value any, stack []byte)) grpc.StreamServerInterceptor {
	return func(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		return sent(s.Context(), Guard(report, func() error { return handler(srv, s) }))
	}
}

// sent returns an error as it is sent.
func sent(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if !errors.As(err, new(*shown)) {
		if _, isStatus := status.FromError(err); !isStatus {
			err = (&Build{}).Error(err)
		}
	}
	if e, ok := err.(statusError); ok && errors.Unwrap(err) == nil {
		return bounded(e.GRPCStatus()).Err() // ToGRPC would add the name of the status to the text, which clients add
	}
	return Status(ctx, err).Err()
}
