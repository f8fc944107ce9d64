package frontend

import (
	"maps"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"github.com/kilnbuild/kiln/frontend/lint"
	"github.com/kilnbuild/kiln/frontend/scan"
	"github.com/kilnbuild/kiln/frontend/source"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/parser"
)

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
		// What has no variable is an error of the build itself.
		if _, err := source.NormalizeRef(name); err != nil && strings.Contains(s.BaseName, "$") {
			b.check.Run(&linter.RuleInvalidDefaultArgInFrom, s.Location, linter.RuleInvalidDefaultArgInFrom.Format(s.BaseName))
		}
	}
}

// lintFromArgs reports the variables of FROM that no ARG declares.
func (b *builder) lintFromArgs(s *stage, unmatched map[string]struct{}, check *linter.Linter) {
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
			match, _ := b.suggest.Search(name, func() []string { return append(b.global.Keys(), b.declared...) }, true)
			check.Run(&linter.RuleUndefinedArgInFrom, s.src.Location, linter.RuleUndefinedArgInFrom.Format(name, match))
		}
	}
}

// lintPlatform checks FROM --platform, which was v before and after its variables were expanded.
func (b *builder) lintPlatform(s *stage, expr string, v shell.ProcessWordResult, check *linter.Linter) {
	if len(v.Unmatched) > 0 {
		return
	}
	if len(v.Matched) == 0 {
		p, err := llb.ParsePlatform(v.Result, b.opts.BuildPlatform)
		if err == nil && !strings.Contains(s.src.Name, p.OS) && !strings.Contains(s.src.Name, p.Architecture) {
			check.Run(&linter.RuleFromPlatformFlagConstDisallowed, s.src.Location, linter.RuleFromPlatformFlagConstDisallowed.Format(v.Result))
		}
		return
	}
	target, _ := b.global.Get("TARGETPLATFORM")
	if _, ok := v.Matched["TARGETPLATFORM"]; ok && len(v.Matched) == 1 && v.Result == target {
		check.Run(&linter.RuleRedundantTargetPlatform, s.src.Location, linter.RuleRedundantTargetPlatform.Format(expr))
	}
}

// lintUnmatched reports the variables of an instruction that are not set and that no ARG declares.
func (b *builder) lintUnmatched(s *stage, c instructions.Command, unmatched map[string]struct{}, check *linter.Linter) {
	for name := range unmatched {
		if _, declared := s.args.Get(name); declared || scan.IsArg(name) {
			continue
		}
		match, _ := b.suggest.Search(name, s.env.Keys, true)
		check.Run(&linter.RuleUndefinedVar, c.Location(), linter.RuleUndefinedVar.Format(name, match))
	}
}

// advise gives advice on the stages that target needs, and on build arguments.
func (b *builder) advise(target *stage) error {
	final := map[*stage]bool{}
	for s := target; s != nil; s = s.base {
		final[s] = true
	}
	global := b.global.Keys()
	var stages []lint.Stage
	for _, s := range b.stages {
		if s.lowered && !s.implicit && !s.isContext {
			stages = append(stages, lint.Stage{Commands: s.src.Commands, Env: s.env, Global: global, Final: final[s]})
		}
	}
	if err := lint.Advise(b.ctx, b.check, stages); err != nil {
		return err
	}
	b.adviseBuildArgs()
	return nil
}

// adviseBuildArgs reports the values of --build-arg that nothing takes.
func (b *builder) adviseBuildArgs() {
	declared := append(b.global.Keys(), b.declared...)
	for _, s := range b.stages {
		for _, c := range s.commands {
			if arg, ok := c.Command.(*instructions.ArgCommand); ok {
				for _, a := range arg.Args {
					declared = append(declared, a.Key)
				}
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(b.opts.BuildArgs)) {
		predefined := strings.HasPrefix(name, "BUILDKIT_") || name == epochArg ||
			slices.ContainsFunc(proxies, func(p string) bool { return strings.EqualFold(p, name) })
		if predefined || slices.Contains(declared, name) {
			continue
		}
		meant, _ := b.suggest.Search(name, func() []string { return declared }, false)
		lint.UnusedBuildArg(b.check, name, meant)
	}
}
