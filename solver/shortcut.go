package solver

import (
	"context"

	"github.com/kilnbuild/kiln/llb"
)

// Shortcuts is what a Cache may also know: which key a step had whose op, whole inputs and selected files were the same. The key itself may
// depend on less, so another shortcut may lead to it, but computing it may need the entries of layers that are elsewhere; a shortcut needs
// none.
type Shortcuts interface {
	// Shortcut returns the key that a step had, if it is known. The error is that of ctx.
	Shortcut(ctx context.Context, from Key) (Key, bool, error)
	// SetShortcut remembers it.
	SetShortcut(from, to Key)
}

// ShortcutPlanner is a Planner that computes what shortcuts lead from.
type ShortcutPlanner interface {
	// Shortcut returns everything that can decide the key of a step, without reading entries of layers. It returns nil for steps whose key
	// needs no entries, or for which it cannot be said.
	Shortcut(ctx context.Context, op llb.Op, meta llb.Meta, in []Ref) ([]Input, error)
}

// shortcut returns what a shortcut to the step's key leads from, and uses one that is known. found is false if the step has to be planned.
func (w *work) shortcut(ctx context.Context, in []Ref) (from Key, r *Record, found bool, err error) {
	known, ok := w.opts.Cache.(Shortcuts)
	planner, can := w.opts.Planner.(ShortcutPlanner)
	if !ok || !can {
		return from, nil, false, nil
	}
	inputs, err := planner.Shortcut(ctx, w.vertex.Op(), w.vertex.Meta(), in)
	if err != nil || inputs == nil {
		return from, nil, false, err
	}
	from = KeyOf(inputs)
	if w.opts.Verify {
		return from, nil, false, nil
	}
	to, ok, err := known.Shortcut(ctx, from)
	if err != nil || !ok {
		return from, nil, false, err
	}
	w.key = to
	w.finished.Key = to.String()
	r, miss, err := w.probe(ctx)
	if err != nil || miss != nil {
		return from, nil, false, err
	}
	return from, r, true, w.hit(ctx, r)
}
