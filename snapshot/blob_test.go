package snapshot

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"golang.org/x/sys/unix"
)

// packed commits the layer that a step made once more in another store, as its tar alone, which it returns.
func packed(t *testing.T, from, to *Store, id string) (blob []byte) {
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
	if err == nil {
		err = p.Pack("blob.x", []byte("note"))
	}
	if err != nil {
		t.Fatal(err)
	}
	if c, err := p.CommitWritten(sum, ""); err != nil || c.ID != id {
		t.Fatalf("the layer %s is committed as %s, %v", id, c.ID, err)
	}
	return tarOf(t, from, id)
}

func TestPacked(t *testing.T) {
	s, o := newStore(t), newStore(t)
	below := step(t, s, nil, func(root *rootfs.Root) { put(t, root, "gone", "gone") })
	c := step(t, s, []string{below.ID}, func(root *rootfs.Root) {
		put(t, root, "file", "text")
		put(t, root, "empty", "")
		put(t, root, "last", "the last one")
	})
	var blob []byte
	o.Blob = func(string) (Blob, bool) {
		return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(blob)), nil }, blob != nil
	}
	blob = []byte{}
	blob = packed(t, s, o, c.ID)
	if got, want := mounted(t, o, []string{c.ID}), mounted(t, s, []string{c.ID}); got != want {
		t.Errorf("mounted it is\n%swant\n%s", got, want)
	}
	// The blob is read once, and what was made of it is a layer as any other.
	whole := blob
	blob = []byte{}
	tree, err := o.Stack([]string{c.ID})
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
	ids, err := o.IDs()
	if err != nil || len(ids) != 2 {
		t.Fatalf("the store has the layers %v, %v", ids, err)
	}
	for _, id := range ids {
		err := o.Verify(context.Background(), id, func(path, what string) { t.Errorf("%s: %s %s", id, path, what) }, func(int64) {})
		if err != nil {
			t.Error(err)
		}
	}

	// Without its blob it is not there.
	blob = nil
	o.forget()
	if o.Has(c.ID) {
		t.Error("a layer whose blob is gone is there")
	}
	// With another's bytes it is given up, and what is made again takes its place.
	for name, other := range map[string][]byte{
		"cut":     whole[:1024],
		"empty":   {},
		"changed": bytes.Replace(whole, []byte("the last one"), []byte("the last two"), 1),
	} {
		blob = other
		for _, id := range ids {
			if err := os.RemoveAll(o.Path(id)); err != nil {
				t.Fatal(err)
			}
		}
		o.forget()
		packed(t, s, o, c.ID)
		if _, err := o.Files(c.ID); !errors.As(err, new(*DamagedError)) {
			t.Errorf("%s: Files = %v, want a DamagedError", name, err)
		}
		if o.Has(c.ID) {
			t.Errorf("%s: the layer is still there", name)
		}
	}
	blob = whole
	packed(t, s, o, c.ID)
	if _, err := o.Files(c.ID); err != nil {
		t.Error(err)
	}
}

// forget has the store look anew, as another process does.
func (s *Store) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.manifests)
	clear(s.files)
	clear(s.opened)
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
