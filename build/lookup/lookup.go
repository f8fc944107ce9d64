// Package lookup finds out what the sources of ops are now, for clients that ask before anything is built.
package lookup

import (
	"context"
	"fmt"

	"github.com/kilnbuild/kiln/build/bases"
	"github.com/kilnbuild/kiln/internal/git"
	"github.com/kilnbuild/kiln/internal/httpsource"
	"github.com/kilnbuild/kiln/llb"
)

// Found is what the source of an op is now: one of the fields is set.
type Found struct {
	Image *bases.Described
	Git   *Git
	// HTTP is a file, whose Path has no meaning.
	HTTP *httpsource.File
}

// Git is a commit, with what git has of it, if that was asked for: the bytes of the commit itself, and of the annotated tag that leads to
// it, nil if none does.
type Git struct {
	git.Commit
	CommitObject, TagObject []byte
}

// Images looks up images.
type Images interface {
	Describe(ctx context.Context, op llb.Image) (*bases.Described, error)
}

// Remote looks up files and commits, as plan.Sources does.
type Remote interface {
	HTTP(ctx context.Context, op llb.HTTP) (httpsource.File, error)
	Git(ctx context.Context, op llb.Git) (git.Commit, error)
}

// Objects fetches a commit, and returns what Git has of it. The commit then stays, whatever the repository does.
type Objects func(ctx context.Context, op llb.Git, c git.Commit) (commit, tag []byte, err error)

// Source looks up an llb.Image, llb.Git or llb.HTTP. Steps with that op get the same. Objects may be nil: then nothing of a repository is
// fetched.
func Source(ctx context.Context, images Images, remote Remote, objects Objects, op llb.Op) (f Found, err error) {
	switch op := op.(type) {
	case llb.Image:
		f.Image, err = images.Describe(ctx, op)
	case llb.Git:
		f.Git = &Git{}
		if f.Git.Commit, err = remote.Git(ctx, op); err == nil && objects != nil {
			f.Git.CommitObject, f.Git.TagObject, err = objects(ctx, op, f.Git.Commit)
		}
	case llb.HTTP:
		var file httpsource.File
		file, err = remote.HTTP(ctx, op)
		f.HTTP = &file
	default:
		err = fmt.Errorf("BUG: a source is looked up that is an op %s", op.Kind())
	}
	return f, err
}
