package daemon

import (
	"context"
	"errors"
	"path"
	"slices"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/daemon/apierr"
	"github.com/kilnbuild/kiln/daemon/llbpb"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/files"
)

// left returns the op of a client that failed, with refs to its inputs and to what it has made: a client makes a container of those to look
// at them. It returns nil for a step that no op of a client is, and for a build that is over.
func (b *buildJob) left(name string, failed *solver.VertexError) *errdefs.Solve {
	select {
	case <-b.over:
		return nil
	default:
	}
	if all := b.digests(failed.Vertex.Digest()); len(all) > 0 {
		name = all[len(all)-1] // in the definition that was sent last
	}
	op, def := b.op(name)
	if op == nil || op.SizeVT() > apierr.MaxQuoted {
		return nil
	}
	switch {
	case op.GetExec() != nil:
		if out := b.leftOfExec(op, failed); out != nil {
			return out
		}
		return b.absent(op, def, failed)
	case op.GetFile() != nil:
		return b.leftOfFile(op, def)
	}
	return nil
}

// leftOfExec returns what is left of an exec op: for each mount its input, and what was written to it.
func (b *buildJob) leftOfExec(op *pb.Op, failed *solver.VertexError) *errdefs.Solve {
	l := b.job.Left(failed)
	if l == nil {
		return nil
	}
	exec := op.GetExec()
	if b.room(2*len(exec.Mounts)) != nil {
		return nil
	}
	out := &errdefs.Solve{Op: op, Description: map[string]string{}}
	id := func(r solver.Ref) string { return b.add(&ref{done: true, chain: r}).id }
	for _, m := range exec.Mounts {
		input, mounted := "", ""
		if left, ok := l.Mounts[llbpb.Target(exec.Meta.GetCwd(), m)]; ok && m.MountType == pb.MountType_BIND {
			if mounted = id(left.After); m.Input >= 0 {
				input = id(left.Before)
			}
		}
		out.InputIDs, out.MountIDs = append(out.InputIDs, input), append(out.MountIDs, mounted)
	}
	return out
}

// absent returns the input of an exec op that has not what a mount is to show of it; nil if the error is another.
func (b *buildJob) absent(op *pb.Op, def given, failed *solver.VertexError) *errdefs.Solve {
	missing, ok := errors.AsType[*files.NotFoundError](failed)
	if !ok {
		return nil
	}
	for _, m := range op.GetExec().Mounts {
		if !m.GetReadonly() || m.GetInput() < 0 || int(m.GetInput()) >= len(op.Inputs) ||
			path.Join("/", m.GetSelector()) != path.Join("/", missing.Path) {
			continue
		}
		id := b.inputID(def, op, int(m.Input))
		return &errdefs.Solve{
			Op: op, InputIDs: []string{id}, Description: map[string]string{},
			Subject: &errdefs.Solve_Cache{Cache: &errdefs.ContentCache{Index: m.Input}},
		}
	}
	return nil
}

// What is done again of a file op, to find the action that failed: its actions at the most, and the bytes that are decoded for that.
const (
	maxActions = 16
	maxAgain   = 1 << 20
)

// leftOfFile returns what is left of a file op: its inputs, the results of the actions before the one that failed, and in its place what it
// was to change.
func (b *buildJob) leftOfFile(op *pb.Op, def given) *errdefs.Solve {
	actions := op.GetFile().Actions
	n := len(actions) + len(op.Inputs)
	if len(actions) > maxActions || n*def.SizeVT() > maxAgain || b.room(n) != nil {
		return nil
	}
	out := &errdefs.Solve{Op: op, MountIDs: make([]string, len(actions)), Description: map[string]string{}}
	for i := range op.Inputs {
		out.InputIDs = append(out.InputIDs, b.inputID(def, op, i))
	}
	for i, a := range actions {
		r, err := b.actions(b.ctx, op, def, i)
		if err == nil {
			_, err = r.solve(b.ctx, b.job)
		}
		if err == nil {
			out.MountIDs[i] = b.add(r).id
			continue
		}
		switch n := int(a.GetInput()); {
		case n >= 0 && n < len(out.InputIDs):
			out.MountIDs[i] = out.InputIDs[n]
		case n >= len(out.InputIDs) && n-len(out.InputIDs) < i:
			out.MountIDs[i] = out.MountIDs[n-len(out.InputIDs)]
		}
		out.Subject = &errdefs.Solve_File{File: &errdefs.FileAction{Index: int64(i)}}
		return out
	}
	return nil // it does not fail again
}

// actions returns the result of the actions of a file op up to the one with a number.
func (b *buildJob) actions(ctx context.Context, op *pb.Op, def given, last int) (*ref, error) {
	part := op.CloneVT()
	file := part.GetFile()
	file.Actions = file.Actions[:last+1]
	for i, a := range file.Actions {
		if a.Output = int64(pb.SkipOutput); i == last {
			a.Output = 0
		}
	}
	data, err := part.MarshalVT()
	if err != nil {
		return nil, err
	}
	return b.part(ctx, def, data, 0)
}

// inputID returns the ID of a ref to an input of an op; "" if there is none.
func (b *buildJob) inputID(def given, op *pb.Op, number int) string {
	in := op.Inputs[number]
	for _, data := range def.Def {
		if digest.FromBytes(data).String() != in.GetDigest() {
			continue
		}
		r, err := b.part(b.ctx, def, data, in.GetIndex())
		if err != nil {
			return ""
		}
		return b.add(r).id
	}
	return ""
}

// part returns an output of an op, which may be another than those of the definition, whose other ops it needs.
func (b *buildJob) part(ctx context.Context, def given, op []byte, output int64) (*ref, error) {
	end, err := (&pb.Op{Inputs: []*pb.Input{{Digest: string(digest.FromBytes(op)), Index: output}}}).MarshalVT()
	if err != nil {
		return nil, err
	}
	ops := slices.DeleteFunc(slices.Clone(def.Def), func(data []byte) bool { return string(data) == string(op) })
	g, err := b.readGraph(ctx, &pb.Definition{Def: append(ops[:max(0, len(ops)-1)], op, end), Metadata: def.Metadata}, def.admission)
	if err != nil {
		return nil, err
	}
	return &ref{root: g.Output}, nil
}

// op returns an op of a client by its digest, with the definition that it is in; nil if there is none.
func (b *buildJob) op(name string) (*pb.Op, given) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, def := range b.held.definitions {
		for _, data := range def.Def {
			if digest.FromBytes(data).String() == name {
				op := &pb.Op{}
				if op.UnmarshalVT(data) != nil {
					return nil, given{}
				}
				return op, def
			}
		}
	}
	return nil, given{}
}
