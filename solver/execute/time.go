package execute

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver/files"
)

// SourceTime returns the time of what an llb.Git or llb.HTTP fetches: that of the commit, or when the server says that the
// file was modified, or else, of an archive, that of the newest file in it; zero for none.
func (x *Job) SourceTime(ctx context.Context, op llb.Op) (time.Time, error) {
	switch op := op.(type) {
	case llb.Git:
		commit, err := x.Git(ctx, op)
		if err != nil {
			return time.Time{}, err
		}
		who, giveBack, err := x.gitIdentity(ctx, op)
		if err != nil {
			return time.Time{}, err
		}
		defer giveBack()
		return x.git.Time(ctx, gitSource(op), commit, who)
	case llb.HTTP:
		return x.fileTime(ctx, op)
	default:
		return time.Time{}, fmt.Errorf("BUG: the time of %s", op.Kind())
	}
}

func (x *Job) fileTime(ctx context.Context, op llb.HTTP) (time.Time, error) {
	client := x.httpClient()
	req, err := x.httpRequest(ctx, op)
	if err != nil {
		return time.Time{}, err
	}
	f, err := client.Look(ctx, req)
	if err == nil && f.Path == "" && f.Modified.IsZero() {
		f, err = client.Get(ctx, req)
	}
	if err != nil {
		return time.Time{}, err
	}
	if f.Path == "" {
		return f.Modified, nil
	}
	defer os.Remove(f.Path)
	if !f.Modified.IsZero() {
		return f.Modified, nil
	}
	body, err := os.Open(f.Path)
	if err != nil {
		return time.Time{}, err
	}
	defer body.Close()
	archive, ok := files.OpenArchive(body, x.Snapshots.Limit())
	if !ok {
		return time.Time{}, nil
	}
	return archive.Newest()
}
