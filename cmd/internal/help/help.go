package help

import (
	"bytes"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/clipperhouse/displaywidth"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// Widths of help in columns. A wider terminal does not make lines longer than people like to read.
const (
	usualWidth = 80
	minWidth   = 40
	maxWidth   = 120
	// maxSpelling is the widest column of flags; the explanation of a longer one begins on a line of its own.
	maxSpelling = 22
)

// Width returns how many columns help may use: $COLUMNS, or those of the terminal that out is, or 80.
func Width(out *os.File) int {
	width := usualWidth
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 {
		width = n
	} else if n, _, err := term.GetSize(int(out.Fd())); err == nil && n > 0 {
		width = n
	}
	return min(max(width, minWidth), maxWidth)
}

// Write writes the help of a command in lines of at most so many columns, unless a word is longer.
func Write(w io.Writer, cmd *cobra.Command, width int) error {
	p := &page{width: width}
	p.paragraphs(Description(cmd))
	p.title("Usage")
	p.line("  " + UseLine(cmd))
	if len(cmd.Aliases) > 0 {
		p.line("\nAliases: " + strings.Join(append([]string{cmd.Name()}, cmd.Aliases...), ", "))
	}
	if cmd.HasExample() {
		p.title("Examples")
		p.line(strings.TrimRight(cmd.Example, "\n"))
	}
	for _, g := range Commands(cmd) {
		p.title(g.Title)
		p.commands(g.Commands)
	}
	sections := Sections(cmd)
	column := flagColumn(sections)
	for _, s := range sections {
		p.title(s.Title)
		p.flags(s.Flags, column)
	}
	if cmd.HasAvailableSubCommands() {
		p.line("")
		p.wrap("", cmd.CommandPath()+" COMMAND --help describes a command.")
	}
	_, err := w.Write(p.out.Bytes())
	return err
}

// Description returns what a command does, in paragraphs.
func Description(cmd *cobra.Command) string {
	if cmd.Long != "" {
		return cmd.Long
	}
	return cmd.Short + "."
}

// UseLine returns how a command is called.
func UseLine(cmd *cobra.Command) string {
	use := cmd.Use
	if parent := cmd.Parent(); parent != nil {
		use = parent.CommandPath() + " " + use
	}
	return use
}

// CommandGroup is commands that belong together.
type CommandGroup struct {
	Title    string
	Commands []*cobra.Command
}

// Commands returns the commands below one that are not hidden, by group; the title is "Commands" for those without a group.
func Commands(cmd *cobra.Command) []CommandGroup {
	var all []CommandGroup
	for _, g := range cmd.Groups() {
		all = append(all, CommandGroup{Title: g.Title})
	}
	rest := CommandGroup{Title: "Commands"}
	for _, c := range cmd.Commands() {
		if !c.IsAvailableCommand() {
			continue
		}
		into := &rest
		for i, g := range cmd.Groups() {
			if c.GroupID == g.ID {
				into = &all[i]
			}
		}
		into.Commands = append(into.Commands, c)
	}
	if len(rest.Commands) > 0 {
		all = append(all, rest)
	}
	return all
}

// page is help that is being written.
type page struct {
	out   bytes.Buffer
	width int
}

func (p *page) line(text string)  { p.out.WriteString(text + "\n") }
func (p *page) title(text string) { p.line("\n" + text + ":") }

// paragraphs writes text whose paragraphs empty lines separate. Paragraphs whose first line is indented stay as they are.
func (p *page) paragraphs(text string) {
	for i, paragraph := range strings.Split(strings.Trim(text, "\n"), "\n\n") {
		if i > 0 {
			p.line("")
		}
		if strings.HasPrefix(paragraph, " ") {
			p.line(paragraph)
			continue
		}
		p.wrap("", paragraph)
	}
}

func (p *page) commands(list []*cobra.Command) {
	column := 0
	for _, c := range list {
		column = max(column, len(c.Name()))
	}
	for _, c := range list {
		p.entry("  "+c.Name(), column+4, c.Short)
	}
}

// noShorthand is as wide as a shorthand, and stands where there is none.
const noShorthand = "      "

// flagColumn returns the column in which explanations of flags begin.
func flagColumn(sections []Section) (column int) {
	for _, s := range sections {
		for _, f := range s.Flags {
			if n := displaywidth.String(f.Spelling()); n <= maxSpelling {
				column = max(column, n)
			}
		}
	}
	return len(noShorthand) + column + 2
}

func (p *page) flags(list []Flag, column int) {
	for _, f := range list {
		short := noShorthand
		if f.Shorthand != "" {
			short = "  -" + f.Shorthand + ", "
		}
		p.entry(short+f.Spelling(), column, f.Explanation())
	}
}

// entry writes a name, and its explanation from a column on.
func (p *page) entry(name string, column int, text string) {
	column = min(column, p.width/2)
	if n := displaywidth.String(name); n <= column-2 {
		p.wrap(name+strings.Repeat(" ", column-n), text)
		return
	}
	p.line(name)
	p.wrap(strings.Repeat(" ", column), text)
}

// wrap writes the words of text after prefix; the lines that follow are indented by its width.
func (p *page) wrap(prefix, text string) {
	indent := strings.Repeat(" ", displaywidth.String(prefix))
	p.out.WriteString(prefix)
	at := len(indent)
	for i, word := range strings.Fields(text) {
		n := displaywidth.String(word)
		switch {
		case i == 0:
		case at+1+n > p.width:
			p.out.WriteString("\n" + indent)
			at = len(indent)
		default:
			p.out.WriteString(" ")
			at++
		}
		p.out.WriteString(word)
		at += n
	}
	p.line("")
}
