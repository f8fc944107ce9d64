package progress

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestScreen(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		want     []string
	}{
		{"lines", "one\ntwo\n", []string{"one", "two"}},
		{"crlf", "one\r\ntwo\r\n", []string{"one", "two"}},
		{"progress", "10%\r50%\r100%", []string{"100%"}},
		{"shorter", "10 of 20\r\x1b[Kdone\n", []string{"done"}},
		{"overwritten", "abcdef\rxy", []string{"xycdef"}},
		{"bars", "a 1%\nb 1%\n\x1b[2Aa 9%\n\x1b[1Bc\n", []string{"a 9%", "b 1%", "c"}},
		{"bars of docker", "a: wait\nb: wait\n\x1b[2A\x1b[2K\ra: done\x1b[2B\r", []string{"a: done", "b: wait"}},
		{"backspaces", "abc\b\b\b   \b\b\bde", []string{"de"}},
		{"tabs", "a\tb", []string{"a       b"}},
		{"colours", "\x1b[1;31mred\x1b[0m \x1b]0;title\aend\x1b]8;;http://x\x1b\\", []string{"red end"}},
		{"no utf-8", "a\xffb\ncd", []string{"a\ufffdb", "cd"}},
		{"wide", "世界\b\bx", []string{"世x"}},
		{"combining", "e\u0301x", []string{"e\u0301x"}},
		{"controls", "a\x00\a\u009b2Jb\u202ec", []string{`a2Jb\u202ec`}},
		{"scrolled", "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n12\n13", []string{"8", "9", "10", "11", "12", "13"}},
		{"cleared", "old\n\x1b[2J\x1b[Hnew\n", []string{"new"}},
		{"erased before", "abcdef\x1b[3D\x1b[1Kx", []string{"   xef"}},
		{"erased below", "a\nb\nc\x1b[2A\x1b[J", []string{"a"}},
		{"far", "\x1b[99999999999999999999A\x1b[65535;65535Hx\x1b[65535Dy", []string{"y" + strings.Repeat(" ", 254) + "x"}},
		{"unfinished", "a\x1b[12", []string{"a"}},
		{"empty", "\n\n\n", nil},
	} {
		s := newScreen(screenWidth, 12)
		s.write([]byte(tc.in))
		if got := s.lines(6); !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
}

// What the end of a long log shows begins with a whole line.
func TestScreenOfTail(t *testing.T) {
	var tl tail
	for i := range 10_000 {
		tl.write(fmt.Appendf(nil, "\x1b[32mline\x1b[0m %d\n", i))
	}
	if got, want := tl.screen(2), []string{"line 9998", "line 9999"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzScreen(f *testing.F) {
	for _, s := range []string{"a\rb\n", "\x1b[2A\x1b[K", "世\b\x1b[1K", "\x1b[9;9Hx\x1b[J", "e\u0301\u0301", "\xff\t\t"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		s := newScreen(20, 4)
		s.write(p)
		for _, l := range s.lines(4) {
			if !utf8.ValidString(l) || strings.ContainsFunc(l, func(r rune) bool { return r < 0x20 || r >= 0x7f && r < 0xa0 }) {
				t.Errorf("%q shows %q", p, l)
			}
		}
		if s.row >= 4 || s.col > 20 {
			t.Errorf("%q leaves the cursor at %d, %d", p, s.row, s.col)
		}
	})
}
