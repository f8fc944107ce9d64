package progress

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/llb"
)

// clock is a clock that stands still unless told.
type clock struct{ t time.Time }

func newClock() *clock                { return &clock{time.Unix(1700000000, 0).UTC()} }
func (c *clock) now() time.Time       { return c.t }
func (c *clock) pass(d time.Duration) { c.t = c.t.Add(d) }

// play gives events to a printer, and to Failures.
type play struct {
	*Printer
	failures Failures
	now      func() time.Time
	mu       sync.Mutex
	count    byte
}

func (c *clock) play(d display) *play {
	p := newPrinter(d)
	close(p.stopped) // nothing ticks but tick
	return &play{Printer: p, now: c.now}
}

// newPlay is a play of a printer as New makes it.
func newPlay(t testing.TB, mode string, w io.Writer) *play {
	t.Helper()
	p, err := New(mode, w)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return &play{Printer: p, now: time.Now}
}

func (p *play) tickNow() {
	p.Printer.mu.Lock()
	defer p.Printer.mu.Unlock()
	p.display.tick()
}

func (p *play) emit(id llb.Digest, body events.Body) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := events.Event{Time: p.now(), Vertex: id, Body: body}
	p.failures.Event(e)
	p.Event(e)
}

func (p *play) warn(text string) { p.emit(llb.Digest{}, events.Warning{Text: text}) }

// actor is a vertex of a play.
type actor struct {
	play *play
	id   llb.Digest
}

// start starts a vertex.
func (p *play) start(name string) actor { return p.begin(events.Started{Text: name}) }

func (p *play) begin(s events.Started) actor {
	p.mu.Lock()
	p.count++
	a := actor{p, llb.Digest{p.count}}
	p.mu.Unlock()
	a.emit(s)
	return a
}

func (a actor) emit(body events.Body)       { a.play.emit(a.id, body) }
func (a actor) log(stream int, text string) { a.emit(events.Log{Stream: stream, Data: []byte(text)}) }
func (a actor) note(text string)            { a.emit(events.Note{Text: text}) }
func (a actor) done()                       { a.emit(events.Finished{}) }
func (a actor) fail(text string)            { a.emit(events.Finished{Error: text}) }
func (a actor) transfer(name string, current, total int64) {
	a.emit(events.Transfer{Name: name, Current: current, Total: total, Done: current == total})
}

func (a actor) cached() {
	a.emit(events.Cached{})
	a.done()
}

func want(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestPlain(t *testing.T) {
	c := newClock()
	var out bytes.Buffer
	p := c.play(newPlain(&out, false, c.now))

	base := p.start("[stage-0 1/3] FROM busybox")
	c.pass(200 * time.Millisecond)
	base.transfer("sha256:abc", 1000, 3_150_000)
	base.transfer("sha256:abc", 3_150_000, 3_150_000)
	base.done()
	p.begin(events.Started{Op: "local", Text: "load build context"}).done() // it is there already
	hit := p.start("[stage-0 2/3] WORKDIR /src")
	hit.cached()
	hit.done() // it has ended

	run := p.start("[stage-0 3/3] RUN make")
	run.note("new\tname\x1b[2J")
	run.emit(events.Missed{Reason: "nobody asked"})
	c.pass(123 * time.Millisecond)
	run.log(1, "one\ntw")
	run.log(2, "warning\n")
	run.log(1, "o\r\n\n")
	run.log(1, "10%\r20%\r\x1b[2Kdone")
	p.warn("the cache is\nfull")
	p.emit(llb.Digest{}, events.Warning{Rule: "StageNameCasing", Text: "shown with its lines"})
	c.pass(time.Second)
	run.fail("exit status 2\nsee above")
	p.Close()
	p.Close()
	run.log(1, "late")

	want(t, out.String(), `#1 [stage-0 1/3] FROM busybox
#1 sha256:abc 1.00kB / 3.15MB
#1 sha256:abc 3.15MB / 3.15MB 0.0s done
#1 DONE 0.2s

#2 [stage-0 2/3] WORKDIR /src
#2 CACHED

#3 [stage-0 3/3] RUN make
#3 new	name
#3 0.123 one
#3 0.123 warning
#3 0.123 two
#3 0.123 
#3 0.123 10%
#3 0.123 20%
WARN: the cache is full
#3 1.123 done
#3 ERROR

`)
	if _, failed := p.failures.Of(base.id); failed {
		t.Error("a vertex that has not failed has a failure")
	}
	f, failed := p.failures.Of(run.id)
	if !failed || f.Name != "[stage-0 3/3] RUN make" {
		t.Fatalf("failure: %+v", f)
	}
	// The streams share the log as they would share a terminal.
	if got := f.Log; !slices.Equal(got, []string{"one", "twwarning", "o", "", "10%", "20%", "done"}) {
		t.Errorf("log: %q", got)
	}
}

// Why steps run is shown where the build was asked for it.
func TestExplain(t *testing.T) {
	c := newClock()
	var out bytes.Buffer
	p := c.play(newPlain(&out, false, c.now))
	p.emit(llb.Digest{}, events.Build{Explain: true})
	run := p.start("RUN make")
	run.emit(events.Missed{Reason: "x", Changes: []events.Change{
		{Input: "arg", Now: []string{"make all"}, Was: []string{"make"}},
		{Input: "env", Now: []string{"A=****"}, Was: []string{"A=****"}},
		{Input: "mount", Now: []string{"a"}},
		{Input: "host", Was: []string{"b", "c"}},
		{Input: "ulimit"},
		{Input: events.InputRoot},
	}})
	run.done()
	cp := p.start("COPY a /a")
	cp.emit(events.Missed{Reason: "x", Changes: []events.Change{{Input: events.InputFiles}}})
	cp.emit(events.Files{Changes: []events.FileChange{
		{Path: "a", Kind: events.Added}, {Path: "b", Kind: events.Removed}, {Path: "c", Kind: events.Changed, What: []string{"mode", "content"}},
	}, More: 3})
	cp.done()
	lost := p.start("COPY b /b")
	lost.emit(events.Missed{Reason: "x", Changes: []events.Change{{Input: events.InputFiles}}})
	lost.emit(events.Files{})
	lost.done()
	fresh := p.start("RUN new")
	fresh.emit(events.Missed{Reason: "it is new"})
	fresh.done()
	again := p.start("RUN again")
	again.emit(events.Again{})
	again.emit(events.Again{Differs: true})
	again.emit(events.Again{Differs: true, Files: events.Files{Changes: []events.FileChange{{Path: "a", Kind: events.Added}}, More: 1}})
	again.emit(events.Again{Error: "no"})
	again.done()
	want(t, out.String(), `#1 RUN make
#1 ran because its arg is now "make all", and was "make"
#1 ran because its env has another value, which is not shown: "A=****"
#1 ran because of a new mount: "a"
#1 ran because of a host that is gone: "b"
#1 ran because of a host that is gone: "c"
#1 ran because its ulimits were reordered
#1 ran because what it stands on is not what it was
#1 DONE 0.0s

#2 COPY a /a
#2 ran because /a is new
#2 ran because /b is not there any more
#2 ran because /c has changed in mode, content
#2 and because of 3 more changes
#2 DONE 0.0s

#3 COPY b /b
#3 ran because its files changed
#3 DONE 0.0s

#4 RUN new
#4 ran because it is new
#4 DONE 0.0s

#5 RUN again
#5 made something else when it ran again
#5 /a is new when it ran again
#5 and 1 more differences
#5 failed when it ran again: no
#5 DONE 0.0s

`)
	many := Reasons(events.Missed{Changes: []events.Change{{Input: "arg", Now: slices.Repeat([]string{"x"}, 12)}}, More: 5})
	if len(many) != events.MaxChanges+1 || many[events.MaxChanges] != "and because of 7 more changes" {
		t.Errorf("%q", many)
	}
}

func TestPlainBlocks(t *testing.T) {
	c := newClock()
	var out bytes.Buffer
	p := c.play(newPlain(&out, false, c.now))
	a, b := p.start("a"), p.start("b")
	b.log(1, "b1\n")    // held back
	p.start("d").done() // held back too
	a.log(1, "a1\n")
	p.tickNow()
	c.pass(patience)
	p.tickNow() // b has waited long enough
	a.log(1, "a2\n")
	b.log(1, "b2\n")
	b.done() // d and then a have the word
	a.log(1, "a3")
	p.Close()
	want(t, out.String(), `#1 a
#1 0.000 a1
#1 ...

#2 b
#2 0.000 b1
#2 2.000 b2
#2 DONE 2.0s

#3 d
#3 DONE 0.0s

#1 a
#1 2.000 a2
#1 2.000 a3
`)
}

// A step that waits for its base image lets that one speak, and its time does not include the fetch.
func TestPlainFetch(t *testing.T) {
	c := newClock()
	var out bytes.Buffer
	p := c.play(newPlain(&out, false, c.now))
	from := p.start("[1/2] FROM debian")
	from.emit(events.Waiting{})
	run := p.start("[2/2] RUN make")
	c.pass(time.Second)
	from.emit(events.Resumed{})
	run.emit(events.Waiting{For: from.id})
	layer := events.Transfer{Name: "sha256:abc", Phase: events.Queued, Total: 100 << 20}
	from.emit(layer)
	layer.Phase = events.Moving
	for range 50 {
		c.pass(100 * time.Millisecond)
		layer.Current += layer.Total / 50
		layer.Done = layer.Current == layer.Total
		if layer.Current == 20*layer.Total/50 {
			c.pass(3 * time.Second)
		}
		if layer.Current%(layer.Total/10) == 0 {
			from.emit(layer)
		}
	}
	layer.Phase, layer.Done = events.Extracting, false
	from.emit(layer)
	c.pass(1500 * time.Millisecond)
	layer.Done = true
	from.emit(layer)
	from.done()
	run.emit(events.Resumed{})
	c.pass(500 * time.Millisecond)
	run.done()
	from.emit(events.Started{Text: "[1/2] FROM debian"})
	from.done()
	p.Close()
	want(t, out.String(), `#1 [1/2] FROM debian
#1 ...

#2 [2/2] RUN make
#2 ...

#1 [1/2] FROM debian
#1 sha256:abc 10.49MB / 104.86MB
#1 sha256:abc 20.97MB / 104.86MB 0.5s
#1 sha256:abc 31.46MB / 104.86MB 1.0s
#1 sha256:abc 41.94MB / 104.86MB 4.5s
#1 sha256:abc 52.43MB / 104.86MB 5.0s
#1 sha256:abc 62.91MB / 104.86MB 5.5s
#1 sha256:abc 73.40MB / 104.86MB 6.0s
#1 sha256:abc 83.89MB / 104.86MB 6.5s
#1 sha256:abc 94.37MB / 104.86MB 7.0s
#1 sha256:abc 104.86MB / 104.86MB 7.5s done
#1 extracting sha256:abc
#1 extracting sha256:abc 1.5s done
#1 DONE 9.5s

#2 [2/2] RUN make
#2 DONE 1.5s

#1 [1/2] FROM debian
#1 DONE 0.0s

`)
}

func TestPlainOutcomes(t *testing.T) {
	c := newClock()
	var out bytes.Buffer
	p := c.play(newPlain(&out, false, c.now))
	stopped := p.start("stopped")
	stopped.emit(events.Finished{Canceled: true})
	p.start("https://user:canary@host/x").fail("get https://canary@host/y")
	p.start("no room").fail("the disk is full")
	push := p.start("pushing")
	push.emit(events.Transfer{Name: "sha256:abc", Phase: events.Queued, Total: 5})
	push.emit(events.Transfer{Name: "sha256:abc", Phase: events.Exists, Current: 5, Total: 5, Done: true})
	push.done()
	p.emit(llb.Digest{}, events.Done{Error: "[1/2] RUN x: the disk is full"})
	p.Close()
	want(t, out.String(), `#1 stopped
#1 CANCELED

#2 https://xxxxx@host/x
#2 ERROR

#3 no room
#3 ERROR

#4 pushing
#4 sha256:abc already exists
#4 DONE 0.0s

#2 ERROR: get https://xxxxx@host/y
`)
	if _, failed := p.failures.Of(stopped.id); failed {
		t.Error("a vertex that was stopped has failed")
	}
}

func TestLongLines(t *testing.T) {
	var s splitter
	var lines []string
	emit := func(l []byte) { lines = append(lines, string(l)) }
	long := strings.Repeat("x", maxLine-1) + "é" + strings.Repeat("y", 10)
	s.feed([]byte(long+"\nnext\n"), emit)
	if len(lines) != 3 || lines[0]+lines[1] != long || lines[2] != "next" || !utf8.ValidString(lines[0]) {
		t.Errorf("%d lines, first %d bytes", len(lines), len(lines[0]))
	}
	lines = nil
	s.feed([]byte(strings.Repeat("z", maxLine)+"\nafter\n"), emit)
	if len(lines) != 2 || lines[1] != "after" {
		t.Errorf("a line of exactly the limit: %d lines, last %q", len(lines), lines[len(lines)-1])
	}
}

func TestTail(t *testing.T) {
	var tl tail
	for i := range 100000 {
		fmt.Fprintf(writerFunc(tl.write), "line %d\n", i)
	}
	if got := tl.lines(3); !slices.Equal(got, []string{"line 99997", "line 99998", "line 99999"}) {
		t.Errorf("%q", got)
	}
	tl = tail{}
	tl.write(append(bytes.Repeat([]byte("a"), 3*maxTail), "\nlast"...))
	if got := tl.lines(20); len(got) == 0 || got[len(got)-1] != "last" || len(strings.Join(got, "")) > maxTail {
		t.Errorf("%d lines", len(got))
	}
	if got := (&tail{}).lines(5); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

func TestBoundedMemory(t *testing.T) {
	inputs := map[string][]byte{
		"one line":    bytes.Repeat([]byte("x"), 1<<20),
		"empty lines": bytes.Repeat([]byte("\n"), 1<<16),
		"text":        bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog\n"), 1<<15),
		"escapes":     bytes.Repeat([]byte("\x1b[31m\x1b]0;\x00\xff"), 1<<17),
	}
	for name, chunk := range inputs {
		for _, mode := range []string{"plain", "rawjson", "quiet"} {
			t.Run(name+"/"+mode, func(t *testing.T) {
				p := newPlay(t, mode, io.Discard)
				other, task := p.start("other"), p.start("flood")
				runtime.GC()
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				total := 20 << 20
				if name == "text" && !testing.Short() {
					total = 200 << 20
				}
				for n := 0; n < total; n += len(chunk) {
					task.emit(events.Log{Stream: 1, Data: chunk})
					other.emit(events.Log{Stream: 2, Data: chunk[:min(len(chunk), 64<<10)]})
				}
				runtime.GC()
				runtime.ReadMemStats(&after)
				if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4<<20 {
					t.Errorf("the heap has grown by %d KiB", grown>>10)
				}
				task.fail("enough")
			})
		}
	}
}

func TestRawJSON(t *testing.T) {
	c := newClock()
	var out bytes.Buffer
	p := c.play(newRawJSON(&out))
	root := p.begin(events.Started{Op: "scratch", Text: "scratch"})
	root.done()
	a := p.begin(events.Started{Text: "RUN a && b", Inputs: []llb.Digest{root.id}})
	a.log(2, "hi\xff\n")
	a.transfer("blob", 5, 10)
	c.pass(time.Second)
	a.transfer("blob", 10, 10)
	p.warn("careful")
	p.emit(llb.Digest{}, events.Warning{
		Rule: "JSONArgsRecommended", Text: "found", Detail: "about", URL: "https://x",
		Location: llb.Location{File: "Dockerfile", StartLine: 3, EndLine: 4},
	})
	a.fail("bad")
	b := p.start("RUN a && b")
	b.cached()
	push := p.start("push")
	for _, phase := range []events.Phase{events.Queued, events.Exists, events.Extracting} {
		push.emit(events.Transfer{Name: "sha256:x", Phase: phase, Total: 3})
	}
	p.Close()

	dec := json.NewDecoder(&out)
	var all []solveStatus
	for {
		var s solveStatus
		if err := dec.Decode(&s); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	if len(all) != 15 {
		t.Fatalf("%d lines", len(all))
	}
	if v := all[1].Vertexes[0]; v.Digest != root.id || v.Name != "scratch" || v.Completed == nil || !v.Cached {
		t.Errorf("what is there already: %+v", v)
	}
	all = all[2:]
	if v := all[0].Vertexes[0]; v.Name != "RUN a && b" || v.Digest != a.id || !slices.Equal(v.Inputs, []llb.Digest{root.id}) ||
		v.Completed != nil || !v.Started.Equal(newClock().t) {
		t.Errorf("start: %+v", v)
	}
	if l := all[1].Logs[0]; l.Vertex != a.id || l.Stream != 2 || string(l.Data) != "hi\xff\n" {
		t.Errorf("log: %+v", l)
	}
	if s := all[2].Statuses[0]; s.ID != "blob" || s.Current != 5 || s.Total != 10 || s.Completed != nil {
		t.Errorf("status: %+v", s)
	}
	if s := all[3].Statuses[0]; s.Current != 10 || s.Completed == nil || !s.Started.Equal(newClock().t) {
		t.Errorf("status: %+v", s)
	}
	if w := all[4].Warnings[0]; string(w.Short) != "careful" || w.SourceInfo != nil || len(w.Range) != 0 {
		t.Errorf("warning: %+v", w)
	}
	if w := all[5].Warnings[0]; string(w.Short) != "JSONArgsRecommended: found (line 3)" || string(w.Detail[0]) != "about" ||
		w.URL != "https://x" ||
		w.SourceInfo.Filename != "Dockerfile" || w.Range[0].Start.Line != 3 || w.Range[0].End.Line != 4 {
		t.Errorf("warning: %+v", w)
	}
	if v := all[6].Vertexes[0]; v.Digest != a.id || v.Error != "bad" || v.Completed == nil || v.Cached {
		t.Errorf("end: %+v", v)
	}
	if v := all[8].Vertexes[0]; v.Digest != b.id || !v.Cached {
		t.Errorf("tasks of one name: %+v", v)
	}
	for i, id := range []string{"sha256:x", "sha256:x", "extracting sha256:x"} {
		if s := all[10+i].Statuses[0]; s.ID != id || s.Total != 3 {
			t.Errorf("status %d: %+v", i, s)
		}
	}
}

func TestTTY(t *testing.T) {
	c := newClock()
	var out bytes.Buffer
	width, height := 40, 10
	p := c.play(newTTY(&out, func() (int, int) { return width, height }, c.now, style{logLines: 6}))
	screen := &terminal{width: width}
	show := func() string {
		p.tickNow()
		screen.write(t, out.Bytes())
		out.Reset()
		return screen.String()
	}
	p.emit(llb.Digest{}, events.Planned{Steps: 4})
	a := p.begin(events.Started{Op: "image", Text: "[stage-0 1/2] FROM busybox"})
	b := p.begin(events.Started{Op: "exec", Text: "[build 1/9] RUN some very long command line that does not fit"})
	p.begin(events.Started{Op: "merge", Text: "not shown"})
	a.transfer("sha256:abc", 1_000_000, 4_000_000)
	a.transfer("sha256:def", 1, 1)
	b.log(1, "l1\nl2\nl3\nl4\nl5\nl6\nl7\n\x1b[31m世界世界世界世界世界世界世界世界世界\n")
	c.pass(1500 * time.Millisecond)
	want(t, show(), `[+] Building 1.5s (0/4)
 => [stage-0 1/2] FROM busybox      1.5s
 => => sha256:abc 1.00MB / 4.00MB
 => => sha256:def 1B done
 => [build 1/9] RUN some very long  1.5s
 => => # l6
 => => # l7
 => => # 世界世界世界世界世界世界世界世
`)
	a.note("new digest")
	a.done()
	p.start("x").cached()
	c.pass(500 * time.Millisecond)
	height = 6
	want(t, show(), ` => [stage-0 1/2] FROM busybox      1.5s
 => => new digest
[+] Building 2.0s (2/5)
 => CACHED x
 => [build 1/9] RUN some very long  2.0s
 => => # 世界世界世界世界世界世界世界世
`)
	// A narrower terminal has wrapped what is on it.
	width = 20
	screen.resize(20)
	b.fail("exit status 1")
	p.warn("careful")
	show()
	p.Close()
	screen.write(t, out.Bytes())
	if got := screen.String(); !strings.HasSuffix(got, "\n => ERROR [buil 2.0s\nWARN: careful\n") || strings.Contains(got, "[+]") {
		t.Errorf("after the end:\n%s", got)
	}
}

// terminal is as much of a terminal as the view needs; it fails the test on any other sequence.
type terminal struct {
	width int
	lines []string // rows, as drawn
	row   int
}

func (s *terminal) resize(width int) {
	var rows []string
	for _, l := range s.lines {
		r := []rune(l)
		for len(r) > width {
			rows = append(rows, string(r[:width]))
			r = r[width:]
		}
		rows = append(rows, string(r))
	}
	s.width, s.lines, s.row = width, rows, len(rows)
}

func (s *terminal) write(t *testing.T, p []byte) {
	t.Helper()
	text := string(p)
	erased := false
	for text != "" {
		if rest, ok := strings.CutPrefix(text, "\x1b["); ok {
			end := strings.IndexFunc(rest, unicode.IsLetter)
			switch code := rest[:end+1]; code {
			case "?7l", "?7h":
			case "K":
				erased = true
			case "J":
				s.lines = s.lines[:s.row]
			default:
				var n int
				if _, err := fmt.Sscanf(code, "%dA", &n); err != nil || n > s.row {
					t.Fatalf("unexpected sequence at %q, row %d", text, s.row)
				}
				s.row -= n
			}
			text = strings.TrimPrefix(rest[end+1:], "\r")
			continue
		}
		line, rest, ok := strings.Cut(text, "\n")
		if !ok || columns(line) > s.width {
			t.Fatalf("bad line %q", line)
		}
		switch {
		case s.row == len(s.lines):
			s.lines = append(s.lines, line)
		case erased:
			s.lines[s.row] = line
		default:
			t.Fatalf("the line is not erased before %q", line)
		}
		s.row++
		erased = false
		text = rest
	}
}

func (s *terminal) String() string { return strings.Join(s.lines, "\n") + "\n" }

func TestModes(t *testing.T) {
	for _, mode := range []string{"", "auto", "plain", "rawjson", "quiet", "none"} {
		p, err := New(mode, io.Discard)
		if err != nil {
			t.Fatalf("%s: %v", mode, err)
		}
		p.Close()
	}
	f, err := os.Create(t.TempDir() + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := New("tty", f); err == nil {
		t.Error("tty without a terminal")
	}
	if _, err := New("pretty", f); err == nil || !strings.Contains(err.Error(), `"pretty"`) {
		t.Errorf("unknown mode: %v", err)
	}
}

func TestConcurrent(t *testing.T) {
	for _, mode := range []string{"plain", "rawjson"} {
		p, err := New(mode, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		stream := events.New(p, &Failures{})
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				task := stream.Task(llb.Place{}, fmt.Sprint(i))
				transfer := task.Transferring("s", events.Moving, 100)
				for n := range 100 {
					task.Log(1+i%2, []byte("hello\nworld"))
					transfer(int64(n+1), false)
					task.Note("n")
					stream.Warn("w")
				}
				if i == 7 {
					p.Close()
				}
				task.Done(nil)
			})
		}
		wg.Wait()
		p.Close()
	}
}

func BenchmarkPlainLog(b *testing.B) {
	task := newPlay(b, "plain", io.Discard).start("flood")
	chunk := bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog, and so on until the line has an end\n"), 400)
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		task.emit(events.Log{Stream: 1, Data: chunk})
	}
}

func BenchmarkQuietLog(b *testing.B) {
	task := newPlay(b, "quiet", io.Discard).start("flood")
	chunk := bytes.Repeat([]byte("x"), 32<<10)
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		task.emit(events.Log{Stream: 1, Data: chunk})
	}
}
