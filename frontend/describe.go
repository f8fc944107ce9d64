package frontend

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/moby/buildkit/frontend/dockerfile/linter"

	"github.com/kilnbuild/kiln/frontend/lint"
	"github.com/kilnbuild/kiln/frontend/mounts"
	"github.com/kilnbuild/kiln/frontend/outline"
	"github.com/kilnbuild/kiln/frontend/source"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/parser"
)

// ListTargets returns the stages of a Dockerfile. Errors are as Build's.
func ListTargets(ctx context.Context, dockerfile []byte, o Options) (*outline.TargetList, error) {
	o.Filename = cmp.Or(o.Filename, "Dockerfile")
	if err := source.CheckSyntax(o.Filename, dockerfile, o.BuildArgs); err != nil {
		return nil, err
	}
	df, err := parser.Parse(ctx, o.Filename, dockerfile, linter.New(&linter.Config{}))
	if err != nil {
		return nil, err
	}
	return outline.Targets(dockerfile, df), nil
}

// DescribeTarget returns what the target of o, for its first platform, can be given. Errors are as Build's.
func DescribeTarget(ctx context.Context, dockerfile []byte, o Options, r Resolver) (*outline.Outline, error) {
	o.Filename = cmp.Or(o.Filename, "Dockerfile")
	o.BuildPlatform = o.BuildPlatform.Normalize()
	o.AllStages = false
	if err := source.CheckSyntax(o.Filename, dockerfile, o.BuildArgs); err != nil {
		return nil, err
	}
	check, _, err := lint.New(dockerfile, o.Filename, o.BuildArgs)
	if err != nil {
		return nil, err
	}
	df, err := parser.Parse(ctx, o.Filename, dockerfile, check)
	if err != nil {
		return nil, err
	}
	platform := append(slices.Clone(o.Platforms), o.BuildPlatform)[0].Normalize()
	b := &builder{ctx: ctx, opts: &o, graph: &llb.Graph{}, images: &images{resolver: r}, check: check, target: platform}
	if _, err := b.build(dockerfile); err != nil {
		return nil, b.failed(err)
	}
	return outline.Describe(ctx, dockerfile, outline.Build{
		Dockerfile: df, Target: b.goal.number, Stages: b.described(), Given: b.buildArgs, Global: b.global, MountID: mounts.ID,
		Variables: func(word string) []string {
			v, _ := b.words.Expand(word, b.global)
			return slices.Collect(maps.Keys(v.Matched))
		},
	})
}

// described returns the stages of the Dockerfile that the target needs, each before those that it is built on and reads from.
func (b *builder) described() []outline.Stage {
	var out []outline.Stage
	seen := map[*stage]bool{}
	for todo := []*stage{b.goal}; len(todo) > 0; {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if s == nil || seen[s] || s.implicit {
			continue
		}
		seen[s] = true
		if !s.isContext {
			stage := outline.Stage{Number: s.number, Args: s.args}
			for _, c := range s.commands {
				stage.Commands = append(stage.Commands, c.Command)
			}
			out = append(out, stage)
		}
		for _, d := range slices.Backward(s.deps) {
			todo = append(todo, d.stage)
		}
		todo = append(todo, s.base)
	}
	return out
}
