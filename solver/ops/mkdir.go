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
	if _, missing := errors.AsType[*passwd.NotFoundError](err); missing && in[0] != nil {
		r.warn(fmt.Sprintf("USER %s: %v; a directory that WORKDIR makes belongs to %d:%d, as with docker build", op.User, err, uid, gid))
	} else if err != nil {
		return solver.Step{}, err
	}
	now := made(op.Epoch)
	// build gives the layer to commit, once it is written.
	build := func(p *snapshot.Pending, commit func(*snapshot.Builder) error) error {
		b := r.Snapshots.NewBuilder(tree, p, now.time)
		defer b.Close()
		dir, _, err := b.Resolve(op.Path, true)
		if err != nil {
			return err
		}
		existing, ok, err := b.Lookup(dir)
		if err != nil {
			return err
		}
		if ok && existing.Type == layer.Dir {
			return commit(b)
		}
		err = b.Mkdirs(dir, func(path string) layer.Entry {
			e := layer.Entry{Mode: 0o755, ModTime: now.time, Clock: now.clock}
			passOn(b, path, &e)
			if op.User != "" {
				e.UID, e.GID = uid, gid
			}
			return e
		})
		if err == nil {
			err = b.Finish()
		}
		if err != nil {
			return err
		}
		return commit(b)
	}
	planned := layer.NewDigester()
	if err := build(nil, func(b *snapshot.Builder) error { return b.Entries(planned.Add) }); err != nil {
		return solver.Step{}, err
	}
	return solver.Step{
		Inputs: append(common(v), solver.Input{Name: "path", Value: op.Path}, solver.Input{Name: "owner", Value: fmt.Sprintf("%d:%d", uid, gid)}, contentInput("files", solver.Content(planned.Sum().Content)), epochInput(op.Epoch)),
		Run: func(ctx context.Context, _ solver.Job) (solver.Layer, error) {
			p, err := r.Snapshots.New()
			if err != nil {
				return solver.Layer{}, err
			}
			defer p.Close()
			var c snapshot.Committed
			err = build(p, func(b *snapshot.Builder) (err error) {
				c, err = p.Commit(b, "")
				return err
			})
			return committed(c), err
		},
	}, nil
}

// setGID is S_ISGID of inode(7).
const setGID = 0o2000

// passOn gives a directory that is to be made at path what mkdir(2) passes on to it: in one with the set-group-ID bit that bit and the group.
func passOn(b *snapshot.Builder, path string, e *layer.Entry) {
	if parent, ok, _ := b.Lookup(layer.Parent(path)); ok && parent.Mode&setGID != 0 {
		e.Mode |= setGID
		e.GID = parent.GID
	}
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
