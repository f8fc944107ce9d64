package records_test

import (
	"context"
	"encoding/hex"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	controlapi "github.com/moby/buildkit/api/services/control"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/kilnbuild/kiln/daemon/records"
	"github.com/kilnbuild/kiln/history"
)

// The spans that a client sends are in the trace of the build that is part of theirs, and the build's own are below the client's.
func TestTraces(t *testing.T) {
	const trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	tmp := t.TempDir()
	all := records.New(history.Open(t.TempDir(), tmp, history.Retention{}), tmp, func(err error) { t.Error(err) })
	listener := bufconn.Listen(1 << 20)
	g := grpc.NewServer()
	all.RegisterTraceService(g)
	go func() { _ = g.Serve(listener) }()
	defer g.Stop()
	dial := grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) })
	conn, err := grpc.NewClient("passthrough:///kilnd", dial, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	export := func(trace string, spans ...*tracepb.Span) {
		t.Helper()
		id, _ := hex.DecodeString(trace)
		for i, span := range spans {
			span.TraceId, span.SpanId = id, []byte{1, 2, 3, 4, 5, 6, 7, byte(i)}
		}
		text := func(key, value string) []*commonpb.KeyValue {
			v := &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}
			return []*commonpb.KeyValue{{Key: key, Value: v}}
		}
		req := &tracepb.TracesData{ResourceSpans: []*tracepb.ResourceSpans{{
			Resource:   &resourcepb.Resource{Attributes: text("service.name", "buildx")},
			ScopeSpans: []*tracepb.ScopeSpans{{Spans: spans}},
		}}}
		for _, span := range spans {
			span.Attributes = text("command", "build https://me:hidden@host/")
		}
		if err := conn.Invoke(t.Context(), "/opentelemetry.proto.collector.trace.v1.TraceService/Export", req, &emptypb.Empty{}); err != nil {
			t.Fatal(err)
		}
	}
	b, err := all.Begin(records.Request{Ref: "one", TraceParent: "00-" + trace + "-" + parent + "-01"})
	if err != nil {
		t.Fatal(err)
	}
	alone, err := all.Begin(records.Request{Ref: "two", TraceParent: "00-" + strings.Repeat("0", 32) + "-" + parent + "-01"})
	if err != nil {
		t.Fatal(err)
	}
	export(trace, &tracepb.Span{Name: "of the client"})
	export(strings.Repeat("0", 32), &tracepb.Span{Name: "of nobody"})
	export(trace, &tracepb.Span{Name: strings.Repeat("x", 2<<20)})
	for range 20 {
		var many []*tracepb.Span
		for range 100 {
			many = append(many, &tracepb.Span{Name: "one of many"})
		}
		export(trace, many...)
	}
	b.End(t.Context(), records.Result{})
	alone.End(t.Context(), records.Result{})
	export(trace, &tracepb.Span{Name: "too late"})

	texts := map[string]string{}
	listen := &controlapi.BuildHistoryRequest{EarlyExit: true}
	if err := all.Listen(t.Context(), listen, func(e *controlapi.BuildHistoryEvent) error {
		d := e.Record.Trace
		desc := ocispec.Descriptor{Digest: digest.Digest(d.Digest), Size: d.Size}
		r, err := all.Content().ReaderAt(t.Context(), desc)
		if err != nil {
			return err
		}
		defer r.Close()
		data, err := io.ReadAll(content.NewReader(r))
		texts[e.Record.Ref] = string(data)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	one := texts["one"]
	for _, want := range []string{`"TraceID": "` + trace + `"`, `"SpanID": "` + parent + `"`, `"of the client"`, `"buildx"`} {
		if !strings.Contains(one, want) {
			t.Errorf("the trace has no %s", want)
		}
	}
	if n := strings.Count(one, `"Name": "one of many"`); n == 0 || n > 1000 {
		t.Errorf("%d spans of many are kept", n)
	}
	for _, other := range []string{"of nobody", "too late", "hidden"} {
		if strings.Contains(one, other) {
			t.Errorf("the trace has %q", other)
		}
	}
	if two := texts["two"]; two == "" || strings.Contains(two, trace) || strings.Contains(two, parent) || strings.Contains(two, "of nobody") {
		t.Errorf("the trace of a build that is part of none: %s", two)
	}
}
