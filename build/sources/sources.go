// Package sources follows what a build takes from elsewhere: it knows every base image, file and commit by the name that was asked for and
// the digest that the name stood for. It fetches nothing itself.
package sources

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/internal/git"
	"github.com/kilnbuild/kiln/internal/material"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver/plan"
)

// Sources are those of one build. The zero value has none yet. Its methods may be called from several goroutines.
type Sources struct {
	taken material.Set
}

// Materials returns what the build has taken so far, by kind, name and platform.
func (s *Sources) Materials() []material.Material { return s.taken.Sorted() }

// Took adds a material.
func (s *Sources) Took(m material.Material) { s.taken.Add(m) }

// Planned returns remote in a form that adds what it resolves to the materials of the build.
func (s *Sources) Planned(remote plan.Sources) plan.Sources { return planned{remote, s} }

type planned struct {
	plan.Sources
	s *Sources
}

// HTTP implements plan.Sources.
func (p planned) HTTP(ctx context.Context, op llb.HTTP) (digest.Digest, time.Time, error) {
	d, modified, err := p.Sources.HTTP(ctx, op)
	if err == nil {
		p.s.Took(material.Material{Kind: material.File, Name: op.URL, Digest: d.String()})
	}
	return d, modified, err
}

// Git implements plan.Sources.
func (p planned) Git(ctx context.Context, op llb.Git) (git.Commit, error) {
	c, err := p.Sources.Git(ctx, op)
	if err == nil {
		m := material.Material{Kind: material.Git, Name: GitName(op), Digest: material.Commit(c.ID)}
		if c.Name != "" {
			m.Ref, m.Object = c.Name, c.Object
		}
		p.s.Took(m)
	}
	return c, err
}

// GitName returns the name of what an op fetches as a material: the address of the repository and the ref, without the directory, since a
// commit is that of the whole repository.
func GitName(op llb.Git) string {
	if op.Ref == "" {
		return op.Remote
	}
	return op.Remote + "#" + op.Ref
}
