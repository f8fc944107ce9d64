// Package plan determines the inputs on which the results of steps depend: it implements the solver's Planner. It reads the
// manifests of layers and the contexts of the client, and needs neither the files of layers nor privileges. It does not know
// Dockerfiles, nor the rest of the graph.
package plan

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"

	"github.com/kilnbuild/kiln/internal/git"
	"github.com/kilnbuild/kiln/internal/httpsource"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/files"
	"github.com/kilnbuild/kiln/solver/session"
	"github.com/kilnbuild/kiln/solver/work"
)

// Layers provides the manifests of layers. It is safe for concurrent use.
type Layers interface {
	// Entries returns the layers of a root file system that have entries, as solver.Ref.Changes, lowest first. They may be fetched from
	// a registry, or be what a cache says of a layer: a key that depends on one of them has all that was found in it.
	Entries(ctx context.Context, r solver.Ref) ([]layer.Part, error)
	// Hides reports, for each of the layers of Entries, whether it hides a directory of those below it.
	Hides(ctx context.Context, r solver.Ref) ([]bool, error)
}

// Sources resolves remote sources. It is safe for concurrent use.
type Sources interface {
	// Image returns the root file system of an image.
	Image(ctx context.Context, op llb.Image) (solver.Ref, error)
	// HTTP returns what a file is now. It need not be anywhere: Path has no meaning.
	HTTP(ctx context.Context, op llb.HTTP) (httpsource.File, error)
	// Git returns the commit that a ref refers to.
	Git(ctx context.Context, op llb.Git) (git.Commit, error)
	// UseBlob is told of a blob that is used.
	UseBlob(op llb.Blob)
	// Devices returns an error if the devices that a step requests are not available.
	Devices(op llb.Exec) error
}

// Planner plans the steps of one build. It implements solver.Planner.
type Planner struct {
	Layers  Layers
	Sources Sources
	Session *session.Session
	// Tmp is a directory for lists of files that do not fit into memory.
	Tmp string
	// Limit limits archives.
	Limit layer.Limit
}

// Plan implements solver.Planner.
func (p *Planner) Plan(ctx context.Context, op llb.Op, meta llb.Meta, in []solver.Ref) (solver.Plan, error) {
	switch op := op.(type) {
	case llb.Scratch:
		return done(solver.Ref{}), nil
	case llb.Local:
		_, err := p.Session.OpenLocal(ctx, op)
		return done(solver.Ref{Local: &op}), err
	case llb.Image:
		root, err := p.Sources.Image(ctx, op)
		return done(root), err
	case llb.Merge:
		return p.merge(ctx, in)
	case llb.Diff:
		return p.diff(ctx, in)
	case llb.Passthrough:
		outputs := make([]solver.Ref, len(op.Outputs))
		for i, input := range op.Outputs {
			outputs[i] = in[input]
		}
		return done(outputs...), nil
	case llb.Exec:
		return p.exec(ctx, op, meta, in)
	case llb.File:
		return p.file(ctx, op, in)
	case llb.HTTP:
		return p.http(ctx, op)
	case llb.Git:
		return p.git(ctx, op, in)
	case llb.Blob:
		return p.blob(op), nil
	}
	return solver.Plan{}, fmt.Errorf("BUG: unknown op %q", op.Kind())
}

func done(outputs ...solver.Ref) solver.Plan { return solver.Plan{Done: true, Outputs: outputs} }

// Uses implements solver.Planner.
func (p *Planner) Uses(op llb.Op, inputs int) []solver.Use {
	uses := make([]solver.Use, inputs)
	for i := range uses {
		switch op := op.(type) {
		case llb.Exec:
			uses[i] = solver.UseFiles
		case llb.Git:
			if i == 1 {
				uses[i] = solver.UseFiles
			}
		case llb.Merge:
			uses[i] = solver.UseLayers
		case llb.Diff:
			if i == 1 {
				uses[i] = solver.UseLayers
			}
		case llb.File:
			// Names of owners are looked up in files of the root, and an archive can contain links to them.
			if i > 0 || files.Unpacks(op) || len(files.Names(op)) > 0 {
				uses[i] = solver.UseFiles
			}
		}
	}
	return uses
}

// view returns the entries of a root file system.
func (p *Planner) view(ctx context.Context, r solver.Ref) (*layer.Stack, error) {
	layers, err := p.Layers.Entries(ctx, r)
	return layer.NewStack(layers), err
}

// common returns the key inputs of every op.
func common(op llb.Op) []solver.Input {
	return []solver.Input{{Name: "op", Value: op.Kind()}}
}

func contentInput(name string, c solver.Content) solver.Input {
	return solver.Input{Name: name, Value: hex.EncodeToString(c[:])}
}

// http plans the download of a file. The key is its digest.
func (p *Planner) http(ctx context.Context, op llb.HTTP) (solver.Plan, error) {
	f, err := p.Sources.HTTP(ctx, op)
	if err != nil {
		return solver.Plan{}, err
	}
	if op.ServerNames && f.Name != "" {
		op.Filename = f.Name
	}
	w := work.HTTP{Op: op, User: op.User, Digest: f.Digest.String()}
	inputs := append(common(op), solver.Input{Name: "digest", Value: w.Digest}, solver.Input{Name: "name", Value: op.Filename})
	if !f.Modified.IsZero() {
		w.Modified = f.Modified.UTC().Format(time.RFC3339)
		inputs = append(inputs, solver.Input{Name: "last modified", Value: w.Modified})
	}
	return solver.Plan{Inputs: inputs, Work: w, Materials: []solver.Material{{URI: op.URL, Digest: w.Digest}}}, nil
}

// git plans the checkout of a commit. The key depends on the commit and the selected files, but not on the URL, except for a .git
// directory, which contains it.
func (p *Planner) git(ctx context.Context, op llb.Git, in []solver.Ref) (solver.Plan, error) {
	commit, err := p.Sources.Git(ctx, op)
	if err != nil {
		return solver.Plan{}, err
	}
	inputs := append(common(op),
		solver.Input{Name: "commit", Value: commit.ID}, solver.Input{Name: "directory", Value: op.Subdir},
		solver.Input{Name: "submodules", Value: strconv.FormatBool(!op.SkipSubmodules)}, solver.Input{Name: "lfs", Value: "true"})
	if op.KeepGitDir {
		inputs = append(inputs, solver.Input{Name: ".git of", Value: op.Remote}, solver.Input{Name: "ref", Value: commit.Name},
			solver.Input{Name: "object", Value: commit.Object})
	}
	kind := "sha1:"
	if len(commit.ID) == 64 {
		kind = "sha256:"
	}
	w := work.Git{Op: op, User: op.User, Commit: commit.ID, Name: commit.Name, Object: commit.Object}
	if op.AsBundle {
		if w.Name == "HEAD" {
			w.Name = commit.Branch
		}
		inputs = append(inputs, solver.Input{Name: "bundle of", Value: w.Name}, solver.Input{Name: "object", Value: commit.Object})
	}
	if op.Bundled { // it decides nothing: what a commit has is said by its hash
		w.Bundle = in[1]
	}
	return solver.Plan{
		Inputs: inputs, Work: w,
		Materials: []solver.Material{{URI: op.Remote, Digest: kind + commit.ID}},
	}, nil
}

// blob plans the fetch of a blob. The key is its digest.
func (p *Planner) blob(op llb.Blob) solver.Plan {
	p.Sources.UseBlob(op)
	return solver.Plan{
		Inputs:    append(common(op), solver.Input{Name: "digest", Value: op.Digest}, solver.Input{Name: "name", Value: op.Filename}),
		Work:      work.Blob{Op: op},
		Materials: []solver.Material{{URI: op.Ref + "@" + op.Digest, Digest: op.Digest}},
	}
}
