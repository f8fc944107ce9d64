package execute

import (
	"context"
	"encoding/hex"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/files"
	"github.com/kilnbuild/kiln/solver/work"
)

// file makes the layer of a File, as a blob where nobody needs its files.
func (x *Job) file(ctx context.Context, w work.File, job solver.Job) ([]solver.Made, error) {
	c := files.Change{Op: w.Op, Limit: x.Snapshots.Limit(), Tmp: x.Tmp}
	names := files.Names(w.Op)
	unpacks := files.Unpacks(w.Op)
	for i, ref := range w.In {
		in, err := x.input(ctx, ref, i > 0 || unpacks || len(names) > 0)
		if err != nil {
			return nil, err
		}
		c.Inputs = append(c.Inputs, in)
	}
	layers, err := x.change(ctx, w, c, job)
	return layers, c.Told(err)
}

// change makes the layer of a Change, and fails if that is not what was planned.
func (x *Job) change(ctx context.Context, w work.File, c files.Change, job solver.Job) ([]solver.Made, error) {
	names := files.Names(w.Op)
	unpacks := files.Unpacks(w.Op)
	planned := files.Result{Archives: w.Archives, Copied: w.Copied}
	planned.Content, planned.Identity = w.Planned, w.Identity
	if len(names) > 0 {
		// What was planned is compared as it was planned, and then planned anew with the owners.
		again, err := files.Digest(ctx, c)
		if err != nil {
			return nil, err
		}
		if !unpacks && again.Identity != planned.Identity {
			return nil, &layer.ChangedError{}
		}
		if c.Owners, err = files.Owners(w.Op, c.Inputs, w.In[0].Depth() == 0, x.Warning); err != nil {
			return nil, err
		}
		if planned, err = files.Digest(ctx, c); err != nil {
			return nil, err
		}
	}
	if !unpacks && x.Blob != nil && job.Demand != nil && job.Demand[0].Blob == x.Blob.String() && !job.Demand[0].Files {
		return x.packed(ctx, c, planned, job)
	}
	last := layer.ID(job.LastOf(0))
	p, result, err := files.Write(ctx, c, x.Snapshots, last)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	// Another program may have written to the context since it was looked at.
	if !result.Same(planned, unpacks) {
		return nil, &layer.ChangedError{}
	}
	l, err := p.CommitWritten(ctx, result.Summary, "")
	x.Snapshots.SetEarlier(l.ID, last)
	return made(l), err
}

// input returns what a File reads from, with its files if they are asked for.
func (x *Job) input(ctx context.Context, r solver.Ref, open bool) (files.Input, error) {
	if r.Local != nil {
		t, err := x.OpenLocal(ctx, *r.Local)
		return files.Input{Tree: t, Local: true, Selected: x.SelectedOf(*r.Local)}, err
	}
	if open {
		t, err := x.Tree(ctx, r)
		return files.Input{Tree: t}, err
	}
	layers, err := x.Entries(ctx, r)
	return files.Input{Tree: layer.NewStack(layers)}, err
}

// packed makes a layer without writing its files: their bytes go from where they are into the layer's tar, and the layer is committed once
// its blob is complete.
func (x *Job) packed(ctx context.Context, c files.Change, planned files.Result, job solver.Job) ([]solver.Made, error) {
	id := layer.ID(hex.EncodeToString(planned.Identity[:]))
	x.Snapshots.SetEarlier(id, layer.ID(job.LastOf(0)))
	if err := x.Snapshots.Open(ctx, id); err == nil {
		m, err := x.Snapshots.Manifest(ctx, id)
		if err != nil {
			return nil, err
		}
		return made(snapshot.Committed{ID: id, Summary: m.Summary}), nil
	}
	p, err := x.Snapshots.New()
	if err != nil {
		return nil, err
	}
	defer p.Close()
	manifest, err := p.Manifest()
	if err != nil {
		return nil, err
	}
	blob, err := x.Snapshots.BeginBlob(ctx, id, *x.Blob)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	if err := files.WriteTar(ctx, c, blob, manifest); err != nil {
		manifest.Abort()
		return nil, err
	}
	written, err := manifest.Close(time.Now())
	if err == nil && written.Identity != planned.Identity {
		err = &layer.ChangedError{}
	}
	if err != nil {
		return nil, err
	}
	packed, err := blob.Commit()
	if err != nil {
		return nil, err
	}
	if err := p.Pack(*x.Blob, packed); err != nil {
		return nil, err
	}
	l, err := p.CommitWritten(ctx, written, "")
	return made(l), err
}
