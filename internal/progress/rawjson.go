package progress

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/kilnbuild/kiln/internal/termtext"
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
	Digest    string     `json:"digest"`
	Name      string     `json:"name,omitempty"`
	Started   *time.Time `json:"started,omitempty"`
	Completed *time.Time `json:"completed,omitempty"`
	Cached    bool       `json:"cached,omitempty"`
	Error     string     `json:"error,omitempty"`
}

type statusJSON struct {
	ID        string     `json:"id"`
	Vertex    string     `json:"vertex"`
	Total     int64      `json:"total,omitempty"`
	Current   int64      `json:"current"`
	Timestamp time.Time  `json:"timestamp"`
	Started   *time.Time `json:"started,omitempty"`
	Completed *time.Time `json:"completed,omitempty"`
}

type logJSON struct {
	Vertex    string    `json:"vertex"`
	Stream    int       `json:"stream,omitempty"`
	Data      []byte    `json:"data"`
	Timestamp time.Time `json:"timestamp"`
}

type warningJSON struct {
	Vertex string `json:"vertex,omitempty"`
	Level  int    `json:"level,omitempty"`
	Short  []byte `json:"short"`
}

// rawJSON shows one JSON object a line.
type rawJSON struct {
	enc   *json.Encoder
	now   func() time.Time
	count int
	ids   map[*Task]string
}

func newRawJSON(w io.Writer, now func() time.Time) *rawJSON {
	enc := json.NewEncoder(termtext.JSONWriter(w))
	enc.SetEscapeHTML(false)
	return &rawJSON{enc: enc, now: now, ids: map[*Task]string{}}
}

// write drops the error: who needs to know that the writer is broken wraps it.
func (d *rawJSON) write(s solveStatus) { _ = d.enc.Encode(s) }

func (d *rawJSON) vertex(t *Task) vertexJSON {
	return vertexJSON{Digest: d.ids[t], Name: t.name, Started: &t.started}
}

func (d *rawJSON) start(t *Task) {
	// Readers only use the digest to tell tasks apart, also those with one name.
	d.count++
	d.ids[t] = fmt.Sprintf("sha256:%x", sha256.Sum256(fmt.Appendf(nil, "%d %s", d.count, t.name)))
	d.write(solveStatus{Vertexes: []vertexJSON{d.vertex(t)}})
}

func (d *rawJSON) log(t *Task, stream int, p []byte) {
	now := d.now()
	for len(p) > 0 {
		n := min(len(p), maxLogData)
		d.write(solveStatus{Logs: []logJSON{{Vertex: d.ids[t], Stream: stream, Data: p[:n], Timestamp: now}}})
		p = p[n:]
	}
}

func (d *rawJSON) status(t *Task, s *status) {
	now := d.now()
	if s.completed.IsZero() && now.Sub(s.shown) < tickInterval {
		return
	}
	s.shown = now
	v := statusJSON{ID: s.id, Vertex: d.ids[t], Total: s.total, Current: s.current, Timestamp: now, Started: &s.started}
	if !s.completed.IsZero() {
		v.Completed = &s.completed
	}
	d.write(solveStatus{Statuses: []statusJSON{v}})
}

func (d *rawJSON) note(t *Task, text string) { d.log(t, 0, []byte(text+"\n")) }

func (d *rawJSON) finish(t *Task) {
	v := d.vertex(t)
	delete(d.ids, t)
	v.Completed = &t.ended
	v.Cached = t.outcome == cached
	if t.err != nil {
		v.Error = termtext.Clip(termtext.Redact(t.err.Error()), termtext.MaxLine)
	}
	d.write(solveStatus{Vertexes: []vertexJSON{v}})
}

func (d *rawJSON) warn(text string) {
	d.write(solveStatus{Warnings: []warningJSON{{Level: 1, Short: []byte(text)}}})
}

func (d *rawJSON) tick()  {}
func (d *rawJSON) close() {}
