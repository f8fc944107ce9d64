package records

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"io"
	"math"
	"strings"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/kilnbuild/kiln/daemon/status"
	"github.com/kilnbuild/kiln/internal/termtext"
)

// spanContext and span are the JSON of OpenTelemetry's SpanStub, as BuildKit writes it, as far as a build has something to say.
type spanContext struct {
	TraceID    string
	SpanID     string
	TraceFlags string
	TraceState string
	Remote     bool
}

type span struct {
	Name                   string
	SpanContext, Parent    spanContext
	SpanKind               int
	StartTime, EndTime     time.Time
	Attributes             []spanAttribute
	Status                 spanStatus
	ChildSpanCount         int
	Resource               []spanAttribute
	InstrumentationLibrary spanScope
}

type spanScope struct{ Name, Version, SchemaURL string }

type spanAttribute struct {
	Key   string
	Value spanValue
}

type spanValue struct {
	Type  string
	Value any
}

type spanStatus struct {
	Code        string
	Description string
}

const kindInternal = 1

// The sizes of ids, in bytes.
const (
	traceIDSize = 16
	spanIDSize  = 8
)

// Limits of what clients add to the trace of one build.
const (
	maxSpans    = 1000
	maxSpanSize = 1 << 20 // of all, as they are sent
)

// noParent is the context of the parent of a span that has none.
var noParent = spanContext{TraceID: strings.Repeat("0", 2*traceIDSize), SpanID: strings.Repeat("0", 2*spanIDSize), TraceFlags: "00"}

// parseParent reads a traceparent of W3C's Trace Context: the client's span that a build is part of. A build whose client says nothing, or
// something else, is part of none, and has a trace of its own.
func parseParent(s string) spanContext {
	version, rest, _ := strings.Cut(s, "-")
	trace, rest, _ := strings.Cut(rest, "-")
	id, flags, _ := strings.Cut(rest, "-")
	_, known := isID(version, 1)
	_, valid := isID(flags, 1)
	_, isTrace := isID(trace, traceIDSize)
	_, isSpan := isID(id, spanIDSize)
	if !known || !valid || !isTrace || !isSpan || trace == noParent.TraceID || id == noParent.SpanID {
		return noParent
	}
	return spanContext{TraceID: trace, SpanID: id, TraceFlags: flags, Remote: true}
}

// isID decodes an ID of so many bytes in lower case.
func isID(s string, size int) ([]byte, bool) {
	b, err := hex.DecodeString(s)
	return b, err == nil && len(b) == size && s == strings.ToLower(s)
}

func newID(size int) string {
	b := make([]byte, size)
	_, _ = rand.Read(b) // it never fails
	return hex.EncodeToString(b)
}

func attribute(key, value string) spanAttribute {
	return spanAttribute{key, spanValue{"STRING", value}}
}

// addSpans adds spans of clients to the traces of the builds that are part of them. What comes after the end of a build is dropped, and so
// is what is more than the limits allow.
func (r *Records) addSpans(all []*tracepb.ResourceSpans) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.active {
		if b.parent == noParent {
			continue
		}
		trace, _ := isID(b.parent.TraceID, traceIDSize)
		for _, resource := range all {
			for _, scope := range resource.GetScopeSpans() {
				for _, s := range scope.GetSpans() {
					if bytes.Equal(s.GetTraceId(), trace) {
						b.addSpan(resource, scope, s)
					}
				}
			}
		}
	}
}

// addSpan adds one span of a client, if there is room.
func (b *Build) addSpan(resource *tracepb.ResourceSpans, scope *tracepb.ScopeSpans, s *tracepb.Span) {
	size := b.spanSize + len(s.GetName()) + len(s.GetStatus().GetMessage())
	out := span{
		Name: termtext.Redact(s.GetName()), SpanKind: int(s.GetKind()), StartTime: nanoseconds(s.GetStartTimeUnixNano()),
		EndTime: nanoseconds(s.GetEndTimeUnixNano()), Attributes: attributes(s.GetAttributes(), &size),
		Resource:               attributes(resource.GetResource().GetAttributes(), &size),
		InstrumentationLibrary: spanScope{Name: scope.GetScope().GetName(), Version: scope.GetScope().GetVersion()},
		Status:                 spanStatus{Code: "Unset", Description: termtext.Redact(s.GetStatus().GetMessage())},
		SpanContext: spanContext{
			TraceID: b.parent.TraceID, SpanID: hex.EncodeToString(s.GetSpanId()), TraceFlags: b.parent.TraceFlags,
		},
		Parent: noParent,
	}
	size += len(out.InstrumentationLibrary.Name) + len(out.InstrumentationLibrary.Version)
	if len(b.spans) == maxSpans || size > maxSpanSize || len(s.GetSpanId()) != spanIDSize {
		return
	}
	if p := s.GetParentSpanId(); len(p) == spanIDSize {
		out.Parent = out.SpanContext
		out.Parent.SpanID = hex.EncodeToString(p)
	}
	switch s.GetStatus().GetCode() {
	case tracepb.Status_STATUS_CODE_ERROR:
		out.Status.Code = "Error"
	case tracepb.Status_STATUS_CODE_OK:
		out.Status.Code = "Ok"
	}
	b.spans, b.spanSize = append(b.spans, out), size
}

func nanoseconds(n uint64) time.Time { return time.Unix(0, int64(min(n, math.MaxInt64))).UTC() }

// attributes returns those attributes that are plain values, and adds their size.
func attributes(all []*commonpb.KeyValue, size *int) []spanAttribute {
	var out []spanAttribute
	for _, kv := range all {
		a := spanAttribute{Key: kv.GetKey()}
		switch v := kv.GetValue().GetValue().(type) {
		case *commonpb.AnyValue_StringValue:
			a.Value = spanValue{"STRING", termtext.Redact(v.StringValue)}
			*size += len(v.StringValue)
		case *commonpb.AnyValue_BoolValue:
			a.Value = spanValue{"BOOL", v.BoolValue}
		case *commonpb.AnyValue_IntValue:
			a.Value = spanValue{"INT64", v.IntValue}
		default:
			continue
		}
		if *size += len(a.Key); *size > maxSpanSize {
			return nil // and so is the span
		}
		out = append(out, a)
	}
	return out
}

// writeTrace writes a trace: a span for the build, one for each time in which a vertex was worked on, and those of the client.
func writeTrace(w io.Writer, rec *control.BuildHistoryRecord, vertices []status.Span, parent spanContext, client []span) error {
	trace := parent.TraceID
	if parent == noParent {
		trace = newID(traceIDSize)
	}
	context := func() spanContext { return spanContext{TraceID: trace, SpanID: newID(spanIDSize), TraceFlags: "01"} }
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	write := func(s span, failure string) error {
		s.SpanKind = kindInternal
		s.Resource = []spanAttribute{attribute("service.name", "kilnd")}
		s.InstrumentationLibrary.Name = "github.com/kilnbuild/kiln"
		if s.Status.Code = "Unset"; failure != "" {
			s.Status = spanStatus{"Error", failure}
		}
		return enc.Encode(s)
	}
	build := context()
	for _, v := range vertices {
		attributes := []spanAttribute{attribute("vertex", v.Vertex)}
		if v.Cached {
			attributes = append(attributes, attribute("cached", "true"))
		}
		s := span{Name: v.Name, SpanContext: context(), Parent: build, StartTime: v.Started, EndTime: v.Completed, Attributes: attributes}
		if err := write(s, v.Error); err != nil {
			return err
		}
	}
	for _, s := range client {
		if err := enc.Encode(s); err != nil {
			return err
		}
	}
	return write(span{
		Name: "build", SpanContext: build, Parent: parent,
		StartTime: rec.CreatedAt.AsTime(), EndTime: rec.CompletedAt.AsTime(), ChildSpanCount: len(vertices),
		Attributes: []spanAttribute{attribute("ref", rec.Ref), attribute("frontend", rec.Frontend)},
	}, rec.GetError().GetMessage())
}
