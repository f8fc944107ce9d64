package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/llb"
)

// Checked is how much Check looked at.
type Checked struct {
	Images, Blobs, Layers, Records int
	// Bytes is how much was read of blobs and layers.
	Bytes int64
}

// Check verifies everything that the root directory keeps, while other processes may use it, and calls found for what is wrong.
// With repair, what is wrong is removed where it can be made again.
func (r *Root) Check(ctx context.Context, repair bool, s *events.Stream, found func(part.Finding)) (*Checked, error) {
	w, err := r.Work()
	if err != nil {
		return nil, err
	}
	var read func(done, total int64)
	report := part.NewReport(r.Dir(), repair, found, func(done, total int64) { read(done, total) })
	check := func(name string, do func(context.Context, *part.Report) error) error {
		name = "checking " + name
		task := s.Task(llb.Place{}, name)
		read = reader(task)
		report.Begin(0)
		err := do(ctx, report)
		task.Done(err)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	}
	if err := check("the root directory", r.checkTop); err != nil {
		return nil, err
	}
	for _, p := range r.parts(w, nil) {
		if err := check(p.Name(), p.Check); err != nil {
			return nil, err
		}
	}
	return &Checked{
		Images: report.Counted(part.Image), Blobs: report.Counted(part.Blob), Layers: report.Counted(part.Layer),
		Records: report.Counted(part.Record), Bytes: report.Bytes(),
	}, nil
}

// reader returns what reports to a task how much was read. There is no transfer before something was.
func reader(task *events.Task) func(done, total int64) {
	var transfer func(current int64, done bool)
	return func(done, total int64) {
		if transfer == nil {
			transfer = task.Transferring("bytes", events.Moving, total)
		}
		transfer(done, false)
	}
}

// checkTop looks at the root directory itself, at those of its parts that hold no items, and for what killed processes have left.
func (r *Root) checkTop(_ context.Context, report *part.Report) error {
	if err := errors.Join(report.Dir(".", rootdir.Known), report.Dir(rootdir.Locks, nil), report.Dir(rootdir.Tmp, nil), report.Dir(rootdir.Lists, part.Hash.MatchString)); err != nil {
		return err
	}
	for _, left := range r.Left() {
		err := report.Problem(rootdir.Tmp, "holds what a killed process has left: "+left.Error(), "it only takes space: remove it by hand", nil)
		if err != nil {
			return err
		}
	}
	return nil
}
