package ops

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/kilnbuild/kiln/internal/httpsource"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/llb"
	digest "github.com/opencontainers/go-digest"
)

// SourceTime returns the time of what an llb.Git or llb.HTTP fetches: that of the commit, or when the server says that the
// file was modified, or else, of an archive, that of the newest file in it; zero for none.
func (r *Runner) SourceTime(ctx context.Context, op llb.Op) (time.Time, error) {
	switch op := op.(type) {
	case llb.Git:
		s := gitSource(op)
		who, giveBack, err := r.gitIdentity(ctx, op)
		if err != nil {
			return time.Time{}, err
		}
		defer giveBack()
		commit, err := r.gitCommit(ctx, s, who)
		if err != nil {
			return time.Time{}, err
		}
		return r.git.Time(ctx, s, commit, who)
	case llb.HTTP:
		return r.fileTime(ctx, op)
	default:
		return time.Time{}, fmt.Errorf("BUG: the time of %s", op.Kind())
	}
}

func (r *Runner) fileTime(ctx context.Context, op llb.HTTP) (time.Time, error) {
	client := r.httpClient()
	req := httpsource.Request{HTTP: remoteurl.HTTP{URL: op.URL, User: op.User}, Checksum: digest.Digest(op.Checksum)}
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
	tr, h, ok := openArchive(body)
	if !ok {
		return time.Time{}, nil
	}
	return newest(tr, h)
}

// newest returns the time of the newest regular file of an archive whose first header has been read.
func newest(tr *tar.Reader, h *tar.Header) (time.Time, error) {
	var made time.Time
	for {
		if h.FileInfo().Mode().IsRegular() && h.ModTime.After(made) {
			made = h.ModTime
		}
		var err error
		if h, err = tr.Next(); err == io.EOF {
			return made, nil
		} else if err != nil {
			return made, err
		}
	}
}
