package build

import (
	"context"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/build/bases"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/git"
	"github.com/kilnbuild/kiln/llb"
)

// Found is what the source of an op is now: one of the fields is set.
type Found struct {
	Image *bases.Described
	// Git is a commit.
	Git *git.Commit
	// HTTP is a file.
	HTTP *File
}

// File is a file from elsewhere.
type File struct {
	Digest digest.Digest
	// Modified is when the server says that it has changed; zero if it does not say.
	Modified time.Time
}

// Resolve looks up what an llb.Image, llb.Git or llb.HTTP is now; steps with that op get the same. Place and text say what it is for.
func (j *Job) Resolve(ctx context.Context, op llb.Op, place llb.Place, text string) (f Found, err error) {
	task := j.events.Task(place, text)
	defer func() { task.Done(err) }()
	ctx = events.With(ctx, task)
	switch op := op.(type) {
	case llb.Image:
		f.Image, err = j.bases.Describe(ctx, op)
	case llb.Git:
		var c git.Commit
		c, err = j.steps.Sources.Git(ctx, op)
		f.Git = &c
	case llb.HTTP:
		f.HTTP = &File{}
		f.HTTP.Digest, f.HTTP.Modified, err = j.steps.Sources.HTTP(ctx, op)
	default:
		err = fmt.Errorf("BUG: a source is looked up that is an op %s", op.Kind())
	}
	return f, err
}
