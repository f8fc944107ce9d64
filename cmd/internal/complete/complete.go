// Package complete says what shells offer for the words of a command line: values of flags, images, stages of a Dockerfile. Whatever fails
// is no offer. Nothing is opened, locked, created or asked for over the network.
package complete

import (
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/cmd/internal/help"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// What a shell does besides offering what it is given.
const (
	files  = cobra.ShellCompDirectiveDefault
	none   = cobra.ShellCompDirectiveNoFileComp
	dirs   = cobra.ShellCompDirectiveFilterDirs
	more   = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	sorted = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
)

// Request is what a shell asks about.
type Request struct {
	cmd *cobra.Command
	// args are the arguments before the word, which begins with word.
	args []string
	word string
	// root returns the root directory.
	root func() (string, error)
}

// source returns offers and what else the shell does. An offer may be followed by a tab and its description.
type source func(r *Request) ([]string, cobra.ShellCompDirective)

// Wanted reports whether a command line is a shell's question.
func Wanted(args []string) bool {
	return len(args) > 0 && (args[0] == cobra.ShellCompRequestCmd || args[0] == cobra.ShellCompNoDescRequestCmd)
}

// Register makes the commands below a command answer shells; root returns the root directory of the command line.
func Register(cmd *cobra.Command, root func() (string, error)) {
	for _, sub := range cmd.Commands() {
		Register(sub, root)
	}
	cmd.ValidArgsFunction = function(argsOf(cmd), root)
	for _, flags := range []*pflag.FlagSet{cmd.Flags(), cmd.PersistentFlags()} {
		flags.SortFlags = false
		flags.VisitAll(func(f *pflag.Flag) {
			_, f.Usage = help.Usage(f.Usage)
			if f.Value.Type() == "bool" {
				return
			}
			if from := flagOf(cmd.Name(), f.Name); from != nil {
				_ = cmd.RegisterFlagCompletionFunc(f.Name, function(from, root)) // it has none yet
			}
		})
	}
}

// function returns what cobra calls.
func function(from source, root func() (string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		offers, directive := from(&Request{cmd, args, word, root})
		return fit(offers, word), directive
	}
}

// fit returns the offers that begin with word, each once. Those that a terminal would not show as they are were made to mislead, and are
// left out.
func fit(offers []string, word string) []cobra.Completion {
	var out []cobra.Completion
	for _, o := range offers {
		value, description, _ := strings.Cut(o, "\t")
		if !strings.HasPrefix(value, word) || termtext.Line(value) != value || value == "" {
			continue
		}
		if description != "" {
			value += "\t" + termtext.Line(description)
		}
		if !slices.Contains(out, value) {
			out = append(out, value)
		}
	}
	return out
}

// words offers words that are always the same.
func words(list ...string) source {
	return func(*Request) ([]string, cobra.ShellCompDirective) { return list, none }
}

// only offers nothing, and leaves the rest to the shell.
func only(directive cobra.ShellCompDirective) source {
	return func(*Request) ([]string, cobra.ShellCompDirective) { return nil, directive }
}

// first offers something for the first argument, and nothing for others.
func first(from source) source {
	return func(r *Request) ([]string, cobra.ShellCompDirective) {
		if len(r.args) > 0 {
			return nil, none
		}
		return from(r)
	}
}

// list offers the elements of a comma separated list that it does not have yet.
func list(from source) source {
	return func(r *Request) ([]string, cobra.ShellCompDirective) {
		i := strings.LastIndexByte(r.word, ',') + 1
		before := strings.Split(r.word[:max(i-1, 0)], ",")
		offers, directive := from(r)
		var out []string
		for _, o := range offers {
			if value, _, _ := strings.Cut(o, "\t"); !slices.Contains(before, value) {
				out = append(out, r.word[:i]+o)
			}
		}
		return out, directive
	}
}

// keys offers words that are continued: the shell writes no space after them.
func keys(list ...string) source {
	return func(*Request) ([]string, cobra.ShellCompDirective) { return list, more }
}
