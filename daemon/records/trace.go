package records

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"io"
	"time"

	control "github.com/moby/buildkit/api/services/control"

	"github.com/kilnbuild/kiln/daemon/status"
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
	InstrumentationLibrary struct{ Name, Version, SchemaURL string }
}

type spanAttribute struct {
	Key   string
	Value struct {
		Type  string
		Value string
	}
}

type spanStatus struct {
	Code        string
	Description string
}

const kindInternal = 1

func attribute(key, value string) spanAttribute {
	a := spanAttribute{Key: key}
	a.Value.Type, a.Value.Value = "STRING", value
	return a
}

// writeTrace writes a trace: a span for the build, and one for each time in which a vertex was worked on.
func writeTrace(w io.Writer, rec *control.BuildHistoryRecord, vertices []status.Span) error {
	id := func(size int) string {
		b := make([]byte, size)
		_, _ = rand.Read(b) // it never fails
		return hex.EncodeToString(b)
	}
	const none = "00000000000000000000000000000000"
	trace := id(16)
	context := func() spanContext { return spanContext{TraceID: trace, SpanID: id(8), TraceFlags: "01"} }
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
	return write(span{
		Name: "build", SpanContext: build, Parent: spanContext{TraceID: none, SpanID: none[:16], TraceFlags: "00"},
		StartTime: rec.CreatedAt.AsTime(), EndTime: rec.CompletedAt.AsTime(), ChildSpanCount: len(vertices),
		Attributes: []spanAttribute{attribute("ref", rec.Ref), attribute("frontend", rec.Frontend)},
	}, rec.GetError().GetMessage())
}
