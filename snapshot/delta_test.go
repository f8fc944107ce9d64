package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/snapshot/compose"
	"github.com/kilnbuild/kiln/snapshot/dir"
)

// content is the entries of a layer by path, with the bytes of files.
type content map[string]item

type item struct {
	layer.Entry
	text string
}

func (c content) put(path, text string) {
	c[path] = item{layer.Entry{Path: path, Type: layer.File, Mode: 0o644, ModTime: time.Unix(1700000000, 0)}, text}
}

func (c content) dir(path string) {
	c[path] = item{layer.Entry{Path: path, Type: layer.Dir, Mode: 0o755, ModTime: time.Unix(1600000000, 0)}, ""}
}

func (c content) change(path string, f func(*item)) {
	it := c[path]
	f(&it)
	c[path] = it
}

// large is what a layer has of which the next one may have others.
func large() content {
	c := content{}
	c.dir("app")
	for i := range 30 {
		c.dir(fmt.Sprintf("app/d%02d", i))
		for k := range 40 {
			c.put(fmt.Sprintf("app/d%02d/f%02d", i, k), fmt.Sprint(i, k))
		}
	}
	c.put("app/d07/link-a", "linked")
	c["app/d07/link-b"] = item{layer.Entry{Path: "app/d07/link-b", Type: layer.Hardlink, Link: "app/d07/link-a"}, ""}
	c["app/d08/symlink"] = item{layer.Entry{Path: "app/d08/symlink", Type: layer.Symlink, Link: "f01", Mode: 0o777}, ""}
	return c
}

// make commits a layer as COPY would, over what its step made last if that is not "" and over says so.
func (c content) make(t *testing.T, s *tested, last layer.ID, delta bool) (Committed, error) {
	t.Helper()
	below, err := s.Stack(nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.New()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.Reuse(t.Context(), last); delta {
		p.Delta(t.Context(), last)
	}
	b := compose.New(below, s.Store.tmp, time.Unix(1, 0), p.Writer())
	defer b.Close()
	for _, path := range slices.SortedFunc(maps.Keys(c), layer.Compare) {
		it := c[path]
		switch it.Type {
		case layer.Hardlink:
			file := c[it.Link].Entry
			file.Path = path
			err = b.Link(file, it.Link)
		case layer.File:
			it.Size, it.Digest = int64(len(it.text)), sha256.Sum256([]byte(it.text))
			err = b.Put(it.Entry, strings.NewReader(it.text))
		default:
			err = b.Put(it.Entry, nil)
		}
		if err != nil {
			return Committed{}, err
		}
	}
	if err := b.Finish(); err != nil {
		return Committed{}, err
	}
	return p.Commit(t.Context(), b, "")
}

// tarOf returns the layer's tar.
func tarOf(t *testing.T, s *tested, id layer.ID) []byte {
	t.Helper()
	m, err := s.Manifest(id)
	if err != nil {
		t.Fatal(err)
	}
	files, err := s.Files(id)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := layer.WriteLayer(&b, layer.TarEntries(m, files)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// entriesIn returns how many names there are in a layer's directory.
func entriesIn(t *testing.T, s *tested, id layer.ID) int {
	t.Helper()
	n := -1
	if err := filepath.WalkDir(s.fsDir(id), func(string, os.DirEntry, error) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

// A delta is in every way the layer that it would be without its base.
func TestDelta(t *testing.T) {
	for name, c := range map[string]struct {
		change func(content)
		names  int // in the layer's directory
	}{
		"bytes":     {func(c content) { c.put("app/d03/f04", "other") }, 3},
		"time":      {func(c content) { c.change("app/d03/f04", func(i *item) { i.ModTime = time.Unix(1, 0) }) }, 3},
		"owner":     {func(c content) { c.change("app/d03/f04", func(i *item) { i.UID = 33 }) }, 3},
		"new file":  {func(c content) { c.put("app/d03/new", "new") }, 3},
		"new tree":  {func(c content) { c.dir("zzz"); c.dir("zzz/a"); c.put("zzz/a/b", "new"); c.dir("zzz/empty") }, 4},
		"directory": {func(c content) { c.change("app/d03", func(i *item) { i.Mode = 0o700 }) }, 2},
		"nothing":   {func(c content) {}, 0},
		"symlink":   {func(c content) { c.change("app/d08/symlink", func(i *item) { i.Link = "f02" }) }, 3},
		"becomes link": {func(c content) {
			c["app/d08/f03"] = item{layer.Entry{Path: "app/d08/f03", Type: layer.Symlink, Link: "f02", Mode: 0o777}, ""}
		}, 3},
		"linked file":    {func(c content) { c.put("app/d07/link-a", "other") }, 4},
		"first and last": {func(c content) { c.put("app/d00/f00", "x"); c.put("app/d29/f39", "y") }, 5},
	} {
		t.Run(name, func(t *testing.T) {
			s, alone := storeInMemory(t), storeInMemory(t)
			last, err := large().make(t, s, "", false)
			if err != nil {
				t.Fatal(err)
			}
			changed := large()
			c.change(changed)
			want, err := changed.make(t, alone, "", false)
			if err != nil {
				t.Fatal(err)
			}
			got, err := changed.make(t, s, last.ID, true)
			if err != nil || got.ID != want.ID {
				t.Fatalf("the layer is %s, %v, and would be %s", got.ID, err, want.ID)
			}
			if got.ID != last.ID {
				if s.Base(got.ID) != last.ID {
					t.Errorf("the layer is over %q", s.Base(got.ID))
				}
				if n := entriesIn(t, s, got.ID); n != c.names {
					t.Errorf("its directory has %d names, want %d", n, c.names)
				}
			}
			s = reopen(t, s)
			if got, want := mounted(t, s, []layer.ID{got.ID}), mounted(t, alone, []layer.ID{want.ID}); got != want {
				t.Errorf("mounted it is\n%swant\n%s", got, want)
			}
			if !bytes.Equal(tarOf(t, s, got.ID), tarOf(t, alone, want.ID)) {
				t.Error("its tar is another")
			}
			for _, id := range []layer.ID{got.ID, last.ID} {
				if err := s.Verify(t.Context(), id, func(path, what string) { t.Errorf("%s %s", path, what) }, func(int64) {}); err != nil {
					t.Error(err)
				}
			}
			// Together with the earlier layer, above and below it, too.
			if _, err := large().make(t, alone, "", false); err != nil {
				t.Fatal(err)
			}
			for _, ids := range [][]layer.ID{{last.ID, got.ID}, {got.ID, last.ID}, {last.ID, got.ID, last.ID}} {
				if got, want := mounted(t, s, ids), mounted(t, alone, ids); got != want {
					t.Errorf("%v is mounted\n%swant\n%s", ids, got, want)
				}
			}
		})
	}
}

// The next one is over the same layer, and takes from the last what that had for itself.
func TestDeltaOfDelta(t *testing.T) {
	s, alone := storeInMemory(t), storeInMemory(t)
	c := large()
	first, err := c.make(t, s, "", false)
	if err != nil {
		t.Fatal(err)
	}
	c.put("app/d03/f04", "second")
	second, err := c.make(t, s, first.ID, true)
	if err != nil {
		t.Fatal(err)
	}
	c.put("app/d05/f06", "third")
	third, err := c.make(t, s, second.ID, true)
	if err != nil {
		t.Fatal(err)
	}
	if s.Base(third.ID) != first.ID || entriesIn(t, s, third.ID) != 5 {
		t.Errorf("the third layer is over %q with %d names", s.Base(third.ID), entriesIn(t, s, third.ID))
	}
	want, err := c.make(t, alone, "", false)
	if err != nil || mounted(t, s, []layer.ID{third.ID}) != mounted(t, alone, []layer.ID{want.ID}) {
		t.Errorf("the third layer is another than alone: %v", err)
	}
	// Made alone after all, it is made of links to both.
	c.put("app/d06/f07", "fourth")
	fourth, err := c.make(t, s, third.ID, false)
	if err != nil {
		t.Fatal(err)
	}
	if want, err = c.make(t, alone, "", false); err != nil || mounted(t, s, []layer.ID{fourth.ID}) != mounted(t, alone, []layer.ID{want.ID}) {
		t.Errorf("the fourth layer is another than alone: %v", err)
	}
	for _, path := range []string{"app/d03/f04", "app/d05/f06", "app/d09/f09"} {
		var links []os.FileInfo
		for _, id := range []layer.ID{fourth.ID, map[bool]layer.ID{true: first.ID, false: third.ID}[path == "app/d09/f09"]} {
			info, err := os.Lstat(filepath.Join(s.fsDir(id), path))
			if err != nil {
				t.Fatal(err)
			}
			links = append(links, info)
		}
		if !os.SameFile(links[0], links[1]) {
			t.Errorf("%s was written again", path)
		}
	}

	// Without the first the others are not there, and nothing is wrong with them.
	if err := os.RemoveAll(s.Path(first.ID)); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s)
	for _, id := range []layer.ID{second.ID, third.ID} {
		if s.Has(id) {
			t.Errorf("layer %s is there without the one that it is over", id)
		}
		if err := s.Verify(context.Background(), id, func(path, what string) { t.Errorf("%s %s", path, what) }, func(int64) {}); err != nil {
			t.Error(err)
		}
	}
	if !s.Has(fourth.ID) {
		t.Error("a layer that is alone is gone")
	}
	// Made again, it takes the place of what is there.
	again, err := large().make(t, s, "", false)
	if err != nil || again.ID != first.ID {
		t.Fatal(again.ID, err)
	}
	if !s.Has(third.ID) {
		t.Error("a layer is not there though the one that it is over is there again")
	}
	// Under another name what is only a part of a layer is not taken for the layer.
	at := s.fsDir(third.ID)
	for _, name := range []string{deltaPrefix, deltaPrefix + "x", deltaPrefix + strings.Repeat("0", 64), deltaPrefix + string(second.ID)} {
		other := filepath.Join(s.Path(third.ID), name)
		if err := os.Rename(at, other); err != nil {
			t.Fatal(err)
		}
		at = other
		if reopen(t, s).Has(third.ID) {
			t.Errorf("a layer exists whose files are in %s", name)
		}
	}
}

func TestNoDelta(t *testing.T) {
	for name, change := range map[string]func(content){
		"a file is gone":             func(c content) { delete(c, "app/d03/f04") },
		"the last file is gone":      func(c content) { delete(c, "app/d29/f39") },
		"a directory becomes a file": func(c content) { c.dir("app/d30"); c["app/d30"] = c["app/d29/f39"]; delete(c, "app/d29/f39") },
		"a file becomes a directory": func(c content) { c.dir("app/d03/f04") },
		"a new name of the same file": func(c content) {
			c["app/d07/link-c"] = item{layer.Entry{Path: "app/d07/link-c", Type: layer.Hardlink, Link: "app/d07/link-a"}, ""}
		},
		"much is different": func(c content) {
			for i := range 8 {
				for k := range 40 {
					c.put(fmt.Sprintf("app/d%02d/f%02d", i, k), "other")
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := storeInMemory(t)
			last, err := large().make(t, s, "", false)
			if err != nil {
				t.Fatal(err)
			}
			c := large()
			change(c)
			for path, it := range c {
				it.Path = path
				c[path] = it
			}
			if _, err := c.make(t, s, last.ID, true); !errors.Is(err, dir.ErrNoDelta) {
				t.Errorf("the layer was made over the other: %v", err)
			}
		})
	}
}

// Damage of what is below is noticed above, and gives up what is damaged.
func TestDeltaOfDamaged(t *testing.T) {
	s := storeInMemory(t)
	c := large()
	first, err := c.make(t, s, "", false)
	if err != nil {
		t.Fatal(err)
	}
	c.put("app/d03/f04", "second")
	second, err := c.make(t, s, first.ID, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.fsDir(first.ID), "app/d05/f06"), []byte("5 7"), 0o644); err != nil {
		t.Fatal(err)
	}
	files, err := s.Files(second.ID)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Manifest(second.ID)
	if err != nil {
		t.Fatal(err)
	}
	var damaged *DamagedError
	if err := layer.WriteLayer(new(bytes.Buffer), layer.TarEntries(m, files)); !errors.As(err, &damaged) || damaged.ID != first.ID ||
		damaged.Path != "app/d05/f06" {
		t.Errorf("the tar of a layer over a damaged one: %v", err)
	}
	if s.Has(first.ID) || s.Has(second.ID) {
		t.Error("a layer that is damaged, or over one that is, is there")
	}
}
