package progress

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/llb"
)

// maxLogData bounds one log entry, so that a line of JSON stays small.
const maxLogData = 32 << 10

// solveStatus is one line: what changed since the one before, in the form of BuildKit's client.SolveStatus.
type solveStatus struct {
	Vertexes []vertexJSON  `json:"vertexes,omitempty"`
	Statuses []statusJSON  `json:"statuses,omitempty"`
	Logs     []logJSON     `json:"logs,omitempty"`
	Warnings []warningJSON `json:"warnings,omitempty"`
}

type vertexJSON struct {
	Digest    llb.Digest   `json:"digest"`
	Inputs    []llb.Digest `json:"inputs,omitempty"`
	Name      string       `json:"name,omitempty"`
	Started   *time.Time   `json:"started,omitempty"`
	Completed *time.Time   `json:"completed,omitempty"`
	Cached    bool         `json:"cached,omitempty"`
	Error     string       `json:"error,omitempty"`
}

type statusJSON struct {
	ID        string     `json:"id"`
	Vertex    llb.Digest `json:"vertex"`
	Total     int64      `json:"total,omitempty"`
	Current   int64      `json:"current"`
	Timestamp time.Time  `json:"timestamp"`
	Started   *time.Time `json:"started,omitempty"`
	Completed *time.Time `json:"completed,omitempty"`
}

type logJSON struct {
	Vertex    llb.Digest `json:"vertex"`
	Stream    int        `json:"stream,omitempty"`
	Data      []byte     `json:"data"`
	Timestamp time.Time  `json:"timestamp"`
}

type warningJSON struct {
	Level      int         `json:"level,omitempty"`
	Short      []byte      `json:"short"`
	Detail     [][]byte    `json:"detail,omitempty"`
	URL        string      `json:"url,omitempty"`
	SourceInfo *sourceJSON `json:"sourceInfo,omitempty"`
	Range      []rangeJSON `json:"range,omitempty"`
}

type sourceJSON struct {
	Filename string `json:"filename,omitempty"`
	Language string `json:"language,omitempty"`
}

type rangeJSON struct {
	Start positionJSON `json:"start"`
	End   positionJSON `json:"end"`
}

type positionJSON struct {
	Line int `json:"line"`
}

// rawJSON shows one JSON object a line.
type rawJSON struct {
	nothing
	enc *json.Encoder
}

func newRawJSON(w io.Writer) *rawJSON {
	enc := json.NewEncoder(termtext.JSONWriter(w))
	enc.SetEscapeHTML(false)
	return &rawJSON{enc: enc}
}

// write drops the error: who needs to know that the writer is broken wraps it.
func (d *rawJSON) write(s solveStatus) { _ = d.enc.Encode(s) }

func vertexOf(t *task) vertexJSON {
	return vertexJSON{Digest: t.id, Inputs: t.what.Inputs, Name: t.name, Started: &t.started}
}

func (d *rawJSON) start(t *task) { d.write(solveStatus{Vertexes: []vertexJSON{vertexOf(t)}}) }

func (d *rawJSON) log(t *task, at time.Time, stream int, p []byte) {
	for len(p) > 0 {
		n := min(len(p), maxLogData)
		d.write(solveStatus{Logs: []logJSON{{Vertex: t.id, Stream: stream, Data: p[:n], Timestamp: at}}})
		p = p[n:]
	}
}

func (d *rawJSON) transfer(t *task, at time.Time, tr *transfer) {
	v := statusJSON{ID: tr.statusID(), Vertex: t.id, Total: tr.Total, Current: tr.Current, Timestamp: at, Started: &tr.started}
	if tr.Done {
		v.Completed = &at
	}
	d.write(solveStatus{Statuses: []statusJSON{v}})
}

func (d *rawJSON) note(t *task, at time.Time, text string) { d.log(t, at, 0, []byte(text+"\n")) }

func (d *rawJSON) finish(t *task, at time.Time, f events.Finished) {
	v := vertexOf(t)
	// What is there already is cached: nothing ran for it.
	v.Completed, v.Cached, v.Error = &at, t.cached || t.what.Idle(), f.Error
	if f.Canceled {
		v.Error = canceledError
	}
	d.write(solveStatus{Vertexes: []vertexJSON{v}})
}

// canceledError is what the error of a vertex that was stopped ends with, in BuildKit's form.
const canceledError = "context canceled"

func (d *rawJSON) warn(_ time.Time, w events.Warning) {
	v := warningJSON{Level: 1, Short: []byte(w.Text), URL: w.URL}
	if w.Rule != "" {
		v.Short = []byte(w.Rule + ": " + w.Text)
	}
	if w.Detail != "" {
		v.Detail = [][]byte{[]byte(w.Detail)}
	}
	if l := w.Location; l.StartLine > 0 {
		v.Short = fmt.Appendf(v.Short, " (line %d)", l.StartLine)
		v.SourceInfo = &sourceJSON{Filename: l.File, Language: "Dockerfile"}
		v.Range = []rangeJSON{{Start: positionJSON{l.StartLine}, End: positionJSON{max(l.StartLine, l.EndLine)}}}
	}
	d.write(solveStatus{Warnings: []warningJSON{v}})
}

func (d *rawJSON) tick()  {}
func (d *rawJSON) close() {}
