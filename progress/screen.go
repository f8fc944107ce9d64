package progress

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/clipperhouse/displaywidth"
	"github.com/kilnbuild/kiln/internal/termtext"
)

// screen is what a terminal of some rows shows after a program has written to it, as text without colours: lines that were overwritten
// after a carriage return, or erased, or rewritten after the cursor moved up, are as they became. It knows the part of ECMA-48 that
// programs use to draw progress, and ignores the rest. A line feed also returns to column 0, as a terminal's line discipline has it.
//
// The libraries that emulate a terminal are no better for this: vt100 loses output after bytes that are not UTF-8, and keeps each unknown
// sequence for good; vt10x takes a quarter of a millisecond of each start; charmbracelet/x/vt needs fifteen modules.
type screen struct {
	rows     [][]string // one string a column: a character with what combines with it; "" is the second half of a wide one
	row, col int
	width    int
}

// newScreen returns an empty screen.
func newScreen(width, height int) *screen {
	return &screen{rows: make([][]string, height), width: width}
}

// write interprets output. Sequences that have no end in p are left out.
func (s *screen) write(p []byte) {
	for len(p) > 0 {
		n := 1
		switch c := p[0]; {
		case c == '\n':
			s.feed()
		case c == '\r':
			s.col = 0
		case c == '\b':
			s.col = max(0, s.col-1)
		case c == '\t':
			s.col = min(s.width-1, (s.col/8+1)*8)
		case c == 0x1b:
			if n = termtext.Sequence(p); n == 0 {
				return
			}
			s.escape(p[:n])
		case c < 0x20 || c == 0x7f:
		default:
			var r rune
			if r, n = utf8.DecodeRune(p); r < 0x7f || r >= 0xa0 {
				s.put(r)
			}
		}
		p = p[n:]
	}
}

// feed goes to the beginning of the next line, and scrolls at the last one.
func (s *screen) feed() {
	s.col = 0
	if s.row++; s.row == len(s.rows) {
		s.row--
		copy(s.rows, s.rows[1:])
		s.rows[s.row] = nil
	}
}

func (s *screen) put(r rune) {
	w := displaywidth.Rune(r)
	line := s.rows[s.row]
	if w == 0 {
		if s.col > 0 && s.col <= len(line) && len(line[s.col-1]) < utf8.UTFMax*4 {
			line[s.col-1] += string(r)
		}
		return
	}
	if s.col+w > s.width {
		s.feed()
		line = s.rows[s.row]
	}
	for len(line) < s.col+w {
		line = append(line, " ")
	}
	line[s.col] = string(r)
	if w == 2 {
		line[s.col+1] = ""
	}
	s.rows[s.row] = line
	s.col += w
}

// escape carries out a control sequence (ECMA-48, 8.3).
func (s *screen) escape(seq []byte) {
	if len(seq) < 3 || seq[1] != '[' {
		return
	}
	params := string(seq[2 : len(seq)-1])
	first, second, _ := strings.Cut(params, ";")
	n, m := number(first), number(second)
	switch seq[len(seq)-1] {
	case 'A':
		s.move(s.row-max(1, n), s.col)
	case 'B':
		s.move(s.row+max(1, n), s.col)
	case 'C':
		s.move(s.row, s.col+max(1, n))
	case 'D':
		s.move(s.row, s.col-max(1, n))
	case 'E':
		s.move(s.row+max(1, n), 0)
	case 'F':
		s.move(s.row-max(1, n), 0)
	case 'G':
		s.move(s.row, n-1)
	case 'H', 'f':
		s.move(n-1, m-1)
	case 'J':
		s.erase(n, 0, len(s.rows))
	case 'K':
		s.erase(n, s.row, s.row+1)
	}
}

// number reads a parameter, which is 0 if it is left out or no number, and never so large that sums of it overflow.
func number(s string) int {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0
	}
	return int(n)
}

func (s *screen) move(row, col int) {
	s.row = min(max(0, row), len(s.rows)-1)
	s.col = min(max(0, col), s.width-1)
}

// erase erases what the rows from begin to end have after the cursor (0), up to it (1), or all of it (2).
func (s *screen) erase(part, begin, end int) {
	for i := begin; i < end; i++ {
		line := s.rows[i]
		switch {
		case part == 2, part == 0 && i > s.row, part == 1 && i < s.row:
			s.rows[i] = nil
		case i != s.row:
		case part == 0:
			s.rows[i] = line[:min(s.col, len(line))]
		case part == 1:
			for j := range line[:min(s.col+1, len(line))] {
				line[j] = " "
			}
		}
	}
}

// lines returns the last n lines, without the empty ones at the end, fit for a terminal.
func (s *screen) lines(n int) []string {
	var out []string
	for _, row := range s.rows {
		line := strings.TrimRight(strings.Join(row, ""), " ")
		out = append(out, string(termtext.Append(nil, []byte(line), false)))
	}
	for len(out) > 0 && out[len(out)-1] == "" {
		out = out[:len(out)-1]
	}
	for len(out) > 0 && out[0] == "" {
		out = out[1:]
	}
	return out[max(0, len(out)-n):]
}
