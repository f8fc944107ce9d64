// Package progress shows what tasks do while they do it: as lines, as a live view on a terminal, or as JSON. It knows
// tasks by their names alone, not what they work on or how they depend on each other.
package progress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/internal/termtext"
	"golang.org/x/term"
)

// Printer shows tasks. All its methods, and those of its tasks, are safe for concurrent use.
type Printer interface {
	// Task returns a new task; it is shown from its first event on. The name is one line: "[stage-0 2/3] RUN make".
	Task(name string) *Task
	// Warn shows a text that belongs to no task.
	Warn(text string)
	// Failures returns the tasks that ended with an error so far, first one first.
	Failures() []Failure
	// Quiet reports whether the mode is "quiet", in which the result is all that a command shows.
	Quiet() bool
	// Close shows what is still held back and leaves the terminal as it was. Later events are dropped; a second Close
	// does nothing.
	Close()
}

// Failure is a task that ended with an error.
type Failure struct {
	Name string
	Err  error
	// Log are the last lines the task logged, at most 20 and some kilobytes, without control characters. Where much standard
	// output came after the last lines of standard error, those come first, and then "...".
	Log []string
	// More reports that the task logged more than Log has.
	More bool
}

const (
	// tickInterval bounds how often a terminal is redrawn: often enough to look live, too seldom to cost anything.
	tickInterval = 100 * time.Millisecond
	// quoteLines is how much of a log a Failure keeps: enough for most compilers' errors, not a screenful.
	quoteLines = 20
	// maxNotes bounds what a task keeps for the view on a terminal.
	maxNotes = 8
)

// New returns a Printer that writes to w. The mode is "plain", "tty", "rawjson", "quiet" or "none" (both show nothing), or
// "auto" or "", which is "tty" where w is a terminal that can move its cursor, else "plain". Colours in the output of tasks stay
// where w is a terminal and NO_COLOR is not set. The error names a mode that is not known, or "tty" without a terminal.
func New(mode string, w io.Writer) (Printer, error) {
	file, _ := w.(interface{ Fd() uintptr })
	terminal := termtext.IsTerminal(w)
	if mode == "auto" || mode == "" {
		mode = "plain"
		if terminal && os.Getenv("TERM") != "dumb" {
			mode = "tty"
		}
	}
	colour := terminal && os.Getenv("NO_COLOR") == ""
	var d display
	switch mode {
	case "plain":
		d = newPlain(w, colour, time.Now)
	case "tty":
		if !terminal {
			return nil, errors.New(`progress mode "tty" needs a terminal; use "plain"`)
		}
		d = newTTY(w, func() (int, int) {
			width, height, err := term.GetSize(int(file.Fd()))
			if err != nil || width < 1 || height < 1 {
				return 80, 24
			}
			return width, height
		}, time.Now)
	case "rawjson":
		d = newRawJSON(w, time.Now)
	case "quiet", "none":
		d = nothing{}
	default:
		return nil, fmt.Errorf("progress mode %q is not known; there are auto, plain, tty, rawjson, quiet and none", mode)
	}
	p := &printer{display: d, quiet: mode == "quiet", now: time.Now, stop: make(chan struct{}), stopped: make(chan struct{})}
	go p.ticks()
	return p, nil
}

// display is one way to show tasks. The printer's lock is held during every call.
type display interface {
	start(t *Task)
	// log takes output as it comes; p is only valid during the call.
	log(t *Task, stream int, p []byte)
	status(t *Task, s *status)
	note(t *Task, text string)
	// finish is called once for a task that was started; t.outcome says how it ended.
	finish(t *Task)
	warn(text string)
	// tick is called every tickInterval.
	tick()
	close()
}

type printer struct {
	now   func() time.Time
	quiet bool

	mu       sync.Mutex
	display  display
	failures []Failure
	closed   bool

	stop    chan struct{}
	stopped chan struct{}
}

func (p *printer) ticks() {
	defer close(p.stopped)
	ticker := time.NewTicker(tickInterval)
	defer ticker.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-ticker.C:
			p.mu.Lock()
			p.display.tick()
			p.mu.Unlock()
		}
	}
}

func (p *printer) Task(name string) *Task {
	return &Task{printer: p, name: termtext.Line(name)}
}

func (p *printer) Warn(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.display.warn(termtext.Line(text))
	}
}

func (p *printer) Failures() []Failure {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Failure(nil), p.failures...)
}

func (p *printer) Quiet() bool { return p.quiet }

func (p *printer) Close() {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.closed = true
	p.mu.Unlock()
	close(p.stop)
	<-p.stopped
	p.mu.Lock()
	defer p.mu.Unlock()
	p.display.close()
}

// outcome is how a task ended.
type outcome int

const (
	running outcome = iota
	succeeded
	cached
	canceled
	failed
)

// status is how far one transfer of a task is.
type status struct {
	id             string
	current, total int64
	started        time.Time
	completed      time.Time // zero while it goes on
	shown          time.Time // when a display last printed it; for the display's use
}

// Task is something that takes time. Events after its end are dropped.
type Task struct {
	printer *printer
	name    string

	// The rest is guarded by the printer's lock.
	started  time.Time
	ended    time.Time
	outcome  outcome
	err      error
	tail     tail // of both streams
	errors   tail // of standard error alone
	statuses []*status
	notes    []string
}

// event runs f on a task that has begun and not ended, under the lock.
func (t *Task) event(f func(d display)) {
	p := t.printer
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || t.outcome != running {
		return
	}
	if t.started.IsZero() {
		t.started = p.now()
		p.display.start(t)
	}
	f(p.display)
}

// Start shows the task as running, from now on. The first of any other events starts it as well.
func (t *Task) Start() { t.event(func(display) {}) }

// Log shows output of the task, any bytes in pieces of any size; stream is 1 or 2. p is only used during the call.
func (t *Task) Log(stream int, p []byte) {
	t.event(func(d display) {
		t.tail.write(p)
		if stream == 2 {
			t.errors.write(p)
		}
		d.log(t, stream, p)
	})
}

// Status shows how many of total bytes of a part of the task, for example of one blob, are done; total is 0 where it is not
// known. A part is done when current is total.
func (t *Task) Status(id string, current, total int64) {
	t.event(func(d display) {
		var s *status
		for _, old := range t.statuses {
			if old.id == id {
				s = old
			}
		}
		now := t.printer.now()
		if s == nil {
			s = &status{id: id, started: now}
			t.statuses = append(t.statuses, s)
		}
		if !s.completed.IsZero() {
			return
		}
		s.current, s.total = current, total
		if total > 0 && current >= total {
			s.completed = now
		}
		d.status(t, s)
	})
}

// Note shows one line about the task, for example why it was not cached.
func (t *Task) Note(text string) {
	t.event(func(d display) {
		text := termtext.Line(text)
		if len(t.notes) < maxNotes {
			t.notes = append(t.notes, text)
		}
		d.note(t, text)
	})
}

// Cached ends the task: there was nothing to do.
func (t *Task) Cached() { t.end(cached, nil) }

// Done ends the task, with a failure where err is not nil. A task that ends with context.Canceled was stopped and has not
// failed.
func (t *Task) Done(err error) {
	switch {
	case err == nil:
		t.end(succeeded, nil)
	case errors.Is(err, context.Canceled):
		t.end(canceled, err)
	default:
		t.end(failed, err)
	}
}

func (t *Task) end(o outcome, err error) {
	t.event(func(d display) {
		t.outcome, t.err, t.ended = o, err, t.printer.now()
		if o == failed {
			t.printer.failures = append(t.printer.failures, Failure{Name: t.name, Err: err, Log: t.quote(), More: t.tail.cut || len(t.tail.lines(quoteLines+1)) > quoteLines})
		}
		d.finish(t)
		t.tail, t.errors, t.statuses, t.notes = tail{}, tail{}, nil, nil
	})
}

// quote returns the lines of the log that say most about a failure.
func (t *Task) quote() []string {
	lines, errs := t.tail.lines(quoteLines), t.errors.lines(quoteLines/2)
	// Both are in the order of writing, so errs from the end on are found in lines from the end on.
	missing := len(errs)
	for i := len(lines); missing > 0 && i > 0; i-- {
		if lines[i-1] == errs[missing-1] {
			missing--
		}
	}
	if missing == 0 || len(lines) < quoteLines && !t.tail.cut {
		return lines
	}
	rest := quoteLines - missing - 1
	return append(append(errs[:missing:missing], "..."), lines[max(0, len(lines)-rest):]...)
}

// nothing shows nothing.
type nothing struct{}

func (nothing) start(*Task)            {}
func (nothing) log(*Task, int, []byte) {}
func (nothing) status(*Task, *status)  {}
func (nothing) note(*Task, string)     {}
func (nothing) finish(*Task)           {}
func (nothing) warn(string)            {}
func (nothing) tick()                  {}
func (nothing) close()                 {}
