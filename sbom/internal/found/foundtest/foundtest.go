// Package foundtest has files for the tests of readers.
package foundtest

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/sbom/internal/found"
)

// File returns a file with some bytes.
func File(path string, data []byte) *found.File {
	return &found.File{Path: path, Size: int64(len(data)), Reader: bytes.NewReader(data), Spool: spool}
}

func spool(r io.Reader, limit int64) (io.ReaderAt, int64, func(), error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, 0, nil, &found.ReadError{Err: err}
	}
	if int64(len(data)) > limit {
		return nil, 0, nil, &found.TooLargeError{Limit: limit}
	}
	return bytes.NewReader(data), int64(len(data)), func() {}, nil
}

// Show returns packages as text, "type namespace/name@version", one a line.
func Show(all []found.Package) string {
	var b strings.Builder
	for _, p := range all {
		b.WriteString(p.Type + " ")
		if p.Namespace != "" {
			b.WriteString(p.Namespace + "/")
		}
		b.WriteString(p.Name + "@" + p.Version)
		for _, s := range []string{p.Arch, p.Upstream, p.Epoch, p.License, p.Supplier} {
			if s != "" {
				b.WriteString(" [" + s + "]")
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

// Fuzz holds that a reader returns for any bytes, with packages that can be shown.
func Fuzz(f *testing.F, path string, read func(*found.File) ([]found.Package, error)) {
	f.Fuzz(func(t *testing.T, data []byte) {
		all, _ := read(File(path, data))
		for _, p := range all {
			if p.Name == "" || p.Name != found.Field(p.Name) || p.Version != found.Field(p.Version) {
				t.Errorf("%+q", p)
			}
		}
	})
}
