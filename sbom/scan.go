package sbom

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/sbom/internal/binaries"
	"github.com/kilnbuild/kiln/sbom/internal/found"
	"github.com/kilnbuild/kiln/sbom/internal/system"
)

// scan reads the files of a layer that can tell of packages. tmp is a directory for files that have to be read in any order.
func scan(ctx context.Context, m *layer.Manifest, files layer.Files, tmp string) ([]finding, error) {
	var all []finding
	weight := 0
	for e := range m.All() {
		if e.Type != layer.File && e.Type != layer.Hardlink {
			continue
		}
		if err := ctxio.Ended(ctx); err != nil {
			return nil, err
		}
		file := *e
		if e.Type == layer.Hardlink {
			first, ok := m.Lookup(e.Link)
			if !ok {
				return nil, fmt.Errorf("/%s is a link to nothing: %w", e.Path, layer.ErrDamaged)
			}
			file = first
			named := first
			named.Path = e.Path
			if _, program, ok := wanted(&named); !ok || program {
				continue // a program is found under its first name
			}
		}
		named := file
		named.Path = e.Path
		r, program, ok := wanted(&named)
		if !ok {
			continue
		}
		f, err := one(ctx, files, &file, e.Path, r, program, tmp)
		if err != nil {
			return nil, err
		}
		if len(f.Packages) == 0 && f.Release == nil && f.Problem == "" {
			continue
		}
		for i := range f.Packages {
			if weight += f.Packages[i].Weight(); weight > found.MaxWeight {
				f.Packages, f.Problem = f.Packages[:i:i], found.ErrTooMany.Error()+", with the files before it in the layer"
				break
			}
		}
		all = append(all, *f)
	}
	return all, nil
}

// one reads the file of an entry as one called path. What is wrong with its content is said in the finding.
func one(ctx context.Context, files layer.Files, e *layer.Entry, path string, r reader, program bool, tmp string) (*finding, error) {
	body, err := files.Open(e)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	source := ctxio.Reader(ctx, body)
	if program {
		var magic [4]byte
		if _, err := io.ReadFull(source, magic[:]); err != nil {
			return nil, err
		}
		if !binaries.IsELF(magic[:]) {
			return &finding{}, nil
		}
		source = io.MultiReader(bytes.NewReader(magic[:]), source)
	}
	file := &found.File{Path: path, Size: e.Size, Reader: source, Spool: func(r io.Reader, limit int64) (io.ReaderAt, int64, func(), error) {
		return spool(tmp, r, limit)
	}}
	f := &finding{Path: path, Kind: r.kind}
	if r.kind == kindRelease {
		f.Release, err = system.OSRelease(file)
	} else {
		f.Packages, err = r.read(file)
	}
	var read *found.ReadError
	switch {
	case err == nil:
	case errors.As(err, &read):
		return nil, fmt.Errorf("read /%s: %w", path, read.Err)
	default:
		f.Problem = found.Field(err.Error())
	}
	return f, nil
}

// spool is found.File.Spool, with a file in the directory tmp that has no name.
func spool(tmp string, r io.Reader, limit int64) (io.ReaderAt, int64, func(), error) {
	f, err := os.CreateTemp(tmp, "scan-")
	if err != nil {
		return nil, 0, nil, &found.ReadError{Err: err}
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, 0, nil, &found.ReadError{Err: err}
	}
	n, err := io.Copy(f, io.LimitReader(r, limit+1))
	if err == nil && n > limit {
		err = &found.TooLargeError{Limit: limit}
	} else if err != nil {
		err = &found.ReadError{Err: err}
	}
	if err != nil {
		f.Close()
		return nil, 0, nil, err
	}
	return f, n, func() { f.Close() }, nil
}
