package complete

import (
	_ "embed"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// Scripts for shells, which ask kiln and offer what it answers.
var (
	//go:embed shells/kiln.bash
	Bash string
	//go:embed shells/kiln.zsh
	Zsh string
	//go:embed shells/kiln.fish
	Fish string
)

// rawCmd is cobra's command for completion, for words as they are written in a shell.
const rawCmd = "__completeRaw"

// Args returns the command line that args, a shell's question, stand for; all others are as they are.
func Args(args []string) []string {
	if len(args) == 0 || args[0] != rawCmd {
		return args
	}
	out := []string{cobra.ShellCompRequestCmd}
	for _, word := range args[1:] {
		out = append(out, unquote(word))
	}
	return out
}

// unquote returns what a shell makes of a word, as far as that needs no running of anything: quotes and backslashes are removed, and a
// leading ~/ and variables of the environment replaced. A quote may be open.
func unquote(word string) string {
	var out strings.Builder
	if rest, ok := strings.CutPrefix(word, "~/"); ok {
		out.WriteString(os.Getenv("HOME") + "/")
		word = rest
	}
	quote := byte(0)
	for i := 0; i < len(word); i++ {
		c := word[i]
		switch {
		case quote == '\'':
			if c == '\'' {
				quote = 0
				continue
			}
			out.WriteByte(c)
		case c == '\\' && i+1 < len(word) && (quote == 0 || strings.IndexByte("\"\\$`", word[i+1]) >= 0):
			i++
			out.WriteByte(word[i])
		case c == quote:
			quote = 0
		case quote == 0 && (c == '\'' || c == '"'):
			quote = c
		case c == '$':
			name := variable(word[i+1:])
			if name == "" {
				out.WriteByte(c)
				continue
			}
			out.WriteString(os.Getenv(strings.Trim(name, "{}")))
			i += len(name)
		default:
			out.WriteByte(c)
		}
	}
	return out.String()
}

// variable returns the NAME or {NAME} that text begins with; "" for anything else.
func variable(text string) string {
	body := strings.TrimPrefix(text, "{")
	n := 0
	for n < len(body) && (isLetter(body[n]) || n > 0 && body[n] >= '0' && body[n] <= '9') {
		n++
	}
	switch {
	case n == 0:
		return ""
	case len(body) == len(text):
		return text[:n]
	case n < len(body) && body[n] == '}':
		return text[:n+2]
	}
	return ""
}

func isLetter(c byte) bool { return c == '_' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' }
