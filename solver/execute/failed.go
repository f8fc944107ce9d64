package execute

import (
	"context"
	"errors"
	"iter"
	"os"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/sandbox"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/snapshot/roots"
	"github.com/kilnbuild/kiln/solver"
)

// Failed is a RUN that failed: its root file system, as its process left it, its mounts and its network. They stay until the job ends.
type Failed struct {
	prepared *Prepared
	mounts   mounts // for another process
	err      error
}

// mounts are the file systems of a process. The sandbox uses them up, and can be given others of the same file systems.
type mounts struct {
	root        *os.File
	on, devices []sandbox.Mount
}

// execKeeping is the end of exec where what a step has left is kept if it fails.
func (x *Job) execKeeping(ctx context.Context, p *Prepared, job solver.Job) (_ []solver.Made, err error) {
	f := &Failed{prepared: p, mounts: mounts{p.Spec.Root, p.Spec.Mounts, p.Spec.Devices}}
	now, err := f.mounts.twice()
	if err != nil {
		p.Close()
		return nil, err
	}
	f.mounts = now[1]
	now[0].give(&p.Spec)
	err = p.Run(ctx)
	now[0].close()
	if isFailure(err) {
		f.err = err
		x.mu.Lock()
		defer x.mu.Unlock()
		x.failed = append(x.failed, f)
		return nil, err
	}
	defer f.close()
	if err != nil {
		return nil, err
	}
	return p.Commit(ctx, job)
}

// Left is what a RUN that failed has left.
type Left struct {
	// Mounts are its root, at "/", and its bind mounts, by their targets.
	Mounts map[string]LeftMount

	err error
}

// LeftMount is a root file system before a RUN that failed, and after it. They are there until the job ends.
type LeftMount struct{ Before, After solver.Ref }

// keepLeft makes layers of what a step has written. What cannot be made a layer of is as before.
func (x *Job) keepLeft(ctx context.Context, p *Prepared, failed error) {
	l := &Left{Mounts: map[string]LeftMount{}, err: failed}
	keep := func(target string, before solver.Ref, root *roots.Root, tree *layer.Stack, up *snapshot.Pending) {
		after := before
		if up != nil {
			if c, err := up.CommitChanges(ctx, root, tree, p.started); err == nil {
				after = before.Push(committed(c))
			}
		}
		l.Mounts[target] = LeftMount{before, after}
	}
	for _, m := range p.work.Op.Mounts {
		if m.Type == llb.MountBind {
			keep(m.Target, p.work.In[m.Input], nil, nil, nil)
		}
	}
	for _, o := range p.mounts.outputs {
		keep(o.target, l.Mounts[o.target].Before, o.root, o.tree, o.up)
	}
	if p.Spec.ReadOnly { // what is in it are mount points
		keep("/", p.work.In[0], nil, nil, nil)
	} else {
		keep("/", p.work.In[0], p.root, p.tree, p.up)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.left = append(x.left, l)
}

// Left returns what the step has left of which the error is that it failed; nil if it is of none, or nothing is kept.
func (x *Job) Left(err error) *Left {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, l := range x.left {
		if errors.Is(err, l.err) {
			return l
		}
	}
	return nil
}

// isFailure reports whether an error says that a program did not succeed, and not that kiln did not, or was stopped.
func isFailure(err error) bool {
	return errors.As(err, new(*ExitError)) || errors.As(err, new(*TimeoutError)) || errors.As(err, new(*sandbox.ExecError))
}

// Failed returns the step of which the error is that it failed; nil if it is of none, or nothing is kept.
func (x *Job) Failed(err error) *Failed {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, f := range x.failed {
		if errors.Is(err, f.err) {
			return f
		}
	}
	return nil
}

// Shell returns the SHELL of the step's stage.
func (f *Failed) Shell() []string { return f.prepared.work.Op.Shell }

// Run runs a program in the step's root file system as it is now, with all that the step's own process had. It returns how the program
// ended; errors are those of sandbox.Run.
func (f *Failed) Run(ctx context.Context, args []string, stdio sandbox.Stdio) (sandbox.Status, error) {
	both, err := f.mounts.twice()
	if err != nil {
		return sandbox.Status{}, err
	}
	defer both[0].close()
	f.mounts.close()
	f.mounts = both[1]
	spec := f.prepared.Spec
	both[0].give(&spec)
	spec.Process.Args, spec.Stdio = args, stdio
	if isTerm := func(v string) bool { return strings.HasPrefix(v, "TERM=") }; stdio.Terminal != nil && !slices.ContainsFunc(spec.Process.Env, isTerm) {
		spec.Process.Env = append(slices.Clone(spec.Process.Env), "TERM=xterm") // which every image with a terminfo database has
	}
	status, err := sandbox.Run(ctx, spec)
	if err != nil {
		return status, f.prepared.Explain(err)
	}
	return status, nil
}

// Commit makes a layer of what was changed in the step's root file system. Nothing can be run there any more.
func (f *Failed) Commit(ctx context.Context) (layer.ID, error) {
	p := f.prepared
	c, err := p.up.CommitChanges(ctx, p.root, p.tree, p.started)
	return c.ID, err
}

// Deleted returns the paths of what is not in the step's root file system any more, of the layer that Commit made, with its manifest m. Of
// a directory it is the path alone.
func (f *Failed) Deleted(m *layer.Manifest) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for e := range m.All() {
			switch {
			case e.Type == layer.Whiteout:
				if !yield(e.Path, nil) {
					return
				}
			case e.Opaque:
				// Another directory took the place of one that was there.
				was, err := f.prepared.tree.List(e.Path)
				if err != nil {
					yield("", err)
					return
				}
				for _, old := range was {
					if _, ok := m.Lookup(old.Path); !ok && !yield(old.Path, nil) {
						return
					}
				}
			}
		}
	}
}

func (f *Failed) close() {
	f.mounts.close()
	f.prepared.Close()
}

// give has a process use the mounts.
func (m *mounts) give(s *sandbox.Spec) { s.Root, s.Mounts, s.Devices = m.root, m.on, m.devices }

// twice returns two mounts of each file system. Those that it is called for may be used up by that.
func (m *mounts) twice() (two [2]mounts, err error) {
	defer func() {
		if err != nil {
			two[0].close()
			two[1].close()
		}
	}()
	both, err := mount.AllBelow(m.root, true, m.root, m.root)
	if err != nil {
		return two, err
	}
	two[0].root, two[1].root = both[0], both[1]
	for _, list := range []func(*mounts) *[]sandbox.Mount{
		func(m *mounts) *[]sandbox.Mount { return &m.on }, func(m *mounts) *[]sandbox.Mount { return &m.devices },
	} {
		for _, old := range *list(m) {
			if both, err = mount.AllBelow(old.Source, true, old.Source, old.Source); err != nil {
				return two, err
			}
			for i := range two {
				old.Source = both[i]
				*list(&two[i]) = append(*list(&two[i]), old)
			}
		}
	}
	return two, nil
}

func (m *mounts) close() {
	if m.root != nil {
		m.root.Close()
	}
	for _, on := range slices.Concat(m.on, m.devices) {
		on.Source.Close()
	}
}
