package daemon

import (
	"context"
	"maps"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/daemon/apierr"
	"github.com/kilnbuild/kiln/daemon/llbpb"
	"github.com/kilnbuild/kiln/daemon/trees"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/sourcepolicy"
	"github.com/kilnbuild/kiln/llb"
)

// definition decodes a definition of the client, whose sources have to be allowed by more policies than those of the build. One without ops
// is the empty root file system.
func (b *buildJob) definition(ctx context.Context, def *pb.Definition, more ...*sourcepolicy.Policy) (*result, error) {
	if len(def.Def) == 0 {
		return &result{single: b.add(&ref{root: scratch()})}, nil
	}
	root, err := b.decode(ctx, def, b.asking(more...))
	if err != nil {
		return nil, err
	}
	return &result{single: b.add(&ref{root: root})}, nil
}

// decode returns the output that a definition asks for. What its steps are called by the client is noted.
func (b *buildJob) decode(ctx context.Context, def *pb.Definition, a admission) (llb.Output, error) {
	g, err := b.readGraph(ctx, def, a)
	if err != nil {
		return llb.Output{}, err
	}
	names := map[llb.Digest][]string{}
	for vertex, digests := range g.Digests {
		for _, d := range digests {
			names[vertex] = append(names[vertex], d.String())
		}
	}
	groups := map[string]*pb.ProgressGroup{}
	for d, op := range g.Ops {
		if op.Group != nil {
			groups[d.String()] = op.Group
		}
	}
	// What another build's frontend has made may need what the client gave to that build.
	b.provides().Also(b.made.Makers(maps.Keys(g.Ops))...)
	b.log.Alias(names, groups)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held.graphs, b.held.definitions = append(b.held.graphs, g), append(b.held.definitions, given{def, a})
	return g.Output, nil
}

// readGraph decodes a definition.
func (b *buildJob) readGraph(ctx context.Context, def *pb.Definition, a admission) (*llbpb.Graph, error) {
	if err := b.take(def); err != nil {
		return nil, err
	}
	return llbpb.Decode(ctx, def, llbpb.Options{
		Session: b.request.Session, Allow: b.request.Entitlements, NoInsecure: b.job.NoInsecure(),
		Admit: a.admit, Source: a.source,
		Read: func(o llb.Output, file string, limit int64) ([]byte, error) { return b.readFile(ctx, o, file, limit) },
	})
}

// readFile returns a file that a step makes.
func (b *buildJob) readFile(ctx context.Context, o llb.Output, name string, limit int64) ([]byte, error) {
	t, err := b.files(ctx, o)
	if err != nil {
		return nil, err
	}
	return trees.Read(t, name, limit)
}

// files returns the files of a root file system, which is made.
func (b *buildJob) files(ctx context.Context, o llb.Output) (layer.Tree, error) {
	made, err := b.job.Solve(ctx, o)
	if err != nil {
		return nil, err
	}
	return b.job.Files(ctx, made[0])
}

// scratch returns the empty root file system.
func scratch() llb.Output {
	return (&llb.Graph{}).Add(llb.Scratch{}, llb.Meta{Place: llb.Place{Group: internal}, Text: "scratch"}).Output(0)
}

// digests returns what the client calls a vertex.
func (b *buildJob) digests(vertex llb.Digest) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var names []string
	for _, g := range b.held.graphs {
		for _, d := range g.Digests[vertex] {
			names = append(names, d.String())
		}
	}
	return names
}

// located returns where the client says that an op comes from.
func (b *buildJob) located(name string) []*errdefs.Source {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, g := range b.held.graphs {
		if op := g.Ops[digest.Digest(name)]; op != nil {
			return apierr.Quotes(op.Locations, g.Sources)
		}
	}
	return nil
}
