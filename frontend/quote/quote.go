// Package quote prints lines of a Dockerfile, and messages about it, without the values of secrets.
package quote

import (
	"slices"
	"strings"
	"unicode"

	"github.com/moby/buildkit/frontend/dockerfile/command"

	"github.com/kilnbuild/kiln/frontend/lint"
	"github.com/kilnbuild/kiln/parser"
)

// Source is a Dockerfile whose lines are printed. The values of variables with the name of a secret are hidden in them.
type Source struct {
	lines  []string
	hidden map[int][]span // by the index of the line; in order
}

// span is a part of a line or of an instruction, in bytes: from begin up to end.
type span struct{ begin, end int }

// New finds what is to be hidden in a Dockerfile, which may be wrong, or empty. It errs on the side of hiding too much.
func New(dockerfile []byte) *Source {
	s := &Source{hidden: map[int][]span{}}
	if len(dockerfile) == 0 {
		return s
	}
	s.lines = strings.Split(strings.TrimSuffix(string(dockerfile), "\n"), "\n")
	escape := byte('\\')
	if v, _ := parser.Directive("escape", dockerfile); v == "`" {
		escape = '`'
	}
	i := joined{escape: escape}
	for n, line := range s.lines {
		if i.add(n, line) {
			continue
		}
		i.hide(s)
		i = joined{escape: escape}
	}
	i.hide(s)
	return s
}

// Lines returns how many lines there are.
func (s *Source) Lines() int { return len(s.lines) }

// Line returns the line of an index as people may see it.
func (s *Source) Line(n int) string {
	var b strings.Builder
	line, at := s.lines[n], 0
	for _, h := range s.hidden[n] {
		b.WriteString(line[at:h.begin] + lint.Hidden)
		at = h.end
	}
	return b.String() + line[at:]
}

// minHidden is the length in bytes from which a hidden word is hidden in a message too.
const minHidden = 4

// Message returns a message about the lines from first to last, counted from 1, without the words that are hidden in them: errors
// quote what they cannot parse.
func (s *Source) Message(text string, first, last int) string {
	var words []string
	for n := max(first, 1) - 1; n < min(max(first, last), len(s.lines)); n++ {
		for _, h := range s.hidden[n] {
			words = append(words, strings.FieldsFunc(s.lines[n][h.begin:h.end], func(r rune) bool {
				return unicode.IsSpace(r) || strings.ContainsRune("\"'\\`", r)
			})...)
		}
	}
	// One may be a part of another.
	slices.SortFunc(words, func(x, y string) int { return len(y) - len(x) })
	for _, w := range words {
		if len(w) >= minHidden {
			text = strings.ReplaceAll(text, w, lint.Hidden)
		}
	}
	return text
}

// joined is an instruction whose lines are put together as BuildKit's parser does it. Lines of heredocs are taken for instructions.
type joined struct {
	escape byte
	text   strings.Builder
	pieces []piece
}

// piece is where a line is in the text of an instruction.
type piece struct {
	at           int // in the text
	line, column int
}

// add adds the line of an index, and reports whether the instruction goes on after it.
func (i *joined) add(n int, line string) bool {
	text := strings.TrimRight(line, "\r")
	if n == 0 {
		text = strings.TrimPrefix(text, "\ufeff")
	}
	column := strings.Index(line, text)
	trimmed := strings.TrimSpace(text)
	if trimmed == "" || trimmed[0] == '#' {
		return len(i.pieces) > 0 // they end no instruction
	}
	if len(i.pieces) == 0 {
		left := strings.TrimLeftFunc(text, unicode.IsSpace)
		column += len(text) - len(left)
		text = left
	}
	more := false
	end := strings.TrimRight(text, " \t")
	if last := len(end) - 1; last >= 0 && end[last] == i.escape && (last == 0 || end[last-1] != i.escape) {
		text, more = end[:last], true
	}
	i.pieces = append(i.pieces, piece{i.text.Len(), n, column})
	i.text.WriteString(text)
	return more
}

// hide adds what of the instruction is to be hidden to s.
func (i *joined) hide(s *Source) {
	text := i.text.String()
	for k, p := range i.pieces {
		// A line that looks like an ARG or ENV may have become a part of the instruction above it by mistake.
		keyword, rest := cutKeyword(text[p.at:])
		variables := keyword == command.Arg || keyword == command.Env
		if _, known := command.Commands[keyword]; !variables && (known || k > 0) {
			continue
		}
		// An unknown instruction may be a misspelt ENV.
		at := len(text) - len(rest)
		for _, v := range secretValues(keyword, rest, rune(i.escape)) {
			i.hideSpan(s, text, span{at + v.begin, at + v.end})
		}
		if variables {
			return
		}
	}
}

// hideSpan hides a part of the instruction's text in the lines that it comes from.
func (i *joined) hideSpan(s *Source, text string, v span) {
	for k, p := range i.pieces {
		end := len(text)
		if k+1 < len(i.pieces) {
			end = i.pieces[k+1].at
		}
		from, to := max(v.begin, p.at), min(v.end, end)
		if from >= to {
			continue
		}
		for _, h := range trimSpans(text, span{from, to}) {
			s.hidden[p.line] = append(s.hidden[p.line], span{p.column + h.begin - p.at, p.column + h.end - p.at})
		}
	}
}

// cutKeyword returns the name of an instruction in lower case, and what follows it. ONBUILD is skipped.
func cutKeyword(text string) (keyword, rest string) {
	for {
		text = strings.TrimLeftFunc(text, unicode.IsSpace)
		end := strings.IndexFunc(text, unicode.IsSpace)
		if end < 0 {
			end = len(text)
		}
		keyword, text = strings.ToLower(text[:end]), text[end:]
		if keyword != command.Onbuild {
			return keyword, text
		}
	}
}

// secretValues returns where the values of secrets are in the arguments of an ARG or ENV, or of what may be one.
func secretValues(keyword, text string, escape rune) []span {
	var found []span
	hiding := false // what belongs to no variable is taken for a part of the secret before it
	words, open := splitWords(text, escape)
	for k, w := range words {
		name, _, hasValue := strings.Cut(text[w.begin:w.end], "=")
		switch {
		case hiding && (!hasValue || k > open):
			found[len(found)-1].end = w.end
		case hasValue:
			if hiding = isSecret(name); hiding {
				found = append(found, span{w.begin + len(name) + 1, w.end})
			}
		case keyword == command.Env && k == 0 && isSecret(name): // ENV name value
			return trimSpans(text, span{w.end, len(text)})
		case (keyword == command.Env || keyword == command.Arg) && isSecret(name):
			found = append(found, span{w.end, w.end})
			hiding = true
		}
	}
	return trimSpans(text, found...)
}

// trimSpans returns parts of text without the space around them, and without those that are empty then.
func trimSpans(text string, spans ...span) (trimmed []span) {
	for _, v := range spans {
		part := text[v.begin:v.end]
		v.begin += len(part) - len(strings.TrimLeftFunc(part, unicode.IsSpace))
		if part = strings.TrimSpace(part); part != "" {
			trimmed = append(trimmed, span{v.begin, v.begin + len(part)})
		}
	}
	return trimmed
}

// isSecret reports whether a name, which may have quotes, is that of a secret, or may become one when its variables are expanded.
func isSecret(name string) bool {
	return strings.Contains(name, "$") || lint.IsSecretName(strings.NewReplacer(`"`, "", "'", "", `\`, "", "`", "").Replace(name))
}

// splitWords returns the words of an instruction's arguments as BuildKit's parser finds them. If a quote is not closed, the words from
// the index open on end at spaces even so; otherwise open is the number of words.
func splitWords(text string, escape rune) (words []span, open int) {
	begin, quote, escaped := -1, rune(0), false
	for at, c := range text {
		space := quote == 0 && !escaped && unicode.IsSpace(c)
		switch {
		case space && begin >= 0:
			words = append(words, span{begin, at})
			begin = -1
		case !space && begin < 0:
			begin = at
		}
		switch {
		case escaped:
			escaped = false
		case c == escape && quote != '\'':
			escaped = true
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case c == quote:
			quote = 0
		}
	}
	open = len(words)
	if begin < 0 {
		return words, open
	}
	if quote == 0 {
		return append(words, span{begin, len(text)}), open + 1
	}
	for word := range strings.FieldsSeq(text[begin:]) {
		begin += strings.Index(text[begin:], word)
		words = append(words, span{begin, begin + len(word)})
		begin += len(word)
	}
	return words, open
}
