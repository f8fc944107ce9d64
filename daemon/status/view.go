package status

import (
	"bytes"
	"cmp"
	"fmt"
	"time"

	control "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/daemon/apierr"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/frontend/lint"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/llb"
)

const (
	// maxOutput is how much output of one vertex is kept, in bytes, as by BuildKit.
	maxOutput = 2 << 20
	// maxPiece bounds one piece of output, in bytes.
	maxPiece = 32 << 10
	// maxWarnings is how many warnings a build has, and maxWarningText how long the texts of one can be, in bytes.
	maxWarnings    = 1000
	maxWarningText = 64 << 10
	// maxRanges and maxDetails are how many of both a warning has.
	maxRanges  = 1000
	maxDetails = 1000
	// maxSourceText is how large a file can be whose text goes with a warning, in bytes.
	maxSourceText = 1 << 20
	// maxSpans is how many spans are kept.
	maxSpans = 10_000
)

type digestKey = llb.Digest

// Summary is how many vertices a build has had, how many of them were completed or cached, and how many warnings there were.
type Summary struct {
	Total, Completed, Cached, Warnings int
}

// Span is a time in which a vertex was worked on.
type Span struct {
	Vertex, Name, Error string
	Started, Completed  time.Time
	Cached              bool
}

// view turns events into changes. Its caller's lock is held during every call.
type view struct {
	emit     func(*control.StatusResponse)
	vertices map[digestKey]*vertex
	// aliases and groups are those of Log.Alias.
	aliases map[digestKey][]string
	groups  map[string]*pb.ProgressGroup
	// shown are the vertices that clients know, by digest.
	shown   map[string]*shown
	sources []*pb.SourceInfo
	now     *timestamppb.Timestamp // of the event
	summary Summary
	spans   []Span
	// checks is the vertex of warnings that belong to no other, "" if there is none yet.
	checks string
}

// vertex is what happens to a vertex of events.
type vertex struct {
	started events.Started
	// as are the vertices as which it is shown; none if it is not.
	as     []*shown
	cached bool
	// state says whether work on it is shown as going on.
	state state
	// transfers are those that go on, by ID.
	transfers map[string]*control.VertexStatus
	// printed is how many bytes of output there were.
	printed int
}

type state int

const (
	ended state = iota
	// working: its vertices have begun, and not ended.
	working
	// deferred: it has shown what it is, and waits until somebody needs it. It is shown as completed.
	deferred
)

// shown is a vertex as clients see it, for one vertex of the build or several.
type shown struct {
	*control.Vertex
	// open is how many of its vertices are worked on; ran says that one of them was not cached.
	open int
	ran  bool
	// counted says that the summary has it as cached or completed.
	countedCached, countedCompleted bool
}

func (v *view) alias(digests map[digestKey][]string, groups map[string]*pb.ProgressGroup) {
	if v.aliases == nil {
		v.aliases, v.groups = map[digestKey][]string{}, map[string]*pb.ProgressGroup{}
	}
	for d, as := range digests {
		for _, name := range as {
			v.aliases[d] = appendNew(v.aliases[d], name)
		}
	}
	for d, g := range groups {
		v.groups[d] = g
	}
}

// appendNew appends s to a list that does not have it.
func appendNew(list []string, s string) []string {
	for _, other := range list {
		if other == s {
			return list
		}
	}
	return append(list, s)
}

// event takes an event.
func (v *view) event(e events.Event) {
	v.now = timestamppb.New(e.Time)
	switch body := e.Body.(type) {
	case events.Started:
		v.start(e.Vertex, body)
		return
	case events.Warning:
		v.check(e.Vertex, body)
		return
	}
	x := v.vertices[e.Vertex]
	if x == nil || len(x.as) == 0 {
		return
	}
	switch body := e.Body.(type) {
	case events.Log:
		v.output(x, body)
	case events.Transfer:
		v.transfer(x, body)
	case events.Note:
		v.activate(x)
		id := termtext.Clip(body.Text, termtext.MaxLine)
		v.status(&control.VertexStatus{ID: id, Vertex: x.as[0].Digest, Timestamp: v.now, Started: v.now, Completed: v.now})
	case events.Cached:
		x.cached = true
	case events.Waiting:
		if body.For == (llb.Digest{}) && x.state == working {
			v.end(x, "")
			x.state = deferred
		}
	case events.Finished:
		v.finish(x, body)
	}
}

func (v *view) start(id digestKey, body events.Started) {
	x := v.vertices[id]
	if x == nil {
		x = &vertex{started: body, transfers: map[string]*control.VertexStatus{}}
		v.vertices[id] = x
		v.show(id, x)
	}
	x.cached = false
	if x.state == ended {
		v.begin(x)
	}
}

// show decides as what a vertex is shown. What is there already is not, unless the client's own graph has it; but local files are there
// only after the client has sent them.
func (v *view) show(id digestKey, x *vertex) {
	names := v.aliases[id]
	if len(names) == 0 {
		if x.started.Idle() && x.started.Op != (llb.Local{}).Kind() {
			return
		}
		names = []string{id.String()}
	}
	for _, name := range names {
		s := v.shown[name]
		if s == nil {
			s = &shown{Vertex: &control.Vertex{Digest: name, Name: x.started.Name(), ProgressGroup: v.groups[name]}}
			v.shown[name] = s
			v.summary.Total++
		}
		for _, in := range x.started.Inputs {
			if from := v.vertices[in]; from != nil {
				for _, other := range from.as {
					if other != s {
						s.Inputs = appendNew(s.Inputs, other.Digest)
					}
				}
			}
		}
		x.as = append(x.as, s)
	}
}

// begin shows that work on a vertex begins.
func (v *view) begin(x *vertex) {
	x.state = working
	for _, s := range x.as {
		if s.open++; s.open == 1 {
			s.Started, s.Completed, s.Cached, s.ran = v.now, nil, false, false
		}
		v.vertex(s)
	}
}

// activate shows that something is done for a vertex that was deferred.
func (v *view) activate(x *vertex) {
	if x.state != working {
		v.begin(x)
	}
}

// end shows that work on a vertex has ended.
func (v *view) end(x *vertex, failure string) {
	x.state = ended
	for id, st := range x.transfers {
		st.Timestamp, st.Completed = v.now, v.now
		v.status(st)
		delete(x.transfers, id)
	}
	for _, s := range x.as {
		if s.open > 0 {
			s.open--
		}
		s.ran = s.ran || !x.cached
		s.Error = cmp.Or(s.Error, failure)
		if s.open == 0 {
			s.Completed, s.Cached = v.now, !s.ran && s.Error == ""
			v.span(s)
		}
		v.vertex(s)
	}
}

// finish shows how a vertex has ended.
func (v *view) finish(x *vertex, f events.Finished) {
	failure := f.Error
	if f.Err != nil && failure != "" {
		failure = events.Text(apierr.Text(f.Err))
	}
	if f.Canceled {
		failure = canceled
	}
	if x.state != deferred {
		v.end(x, failure)
		return
	}
	// Nobody needed it.
	x.state = ended
	for _, s := range x.as {
		s.Error = cmp.Or(s.Error, failure)
		if s.open == 0 {
			s.Cached = x.cached && s.Error == ""
			v.vertex(s)
		}
	}
}

// canceled is the error of a vertex that was stopped, by which clients recognise it.
const canceled = "context canceled"

// close ends the vertices that have not ended.
func (v *view) close() {
	v.now = timestamppb.Now()
	for _, x := range v.vertices {
		if x.state == working {
			v.end(x, canceled)
		}
	}
}

// vertex emits a vertex as it is now.
func (v *view) vertex(s *shown) {
	if s.Cached && !s.countedCached {
		s.countedCached = true
		v.summary.Cached++
	}
	if s.Completed != nil && !s.countedCompleted {
		s.countedCompleted = true
		v.summary.Completed++
	}
	v.emit(&control.StatusResponse{Vertexes: []*control.Vertex{s.Vertex}})
}

func (v *view) span(s *shown) {
	if len(v.spans) < maxSpans {
		v.spans = append(v.spans, Span{s.Digest, s.Name, s.Error, s.Started.AsTime(), s.Completed.AsTime(), s.Cached})
	}
}

func (v *view) status(st *control.VertexStatus) {
	v.emit(&control.StatusResponse{Statuses: []*control.VertexStatus{st}})
}

// output emits output in pieces.
func (v *view) output(x *vertex, body events.Log) {
	v.activate(x)
	for data := body.Data; len(data) > 0; {
		piece := data[:min(len(data), maxPiece, max(0, maxOutput-x.printed))]
		data = data[len(piece):]
		if len(piece) == 0 {
			if x.printed > maxOutput {
				return
			}
			piece, data = fmt.Appendf(nil, "\n[output clipped, log limit %dMiB reached]\n", maxOutput>>20), nil
			x.printed = maxOutput + 1
		} else {
			x.printed += len(piece)
		}
		v.emit(&control.StatusResponse{Logs: []*control.VertexLog{
			{Vertex: x.as[0].Digest, Timestamp: v.now, Stream: int64(body.Stream), Msg: piece},
		}})
	}
}

// transfer emits a phase of a transfer.
func (v *view) transfer(x *vertex, t events.Transfer) {
	v.activate(x)
	id := transferID(t)
	st := x.transfers[id]
	if st == nil {
		st = &control.VertexStatus{ID: id, Vertex: x.as[0].Digest, Started: v.now}
		x.transfers[id] = st
	}
	st.Name = transferName(t.Phase)
	st.Current, st.Total, st.Timestamp = t.Current, t.Total, v.now
	if t.Phase == events.Queued {
		st.Current = 0
	}
	if t.Done {
		st.Completed = v.now
		delete(x.transfers, id)
	}
	v.status(st)
}

// transferID returns the ID of a transfer as BuildKit has it. A blob that waits, moves or exists has one.
func transferID(t events.Transfer) string {
	name := termtext.Clip(t.Name, termtext.MaxLine)
	switch t.Phase {
	case events.Moving, events.Queued, events.Exists:
		return name
	case events.Sending:
		return string(t.Phase) + " " + name + ":"
	}
	return string(t.Phase) + " " + name
}

// transferName returns what BuildKit calls the action.
func transferName(p events.Phase) string {
	switch p {
	case events.Moving:
		return "downloading"
	case events.Extracting:
		return "extract"
	}
	return string(p)
}

// check emits a warning of the build itself. Clients do not expect checks that BuildKit does not have.
func (v *view) check(id digestKey, w events.Warning) {
	if lint.IsAdvice(w.Rule) {
		return
	}
	out := &control.VertexWarning{Level: 1, Short: []byte(w.Text), Url: w.URL}
	if w.Rule != "" {
		out.Short = []byte(linter.LintFormatShort(w.Rule, w.Text, w.Location.StartLine))
	}
	if w.Detail != "" {
		out.Detail = [][]byte{[]byte(w.Detail)}
	}
	if l := w.Location; l.StartLine > 0 {
		out.Ranges = apierr.Ranges(l.StartLine, l.EndLine)
		out.Info = &pb.SourceInfo{Filename: l.File, Language: apierr.Language}
		for _, s := range v.sources {
			if s.Filename == l.File {
				out.Info = s
			}
		}
	}
	if x := v.vertices[id]; x != nil && len(x.as) > 0 {
		out.Vertex = x.as[0].Digest
	} else {
		out.Vertex = v.checkVertex()
	}
	v.warn(out)
}

// checkVertex returns the vertex of warnings that are of no other: clients show none without one.
func (v *view) checkVertex() string {
	if v.checks == "" {
		s := &shown{Vertex: &control.Vertex{Digest: digest.FromString("kiln warnings").String(), Name: "[internal] warnings", Started: v.now,
			Completed: v.now}}
		v.shown[s.Digest], v.checks = s, s.Digest
		v.summary.Total++
		v.vertex(s)
	}
	return v.checks
}

// warn emits a warning, within limits. Its texts are those of a front end, or of a Dockerfile.
func (v *view) warn(w *control.VertexWarning) bool {
	if v.summary.Warnings >= maxWarnings {
		return false
	}
	v.summary.Warnings++
	w.Short = clip(w.Short)
	w.Url = termtext.Clip(w.Url, termtext.MaxLine)
	room := maxWarningText
	w.Ranges = w.Ranges[:min(len(w.Ranges), maxRanges)]
	w.Detail = w.Detail[:min(len(w.Detail), maxDetails)]
	for i, d := range w.Detail {
		w.Detail[i] = d[:min(len(d), room)]
		room -= len(w.Detail[i])
	}
	if w.Info != nil && w.Info.SizeVT() > maxSourceText {
		w.Info = &pb.SourceInfo{Filename: w.Info.Filename, Language: w.Info.Language}
	}
	v.emit(&control.StatusResponse{Warnings: []*control.VertexWarning{w}})
	return true
}

// clip returns text of at most maxWarningText bytes.
func clip(text []byte) []byte {
	if len(text) <= maxWarningText {
		return text
	}
	return bytes.ToValidUTF8(text[:maxWarningText], nil)
}
