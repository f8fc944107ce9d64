// Package progress shows the events of a stream while they come: as lines, as a live view on a terminal, or as JSON. It reads events and
// nothing else, and makes all text in them fit for a terminal.
package progress

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/suggest"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/llb"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

const (
	// tickInterval bounds how often a terminal is redrawn: often enough to look live, too seldom to cost anything.
	tickInterval = 100 * time.Millisecond
	// maxNotes bounds what a task keeps for the view on a terminal.
	maxNotes = 8
)

// Printer shows the events of one stream. It is an events.Sink.
type Printer struct {
	mu      sync.Mutex
	display display
	tasks   map[llb.Digest]*task // that are running
	explain bool                 // the user asked why steps run
	closed  bool

	stop    chan struct{}
	stopped chan struct{}
}

// task is a vertex that runs and is shown.
type task struct {
	id llb.Digest
	// started is when it began, moved by the time in which it only waited.
	started time.Time
	// what is the event that started it, and name its line, fit for a terminal.
	what   events.Started
	name   string
	cached bool
	// waiting is since when it waits for another; zero if it does not.
	waiting time.Time
	// transfers are those that go on, in the order in which they began.
	transfers []*transfer
}

// took returns how long the task has worked.
func (t *task) took(at time.Time) time.Duration {
	if !t.waiting.IsZero() {
		at = t.waiting
	}
	return at.Sub(t.started)
}

// resume ends the time in which the task waits.
func (t *task) resume(at time.Time) {
	if !t.waiting.IsZero() {
		t.started = t.started.Add(at.Sub(t.waiting))
		t.waiting = time.Time{}
	}
}

// transfer is one phase of a transfer of a task.
type transfer struct {
	events.Transfer
	name    string // fit for a terminal
	started time.Time
	// For the display's own use: when it printed the transfer last, and how much was done.
	shown   time.Time
	shownAt int64
}

// statusID returns the ID of the transfer in BuildKit's statuses, where a blob that waits or exists is one of which none or all has moved.
func (tr *transfer) statusID() string {
	if tr.Phase == events.Queued || tr.Phase == events.Exists {
		return tr.Name
	}
	return tr.id()
}

// id returns the transfer's name as BuildKit prints it: with a phase that is not the moving of bytes.
func (tr *transfer) id() string {
	if tr.Phase == events.Moving {
		return tr.Name
	}
	return string(tr.Phase) + " " + tr.Name
}

// display is one way to show tasks. The printer's lock is held during every call. All texts but those in events are fit for a terminal.
type display interface {
	start(t *task)
	// log takes output as it comes; p is only valid during the call.
	log(t *task, at time.Time, stream int, p []byte)
	transfer(t *task, at time.Time, tr *transfer)
	note(t *task, at time.Time, text string)
	// wait says that the task is waiting for another.
	wait(t *task)
	// planned says that so many more steps are to be worked on; built, how the build ended.
	planned(steps int)
	built(at time.Time, b events.Done)
	// finish is called once for a task that was started.
	finish(t *task, at time.Time, f events.Finished)
	warn(at time.Time, w events.Warning)
	// tick is called every tickInterval.
	tick()
	close()
}

// Modes are the progress modes.
var Modes = []string{"auto", "plain", "tty", "rawjson", "quiet", "none"}

// CheckMode returns an error if mode is not one of Modes, with that which was probably meant.
func CheckMode(mode string) error {
	if slices.Contains(Modes, mode) {
		return nil
	}
	return fmt.Errorf("progress mode %q is not known; there are auto, plain, tty, rawjson, quiet and none%s", mode, suggest.Hint(mode, Modes...))
}

// New returns a Printer that writes to w. The mode is "plain", "tty", "rawjson", "quiet" or "none" (both show nothing), or
// "auto" or "", which is "tty" where w is a terminal that can move its cursor, else "plain". Colours in the output of tasks stay
// where w is a terminal and NO_COLOR is not set. BUILDKIT_COLORS and BUILDKIT_TTY_LOG_LINES are as for BuildKit: the colours of states,
// and how many lines of its output a running step has. The error names a mode that is not known, or "tty" without a terminal.
func New(mode string, w io.Writer) (*Printer, error) {
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
		style, err := newStyle(os.Getenv)
		view := newTTY(w, func() (int, int) {
			width, height, err := term.GetSize(int(file.Fd()))
			if err != nil || width < 1 || height < 1 {
				return 80, 24
			}
			return width, height
		}, time.Now, style)
		if err != nil {
			view.lasting = append(view.lasting, style.paint(style.warning, "WARN: "+termtext.Line(err.Error())))
		}
		d = view
	case "rawjson":
		d = newRawJSON(w)
	case "quiet", "none":
		d = nothing{}
	default:
		return nil, CheckMode(mode)
	}
	p := newPrinter(d)
	go p.ticks()
	return p, nil
}

func newPrinter(d display) *Printer {
	return &Printer{display: d, tasks: map[llb.Digest]*task{}, stop: make(chan struct{}), stopped: make(chan struct{})}
}

func (p *Printer) ticks() {
	defer close(p.stopped)
	ticker := time.NewTicker(tickInterval)
	defer ticker.Stop()
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	defer signal.Stop(resized)
	for {
		select {
		case <-p.stop:
			return
		case <-ticker.C:
		case <-resized:
		}
		p.mu.Lock()
		p.display.tick()
		p.mu.Unlock()
	}
}

// Close shows what is still held back and leaves the terminal as it was. Later events are dropped; a second Close does nothing.
func (p *Printer) Close() {
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

// Event implements events.Sink.
func (p *Printer) Event(e events.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	switch b := e.Body.(type) {
	case events.Build:
		p.explain = b.Explain
	case events.Planned:
		p.display.planned(b.Steps)
	case events.Done:
		p.display.built(e.Time, b)
	case events.Warning:
		p.display.warn(e.Time, b)
	case events.Started:
		t := &task{id: e.Vertex, started: e.Time, what: b, name: termtext.Line(b.Name())}
		p.tasks[e.Vertex] = t
		p.display.start(t)
	default:
		if t := p.tasks[e.Vertex]; t != nil {
			p.task(t, e)
		}
	}
}

// task shows an event of a task that runs.
func (p *Printer) task(t *task, e events.Event) {
	switch b := e.Body.(type) {
	case events.Log:
		p.display.log(t, e.Time, b.Stream, b.Data)
	case events.Transfer:
		tr := t.update(b, e.Time)
		p.display.transfer(t, e.Time, tr)
		if b.Done {
			t.transfers = slices.DeleteFunc(t.transfers, func(o *transfer) bool { return o == tr })
		}
	case events.Note:
		p.notes(t, e.Time, []string{b.Text})
	case events.Cached:
		t.cached = true
	case events.Missed:
		if p.explain {
			p.notes(t, e.Time, Reasons(b))
		}
	case events.Files:
		p.notes(t, e.Time, FileReasons(b))
	case events.Again:
		p.notes(t, e.Time, Differences(b))
	case events.Waiting:
		t.waiting = e.Time
		p.display.wait(t)
	case events.Resumed:
		t.resume(e.Time)
	case events.Finished:
		t.resume(e.Time)
		delete(p.tasks, e.Vertex)
		p.display.finish(t, e.Time, b)
	}
}

func (p *Printer) notes(t *task, at time.Time, lines []string) {
	for _, l := range lines {
		p.display.note(t, at, termtext.Line(l))
	}
}

// update returns the task's transfer after the event b.
func (t *task) update(b events.Transfer, at time.Time) *transfer {
	for _, tr := range t.transfers {
		if tr.Name == b.Name && tr.Phase == b.Phase {
			tr.Transfer = b
			return tr
		}
	}
	tr := &transfer{Transfer: b, name: termtext.Line(b.Name), started: at}
	t.transfers = append(t.transfers, tr)
	return tr
}

// nothing shows nothing.
type nothing struct{}

func (nothing) start(*task)                              {}
func (nothing) log(*task, time.Time, int, []byte)        {}
func (nothing) transfer(*task, time.Time, *transfer)     {}
func (nothing) note(*task, time.Time, string)            {}
func (nothing) wait(*task)                               {}
func (nothing) planned(int)                              {}
func (nothing) built(time.Time, events.Done)             {}
func (nothing) finish(*task, time.Time, events.Finished) {}
func (nothing) warn(time.Time, events.Warning)           {}
func (nothing) tick()                                    {}
func (nothing) close()                                   {}
