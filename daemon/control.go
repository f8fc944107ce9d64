package daemon

import (
	"context"

	controlapi "github.com/moby/buildkit/api/services/control"
	apitypes "github.com/moby/buildkit/api/types"
	"github.com/moby/buildkit/session/grpchijack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/daemon/apierr"
	"github.com/kilnbuild/kiln/daemon/client"
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
	return c.sessions.Serve(ctx, conn, opts, client.User(ctx))
}

// Solve does a build.
func (c *control) Solve(ctx context.Context, req *controlapi.SolveRequest) (*controlapi.SolveResponse, error) {
	if err := check(req); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	b := &buildJob{server: c.Server, request: req, user: client.User(ctx), cancel: cancel}
	if err := c.begin(ctx, b); err != nil {
		return nil, err
	}
	res, err := c.solve(ctx, b)
	err = b.failure(err)
	c.end(b, b.recorded(res, err))
	if err != nil {
		return nil, err
	}
	about := b.response(res)
	if err := b.exported(about); err != nil {
		return nil, err
	}
	return &controlapi.SolveResponse{ExporterResponse: about}, nil
}

// solve does a build when there is room for it.
func (c *control) solve(ctx context.Context, b *buildJob) (res *build.Result, err error) {
	leave, err := c.places.Take(ctx, b.user)
	if err != nil {
		return nil, err
	}
	defer leave()
	err = apierr.Guard(c.panicked, func() error {
		res, err = b.run(ctx)
		return err
	})
	return res, err
}
