package snapshot

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/ctxtest"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/rootfs"
)

// largeTar is a tar of one large file.
func largeTar(t *testing.T) io.Reader {
	t.Helper()
	var head bytes.Buffer
	if err := tar.NewWriter(&head).WriteHeader(&tar.Header{Name: "file", Typeflag: tar.TypeReg, Mode: 0o644, Size: largeSize}); err != nil {
		t.Fatal(err)
	}
	return io.MultiReader(&head, io.LimitReader(zeros{}, largeSize+1024))
}

const largeSize = 64 << 20

// zeros are as many as are asked for.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestUnpackEnds shows that reading a layer ends with its context, within a file of any size and among any number of entries.
func TestUnpackEnds(t *testing.T) {
	s := newStore(t)
	id := layer.ID(fmt.Sprintf("%064x", 1))
	if _, err := s.Unpack(ctxtest.EndAfter(20), id, largeTar(t), nil); !errors.Is(err, ctxtest.ErrEnded) {
		t.Errorf("Unpack: %v", err)
	}
	if err := s.Index(ctxtest.EndAfter(20), id, largeTar(t)); !errors.Is(err, ctxtest.ErrEnded) {
		t.Errorf("Index: %v", err)
	}
	var many bytes.Buffer
	w := tar.NewWriter(&many)
	const n = 1000
	for i := range n {
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprint(i), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// Once for each entry that is read, and once for each that is kept.
	for _, at := range []int{n / 2, n + n/2} {
		if err := s.Index(ctxtest.EndAfter(at), id, bytes.NewReader(many.Bytes())); !errors.Is(err, ctxtest.ErrEnded) {
			t.Errorf("Index, whose context ended when it was looked at %d times: %v", at, err)
		}
	}
	for _, at := range []int{n / 2, n + n/2} {
		if _, err := s.Unpack(ctxtest.EndAfter(at), id, bytes.NewReader(many.Bytes()), nil); !errors.Is(err, ctxtest.ErrEnded) {
			t.Errorf("Unpack, whose context ended when it was looked at %d times: %v", at, err)
		}
	}
	if s.HasEntries(id) {
		t.Error("what was not read to its end is there")
	}
}

// TestExportEnds shows that copying a root ends with its context.
func TestExportEnds(t *testing.T) {
	s := newStore(t)
	c := step(t, s, nil, func(root *rootfs.Root) {
		for i := range 100 {
			put(t, root, fmt.Sprint(i), "x")
		}
	})
	tree, err := s.Stack([]layer.ID{c.ID})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Export(ctxtest.EndAfter(50), tree, t.TempDir()); !errors.Is(err, ctxtest.ErrEnded) {
		t.Errorf("Export: %v", err)
	}
	if err := s.Export(ctxtest.EndAfter(3), largeTree{tree}, t.TempDir()); !errors.Is(err, ctxtest.ErrEnded) {
		t.Errorf("Export of a large file: %v", err)
	}
}

// largeTree has large files.
type largeTree struct{ layer.Tree }

func (largeTree) Open(*layer.Entry) (io.ReadCloser, error) {
	return io.NopCloser(io.LimitReader(zeros{}, largeSize)), nil
}

// TestUnpackingBlobEnds shows that making files of a blob ends with the context, and that the layer is not taken for damaged then.
func TestUnpackingBlobEnds(t *testing.T) {
	s, o := newStore(t), newStore(t)
	c := step(t, s, nil, func(root *rootfs.Root) {
		for i := range 100 {
			put(t, root, fmt.Sprint(i), "text")
		}
	})
	pack(t, s, o, c.ID, tarOf(t, s, c.ID))
	opened, err := o.carried(t.Context(), c.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{1, 5, 50} {
		if err := o.fill(ctxtest.EndAfter(at), opened); !errors.Is(err, ctxtest.ErrEnded) {
			t.Errorf("fill, whose context ended when it was looked at %d times: %v", at, err)
		}
	}
	if _, err := o.Files(c.ID); err != nil {
		t.Errorf("after that: %v", err)
	}
}

// TestCopyEnds shows that reading what a step left of a copy ends with the context, also while it is made a layer.
func TestCopyEnds(t *testing.T) {
	t.Setenv(mount.TestVariable, "copy")
	s := newStore(t)
	c := step(t, s, nil, func(root *rootfs.Root) {
		for i := range 20 {
			put(t, root, fmt.Sprint(i), "x")
		}
	})
	tree, err := s.Stack([]layer.ID{c.ID})
	if err != nil {
		t.Fatal(err)
	}
	looked := 0
	for at := 1; ; at++ {
		p, err := s.New()
		if err != nil {
			t.Fatal(err)
		}
		m, err := s.Mount(t.Context(), []layer.ID{c.ID}, p, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			put(t, rootfs.At(m.File), fmt.Sprint("new", i), "new")
		}
		_, err = p.CommitChanges(ctxtest.EndAfter(at), m, tree, time.Now())
		m.Close()
		p.Close()
		if err == nil {
			break
		}
		if !errors.Is(err, ctxtest.ErrEnded) {
			t.Fatalf("CommitChanges, whose context ended when it was looked at %d times: %v", at, err)
		}
		looked++
	}
	// Each file is looked at when it is read, and when it is written.
	if looked < 40 {
		t.Errorf("the context was looked at %d times", looked)
	}
}
