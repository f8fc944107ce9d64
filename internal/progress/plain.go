package progress

import (
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/docker/go-units"
	"github.com/kilnbuild/kiln/internal/termtext"
)

const (
	// patience is how long a task's output is held back for the task that is being shown to go on or end, so that the
	// output of tasks that run at the same time comes in blocks.
	patience = 2 * time.Second
	// maxPending is how much output of one task is held back.
	maxPending = 64 << 10
	// statusInterval is the least time between two lines about one transfer.
	statusInterval = 5 * time.Second
)

// plain shows one line per event, "#N …", N being the task's number. One task at a time has the word.
type plain struct {
	w      io.Writer
	colour bool
	now    func() time.Time

	numbers int
	blocks  map[*Task]*block
	current *block
	waiting []*block // not current, with text, first come first
}

// block is what plain holds of a task.
type block struct {
	number      int
	name        string
	text        []byte    // not yet written
	since       time.Time // when the oldest of text came, of a waiting block
	interrupted bool      // its name has to be repeated
	done        bool
	streams     [2]splitter
}

func newPlain(w io.Writer, colour bool, now func() time.Time) *plain {
	return &plain{w: w, colour: colour, now: now, blocks: map[*Task]*block{}}
}

func (d *plain) start(t *Task) {
	d.numbers++
	b := &block{number: d.numbers, name: t.name}
	d.blocks[t] = b
	b.line(b.name)
	d.show(b)
}

// line adds "#N text".
func (b *block) line(text string) { b.text = fmt.Appendf(b.text, "#%d %s\n", b.number, text) }

func (d *plain) log(t *Task, stream int, p []byte) {
	b := d.blocks[t]
	b.streams[stream&1].feed(p, d.logLine(t, b))
	d.show(b)
}

func (d *plain) logLine(t *Task, b *block) func([]byte) {
	prefix := fmt.Appendf(nil, "#%d %.3f ", b.number, d.now().Sub(t.started).Seconds())
	return func(line []byte) {
		if len(b.text) >= maxPending {
			d.show(b)
		}
		b.text = append(b.text, prefix...)
		b.text = termtext.Append(b.text, line, d.colour)
		b.text = append(b.text, '\n')
	}
}

// flush takes lines that have no end as they are.
func (d *plain) flush(t *Task, b *block) {
	for i := range b.streams {
		b.streams[i].flush(d.logLine(t, b))
	}
}

func (d *plain) status(t *Task, s *status) {
	now := d.now()
	if s.completed.IsZero() && (now.Sub(s.started) < statusInterval || now.Sub(s.shown) < statusInterval) {
		return
	}
	s.shown = now
	b := d.blocks[t]
	text := termtext.Line(s.id) + " " + progressOf(s)
	if !s.completed.IsZero() {
		text += fmt.Sprintf(" %.1fs done", s.completed.Sub(s.started).Seconds())
	}
	b.line(text)
	d.show(b)
}

// progressOf returns "1.2MB / 3.4MB", or "1.2MB" where the total is not known.
func progressOf(s *status) string {
	current := units.HumanSizeWithPrecision(float64(s.current), 3)
	if s.total <= 0 {
		return current
	}
	return current + " / " + units.HumanSizeWithPrecision(float64(s.total), 3)
}

func (d *plain) note(t *Task, text string) {
	b := d.blocks[t]
	b.line(text)
	d.show(b)
}

func (d *plain) finish(t *Task) {
	b := d.blocks[t]
	delete(d.blocks, t)
	d.flush(t, b)
	switch t.outcome {
	case cached:
		b.line("CACHED")
	case canceled:
		b.line("CANCELED")
	case failed:
		b.line("ERROR: " + termtext.Line(t.err.Error()))
	default:
		b.line(fmt.Sprintf("DONE %.1fs", t.ended.Sub(t.started).Seconds()))
	}
	b.text = append(b.text, '\n')
	b.done = true
	d.show(b)
}

func (d *plain) warn(text string) { _, _ = fmt.Fprintf(d.w, "WARN: %s\n", text) }

// show writes b's text if b has the word, or can get it.
func (d *plain) show(b *block) {
	switch {
	case len(b.text) == 0:
	case d.current == nil || d.current == b || len(b.text) >= maxPending:
		d.give(b)
	case b.since.IsZero():
		b.since = d.now()
		d.waiting = append(d.waiting, b)
	}
}

// give gives b the word, writes what it has to say, and where that is all, lets the next one speak.
func (d *plain) give(b *block) {
	for b != nil {
		if d.current != nil && d.current != b {
			d.current.interrupted = true
			_, _ = fmt.Fprintf(d.w, "#%d ...\n\n", d.current.number)
		}
		d.current = b
		if !b.since.IsZero() {
			b.since = time.Time{}
			d.waiting = slices.DeleteFunc(d.waiting, func(o *block) bool { return o == b })
		}
		if b.interrupted {
			b.interrupted = false
			_, _ = fmt.Fprintf(d.w, "#%d %s\n", b.number, b.name)
		}
		// The view of output is best effort: who needs to know that w is broken wraps it.
		_, _ = d.w.Write(b.text)
		b.text = b.text[:0]
		if !b.done {
			return
		}
		d.current, b = nil, nil
		if len(d.waiting) > 0 {
			b = d.waiting[0]
		}
	}
}

func (d *plain) tick() {
	if len(d.waiting) > 0 && d.now().Sub(d.waiting[0].since) >= patience {
		d.give(d.waiting[0])
	}
}

func (d *plain) close() {
	for t, b := range d.blocks {
		d.flush(t, b)
		d.show(b)
	}
	for len(d.waiting) > 0 {
		d.give(d.waiting[0])
	}
}
