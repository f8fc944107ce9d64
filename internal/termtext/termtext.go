// Package termtext makes untrusted text safe to print on a terminal: names of steps and files, messages of servers, labels of images,
// output of programs. Such text must not move the cursor, produce input as if the user had typed, or display its characters in another
// order than they have.
//
// The dangerous characters are the same for all forms: control characters of C0 and C1 (ECMA-48), the bidirectional controls of
// Unicode (UAX #9), and U+2028 and U+2029, which end a line. [Line] and [Append] make them visible, [JSON] escapes them.
package termtext

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/docker/go-units"
)

const escape = 0x1b

// MaxLine is how many bytes of a text [Line] shows.
const MaxLine = 16 << 10

// maxListed is how many items [List] names, and maxItem how many bytes of each.
const (
	maxListed = 20
	maxItem   = 100
)

// Line returns text as one line that is safe on a terminal and in a log: as [Append] makes it, with line ends as spaces, the user and
// password of URLs replaced by xxxxx, and no more than the first MaxLine bytes of it.
func Line(text string) string {
	text = Clip(text, MaxLine)
	b := bytes.TrimRight([]byte(text), "\r\n")
	b = bytes.ReplaceAll(b, []byte("\r\n"), []byte(" "))
	b = bytes.ReplaceAll(b, []byte("\n"), []byte(" "))
	return Redact(string(Append(nil, b, false)))
}

// Clip returns the first n bytes of a longer text, without an unfinished character, and "…".
func Clip(text string, n int) string {
	if len(text) <= n {
		return text
	}
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n] + "…"
}

// List returns untrusted items as a part of a message: the first 20 of them, 100 bytes of each, and how many more there are.
func List(items []string) string {
	var b strings.Builder
	for i, item := range items[:min(len(items), maxListed)] {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(Clip(item, maxItem))
	}
	if more := len(items) - maxListed; more > 0 {
		fmt.Fprintf(&b, " and %d more", more)
	}
	return b.String()
}

// Size returns a number of bytes in the largest unit that says it in few digits: "500 KiB", "1.5 GiB".
func Size(n int64) string {
	return units.CustomSize("%.4g %s", float64(n), 1024, []string{"bytes", "KiB", "MiB", "GiB", "TiB"})
}

// Redact returns text with xxxxx in place of "user:password" and "token" of URLs. The user of ssh:// is not a secret and stays.
func Redact(text string) string {
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

// Append appends line to dst in a form that has no effect on a terminal. Escape sequences are removed, except that sequences that only
// set colours stay if colour is true, with a reset at the end. A control character other than the tab becomes ^X, a bidirectional
// control \uXXXX, and invalid UTF-8 or a C1 control U+FFFD. The result has no line feed.
func Append(dst, line []byte, colour bool) []byte {
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
			line = line[n:]
			switch {
			case r == utf8.RuneError && n == 1 || r < 0xa0:
				dst = utf8.AppendRune(dst, utf8.RuneError)
			case reorders(r):
				dst = appendEscaped(dst, r)
			default:
				dst = utf8.AppendRune(dst, r)
			}
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

// reorders reports whether a character that is not one of C0 or C1 changes where others are shown.
func reorders(r rune) bool {
	switch {
	case r == 0x061c, // ARABIC LETTER MARK
		r == 0x200e, r == 0x200f, // marks
		r >= 0x202a && r <= 0x202e, // embeddings and overrides
		r >= 0x2066 && r <= 0x2069, // isolates
		r == 0x2028, r == 0x2029:   // line and paragraph separators
		return true
	}
	return false
}

// appendEscaped appends \uXXXX, as in JSON. All characters that Append and JSON escape have four digits.
func appendEscaped(dst []byte, r rune) []byte { return fmt.Appendf(dst, `\u%04x`, r) }

// JSON returns encoded JSON with all control characters escaped: C1, DEL and the bidirectional controls, which encoding/json does not
// escape, and invalid UTF-8 as U+FFFD. It decodes to what data decodes to. Data that needs no change is returned as is.
func JSON(data []byte) []byte {
	var out []byte
	kept := 0 // how much of data is in out
	for i := 0; i < len(data); {
		r, n := rune(data[i]), 1
		if r >= utf8.RuneSelf {
			r, n = utf8.DecodeRune(data[i:])
		}
		// JSON has none of these characters outside of strings, so the position does not matter.
		if r >= 0x7f && r < 0xa0 || reorders(r) || r == utf8.RuneError && n == 1 {
			out = appendEscaped(append(out, data[kept:i]...), r)
			kept = i + n
		}
		i += n
	}
	if kept == 0 {
		return data
	}
	return append(out, data[kept:]...)
}

// sequence returns the length of the escape sequence that b begins with, 0 if it is incomplete. The forms are those of
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
