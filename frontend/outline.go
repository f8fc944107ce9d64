package frontend

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	moby "github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/parser"
)

// Outline is what a target can be given: the result of BuildKit's subrequest frontend.outline, whose JSON this is.
type Outline struct {
	Name        string         `json:"name,omitempty"`
	Description string         `json:"description,omitempty"`
	Args        []OutlineArg   `json:"args,omitempty"`
	Secrets     []OutlineMount `json:"secrets,omitempty"`
	SSH         []OutlineMount `json:"ssh,omitempty"`
	Sources     [][]byte       `json:"sources,omitempty"`
}

// OutlineArg is a build argument that a target takes, with the value that it has.
type OutlineArg struct {
	Name        string          `json:"name"`
	Description string          `json:"description,omitempty"`
	Value       string          `json:"value,omitempty"`
	Location    *SourceLocation `json:"location,omitempty"`
}

// Shown returns the value as people may see it: Hidden for that of a variable that has the name of a secret.
func (a OutlineArg) Shown() string {
	if a.Value != "" && IsSecretName(a.Name) {
		return Hidden
	}
	return a.Value
}

// OutlineMount is a secret or an ssh agent that a target asks for.
type OutlineMount struct {
	Name     string          `json:"name"`
	Required bool            `json:"required,omitempty"`
	Location *SourceLocation `json:"location,omitempty"`
}

// TargetList are the stages of a Dockerfile: the result of BuildKit's subrequest frontend.targets, whose JSON this is.
type TargetList struct {
	Targets []Target `json:"targets"`
	Sources [][]byte `json:"sources"`
}

// Target is a stage that can be built.
type Target struct {
	Name        string          `json:"name,omitempty"`
	Default     bool            `json:"default,omitempty"`
	Description string          `json:"description,omitempty"`
	Base        string          `json:"base,omitempty"`
	Platform    string          `json:"platform,omitempty"`
	Location    *SourceLocation `json:"location,omitempty"`
}

// SourceLocation is a place in the source, as BuildKit's JSON has it.
type SourceLocation struct {
	Ranges []SourceRange `json:"ranges,omitempty"`
}

// SourceRange is from one line to another, both counted from 1.
type SourceRange struct {
	Start SourcePosition `json:"start"`
	End   SourcePosition `json:"end"`
}

// SourcePosition is a line.
type SourcePosition struct {
	Line int `json:"line"`
}

// NewSourceLocation returns the lines from start to end, nil for none.
func NewSourceLocation(start, end int) *SourceLocation {
	if start == 0 {
		return nil
	}
	return &SourceLocation{[]SourceRange{{SourcePosition{start}, SourcePosition{max(start, end)}}}}
}

func sourceLocation(at []moby.Range) *SourceLocation { return NewSourceLocation(parser.Lines(at)) }

// ListTargets returns the stages of a Dockerfile. Errors are as Build's.
func ListTargets(ctx context.Context, dockerfile []byte, o Options) (*TargetList, error) {
	lint, _, err := newLinter(dockerfile, &o)
	if err != nil {
		return nil, err
	}
	df, err := parser.Parse(ctx, cmp.Or(o.Filename, "Dockerfile"), dockerfile, lint)
	if err != nil {
		return nil, err
	}
	list := &TargetList{Sources: [][]byte{dockerfile}}
	for i, s := range df.Stages {
		list.Targets = append(list.Targets, Target{
			Name: s.Name, Default: i == len(df.Stages)-1, Description: s.DocComment, Base: s.BaseName, Platform: s.Platform,
			Location: sourceLocation(s.Location),
		})
	}
	return list, nil
}

// DescribeTarget returns what the target of o, for its first platform, can be given. Errors are as Build's.
func DescribeTarget(ctx context.Context, dockerfile []byte, o Options, r Resolver) (*Outline, error) {
	o.Filename = cmp.Or(o.Filename, "Dockerfile")
	o.BuildPlatform = o.BuildPlatform.Normalize()
	o.AllStages = false
	if err := checkSyntax(dockerfile, &o); err != nil {
		return nil, err
	}
	lint, _, err := newLinter(dockerfile, &o)
	if err != nil {
		return nil, err
	}
	df, err := parser.Parse(ctx, o.Filename, dockerfile, lint)
	if err != nil {
		return nil, err
	}
	b := &builder{ctx: ctx, opts: &o, graph: &llb.Graph{}, images: &images{resolver: r}, lint: lint, target: append(slices.Clone(o.Platforms), o.BuildPlatform)[0].Normalize()}
	if _, err := b.build(dockerfile); err != nil {
		return nil, b.failed(err)
	}
	target, err := b.findTarget()
	if err != nil {
		return nil, parser.At(err, o.Filename, nil)
	}
	out := &Outline{Name: target.src.Name, Description: target.src.DocComment, Sources: [][]byte{dockerfile}}
	return out, out.describe(b, df)
}

// describe adds what the stages take. df is the Dockerfile as it is written; that of b's stages is expanded.
func (out *Outline) describe(b *builder, df *parser.Dockerfile) error {
	seen := map[string]bool{}
	used := map[string]bool{}
	for i, src := range df.Stages {
		s := b.stages[i]
		if !s.needed || s.replaced() {
			continue
		}
		b.use(used, src.BaseName)
		b.use(used, src.Platform)
		for _, c := range src.Commands {
			if err := b.ended(); err != nil {
				return err
			}
			switch c := c.(type) {
			case *instructions.ArgCommand:
				for _, a := range c.Args {
					_, given := b.buildArgs[a.Key]
					if _, global := b.global.Get(a.Key); global && a.Value == nil && !given {
						used[a.Key] = true
						continue
					}
					if !seen["arg "+a.Key] {
						seen["arg "+a.Key] = true
						lowered, _ := s.args.Get(a.Key)
						out.Args = append(out.Args, OutlineArg{a.Key, a.DocComment, lowered.ValueString(), sourceLocation(c.Location())})
					}
				}
			case *instructions.RunCommand:
				out.mounts(c, seen)
			}
		}
	}
	// Of the arguments above the first FROM, those that are used by what is used: the later may use the earlier.
	for _, c := range slices.Backward(df.Args) {
		for _, a := range slices.Backward(c.Args) {
			if !used[a.Key] {
				continue
			}
			if _, given := b.buildArgs[a.Key]; a.Value != nil && !given {
				b.use(used, *a.Value)
			}
			if !seen["arg "+a.Key] {
				seen["arg "+a.Key] = true
				value, _ := b.global.Get(a.Key)
				out.Args = append(out.Args, OutlineArg{a.Key, a.DocComment, value, sourceLocation(c.Location())})
			}
		}
	}
	slices.SortStableFunc(out.Args, func(x, y OutlineArg) int {
		return cmp.Compare(x.Location.Ranges[0].Start.Line, y.Location.Ranges[0].Start.Line)
	})
	return nil
}

// use adds the variables of a word to used.
func (b *builder) use(used map[string]bool, word string) {
	if v, err := b.words.Expand(word, b.global); err == nil {
		for name := range v.Matched {
			used[name] = true
		}
	}
}

// mounts adds the secrets and agents of RUN.
func (out *Outline) mounts(c *instructions.RunCommand, seen map[string]bool) {
	// Targets may have variables in them, but the type and id of a mount that is wrong were an error before.
	_ = c.Expand(func(word string) (string, error) { return word, nil })
	for _, m := range instructions.GetMounts(c) {
		var mount llb.Mount
		list := &out.Secrets
		switch m.Type {
		case instructions.MountTypeSecret:
			if secretMount(&mount, m) != nil {
				continue
			}
		case instructions.MountTypeSSH:
			list = &out.SSH
			if sshMount(&mount, m, 0) != nil {
				continue
			}
		default:
			continue
		}
		if key := fmt.Sprintf("%s %s", m.Type, mount.ID); !seen[key] {
			seen[key] = true
			*list = append(*list, OutlineMount{mount.ID, m.Required, sourceLocation(c.Location())})
		}
	}
}
