package expand

import (
	"maps"
	"slices"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

// Args are the ARGs of a stage, each name once, in the order in which they were declared first.
type Args struct {
	budget *Budget
	at     map[string]int // places in list
	list   []instructions.KeyValuePairOptional
	shared bool // as an Env's
}

// NewArgs returns an empty Args whose copies are paid from b.
func NewArgs(b *Budget) *Args { return &Args{budget: b, at: map[string]int{}} }

// List returns the arguments. It must not be changed.
func (a *Args) List() []instructions.KeyValuePairOptional { return a.list }

// Get returns what was declared last of a name.
func (a *Args) Get(name string) (instructions.KeyValuePairOptional, bool) {
	i, ok := a.at[name]
	if !ok {
		return instructions.KeyValuePairOptional{}, false
	}
	return a.list[i], true
}

// Set declares an argument. The error is that of the budget.
func (a *Args) Set(arg instructions.KeyValuePairOptional) error {
	if a.shared {
		if err := a.budget.Spend(2 * EntrySize * len(a.list)); err != nil {
			return err
		}
		a.at, a.list, a.shared = maps.Clone(a.at), slices.Clone(a.list), false
	}
	i, ok := a.at[arg.Key]
	if !ok {
		i = len(a.list)
		a.at[arg.Key] = i
		a.list = append(a.list, arg)
	}
	a.list[i] = arg
	return nil
}

// Fork returns a copy, which takes no time until one of the two is changed.
func (a *Args) Fork() *Args {
	a.shared = true
	other := *a
	return &other
}
