package ops

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/passwd"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/solver"
)

// planMkdir plans WORKDIR. What it makes depends on nothing but the directories on the way and the owner's number, so
// that is its key.
func (r *Runner) planMkdir(ctx context.Context, v *llb.Vertex, op llb.Mkdir, in []*solver.Chain) (solver.Step, error) {
	tree, err := r.destination(ctx, v, in[0], passwd.NeedsFiles(op.User))
	if err != nil {
		return solver.Step{}, err
	}
	uid, gid, err := passwd.Owner(opener(tree, "/etc/passwd"), opener(tree, "/etc/group"), op.User)
	if err != nil {
		return solver.Step{}, err
	}
	now := made(op.Epoch)
	build := func(p *snapshot.Pending) ([]*layer.Entry, error) {
		b := snapshot.NewBuilder(tree, p, now.time)
		defer b.Close()
		dir, _, err := b.Resolve(op.Path, true)
		if err != nil {
			return nil, err
		}
		existing, ok, err := b.Lookup(dir)
		if err != nil {
			return nil, err
		}
		if ok && existing.Type == layer.Dir {
			return nil, nil
		}
		err = b.Mkdirs(dir, func(path string) layer.Entry {
			e := layer.Entry{Mode: 0o755, UID: uid, GID: gid, ModTime: now.time, Clock: now.clock}
			if parent, ok, _ := b.Lookup(layer.Parent(path)); ok {
				e.Mode |= parent.Mode & 0o2000 // mkdir(2) passes the set-group-ID bit on
			}
			return e
		})
		if err != nil {
			return nil, err
		}
		return b.Entries(), b.Finish()
	}
	planned, err := build(nil)
	if err != nil {
		return solver.Step{}, err
	}
	return solver.Step{
		Inputs: append(common(v), solver.Input{Name: "path", Value: op.Path}, solver.Input{Name: "owner", Value: fmt.Sprintf("%d:%d", uid, gid)}, entriesInput(planned), epochInput(op.Epoch)),
		Run: func(ctx context.Context, _ solver.Job) (solver.Layer, error) {
			p, err := r.Snapshots.New()
			if err != nil {
				return solver.Layer{}, err
			}
			defer p.Close()
			entries, err := build(p)
			if err != nil {
				return solver.Layer{}, err
			}
			c, err := p.Commit(entries, "")
			return committed(c), err
		},
	}, nil
}

// moment is the time that new directories get.
type moment struct {
	time  time.Time
	clock bool
}

func made(epoch *int64) moment {
	if epoch != nil {
		return moment{time: time.Unix(*epoch, 0)}
	}
	return moment{time: time.Now(), clock: true}
}

func epochInput(epoch *int64) solver.Input {
	if epoch == nil {
		return solver.Input{Name: "epoch"}
	}
	return solver.Input{Name: "epoch", Value: strconv.FormatInt(*epoch, 10)}
}

// entriesInput is the digest of what a layer will hold.
func entriesInput(entries []*layer.Entry) solver.Input {
	sum := layer.Identify(func(yield func(*layer.Entry) bool) {
		for _, e := range entries {
			if !yield(e) {
				return
			}
		}
	})
	return contentInput("files", solver.Content(sum.Content))
}

// opener opens a regular file of a tree, following links inside it.
func opener(t layer.Tree, name string) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) {
		_, e, err := snapshot.Resolve(t.Lookup, name, true)
		if err != nil {
			return nil, err
		}
		if e == nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		if e.Type != layer.File {
			return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("is not a regular file")}
		}
		return t.Open(e)
	}
}
