package progress

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/llb"
)

const (
	// patience is how long a task's output is held back for the task that is being shown to go on or end, so that the
	// output of tasks that run at the same time comes in blocks.
	patience = 2 * time.Second
	// maxPending is how much output of one task is held back.
	maxPending = 64 << 10
	// A transfer has a line when it has gone on by statusPart, or after statusInterval, as in BuildKit's output.
	statusInterval = 5 * time.Second
	statusPart     = 0.05
)

// plain shows one line per event, "#N …", N being the task's number. One task at a time has the word.
type plain struct {
	nothing
	w      io.Writer
	colour bool
	now    func() time.Time

	numbers int
	ids     map[llb.Digest]int // the numbers of vertices
	blocks  map[*task]*block
	current *block
	waiting []*block // not current, with text, first come first
	failed  []failed
}

// failed is the number of a task that failed, and why.
type failed struct {
	number int
	text   string
}

// block is what plain holds of a task.
type block struct {
	task        *task
	number      int
	name        string
	text        []byte    // not yet written
	since       time.Time // when the oldest of text came, of a waiting block
	interrupted bool      // its name has to be repeated
	done        bool
	streams     [2]splitter
}

func newPlain(w io.Writer, colour bool, now func() time.Time) *plain {
	return &plain{w: w, colour: colour, now: now, ids: map[llb.Digest]int{}, blocks: map[*task]*block{}}
}

func (d *plain) start(t *task) {
	if t.what.Idle() {
		return
	}
	// A vertex on which work is done again has the number that it had.
	if d.ids[t.id] == 0 {
		d.numbers++
		d.ids[t.id] = d.numbers
	}
	b := &block{task: t, number: d.ids[t.id], name: t.name}
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
	if b == nil || tr.Phase == events.Queued {
		return
	}
	began := tr.shown.IsZero()
	part := tr.Total > 0 && float64(tr.Current-tr.shownAt) >= statusPart*float64(tr.Total)
	switch {
	case tr.Done, began && tr.Phase == events.Extracting, at.Sub(tr.shown) >= statusInterval, part:
	default:
		return
	}
	tr.shown, tr.shownAt = at, tr.Current
	if tr.Phase == events.Exists {
		b.line(tr.name + " " + string(tr.Phase))
		d.show(b)
		return
	}
	text := termtext.Line(tr.id())
	if tr.Phase != events.Extracting {
		text += " " + amountOf(tr.Current, tr.Total)
	}
	if took := at.Sub(tr.started).Seconds(); tr.Done {
		text += fmt.Sprintf(" %.1fs done", took)
	} else if !began {
		text += fmt.Sprintf(" %.1fs", took)
	}
	b.line(text)
	d.show(b)
}

// wait lets another task speak while t has nothing to say.
func (d *plain) wait(t *task) {
	if b := d.blocks[t]; b != nil && d.current == b && len(d.waiting) > 0 {
		d.give(d.waiting[0])
	}
}

// amountOf returns "1.20MB / 3.40MB", or "1.20MB" where the total is not known.
func amountOf(current, total int64) string {
	if total <= 0 {
		return size(current)
	}
	return size(current) + " / " + size(total)
}

// size returns a number of bytes as "950B" or "1.20MB".
func size(n int64) string {
	if n < 1000 {
		return strconv.FormatInt(n, 10) + "B"
	}
	return units.CustomSize("%.2f%s", float64(n), 1000, []string{"B", "kB", "MB", "GB", "TB", "PB", "EB"})
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
		b.line("ERROR")
		d.failed = append(d.failed, failed{b.number, f.Error})
	case t.cached:
		b.line("CACHED")
	default:
		b.line(fmt.Sprintf("DONE %.1fs", t.took(at).Seconds()))
	}
	b.text = append(b.text, '\n')
	b.done = true
	d.show(b)
}

// built says why tasks failed whose errors are not that of the build: that one is for whoever waits for the build, and is printed once.
func (d *plain) built(_ time.Time, b events.Done) {
	for _, f := range d.failed {
		if !strings.Contains(b.Error, f.text) {
			_, _ = fmt.Fprintf(d.w, "#%d ERROR: %s\n", f.number, termtext.Line(f.text))
		}
	}
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
	case d.current == nil || d.current == b || len(b.text) >= maxPending || !d.current.task.waiting.IsZero():
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
