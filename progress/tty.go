package progress

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/termtext"
)

// detailLines is how many lines of each kind a running task has below its own: log, transfers.
const detailLines = 6

// tty shows tasks that ended as lines that stay, and below them those that run, redrawn in place. What is drawn is one write:
// the cursor is never left anywhere but at the end of the view, and no mode of the terminal outlives a write.
type tty struct {
	w    io.Writer
	size func() (width, height int)
	now  func() time.Time

	began   time.Time
	running []*shown
	ended   int
	lasting []string // lines to be left above the view with the next redraw
	drawn   []int    // columns of each line of the view on the screen
}

// shown is what tty holds of a task.
type shown struct {
	*task
	tail  tail
	notes []string
}

func newTTY(w io.Writer, size func() (width, height int), now func() time.Time) *tty {
	return &tty{w: w, size: size, now: now, began: now()}
}

func (d *tty) start(t *task) {
	if !t.what.Idle() {
		d.running = append(d.running, &shown{task: t})
	}
}

// of returns what is held of a task; nil for one that is not shown.
func (d *tty) of(t *task) *shown {
	for _, s := range d.running {
		if s.task == t {
			return s
		}
	}
	return nil
}

func (d *tty) log(t *task, _ time.Time, _ int, p []byte) {
	if s := d.of(t); s != nil {
		s.tail.write(p)
	}
}

func (*tty) transfer(*task, time.Time, *transfer) {}

func (d *tty) note(t *task, _ time.Time, text string) {
	if s := d.of(t); s != nil && len(s.notes) < maxNotes {
		s.notes = append(s.notes, text)
	}
}

// warn shows a warning. The findings of checks are for whoever shows them with the lines of the Dockerfile.
func (d *tty) warn(_ time.Time, w events.Warning) {
	if w.Rule == "" {
		d.lasting = append(d.lasting, "WARN: "+termtext.Line(w.Text))
	}
}

func (d *tty) tick() {
	if len(d.running) > 0 || len(d.lasting) > 0 || len(d.drawn) > 0 {
		d.draw(true)
	}
}

func (d *tty) close() { d.draw(false) }

func (d *tty) finish(t *task, at time.Time, f events.Finished) {
	s := d.of(t)
	if s == nil {
		return
	}
	d.running = slices.DeleteFunc(d.running, func(o *shown) bool { return o == s })
	d.ended++
	mark := ""
	switch {
	case f.Canceled:
		mark = "CANCELED "
	case f.Error != "":
		mark = "ERROR "
	case t.cached:
		mark = "CACHED "
	}
	width, _ := d.size()
	d.lasting = append(d.lasting, taskLine(mark+t.name, at.Sub(t.started), width))
	for _, n := range s.notes {
		d.lasting = append(d.lasting, " => => "+n)
	}
	// The lines of tasks that end within one tick are written together, but not any number of them.
	if len(d.lasting) >= 1000 {
		d.draw(true)
	}
}

// draw writes the lasting lines and, if live, the view, over the view that is there.
func (d *tty) draw(live bool) {
	width, height := d.size()
	var b bytes.Buffer
	if rows := rowsOf(d.drawn, width); rows > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\r\x1b[J", rows)
	}
	for _, l := range d.lasting {
		b.WriteString(truncate(l, width))
		b.WriteByte('\n')
	}
	d.lasting, d.drawn = nil, nil
	if live {
		for _, l := range d.view(width, height) {
			l = truncate(l, width)
			b.WriteString(l)
			b.WriteByte('\n')
			d.drawn = append(d.drawn, columns(l))
		}
	}
	if b.Len() == 0 {
		return
	}
	// Without automatic margins a line that the terminal finds wider than we do is cut, and does not become two.
	_, _ = fmt.Fprintf(d.w, "\x1b[?7l%s\x1b[?7h", b.Bytes())
}

// rowsOf returns how many rows lines of these widths take on a terminal that became width columns wide and has wrapped them.
func rowsOf(lines []int, width int) int {
	rows := 0
	for _, n := range lines {
		rows += max(1, (n+width-1)/width)
	}
	return rows
}

// view returns the lines for what is running, fewer than height.
func (d *tty) view(width, height int) []string {
	if len(d.running) == 0 {
		return nil
	}
	now := d.now()
	lines := []string{fmt.Sprintf("[+] %.1fs, %d done, %d running", now.Sub(d.began).Seconds(), d.ended, len(d.running))}
	room := max(1, height-3)
	shown := d.running
	if len(shown) > room {
		shown = shown[:room]
	}
	// Every task has its line before any has details; tasks that began first have theirs first.
	details := room - len(shown)
	for _, t := range shown {
		lines = append(lines, taskLine(t.name, now.Sub(t.started), width))
		more := taskDetails(t, details)
		details -= len(more)
		lines = append(lines, more...)
	}
	if more := len(d.running) - len(shown); more > 0 {
		lines = append(lines, fmt.Sprintf(" => and %d more", more))
	}
	return lines
}

// taskLine returns " => text    1.2s" with the time at the right edge.
func taskLine(text string, took time.Duration, width int) string {
	elapsed := fmt.Sprintf(" %.1fs", took.Seconds())
	text = truncate(" => "+text, max(0, width-len(elapsed)))
	return text + strings.Repeat(" ", max(0, width-columns(text)-len(elapsed))) + elapsed
}

// taskDetails returns at most n lines: notes, transfers, and the end of the log.
func taskDetails(t *shown, n int) []string {
	var lines []string
	for _, text := range t.notes {
		lines = append(lines, " => => "+text)
	}
	transfers := 0
	for _, tr := range t.transfers {
		if transfers < detailLines {
			transfers++
			lines = append(lines, " => => "+tr.name+" "+amount(tr))
		}
	}
	lines = lines[:min(n, len(lines))]
	for _, l := range t.tail.lines(min(detailLines, n-len(lines))) {
		lines = append(lines, " => => # "+l)
	}
	return lines
}
