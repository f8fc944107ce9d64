package progress

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/llb"
)

// A base image is one line for each layer: what waits, what comes and how fast, what is extracted, what is there.
func TestLayers(t *testing.T) {
	c := newClock()
	var out bytes.Buffer
	width, height := 80, 24
	p := c.play(newTTY(&out, func() (int, int) { return width, height }, c.now, style{}))
	from := p.begin(events.Started{Op: "image", Text: "[1/2] FROM debian"})
	run := p.begin(events.Started{Op: "exec", Text: "[2/2] RUN make"})
	from.emit(events.Waiting{})
	view := func() string {
		p.Printer.mu.Lock()
		defer p.Printer.mu.Unlock()
		var lines []string
		for _, l := range p.display.(*tty).view(width, height) {
			lines = append(lines, l.text)
		}
		return strings.Join(lines, "\n") + "\n"
	}
	c.pass(time.Second)
	want(t, view(), `[+] Building 1.0s (0/0)
 => [1/2] FROM debian                                                    waiting
 => [2/2] RUN make                                                          1.0s
`)
	from.emit(events.Resumed{})
	run.emit(events.Waiting{For: from.id})
	names := []string{"1111111111111", "2222222222222", "3333333333333", "4444444444444"}
	layer := func(i int, phase events.Phase, current int64, done bool) {
		name := "sha256:" + strings.Repeat(names[i], 5)[:64]
		from.emit(events.Transfer{Name: name, Phase: phase, Current: current, Total: 30_000_000, Done: done})
	}
	for i := range names {
		layer(i, events.Queued, 0, false)
	}
	layer(0, events.Moving, 30_000_000, true)
	layer(0, events.Extracting, 30_000_000, true)
	layer(1, events.Moving, 30_000_000, true)
	layer(1, events.Extracting, 30_000_000, false)
	layer(2, events.Moving, 0, false)
	c.pass(2 * time.Second)
	layer(2, events.Moving, 12_000_000, false)
	want(t, view(), `[+] Building 3.0s (0/0)
 => [1/2] FROM debian                                                       2.0s
 => => sha256:111111111111 30.00MB done
 => => sha256:222222222222 extracting 2.0s
 => => sha256:333333333333 12.00MB / 30.00MB  6.00MB/s  3s left
 => => sha256:444444444444 waiting
 => [2/2] RUN make                                                       waiting
`)
	width = 40
	want(t, view(), `[+] Building 3.0s (0/0)
 => [1/2] FROM debian               2.0s
 => => sha256:111111111111 30.00MB done
 => => sha256:222222222222 extracting
 => => sha256:333333333333 40%
 => => sha256:444444444444 waiting
 => [2/2] RUN make               waiting
`)
	width, height = 20, 7
	want(t, view(), `[+] Building 3.0s (0
 => [1/2] FROM  2.0s
 => => 22222 extract
 => => and 3 more
 => [2/2] RU waiting
`)
	from.done()
	run.emit(events.Resumed{})
	c.pass(time.Second)
	run.done()
	p.Close()
	if !strings.Contains(out.String(), " => [2/2] RUN m 2.0s\n") {
		t.Errorf("the step has the time of the fetch: %q", out.String())
	}
}

// The summary says what ran, what was cached, what took longest, what is new and what came of it, which is never cut.
func TestSummary(t *testing.T) {
	c := newClock()
	var out bytes.Buffer
	width := 60
	p := c.play(newTTY(&out, func() (int, int) { return width, 24 }, c.now, style{}))
	p.emit(llb.Digest{}, events.Planned{Steps: 9})
	step := func(text string, took time.Duration, layer string) {
		a := p.begin(events.Started{Op: "exec", Place: llb.Place{Step: int(p.count) + 1, Steps: 9}, Text: text})
		c.pass(took)
		a.emit(events.Finished{Outputs: []events.Output{{Layer: layer}}})
	}
	for range 3 {
		p.begin(events.Started{Op: "file", Place: llb.Place{Step: int(p.count) + 1, Steps: 9}, Text: "COPY a /"}).cached()
	}
	step("RUN first", time.Second, "l1")
	step("RUN second", 3*time.Second, "l2")
	step("RUN third", 2*time.Second, "l3")
	step("RUN fourth", 500*time.Millisecond, "l4")
	p.begin(events.Started{Op: "file", Place: llb.Place{Step: 8, Steps: 9}, Text: "COPY b /"}).cached()
	export := p.begin(events.Started{Text: "exporting to image"})
	export.note("naming to app")
	export.done()
	id := "sha256:" + strings.Repeat("0123456789abcdef", 4)
	p.emit(llb.Digest{}, events.Done{Image: id, Names: []string{"docker.io/library/app:latest"}, Layers: []events.LayerSize{
		{Layer: "base", Size: 99}, {Layer: "l1", Size: 10}, {Layer: "l2", Size: 1_500_000},
	}})
	p.Close()
	got := strings.NewReplacer("\x1b[?7l", "", "\x1b[?7h", "").Replace(out.String())
	want(t, got, ` => CACHED 3 steps: [1/9] … [3/9]
 => [4/9] RUN first                                     1.0s
 => [5/9] RUN second                                    3.0s
 => [6/9] RUN third                                     2.0s
 => [7/9] RUN fourth                                    0.5s
 => CACHED [8/9] COPY b /
 => exporting to image                                  0.0s
 => => naming to app
[+] Built in 6.5s (9/10): 4 steps ran, 4 cached
 slowest     3.0s [5/9] RUN second
             2.0s [6/9] RUN third
             1.0s [4/9] RUN first
 new       1.50MB [5/9] RUN second
              10B [4/9] RUN first
 image   `+id+`
 name    docker.io/library/app:latest
`)
}

// An image that was cached, and is fetched all the same, has run.
func TestSummaryOfAgain(t *testing.T) {
	c := newClock()
	var out bytes.Buffer
	p := c.play(newTTY(&out, func() (int, int) { return 60, 24 }, c.now, style{}))
	p.emit(llb.Digest{}, events.Planned{Steps: 1})
	from := p.begin(events.Started{Op: "image", Text: "FROM debian"})
	from.cached()
	from.emit(events.Started{Op: "image", Text: "FROM debian"})
	from.done()
	p.emit(llb.Digest{}, events.Done{})
	p.Close()
	if !strings.HasSuffix(out.String(), "[+] Built in 0.0s (1/1): 1 step ran, 0 cached\n") {
		t.Errorf("got %q", out.String())
	}
}

func TestFailedSummary(t *testing.T) {
	for _, done := range []events.Done{{Error: "broken"}, {Canceled: true}} {
		c := newClock()
		var out bytes.Buffer
		p := c.play(newTTY(&out, func() (int, int) { return 60, 24 }, c.now, style{}))
		p.begin(events.Started{Op: "exec", Text: "RUN false"}).emit(events.Finished{Error: done.Error, Canceled: done.Canceled})
		p.emit(llb.Digest{}, done)
		p.Close()
		word := map[bool]string{true: "Canceled", false: "Failed"}[done.Canceled]
		if !strings.HasSuffix(out.String(), "[+] "+word+" after 0.0s (1/1)\n") {
			t.Errorf("got %q", out.String())
		}
	}
}

func TestStyle(t *testing.T) {
	env := map[string]string{}
	get := func(name string) string { return env[name] }
	s, err := newStyle(get)
	if err != nil || s.done != "34" || s.failed != "31" || s.logLines != 6 {
		t.Errorf("default: %+v, %v", s, err)
	}
	env["BUILDKIT_COLORS"] = "run=green:error=1,20,255:warning=lightmagenta"
	env["BUILDKIT_TTY_LOG_LINES"] = "2"
	s, err = newStyle(get)
	if err != nil || s.done != "32" || s.failed != "38;2;1;20;255" || s.warning != "95" || s.canceled != "33" || s.logLines != 2 {
		t.Errorf("set: %+v, %v", s, err)
	}
	for _, bad := range []string{"run", "run=mauve", "run=1,2", "run=1,2,256", "go=red", "run=\x1b[2J"} {
		env["BUILDKIT_COLORS"] = bad
		if s, err := newStyle(get); err == nil || s.done != "34" {
			t.Errorf("%q: %+v, %v", bad, s, err)
		}
	}
	env["BUILDKIT_TTY_LOG_LINES"] = "-1"
	if s, err := newStyle(get); err == nil || s.logLines != 6 {
		t.Errorf("-1 lines: %+v, %v", s, err)
	}
	env["NO_COLOR"] = "1"
	if s, _ := newStyle(get); s.done != "" || s.output != "" {
		t.Errorf("NO_COLOR: %+v", s)
	}
}
