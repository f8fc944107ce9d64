package frontend

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
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"github.com/kilnbuild/kiln/internal/ignore"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/parser"
)

// warnings are the findings, each once however many platforms there are.
type warnings struct {
	seen map[Warning]bool
}

// sorted returns the findings in the order of the lines.
func (w *warnings) sorted() []Warning {
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

// newLinter returns the linter that the check directive or BUILDKIT_DOCKERFILE_CHECK configures, and what will hold its
// findings.
func newLinter(dockerfile []byte, o *Options) (*linter.Linter, *warnings, error) {
	text, line := parser.Directive("check", dockerfile)
	if v, ok := o.BuildArgs["BUILDKIT_DOCKERFILE_CHECK"]; ok {
		text, line = v, 0
	}
	config, err := linter.ParseLintOptions(text)
	if err != nil {
		return nil, nil, &parser.Error{File: o.Filename, Line: line, EndLine: line, Msg: "check: " + err.Error(), Err: err}
	}
	if n := len(config.SkipRules) + len(config.ExperimentalRules); n > maxRules {
		// Each instruction with a check of its own has a copy of the list.
		return nil, nil, &parser.Error{File: o.Filename, Line: line, EndLine: line, Msg: fmt.Sprintf("check: %d rules are more than there are", n)}
	}
	found := &warnings{seen: map[Warning]bool{}}
	config.Warn = func(rule, description, url, msg string, at []moby.Range) {
		start, end := parser.Lines(at)
		found.seen[Warning{
			Rule: rule, Description: description, URL: url, Msg: msg,
			Location: llb.Location{File: o.Filename, StartLine: start, EndLine: end},
		}] = true
	}
	return linter.New(config), found, nil
}

// lintError returns the error for findings where check=error=true asks for one.
func lintError(lint *linter.Linter, file string) error {
	if !lint.ReturnAsError || len(*lint.CalledRules) == 0 {
		return nil
	}
	rules := slices.Clone(*lint.CalledRules)
	slices.Sort(rules)
	return &parser.Error{File: file, Msg: "lint violation found for rules: " + strings.Join(slices.Compact(rules), ", ")}
}

// lintStages checks the names of stages and the case of the keywords.
func (b *builder) lintStages(stages []instructions.Stage) {
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
			b.lint.Run(&linter.RuleReservedStageName, s.Location, linter.RuleReservedStageName.Format(s.Name))
		}
		if names[s.Name] {
			b.lint.Run(&linter.RuleDuplicateStageName, s.Location, linter.RuleDuplicateStageName.Format(s.Name))
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
			b.lint.Run(&linter.RuleConsistentInstructionCasing, at, linter.RuleConsistentInstructionCasing.Format(keyword, casing))
		}
	}
	for _, s := range stages {
		check(s.OrigCmd, s.Location)
		for _, c := range s.Commands {
			check(c.Name(), c.Location())
		}
	}
}

// lintDefaultArgs checks that the base images have names when no build argument is given.
func (b *builder) lintDefaultArgs(df *parser.Dockerfile) {
	env, err := b.metaArgs(df, nil)
	if err != nil {
		return
	}
	for _, s := range df.Stages {
		name, _, err := b.words.Word(s.BaseName, env)
		if err != nil {
			return
		}
		if _, err := normalizeRef(name); err != nil {
			b.lint.Run(&linter.RuleInvalidDefaultArgInFrom, s.Location, linter.RuleInvalidDefaultArgInFrom.Format(s.BaseName))
		}
	}
}

// lintFromArgs reports the variables of FROM that no ARG declares.
func (b *builder) lintFromArgs(s *stage, unmatched map[string]struct{}, lint *linter.Linter) {
	if len(unmatched) == 0 {
		return
	}
	if b.isDeclared == nil {
		b.isDeclared = map[string]bool{}
		for _, name := range b.declared {
			b.isDeclared[name] = true
		}
	}
	for name := range unmatched {
		if _, ok := b.global.Get(name); !ok && !b.isDeclared[name] {
			match, _ := b.suggest.search(name, func() []string { return append(b.global.Keys(), b.declared...) }, true)
			lint.Run(&linter.RuleUndefinedArgInFrom, s.src.Location, linter.RuleUndefinedArgInFrom.Format(name, match))
		}
	}
}

// lintPlatform checks FROM --platform, which was v before and after its variables were expanded.
func (b *builder) lintPlatform(s *stage, expr string, v shell.ProcessWordResult, lint *linter.Linter) {
	if len(v.Unmatched) > 0 {
		return
	}
	if len(v.Matched) == 0 {
		p, err := llb.ParsePlatform(v.Result, b.opts.BuildPlatform)
		if err == nil && !strings.Contains(s.src.Name, p.OS) && !strings.Contains(s.src.Name, p.Architecture) {
			lint.Run(&linter.RuleFromPlatformFlagConstDisallowed, s.src.Location, linter.RuleFromPlatformFlagConstDisallowed.Format(v.Result))
		}
		return
	}
	target, _ := b.global.Get("TARGETPLATFORM")
	if _, ok := v.Matched["TARGETPLATFORM"]; ok && len(v.Matched) == 1 && v.Result == target {
		lint.Run(&linter.RuleRedundantTargetPlatform, s.src.Location, linter.RuleRedundantTargetPlatform.Format(expr))
	}
}

// lintBasePlatform reports a base image of another platform than the one that was asked for.
func (b *builder) lintBasePlatform(s *stage, name string, want, got llb.Platform) {
	if want.OS == got.OS && want.Architecture == got.Architecture {
		return
	}
	lint := b.lint.WithMergedConfigFromComments(s.src.Comments)
	msg := linter.RuleInvalidBaseImagePlatform.Format(name, want.Normalize().String(), got.Normalize().String())
	lint.Run(&linter.RuleInvalidBaseImagePlatform, s.src.Location, msg)
}

// lintUnmatched reports the variables of an instruction that are not set and that no ARG declares.
func (b *builder) lintUnmatched(s *stage, c instructions.Command, unmatched map[string]struct{}, lint *linter.Linter) {
	for name := range unmatched {
		if _, declared := s.args.Get(name); declared || sbomArgs[name] {
			continue
		}
		match, _ := b.suggest.search(name, s.env.Keys, true)
		lint.Run(&linter.RuleUndefinedVar, c.Location(), linter.RuleUndefinedVar.Format(name, match))
	}
}

// lintUsedOnce reports the earlier of two instructions of which only the last one counts; last is where that was.
func lintUsedOnce(c instructions.Command, last *[]moby.Range, lint *linter.Linter) {
	if *last != nil {
		lint.Run(&linter.RuleMultipleInstructionsDisallowed, *last, linter.RuleMultipleInstructionsDisallowed.Format(c.Name()))
	}
	*last = c.Location()
}

// lintLegacyKeyValue reports "ENV key value".
func lintLegacyKeyValue(c instructions.Command, kv instructions.KeyValuePair, lint *linter.Linter) {
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

// lintSecret reports a variable whose name is that of a secret.
func lintSecret(keyword, name string, at []moby.Range, lint *linter.Linter) {
	if IsSecretName(name) {
		lint.Run(&linter.RuleSecretsUsedInArgOrEnv, at, linter.RuleSecretsUsedInArgOrEnv.Format(keyword, name))
	}
}

// lintIgnored reports sources that the .dockerignore excludes; with exceptions in it that cannot be known beforehand.
func (b *builder) lintIgnored(keyword string, sources []string, at []moby.Range, lint *linter.Linter) {
	if b.opts.Ignore == nil || b.opts.Ignore.Exceptions() {
		return
	}
	for _, src := range sources {
		name := path.Clean(src)
		if name == "." || name == "/" {
			everything := func(p string) bool { return p == "*" || p == "**" || p == "**/*" }
			if !slices.ContainsFunc(b.opts.Ignore.Patterns(), everything) {
				continue
			}
		}
		if ignored, _ := b.opts.Ignore.Ignored(name, ignore.Info{}); ignored {
			lint.Run(&linter.RuleCopyIgnoredFile, at, linter.RuleCopyIgnoredFile.Format(keyword, name))
		}
	}
}
