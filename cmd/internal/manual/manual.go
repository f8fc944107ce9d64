// Package manual writes kiln's manual pages: one for each command, from what help shows of it, and one for kiln.toml.
package manual

import (
	"bytes"
	_ "embed"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/cmd/internal/help"
	"github.com/kilnbuild/kiln/internal/atomicfile"
	"github.com/spf13/cobra"
)

var (
	//go:embed pages/kiln.1
	more string // the end of kiln(1)
	//go:embed pages/kiln.toml.5
	configuration string
)

// Footer is what the last line of each page says: the date as 2006-01-02, or "", and the version of kiln.
type Footer struct{ Date, Version string }

// Write writes the pages for a command and those below it into the directories man1 and man5 of dir, which are made if they are missing.
// OtherNames reports whether a command only has others by the names of another tool: there is a page for it, and for those below it only
// if they are nowhere else.
func Write(dir string, root *cobra.Command, footer Footer, otherNames func(*cobra.Command) bool) error {
	own := map[string]*cobra.Command{} // by what they do
	var collect func(cmd *cobra.Command)
	collect = func(cmd *cobra.Command) {
		own[cmd.Short] = cmd
		for _, sub := range cmd.Commands() {
			if !otherNames(sub) {
				collect(sub)
			}
		}
	}
	collect(root)
	var write func(cmd *cobra.Command) error
	write = func(cmd *cobra.Command) error {
		if !cmd.IsAvailableCommand() && cmd != root || own[cmd.Short] != nil && own[cmd.Short] != cmd {
			return nil
		}
		p := &page{footer: footer, own: own}
		p.command(cmd)
		if cmd == root {
			p.out.WriteString(more)
		}
		p.seeAlso(cmd)
		if err := save(dir, 1, name(cmd), p.out.Bytes()); err != nil {
			return err
		}
		for _, sub := range cmd.Commands() {
			if err := write(sub); err != nil {
				return err
			}
		}
		return nil
	}
	if err := write(root); err != nil {
		return err
	}
	p := &page{footer: footer}
	p.head("kiln.toml", 5)
	p.out.WriteString(configuration)
	return save(dir, 5, "kiln.toml", p.out.Bytes())
}

// save writes a page.
func save(dir string, section int, name string, text []byte) error {
	dir = filepath.Join(dir, fmt.Sprintf("man%d", section))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write manual page: %w", err)
	}
	into, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("write manual page: %w", err)
	}
	defer into.Close() // it is only a place
	err = atomicfile.WriteAt(into, fmt.Sprintf("%s.%d", name, section), func(w io.Writer) error {
		_, err := w.Write(text)
		return err
	})
	if err != nil {
		return fmt.Errorf("write manual page: %w", err)
	}
	return nil
}

// name returns the name of a command's page.
func name(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// page is a manual page that is being written, in the language of man(7).
type page struct {
	out    bytes.Buffer
	footer Footer
	own    map[string]*cobra.Command
}

func (p *page) macro(format string, args ...any) { fmt.Fprintf(&p.out, "."+format+"\n", args...) }

func (p *page) head(name string, section int) {
	p.macro(`TH %s %d "%s" "kiln %s" "kiln manual"`, escaped(strings.ToUpper(name)), section, p.footer.Date, escaped(p.footer.Version))
}

func (p *page) command(cmd *cobra.Command) {
	p.head(name(cmd), 1)
	p.macro("SH NAME")
	p.text(escaped(name(cmd)) + ` \- ` + escaped(cmd.Short))
	p.macro("SH SYNOPSIS")
	rest, _ := strings.CutPrefix(help.UseLine(cmd), cmd.CommandPath())
	p.text(bold(cmd.CommandPath()) + escaped(rest))
	p.macro("SH DESCRIPTION")
	for i, paragraph := range strings.Split(help.Description(cmd), "\n\n") {
		if i > 0 {
			p.macro("PP")
		}
		p.text(escaped(paragraph))
	}
	if len(cmd.Aliases) > 0 {
		p.macro("PP")
		p.text("Other names: " + bold(strings.Join(cmd.Aliases, ", ")))
	}
	p.commands(cmd)
	p.options(cmd)
	if cmd.HasExample() {
		p.macro("SH EXAMPLES")
		p.macro("EX")
		for line := range strings.Lines(strings.TrimRight(cmd.Example, "\n")) {
			line = strings.TrimSpace(line)
			p.line(escaped(line))
		}
		p.macro("EE")
	}
}

func (p *page) commands(cmd *cobra.Command) {
	groups := help.Commands(cmd)
	if len(groups) > 0 {
		p.macro("SH COMMANDS")
	}
	for _, g := range groups {
		if len(groups) > 1 {
			p.macro("SS %s", escaped(g.Title))
		}
		for _, c := range g.Commands {
			p.macro("TP")
			p.line(bold(c.Name()))
			text := escaped(c.Short) + "."
			if at := p.own[c.Short]; at != nil && at != c {
				text += "\nSee " + reference(name(at), 1) + "."
			}
			p.text(text)
		}
	}
}

func (p *page) options(cmd *cobra.Command) {
	p.macro("SH OPTIONS")
	sections := help.Sections(cmd)
	for _, s := range sections {
		if len(sections) > 1 {
			p.macro("SS %s", escaped(s.Title))
		}
		for _, f := range s.Flags {
			p.macro("TP")
			spelling := bold("--" + f.Name)
			if f.Shorthand != "" {
				spelling = bold("-"+f.Shorthand) + ", " + spelling
			}
			switch {
			case f.Optional:
				spelling += "[=" + italic(f.Value) + "]"
			case f.Value != "":
				spelling += " " + italic(f.Value)
			}
			p.line(spelling)
			text := escaped(f.Explanation()) + "."
			if f.Repeated {
				text += "\nCan be given several times."
			}
			p.text(text)
		}
	}
}

// seeAlso names the pages of the commands around one.
func (p *page) seeAlso(cmd *cobra.Command) {
	p.macro("SH SEE ALSO")
	var all []string
	if parent := cmd.Parent(); parent != nil {
		all = append(all, reference(name(parent), 1))
	}
	for _, sub := range cmd.Commands() {
		if at := p.own[sub.Short]; sub.IsAvailableCommand() && (at == nil || at == sub) {
			all = append(all, reference(name(sub), 1))
		}
	}
	all = append(all, reference("kiln.toml", 5))
	p.line(strings.Join(all, ",\n"))
}

// maxLine is the widest line of a page's source.
const maxLine = 78

// text writes lines that may be broken between words.
func (p *page) text(text string) {
	at := 0
	for i, word := range strings.Fields(text) {
		switch {
		case i == 0:
		case at+1+len(word) > maxLine:
			p.out.WriteString("\n")
			at = 0
		default:
			p.out.WriteString(" ")
			at++
		}
		if at == 0 && (word[0] == '.' || word[0] == '\'') {
			word = `\&` + word
		}
		p.out.WriteString(word)
		at += len(word)
	}
	p.out.WriteString("\n")
}

// line writes a line as it is.
func (p *page) line(text string) {
	if text != "" && (text[0] == '.' || text[0] == '\'') {
		text = `\&` + text
	}
	p.out.WriteString(text + "\n")
}

func bold(text string) string   { return `\fB` + escaped(text) + `\fR` }
func italic(text string) string { return `\fI` + escaped(text) + `\fR` }

// reference returns the name of a page.
func reference(name string, section int) string { return fmt.Sprintf("%s(%d)", bold(name), section) }

// escaped returns text in which roff finds nothing but text. A hyphen is one that can be copied into a command line.
func escaped(text string) string {
	var out strings.Builder
	for _, r := range text {
		switch {
		case r == '\\':
			out.WriteString(`\e`)
		case r == '-':
			out.WriteString(`\-`)
		case r == '\'':
			out.WriteString(`\(aq`)
		case r == '`':
			out.WriteString(`\(ga`)
		case r == '~':
			out.WriteString(`\(ti`)
		case r == '^':
			out.WriteString(`\(ha`)
		case r > '~':
			fmt.Fprintf(&out, `\[u%04X]`, r)
		default:
			out.WriteRune(r)
		}
	}
	return out.String()
}
