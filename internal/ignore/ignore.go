// Package ignore matches paths against the patterns of a .dockerignore file or of COPY --exclude; it knows patterns and
// paths, not files.
package ignore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// maxPattern is the length of a pattern in bytes. No layer has a longer path, and what a pattern costs when it is compiled grows with the
// square of its wildcards: one of 150 KB took gigabytes.
const maxPattern = 4096

// Error is a pattern that cannot be read.
type Error struct {
	// Line is the pattern's line in its file, counted from 1; 0 where the patterns are from no file.
	Line int
	// Pattern is the pattern as it is written.
	Pattern string
	// Err says what is wrong with it.
	Err error
}

// Error returns the line, where there is one, the pattern, or the beginning of a long one, and what is wrong with it.
func (e *Error) Error() string {
	pattern := fmt.Sprintf("pattern %q", e.Pattern)
	if len(e.Pattern) > maxPattern {
		pattern = fmt.Sprintf("the pattern that begins with %.100q", e.Pattern)
	}
	if e.Line > 0 {
		pattern = fmt.Sprintf("line %d: %s", e.Line, pattern)
	}
	return fmt.Sprintf("%s: %v", pattern, e.Err)
}

// Unwrap returns what is wrong with the pattern.
func (e *Error) Unwrap() error { return e.Err }

// Matcher answers which paths a list of patterns excludes. A nil Matcher excludes nothing. A Matcher is not changed by
// matching, so several goroutines may use one.
type Matcher struct {
	// File is the name of the file of the patterns, for errors to name it; "" where they are from none.
	File string

	patterns []pattern
}

// pattern is one pattern. It is matched by its elements; one that that is too simple for has a PatternMatcher of its own, as a
// common one compiles its patterns while it matches, which several goroutines must not do.
type pattern struct {
	text string
	// exception is set for "!".
	exception bool
	// line is the pattern's line in its file, 0 where it is from none.
	line int
	// elements are what stands between the slashes, without "!".
	elements []string
	pm       *patternmatcher.PatternMatcher
}

// unmatched is what a PatternMatcher of one pattern returns for a directory that it does not match.
var unmatched = func() patternmatcher.MatchInfo {
	pm, err := patternmatcher.New([]string{"x"})
	if err != nil {
		panic("BUG: patternmatcher does not know a plain name: " + err.Error())
	}
	_, info, _ := pm.MatchesUsingParentResults("y", patternmatcher.MatchInfo{})
	return info
}()

// Parse reads patterns in the syntax of a .dockerignore file from r: a pattern a line, "#" at the very beginning of a
// line for a comment, "!" for an exception. An error is of type *Error, r's, or the cause of the end of ctx.
func Parse(ctx context.Context, r io.Reader) (*Matcher, error) {
	// The lines are read twice, as ignorefile forgets where a pattern comes from.
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	patterns, err := ignorefile.ReadAll(strings.NewReader(string(data)))
	if err != nil {
		return nil, err
	}
	m, err := New(ctx, patterns)
	if m == nil && err == nil {
		return nil, nil
	}
	lines, lineErr := linesOf(ctx, string(data))
	if lineErr != nil {
		return nil, lineErr
	}
	if e, ok := err.(*Error); ok {
		e.Line = lines[e.Pattern]
	}
	if err != nil {
		return nil, err
	}
	for i := range m.patterns {
		m.patterns[i].line = lines[m.patterns[i].text]
	}
	return m, nil
}

// linesOf returns the first line of text that gives each pattern, as ignorefile and as New makes it.
func linesOf(ctx context.Context, text string) (map[string]int, error) {
	lines := map[string]int{}
	s := bufio.NewScanner(strings.NewReader(text))
	above := "" // a byte order mark is overlooked at the beginning of the file alone
	for n := 1; s.Scan(); n++ {
		if err := ctxio.Ended(ctx); err != nil {
			return nil, err
		}
		got, err := ignorefile.ReadAll(strings.NewReader(above + s.Text()))
		above = "\n"
		if err != nil || len(got) != 1 {
			continue
		}
		for _, pattern := range []string{got[0], path.Clean(strings.TrimSpace(got[0]))} {
			if lines[pattern] == 0 {
				lines[pattern] = n
			}
		}
	}
	return lines, nil
}

// New returns a Matcher of patterns, nil for none. An error is of type *Error, or the cause of the end of ctx.
func New(ctx context.Context, patterns []string) (*Matcher, error) {
	m := &Matcher{}
	for _, text := range patterns {
		if err := ctxio.Ended(ctx); err != nil {
			return nil, err
		}
		p := strings.TrimSpace(text)
		if p == "" {
			continue
		}
		p = path.Clean(p)
		if len(p) > maxPattern {
			return nil, &Error{Pattern: p, Err: fmt.Errorf("it has %d bytes, and a pattern can have %d", len(p), maxPattern)}
		}
		compiled := pattern{text: p}
		if rest, ok := strings.CutPrefix(p, "!"); ok {
			if rest == "" {
				return nil, &Error{Pattern: text, Err: errors.New("an exception has to name what it is for")}
			}
			compiled.exception = true
			p = rest
		}
		compiled.elements = strings.Split(p, "/")
		if p[0] == '!' {
			p = `\` + p
		}
		pm, err := patternmatcher.New([]string{literal(p)})
		if err == nil {
			// A pattern is compiled where it is first tried.
			_, _, err = pm.MatchesUsingParentResults("x", patternmatcher.MatchInfo{})
		}
		if err != nil {
			return nil, &Error{Pattern: text, Err: err}
		}
		if !simple(compiled.elements) {
			compiled.pm = pm
		}
		m.patterns = append(m.patterns, compiled)
	}
	if len(m.patterns) == 0 {
		return nil, nil
	}
	return m, nil
}

// Patterns returns the patterns, cleaned, in their order.
func (m *Matcher) Patterns() []string {
	if m == nil {
		return nil
	}
	out := make([]string, len(m.patterns))
	for i, p := range m.patterns {
		out[i] = p.text
	}
	return out
}

// Exceptions reports whether a pattern begins with "!".
func (m *Matcher) Exceptions() bool {
	return m != nil && slices.ContainsFunc(m.patterns, func(p pattern) bool { return p.exception })
}

// Info is what matching a directory found out, for the paths in it. The zero Info says that nothing is known.
type Info struct {
	// matched has an element for each pattern; it is nil in a zero Info.
	matched []bool
}

// Ignored reports whether the patterns exclude the slash-separated path name, which is relative to the root that the patterns
// are for. parent is what Ignored returned for the directory that holds it; with the zero Info, name's parents are matched
// too. The returned Info is the parent of what is in name.
func (m *Matcher) Ignored(name string, parent Info) (bool, Info) {
	if m == nil {
		return false, Info{}
	}
	info := Info{make([]bool, len(m.patterns))}
	ignored := false
	for i, p := range m.patterns {
		match := parent.matched != nil && parent.matched[i]
		// A pattern that cannot change the answer is not tried, for what is in name neither: patternmatcher does so, and
		// what a directory's exception means for the files in it depends on it.
		if !match && p.exception == ignored {
			match = p.match(name, parent.matched == nil)
		}
		info.matched[i] = match
		if match {
			ignored = !p.exception
		}
	}
	return ignored, info
}

// Reason is the pattern that excludes a path.
type Reason struct {
	// File and Line say where the pattern stands; "" and 0 where it is from no file.
	File string
	Line int
	// Pattern is the pattern, cleaned.
	Pattern string
}

// String returns ".dockerignore, line 3 (*.log)", as far as it is known.
func (r Reason) String() string {
	s := r.File
	if s == "" {
		s = ".dockerignore"
	}
	if r.Line > 0 {
		s += fmt.Sprintf(", line %d", r.Line)
	}
	return fmt.Sprintf("%s (%s)", s, r.Pattern)
}

// Reason returns the last pattern that excludes name or a directory that it is in; false where the patterns do not exclude it.
func (m *Matcher) Reason(name string) (Reason, bool) {
	if ignored, _ := m.Ignored(name, Info{}); !ignored {
		return Reason{}, false
	}
	for i := len(m.patterns) - 1; i >= 0; i-- {
		if p := &m.patterns[i]; !p.exception && p.match(name, true) {
			return Reason{File: m.File, Line: p.line, Pattern: p.text}, true
		}
	}
	return Reason{}, false
}

// match reports whether p matches name or, if parents is set, a parent of it.
func (p *pattern) match(name string, parents bool) bool {
	if p.pm != nil {
		from := unmatched
		if parents {
			from = patternmatcher.MatchInfo{}
		}
		// The pattern was tried when it was made, so there is no error.
		ok, _, _ := p.pm.MatchesUsingParentResults(name, from)
		return ok
	}
	if matchElements(p.elements, name) {
		return true
	}
	for i := 0; parents && i < len(name); i++ {
		if name[i] == '/' && matchElements(p.elements, name[:i]) {
			return true
		}
	}
	return false
}

// literal returns a pattern in which the characters that patternmatcher would leave to the regular expression, where they
// mean something that patterns do not have, stand for themselves.
func literal(p string) string {
	var b strings.Builder
	class := false
	for i := 0; i < len(p); i++ {
		switch c := p[i]; {
		case c == '\\' && i+1 < len(p):
			b.WriteByte(c)
			i++
		case c == '[':
			class = true
		case c == ']':
			class = false
		case !class && strings.IndexByte("|{}^", c) >= 0:
			b.WriteByte('\\')
		}
		b.WriteByte(p[i])
	}
	return b.String()
}

// byteOrderMark is a character that patternmatcher overlooks at the beginning of a pattern that it makes a regular expression of.
const byteOrderMark = "\ufeff"

// simple reports whether a pattern has but plain characters, "*", "?" and elements that are "**". Others are left to
// patternmatcher, whose regular expressions take some ten times as long.
func simple(elements []string) bool {
	return !strings.HasPrefix(elements[0], byteOrderMark) && !slices.ContainsFunc(elements, func(e string) bool {
		return strings.ContainsAny(e, `[]\`) || e != "**" && strings.Contains(e, "**")
	})
}

// matchElements reports whether the elements of a pattern match all of name. "**" stands for any number of elements, at the
// end for at least one.
func matchElements(elements []string, name string) bool {
	for ; len(elements) > 0; elements = elements[1:] {
		if name == "" {
			return false
		}
		if elements[0] == "**" {
			if len(elements) == 1 {
				return true
			}
			for ok := true; ok; _, name, ok = strings.Cut(name, "/") {
				if matchElements(elements[1:], name) {
					return true
				}
			}
			return false
		}
		var element string
		element, name, _ = strings.Cut(name, "/")
		if !matchElement(elements[0], element) {
			return false
		}
	}
	return name == ""
}

// matchElement matches "*" and "?" in one element.
func matchElement(pattern, s string) bool {
	// star and after are where the last "*" was met; it takes a character more each time that what follows does not match.
	star, after := -1, 0
	p, i := 0, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, after = p, i
			p++
		case p < len(pattern) && pattern[p] == '?':
			_, n := utf8.DecodeRuneInString(s[i:])
			p++
			i += n
		case p < len(pattern) && pattern[p] == s[i]:
			p++
			i++
		case star >= 0:
			_, n := utf8.DecodeRuneInString(s[after:])
			after += n
			p, i = star+1, after
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// MayReinclude reports whether a "!" pattern could match something below the directory dir, so that a walk has to enter it
// though it is excluded.
func (m *Matcher) MayReinclude(dir string) bool {
	if m == nil {
		return false
	}
	elements := strings.Split(strings.Trim(dir, "/"), "/")
	return slices.ContainsFunc(m.patterns, func(p pattern) bool {
		return p.exception && mayMatchBelow(p.elements, elements)
	})
}

// mayMatchBelow compares as many elements as both have: the pattern can match below dir unless one differs.
// A pattern that matches dir's parent also holds for all that is in dir.
func mayMatchBelow(pattern, dir []string) bool {
	for i := 0; i < len(pattern) && i < len(dir); i++ {
		if strings.Contains(pattern[i], "**") || strings.HasPrefix(pattern[i], byteOrderMark) {
			return true
		}
		if ok, err := path.Match(pattern[i], dir[i]); err == nil && !ok {
			return false
		}
	}
	return true
}
