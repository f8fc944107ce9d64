package expand

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// FuzzMeasure compares what a word becomes with what measure says that it becomes at most.
func FuzzMeasure(f *testing.F) {
	for _, word := range []string{
		"plain", "$A$B", "${A}x${B:-$A}", "'$A'\"$A${B}\"", `\$A\\`, "${A//a/bb}", `${A//?/$B$B}`, "${A/a*/x${B}y}", "${A%%b*}${A#a}", "${C:-${B:-${A}}}", `${A//\//\}}`, "${A//*/$C}",
		"${C?message $A}", "${C:+$A}", "${A:+${B+x}}", "<<$A << <", "${0:\x83}", "${A:\U0010ffff}", "$1$@$$", "${", "${A", "${A:", "${A//", "${A//b", "${A//b/", "\xff$A\xff", "${A//\xff/\xff}", `"\a\"$A"`, "${A//''/$C}", `${A//"\?"/x}`,
	} {
		f.Add(word, "aba", "b", "$0$0")
	}
	f.Fuzz(func(t *testing.T, word, a, b, c string) {
		if len(word)+len(a)+len(b)+len(c) <= 300 && strings.Count(word, "//") <= 3 {
			checkMeasure(t, word, a, b, c)
		}
	})
}

// Words that are more often without a syntax error than what the fuzzer finds.
func TestMeasure(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	parts := []string{"$A", "$B", "${A", "${B", "${C", "${D", "}", "}", "}", "//", "/", ":-", "-", ":+", "?", "#", "##", "%", "%%", "'", `"`, `\\`, "`", "x", "a", "*", "{", "<<", " ", "\xff", "é", "$"}
	for range 50000 {
		var word strings.Builder
		for range random.IntN(12) {
			word.WriteString(parts[random.IntN(len(parts))])
		}
		if strings.Count(word.String(), "//") <= 3 {
			checkMeasure(t, word.String(), "aba", `b\\$0`, "$0 a*")
		}
	}
}

func checkMeasure(t *testing.T, word, a, b, c string) {
	t.Helper()
	word = valid(word)
	env := shell.EnvsFromSlice([]string{"A=" + a, "B=" + b, "C=" + c})
	for _, x := range []*Expander{New('\\', NewBudget()), New('`', NewBudget()), New('\\', NewBudget()).Documents(), New('\\', NewBudget()).Shown()} {
		m := &measure{Expander: x, env: env, rest: word}
		size := m.until(endOfWord)
		if m.work > maxWork || m.nested {
			continue
		}
		if r, err := x.lex.ProcessWordWithMatches(word, env); err == nil && (int64(len(r.Result)) > size || m.failed) {
			t.Errorf("%q becomes %d bytes, and was to become %d at most, failed %v", word, len(r.Result), size, m.failed)
		}
		if words, err := x.lex.ProcessWords(word, env); err == nil && int64(len(strings.Join(words, ""))) > size {
			t.Errorf("%q becomes the words %q, and was to become %d bytes at most", word, words, size)
		}
	}
}
