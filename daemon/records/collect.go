package records

import (
	"context"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Clients with OpenTelemetry send the daemon what they have measured, by OpenTelemetry's own service for it. Its generated package comes
// with a gateway to HTTP, so the service is declared here: it has one method, whose answer is empty, and whose request has one field.

// traceService is the name of OpenTelemetry's TraceService.
const traceService = "opentelemetry.proto.collector.trace.v1.TraceService"

// RegisterTraceService has a server take spans of clients.
func (r *Records) RegisterTraceService(to grpc.ServiceRegistrar) {
	to.RegisterService(&grpc.ServiceDesc{
		ServiceName: traceService, HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{MethodName: "Export", Handler: exportTraces}},
	}, r)
}

// exportTraces takes spans of clients. Those of a build that goes on become part of its record.
func exportTraces(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
	req := &emptypb.Empty{}
	if err := decode(req); err != nil {
		return nil, err
	}
	handle := func(_ context.Context, req any) (any, error) {
		var traces tracepb.TracesData
		if err := proto.Unmarshal(req.(*emptypb.Empty).ProtoReflect().GetUnknown(), &traces); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "the spans cannot be read: %v", err)
		}
		srv.(*Records).addSpans(traces.ResourceSpans)
		return &emptypb.Empty{}, nil
	}
	if interceptor == nil {
		return handle(ctx, req)
	}
	return interceptor(ctx, req, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/" + traceService + "/Export"}, handle)
}
