// Package help prints what commands and flags are for, and says what may have been meant by those that do not exist. It knows no command:
// everything is read from the commands themselves.
package help

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// group is the annotation of a flag that names its group.
const group = "kiln_group"

// Group gives a name to the flags of a set that have no group yet: those that were added since the last call. Help lists groups in the
// order in which they were made, and flags in the order in which they were added.
func Group(flags *pflag.FlagSet, name string) {
	flags.SortFlags = false
	annotations := map[string][]string{group: {name}}
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Annotations == nil {
			f.Annotations = annotations // all flags of a group share it, and nothing else annotates flags
		}
	})
}

// Flag is a flag as help shows it.
type Flag struct {
	Name      string
	Shorthand string
	// Value says what the value is, as "FILE"; "" for a flag without one. Optional says that it may be left out.
	Value    string
	Optional bool
	// Text says what the flag does. Default is its value where it is not given, if Text does not tell.
	Text    string
	Default string
	// Repeated says that the flag can be given several times.
	Repeated bool
}

// Section is flags that belong together.
type Section struct {
	Title string
	Flags []Flag
}

// Flags without a group.
const (
	ownTitle    = "Flags"
	globalTitle = "Global flags"
)

// Sections returns the flags of a command that are not hidden: its own by group, then those of all commands. A title is "Flags" for
// flags without a group.
func Sections(cmd *cobra.Command) []Section {
	cmd.InitDefaultHelpFlag()
	var all []Section
	add := func(title string, f *pflag.Flag) {
		i := slices.IndexFunc(all, func(s Section) bool { return s.Title == title })
		if i < 0 {
			i = len(all)
			all = append(all, Section{Title: title})
		}
		all[i].Flags = append(all[i].Flags, describe(f))
	}
	var inherited, global []*pflag.Flag
	for parent := cmd.Parent(); parent != nil; parent = parent.Parent() {
		visit(parent.PersistentFlags(), func(f *pflag.Flag) { inherited = append(inherited, f) })
	}
	// The set of a command's flags may have those of its parents already.
	own := func(f *pflag.Flag) {
		g := f.Annotations[group]
		switch {
		case len(g) > 0:
			add(g[0], f)
		case f.Name == "help" || f.Name == "version" || cmd.Parent() == nil:
			global = append(global, f)
		default:
			add(ownTitle, f)
		}
	}
	persistent := cmd.PersistentFlags()
	visit(cmd.Flags(), func(f *pflag.Flag) {
		if !slices.Contains(inherited, f) && persistent.Lookup(f.Name) != f {
			own(f)
		}
	})
	visit(persistent, own)
	for _, f := range inherited {
		if g := f.Annotations[group]; len(g) > 0 {
			add(g[0], f)
			continue
		}
		global = append(global, f)
	}
	for _, f := range global {
		add(globalTitle, f)
	}
	return all
}

// visit calls f with the flags that are not hidden, in the order in which they were added.
func visit(flags *pflag.FlagSet, f func(*pflag.Flag)) {
	flags.SortFlags = false
	flags.VisitAll(func(flag *pflag.Flag) {
		if !flag.Hidden {
			f(flag)
		}
	})
}

// describe reads a flag. Its usage is what it does; before that, in backquotes, what its value is: "`FILE` write the image ID to FILE".
func describe(f *pflag.Flag) Flag {
	out := Flag{Name: f.Name, Shorthand: f.Shorthand, Default: f.DefValue}
	out.Value, out.Text = Usage(f.Usage)
	out.Optional = out.Value != "" && f.NoOptDefVal != ""
	switch f.Value.Type() {
	case "stringArray", "stringSlice":
		out.Repeated, out.Default = true, ""
	case "bool":
		if out.Default == "false" {
			out.Default = ""
		}
	}
	if out.Optional || strings.Contains(out.Text, "(default ") {
		out.Default = ""
	}
	return out
}

// Usage divides the usage of a flag into what its value is and what the flag does.
func Usage(usage string) (value, text string) {
	if rest, ok := strings.CutPrefix(usage, "`"); ok {
		if value, text, ok = strings.Cut(rest, "` "); ok {
			return value, text
		}
	}
	return "", usage
}

// Spelling returns the flag with its value: "--file FILE".
func (f Flag) Spelling() string {
	switch {
	case f.Value == "":
		return "--" + f.Name
	case f.Optional:
		return "--" + f.Name + "[=" + f.Value + "]"
	}
	return "--" + f.Name + " " + f.Value
}

// Explanation returns what the flag does, with its default.
func (f Flag) Explanation() string {
	if f.Default == "" {
		return f.Text
	}
	return f.Text + " (default " + f.Default + ")"
}
