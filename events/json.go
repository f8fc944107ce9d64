package events

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"github.com/kilnbuild/kiln/llb"
)

// wire is the JSON form of an event: one of the pointers is set.
type wire struct {
	Time     time.Time  `json:"time"`
	Vertex   llb.Digest `json:"vertex,omitzero"`
	Build    *Build     `json:"build,omitempty"`
	Started  *Started   `json:"started,omitempty"`
	Log      *Log       `json:"log,omitempty"`
	Transfer *Transfer  `json:"transfer,omitempty"`
	Note     *Note      `json:"note,omitempty"`
	Cached   *Cached    `json:"cached,omitempty"`
	Missed   *Missed    `json:"missed,omitempty"`
	Files    *Files     `json:"files,omitempty"`
	Again    *Again     `json:"again,omitempty"`
	Warning  *Warning   `json:"warning,omitempty"`
	Finished *Finished  `json:"finished,omitempty"`
	Lost     *Lost      `json:"lost,omitempty"`
	Done     *Done      `json:"done,omitempty"`
}

// Append appends the JSON of an event to dst, with a line feed. Text that is not UTF-8 has U+FFFD where it is not.
func Append(dst []byte, e Event) []byte {
	w := wire{Time: e.Time, Vertex: e.Vertex}
	switch b := e.Body.(type) {
	case Build:
		w.Build = &b
	case Started:
		w.Started = &b
	case Log:
		w.Log = &b
	case Transfer:
		w.Transfer = &b
	case Note:
		w.Note = &b
	case Cached:
		w.Cached = &b
	case Missed:
		w.Missed = &b
	case Files:
		w.Files = &b
	case Again:
		w.Again = &b
	case Warning:
		w.Warning = &b
	case Finished:
		w.Finished = &b
	case Lost:
		w.Lost = &b
	case Done:
		w.Done = &b
	}
	out := bytes.NewBuffer(dst)
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(w); err != nil {
		panic(fmt.Sprintf("BUG: event %T cannot be encoded: %v", e.Body, err)) // all types are plain values
	}
	return out.Bytes()
}

// Decode reads one event that Append wrote. An event of a kind that it does not know has no Body.
func Decode(line []byte) (Event, error) {
	var w wire
	if err := json.Unmarshal(line, &w); err != nil {
		return Event{}, fmt.Errorf("read an event: %w", err)
	}
	e := Event{Time: w.Time, Vertex: w.Vertex}
	switch {
	case w.Build != nil:
		e.Body = *w.Build
	case w.Started != nil:
		e.Body = *w.Started
	case w.Log != nil:
		e.Body = *w.Log
	case w.Transfer != nil:
		e.Body = *w.Transfer
	case w.Note != nil:
		e.Body = *w.Note
	case w.Cached != nil:
		e.Body = *w.Cached
	case w.Missed != nil:
		e.Body = *w.Missed
	case w.Files != nil:
		e.Body = *w.Files
	case w.Again != nil:
		e.Body = *w.Again
	case w.Warning != nil:
		e.Body = *w.Warning
	case w.Finished != nil:
		e.Body = *w.Finished
	case w.Lost != nil:
		e.Body = *w.Lost
	case w.Done != nil:
		e.Body = *w.Done
	}
	return e, nil
}
