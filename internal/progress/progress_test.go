package progress

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
)

// clock is a clock that stands still unless told.
type clock struct{ t time.Time }

func newClock() *clock                { return &clock{time.Unix(1700000000, 0).UTC()} }
func (c *clock) now() time.Time       { return c.t }
func (c *clock) pass(d time.Duration) { c.t = c.t.Add(d) }
func (c *clock) printer(d display) *printer {
	p := &printer{display: d, now: c.now, stop: make(chan struct{}), stopped: make(chan struct{})}
	close(p.stopped) // nothing ticks but tick
	return p
}

func (p *printer) tickNow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.display.tick()
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
	p := c.printer(newPlain(&out, false, c.now))

	base := p.Task("[stage-0 1/3] FROM busybox")
	base.Start()
	c.pass(200 * time.Millisecond)
	base.Status("sha256:abc", 1000, 3_150_000)
	base.Status("sha256:abc", 3_150_000, 3_150_000)
	base.Done(nil)
	hit := p.Task("[stage-0 2/3] WORKDIR /src")
	hit.Cached()
	hit.Done(nil) // it has ended

	run := p.Task("[stage-0 3/3] RUN make")
	run.Note("not cached: file Makefile has changed")
	c.pass(123 * time.Millisecond)
	run.Log(1, []byte("one\ntw"))
	run.Log(2, []byte("warning\n"))
	run.Log(1, []byte("o\r\n\n"))
	run.Log(1, []byte("10%\r20%\r\x1b[2Kdone"))
	p.Warn("the cache is\nfull")
	c.pass(time.Second)
	run.Done(errors.New("exit status 2\nsee above"))
	p.Close()
	p.Close()
	run.Log(1, []byte("late"))

	want(t, out.String(), `#1 [stage-0 1/3] FROM busybox
#1 sha256:abc 3.15MB / 3.15MB 0.0s done
#1 DONE 0.2s

#2 [stage-0 2/3] WORKDIR /src
#2 CACHED

#3 [stage-0 3/3] RUN make
#3 not cached: file Makefile has changed
#3 0.123 one
#3 0.123 warning
#3 0.123 two
#3 0.123 
#3 0.123 10%
#3 0.123 20%
WARN: the cache is full
#3 1.123 done
#3 ERROR: exit status 2 see above

`)
	f := p.Failures()
	if len(f) != 1 || f[0].Name != "[stage-0 3/3] RUN make" || f[0].Err.Error() != "exit status 2\nsee above" {
		t.Fatalf("failures: %+v", f)
	}
	// The streams share the log as they would share a terminal.
	if got := f[0].Log; !slices.Equal(got, []string{"one", "twwarning", "o", "", "10%", "20%", "done"}) {
		t.Errorf("log: %q", got)
	}
}

func TestPlainBlocks(t *testing.T) {
	c := newClock()
	var out bytes.Buffer
	p := c.printer(newPlain(&out, false, c.now))
	a, b, d := p.Task("a"), p.Task("b"), p.Task("d")
	a.Start()
	b.Start()
	b.Log(1, []byte("b1\n")) // held back
	d.Start()
	d.Done(nil) // held back too
	a.Log(1, []byte("a1\n"))
	p.tickNow()
	c.pass(patience)
	p.tickNow() // b has waited long enough
	a.Log(1, []byte("a2\n"))
	b.Log(1, []byte("b2\n"))
	b.Done(nil) // d and then a have the word
	a.Log(1, []byte("a3"))
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

func TestPlainOutcomes(t *testing.T) {
	c := newClock()
	var out bytes.Buffer
	p := c.printer(newPlain(&out, false, c.now))
	p.Task("stopped").Done(fmt.Errorf("run: %w", context.Canceled))
	p.Task("https://user:canary@host/x").Done(errors.New("get https://canary@host/y"))
	p.Close()
	want(t, out.String(), `#1 stopped
#1 CANCELED

#2 https://xxxxx@host/x
#2 ERROR: get https://xxxxx@host/y

`)
	if f := p.Failures(); len(f) != 1 {
		t.Errorf("failures: %+v", f)
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

// What a step says on standard error is quoted though it prints much after it.
func TestErrorsBeforeABurst(t *testing.T) {
	p, err := New("none", io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	burst := strings.Repeat("unpacking\n", 100000)
	for _, c := range []struct {
		name string
		log  func(t *Task)
		want []string
	}{
		{"burst", func(t *Task) { t.Log(2, []byte("cc: no such file\n")); t.Log(1, []byte(burst)) }, append([]string{"cc: no such file", "..."}, slices.Repeat([]string{"unpacking"}, 18)...)},
		{"some of it is there", func(t *Task) {
			t.Log(2, []byte("first\n"))
			t.Log(1, []byte(burst))
			t.Log(2, []byte("second\n"))
		}, append([]string{"first", "..."}, append(slices.Repeat([]string{"unpacking"}, 17), "second")...)},
		{"all of it is there", func(t *Task) { t.Log(1, []byte("a\n")); t.Log(2, []byte("b\n")); t.Log(1, []byte("c\n")) }, []string{"a", "b", "c"}},
		{"nothing else", func(t *Task) { t.Log(2, []byte(burst)) }, slices.Repeat([]string{"unpacking"}, 20)},
	} {
		task := p.Task(c.name)
		c.log(task)
		task.Done(errors.New("failed"))
		all := p.Failures()
		if got := all[len(all)-1].Log; !slices.Equal(got, c.want) {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}

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
				p, err := New(mode, io.Discard)
				if err != nil {
					t.Fatal(err)
				}
				defer p.Close()
				other := p.Task("other")
				other.Start()
				task := p.Task("flood")
				runtime.GC()
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				total := 20 << 20
				if name == "text" && !testing.Short() {
					total = 200 << 20
				}
				for n := 0; n < total; n += len(chunk) {
					task.Log(1, chunk)
					other.Log(2, chunk[:min(len(chunk), 64<<10)])
				}
				runtime.GC()
				runtime.ReadMemStats(&after)
				if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4<<20 {
					t.Errorf("the heap has grown by %d KiB", grown>>10)
				}
				task.Done(errors.New("enough"))
			})
		}
	}
}

func TestRawJSON(t *testing.T) {
	c := newClock()
	var out bytes.Buffer
	p := c.printer(newRawJSON(&out, c.now))
	a := p.Task("RUN a && b")
	a.Start()
	a.Log(2, []byte("hi\xff\n"))
	a.Status("blob", 5, 10)
	a.Status("blob", 6, 10) // too soon
	c.pass(time.Second)
	a.Status("blob", 10, 10)
	p.Warn("careful")
	a.Done(errors.New("bad"))
	b := p.Task("RUN a && b")
	b.Cached()
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
	if len(all) != 8 {
		t.Fatalf("%d lines", len(all))
	}
	id := all[0].Vertexes[0].Digest
	if v := all[0].Vertexes[0]; v.Name != "RUN a && b" || !strings.HasPrefix(id, "sha256:") || v.Completed != nil || !v.Started.Equal(newClock().t) {
		t.Errorf("start: %+v", v)
	}
	if l := all[1].Logs[0]; l.Vertex != id || l.Stream != 2 || string(l.Data) != "hi\xff\n" {
		t.Errorf("log: %+v", l)
	}
	if s := all[2].Statuses[0]; s.Current != 5 || s.Total != 10 || s.Completed != nil {
		t.Errorf("status: %+v", s)
	}
	if s := all[3].Statuses[0]; s.Current != 10 || s.Completed == nil {
		t.Errorf("status: %+v", s)
	}
	if w := all[4].Warnings[0]; string(w.Short) != "careful" {
		t.Errorf("warning: %+v", w)
	}
	if v := all[5].Vertexes[0]; v.Digest != id || v.Error != "bad" || v.Completed == nil || v.Cached {
		t.Errorf("end: %+v", v)
	}
	if v := all[7].Vertexes[0]; v.Digest == id || !v.Cached {
		t.Errorf("tasks of one name: %+v", v)
	}
}

func TestTTY(t *testing.T) {
	c := newClock()
	var out bytes.Buffer
	width, height := 40, 10
	p := c.printer(newTTY(&out, func() (int, int) { return width, height }, c.now))
	screen := &screen{width: width}
	show := func() string {
		p.tickNow()
		screen.write(t, out.Bytes())
		out.Reset()
		return screen.String()
	}
	a, b := p.Task("[stage-0 1/2] FROM busybox"), p.Task("[build 1/9] RUN some very long command line that does not fit")
	a.Start()
	b.Start()
	a.Status("sha256:abc", 1_000_000, 4_000_000)
	b.Log(1, []byte("l1\nl2\nl3\nl4\nl5\nl6\nl7\n\x1b[31m世界世界世界世界世界世界世界世界世界\n"))
	c.pass(1500 * time.Millisecond)
	want(t, show(), `[+] 1.5s, 0 done, 2 running
 => [stage-0 1/2] FROM busybox      1.5s
 => => sha256:abc 1MB / 4MB
 => [build 1/9] RUN some very long  1.5s
 => => # l5
 => => # l6
 => => # l7
 => => # 世界世界世界世界世界世界世界世
`)
	a.Note("new digest")
	a.Done(nil)
	p.Task("x").Cached()
	c.pass(500 * time.Millisecond)
	height = 5
	want(t, show(), ` => [stage-0 1/2] FROM busybox      1.5s
 => => new digest
 => CACHED x                        0.0s
[+] 2.0s, 2 done, 1 running
 => [build 1/9] RUN some very long  2.0s
 => => # 世界世界世界世界世界世界世界世
`)
	// A narrower terminal has wrapped what is on it.
	width = 20
	screen.resize(20)
	b.Done(errors.New("exit status 1"))
	p.Warn("careful")
	show()
	p.Close()
	screen.write(t, out.Bytes())
	if got := screen.String(); !strings.HasSuffix(got, "\n => ERROR [buil 2.0s\nWARN: careful\n") || strings.Contains(got, "[+]") {
		t.Errorf("after the end:\n%s", got)
	}
}

// screen is as much of a terminal as the view needs; it fails the test on any other sequence.
type screen struct {
	width int
	lines []string // rows, as drawn
}

func (s *screen) resize(width int) {
	var rows []string
	for _, l := range s.lines {
		r := []rune(l)
		for len(r) > width {
			rows = append(rows, string(r[:width]))
			r = r[width:]
		}
		rows = append(rows, string(r))
	}
	s.width, s.lines = width, rows
}

func (s *screen) write(t *testing.T, p []byte) {
	t.Helper()
	text := string(p)
	for text != "" {
		switch {
		case strings.HasPrefix(text, "\x1b[?7l"), strings.HasPrefix(text, "\x1b[?7h"):
			text = text[5:]
		case strings.HasPrefix(text, "\x1b["):
			var n int
			if _, err := fmt.Sscanf(text, "\x1b[%dA\r\x1b[J", &n); err != nil {
				t.Fatalf("unexpected sequence in %q", text)
			}
			if n > len(s.lines) {
				t.Fatalf("the cursor goes up %d of %d lines", n, len(s.lines))
			}
			s.lines = s.lines[:len(s.lines)-n]
			text = text[strings.Index(text, "J")+1:]
		default:
			line, rest, ok := strings.Cut(text, "\n")
			if !ok || columns(line) > s.width {
				t.Fatalf("bad line %q", line)
			}
			s.lines = append(s.lines, line)
			text = rest
		}
	}
}

func (s *screen) String() string { return strings.Join(s.lines, "\n") + "\n" }

func TestModes(t *testing.T) {
	for _, mode := range []string{"", "auto", "plain", "rawjson", "quiet", "none"} {
		p, err := New(mode, io.Discard)
		if err != nil {
			t.Fatalf("%s: %v", mode, err)
		}
		if p.Quiet() != (mode == "quiet") {
			t.Errorf("%s: Quiet() = %t", mode, p.Quiet())
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

func TestQuietKeepsTheLog(t *testing.T) {
	p, err := New("quiet", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	task := p.Task("RUN false")
	task.Log(2, []byte("no such thing\n"))
	task.Done(errors.New("exit status 1"))
	if f := p.Failures(); len(f) != 1 || !slices.Equal(f[0].Log, []string{"no such thing"}) {
		t.Errorf("%+v", f)
	}
}

func TestConcurrent(t *testing.T) {
	for _, mode := range []string{"plain", "rawjson"} {
		p, err := New(mode, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				task := p.Task(fmt.Sprint(i))
				for range 100 {
					task.Log(1+i%2, []byte("hello\nworld"))
					task.Status("s", 1, 2)
					task.Note("n")
					p.Warn("w")
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
	p, err := New("plain", io.Discard)
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	task := p.Task("flood")
	chunk := bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog, and so on until the line has an end\n"), 400)
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		task.Log(1, chunk)
	}
}

func BenchmarkQuietLog(b *testing.B) {
	p, err := New("quiet", io.Discard)
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	task := p.Task("flood")
	chunk := bytes.Repeat([]byte("x"), 32<<10)
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		task.Log(1, chunk)
	}
}
