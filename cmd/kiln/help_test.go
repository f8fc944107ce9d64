package main

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/clipperhouse/displaywidth"
	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/cli"
	"github.com/kilnbuild/kiln/cmd/internal/dialect"
	"github.com/kilnbuild/kiln/cmd/internal/help"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// maxFlags is the most flags that help shows without groups.
const maxFlags = 12

// TestHelp shows that every command that is listed is described, with examples that can be run, in lines that fit on a terminal.
func TestHelp(t *testing.T) {
	for cmd := range commands(newRoot()) {
		t.Run(cmd.CommandPath(), func(t *testing.T) {
			var out bytes.Buffer
			if err := help.Write(&out, cmd, 80); err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(out.String()) {
				if line = strings.TrimSuffix(line, "\n"); displaywidth.String(line) > 80 || strings.HasSuffix(line, " ") {
					t.Errorf("a line is wider than 80 columns, or ends with a space: %q", line)
				}
			}
			if cmd.Short == "" || len(cmd.Short) > 60 || strings.HasSuffix(cmd.Short, ".") {
				t.Errorf("Short is empty, longer than 60 characters or ends with a dot: %q", cmd.Short)
			}
			if !cmd.HasExample() && !cmd.HasSubCommands() {
				t.Error("there is no example")
			}
			ownFlags := false
			cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
				ownFlags = ownFlags || !f.Hidden && f.Name != "help" && f.Name != "version"
			})
			if ownFlags != strings.Contains(cmd.Use, "[flags]") && cmd.HasParent() {
				t.Errorf("usage %q does not say whether there are flags", cmd.Use)
			}
			checkSections(t, help.Sections(cmd))
			for line := range strings.Lines(cmd.Example) {
				checkExample(t, line)
			}
		})
	}
}

// checkSections shows that every flag says what its value is, and belongs to a group if there are many.
func checkSections(t *testing.T, sections []help.Section) {
	total, grouped := 0, false
	for _, s := range sections {
		total += len(s.Flags)
		grouped = grouped || s.Title != "Flags" && s.Title != "Global flags"
		for _, f := range s.Flags {
			if f.Text == "" || strings.HasSuffix(f.Text, ".") || strings.Contains(f.Text, "`") {
				t.Errorf("--%s: its text is empty, ends with a dot or has a backquote: %q", f.Name, f.Text)
			}
		}
	}
	if i := slices.IndexFunc(sections, func(s help.Section) bool { return s.Title == "Flags" }); i >= 0 && (grouped || total > maxFlags) {
		t.Errorf("flags without a group: call help.Group after adding them: %v", sections[i].Flags)
	}
}

// checkExample shows that kiln understands the commands of a line of a shell.
func checkExample(t *testing.T, line string) {
	line, _, _ = strings.Cut(line, " #")
	for _, separator := range []string{"&&", " < ", " > ", " | "} {
		line = strings.ReplaceAll(line, separator, "|")
	}
	for command := range strings.SplitSeq(line, "|") {
		args := shellWords(command)
		if len(args) == 0 || args[0] != "kiln" {
			continue
		}
		cmd, rest, err := newRoot(args...).Find(args[1:])
		if err != nil || cmd.HasSubCommands() && len(rest) > 0 && cmd.HasParent() {
			t.Errorf("example %q: there is no such command: %v", command, err)
			continue
		}
		if err := cmd.ParseFlags(rest); err != nil {
			t.Errorf("example %q: %v", command, err)
		} else if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil && !strings.Contains(line, "xargs") {
			t.Errorf("example %q: %v", command, err)
		}
	}
}

// shellWords returns the words of a command, some of which may be in single quotes.
func shellWords(command string) []string {
	var words []string
	for i, part := range strings.Split(command, "'") {
		if i%2 == 1 {
			words = append(words, part)
		} else {
			words = append(words, strings.Fields(part)...)
		}
	}
	return words
}

// TestFlagValues shows that flags that take a value say what it is.
func TestFlagValues(t *testing.T) {
	for cmd := range commands(newRoot()) {
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if value, _ := help.Usage(f.Usage); (value == "") != (f.Value.Type() == "bool") && !f.Hidden {
				t.Errorf("%s --%s: its usage has to begin with what its value is, in backquotes, if it takes one: %q", cmd.CommandPath(), f.Name, f.Usage)
			}
		})
	}
}

// TestDialect shows that what is said about flags and commands of other tools names flags that there are, and that kiln lacks theirs.
func TestDialect(t *testing.T) {
	root := newRoot()
	has := func(path, flag string) bool {
		for cmd := range commands(root) {
			name := strings.TrimPrefix(strings.TrimPrefix(cmd.CommandPath(), "kiln"), " ")
			found := cmd.Flag(strings.TrimLeft(flag, "-")) != nil
			if !strings.HasPrefix(flag, "--") {
				found = cmd.Flags().ShorthandLookup(flag[1:]) != nil
			}
			if (path == "" || path == name) && found {
				return true
			}
		}
		return false
	}
	named := regexp.MustCompile(`--[a-z-]+`)
	dialect.Flags(func(on, flag, say string) {
		if on != "" && has(on, flag) {
			t.Errorf("kiln %s has %s, of which is said: %s", on, flag, say)
		}
		for _, name := range named.FindAllString(say, -1) {
			if !strings.Contains(say, "COPY "+name) && !strings.Contains(say, "RUN "+name) && !has("", name) {
				t.Errorf("of %s is said %q, but there is no %s", flag, say, name)
			}
		}
	})
	dialect.Commands(func(path, say string) {
		if cmd, rest, err := root.Find(strings.Fields(path)); err == nil && len(rest) == 0 {
			t.Errorf("there is a command %q, of which is said: %s", cmd.CommandPath(), say)
		}
		for _, name := range named.FindAllString(say, -1) {
			if !strings.Contains(say, "COPY "+name) && !has("", name) {
				t.Errorf("of %s is said %q, but there is no %s", path, say, name)
			}
		}
	})
}

// newRoot returns kiln's commands, all of them or those that args name.
func newRoot(args ...string) *cobra.Command {
	a := app.New(io.Discard, io.Discard)
	if a.Args = args; len(args) == 0 {
		a.Args = cli.Groups
	}
	return cli.Root(a)
}

// commands yields a command and all below it.
func commands(cmd *cobra.Command) func(yield func(*cobra.Command) bool) {
	return func(yield func(*cobra.Command) bool) {
		if !yield(cmd) {
			return
		}
		for _, sub := range cmd.Commands() {
			for c := range commands(sub) {
				if !yield(c) {
					return
				}
			}
		}
	}
}

// TestGroupNames shows that all commands that are made lazily are in the list of them.
func TestGroupNames(t *testing.T) {
	for _, cmd := range newRoot().Commands() {
		if !cmd.HasSubCommands() && strings.HasSuffix(cmd.Use, " COMMAND") {
			t.Errorf("%s is not in cli.Groups", fmt.Sprint(cmd.Name()))
		}
	}
}
