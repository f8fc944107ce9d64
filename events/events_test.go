package events

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/llb"
)

// bodies has an event of each kind with something in every field.
func bodies(t testing.TB) []Body {
	all := []Body{
		Build{}, Planned{}, Started{}, Waiting{}, Resumed{}, Log{}, Transfer{},
		Note{}, Cached{}, Missed{}, Files{}, Again{}, Warning{}, Finished{}, Lost{}, Done{},
	}
	for i, b := range all {
		v := reflect.New(reflect.TypeOf(b)).Elem()
		fill(t, v)
		all[i] = v.Interface().(Body)
	}
	return all
}

// fill puts something into every exported field.
func fill(t testing.TB, v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString("some <text> & \"more\"\n")
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint8:
		v.SetUint(0xff)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(t, v.Index(i))
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(t, v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if name := v.Type().Field(i).Name; name != "Project" && name != "Err" { // they have no JSON
				fill(t, v.Field(i))
			}
		}
	default:
		t.Fatalf("a field of kind %s", v.Kind())
	}
}

// What Append writes is one line, which Decode reads as the same event.
func TestEncoding(t *testing.T) {
	at := time.Date(2026, 11, 30, 8, 0, 0, 123456789, time.UTC)
	for _, b := range bodies(t) {
		zero := reflect.Zero(reflect.TypeOf(b)).Interface().(Body)
		for _, e := range []Event{{Time: at, Vertex: llb.Digest{1, 2}, Body: b}, {Time: at, Body: zero}} {
			line := Append([]byte("before"), e)
			text, ok := bytes.CutPrefix(line, []byte("before"))
			if !ok || bytes.IndexByte(text, '\n') != len(text)-1 {
				t.Errorf("%T is not one line: %q", b, line)
			}
			got, err := Decode(text)
			if err != nil {
				t.Errorf("%T: %v", b, err)
				continue
			}
			if !reflect.DeepEqual(got, e) {
				t.Errorf("%s\nis read as %+v\nwant       %+v", text, got, e)
			}
		}
	}
	e, err := Decode([]byte(`{"time":"2026-11-30T08:00:00Z","vertex":"sha256:` + strings.Repeat("ab", 32) + `",` +
		`"started":{"op":"exec","text":"RUN make","place":{"stage":"build","stages":2,"step":2,"steps":5},"new":1},"newer":{}}`))
	s, ok := e.Body.(Started)
	if err != nil || !ok || s.Name() != "[build 2/5] RUN make" || e.Vertex.String() != "sha256:"+strings.Repeat("ab", 32) {
		t.Errorf("%+v, %v", e, err)
	}
	if e, err := Decode([]byte(`{"time":"2026-11-30T08:00:00Z","future":{"x":1}}`)); err != nil || e.Body != nil {
		t.Errorf("an event of a later version: %+v, %v", e, err)
	}
	for _, bad := range []string{"", "{", "[]", "{}x", `{"vertex":"sha256:ab"}`, `{"vertex":"x"}`, `{"log":{"data":"%"}}`} {
		if e, err := Decode([]byte(bad)); err == nil {
			t.Errorf("Decode(%q) = %+v", bad, e)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, b := range bodies(f) {
		f.Add(Append(nil, Event{Body: b}))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := Decode(line)
		if err != nil || e.Body == nil {
			return
		}
		again, err := Decode(Append(nil, e))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(e) {
			t.Errorf("%q is read as %+v, and that as %+v, %v", line, e, again, err)
		}
	})
}

// collect is a Sink that keeps everything.
type collect struct{ all []Event }

func (c *collect) Event(e Event) { c.all = append(c.all, e) }

func (c *collect) bodies() (out []Body) {
	for _, e := range c.all {
		out = append(out, e.Body)
	}
	return out
}

func TestStream(t *testing.T) {
	first, second := &collect{}, &collect{}
	s := New(first)
	clock := time.Unix(1700000000, 0)
	s.now = func() time.Time { return clock }
	s.Emit(Build{Version: Version})
	clock = clock.Add(-time.Hour) // it is set back
	s.Attach(second)
	var g llb.Graph
	root := g.Add(llb.Scratch{}, llb.Meta{Text: "scratch"})
	place, at := llb.Place{Stage: "a", Step: 1, Steps: 2}, llb.Location{File: "Dockerfile", StartLine: 3}
	v := g.Add(llb.File{Actions: []llb.Action{{Mkdir: &llb.Mkdir{Path: "/a"}}}}, llb.Meta{
		Place: place, Text: "COPY https://u:canary@h/x", Location: at,
	}, root.Output(0))
	task := s.Vertex(v)
	task.Used(Resources{CPU: time.Second, Memory: 10})
	task.Used(Resources{CPU: time.Second, Memory: 5})
	failure := errors.New("get https://u:canary@h/x: no")
	task.Finish(Finished{Key: "k"}, failure)
	task.Note("late")
	task.Done(nil)
	s.Detach(second)
	one, two := s.Task(llb.Place{}, "exporting"), s.Task(llb.Place{}, "exporting")
	if one.id == two.id || one.id == (llb.Digest{}) {
		t.Error("two tasks of one name have one id")
	}
	canceled := fmt.Errorf("x: %w", context.Canceled)
	one.Done(canceled)
	s.Warn("careful https://u:canary@h")
	s.Close()
	s.Close()
	s.Emit(Done{})
	two.Done(nil)

	vertex := []Body{
		Started{
			Op: "file", Place: place, Text: "COPY https://xxxxx@h/x", Inputs: []llb.Digest{root.Digest()}, Location: at,
		},
		Finished{Key: "k", Error: "get https://xxxxx@h/x: no", Err: failure, Resources: Resources{CPU: 2 * time.Second, Memory: 10}},
	}
	want := append([]Body{Build{Version: Version}}, vertex...)
	exporting := Started{Text: "exporting"}
	want = append(want, exporting, exporting, Finished{Canceled: true, Err: canceled}, Warning{Text: "careful https://xxxxx@h"})
	if got := first.bodies(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got := second.bodies(); !reflect.DeepEqual(got, vertex) {
		t.Errorf("a sink that was attached and detached got %+v", got)
	}
	for i, e := range first.all {
		if i > 0 && e.Time.Before(first.all[i-1].Time) {
			t.Errorf("event %d is earlier than the one before", i)
		}
		if (e.Vertex == v.Digest()) != (i == 1 || i == 2) {
			t.Errorf("event %d is of %s", i, e.Vertex)
		}
	}
}

// Whoever reports need not know whether somebody listens.
func TestNobodyListens(t *testing.T) {
	var s *Stream
	s.Attach(nil)
	s.Detach(nil)
	s.Emit(Done{})
	s.Warn("x")
	task := s.Task(llb.Place{}, "x")
	for _, task := range []*Task{task, From(t.Context()), From(With(t.Context(), nil))} {
		task.Log(1, []byte("x"))
		task.Note("x")
		task.Used(Resources{})
		task.Transferring("x", Moving, 1)(1, true)
		task.Done(nil)
	}
	var g llb.Graph
	s.Vertex(g.Add(llb.Scratch{}, llb.Meta{})).Done(nil)
	s.Close()
	with := New().Task(llb.Place{}, "y")
	if From(With(t.Context(), with)) != with {
		t.Error("From does not return what With was given")
	}
}

func TestTransferring(t *testing.T) {
	c := &collect{}
	s := New(c)
	clock := time.Unix(1700000000, 0)
	s.now = func() time.Time { return clock }
	task := s.Task(llb.Place{}, "x")
	known := task.Transferring("known", Moving, 100)
	known(10, false)
	known(20, false) // too soon
	clock = clock.Add(transferInterval)
	known(30, false)
	known(100, false) // never too soon, and done
	known(100, true)
	unknown := task.Transferring("unknown", Moving, 0)
	unknown(5, false)
	unknown(9, true)
	want := []Body{
		Started{Text: "x"},
		Transfer{Name: "known", Current: 10, Total: 100}, Transfer{Name: "known", Current: 30, Total: 100},
		Transfer{Name: "known", Current: 100, Total: 100, Done: true},
		Transfer{Name: "unknown", Current: 5}, Transfer{Name: "unknown", Current: 9, Done: true},
	}
	if got := c.bodies(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// What is counted is reported if it is much, with its end.
func TestCounting(t *testing.T) {
	r := &collect{}
	task := New(r).Task(llb.Place{}, "task")
	count, end := task.Counting("small", Reading, 0)
	count(worthReporting - 1)
	end()
	count, end = task.Counting("large", Reading, 0)
	count(worthReporting - 1)
	count(2)
	end()
	end()
	want := []Body{
		Started{Text: "task"}, Transfer{Name: "large", Phase: Reading, Current: worthReporting + 1},
		Transfer{Name: "large", Phase: Reading, Current: worthReporting + 1, Done: true},
	}
	if got := r.bodies(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	var nobody *Task
	count, end = nobody.Counting("x", Reading, 0)
	count(1)
	end()
}

// A vertex that is held ends with the last hold, with the first error, and starts again when it is held after its end.
func TestHold(t *testing.T) {
	r := &collect{}
	s := New(r)
	image, step := s.Task(llb.Place{}, "FROM"), s.Task(llb.Place{}, "RUN")
	drop := image.Defer()
	image.Done(nil)
	first := image.Hold()
	drop()
	second := image.Hold()
	stop := step.Wait(image)
	again := step.Wait(image)
	broken := errors.New("broken")
	first(broken)
	first(nil)
	stop()
	again()
	second(errors.New("another"))
	image.Note("too late")
	third := image.Hold()
	image.Note("in time")
	third(nil)
	step.Wait(step)()
	unneeded := s.Task(llb.Place{}, "FROM scratch")
	drop = unneeded.Defer()
	unneeded.Done(nil)
	drop()
	drop()
	from, run := Started{Text: "FROM"}, Started{Text: "RUN"}
	want := []Body{
		from, run, Waiting{}, Resumed{}, Waiting{For: image.id}, Resumed{}, Finished{Error: "broken", Err: broken},
		from, Note{Text: "in time"}, Finished{},
		Started{Text: "FROM scratch"}, Waiting{}, Cached{}, Resumed{}, Finished{},
	}
	if got := r.bodies(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}
