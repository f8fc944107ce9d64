// Package sources decides what a build takes from elsewhere, and follows it: a source policy says which sources may be used and what is
// used in their place, a lock file which digests they have; and every base image, file and commit becomes known by the name that was asked
// for and the digest that it stood for. The package fetches nothing itself.
package sources

import (
	"context"
	"errors"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/internal/git"
	"github.com/kilnbuild/kiln/internal/httpsource"
	"github.com/kilnbuild/kiln/internal/lockfile"
	"github.com/kilnbuild/kiln/internal/material"
	"github.com/kilnbuild/kiln/internal/sourcepolicy"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver/plan"
)

// Pins say which sources a build may use, and in which version.
type Pins struct {
	// Locked has the build use what the lock file beside the Dockerfile says and nothing else; nil leaves that to kiln.toml.
	Locked *bool
	// Policy says what is allowed, and what is used in place of what; nil for everything as it is named.
	Policy *sourcepolicy.Policy
	// Ask asks the client what is used in place of what the policy admits, for a platform as llb.Platform prints it; nil if it is not asked.
	// What it converts a source into is asked about again. Each request to the client takes one off left; with none left there is an error.
	Ask func(s sourcepolicy.Source, platform string, left *int) (_ sourcepolicy.Source, converted bool, err error)
	// Update reports of an entry of the lock file that it is to be looked up again when a new one is made; nil for none.
	Update func(lockfile.Entry) bool
}

// Config says what sources a build may use.
type Config struct {
	Pins
	// Store is the directory of the image store. What is named there as an OCI layout is another target of the same command, and no source.
	Store string
	// Default is what counts where Pins.Locked is nil.
	Default bool
	// Pull says that registries are asked even about images that are here.
	Pull bool
	// First says that they are asked first, and that what they do not have is taken from the image store.
	First bool
	// TextOnly says that the build needs no source, and so no lock file.
	TextOnly bool
	// Relock is for a build that makes a lock file and nothing else: Pins.Locked and Default have no part in it.
	Relock bool
}

// Sources are those of one build. Its methods may be called from several goroutines, once the lock file is set.
type Sources struct {
	config Config
	lock   *lock
	taken  material.Set

	mu     sync.Mutex
	wanted map[sourceKey]wanted // with a lock file, what was asked for
}

// New returns the sources of a build, which has none yet.
func New(c Config) *Sources { return &Sources{config: c} }

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
func (p planned) HTTP(ctx context.Context, op llb.HTTP) (httpsource.File, error) {
	f, err := p.Sources.HTTP(ctx, op)
	e, locked := p.s.locked(material.File, op.URL)
	changed := func(now digest.Digest) error {
		return &ChangedError{File: p.s.lock.name, Source: shown(e.Kind, e.Name), Locked: e.Digest, Now: now.String(), Err: err}
	}
	if other, ok := errors.AsType[*httpsource.ChecksumError](err); ok && locked && other.Want.String() == e.Digest {
		return f, changed(other.Got)
	}
	if err == nil && locked && f.Digest.String() != e.Digest {
		return f, changed(f.Digest)
	}
	if err == nil {
		p.s.Took(material.Material{Kind: material.File, Name: op.URL, Digest: f.Digest.String()})
	}
	return f, err
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

// UseBlob implements plan.Sources.
func (p planned) UseBlob(op llb.Blob) {
	m := material.Material{Kind: material.Blob, Name: op.Ref + "@" + op.Digest, Digest: op.Digest, BundleOf: op.BundleOf}
	if op.Store != "" {
		m.Kind = material.LayoutBlob
	}
	p.s.Took(m)
	p.Sources.UseBlob(op)
}

// GitName returns the name of what an op fetches as a material: the address of the repository and the ref, without the directory, since a
// commit is that of the whole repository.
func GitName(op llb.Git) string {
	if op.Ref == "" {
		return op.Remote
	}
	return op.Remote + "#" + op.Ref
}
