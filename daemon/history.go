package daemon

import (
	"context"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/daemon/records"
)

// Status tells a client what happens in a build, from its beginning. A client may ask before it has asked for the build, and for one of the
// history.
func (c *control) Status(req *controlapi.StatusRequest, stream controlapi.Control_StatusServer) error {
	if err := sendTime(stream); err != nil {
		return err
	}
	return c.records.Status(stream.Context(), req.Ref, stream.Send)
}

// timestamp is the header in which BuildKit's clients look for the server's time.
const timestamp = "buildkit-current-timestamp"

func sendTime(stream interface{ SendHeader(metadata.MD) error }) error {
	return stream.SendHeader(metadata.Pairs(timestamp, time.Now().Format(time.RFC3339Nano)))
}

// ListenBuildHistory tells which builds there are and were, and what happens to them.
func (c *control) ListenBuildHistory(req *controlapi.BuildHistoryRequest, stream controlapi.Control_ListenBuildHistoryServer) error {
	if err := sendTime(stream); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	go func() {
		// Who listens would keep the server from its end.
		select {
		case <-c.draining:
			cancel(errStopping)
		case <-ctx.Done():
		}
	}()
	return c.records.Listen(ctx, req, stream.Send)
}

// UpdateBuildHistory pins a build of the history, or removes it.
func (c *control) UpdateBuildHistory(
	_ context.Context, req *controlapi.UpdateBuildHistoryRequest,
) (*controlapi.UpdateBuildHistoryResponse, error) {
	return &controlapi.UpdateBuildHistoryResponse{}, c.records.Update(req)
}

// DiskUsage says what is kept and can be removed.
func (c *control) DiskUsage(ctx context.Context, req *controlapi.DiskUsageRequest) (*controlapi.DiskUsageResponse, error) {
	return records.DiskUsage(ctx, c.config.Root, req)
}

// Prune removes what is not used.
func (c *control) Prune(req *controlapi.PruneRequest, stream controlapi.Control_PruneServer) error {
	return records.Prune(stream.Context(), c.config.Root, req, stream.Send)
}

// Warn tells whoever follows the build of what a front end has found.
func (s *bridges) Warn(ctx context.Context, req *gateway.WarnRequest) (*gateway.WarnResponse, error) {
	_, b, end, err := s.build(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if _, err := digest.Parse(req.Digest); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "the digest of the vertex that a warning is about: %v", err)
	}
	if !b.log.Warn(&controlapi.VertexWarning{
		Vertex: req.Digest, Level: req.Level, Short: req.Short, Detail: req.Detail, Url: req.Url, Info: req.Info, Ranges: req.Ranges,
	}) {
		return nil, status.Error(codes.ResourceExhausted, "the build has too many warnings")
	}
	b.warned(req)
	return &gateway.WarnResponse{}, nil
}

// recording returns what the history has of a request.
func (b *buildJob) recording(ctx context.Context) records.Request {
	req := b.request
	return records.Request{
		Ref: req.Ref, Internal: req.Internal, Frontend: req.Frontend, FrontendAttrs: req.FrontendAttrs, Exporters: exporters(req),
		TraceParent: traceParent(ctx),
	}
}

// describe notes how the images of a build were made, for its record.
func (b *buildJob) describe(p *build.Product) {
	if b.request.Internal {
		return
	}
	all, err := b.job.Provenance()
	if err != nil {
		b.server.config.Log(err.Error())
		return
	}
	for i, data := range all {
		a := records.Attestation{MediaType: records.StatementType, PredicateType: attestation.SLSA1, Data: data}
		if len(all) > 1 {
			a.Platform = p.Images[i].Platform.String()
		}
		b.statements = append(b.statements, a)
	}
}

// recorded returns what the history has of how a build has ended. res is nil for one that did not get far.
func (b *buildJob) recorded(res *build.Result, err error) records.Result {
	out := records.Result{Err: err, Open: b.server.config.Root.Images.Open, Attestations: b.statements}
	if res == nil {
		return out
	}
	var made map[int]ocispec.Descriptor
	out.ID, made = res.Made()
	out.Outputs = map[int]ocispec.Descriptor{}
	for i := range exporters(b.request) { // those of the session come behind them
		if desc, ok := made[i]; ok {
			out.Outputs[i] = desc
		}
	}
	if err == nil {
		out.Response = b.response(res)
	}
	return out
}

// traceParent returns what a request says of the client's span that it is part of, in the form of W3C's Trace Context; "" for nothing.
func traceParent(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	if values := md.Get("traceparent"); len(values) > 0 {
		return values[0]
	}
	return ""
}
