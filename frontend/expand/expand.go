// Package expand expands the variables in the words of a Dockerfile within limits, and keeps the environments that they
// are expanded from.
package expand

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// A few bytes of a Dockerfile can stand for as many as they like, and BuildKit's expander has no limit. So each word is
// measured before it is expanded: how large it, and all that is put together for it, can become.
const (
	// maxValue bounds a word after its variables are expanded, in bytes. maxDocument is for a heredoc, which is a file.
	maxValue    = 1 << 20
	maxDocument = 16 << 20
	// maxWork bounds the bytes that are put together for one word. Of a replacement they are a bound of those alone, since
	// only doing it tells.
	maxWork = 64 << 20
	// maxDepth bounds variables in variables, "${A:-${B:-…}}".
	maxDepth = 100
	// In the whole build for one platform maxValues bounds the bytes that variables become, maxText those of environments of steps and of
	// what stages inherit, and maxMatching the steps of matching patterns, as in "${A%pattern}".
	maxValues   = 64 << 20
	maxText     = 256 << 20
	maxMatching = 1 << 28
)

// Budget is how much the build for one platform may still expand: what is left of maxValues, maxText and maxMatching.
type Budget struct{ values, text, matching int64 }

// NewBudget returns the budget of one build.
func NewBudget() *Budget { return &Budget{maxValues, maxText, maxMatching} }

// Spend takes bytes of text off the budget. It returns an error if the budget is exhausted.
func (b *Budget) Spend(bytes int) error {
	if b.text -= int64(bytes); b.text < 0 {
		return fmt.Errorf("the environments of steps, and what stages inherit, have more than %d MiB in all", maxText>>20)
	}
	return nil
}

// Expander expands words as shell.Lex does, within limits.
type Expander struct {
	lex *shell.Lex
	// escape is the escape character, quotes says that quotes are special, unset that variables which are not set stay as
	// they are: as lex has it.
	escape rune
	quotes bool
	unset  bool
	// most is how large a word may become.
	most   int
	budget *Budget
}

// New returns an Expander for words of instructions.
func New(escape rune, b *Budget) *Expander {
	return &Expander{lex: shell.NewLex(escape), escape: escape, quotes: true, most: maxValue, budget: b}
}

// Documents returns an Expander for heredocs: in them quotes are ordinary characters, and the escape directive does not hold.
func (x *Expander) Documents() *Expander {
	lex := shell.NewLex('\\')
	lex.SkipProcessQuotes = true
	return &Expander{lex: lex, escape: '\\', most: maxDocument, budget: x.budget}
}

// Shown returns an Expander for what people see of a RUN: what is not set stays as it is written, as the shell may set it.
func (x *Expander) Shown() *Expander {
	lex := shell.NewLex(x.escape)
	lex.RawQuotes, lex.RawEscapes, lex.SkipUnsetEnv = true, true, true
	return &Expander{lex: lex, escape: x.escape, quotes: true, unset: true, most: x.most, budget: x.budget}
}

// Word returns a word with its variables expanded, and the names of those that are not set.
func (x *Expander) Word(word string, env shell.EnvGetter) (string, map[string]struct{}, error) {
	r, err := x.Expand(word, env)
	return r.Result, r.Unmatched, err
}

// Expand is Word with all that shell.Lex says of it.
func (x *Expander) Expand(word string, env shell.EnvGetter) (shell.ProcessWordResult, error) {
	word = valid(word)
	if err := x.measure(word, env); err != nil {
		return shell.ProcessWordResult{}, err
	}
	r, err := x.lex.ProcessWordWithMatches(word, env)
	if err == nil && len(r.Result) > x.most {
		err = tooLarge(word, x.most)
	}
	return r, clipError(err)
}

// Words returns the words that a word becomes.
func (x *Expander) Words(word string, env shell.EnvGetter) ([]string, error) {
	word = valid(word)
	if err := x.measure(word, env); err != nil {
		return nil, err
	}
	words, err := x.lex.ProcessWords(word, env)
	total := 0
	for _, w := range words {
		total += len(w)
	}
	if err == nil && total > x.most {
		err = tooLarge(word, x.most)
	}
	return words, clipError(err)
}

// valid returns a word with U+FFFD in place of each byte that is no UTF-8, as shell.Lex makes it, which would print a line for each.
func valid(word string) string {
	if utf8.ValidString(word) {
		return word
	}
	return string([]rune(word))
}

func tooLarge(word string, most int) error {
	return fmt.Errorf("%q becomes larger than %d MiB when its variables are expanded", Clip(word), most>>20)
}

// Clip shortens what is quoted in an error.
func Clip(s string) string {
	const most = 200
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// clipError shortens an error that quotes a word.
func clipError(err error) error {
	if err == nil || len(err.Error()) < 1000 {
		return err
	}
	msg := err.Error()
	return errors.New(Clip(msg[:len(msg)/2]) + " " + strings.ToValidUTF8(msg[len(msg)-200:], ""))
}

// measure takes what a word needs off the budget, and refuses one that needs too much.
func (x *Expander) measure(word string, env shell.EnvGetter) error {
	if len(word) > x.most {
		return tooLarge(word, x.most)
	}
	if !strings.Contains(word, "$") {
		return nil
	}
	m := &measure{Expander: x, env: env, rest: word}
	m.until(endOfWord)
	if m.nested {
		return fmt.Errorf("%q has variables in variables, more than %d of them in each other", Clip(word), maxDepth)
	}
	if m.work > maxWork {
		return tooLarge(word, x.most)
	}
	if x.budget.matching -= m.matching; x.budget.matching < 0 {
		return fmt.Errorf("%q: its patterns, with those before, take too long to match", Clip(word))
	}
	if x.budget.values -= m.work; x.budget.values < 0 {
		return fmt.Errorf("%q: variables become more than %d MiB in all", Clip(word), maxValues>>20)
	}
	return nil
}

// measure goes through a word as shell.Lex does, and adds up how many bytes that puts together at most. A syntax error ends it.
type measure struct {
	*Expander
	env      shell.EnvGetter
	rest     string
	depth    int
	nested   bool  // too much
	work     int64 // bytes that are put together, of values and of all that they are part of
	matching int64 // steps of matching patterns
	failed   bool  // there was a syntax error
}

// endOfWord is until's stop at the end of the word.
const endOfWord = rune(-1)

// peek returns the next character, endOfWord for none.
func (m *measure) peek() rune {
	if m.rest == "" {
		return endOfWord
	}
	r, _ := utf8.DecodeRuneInString(m.rest)
	return r
}

func (m *measure) next() rune {
	if m.rest == "" {
		return endOfWord
	}
	r, size := utf8.DecodeRuneInString(m.rest)
	m.rest = m.rest[size:]
	return r
}

// literal returns how many bytes a character becomes, 0 for endOfWord. Where patterns are quoted, escape characters are doubled.
func (m *measure) literal(c rune) int64 {
	switch {
	case c == endOfWord:
		return 0
	case c == m.escape:
		return 2
	}
	return int64(utf8.RuneLen(c)) // of what is no UTF-8 that of U+FFFD, which takes its place
}

// fail ends the measuring, as an error ends the expansion.
func (m *measure) fail() int64 {
	m.failed, m.rest = true, ""
	return 0
}

// make counts bytes that are put together, and returns them.
func (m *measure) make(bytes int64) int64 {
	bytes = min(bytes, math.MaxInt64/4)
	if m.work += bytes; m.work > maxWork {
		m.fail()
	}
	return bytes
}

// until measures the text up to stop, which it consumes, or to the end of the word, and returns how many bytes that becomes.
func (m *measure) until(stop rune) (size int64) {
	for {
		c := m.next()
		switch {
		case c == endOfWord || c == stop:
			return size
		case c == '$':
			size += m.variable()
		case c == '\'' && m.quotes:
			size += m.single()
		case c == '"' && m.quotes:
			size += m.double()
		case c == m.escape:
			size += m.literal(c) + m.literal(m.next())
		default:
			size += m.literal(c)
		}
	}
}

// single measures what follows a single quote.
func (m *measure) single() int64 {
	for size := int64(1); ; {
		c := m.next()
		size += m.literal(c)
		if c == '\'' || c == endOfWord {
			return size
		}
	}
}

// double measures what follows a double quote.
func (m *measure) double() int64 {
	for size := int64(1); ; {
		c := m.next()
		switch {
		case c == '"' || c == endOfWord:
			return size + m.literal(c)
		case c == '$':
			size += m.variable()
		case c == m.escape:
			size += m.literal(c)
			if c := m.peek(); c == '"' || c == '$' || c == m.escape {
				size += m.literal(m.next())
			}
		default:
			size += m.literal(c)
		}
	}
}

// variable measures what follows a "$".
func (m *measure) variable() int64 {
	if m.peek() != '{' {
		return m.value(m.name())
	}
	m.next()
	if c := m.peek(); c == endOfWord || c == '{' || c == '}' || c == ':' {
		return m.fail()
	}
	name := m.name()
	op := m.next()
	if op == '}' {
		return m.value(name)
	}
	if m.depth++; m.depth > maxDepth {
		m.nested = true
		return m.fail()
	}
	defer func() { m.depth-- }()
	switch op {
	case ':':
		m.next()
		fallthrough
	case '+', '-', '?', '#', '%':
		word := m.make(m.until('}'))
		value := m.value(name)
		if op == '#' || op == '%' {
			m.match(value, word)
		}
		return max(word, value, word+int64(len(name))+8) // with its braces if it is to stay as it is: "${name:?word}", the ? of any size
	case '/':
		all := m.peek() == '/'
		if all {
			m.next()
		}
		pattern := m.make(m.until('/'))
		with := m.make(m.until('}'))
		value := m.value(name)
		m.match(value, pattern)
		if !all {
			return m.make(value + pattern + with + int64(len(name)) + 5)
		}
		// Each match becomes the replacement, in which regexp takes "$0" for the match: at most every second byte of it is one.
		return m.make(value + pattern + int64(len(name)) + 5 + 2*product(value+1, with+1))
	}
	return m.fail()
}

// product returns a*b, or something large.
func product(a, b int64) int64 {
	if a > math.MaxInt32 || b > math.MaxInt32 {
		return math.MaxInt64 / 8
	}
	return a * b
}

// match counts the steps of matching a pattern.
func (m *measure) match(value, pattern int64) {
	m.matching += product(value+1, pattern+1)
	if m.matching > maxMatching {
		m.fail()
	}
}

// value returns how many bytes a variable becomes.
func (m *measure) value(name string) int64 {
	if m.failed {
		return 0
	}
	value, ok := m.env.Get(name)
	switch {
	case !ok:
		return int64(len(name) + 3) // it stays as it is, perhaps
	case !utf8.ValidString(value):
		return m.make(int64(utf8.UTFMax * len(value))) // its bytes may become U+FFFD
	}
	return m.make(int64(len(value)))
}

// name takes the name of a variable.
func (m *measure) name() string {
	whole := m.rest
	digits := unicode.IsDigit(m.peek())
	for first := true; ; first = false {
		c := m.peek()
		if c == endOfWord || digits && !unicode.IsDigit(c) {
			break
		}
		if first && strings.ContainsRune("@*#?-$!0", c) && !digits {
			m.next()
			break
		}
		if !unicode.IsLetter(c) && !unicode.IsDigit(c) && c != '_' {
			break
		}
		m.next()
	}
	return whole[:len(whole)-len(m.rest)]
}
