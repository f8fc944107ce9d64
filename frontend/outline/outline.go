// Package outline says what a Dockerfile offers: its stages, and what can be given to one that is built. It has the JSON of BuildKit's
// subrequests frontend.targets and frontend.outline.
package outline

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	moby "github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/kilnbuild/kiln/frontend/expand"
	"github.com/kilnbuild/kiln/frontend/lint"
	"github.com/kilnbuild/kiln/parser"
)

// Outline is what a target can be given: the result of BuildKit's subrequest frontend.outline, whose JSON this is.
type Outline struct {
	Name        string   `json:"name,omitempty"`
	Description string   `json:"description,omitempty"`
	Args        []Arg    `json:"args,omitempty"`
	Secrets     []Mount  `json:"secrets,omitempty"`
	SSH         []Mount  `json:"ssh,omitempty"`
	Sources     [][]byte `json:"sources,omitempty"`
}

// Arg is a build argument that a target takes, with the value that it has.
type Arg struct {
	Name        string    `json:"name"`
	Description string    `json:"description,omitempty"`
	Value       string    `json:"value,omitempty"`
	Location    *Location `json:"location,omitempty"`
}

// Shown returns the value as people may see it: lint.Hidden for that of a variable that has the name of a secret.
func (a Arg) Shown() string {
	if a.Value != "" && lint.IsSecretName(a.Name) {
		return lint.Hidden
	}
	return a.Value
}

// Mount is a secret or an ssh agent that a target asks for.
type Mount struct {
	Name     string    `json:"name"`
	Required bool      `json:"required,omitempty"`
	Location *Location `json:"location,omitempty"`
}

// TargetList are the stages of a Dockerfile: the result of BuildKit's subrequest frontend.targets, whose JSON this is.
type TargetList struct {
	Targets []Target `json:"targets"`
	Sources [][]byte `json:"sources"`
}

// Target is a stage that can be built.
type Target struct {
	Name        string    `json:"name,omitempty"`
	Default     bool      `json:"default,omitempty"`
	Description string    `json:"description,omitempty"`
	Base        string    `json:"base,omitempty"`
	Platform    string    `json:"platform,omitempty"`
	Location    *Location `json:"location,omitempty"`
}

// Location is a place in the source, as BuildKit's JSON has it.
type Location struct {
	Ranges []Range `json:"ranges,omitempty"`
}

// Range is from one line to another, both counted from 1.
type Range struct {
	Start Position `json:"start"`
	End   Position `json:"end"`
}

// Position is a line.
type Position struct {
	Line int `json:"line"`
}

// maxRanges is how many lines of an instruction a Location has.
const maxRanges = 1000

// Lines returns the lines from start to end as BuildKit has them, one range for each; nil for none.
func Lines(start, end int) *Location {
	if start == 0 {
		return nil
	}
	l := &Location{}
	for n := start; n <= min(max(start, end), start+maxRanges-1); n++ {
		l.Ranges = append(l.Ranges, Range{Position{n}, Position{n}})
	}
	return l
}

// compare says which of two locations is first.
func (l *Location) compare(other *Location) int {
	return cmp.Compare(l.Ranges[0].Start.Line, other.Ranges[0].Start.Line)
}

func location(at []moby.Range) *Location { return Lines(parser.Lines(at)) }

// Targets returns the stages of a Dockerfile; text is the whole of it.
func Targets(text []byte, df *parser.Dockerfile) *TargetList {
	list := &TargetList{Sources: [][]byte{text}}
	for i, s := range df.Stages {
		list.Targets = append(list.Targets, Target{
			Name: s.Name, Default: i == len(df.Stages)-1, Description: s.DocComment, Base: s.BaseName, Platform: s.Platform,
			Location: location(s.Location),
		})
	}
	return list
}

// Build is what is known of a Dockerfile after it was lowered.
type Build struct {
	// Dockerfile is as it is written: its words are not expanded.
	Dockerfile *parser.Dockerfile
	// Target is the place of the target in the Dockerfile.
	Target int
	// Stages are those that are built. Of arguments with one name that of the first stage counts.
	Stages []Stage
	// Given are the build arguments by name, Global the variables that words of FROM see.
	Given  map[string]string
	Global *expand.Env
	// Variables returns the names of the variables in a word of FROM.
	Variables func(word string) []string
	// MountID returns the id of a secret or an ssh agent; "" for other mounts.
	MountID func(*instructions.Mount) string
}

// Stage is a stage that is built: Number is its place in the Dockerfile, Args are its arguments after its last instruction, and Commands
// its instructions after the triggers of its base. Their words are expanded, but for those of ARG.
type Stage struct {
	Number   int
	Args     *expand.Args
	Commands []instructions.Command
}

// Describe returns what the target takes; text is the whole Dockerfile. The error is the cause of ctx's end.
func Describe(ctx context.Context, text []byte, b Build) (*Outline, error) {
	target := b.Dockerfile.Stages[b.Target]
	d := &describer{
		Build: b, seen: map[string]bool{}, used: map[string]bool{},
		out: &Outline{Name: target.Name, Description: target.DocComment, Sources: [][]byte{text}},
	}
	for _, s := range b.Stages {
		if err := d.stage(ctx, s); err != nil {
			return nil, err
		}
	}
	d.global()
	slices.Reverse(d.out.Args) // those of one line were added from the last to the first
	slices.SortStableFunc(d.out.Args, func(x, y Arg) int { return x.Location.compare(y.Location) })
	for _, list := range [][]Mount{d.out.Secrets, d.out.SSH} {
		slices.SortStableFunc(list, func(x, y Mount) int { return x.Location.compare(y.Location) })
	}
	return d.out, nil
}

// describer makes an Outline. seen are arguments and mounts that are in it, used the variables that stages use.
type describer struct {
	Build
	out  *Outline
	seen map[string]bool
	used map[string]bool
}

// use notes the variables of a word.
func (d *describer) use(word string) {
	for _, name := range d.Variables(word) {
		d.used[name] = true
	}
}

// stage adds what a stage takes.
func (d *describer) stage(ctx context.Context, s Stage) error {
	src := d.Dockerfile.Stages[s.Number]
	d.use(src.BaseName)
	d.use(src.Platform)
	// Of arguments with one name the last of a stage counts.
	for _, c := range slices.Backward(s.Commands) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if c, ok := c.(*instructions.ArgCommand); ok {
			d.args(c, s)
		}
	}
	for _, c := range s.Commands {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if c, ok := c.(*instructions.RunCommand); ok {
			d.mounts(c)
		}
	}
	return nil
}

// args adds the arguments of an ARG of stage s, but for those that are above the first FROM.
func (d *describer) args(c *instructions.ArgCommand, s Stage) {
	for _, a := range slices.Backward(c.Args) {
		_, given := d.Given[a.Key]
		if _, global := d.Global.Get(a.Key); global && a.Value == nil && !given {
			d.used[a.Key] = true
			continue
		}
		lowered, _ := s.Args.Get(a.Key)
		d.arg(a, lowered.ValueString(), c.Location())
	}
}

// global adds the arguments above the first FROM that are used by what is used: the later may use the earlier.
func (d *describer) global() {
	for _, c := range slices.Backward(d.Dockerfile.Args) {
		for _, a := range slices.Backward(c.Args) {
			if !d.used[a.Key] {
				continue
			}
			if _, given := d.Given[a.Key]; given {
				d.used[a.Key] = false
			} else if a.Value != nil {
				d.used[a.Key] = false // unless the value has the one before in it
				d.use(*a.Value)
			}
			value, _ := d.Global.Get(a.Key)
			d.arg(a, value, c.Location())
		}
	}
}

// arg adds an argument, unless one of its name is there.
func (d *describer) arg(a instructions.KeyValuePairOptional, value string, at []moby.Range) {
	if key := "arg " + a.Key; !d.seen[key] {
		d.seen[key] = true
		d.out.Args = append(d.out.Args, Arg{a.Key, a.DocComment, value, location(at)})
	}
}

// mounts adds the secrets and agents of RUN.
func (d *describer) mounts(c *instructions.RunCommand) {
	for _, m := range instructions.GetMounts(c) {
		id := d.MountID(m)
		if id == "" {
			continue
		}
		list := &d.out.Secrets
		if m.Type == instructions.MountTypeSSH {
			list = &d.out.SSH
		}
		if key := fmt.Sprintf("%s %s", m.Type, id); !d.seen[key] {
			d.seen[key] = true
			*list = append(*list, Mount{id, m.Required, location(c.Location())})
		}
	}
}
