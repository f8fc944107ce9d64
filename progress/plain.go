package progress

import (
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/docker/go-units"
	"github.com/kilnbuild/kiln/events"
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
	blocks  map[*task]*block
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
	return &plain{w: w, colour: colour, now: now, blocks: map[*task]*block{}}
}

func (d *plain) start(t *task) {
	if t.what.Idle() {
		return
	}
	d.numbers++
	b := &block{number: d.numbers, name: t.name}
	d.blocks[t] = b
	b.line(b.name)
	d.show(b)
}

// line adds "#N text".
func (b *block) line(text string) { b.text = fmt.Appendf(b.text, "#%d %s\n", b.number, text) }

func (d *plain) log(t *task, at time.Time, stream int, p []byte) {
	if b := d.blocks[t]; b != nil {
		b.streams[stream&1].feed(p, d.logLine(t, at, b))
		d.show(b)
	}
}

func (d *plain) logLine(t *task, at time.Time, b *block) func([]byte) {
	prefix := fmt.Appendf(nil, "#%d %.3f ", b.number, at.Sub(t.started).Seconds())
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
func (d *plain) flush(t *task, at time.Time, b *block) {
	for i := range b.streams {
		b.streams[i].flush(d.logLine(t, at, b))
	}
}

func (d *plain) transfer(t *task, at time.Time, tr *transfer) {
	b := d.blocks[t]
	if b == nil || !tr.Done && (at.Sub(tr.started) < statusInterval || at.Sub(tr.shown) < statusInterval) {
		return
	}
	tr.shown = at
	text := tr.name + " " + amount(tr)
	if tr.Done {
		text += fmt.Sprintf(" %.1fs done", at.Sub(tr.started).Seconds())
	}
	b.line(text)
	d.show(b)
}

// amount returns "1.2MB / 3.4MB", or "1.2MB" where the total is not known.
func amount(tr *transfer) string {
	current := units.HumanSizeWithPrecision(float64(tr.Current), 3)
	if tr.Total <= 0 {
		return current
	}
	return current + " / " + units.HumanSizeWithPrecision(float64(tr.Total), 3)
}

func (d *plain) note(t *task, _ time.Time, text string) {
	if b := d.blocks[t]; b != nil {
		b.line(text)
		d.show(b)
	}
}

func (d *plain) finish(t *task, at time.Time, f events.Finished) {
	b := d.blocks[t]
	if b == nil {
		return
	}
	delete(d.blocks, t)
	d.flush(t, at, b)
	switch {
	case f.Canceled:
		b.line("CANCELED")
	case f.Error != "":
		b.line("ERROR: " + termtext.Line(f.Error))
	case t.cached:
		b.line("CACHED")
	default:
		b.line(fmt.Sprintf("DONE %.1fs", at.Sub(t.started).Seconds()))
	}
	b.text = append(b.text, '\n')
	b.done = true
	d.show(b)
}

// warn shows a warning. The findings of checks are for whoever shows them with the lines of the Dockerfile.
func (d *plain) warn(_ time.Time, w events.Warning) {
	if w.Rule == "" {
		_, _ = fmt.Fprintf(d.w, "WARN: %s\n", termtext.Line(w.Text))
	}
}

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
		d.flush(t, d.now(), b)
		d.show(b)
	}
	for len(d.waiting) > 0 {
		d.give(d.waiting[0])
	}
}
