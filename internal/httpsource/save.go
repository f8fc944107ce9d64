package httpsource

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/opencontainers/go-digest"
)

// Save keeps a file that comes from elsewhere than a server in a directory, as Get would. name is what errors call it. A file without the
// checksum, unless that is "", is an error.
func Save(ctx context.Context, dir, name string, body io.Reader, checksum digest.Digest) (*File, error) {
	f, err := os.CreateTemp(dir, "file-")
	if err != nil {
		return nil, err
	}
	sum := digest.SHA256.Digester()
	n, err := io.Copy(io.MultiWriter(f, sum.Hash()), ctxio.Reader(ctx, io.LimitReader(body, MaxSize+1)))
	err = errors.Join(err, f.Close())
	switch {
	case err == nil && n > MaxSize:
		err = fmt.Errorf("get %s: it is larger than the %s that are allowed", name, termtext.Size(MaxSize))
	case err == nil && checksum != "" && checksum != sum.Digest():
		err = &ChecksumError{URL: name, Got: sum.Digest(), Want: checksum}
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(f.Name()))
	}
	return &File{Digest: sum.Digest(), Size: n, Path: f.Name()}, nil
}
