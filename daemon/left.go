package daemon

import (
	"path"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/solver"
)

// left returns the op of a client that failed, with refs to its inputs and to what it has written to its mounts: a client makes a container of
// those to look at them. It returns nil for a step that no op of a client is.
func (b *buildJob) left(name string, failed *solver.VertexError) *errdefs.Solve {
	l := b.job.Left(failed)
	if l == nil {
		return nil
	}
	op := b.op(name)
	exec := op.GetExec()
	if exec == nil || op.SizeVT() > maxQuoted || b.room(2*len(exec.Mounts)) != nil {
		return nil
	}
	out := &errdefs.Solve{Op: op, Description: map[string]string{}}
	id := func(r solver.Ref) string { return b.add(&ref{done: true, chain: r}).id }
	for _, m := range exec.Mounts {
		target := m.GetDest()
		if !path.IsAbs(target) {
			target = path.Join("/", exec.Meta.GetCwd(), target)
		}
		input, mounted := "", ""
		if left, ok := l.Mounts[path.Clean(target)]; ok && m.MountType == pb.MountType_BIND {
			if mounted = id(left.After); m.Input >= 0 {
				input = id(left.Before)
			}
		}
		out.InputIDs, out.MountIDs = append(out.InputIDs, input), append(out.MountIDs, mounted)
	}
	return out
}

// op returns an op of a client by its digest; nil if it is none.
func (b *buildJob) op(name string) *pb.Op {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, def := range b.held.definitions {
		for _, data := range def.Def {
			if digest.FromBytes(data).String() == name {
				op := &pb.Op{}
				if op.UnmarshalVT(data) != nil {
					return nil
				}
				return op
			}
		}
	}
	return nil
}
