package complete

import (
	"context"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/cmd/internal/buildcmd"
	"github.com/kilnbuild/kiln/parser"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/spf13/cobra"
)

const (
	// patience is how long a shell is kept waiting for a Dockerfile to be read.
	patience = 2 * time.Second
	// maxDockerfile is how many bytes of a Dockerfile are read.
	maxDockerfile = 16 << 20
)

// dockerfile reads the Dockerfile that the command line names, if it is a file; nil if there is none, or it cannot be read.
func (r *Request) dockerfile() *parser.Dockerfile {
	from := contexts.Source{Context: "."}
	if len(r.args) > 0 {
		from.Context = r.args[0]
	}
	if f := r.cmd.Flag("file"); f != nil && f.Value.Type() == "string" {
		from.Dockerfile = f.Value.String()
	}
	path, err := from.DockerfilePath()
	if err != nil || path == "-" {
		return nil
	}
	text, err := contexts.ReadFile(path, maxDockerfile)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(r.cmd.Context(), patience)
	defer cancel()
	df, err := parser.Parse(ctx, path, text, &linter.Linter{})
	if err != nil {
		return nil
	}
	return df
}

// stages offers the named stages of the Dockerfile.
func stages(r *Request) ([]string, cobra.ShellCompDirective) {
	var out []string
	if df := r.dockerfile(); df != nil {
		for _, s := range df.Stages {
			out = append(out, s.Name+"\t"+s.DocComment)
		}
	}
	return out, none
}

// arguments offers the arguments of the Dockerfile.
func arguments(r *Request) ([]string, cobra.ShellCompDirective) {
	if strings.Contains(r.word, "=") {
		return nil, none
	}
	df := r.dockerfile()
	if df == nil {
		return nil, more
	}
	var out []string
	add := func(c instructions.ArgCommand) {
		for _, a := range c.Args {
			out = append(out, a.Key+"=\t"+a.DocComment)
		}
	}
	for _, c := range df.Args {
		add(c)
	}
	for _, s := range df.Stages {
		for _, c := range s.Commands {
			if c, ok := c.(*instructions.ArgCommand); ok {
				add(*c)
			}
		}
	}
	return out, more
}

// contextNames offers what a named context can stand for: stages, and images that stages begin with.
func contextNames(r *Request) ([]string, cobra.ShellCompDirective) {
	if strings.Contains(r.word, "=") {
		return nil, files
	}
	var out []string
	if df := r.dockerfile(); df != nil {
		for _, s := range df.Stages {
			out = append(out, s.Name+"=\tstage")
			if s.BaseName != "scratch" && !strings.Contains(s.BaseName, "$") {
				out = append(out, s.BaseName+"=\tbase of "+s.Name)
			}
		}
	}
	return out, more
}

// mountIDs offers the IDs of secrets or agents that RUN asks for.
func mountIDs(kind instructions.MountType, prefix string) source {
	return func(r *Request) ([]string, cobra.ShellCompDirective) {
		if strings.Contains(strings.TrimPrefix(r.word, prefix), "=") || strings.Contains(r.word, ",") {
			return nil, files
		}
		var out []string
		if kind == instructions.MountTypeSSH {
			out = append(out, "default\tthe agent of $SSH_AUTH_SOCK")
		}
		df := r.dockerfile()
		if df == nil {
			return out, none
		}
		for _, s := range df.Stages {
			for _, c := range s.Commands {
				run, ok := c.(*instructions.RunCommand)
				if !ok || run.Expand(func(word string) (string, error) { return word, nil }) != nil {
					continue
				}
				for _, m := range instructions.GetMounts(run) {
					if m.Type == kind && m.CacheID != "" {
						out = append(out, prefix+m.CacheID)
					}
				}
			}
		}
		return out, none
	}
}

// services offers the services of the compose file that are not named yet.
func services(r *Request) ([]string, cobra.ShellCompDirective) {
	names, _, err := buildcmd.Services(r.cmd)
	if err != nil {
		return nil, none
	}
	return without(names, r.args), none
}

// profiles offers the profiles of the compose file.
func profiles(r *Request) ([]string, cobra.ShellCompDirective) {
	_, names, err := buildcmd.Services(r.cmd)
	if err != nil {
		return nil, none
	}
	return names, none
}
