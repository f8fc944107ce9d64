package received

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/internal/rootdir"
)

const (
	key   = "0123456789abcdef0123456789abcdef"
	one   = "00000000000000000000000000000001"
	other = "00000000000000000000000000000002"
)

// host is a root directory.
type host struct {
	t         *testing.T
	root, tmp string
}

func newHost(t *testing.T) *host {
	return &host{t, t.TempDir(), t.TempDir()}
}

func (h *host) open(variant string) *Cache {
	h.t.Helper()
	c, err := Open(h.t.Context(), h.root, h.tmp, key, variant)
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

func (h *host) close(c *Cache) {
	h.t.Helper()
	if err := c.Close(); err != nil {
		h.t.Fatal(err)
	}
}

// files counts the files of the cache.
func (h *host) files() (n int) {
	h.t.Helper()
	err := (&Cache{dir: filepath.Join(h.root, rootdir.Received, key)}).each(func(string, layer.Digest, bool) error {
		n++
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

var mtime = time.Unix(1700000000, 123456789)

func entry(path, text string) layer.Entry {
	return layer.Entry{Path: path, Type: layer.File, Mode: 0o644, Size: int64(len(text)), ModTime: mtime}
}

// send does what a transfer does with files, given as pairs of path and text, and returns how many of them had to be sent.
func (h *host) send(c *Cache, pairs ...string) (tree *Tree, sent int) {
	h.t.Helper()
	var at Known
	var entries []layer.Entry
	for i := 0; i < len(pairs); i += 2 {
		e := entry(pairs[i], pairs[i+1])
		d, ok := c.Digest(&at, &e)
		if !ok {
			sent++
			f := c.Create()
			if _, err := io.Copy(f, strings.NewReader(pairs[i+1])); err != nil {
				h.t.Fatal(err)
			}
			var err error
			if d, err = f.Commit(); err != nil {
				h.t.Fatal(err)
			}
		}
		e.Digest = d
		entries = append(entries, e)
	}
	tree, err := c.Finish(entries)
	if err != nil {
		h.t.Fatal(err)
	}
	return tree, sent
}

func read(t *testing.T, tree *Tree, path string) string {
	t.Helper()
	e, ok, err := tree.Lookup(path)
	if err != nil || !ok {
		t.Fatalf("%s: %v, %v", path, ok, err)
	}
	f, err := tree.Open(&e)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// What was sent is not sent again, by another selection neither, and what no list has any more is gone.
func TestAgain(t *testing.T) {
	h := newHost(t)
	large := strings.Repeat("large", 100_000)
	c := h.open(one)
	tree, sent := h.send(c, "a", "A", "b", large, "c", "A")
	if sent != 3 || read(t, tree, "b") != large || read(t, tree, "c") != "A" {
		t.Errorf("%d files were sent first", sent)
	}
	h.close(c)
	c = h.open(one)
	if _, sent := h.send(c, "a", "A", "b", large, "c", "A"); sent != 0 {
		t.Errorf("%d files were sent again", sent)
	}
	h.close(c)
	c = h.open(other)
	if tree, sent := h.send(c, "b", large, "d", "D"); sent != 1 || read(t, tree, "d") != "D" {
		t.Errorf("%d files were sent by another selection", sent)
	}
	h.close(c)
	if n := h.files(); n != 3 {
		t.Errorf("there are %d files, want 3", n)
	}
	c = h.open(one)
	if tree, sent := h.send(c, "a", "other"); sent != 1 || read(t, tree, "a") != "other" {
		t.Errorf("%d files were sent after an edit", sent)
	}
	h.close(c)
	if n := h.files(); n != 3 { // the other selection has two of them
		t.Errorf("after an edit there are %d files, want 3", n)
	}
}

// A file that the client describes in another way, or whose entry says so, is sent again.
func TestDescription(t *testing.T) {
	h := newHost(t)
	c := h.open(one)
	h.send(c, "a", "A")
	for name, change := range map[string]func(*layer.Entry){
		"size": func(e *layer.Entry) { e.Size++ }, "time": func(e *layer.Entry) { e.ModTime = e.ModTime.Add(1) },
		"mode": func(e *layer.Entry) { e.Mode = 0o755 }, "owner": func(e *layer.Entry) { e.UID = 1 },
	} {
		e := entry("a", "A")
		if _, ok := c.Digest(new(Known), &e); !ok {
			t.Fatal("the file is not known")
		}
		change(&e)
		if _, ok := c.Digest(new(Known), &e); ok {
			t.Errorf("another %s is not seen", name)
		}
	}
	doubtful := entry("a", "A")
	doubtful.Digest, doubtful.Clock = sha256.Sum256([]byte("A")), true
	tree, err := c.Finish([]layer.Entry{doubtful})
	if err != nil {
		t.Fatal(err)
	}
	if e, _, _ := tree.Lookup("a"); e.Clock {
		t.Error("the tree says that the time is of the clock")
	}
	e := entry("a", "A")
	if _, ok := c.Digest(new(Known), &e); ok {
		t.Error("what has to be sent again is known")
	}
	h.close(c)
}

// Two clients may use a cache at the same time: each has what it sent, and nothing is removed that the other uses.
func TestTogether(t *testing.T) {
	h := newHost(t)
	first := h.open(one)
	a, _ := h.send(first, "x", "first")
	second := h.open(one)
	if _, sent := h.send(second, "x", "second"); sent != 1 {
		t.Errorf("%d files were sent", sent)
	}
	h.close(second)
	if got := read(t, a, "x"); got != "first" {
		t.Errorf("the first has %q", got)
	}
	h.close(first)
	if n := h.files(); n != 1 {
		t.Errorf("there are %d files, want 1", n)
	}
	third := h.open(one)
	if b, sent := h.send(third, "x", "second"); sent != 0 || read(t, b, "x") != "second" {
		t.Errorf("%d files were sent again", sent)
	}
	h.close(third)
}

// What a process that was killed has left goes with the next use.
func TestLeft(t *testing.T) {
	h := newHost(t)
	c := h.open(one)
	h.send(c, "a", "A")
	f := c.Create()
	f.Write(bytes.Repeat([]byte("x"), 2*maxBuffered))
	if _, err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	c.lock.Release() // as the kernel does
	if n := h.files(); n != 2 {
		t.Fatalf("there are %d files, want 2", n)
	}
	h.close(h.open(one))
	if n := h.files(); n != 1 {
		t.Errorf("there are %d files, want 1", n)
	}
}

// After a start of the host, nothing is believed that is not there as it should be.
func TestBoot(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, file string){
		"a lost file":    func(t *testing.T, file string) { check(t, os.Remove(file)) },
		"an empty file":  func(t *testing.T, file string) { check(t, os.Truncate(file, 0)) },
		"another's text": func(t *testing.T, file string) { check(t, os.WriteFile(file, []byte("B"), 0o600)) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			c := h.open(one)
			h.send(c, "a", "A", "b", "BB")
			file := c.file(sha256.Sum256([]byte("A")))
			h.close(c)
			damage(t, file)
			next := filepath.Join(t.TempDir(), "boot")
			check(t, os.WriteFile(next, []byte("another"), 0o600))
			bootID, next = next, bootID
			defer func() { bootID = next }()
			c = h.open(one)
			if tree, sent := h.send(c, "a", "A", "b", "BB"); sent != 2 || read(t, tree, "a") != "A" {
				t.Errorf("%d files were sent", sent)
			}
			h.close(c)
			c = h.open(one)
			if _, sent := h.send(c, "a", "A", "b", "BB"); sent != 0 {
				t.Errorf("%d files were sent again", sent)
			}
			h.close(c)
		})
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A cache in use stays, and one that is not can be removed; damage is found.
func TestPart(t *testing.T) {
	h := newHost(t)
	c := h.open(one)
	tree, _ := h.send(c, "a", "A")
	p := Part(h.root, h.tmp)
	items := func() (all []part.Item) {
		for it, err := range p.Items(t.Context()) {
			check(t, err)
			all = append(all, it)
		}
		return all
	}
	all := items()
	if len(all) != 1 || all[0].Size == 0 || !p.InUse(all[0]) {
		t.Fatalf("items: %+v", all)
	}
	if gone, err := p.Remove(all[0]); gone || err != nil {
		t.Errorf("removed in use: %v, %v", gone, err)
	}
	findings := func() (n int) {
		r := part.NewReport(h.root, false, func(part.Finding) { n++ }, func(int64, int64) {})
		check(t, p.Check(context.Background(), r))
		return n
	}
	if n := findings(); n != 0 {
		t.Errorf("%d findings in a sound cache", n)
	}
	check(t, os.WriteFile(c.file(sha256.Sum256([]byte("A"))), []byte("B"), 0o600))
	if n := findings(); n != 1 {
		t.Errorf("%d findings in a damaged cache", n)
	}
	e, _, _ := tree.Lookup("a")
	f, err := tree.Open(&e)
	check(t, err)
	if data, err := io.ReadAll(f); err == nil {
		t.Errorf("read %q of a damaged file", data)
	}
	f.Close()
	h.close(c)
	if gone, err := p.Remove(all[0]); !gone || err != nil {
		t.Errorf("not removed: %v, %v", gone, err)
	}
	if len(items()) != 0 {
		t.Error("it is still there")
	}
}
