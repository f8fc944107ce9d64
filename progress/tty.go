package progress

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/llb"
)

// maxParts is how many transfers of a running task are shown.
const maxParts = 10

// tty shows tasks that ended as lines that stay, and below them those that run, redrawn in place; at the end there is a summary. What is
// drawn is one write: the cursor is never left anywhere but at the end of the view, and no mode of the terminal outlives a write.
type tty struct {
	nothing
	w     io.Writer
	size  func() (width, height int)
	now   func() time.Time
	style style

	began   time.Time
	running []*shown
	cached  []*task // that ended after the last of the lasting lines
	lasting []string
	drawn   []int // columns of each line of the view on the screen

	counts  counts
	summary summary
	result  *events.Done
}

// counts are of tasks that are shown.
type counts struct {
	planned int // vertices of graphs
	others  int // tasks that are no vertices
	ended   map[llb.Digest]bool
}

func (c *counts) String() string {
	ended := len(c.ended)
	return fmt.Sprintf("%d/%d", ended, max(ended, c.planned+c.others))
}

// shown is what tty holds of a task that runs.
type shown struct {
	*task
	tail  tail
	log   []string // the end of the log, unless it is stale
	stale bool
	notes []string
	parts []*part
}

// part is a transfer with all its phases.
type part struct {
	events.Transfer
	name  string    // fit for a terminal
	since time.Time // when the phase began
	began int64     // what was done then
}

func newTTY(w io.Writer, size func() (width, height int), now func() time.Time, s style) *tty {
	return &tty{w: w, size: size, now: now, style: s, began: now(), counts: counts{ended: map[llb.Digest]bool{}}}
}

func (d *tty) planned(steps int) { d.counts.planned += steps }

func (d *tty) start(t *task) {
	if t.what.Idle() {
		return
	}
	if d.counts.ended[t.id] {
		delete(d.counts.ended, t.id)
	} else if t.what.Op == "" {
		d.counts.others++
	}
	d.running = append(d.running, &shown{task: t})
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
		s.stale = true
	}
}

func (d *tty) transfer(t *task, at time.Time, tr *transfer) {
	s := d.of(t)
	if s == nil {
		return
	}
	i := slices.IndexFunc(s.parts, func(p *part) bool { return p.Name == tr.Name })
	if i < 0 {
		i = len(s.parts)
		s.parts = append(s.parts, &part{name: shortDigest(tr.name)})
	}
	p := s.parts[i]
	if p.since.IsZero() || p.Phase != tr.Phase {
		p.since, p.began = at, tr.Current
	}
	p.Transfer = tr.Transfer
}

func (d *tty) note(t *task, _ time.Time, text string) {
	if s := d.of(t); s != nil && len(s.notes) < maxNotes {
		s.notes = append(s.notes, text)
	}
}

// warn shows a warning. The findings of checks are for whoever shows them with the lines of the Dockerfile.
func (d *tty) warn(_ time.Time, w events.Warning) {
	if w.Rule == "" {
		width, _ := d.size()
		d.last(d.style.paint(d.style.warning, truncate("WARN: "+termtext.Line(w.Text), width)))
	}
}

func (d *tty) built(_ time.Time, b events.Done) { d.result = &b }

func (d *tty) tick() {
	if len(d.running) > 0 || len(d.lasting) > 0 || len(d.drawn) > 0 {
		d.draw(true)
	}
}

// close leaves the lasting lines, and after a build its summary.
func (d *tty) close() {
	d.fold()
	d.draw(false)
	if d.result != nil && len(d.counts.ended) > 0 {
		width, _ := d.size()
		_, _ = io.WriteString(d.w, d.summary.text(d, width))
	}
}

func (d *tty) finish(t *task, at time.Time, f events.Finished) {
	s := d.of(t)
	if s == nil {
		return
	}
	d.running = slices.DeleteFunc(d.running, func(o *shown) bool { return o == s })
	d.counts.ended[t.id] = true
	d.summary.add(t, at, f)
	if t.cached && f.Error == "" && len(s.notes) == 0 {
		d.cached = append(d.cached, t)
		return
	}
	width, _ := d.size()
	mark, colour := "", d.style.done
	switch {
	case f.Canceled:
		mark, colour = "CANCELED ", d.style.canceled
	case f.Error != "":
		mark, colour = "ERROR ", d.style.failed
	case t.cached:
		mark = "CACHED "
	}
	d.last(d.style.paint(colour, taskLine(mark+t.name, seconds(t.took(at)), width)))
	for _, n := range s.notes {
		d.last(truncate(" => => "+n, width))
	}
}

// last adds a line that stays.
func (d *tty) last(line string) {
	d.fold()
	d.lasting = append(d.lasting, line)
	// The lines of tasks that end within one tick are written together, but not any number of them.
	if len(d.lasting) >= 1000 {
		d.draw(true)
	}
}

// fold makes one line that stays of the cached steps that ended one after the other.
func (d *tty) fold() {
	if line := d.cachedLine(); line != "" {
		d.cached = nil
		d.lasting = append(d.lasting, line)
	}
}

// cachedLine returns the line of the cached steps, "" for none.
func (d *tty) cachedLine() string {
	if len(d.cached) == 0 {
		return ""
	}
	width, _ := d.size()
	text := "CACHED " + d.cached[0].name
	if n := len(d.cached); n > 1 {
		text = fmt.Sprintf("CACHED %d steps: %s … %s", n, place(d.cached[0]), place(d.cached[n-1]))
	}
	return d.style.paint(d.style.done, truncate(" => "+text, width))
}

// place returns the place of a task without its text.
func place(t *task) string {
	return cmp.Or(strings.TrimSpace(termtext.Line(t.what.Place.String())), t.name)
}

// draw writes the lasting lines and, if live, the view, over the view that is there.
func (d *tty) draw(live bool) {
	width, height := d.size()
	var b bytes.Buffer
	if rows := rowsOf(d.drawn, width); rows > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\r", rows)
	}
	erase := b.Len() > 0
	put := func(line string) {
		if erase {
			b.WriteString("\x1b[K") // after a line that fills the width it would erase the last column
		}
		b.WriteString(line)
		b.WriteByte('\n')
	}
	for _, l := range d.lasting {
		put(l)
	}
	d.lasting, d.drawn = nil, nil
	if live {
		for _, l := range d.view(width, height) {
			put(d.style.paint(l.colour, l.text))
			d.drawn = append(d.drawn, columns(l.text))
		}
	}
	if erase {
		b.WriteString("\x1b[J")
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

// line is a line of the view, and the SGR parameters of its colour.
type line struct{ text, colour string }

// view returns the lines for what is running, fewer than height, and none wider than width.
func (d *tty) view(width, height int) []line {
	if len(d.running) == 0 {
		return nil
	}
	now := d.now()
	lines := []line{{text: truncate(fmt.Sprintf("[+] Building %.1fs (%s)", now.Sub(d.began).Seconds(), d.counts.String()), width)}}
	room := max(1, height-3)
	if len(d.cached) > 0 && room > 2 {
		text := fmt.Sprintf(" => CACHED %d steps", len(d.cached))
		if len(d.cached) == 1 {
			text = " => CACHED " + d.cached[0].name
		}
		lines = append(lines, line{truncate(text, width), d.style.done})
		room--
	}
	running := d.running
	if len(running) > room {
		running = running[:room]
	}
	// Every task has its line before any has details; tasks that began first have theirs first.
	details := room - len(running)
	for _, t := range running {
		lines = append(lines, line{text: taskLine(t.name, t.time(now), width)})
		more := d.details(t, now, width, details)
		details -= len(more)
		lines = append(lines, more...)
	}
	if more := len(d.running) - len(running); more > 0 {
		lines = append(lines, line{text: truncate(fmt.Sprintf(" => and %d more", more), width)})
	}
	return lines
}

// time returns what stands at the end of the line of a task.
func (t *shown) time(now time.Time) string {
	if !t.waiting.IsZero() {
		return "waiting"
	}
	return seconds(t.took(now))
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1fs", d.Seconds()) }

// taskLine returns " => text    1.2s" with the end at the right edge.
func taskLine(text, end string, width int) string {
	end = " " + end
	text = truncate(" => "+text, width-len(end))
	return truncate(text+strings.Repeat(" ", max(0, width-columns(text)-len(end)))+end, width)
}

// details returns at most n lines: notes, transfers, and the end of the log.
func (d *tty) details(t *shown, now time.Time, width, n int) []line {
	var lines []line
	for _, text := range t.notes {
		lines = append(lines, line{text: truncate(" => => "+text, width)})
	}
	parts, hidden := t.visible(min(maxParts, n-len(lines)))
	for _, p := range parts {
		lines = append(lines, line{text: p.line(now, width)})
	}
	if hidden > 0 {
		lines = append(lines, line{text: truncate(fmt.Sprintf(" => => and %d more", hidden), width)})
	}
	lines = lines[:max(0, min(n, len(lines)))]
	if want := min(d.style.logLines, n-len(lines)); want > 0 {
		if t.stale {
			t.log, t.stale = t.tail.screen(d.style.logLines), false
		}
		for _, l := range t.log[max(0, len(t.log)-want):] {
			lines = append(lines, line{truncate(" => => # "+l, width), d.style.output})
		}
	}
	return lines
}

// visible returns the parts that are shown in n lines, in their order, and how many are not: those that are being worked on come before
// those that wait, and these before those that are done.
func (t *shown) visible(n int) (parts []*part, hidden int) {
	if len(t.parts) <= n {
		return t.parts, 0
	}
	n = max(0, n-1) // one line says how many there are more
	rank := func(p *part) int {
		switch {
		case p.ended():
			return 2
		case p.Phase == events.Queued:
			return 1
		}
		return 0
	}
	for r := range 3 {
		for _, p := range t.parts {
			if rank(p) == r && len(parts) < n {
				parts = append(parts, p)
			}
		}
	}
	slices.SortFunc(parts, func(a, b *part) int { return cmp.Compare(slices.Index(t.parts, a), slices.Index(t.parts, b)) })
	return parts, len(t.parts) - len(parts)
}

// ended reports whether nothing more happens to the part, as far as is known.
func (p *part) ended() bool { return p.Done }

// line returns the line of a part: its name, what happens, how much is done, how fast, and how long it will take.
func (p *part) line(now time.Time, width int) string {
	const indent = " => => "
	for _, state := range []string{p.state(now, true), p.state(now, false), p.short()} {
		if l := indent + p.name + " " + state; columns(l) <= width {
			return l
		}
	}
	// The state says more than the whole name.
	name, state := strings.TrimPrefix(p.name, "sha256:"), p.short()
	return truncate(indent+truncate(name, max(4, width-len(indent)-1-columns(state)))+" "+state, width)
}

// state returns what happens to the part; with the rate and the time that is left if all is set.
func (p *part) state(now time.Time, all bool) string {
	switch {
	case p.Phase == events.Queued, p.Phase == events.Exists:
		return string(p.Phase)
	case p.Done && p.Total > 0:
		return size(p.Total) + " done"
	case p.Done:
		return size(p.Current) + " done"
	case p.Phase == events.Extracting && all:
		return string(p.Phase) + " " + seconds(now.Sub(p.since))
	case p.Phase == events.Extracting:
		return string(p.Phase)
	}
	text := amountOf(p.Current, p.Total)
	if p.Phase != events.Moving {
		text = string(p.Phase) + " " + text
	}
	took := now.Sub(p.since).Seconds()
	if !all || took < 0.5 || p.Current <= p.began {
		return text
	}
	rate := float64(p.Current-p.began) / took
	text += "  " + size(int64(rate)) + "/s"
	if p.Total > p.Current {
		left := time.Duration(float64(p.Total-p.Current) / rate * float64(time.Second))
		text += fmt.Sprintf("  %s left", left.Round(time.Second))
	}
	return text
}

// short returns what happens to the part in a few columns.
func (p *part) short() string {
	switch {
	case p.Phase == events.Exists:
		return "there"
	case p.Done:
		return "done"
	case p.Phase == events.Queued:
		return "waiting"
	case p.Phase == events.Extracting:
		return "extract"
	case p.Total > 0:
		return fmt.Sprintf("%d%%", 100*p.Current/p.Total)
	}
	return size(p.Current)
}

// shortDigest returns the name of a transfer, of a digest or the ID of a layer only as much as tells it from others.
func shortDigest(name string) string {
	hex, ok := strings.CutPrefix(name, "sha256:")
	if !ok && len(name) != 64 || len(hex) <= 12 {
		return name
	}
	return name[:len(name)-len(hex)+12]
}
