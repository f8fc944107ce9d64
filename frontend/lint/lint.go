// Package lint runs the checks of a Dockerfile that need no more than its instructions: those of BuildKit, and advice of
// kiln's own.
package lint

import (
	"cmp"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	moby "github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/kilnbuild/kiln/internal/ignore"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/parser"
)

// Warning is a finding of a check, as docs.docker.com/reference/build-checks lists them.
type Warning struct {
	// Rule is the check's name: "JSONArgsRecommended".
	Rule string
	// Description says what the check is about, Msg what it found.
	Description string
	Msg         string
	// URL is the page about the check, "" for none.
	URL      string
	Location llb.Location
}

// Findings are the warnings of one Dockerfile, each once.
type Findings struct {
	seen map[Warning]bool
}

// Sorted returns the findings in the order of the lines.
func (w *Findings) Sorted() []Warning {
	var out []Warning
	for found := range w.seen {
		out = append(out, found)
	}
	slices.SortFunc(out, func(a, b Warning) int {
		return cmp.Or(cmp.Compare(a.Location.StartLine, b.Location.StartLine), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Msg, b.Msg))
	})
	return out
}

// maxRules is how many rules the check directive may name: far more than there are.
const maxRules = 1000

// New returns the linter that the check directive, or BUILDKIT_DOCKERFILE_CHECK of the build arguments, configures, and what will
// hold its findings. file is the name of the Dockerfile in messages.
func New(dockerfile []byte, file string, buildArgs map[string]string) (*linter.Linter, *Findings, error) {
	text, line := parser.Directive("check", dockerfile)
	if v, ok := buildArgs["BUILDKIT_DOCKERFILE_CHECK"]; ok {
		text, line = v, 0
	}
	config, err := linter.ParseLintOptions(text)
	if err != nil {
		return nil, nil, &parser.Error{File: file, Line: line, EndLine: line, Msg: "check: " + err.Error(), Err: err}
	}
	if n := len(config.SkipRules) + len(config.ExperimentalRules); n > maxRules {
		// Each instruction with a check of its own has a copy of the list.
		return nil, nil, &parser.Error{File: file, Line: line, EndLine: line, Msg: fmt.Sprintf("check: %d rules are more than there are", n)}
	}
	found := &Findings{seen: map[Warning]bool{}}
	config.Warn = func(rule, description, url, msg string, at []moby.Range) {
		start, end := parser.Lines(at)
		found.seen[Warning{
			Rule: rule, Description: description, URL: url, Msg: msg,
			Location: llb.Location{File: file, StartLine: start, EndLine: end},
		}] = true
	}
	return linter.New(config), found, nil
}

// Error returns the error for findings where check=error=true asks for one.
func Error(lint *linter.Linter, file string) error {
	if !lint.ReturnAsError || len(*lint.CalledRules) == 0 {
		return nil
	}
	rules := slices.Clone(*lint.CalledRules)
	slices.Sort(rules)
	return &parser.Error{File: file, Msg: "lint violation found for rules: " + strings.Join(slices.Compact(rules), ", ")}
}

// Stages checks the names of stages and the case of the keywords.
func Stages(lint *linter.Linter, stages []instructions.Stage) {
	names := map[string]bool{}
	lower, upper := 0, 0
	count := func(keyword string) {
		switch keyword {
		case strings.ToLower(keyword):
			lower++
		case strings.ToUpper(keyword):
			upper++
		}
	}
	for _, s := range stages {
		if s.Name == "scratch" || s.Name == "context" {
			lint.Run(&linter.RuleReservedStageName, s.Location, linter.RuleReservedStageName.Format(s.Name))
		}
		if names[s.Name] {
			lint.Run(&linter.RuleDuplicateStageName, s.Location, linter.RuleDuplicateStageName.Format(s.Name))
		}
		names[s.Name] = s.Name != ""
		count(s.OrigCmd)
		for _, c := range s.Commands {
			count(c.Name())
		}
	}
	casing, change := "uppercase", strings.ToUpper
	if lower > upper {
		casing, change = "lowercase", strings.ToLower
	}
	check := func(keyword string, at []moby.Range) {
		if keyword != change(keyword) {
			lint.Run(&linter.RuleConsistentInstructionCasing, at, linter.RuleConsistentInstructionCasing.Format(keyword, casing))
		}
	}
	for _, s := range stages {
		check(s.OrigCmd, s.Location)
		for _, c := range s.Commands {
			check(c.Name(), c.Location())
		}
	}
}

// BasePlatform reports a base image of another platform than the one that was asked for.
func BasePlatform(lint *linter.Linter, at []moby.Range, name string, want, got llb.Platform) {
	if want.OS == got.OS && want.Architecture == got.Architecture {
		return
	}
	msg := linter.RuleInvalidBaseImagePlatform.Format(name, want.Normalize().String(), got.Normalize().String())
	lint.Run(&linter.RuleInvalidBaseImagePlatform, at, msg)
}

// UsedOnce reports the earlier of two instructions of which only the last one counts; last is where that was.
func UsedOnce(c instructions.Command, last *[]moby.Range, lint *linter.Linter) {
	if *last != nil {
		lint.Run(&linter.RuleMultipleInstructionsDisallowed, *last, linter.RuleMultipleInstructionsDisallowed.Format(c.Name()))
	}
	*last = c.Location()
}

// LegacyKeyValue reports "ENV key value".
func LegacyKeyValue(c instructions.Command, kv instructions.KeyValuePair, lint *linter.Linter) {
	if kv.NoDelim {
		lint.Run(&linter.RuleLegacyKeyValueFormat, c.Location(), linter.RuleLegacyKeyValueFormat.Format(c.Name()))
	}
}

var (
	secretName = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`(?i)(_|^)(apikey|auth|credentials?|key|password|pword|passwd|secret|token)(_|$)`)
	})
	publicName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?i)(_|^)(public|file|version)(_|$)`) })
)

// IsSecretName reports whether the check SecretsUsedInArgOrEnv takes a variable of this name for a secret. What shows values to people
// leaves out those of such variables.
func IsSecretName(name string) bool {
	return secretName().MatchString(name) && !publicName().MatchString(name)
}

// Hidden is shown in place of the value of a secret.
const Hidden = "****"

// Secret reports a variable whose name is that of a secret.
func Secret(keyword, name string, at []moby.Range, lint *linter.Linter) {
	if IsSecretName(name) {
		lint.Run(&linter.RuleSecretsUsedInArgOrEnv, at, linter.RuleSecretsUsedInArgOrEnv.Format(keyword, name))
	}
}

// Ignored reports sources of COPY and ADD that the .dockerignore m excludes; with exceptions in it that cannot be known beforehand.
func Ignored(lint *linter.Linter, m *ignore.Matcher, keyword string, sources []string, at []moby.Range) {
	if m == nil || m.Exceptions() {
		return
	}
	everything := slices.ContainsFunc(m.Patterns(), func(p string) bool { return p == "*" || p == "**" || p == "**/*" })
	for _, src := range sources {
		name := path.Clean(src)
		isRoot := name == "." || name == "/"
		if ignored, _ := m.Ignored(name, ignore.Info{}); everything && (isRoot || path.IsAbs(name)) || ignored && !isRoot {
			lint.Run(&linter.RuleCopyIgnoredFile, at, linter.RuleCopyIgnoredFile.Format(keyword, name))
		}
	}
}
