package ignore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/kilnbuild/kiln/internal/ctxtest"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

func TestIgnored(t *testing.T) {
	for _, tt := range []struct {
		patterns, ignored, kept string
	}{
		{"a", "a a/b a/b/c", "b b/a ab"},
		{"/a/", "a a/b", "b/a"},
		{"./a/../b", "b b/c", "a"},
		{"*", "a a/b .x", ""},
		{"*.o", "a.o", "x/a.o a.oo"},
		{"**/*.o", "a.o x/a.o x/y/a.o", "a.c"},
		{"a/**", "a/b a/b/c", "a b"},
		{"a?c", "abc", "ac a/c"},
		{"[a-c]x", "ax bx", "dx"},
		{`\*`, "*", "a"},
		{`\#a`, "#a", "a"},
		{"*\n!a", "b b/a", "a a/b"},
		{"d\n!d/keep\nd/keep/not", "d d/x d/keep/not", "d/keep d/keep/yes"},
		{"! a\n", "", "a"},
		{"!a\na", "a", "b"},
		{"# a\n\n   \n  b  \n", "b", "a #"},
		{" # a", "# a", "a"},
		{"\xef\xbb\xbfa\r\nb\r\n", "a b", "c"},
		{".", "", "a"},
		{"!!a\n*\n", "a !a", ""},
		{"*\n!!a\n", "a", "!a"},
		{"ä ö", "ä ö", "ä"},
		{"A", "A", "a"},
		{"*|", "a| |", "a"},
		{"?^{2}", "a^{2}", "a^^ aa"},
		{"[a|b]|c", "a|c ||c", "a c"},
	} {
		m, err := Parse(context.Background(), strings.NewReader(tt.patterns))
		if err != nil {
			t.Errorf("%q: %v", tt.patterns, err)
			continue
		}
		check := func(list string, want bool) {
			names := strings.Fields(list)
			if strings.HasPrefix(tt.patterns, "ä") || strings.HasPrefix(tt.patterns, " #") {
				names = []string{list}
			}
			for _, name := range names {
				if got, _ := m.Ignored(name, Info{}); got != want {
					t.Errorf("%q: Ignored(%q) = %v", tt.patterns, name, got)
				}
			}
		}
		check(tt.ignored, true)
		check(tt.kept, false)
	}
}

func TestErrors(t *testing.T) {
	for text, line := range map[string]int{"a\n!\n": 2, "# x\n\n[\n": 3, "a/[b\n": 1, "x\n!a[\n": 2, "a\\": 1, "a": 0, "[a-": 1} {
		_, err := Parse(context.Background(), strings.NewReader(text))
		var e *Error
		if ok := errors.As(err, &e); ok != (line > 0) || ok && e.Line != line {
			t.Errorf("%q: %v, want line %d", text, err, line)
		}
	}
	if _, err := New(context.Background(), []string{"a", "["}); err == nil || !strings.Contains(err.Error(), `"["`) {
		t.Errorf("New: %v", err)
	}
}

// A pattern whose cost grows with the square of its length is refused before it is compiled, and a short error says where it is.
func TestLongPattern(t *testing.T) {
	m, err := New(context.Background(), []string{strings.Repeat("a/", maxPattern/2-1) + "*a"})
	if err != nil || m == nil {
		t.Errorf("a pattern of %d bytes: %v", maxPattern, err)
	}
	for _, text := range []string{"**/" + strings.Repeat("a", maxPattern), "!" + strings.Repeat("*/", maxPattern/2) + "a"} {
		for from, read := range map[string]func() (*Matcher, error){
			"": func() (*Matcher, error) { return New(context.Background(), []string{text}) },
			"line 2: ": func() (*Matcher, error) {
				return Parse(context.Background(), strings.NewReader("a\n"+text+"\n"))
			},
		} {
			var e *Error
			_, err := read()
			if !errors.As(err, &e) || !strings.HasPrefix(err.Error(), from+"the pattern that begins with") || len(err.Error()) > 250 {
				t.Errorf("%.10s…: %.300v", text, err)
			}
		}
	}
}

func TestNothing(t *testing.T) {
	m, err := Parse(context.Background(), strings.NewReader("# nothing\n"))
	if m != nil || err != nil {
		t.Fatal(m, err)
	}
	ignored, info := m.Ignored("a", Info{})
	if again, _ := m.Ignored("a/b", info); ignored || again || m.MayReinclude("a") || m.Exceptions() || m.Patterns() != nil {
		t.Error("a nil Matcher excludes something")
	}
}

func TestMayReinclude(t *testing.T) {
	for _, tt := range []struct {
		pattern, dir string
		want         bool
	}{
		{"!a/b/c", "a", true},
		{"!a/b/c", "a/b", true},
		{"!a/b/c", "a/b/c", true},
		{"!a/b/c", "x", false},
		{"!a/b/c", "a/x", false},
		{"!*/b", "a", true},
		{"!*/b", "a/c", false},
		{"!**/b", "x/y/z", true},
		{"!a/**/b", "a/x/y", true},
		{"!a/**/b", "x", false},
		{"!*.c", "src", false},
		{"a", "a", false},
	} {
		m, err := New(context.Background(), []string{tt.pattern})
		if err != nil {
			t.Fatal(err)
		}
		if got := m.MayReinclude(tt.dir); got != tt.want {
			t.Errorf("%q: MayReinclude(%q) = %v", tt.pattern, tt.dir, got)
		}
	}
}

// TestAsPatternMatcher compares with patternmatcher on random patterns and trees, walked from the root and asked for alone,
// and sees that what MayReinclude skips holds nothing.
func TestAsPatternMatcher(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	words := []string{"a", "b", "c", "*", "**", "a*", "?", "[ab]", "!a", "*b", "**b", "a**", "ä?"}
	var tree []string
	var grow func(dir string, depth int)
	grow = func(dir string, depth int) {
		for _, name := range []string{"a", "b", "c", "ab", "!a", "äb"} {
			p := path.Join(dir, name)
			tree = append(tree, p)
			if depth > 1 {
				grow(p, depth-1)
			}
		}
	}
	grow("", 3)
	for range 3000 {
		var patterns []string
		for range 1 + r.IntN(4) {
			var p []string
			for range 1 + r.IntN(3) {
				p = append(p, words[r.IntN(len(words))])
			}
			s := strings.Join(p, "/")
			if r.IntN(3) == 0 {
				s = "!" + s
			}
			patterns = append(patterns, s)
		}
		compare(t, patterns, tree)
	}
}

// FuzzParse compares the whole of a .dockerignore with moby's packages that read and match one.
// TestParseEnds shows that reading many patterns ends with its context, while they are compiled and while their lines are found.
func TestParseEnds(t *testing.T) {
	const n = 1000
	text := strings.Repeat("a*b\n", n)
	for _, at := range []int{1, n / 2, 3 * n / 2} {
		if _, err := Parse(ctxtest.EndAfter(at), strings.NewReader(text)); !errors.Is(err, ctxtest.ErrEnded) {
			t.Errorf("Parse, whose context ended when it was looked at %d times: %v", at, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"*.o\n!keep.o\n", "# a\n\n/x/\n", "**/*.md\nREADME*\n!README.md", "a/b/../c\n", "[a-c]?\n\\*\n", "!!a\n!\n", "\xef\xbb\xbfa\r\n", "\ufeff\ufeff*\n!\ufeffa/?", "\n\ufeff*", "**\n!**/a/**/b", "a**b\n***", "[^a]b", "/ a", "!!!", "[]a]", "a//b", ". \n..", "(a|b)+.\n{a}^$",
	} {
		f.Add(text, "a/b/c")
		f.Add(text, "README.md")
	}
	f.Fuzz(func(t *testing.T, text, name string) {
		if !utf8.ValidString(text) || !utf8.ValidString(name) {
			return // patternmatcher takes all bytes that are no UTF-8 for one character
		}
		name = strings.Trim(path.Clean("/"+name), "/")
		patterns, err := ignorefile.ReadAll(strings.NewReader(text))
		m, ourErr := Parse(context.Background(), strings.NewReader(text))
		if err != nil {
			if ourErr == nil {
				t.Errorf("Parse takes it, and ignorefile says %v", err)
			}
			return
		}
		if e, ok := errors.AsType[*Error](ourErr); ourErr != nil && (!ok || e.Line < 1 || e.Line > strings.Count(text, "\n")+1) {
			t.Errorf("the error has no line: %v", ourErr)
		}
		tree := []string{"a", "a/b", "a/b/c", "x.o"}
		for i := range name {
			if name[i] == '/' {
				tree = append(tree, name[:i])
			}
		}
		if name != "" {
			tree = append(tree, name)
		}
		for _, p := range tree {
			if r, ok := m.Reason(p); ok && (r.Line < 1 || r.Line > strings.Count(text, "\n")+1) {
				t.Errorf("%q is excluded by %+v", p, r)
			}
		}
		compare(t, patterns, tree)
	})
}

func compare(t *testing.T, patterns, tree []string) {
	t.Helper()
	var escaped []string
	for _, p := range patterns {
		escaped = append(escaped, literal(p))
	}
	theirs, err := patternmatcher.New(escaped)
	if err == nil {
		// It compiles a pattern when it is first tried.
		for _, p := range theirs.Patterns() {
			text := p.String()
			if text[0] == '!' {
				text = `\` + text
			}
			one, oneErr := patternmatcher.New([]string{text})
			if oneErr == nil {
				_, oneErr = one.MatchesOrParentMatches("x")
			}
			if err == nil {
				err = oneErr
			}
		}
	}
	ours, ourErr := New(context.Background(), patterns)
	if (err == nil) != (ourErr == nil) {
		t.Fatalf("%q: %v, patternmatcher %v", patterns, ourErr, err)
	}
	if err != nil {
		return
	}
	infos := map[string]Info{}
	theirInfos := map[string]patternmatcher.MatchInfo{}
	skipped := map[string]bool{}
	for _, p := range tree {
		dir := path.Dir(p)
		if dir == "." {
			dir = ""
		}
		want, theirInfo, err := theirs.MatchesUsingParentResults(p, theirInfos[dir])
		if err != nil {
			t.Fatal(err)
		}
		got, info := ours.Ignored(p, infos[dir])
		infos[p], theirInfos[p] = info, theirInfo
		if got != want {
			t.Fatalf("%q: walk: Ignored(%q) = %v", patterns, p, got)
		}
		skipped[p] = skipped[dir] || got && !ours.MayReinclude(p)
		if skipped[dir] && !got {
			t.Fatalf("%q: %q is kept in a directory that a walk skips", patterns, p)
		}
		alone, err := theirs.MatchesOrParentMatches(p)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := ours.Ignored(p, Info{}); got != alone {
			t.Fatalf("%q: Ignored(%q) = %v", patterns, p, got)
		}
	}
}

func BenchmarkIgnored(b *testing.B) {
	var patterns []string
	for i := range 20 {
		patterns = append(patterns, fmt.Sprintf("**/*.%d", i))
	}
	m, err := New(context.Background(), patterns)
	if err != nil {
		b.Fatal(err)
	}
	_, dir := m.Ignored("src", Info{})
	b.ReportAllocs()
	for b.Loop() {
		m.Ignored("src/main.go", dir)
	}
}
