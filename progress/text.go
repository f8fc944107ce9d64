package progress

import (
	"bytes"
	"strings"
	"unicode/utf8"

	"github.com/clipperhouse/displaywidth"
	"github.com/kilnbuild/kiln/internal/termtext"
)

const (
	// maxLine is the most of an unfinished line that is kept; what is longer is shown in pieces.
	maxLine = 16 << 10
	// screenWidth is the width of the terminal that a step's output is interpreted for. It is wider than most: what a step prints is cut
	// when it is shown, and does not become more lines.
	screenWidth = 256
	// maxTail is how many bytes of a log's end are kept for quoting.
	maxTail = 8 << 10
)

// tail keeps the end of a log, in the order in which it was written.
type tail struct {
	buf []byte
	cut bool // the beginning is lost
}

func (t *tail) write(p []byte) {
	if len(p) >= maxTail {
		t.cut = t.cut || len(t.buf) > 0 || len(p) > maxTail
		t.buf = append(t.buf[:0], p[len(p)-maxTail:]...)
		return
	}
	t.buf = append(t.buf, p...)
	// Moving the end to the front only at twice the size makes the move's cost small against that of the writes.
	if len(t.buf) > 2*maxTail {
		t.cut = true
		n := copy(t.buf, t.buf[len(t.buf)-maxTail:])
		t.buf = t.buf[:n]
	}
}

// screen returns the last n lines of what a terminal would show.
func (t *tail) screen(n int) []string {
	buf := t.buf[max(0, len(t.buf)-maxTail):]
	if t.cut || len(buf) < len(t.buf) {
		// The first line, or sequence, is not whole.
		if i := bytes.IndexAny(buf, "\r\n"); i >= 0 {
			buf = buf[i+1:]
		}
	}
	s := newScreen(screenWidth, 2*n)
	s.write(buf)
	return s.lines(n)
}

// lines returns the last n lines, cleaned, without colours.
func (t *tail) lines(n int) []string {
	buf := t.buf
	if len(buf) > maxTail {
		buf = buf[len(buf)-maxTail:]
	}
	var all []string
	var s splitter
	s.feed(buf, func(line []byte) { all = append(all, string(termtext.Append(nil, line, false))) })
	s.flush(func(line []byte) { all = append(all, string(termtext.Append(nil, line, false))) })
	if (t.cut || len(t.buf) > maxTail) && len(all) > n {
		all = all[1:]
	}
	if len(all) > n {
		all = all[len(all)-n:]
	}
	return all
}

// splitter cuts a stream into lines: at line feeds, at carriage returns, with which programs draw progress bars, and where
// a line is longer than maxLine.
type splitter struct {
	partial []byte
	ended   bool // the last line ended without a line feed, so that one that follows belongs to it
}

// feed calls emit with each line that p completes, without its end; the line is valid during the call.
func (s *splitter) feed(p []byte, emit func(line []byte)) {
	for len(p) > 0 {
		room := min(len(p), maxLine-len(s.partial))
		i := bytes.IndexAny(p[:room], "\r\n")
		if i < 0 {
			s.partial = append(s.partial, p[:room]...)
			p = p[room:]
			if len(s.partial) == maxLine {
				n := runeBoundary(s.partial)
				emit(s.partial[:n])
				s.partial = append(s.partial[:0], s.partial[n:]...)
				s.ended = true
			}
			continue
		}
		line, end := p[:i], p[i]
		p = p[i+1:]
		if len(s.partial) > 0 {
			s.partial = append(s.partial, line...)
			line = s.partial
		}
		switch {
		case len(line) > 0:
			emit(line)
			s.ended = end == '\r'
		case end == '\n':
			if !s.ended {
				emit(line)
			}
			s.ended = false
		}
		s.partial = s.partial[:0]
	}
}

// flush calls emit with the last line, if it has no end.
func (s *splitter) flush(emit func(line []byte)) {
	if len(s.partial) > 0 {
		emit(s.partial)
		s.partial = nil
	}
}

// runeBoundary returns the length of b without an unfinished character at its end.
func runeBoundary(b []byte) int {
	for n := len(b) - 1; n >= 0 && n >= len(b)-utf8.UTFMax; n-- {
		if utf8.RuneStart(b[n]) {
			if !utf8.FullRune(b[n:]) {
				return n
			}
			break
		}
	}
	return len(b)
}

// truncate returns s cut to at most width columns. A tab becomes a space.
func truncate(s string, width int) string {
	return displaywidth.TruncateString(strings.ReplaceAll(s, "\t", " "), max(0, width), "")
}

// columns returns how many columns s takes.
func columns(s string) int { return displaywidth.String(s) }
