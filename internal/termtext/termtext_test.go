package termtext

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestAppend(t *testing.T) {
	for _, tc := range []struct{ in, colour, bare string }{
		{"plain text", "plain text", "plain text"},
		{"\x1b[1;31mred\x1b[0m tab\t.", "\x1b[1;31mred\x1b[0m tab\t.\x1b[0m", "red tab\t."},
		{"\x1b[2J\x1b[Htop\x1b[?25l", "top", "top"},
		{"\x1b]0;title\atext\x1b]8;;http://x\x1b\\link", "textlink", "textlink"},
		{"\x1bc\x1b(0\x1b7x", "x", "x"},
		{"\x1bPq#0\x1b\\x\x1b_apc\x1b\\y", "xy", "xy"},
		{"\x1b]0;unfinished", "^[]0;unfinished", "^[]0;unfinished"},
		{"a\x1b[12", "a^[[12", "a^[[12"},
		{"a\x1b", "a^[", "a^["},
		{"a\bb\x00\x7f\n", "a^Hb^@^?^J", "a^Hb^@^?^J"},
		{"\u009b2J\x9b2J\xff", "\ufffd2J\ufffd2J\ufffd", "\ufffd2J\ufffd2J\ufffd"},
		{"\x1b[>1m\x1b[0 m", "", ""},
		{"zażółć 世界 \ufffd", "zażółć 世界 \ufffd", "zażółć 世界 \ufffd"},
		{"a\u202eb\u2066c\u2069\u200f\u061c\u2028", `a\u202eb\u2066c\u2069\u200f\u061c\u2028`, `a\u202eb\u2066c\u2069\u200f\u061c\u2028`},
	} {
		if got := string(Append(nil, []byte(tc.in), true)); got != tc.colour {
			t.Errorf("Append(%q, colour) = %q, want %q", tc.in, got, tc.colour)
		}
		if got := string(Append(nil, []byte(tc.in), false)); got != tc.bare {
			t.Errorf("Append(%q) = %q, want %q", tc.in, got, tc.bare)
		}
	}
}

func TestLine(t *testing.T) {
	for in, out := range map[string]string{
		"no url":                               "no url",
		"two\r\nlines\nand an end\n":           "two lines and an end",
		"https://host/a@b":                     "https://host/a@b",
		"https://u:p@host":                     "https://xxxxx@host",
		"a https://tok@h/x, http://u:p@q@h/ b": "a https://xxxxx@h/x, http://xxxxx@h/ b",
		"git+ssh://git@host/r ssh://git@h":     "git+ssh://git@host/r ssh://git@h",
		"ssh://git:pw@h":                       "ssh://xxxxx@h",
	} {
		if got := Line(in); got != out {
			t.Errorf("Line(%q) = %q, want %q", in, got, out)
		}
	}
}

func TestBounds(t *testing.T) {
	for _, tc := range []struct {
		text string
		n    int
		want string
	}{{"abc", 3, "abc"}, {"abcd", 3, "abc…"}, {"aż", 2, "a…"}, {"\x80\x80\x80", 1, "…"}} {
		if got := Clip(tc.text, tc.n); got != tc.want {
			t.Errorf("Clip(%q, %d) = %q, want %q", tc.text, tc.n, got, tc.want)
		}
	}
	if got := Line(strings.Repeat("x", 1<<20)); len(got) > MaxLine+len("…") {
		t.Errorf("a line has %d bytes", len(got))
	}
	var many []string
	for i := range 25 {
		many = append(many, fmt.Sprint(i))
	}
	if got, want := List(many), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19 and 5 more"; got != want {
		t.Errorf("List = %q, want %q", got, want)
	}
	if got, want := List([]string{"a", strings.Repeat("b", 200)}), "a, "+strings.Repeat("b", 100)+"…"; got != want {
		t.Errorf("List = %q, want %q", got, want)
	}
}

func TestJSON(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{`{"a": ["zażółć 世界", 1, null]}`, `{"a": ["zażółć 世界", 1, null]}`},
		{"\"\u009b2J\u007f\"", `"\u009b2J\u007f"`},
		{"\"a\u202eb\u2066\"", `"a\u202eb\u2066"`},
		{"\"\x9b\xff\ufffd\"", "\"\\ufffd\\ufffd\ufffd\""},
	} {
		if got := string(JSON([]byte(tc.in))); got != tc.want {
			t.Errorf("JSON(%q) = %q, want %q", tc.in, got, tc.want)
		}
	}
}

// unsafe returns the first character of text that a terminal would act on, -1 for none.
func unsafe(text string) rune {
	for i, r := range text {
		_, n := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == '\t':
		case r < 0x20, r >= 0x7f && r < 0xa0, reorders(r), r == utf8.RuneError && n == 1:
			return r
		}
	}
	return -1
}

func FuzzAppend(f *testing.F) {
	for _, s := range []string{"a", "\x1b[31m", "\x1b]0;x\a", "\x1b[12;", "\xc2\x9b", "\x1b\x1b[A", "\x1bP\x1b\x1b\\", "世", "\u202e"} {
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, line []byte, colour bool) {
		got := Append(nil, line, colour)
		var text []byte // without colours
		for i := 0; i < len(got); i++ {
			if n := sequence(got[i:]); colour && got[i] == escape && n > 0 && isColour(got[i:i+n]) {
				i += n - 1
				continue
			}
			text = append(text, got[i])
		}
		if r := unsafe(string(text)); r >= 0 {
			t.Errorf("%q became %q, which has %U", line, got, r)
		}
	})
}

func FuzzJSON(f *testing.F) {
	f.Add("a\x1b[31mb\x1b]0;c\ad\u009be\u202ef\xff")
	f.Fuzz(func(t *testing.T, text string) {
		if line := Line(text); unsafe(line) >= 0 {
			t.Errorf("%q became the line %q", text, line)
		}
		data, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		escaped := JSON(data)
		if unsafe(string(escaped)) >= 0 {
			t.Errorf("%q became %q", text, escaped)
		}
		var before, after string
		if err := json.Unmarshal(data, &before); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(escaped, &after); err != nil || after != before {
			t.Errorf("%q became %q, which decodes to %q, %v", text, escaped, after, err)
		}
	})
}

// TestWriter shows that a terminal gets lines without effect, whole and in pieces, and that anything else gets the bytes.
func TestWriter(t *testing.T) {
	const text = "a\x1b[2Jb\n\u202e\tc"
	var out bytes.Buffer
	w := lines{&out}
	if n, err := w.Write([]byte(text)); n != len(text) || err != nil {
		t.Fatalf("Write: %d, %v", n, err)
	}
	if got, want := out.String(), "ab\n\\u202e\tc"; got != want {
		t.Errorf("a terminal got %q, want %q", got, want)
	}
	out.Reset()
	for i := range len(text) {
		if _, err := w.Write([]byte{text[i]}); err != nil {
			t.Fatal(err)
		}
	}
	if i := strings.IndexByte(out.String(), escape); i >= 0 || strings.ContainsRune(out.String(), 0x202e) {
		t.Errorf("in pieces a terminal got %q", out.String())
	}
	out.Reset()
	if _, err := Writer(&out).Write([]byte(text)); err != nil || out.String() != text {
		t.Errorf("a file got %q, %v", out.String(), err)
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 bytes", 1: "1 bytes", 1000: "1000 bytes", 500 << 10: "500 KiB", 16 << 20: "16 MiB", 3 << 29: "1.5 GiB", 64 << 30: "64 GiB"} {
		if got := Size(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}
