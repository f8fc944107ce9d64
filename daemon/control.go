package daemon

import (
	"context"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	apitypes "github.com/moby/buildkit/api/types"
	"github.com/moby/buildkit/session/grpchijack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// control implements BuildKit's Control service.
type control struct {
	controlapi.UnimplementedControlServer
	*Server
}

// Info says which version this is.
func (c *control) Info(context.Context, *controlapi.InfoRequest) (*controlapi.InfoResponse, error) {
	return &controlapi.InfoResponse{BuildkitVersion: buildkitVersion()}, nil
}

// ListWorkers describes the one worker.
func (c *control) ListWorkers(_ context.Context, req *controlapi.ListWorkersRequest) (*controlapi.ListWorkersResponse, error) {
	if len(req.Filter) > 0 {
		return nil, status.Error(codes.Unimplemented, "workers cannot be filtered: there is one")
	}
	return &controlapi.ListWorkersResponse{Record: []*apitypes.WorkerRecord{c.worker()}}, nil
}

// Session serves the connection by which builds reach what their client has.
func (c *control) Session(stream controlapi.Control_SessionServer) error {
	conn, closed, opts := grpchijack.Hijack(stream)
	defer conn.Close()
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	go func() {
		select {
		case <-closed:
			cancel()
		case <-ctx.Done():
		}
	}()
	return c.sessions.HandleConn(ctx, conn, opts)
}

// Status tells a client what happens in a build, from its beginning. A client may ask before it has asked for the build.
func (c *control) Status(req *controlapi.StatusRequest, stream controlapi.Control_StatusServer) error {
	if err := sendTime(stream); err != nil {
		return err
	}
	b, err := c.builds.wait(stream.Context(), req.Ref)
	if err != nil {
		return err
	}
	return b.log.Read(stream.Context(), stream.Send)
}

// timestamp is the header in which BuildKit's clients look for the server's time.
const timestamp = "buildkit-timestamp"

func sendTime(stream interface{ SendHeader(metadata.MD) error }) error {
	return stream.SendHeader(metadata.Pairs(timestamp, time.Now().Format(time.RFC3339Nano)))
}

// ListenBuildHistory has nothing to tell yet.
func (c *control) ListenBuildHistory(req *controlapi.BuildHistoryRequest, stream controlapi.Control_ListenBuildHistoryServer) error {
	if err := sendTime(stream); err != nil || req.EarlyExit {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// Solve does a build.
func (c *control) Solve(ctx context.Context, req *controlapi.SolveRequest) (*controlapi.SolveResponse, error) {
	if req.Ref == "" {
		return nil, status.Error(codes.InvalidArgument, "a build needs a ref")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	b := &buildJob{server: c.Server, request: req, cancel: cancel}
	if err := c.begin(b); err != nil {
		return nil, err
	}
	defer c.end(b)
	select {
	case c.room <- struct{}{}:
		defer func() { <-c.room }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	about, err := b.run(ctx)
	if err != nil {
		return nil, b.failure(err)
	}
	return &controlapi.SolveResponse{ExporterResponse: about}, nil
}
