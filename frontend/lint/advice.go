package lint

import (
	"context"
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

	"github.com/kilnbuild/kiln/internal/remoteurl"
)

// The checks that BuildKit does not have. They are skipped as the others are, and fail a build only where the check directive
// names them in experimental=: a Dockerfile that passes docker build --check passes here.
var (
	ruleCopyBeforeInstall = linter.LinterRule[func(copied, installer string) string]{
		Name:        "CopyBeforeInstall",
		Description: "A change of the files that are copied runs the installation below again, which does not need them",
		Format: func(copied, installer string) string {
			return fmt.Sprintf("%s makes %q below run again after each change of what is copied, and needs none of it", copied, installer)
		},
	}
	ruleCopyBeforeDependencies = linter.LinterRule[func(copied, installer string) string]{
		Name:        "CopyBeforeDependencies",
		Description: "Dependencies are installed again after each change of any file; copy the files that list them first",
		Format: func(copied, installer string) string {
			return fmt.Sprintf("%s makes %q below run again after each change of any file: "+
				"copy the files that list dependencies first", copied, installer)
		},
	}
	ruleAptGetUpdateAlone = linter.LinterRule[func() string]{
		Name:        "AptGetUpdateAlone",
		Description: "apt-get update in a layer of its own is kept by the cache, and later installs use its old lists",
		Format: func() string {
			return "apt-get update and apt-get install should be in one RUN: the cache keeps the lists, and they grow old"
		},
	}
	rulePackageCacheInLayer = linter.LinterRule[func(tool, remedy string) string]{
		Name:        "PackageCacheInLayer",
		Description: "A package manager's cache makes the image larger and is of no use in it",
		Format: func(tool, remedy string) string {
			return fmt.Sprintf("%s leaves its cache in the layer: %s", tool, remedy)
		},
	}
	ruleSeveralSourcesWithoutSlash = linter.LinterRule[func(keyword, dest string) string]{
		Name:        "SeveralSourcesWithoutSlash",
		Description: "With several sources the destination is a directory, and should end with a slash",
		Format: func(keyword, dest string) string {
			return fmt.Sprintf("%s has several sources, so the destination should be %s/: "+
				"without the slash, and with no such directory, each file replaces the one before", keyword, dest)
		},
	}
	ruleUnusedBuildArg = linter.LinterRule[func(name, hint string) string]{
		Name:        "UnusedBuildArg",
		Description: "A build argument that no ARG declares has no effect",
		Format: func(name, hint string) string {
			return fmt.Sprintf("no ARG declares the build argument %s%s", name, hint)
		},
	}
)

// advice are the rules above by name.
var advice = map[string]bool{
	ruleCopyBeforeInstall.Name: true, ruleCopyBeforeDependencies.Name: true, ruleAptGetUpdateAlone.Name: true,
	rulePackageCacheInLayer.Name: true, ruleSeveralSourcesWithoutSlash.Name: true, ruleUnusedBuildArg.Name: true,
	ruleExecFormWithoutJSON.Name: true, ruleVariableInExecForm.Name: true, ruleArgBeforeFrom.Name: true, ruleCopyOutsideContext.Name: true,
}

// IsAdvice reports whether a rule is one that BuildKit does not have: it makes no check fail unless the check directive names it.
func IsAdvice(rule string) bool { return advice[rule] }

// advise reports a finding of one of the rules above. It counts for check=error=true only where experimental= names it.
func advise(lint *linter.Linter, rule linter.LinterRuleI, at []moby.Range, msg string) {
	n := len(*lint.CalledRules)
	lint.Run(rule, at, msg)
	if _, named := lint.ExperimentalRules[rule.RuleName()]; !named {
		*lint.CalledRules = (*lint.CalledRules)[:n]
	}
}

// Stage is a stage that is built.
type Stage struct {
	// Commands are its instructions as they are lowered, without triggers of its base.
	Commands []instructions.Command
	// Env is its environment after the last of them.
	Env shell.EnvGetter
	// Global are the names of the ARGs above the first FROM.
	Global []string
	// Final is set for the stages whose layers the target has.
	Final bool
}

// adviser gives advice on stages. comparisons is what is left of maxComparisons.
type adviser struct {
	ctx         context.Context
	lint        *linter.Linter
	comparisons int
}

// Advise runs the rules above on stages. What is left in a layer matters in final stages alone. The error is the cause of ctx's end.
func Advise(ctx context.Context, lint *linter.Linter, stages []Stage) error {
	a := &adviser{ctx, lint, maxComparisons}
	for _, s := range stages {
		var copied []instructions.Command
		declared := map[string]bool{}
		isSet := func(name string) bool {
			_, ok := s.Env.Get(name)
			return ok || declared[name]
		}
		for _, c := range s.Commands {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			lint := lint.WithMergedConfigFromComments(c.Comments())
			switch c := c.(type) {
			case *instructions.CopyCommand:
				adviseDest("COPY", c.SourcesAndDest, c.Location(), lint)
				if c.From == "" && len(c.SourcePaths) > 0 {
					adviseOutside(c.SourcePaths, c.Location(), lint)
					copied = append(copied, c)
				}
			case *instructions.AddCommand:
				adviseDest("ADD", c.SourcesAndDest, c.Location(), lint)
				if slices.ContainsFunc(c.SourcePaths, func(src string) bool { return !remoteurl.IsHTTP(src) && !remoteurl.IsGit(src) }) {
					copied = append(copied, c)
				}
			case *instructions.ArgCommand:
				for _, arg := range c.Args {
					declared[arg.Key] = true
				}
			case *instructions.CmdCommand:
				adviseForm(&c.ShellDependantCmdLine, isSet, c.Location(), lint)
			case *instructions.EntrypointCommand:
				adviseForm(&c.ShellDependantCmdLine, isSet, c.Location(), lint)
			case *instructions.RunCommand:
				adviseForm(&c.ShellDependantCmdLine, isSet, c.Location(), lint)
				adviseArgs(c, s.Global, isSet, lint)
				script := scriptOf(c)
				copied = a.order(copied, script)
				if s.Final {
					adviseCaches(s.Env, c, script, lint)
				}
				adviseUpdate(c, script, lint)
			}
		}
	}
	return nil
}

// adviseDest reports several sources and a destination without a slash.
func adviseDest(keyword string, c instructions.SourcesAndDest, at []moby.Range, lint *linter.Linter) {
	base := path.Base(c.DestPath)
	if len(c.SourcePaths)+len(c.SourceContents) < 2 || c.DestPath == "" || strings.HasSuffix(c.DestPath, "/") || base == "." || base == ".." {
		return
	}
	advise(lint, &ruleSeveralSourcesWithoutSlash, at, ruleSeveralSourcesWithoutSlash.Format(keyword, c.DestPath))
}

// program is one command of a shell script: its words, without variables that are set for it.
type program []string

// is reports whether the program is one of these names.
func (p program) is(names ...string) bool {
	return len(p) > 0 && slices.Contains(names, path.Base(p[0]))
}

// does reports whether the program's first word that is not an option is one of these.
func (p program) does(names ...string) bool {
	for _, word := range p[1:] {
		if !strings.HasPrefix(word, "-") {
			return slices.Contains(names, word)
		}
	}
	return false
}

var (
	separators = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`&&|\|\||[;|\n(){}]`) })
	assignment = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=`) })
)

// scriptOf splits the text of RUN into its programs. It knows so much of a shell's language as the checks need.
func scriptOf(c *instructions.RunCommand) []program {
	if !c.PrependShell && len(c.CmdLine) > 0 {
		return []program{c.CmdLine}
	}
	var lines strings.Builder
	lines.WriteString(strings.Join(c.CmdLine, " "))
	for _, f := range c.Files {
		lines.WriteString("\n" + f.Data)
	}
	text := strings.ReplaceAll(lines.String(), "\\\n", " ")
	var script []program
	for _, part := range separators().Split(text, -1) {
		words := strings.Fields(part)
		for len(words) > 0 && (assignment().MatchString(words[0]) ||
			slices.Contains([]string{"sudo", "env", "exec", "then", "do", "if", "!"}, words[0])) {
			words = words[1:]
		}
		if len(words) > 0 && !strings.HasPrefix(words[0], "#") {
			script = append(script, words)
		}
	}
	return script
}

// installs reports whether a program installs packages of the distribution.
func (p program) installs() bool {
	switch {
	case p.is("apt-get", "apt", "aptitude"):
		return p.does("install", "build-dep")
	case p.is("apk"):
		return p.does("add")
	case p.is("dnf", "yum", "microdnf", "tdnf", "zypper"):
		return p.does("install", "in")
	}
	return false
}

// beside are programs that stand beside an installation and need nothing of the build context.
var beside = []string{
	"apt-get", "apt", "aptitude", "apk", "dnf", "yum", "microdnf", "tdnf", "zypper", "rm", "mkdir", "set", "echo", "true", "export",
	"useradd", "groupadd", "adduser", "addgroup", "update-ca-certificates", "locale-gen", "curl", "wget",
}

// fetches reports whether a program installs a project's dependencies, for which the files that list them are enough.
func (p program) fetches() bool {
	switch {
	case p.is("npm", "pnpm"):
		return p.does("ci", "install", "i")
	case p.is("yarn"):
		return len(p) == 1 || p.does("install")
	case p.is("pip", "pip3"):
		return p.does("install") && slices.Contains(p, "-r")
	case p.is("bundle", "composer"):
		return p.does("install")
	case p.is("go"):
		return p.does("mod") && slices.Contains(p, "download")
	case p.is("cargo"):
		return p.does("fetch")
	}
	return false
}

// order reports what was copied from the context before a slow step that does not need it, and returns the rest.
func (a *adviser) order(copied []instructions.Command, script []program) []instructions.Command {
	var rule linter.LinterRuleI
	var format func(copied, installer string) string
	var needless func(c instructions.SourcesAndDest) bool
	var slow program
	if i := slices.IndexFunc(script, program.installs); i >= 0 {
		if slices.ContainsFunc(script, func(p program) bool { return !p.is(beside...) }) {
			return copied
		}
		rule, format, slow = &ruleCopyBeforeInstall, ruleCopyBeforeInstall.Format, script[i]
		needless = func(c instructions.SourcesAndDest) bool { return !a.configures(c, script) }
	} else if i := slices.IndexFunc(script, program.fetches); i >= 0 {
		if slices.ContainsFunc(script, func(p program) bool { return !p.fetches() && !p.is("set", "cd") }) {
			return copied
		}
		rule, format, slow = &ruleCopyBeforeDependencies, ruleCopyBeforeDependencies.Format, script[i]
		needless = func(c instructions.SourcesAndDest) bool {
			return slices.ContainsFunc(c.SourcePaths, func(src string) bool { src = path.Clean(src); return src == "." || src == "/" })
		}
	} else {
		return copied
	}
	return slices.DeleteFunc(copied, func(c instructions.Command) bool {
		if a.ctx.Err() != nil || a.comparisons <= 0 {
			return false
		}
		a.comparisons--
		sources := sourcesOf(c)
		if !needless(sources) {
			return false
		}
		lint := a.lint.WithMergedConfigFromComments(c.Comments())
		text := strings.ToUpper(c.Name()) + " " + strings.Join(sources.SourcePaths, " ")
		advise(lint, rule, c.Location(), format(text, strings.Join(slow[:min(len(slow), 2)], " ")))
		return true
	})
}

func sourcesOf(c instructions.Command) instructions.SourcesAndDest {
	switch c := c.(type) {
	case *instructions.CopyCommand:
		return c.SourcesAndDest
	case *instructions.AddCommand:
		return c.SourcesAndDest
	}
	return instructions.SourcesAndDest{}
}

// configures reports whether an installation may need the copied files: a configuration, a key, or a file that it names.
func (a *adviser) configures(c instructions.SourcesAndDest, script []program) bool {
	for _, dir := range []string{"/etc", "/usr", "/tmp", "/root", "/var"} {
		if c.DestPath == dir || strings.HasPrefix(c.DestPath, dir+"/") {
			return true
		}
	}
	paths := append(slices.Clone(c.SourcePaths), c.DestPath)
	for _, p := range script {
		for _, word := range p {
			if a.comparisons -= len(paths); a.comparisons <= 0 {
				return true // it is not known
			}
			for _, src := range paths {
				if base := path.Base(src); base != "." && base != "/" && strings.Contains(word, strings.Trim(base, "*")) {
					return true
				}
			}
		}
	}
	return false
}

// maxComparisons is how many words of scripts are compared with copied files, in the whole build, to give advice.
const maxComparisons = 1 << 24

// adviseUpdate reports package lists that a layer keeps for later installations.
func adviseUpdate(c *instructions.RunCommand, script []program, lint *linter.Linter) {
	updates := slices.ContainsFunc(script, func(p program) bool { return p.is("apt-get", "apt") && p.does("update") })
	uses := slices.ContainsFunc(script, func(p program) bool {
		return p.is("apt-get", "apt", "aptitude") && !p.does("update", "clean", "autoclean") ||
			p.is("dpkg", "mmdebstrap") || p.is("bash", "sh", "apt-cache")
	})
	if updates && !uses && !mountsAt(c, "/var/lib/apt") {
		advise(lint, &ruleAptGetUpdateAlone, c.Location(), ruleAptGetUpdateAlone.Format())
	}
}

// mountsAt reports whether RUN mounts something at, above or below one of these directories.
func mountsAt(c *instructions.RunCommand, dirs ...string) bool {
	for _, m := range instructions.GetMounts(c) {
		target := path.Clean(m.Target) + "/"
		for _, dir := range dirs {
			if strings.HasPrefix(target, dir+"/") || strings.HasPrefix(dir+"/", target) {
				return true
			}
		}
	}
	return false
}

// adviseCaches reports the caches of package managers that stay in a layer.
func adviseCaches(env shell.EnvGetter, c *instructions.RunCommand, script []program, lint *linter.Linter) {
	found := func(match func(p program) bool) bool { return slices.ContainsFunc(script, match) }
	// What is asked of the whole script or of all mounts is found out once: a script may have very many installations.
	known := map[string]bool{}
	once := func(name string, find func() bool) bool {
		is, ok := known[name]
		if !ok {
			is = find()
			known[name] = is
		}
		return is
	}
	removes := func(dir string) bool {
		return once("rm "+dir, func() bool {
			return found(func(p program) bool {
				return p.is("rm", "find") && slices.ContainsFunc(p, func(word string) bool { return strings.Contains(word, dir) })
			})
		})
	}
	mounts := func(dirs ...string) bool {
		return once("mount "+dirs[0], func() bool { return mountsAt(c, dirs...) })
	}
	report := func(tool, remedy string) {
		advise(lint, &rulePackageCacheInLayer, c.Location(), rulePackageCacheInLayer.Format(tool, remedy))
	}
	for _, p := range script {
		switch {
		case p.is("apt-get", "apt") && p.installs():
			if !removes("/var/lib/apt") && !mounts("/var/lib/apt") && !removes("/var/cache") {
				report(p[0]+" install", "remove /var/lib/apt/lists/* in the same RUN, or use --mount=type=cache,target=/var/lib/apt")
				return
			}
		case p.is("apk") && p.installs():
			if !slices.Contains(p, "--no-cache") && !removes("/var/cache/apk") && !mounts("/var/cache/apk", "/etc/apk/cache") {
				report("apk add", "use apk add --no-cache, or --mount=type=cache,target=/var/cache/apk")
				return
			}
		case p.is("dnf", "yum", "microdnf", "tdnf", "zypper") && p.installs():
			cleans := once("clean", func() bool { return found(func(p program) bool { return p.does("clean") }) })
			if !cleans && !removes("/var/cache") && !mounts("/var/cache") {
				report(p[0]+" install", "run "+p[0]+" clean all in the same RUN, or use --mount=type=cache,target=/var/cache")
				return
			}
		case p.is("pip", "pip3") && p.does("install"):
			_, off := env.Get("PIP_NO_CACHE_DIR")
			if !off && !slices.Contains(p, "--no-cache-dir") && !removes(".cache") &&
				!mounts("/root/.cache") && !once("pip", func() bool { return mountsNamed(c, "pip") }) {
				report(p[0]+" install", "use --no-cache-dir, or --mount=type=cache,target=/root/.cache/pip")
				return
			}
		}
	}
}

// mountsNamed reports whether RUN mounts something whose target has part in it.
func mountsNamed(c *instructions.RunCommand, part string) bool {
	return slices.ContainsFunc(instructions.GetMounts(c), func(m *instructions.Mount) bool { return strings.Contains(m.Target, part) })
}

// UnusedBuildArg reports a build argument that nothing declares; meant is the name that it is near, "" for none.
func UnusedBuildArg(lint *linter.Linter, name, meant string) {
	hint := ""
	if meant != "" {
		hint = " (did you mean " + meant + "?)"
	}
	advise(lint, &ruleUnusedBuildArg, nil, ruleUnusedBuildArg.Format(name, hint))
}
