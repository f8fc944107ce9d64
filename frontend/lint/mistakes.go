package lint

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	moby "github.com/moby/buildkit/frontend/dockerfile/parser"
)

// Rules for what is valid and hardly ever meant, as CopyBeforeInstall and the others are for what could be better.
var (
	ruleExecFormWithoutJSON = linter.LinterRule[func(text string) string]{
		Name:        "ExecFormWithoutJSON",
		Description: "What looks like the exec form and is not JSON is run by a shell",
		Format: func(text string) string {
			return fmt.Sprintf("%s is not JSON, so it is a command for a shell: the strings of the exec form are in double quotes, as [\"a\", \"b\"]", text)
		},
	}
	ruleVariableInExecForm = linter.LinterRule[func(arg string) string]{
		Name:        "VariableInExecForm",
		Description: "Variables are expanded by a shell, and the exec form has none",
		Format: func(arg string) string {
			return fmt.Sprintf("%s is passed as it is: the exec form has no shell that expands variables; use the shell form, or [\"sh\", \"-c\", \"…\"]", arg)
		},
	}
	ruleArgBeforeFrom = linter.LinterRule[func(name string) string]{
		Name:        "ArgBeforeFrom",
		Description: "An ARG above the first FROM has no value in a stage that does not repeat it",
		Format: func(name string) string {
			return fmt.Sprintf("%s has no value here, since only FROM sees an ARG above the first FROM: repeat ARG %s in the stage", name, name)
		},
	}
	ruleCopyOutsideContext = linter.LinterRule[func(src, meant string) string]{
		Name:        "CopyOutsideContext",
		Description: "Nothing can be copied from outside of the build context",
		Format: func(src, meant string) string {
			return fmt.Sprintf("%s leads out of the build context, so %s in it is copied: "+
				"for files outside use a directory above as the context, or a --build-context", src, meant)
		},
	}
)

// adviseOutside reports sources of the build context that begin with "..".
func adviseOutside(sources []string, at []moby.Range, lint *linter.Linter) {
	for _, src := range sources {
		if clean := path.Clean(src); clean == ".." || strings.HasPrefix(clean, "../") {
			advise(lint, &ruleCopyOutsideContext, at, ruleCopyOutsideContext.Format(src, path.Join("/", clean)))
		}
	}
}

// almostJSON matches what begins with a list whose first element is in quotes, and with a bracket that a shell does not take for its own.
var almostJSON = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^\[(\s*(['"“”‘’])[^'"“”‘’]*['"“”‘’]\s*,|['"“”‘’]|[^\s\[\]'"]+,)`)
})

// maxQuoted bounds what a finding quotes, in bytes.
const maxQuoted = 80

// adviseForm reports what is taken for a form that was hardly meant. isSet says whether a stage has a variable.
func adviseForm(c *instructions.ShellDependantCmdLine, isSet func(name string) bool, at []moby.Range, lint *linter.Linter) {
	if len(c.CmdLine) == 0 || len(c.Files) > 0 {
		return
	}
	if c.PrependShell {
		if text := strings.TrimSpace(c.CmdLine[0]); almostJSON().MatchString(text) {
			advise(lint, &ruleExecFormWithoutJSON, at, ruleExecFormWithoutJSON.Format(clip(text)))
		}
		return
	}
	for i, arg := range c.CmdLine {
		if i > 0 && slices.Contains([]string{"-c", "/c", "/C", "-Command"}, c.CmdLine[i-1]) {
			return // a shell reads it
		}
		for _, name := range variablesOf(arg) {
			if isSet(name) {
				advise(lint, &ruleVariableInExecForm, at, ruleVariableInExecForm.Format(clip(arg)))
				return
			}
		}
	}
}

// adviseArgs reports variables of a script that only an ARG above the first FROM declares.
func adviseArgs(c *instructions.RunCommand, global []string, isSet func(name string) bool, lint *linter.Linter) {
	if !c.PrependShell || len(global) == 0 {
		return
	}
	for _, name := range variablesOf(strings.Join(c.CmdLine, " ")) {
		if slices.Contains(global, name) && !isSet(name) && !assigns(c, name) {
			advise(lint, &ruleArgBeforeFrom, c.Location(), ruleArgBeforeFrom.Format(name))
		}
	}
}

// assigns reports whether a script may give a variable a value.
func assigns(c *instructions.RunCommand, name string) bool {
	return slices.ContainsFunc(c.CmdLine, func(text string) bool {
		return strings.Contains(text, name+"=") || strings.Contains(text, "for "+name) || strings.Contains(text, "read ") || strings.Contains(text, ". /")
	})
}

var variable = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?:^|[^\\$])\$\{?([A-Za-z_][A-Za-z0-9_]*)`) })

// maxVariables is how many variables of one text are looked at.
const maxVariables = 100

// variablesOf returns the names of the variables in a text, each once.
func variablesOf(text string) []string {
	var names []string
	for _, m := range variable().FindAllStringSubmatch(text, maxVariables) {
		if !slices.Contains(names, m[1]) {
			names = append(names, m[1])
		}
	}
	return names
}

func clip(text string) string {
	if len(text) > maxQuoted {
		text = strings.ToValidUTF8(text[:maxQuoted], "") + "…"
	}
	return text
}
