package layer

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// seen is what a user of a Reader sees of an archive, as text: entries, digests of their bytes, and errors in their places. Of every third
// entry it does not read the bytes, and of every fifth only the first.
func seen(r *Reader) string {
	var b strings.Builder
	for i := 1; ; i++ {
		e, err := r.Next()
		fmt.Fprintf(&b, "%+v %v\n", e, err)
		if err == io.EOF {
			fmt.Fprintf(&b, "rest %v\n", r.Rest())
			return b.String()
		}
		if err != nil {
			_, again := r.Next()
			fmt.Fprintf(&b, "again %v\n", again)
			return b.String()
		}
		if i%3 == 0 {
			continue
		}
		var body io.Reader = r
		if i%5 == 0 {
			body = io.LimitReader(r, 1)
		}
		data, err := io.ReadAll(body)
		fmt.Fprintf(&b, "%d bytes %x %v\n", len(data), sha256.Sum256(data), err)
	}
}

// archiveOf returns an archive of files with these sizes, and of links to them.
func archiveOf(t *testing.T, sizes ...int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i, size := range sizes {
		name := fmt.Sprintf("dir/%d", i)
		for _, h := range []*tar.Header{
			{Typeflag: tar.TypeReg, Name: name, Size: int64(size), ModTime: t0, PAXRecords: map[string]string{xattrRecord + "user.n": name}},
			{Typeflag: tar.TypeLink, Name: name + ".link", Linkname: name, Mode: 0o644},
		} {
			err := w.WriteHeader(h)
			if err == nil && h.Size > 0 {
				_, err = w.Write(bytes.Repeat([]byte{byte(i), 0, 7}, size)[:size])
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Whoever reads an archive ahead sees the same as who does not, wherever it ends, fails, or breaks a limit.
func TestReadAhead(t *testing.T) {
	small := archiveOf(t, 0, 1, 511, 512, 513, 5000)
	large := archiveOf(t, 3, aheadFile-1, aheadFile, aheadFile+1, 0, 3*aheadRun, 700, aheadFile, 2*aheadFile)
	many := archiveOf(t, make([]int, 3*aheadRuns*aheadRun/entryMemory)...)
	failed := errors.New("the line is cut")
	check := func(what string, limit Limit, open func() io.Reader) {
		t.Helper()
		want := seen(NewReader(open(), limit))
		r := NewReader(open(), limit)
		r.Ahead()
		defer r.Close()
		if got := seen(r); got != want {
			t.Fatalf("%s: ahead\n%s\nwithout\n%s", what, got, want)
		}
	}
	check("many entries", Limit{}, func() io.Reader { return bytes.NewReader(many) })
	check("too many entries", Limit{Entries: 3000}, func() io.Reader { return bytes.NewReader(many) })
	check("too many bytes", Limit{Size: 2 * aheadRun}, func() io.Reader { return bytes.NewReader(large) })
	check("bytes after the archive", Limit{}, func() io.Reader {
		return io.MultiReader(bytes.NewReader(large), iotest.ErrReader(failed))
	})
	for _, data := range [][]byte{small, large} {
		for n := 0; n <= len(data); n += max(100, len(data)/15) {
			check(fmt.Sprint("the first ", n), Limit{}, func() io.Reader { return bytes.NewReader(data[:n]) })
			check(fmt.Sprint("a failure after ", n), Limit{}, func() io.Reader {
				return io.MultiReader(bytes.NewReader(data[:n]), iotest.ErrReader(failed))
			})
			bad := bytes.Clone(data)
			copy(bad[n:], "not a header at all")
			check(fmt.Sprint("other bytes at ", n), Limit{}, func() io.Reader { return bytes.NewReader(bad) })
		}
	}
}

// A Reader can be closed at any entry, and does not read its archive afterwards.
func TestReadAheadCloses(t *testing.T) {
	data := archiveOf(t, 10, aheadFile, 2*aheadFile, 20, aheadFile, aheadFile, aheadFile, aheadFile, aheadFile, 4)
	for n := range 22 {
		source := bytes.NewReader(data) // the race detector sees who reads it when
		r := NewReader(source, Limit{})
		r.Ahead()
		for range n {
			if _, err := r.Next(); err != nil {
				break
			}
		}
		r.Close()
		source.Reset(nil)
	}
}
