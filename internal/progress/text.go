package progress

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

const (
	// maxLine is the most of an unfinished line that is kept; what is longer is shown in pieces.
	maxLine = 16 << 10
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

// lines returns the last n lines, cleaned, without colours.
func (t *tail) lines(n int) []string {
	buf := t.buf
	if len(buf) > maxTail {
		buf = buf[len(buf)-maxTail:]
	}
	var all []string
	var s splitter
	s.feed(buf, func(line []byte) { all = append(all, string(clean(nil, line, false))) })
	s.flush(func(line []byte) { all = append(all, string(clean(nil, line, false))) })
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

// CleanLine returns text as one line that is fit for a terminal and a log: without control characters and escape
// sequences, line ends as spaces, and the user and password of URLs replaced by xxxxx.
func CleanLine(text string) string {
	b := bytes.TrimRight([]byte(text), "\r\n")
	b = bytes.ReplaceAll(b, []byte("\r\n"), []byte(" "))
	b = bytes.ReplaceAll(b, []byte("\n"), []byte(" "))
	return redact(string(clean(nil, b, false)))
}

// redact replaces "user:password@" and "token@" in URLs. The user of ssh://, who is no secret, stays.
func redact(text string) string {
	const mark = "://"
	var out strings.Builder
	for {
		i := strings.Index(text, mark)
		if i < 0 {
			break
		}
		out.WriteString(text[:i+len(mark)])
		scheme := text[:i]
		text = text[i+len(mark):]
		authority := text
		if end := strings.IndexAny(text, "/?# \t\"'<>"); end >= 0 {
			authority = text[:end]
		}
		if at := strings.LastIndexByte(authority, '@'); at >= 0 && (!strings.HasSuffix(scheme, "ssh") || strings.Contains(authority[:at], ":")) {
			out.WriteString("xxxxx")
			text = text[at:]
		}
	}
	out.WriteString(text)
	return out.String()
}

const escape = 0x1b

// clean appends line to dst in a form that moves no terminal: escape sequences are left out, except that colours stay if
// colour says so, with a reset at the end; other control characters but the tab become ^X, and what is not UTF-8 becomes
// U+FFFD.
func clean(dst, line []byte, colour bool) []byte {
	coloured := false
	for len(line) > 0 {
		n := 0
		for n < len(line) && plainByte[line[n]] {
			n++
		}
		dst = append(dst, line[:n]...)
		line = line[n:]
		if len(line) == 0 {
			break
		}
		switch c := line[0]; {
		case c == escape:
			n := sequence(line)
			switch {
			case n == 0:
				dst = append(dst, "^["...)
				n = 1
			case colour && isColour(line[:n]):
				dst = append(dst, line[:n]...)
				coloured = true
			}
			line = line[n:]
		case c < 0x20:
			dst = append(dst, '^', c+'@')
			line = line[1:]
		case c == 0x7f:
			dst = append(dst, "^?"...)
			line = line[1:]
		default:
			r, n := utf8.DecodeRune(line)
			// U+0080 to U+009F are control characters too: U+009B begins an escape sequence.
			if r == utf8.RuneError && n == 1 || r < 0xa0 {
				r = utf8.RuneError
			}
			dst = utf8.AppendRune(dst, r)
			line = line[n:]
		}
	}
	if coloured {
		dst = append(dst, "\x1b[0m"...)
	}
	return dst
}

// plainByte are the bytes that are passed on as they are.
var plainByte = func() (table [256]bool) {
	for c := 0x20; c < 0x7f; c++ {
		table[c] = true
	}
	table['\t'] = true
	return table
}()

// sequence returns the length of the escape sequence that b begins with, 0 where it has no end. The forms are those of
// ECMA-48: ESC [ … final (CSI), ESC ] … terminator (OSC) and its like, ESC intermediate… final.
func sequence(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	i := 1
	switch b[i] {
	case '[':
		for i++; i < len(b) && b[i] >= 0x20 && b[i] <= 0x3f; i++ {
		}
		if i < len(b) && b[i] >= 0x40 && b[i] <= 0x7e {
			return i + 1
		}
		return 0
	case ']', 'P', 'X', '^', '_':
		for i++; i < len(b); i++ {
			if b[i] == '\a' {
				return i + 1
			}
			if b[i] == escape {
				if i+1 < len(b) && b[i+1] == '\\' {
					return i + 2
				}
				return 0
			}
		}
		return 0
	}
	for i < len(b) && b[i] >= 0x20 && b[i] <= 0x2f {
		i++
	}
	if i < len(b) && b[i] >= 0x30 && b[i] <= 0x7e {
		return i + 1
	}
	return 0
}

// isColour reports whether a CSI sequence is a plain SGR, which changes how text looks and nothing else.
func isColour(seq []byte) bool {
	if len(seq) < 3 || seq[1] != '[' || seq[len(seq)-1] != 'm' {
		return false
	}
	for _, c := range seq[2 : len(seq)-1] {
		if (c < '0' || c > '9') && c != ';' && c != ':' {
			return false
		}
	}
	return true
}

// truncate returns s cut to at most width columns. A tab becomes a space. Characters that may be wide count as two, which is
// too many for some scripts and never too few.
func truncate(s string, width int) string {
	out := make([]byte, 0, len(s))
	columns := 0
	for _, r := range s {
		w := 1
		switch {
		case r == '\t':
			r = ' '
		case r >= 0x1100:
			w = 2
		}
		if columns+w > width {
			break
		}
		columns += w
		out = utf8.AppendRune(out, r)
	}
	return string(out)
}

// columns returns how many columns s takes, as truncate counts them.
func columns(s string) int {
	n := 0
	for _, r := range s {
		n++
		if r >= 0x1100 {
			n++
		}
	}
	return n
}
