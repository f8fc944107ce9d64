package snapshot

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/snapshot/blob"
	"golang.org/x/sys/unix"
)

var plain = blob.Encoding{Compression: blob.Uncompressed}

// pack commits the layer that a step made once more in another store, as a blob alone, with the bytes of a tar.
func pack(t *testing.T, from, to *tested, id layer.ID, tarball []byte) blob.Blob {
	t.Helper()
	m, err := from.Manifest(id)
	if err != nil {
		t.Fatal(err)
	}
	p, err := to.New()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	w, err := p.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for e := range m.All() {
		if err := w.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	sum, err := w.Close(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	making, err := to.BeginBlob(t.Context(), id, plain)
	if err != nil {
		t.Fatal(err)
	}
	defer making.Close()
	if _, err := making.Write(tarball); err != nil {
		t.Fatal(err)
	}
	b, err := making.Commit()
	if err == nil {
		err = p.Pack(plain, b)
	}
	if err != nil {
		t.Fatal(err)
	}
	if c, err := p.CommitWritten(t.Context(), sum, ""); err != nil || c.ID != id {
		t.Fatalf("the layer %s is committed as %s, %v", id, c.ID, err)
	}
	return b
}

// form returns the form of a layer that exists.
func (s *tested) form(id layer.ID) Form {
	s.t.Helper()
	f, _, err := formOf(s.Path(id))
	if err != nil {
		s.t.Fatal(err)
	}
	return f
}

func TestBlobOnly(t *testing.T) {
	s, o := newStore(t), newStore(t)
	below := step(t, s, nil, func(root *rootfs.Root) { put(t, root, "gone", "gone") })
	c := step(t, s, []layer.ID{below.ID}, func(root *rootfs.Root) {
		put(t, root, "file", "text")
		put(t, root, "empty", "")
		put(t, root, "last", "the last one")
	})
	whole := tarOf(t, s, c.ID)
	b := pack(t, s, o, c.ID, whole)
	if o.form(c.ID) != BlobOnly {
		t.Errorf("the form is %v", o.form(c.ID))
	}
	if got, want := mounted(t, o, []layer.ID{c.ID}), mounted(t, s, []layer.ID{c.ID}); got != want {
		t.Errorf("mounted it is\n%swant\n%s", got, want)
	}
	// The blob is read once: its files are the layer's from then on, also without the blob.
	if o.form(c.ID) != Whole {
		t.Errorf("the form is %v, and the layer was mounted", o.form(c.ID))
	}
	path, err := o.cas.Path(b.Desc.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	o = reopen(t, o)
	tree, err := o.Stack([]layer.ID{c.ID})
	if err != nil {
		t.Fatal(err)
	}
	f, err := tree.Open(&layer.Entry{Path: "last"})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if text, err := io.ReadAll(f); err != nil || string(text) != "the last one" {
		t.Errorf("a file is %q, %v", text, err)
	}
	if err := o.Verify(t.Context(), c.ID, func(path, what string) { t.Errorf("%s %s", path, what) }, func(int64) {}); err != nil {
		t.Error(err)
	}
	// And the blob is made of them again.
	if again, err := o.Blob(t.Context(), c.ID, plain); err != nil || again.Desc.Digest != b.Desc.Digest {
		t.Errorf("the blob that was made again is %v, %v", again, err)
	}
}

// A layer whose blob has other bytes is given up when its files are needed, and what is made again takes its place.
func TestBlobOfOtherBytes(t *testing.T) {
	s := newStore(t)
	c := step(t, s, nil, func(root *rootfs.Root) { put(t, root, "file", "the last one") })
	whole := tarOf(t, s, c.ID)
	for name, other := range map[string][]byte{
		"cut":     whole[:520],
		"empty":   {},
		"changed": bytes.Replace(whole, []byte("the last one"), []byte("the last two"), 1),
	} {
		o := newStore(t)
		pack(t, s, o, c.ID, other)
		if _, err := o.Files(c.ID); !errors.As(err, new(*DamagedError)) {
			t.Errorf("%s: Files = %v, want a DamagedError", name, err)
		}
		if o.Has(c.ID) {
			t.Errorf("%s: the layer still exists", name)
		}
		pack(t, s, o, c.ID, whole)
		if _, err := o.Files(c.ID); err != nil {
			t.Errorf("%s: made again: %v", name, err)
		}
	}
}

func put(t *testing.T, root *rootfs.Root, name, text string) {
	t.Helper()
	f, err := root.OpenFile(name, unix.O_WRONLY|unix.O_CREAT, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	f.Close()
}
