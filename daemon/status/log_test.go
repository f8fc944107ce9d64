package status

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	control "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/solver/pb"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver/execute"
)

// reader collects what a Log streams.
type reader struct {
	vertexes []*control.Vertex
	statuses []*control.VertexStatus
	logs     []*control.VertexLog
	warnings []*control.VertexWarning
}

func (r *reader) send(m *control.StatusResponse) error {
	r.vertexes = append(r.vertexes, m.Vertexes...)
	r.statuses = append(r.statuses, m.Statuses...)
	r.logs = append(r.logs, m.Logs...)
	r.warnings = append(r.warnings, m.Warnings...)
	return nil
}

// last returns each vertex as it was in the end, by name.
func (r *reader) last() map[string]*control.Vertex {
	last := map[string]*control.Vertex{}
	for _, v := range r.vertexes {
		last[v.Name] = v
	}
	return last
}

func read1(t *testing.T, l *Log) *reader {
	t.Helper()
	var r reader
	if err := l.Read(context.Background(), r.send); err != nil {
		t.Fatal(err)
	}
	return &r
}

// graph returns a base, a step on it and a merge of both, which the client does not know.
func graph() (base, step, merge *llb.Vertex) {
	var g llb.Graph
	base = g.Add(llb.Image{Ref: "docker.io/library/busybox:latest"}, llb.Meta{Place: llb.Place{Step: 1, Steps: 2}, Text: "FROM busybox"})
	step = g.Add(llb.Exec{Args: []string{"true"}}, llb.Meta{Place: llb.Place{Step: 2, Steps: 2}, Text: "RUN true"}, base.Output(0))
	merge = g.Add(llb.Merge{}, llb.Meta{Text: "merge"}, base.Output(0), step.Output(0))
	return base, step, merge
}

// Whoever reads gets the same, from the beginning on: before, while and after the build runs.
func TestReaders(t *testing.T) {
	l := NewLog(t.TempDir())
	defer l.Release()
	const n = 4
	readers := make([]reader, n)
	var wg sync.WaitGroup
	started := make(chan struct{})
	for i := range readers {
		wg.Go(func() {
			if i%2 == 1 {
				<-started
			}
			if err := l.Read(context.Background(), readers[i].send); err != nil {
				t.Error(err)
			}
		})
	}
	s := events.New(l)
	_, step, _ := graph()
	task := s.Vertex(step)
	close(started)
	line := strings.Repeat("x", 1000) + "\n"
	for range 1500 { // more than the buffer, less than what is clipped
		task.Log(1, []byte(line))
	}
	task.Finish(events.Finished{}, nil)
	s.Emit(events.Done{})
	l.Close()
	wg.Wait()
	readers = append(readers, *read1(t, l))
	for i, r := range readers {
		size := 0
		for _, log := range r.logs {
			size += len(log.Msg)
		}
		if size != 1500*len(line) || len(r.vertexes) != 2 {
			t.Errorf("reader %d got %d bytes of output and %d vertices", i, size, len(r.vertexes))
		}
	}
	var encoded bytes.Buffer
	if _, err := l.WriteTo(&encoded); err != nil {
		t.Fatal(err)
	}
	var again reader
	if err := Replay(context.Background(), bytes.NewReader(encoded.Bytes()), int64(encoded.Len()), again.send); err != nil {
		t.Fatal(err)
	}
	if len(again.logs) != len(readers[0].logs) || len(again.vertexes) != 2 {
		t.Error("what was written is read as something else")
	}
	short := encoded.Bytes()[:encoded.Len()-1]
	if err := Replay(context.Background(), bytes.NewReader(short), int64(len(short)), again.send); err == nil {
		t.Error("a log that was cut off is read without an error")
	}
}

// A reader ends with its context, and with its own error.
func TestReaderEnds(t *testing.T) {
	l := NewLog(t.TempDir())
	defer l.Release()
	ctx, cancel := context.WithCancelCause(context.Background())
	gone := errors.New("gone")
	cancel(gone)
	if err := l.Read(ctx, func(*control.StatusResponse) error { return nil }); err != gone {
		t.Errorf("got %v", err)
	}
	s := events.New(l)
	s.Task(llb.Place{}, "exporting").Done(nil)
	if err := l.Read(context.Background(), func(*control.StatusResponse) error { return gone }); err != gone {
		t.Errorf("got %v", err)
	}
}

// Vertices have the client's digests: a vertex may have several, several may have one, and what the client's graph does not have is
// shown under its own.
func TestDigests(t *testing.T) {
	l := NewLog(t.TempDir())
	defer l.Release()
	base, step, merge := graph()
	group := &pb.ProgressGroup{Id: "g", Name: "group"}
	l.Alias(map[llb.Digest][]string{base.Digest(): {"sha256:a", "sha256:b"}, step.Digest(): {"sha256:c"}},
		map[string]*pb.ProgressGroup{"sha256:c": group})
	l.Alias(map[llb.Digest][]string{merge.Digest(): {"sha256:c"}}, nil)
	s := events.New(l)
	from := s.Vertex(base)
	from.Emit(events.Cached{})
	from.Finish(events.Finished{}, nil)
	run, both := s.Vertex(step), s.Vertex(merge)
	run.Finish(events.Finished{}, nil)
	both.Emit(events.Cached{})
	both.Finish(events.Finished{}, nil)
	l.Close()
	last := map[string]*control.Vertex{}
	for _, v := range read1(t, l).vertexes {
		last[v.Digest] = v
	}
	if len(last) != 3 {
		t.Fatalf("there are %d vertices", len(last))
	}
	if a, b := last["sha256:a"], last["sha256:b"]; !a.Cached || !b.Cached || a.Completed == nil {
		t.Errorf("a vertex of two digests is shown as %v and %v", a, b)
	}
	c := last["sha256:c"]
	if c.Cached || c.Completed == nil || c.ProgressGroup.GetName() != "group" || fmt.Sprint(c.Inputs) != "[sha256:a sha256:b]" {
		t.Errorf("two vertices of one digest are shown as %v", c)
	}
	if got := l.Summary(); got != (Summary{Total: 3, Completed: 3, Cached: 2}) {
		t.Errorf("the summary is %+v", got)
	}
}

// What a step prints is clipped, and the rest of the build is not.
func TestClipped(t *testing.T) {
	l := NewLog(t.TempDir())
	defer l.Release()
	base, step, _ := graph()
	s := events.New(l)
	run, other := s.Vertex(step), s.Vertex(base)
	for range 40 {
		run.Log(1, make([]byte, 100<<10))
	}
	other.Log(2, []byte("hello"))
	l.Close()
	size, end := 0, ""
	for _, log := range read1(t, l).logs {
		if log.Vertex == step.Digest().String() {
			size, end = size+len(log.Msg), string(log.Msg)
		} else if string(log.Msg) != "hello" {
			t.Errorf("another step printed %q", log.Msg)
		}
	}
	if size < maxOutput || size > maxOutput+1000 || end != "\n[output clipped, log limit 2MiB reached]\n" {
		t.Errorf("got %d bytes, and %q in the end", size, end)
	}
}

// Failures are in BuildKit's words, what was stopped is canceled, and so is what has not ended when the build has.
func TestFailures(t *testing.T) {
	l := NewLog(t.TempDir())
	defer l.Release()
	base, step, _ := graph()
	s := events.New(l)
	s.Vertex(step).Finish(events.Finished{}, &execute.SecretError{ID: "token"})
	s.Vertex(base)
	s.Task(llb.Place{}, "exporting").Done(context.Canceled)
	l.Close()
	last := read1(t, l).last()
	for name, want := range map[string]string{
		"[2/2] RUN true": "secret token: not found", "[1/2] FROM busybox": "context canceled", "exporting": "context canceled",
	} {
		if v := last[name]; v == nil || v.Error != want || v.Completed == nil {
			t.Errorf("%s: %v", name, v)
		}
	}
}

// An image is shown as completed while nobody needs its layers, and as worked on while they are fetched.
func TestDeferred(t *testing.T) {
	for _, needed := range []bool{false, true} {
		l := NewLog(t.TempDir())
		base, _, _ := graph()
		s := events.New(l)
		task := s.Vertex(base)
		drop := task.Defer()
		task.Finish(events.Finished{}, nil)
		if needed {
			release := task.Hold()
			task.Emit(events.Transfer{Name: "sha256:x", Current: 5, Total: 10})
			release(nil)
		}
		drop()
		l.Close()
		r := read1(t, l)
		v := r.last()["[1/2] FROM busybox"]
		if v == nil || v.Cached == needed || v.Completed == nil || v.Error != "" {
			t.Errorf("needed %v: %v", needed, v)
		}
		if needed {
			if n := len(r.statuses); n != 2 || r.statuses[1].Completed == nil || r.statuses[1].ID != "sha256:x" {
				t.Errorf("the transfer is shown as %v", r.statuses)
			}
		}
		l.Release()
	}
}

// Warnings have the lines of the Dockerfile and a vertex that clients know.
func TestWarnings(t *testing.T) {
	l := NewLog(t.TempDir())
	defer l.Release()
	l.Source(&pb.SourceInfo{Filename: "Dockerfile", Language: "Dockerfile", Data: []byte("FROM scratch\nCOPY a b\n")})
	s := events.New(l)
	s.Emit(events.Warning{
		Rule: "Rule", Text: "text", Detail: "about", URL: "https://x", Location: llb.Location{File: "Dockerfile", StartLine: 1, EndLine: 2},
	})
	if !l.Warn(&control.VertexWarning{Vertex: "sha256:a", Level: 3, Short: make([]byte, 1<<20)}) {
		t.Error("a warning is refused")
	}
	for range maxWarnings {
		s.Warn("more")
	}
	l.Close()
	r := read1(t, l)
	if len(r.warnings) != maxWarnings {
		t.Fatalf("there are %d warnings", len(r.warnings))
	}
	w := r.warnings[0]
	known := false
	for _, v := range r.vertexes {
		known = known || v.Digest == w.Vertex
	}
	if !known || string(w.Short) != "Rule: text (line 1)" || string(w.Detail[0]) != "about" || len(w.Ranges) != 2 || len(w.Info.Data) == 0 ||
		w.Level != 1 {
		t.Errorf("a warning is %v", w)
	}
	if w := r.warnings[1]; w.Level != 3 || len(w.Short) != maxWarningText {
		t.Errorf("a warning of level %d has %d bytes", w.Level, len(w.Short))
	}
}
