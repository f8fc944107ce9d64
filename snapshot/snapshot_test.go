package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/snapshot/compose"
	"github.com/kilnbuild/kiln/snapshot/diff"
	"github.com/kilnbuild/kiln/snapshot/roots"
	"golang.org/x/sys/unix"
)

// step runs f on a mounted root file system made of the layers, as a RUN would, and commits what it changed.
func step(t *testing.T, s *tested, ids []layer.ID, f func(root *rootfs.Root)) Committed {
	t.Helper()
	tree, err := s.Stack(ids)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.New()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	top, _, err := tree.Lookup("")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.SetRoot(top); err != nil {
		t.Fatal(err)
	}
	m, err := s.Mount(t.Context(), ids, p, nil)
	if err != nil {
		t.Fatal(err)
	}
	started, err := diff.Begin(t.Context(), tree)
	if err != nil {
		t.Fatal(err)
	}
	f(rootfs.At(m.File))
	left := describe(t, m)
	c, err := p.CommitChanges(context.Background(), m, tree, started)
	if err != nil {
		t.Fatal(err)
	}
	if tree, err = s.Stack(append(slices.Clone(ids), c.ID)); err != nil {
		t.Fatal(err)
	}
	err = s.Verify(t.Context(), c.ID, func(path, what string) { t.Errorf("%s %s", path, what) }, func(int64) {})
	if err != nil {
		t.Fatal(err)
	}
	// A new name of a file that is as it was below is a file of its own in the layer.
	names := regexp.MustCompile(` = \S+`)
	if got := listing(t, tree); names.ReplaceAllString(got, "") != names.ReplaceAllString(left, "") {
		t.Fatalf("the step left\n%s\nand the manifests say\n%s", left, got)
	}
	return c
}

// listing describes a tree by look-ups and listings, in words.
func listing(t *testing.T, tree layer.Tree) string {
	t.Helper()
	var out []string
	names := map[string]string{} // first name of a file
	var walk func(dir string)
	walk = func(dir string) {
		list, err := tree.List(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			found, ok, err := tree.Lookup(e.Path)
			if err != nil || !ok || found.Type != e.Type || found.Mode != e.Mode {
				t.Fatalf("List has %+v, Lookup %+v, %v, %v", e, found, ok, err)
			}
			line := fmt.Sprintf("%s %c %o %d:%d %q", e.Path, e.Type, e.Mode, e.UID, e.GID, e.Link)
			if e.Type == layer.File {
				f, err := tree.Open(&e)
				if err != nil {
					t.Fatal(err)
				}
				data, err := io.ReadAll(f)
				f.Close()
				if err != nil {
					t.Fatal(err)
				}
				if first, ok := names[e.LinkID]; ok && e.LinkID != "" {
					line += " = " + first
				} else {
					names[e.LinkID] = e.Path
				}
				line += fmt.Sprintf(" %q", data)
			}
			out = append(out, line)
			if e.Type == layer.Dir {
				walk(e.Path)
			}
		}
	}
	walk("")
	return strings.Join(out, "\n")
}

// mounted describes the same root by mounting it.
func mounted(t *testing.T, s *tested, ids []layer.ID) string {
	t.Helper()
	p, err := s.New()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	m, err := s.Mount(t.Context(), ids, p, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	return describe(t, m)
}

// describe describes a root that is mounted.
func describe(t *testing.T, m *roots.Root) string {
	t.Helper()
	var out []string
	names := map[uint64]string{}
	err := filepath.WalkDir(fmt.Sprintf("/proc/self/fd/%d/", m.Fd()), func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(name, fmt.Sprintf("/proc/self/fd/%d/", m.Fd()))
		if rel == "" {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return err
		}
		kind, link := byte('?'), ""
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFSOCK:
			return nil // no layer holds it
		case unix.S_IFREG:
			kind = 'f'
		case unix.S_IFDIR:
			kind = 'd'
		case unix.S_IFLNK:
			kind = 'l'
			link, _ = os.Readlink(name)
		}
		line := fmt.Sprintf("%s %c %o %d:%d %q", rel, kind, st.Mode&0o7777, st.Uid, st.Gid, link)
		if kind == 'f' {
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			if first, ok := names[st.Ino]; ok && st.Nlink > 1 {
				line += " = " + first
			} else {
				names[st.Ino] = rel
			}
			line += fmt.Sprintf(" %q", data)
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(out, func(a, b string) int {
		return layer.Compare(a[:strings.IndexByte(a, ' ')], b[:strings.IndexByte(b, ' ')])
	})
	return strings.Join(out, "\n")
}

// Whatever steps do, the manifests tell of the root file system exactly what the kernel's overlay shows.
func TestTreeIsTheOverlay(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			s := newStore(t)
			var ids []layer.ID
			for range 6 {
				c := step(t, s, ids, func(root *rootfs.Root) {
					for range 12 {
						change(rnd, fmt.Sprintf("/proc/self/fd/%d/", root.Fd()))
					}
				})
				ids = append(ids, c.ID)
				tree, err := s.Stack(ids)
				if err != nil {
					t.Fatal(err)
				}
				if got, want := listing(t, tree), mounted(t, s, ids); got != want {
					t.Fatalf("after %d layers the manifests say\n%s\nand the mount\n%s", len(ids), got, want)
				}
			}
		})
	}
}

// The root directory of a root is what the manifests say, also where a layer was made over another base than it lies over.
func TestRootDirectory(t *testing.T) {
	s := newStore(t)
	base := func(mode os.FileMode) layer.ID {
		return step(t, s, nil, func(root *rootfs.Root) { os.Chmod(fmt.Sprintf("/proc/self/fd/%d/.", root.Fd()), mode) }).ID
	}
	private, public := base(0o700), base(0o711)
	made := step(t, s, []layer.ID{private}, func(root *rootfs.Root) { os.Mkdir(fmt.Sprintf("/proc/self/fd/%d/dir", root.Fd()), 0o755) })
	for _, ids := range [][]layer.ID{{public}, {public, made.ID}, {private, made.ID}, nil} {
		want := uint32(0o755)
		if len(ids) > 0 {
			want = map[layer.ID]uint32{public: 0o711, private: 0o700}[ids[0]]
		}
		m, err := s.Mount(t.Context(), ids, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(m.Fd()), &st); err != nil || st.Mode&0o7777 != want {
			t.Errorf("the root of %d layers has mode %o, %v, want %o", len(ids), st.Mode, err, want)
		}
		m.Close()
	}
}

// A root of as many layers as there may be can be mounted, also only to be read; one layer more is an error that says what to do.
func TestMaxLayers(t *testing.T) {
	s := newStore(t)
	var ids []layer.ID
	for i := range MaxLayers + 1 {
		p, err := s.New()
		if err != nil {
			t.Fatal(err)
		}
		b := compose.New(nil, s.Store.tmp, time.Unix(0, 0), p.Writer())
		err = b.Put(layer.Entry{Path: fmt.Sprintf("f%d", i), Type: layer.File, Mode: 0o644}, strings.NewReader("x"))
		if err = errors.Join(err, b.Finish()); err != nil {
			t.Fatal(err)
		}
		c, err := p.Commit(t.Context(), b, "")
		b.Close()
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, c.ID)
	}
	if got := strings.Count(mounted(t, s, ids[:MaxLayers]), "\n") + 1; got != MaxLayers {
		t.Errorf("%d files of %d", got, MaxLayers)
	}
	root, err := s.Mount(t.Context(), ids[:MaxLayers], nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	root.Close()
	_, err = s.Mount(t.Context(), ids, nil, nil)
	if many, ok := errors.AsType[*TooManyLayersError](err); !ok || many.Layers != MaxLayers+1 {
		t.Errorf("%d layers: %v", len(ids), err)
	}
}

// change does something at random to a directory tree. What fails, fails.
func change(rnd *rand.Rand, root string) {
	name := func() string {
		parts := []string{"a", "b", "c", "d.e"}
		p := parts[rnd.IntN(len(parts))]
		for range rnd.IntN(3) {
			p += "/" + parts[rnd.IntN(len(parts))]
		}
		return root + p
	}
	p := name()
	switch rnd.IntN(12) {
	case 0, 1:
		os.MkdirAll(p, os.FileMode(0o700+rnd.IntN(64)))
	case 2, 3:
		os.MkdirAll(filepath.Dir(p), 0o755)
		os.WriteFile(p, []byte(fmt.Sprint(rnd.IntN(1000))), 0o644)
	case 4:
		os.RemoveAll(p)
	case 5:
		os.RemoveAll(p)
		os.Symlink("x"+fmt.Sprint(rnd.IntN(9)), p)
	case 6:
		os.Link(p, name())
	case 7:
		os.Chmod(p, os.FileMode(rnd.IntN(0o1000)))
	case 8:
		os.Rename(p, name())
	case 9:
		os.RemoveAll(p)
		unix.Mknod(p, unix.S_IFSOCK|0o600, 0)
	case 10:
		unix.Setxattr(p, "system.posix_acl_default", []byte("\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x04\x00\x05\x00\xff\xff\xff\xff\x20\x00\x05\x00\xff\xff\xff\xff"), 0)
	case 11:
		unix.Lsetxattr(p, "trusted.x", []byte(fmt.Sprint(rnd.IntN(3))), 0)
	}
}

// What a step leaves as it was is not in its layer, though the overlay copied directories up for it.
func TestChangesLeavesOutWhatIsTheSame(t *testing.T) {
	s := newStore(t)
	base := step(t, s, nil, func(root *rootfs.Root) {
		if _, err := root.MkdirAll("/a/b", 0o755); err != nil {
			t.Fatal(err)
		}
	})
	empty := step(t, s, []layer.ID{base.ID}, func(root *rootfs.Root) {
		f, err := root.OpenFile("/a/b/f", unix.O_CREAT|unix.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		dir, name, err := root.Parent("/a/b/f")
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil {
			t.Fatal(err)
		}
	})
	if empty.Entries != 0 {
		t.Errorf("the layer has %d entries", empty.Entries)
	}
}

// A directory that was made anew hides all that was below it, so what is in it is new, also where it is as it was before.
func TestChangesInDirectoryMadeAnew(t *testing.T) {
	s := newStore(t)
	make := func(root *rootfs.Root) {
		if _, err := root.MkdirAll("/d/sub/empty", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	first := step(t, s, nil, make)
	again := step(t, s, []layer.ID{first.ID}, func(root *rootfs.Root) {
		if err := os.RemoveAll(fmt.Sprintf("/proc/self/fd/%d/d", root.Fd())); err != nil {
			t.Fatal(err)
		}
		make(root)
	})
	ids := []layer.ID{first.ID, again.ID}
	tree, err := s.Stack(ids)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := listing(t, tree), mounted(t, s, ids); got != want || !strings.Contains(got, "d/sub/empty") {
		t.Errorf("the manifests say\n%s\nand the mount shows\n%s", got, want)
	}
}

// What holds for overlays holds for copies. Each step compares what it left with what the manifests say.
func TestCopies(t *testing.T) {
	t.Setenv(mount.TestVariable, "copy")
	t.Run("tree", TestTreeIsTheOverlay)
	t.Run("unchanged", TestChangesLeavesOutWhatIsTheSame)
	t.Run("made anew", TestChangesInDirectoryMadeAnew)
	t.Run("unpack", TestUnpack)
	t.Run("attributes", TestUnpackAttributes)
	t.Run("replaced", TestCommitReplacesDamaged)
}

// In a copy things happen that an overlay does not let happen: whole directories change places, and files keep their further names.
func TestChangesOfCopy(t *testing.T) {
	t.Setenv(mount.TestVariable, "copy")
	s := newStore(t)
	at := func(root *rootfs.Root, name string) string {
		return fmt.Sprintf("/proc/self/fd/%d/%s", root.Fd(), name)
	}
	when := time.Unix(1000000000, 0)
	check := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	write := func(root *rootfs.Root, name, text string) {
		t.Helper()
		check(os.MkdirAll(filepath.Dir(at(root, name)), 0o755), os.WriteFile(at(root, name), []byte(text), 0o644), os.Chtimes(at(root, name), when, when))
	}
	base := step(t, s, nil, func(root *rootfs.Root) {
		write(root, "a/in/f", "1")
		write(root, "b/in/f", "2")
		write(root, "edited", "old")
		write(root, "became/a/file", "")
		write(root, "left", "alone")
		write(root, "socket", "")
		write(root, "one", "linked")
		check(os.Link(at(root, "one"), at(root, "three")), os.Link(at(root, "one"), at(root, "two")))
	})
	ids := []layer.ID{base.ID}
	nothing := step(t, s, ids, func(root *rootfs.Root) {
		check(os.Chmod(at(root, "left"), 0o644), os.Rename(at(root, "a"), at(root, "x")), os.Rename(at(root, "x"), at(root, "a")))
	})
	if nothing.Entries != 0 {
		t.Errorf("a step that changes nothing has a layer of %d entries", nothing.Entries)
	}
	changed := step(t, s, ids, func(root *rootfs.Root) {
		check(os.Rename(at(root, "a"), at(root, "x")), os.Rename(at(root, "b"), at(root, "a")), os.Rename(at(root, "x"), at(root, "b")))
		write(root, "edited", "new")
		check(os.Remove(at(root, "one")), os.RemoveAll(at(root, "became")), os.Remove(at(root, "socket")))
		write(root, "became", "file")
		check(unix.Mknod(at(root, "socket"), unix.S_IFSOCK|0o600, 0))
	})
	m, err := s.Manifest(changed.ID)
	check(err)
	if _, ok := m.Lookup("left"); ok {
		t.Error("a file that nobody touched is in the layer")
	}
	err = s.Verify(t.Context(), changed.ID, func(path, what string) { t.Errorf("%s: %s", path, what) }, func(int64) {})
	check(err)
	// A store that is used where overlays work does not use such layers as an overlay's.
	t.Setenv(mount.TestVariable, "")
	again := reopen(t, s)
	if again.Has(changed.ID) {
		t.Error("a layer without whiteouts is to be a part of an overlay")
	}
}

func TestChangesRefusesWhiteoutNames(t *testing.T) {
	s := newStore(t)
	p, err := s.New()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	m, err := s.Mount(t.Context(), nil, p, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := os.WriteFile(fmt.Sprintf("/proc/self/fd/%d/.wh.x", m.Fd()), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	tree, _ := s.Stack(nil)
	_, err = p.CommitChanges(context.Background(), m, tree, time.Now())
	var bad *layer.PathError
	if !errors.As(err, &bad) || bad.Path != ".wh.x" {
		t.Errorf("got %v", err)
	}
}

type member struct {
	tar.Header
	body string
}

func tarball(t *testing.T, members ...member) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := m.Header
		h.Size = int64(len(m.body))
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, m.body)
	}
	w.Close()
	return &b
}

func file(name, body string) member { return member{tar.Header{Name: name}, body} }
func link(name, to string) member {
	return member{tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink}, ""}
}
func hard(name, to string) member {
	return member{tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeLink}, ""}
}
func directory(name string) member { return member{tar.Header{Name: name, Typeflag: tar.TypeDir}, ""} }

func id(n int) layer.ID { return layer.ID(fmt.Sprintf("%064x", n)) }

// What an archive costs must not grow with the square of its entries: this one would take many minutes.
func TestManyReplaced(t *testing.T) {
	b := compose.New(nil, t.TempDir(), time.Now(), nil)
	defer b.Close()
	const n = 50_000
	for i := range n {
		name := fmt.Sprint("d/", i)
		for _, e := range []layer.Entry{{Path: name, Type: layer.Dir}, {Path: name + "/f", Type: layer.Fifo}, {Path: name, Type: layer.Fifo}} {
			if err := b.Put(e, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := 0
	if err := b.Entries(func(*layer.Entry) error { got++; return nil }); err != nil || got != n+1 {
		t.Errorf("%d entries, %v", got, err)
	}
}

// A name of 4000 bytes can stand for 2000 directories: they count as entries do.
func TestMostDirectories(t *testing.T) {
	for name, c := range map[string]struct {
		members []member
		refused bool
	}{
		"one name": {[]member{file(strings.Repeat("d/", 200)+"f", "")}, true}, "few": {[]member{file(strings.Repeat("d/", 100)+"f", ""), file(strings.Repeat("d/", 100)+"g", "")}, false},
		"two names": {[]member{file(strings.Repeat("d/", 60)+"f", ""), file(strings.Repeat("e/", 60)+"f", "")}, true},
	} {
		s := newStore(t)
		s.limit = layer.Limit{Entries: 100}
		_, err := s.Unpack(t.Context(), id(1), tarball(t, c.members...), nil)
		if _, limited := errors.AsType[*layer.LimitError](err); limited != c.refused || !limited && err != nil {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// The extended attributes of directories are in memory, and so bounded. Those of files are not.
func TestMostAttributes(t *testing.T) {
	value := strings.Repeat("x", 900<<10)
	for typeflag, refused := range map[byte]bool{tar.TypeDir: true, tar.TypeReg: false} {
		s := newStore(t)
		var members []member
		for i := range 80 {
			members = append(members, member{tar.Header{Name: fmt.Sprint(i), Typeflag: typeflag, PAXRecords: map[string]string{"SCHILY.xattr.user.x": value}}, ""})
		}
		err := s.Index(t.Context(), id(1), tarball(t, members...))
		if _, limited := errors.AsType[*layer.LimitError](err); limited != refused || !limited && err != nil {
			t.Errorf("type %c: error %v", typeflag, err)
		}
	}
}

// Image layers of every make show, over what lies below them, what the image-spec says.
func TestUnpack(t *testing.T) {
	base := []member{directory("usr/lib"), file("usr/lib/x", "old"), link("lib", "usr/lib"), directory("d"), file("d/f", "f"), file("d/g", "g"), file("d/s/f", "f")}
	for name, c := range map[string]struct {
		layer []member
		want  string // entries that are looked for, "path=content", "path=" for any, "!path" for none
		err   string
	}{
		"replace":              {[]member{file("d/f", "new")}, "d/f=new d/g=g", ""},
		"whiteout":             {[]member{file("d/.wh.f", "")}, "!d/f d/g=g", ""},
		"whiteout of a dir":    {[]member{file(".wh.d", "")}, "!d !d/f", ""},
		"opaque":               {[]member{file("d/.wh..wh..opq", ""), file("d/new", "n")}, "!d/f !d/g d/new=n", ""},
		"opaque last":          {[]member{file("d/new", "n"), file("d/.wh..wh..opq", "")}, "!d/f d/new=n", ""},
		"opaque root":          {[]member{file(".wh..wh..opq", ""), file("new", "n")}, "d/f=f new=n", ""},
		"whiteout, then dir":   {[]member{file(".wh.d", ""), directory("d"), file("d/new", "n")}, "!d/f d/new=n", ""},
		"dir, then whiteout":   {[]member{directory("d"), file("d/new", "n"), file(".wh.d", "")}, "!d/f d/new=n", ""},
		"file, then whiteout":  {[]member{file("d/f", "new"), file("d/.wh.f", "")}, "d/f=new", ""},
		"through a lower link": {[]member{file("lib/y", "y")}, "lib/y=y !lib/x !usr/lib/y usr/lib/x=old", ""},
		"below a lower file":   {[]member{file("d/f/y", "y")}, "d/f/y=y d/g=g", ""},
		"whiteout in a link":   {[]member{file("lib/.wh.x", ""), file("lib/y", "y")}, "lib/y=y usr/lib/x=old", ""},
		"its own link over":    {[]member{link("lib", "d"), file("lib/y", "y")}, "d/y=y d/f=f !usr/lib/y", ""},
		"own entry for a link": {[]member{directory("lib"), file("lib/y", "y")}, "lib/y=y !usr/lib/y usr/lib/x=old", ""},
		"through its own link": {[]member{link("l", "d"), file("l/new", "n")}, "d/new=n d/f=f", ""},
		"its own link out":     {[]member{link("l", "../../../etc"), file("l/new", "n")}, "etc/new=n", ""},
		"dot prefix, slashes":  {[]member{directory("./"), directory(".//d/"), file("./d//f", "new")}, "d/f=new d/g=g", ""},
		"absolute":             {[]member{file("/d/f", "new")}, "d/f=new", ""},
		"hard link":            {[]member{file("a", "1"), hard("b", "a")}, "a=1 b=1", ""},
		"hard link below":      {[]member{hard("b", "d/f")}, "b=f d/f=f", ""},
		"twice":                {[]member{file("a", "1"), file("a", "2")}, "a=2", ""},
		"dir replaced by file": {[]member{file("d", "now a file")}, "d=now_a_file !d/f", ""},
		"file replaced by dir": {[]member{directory("d/f"), file("d/f/x", "x")}, "d/f/x=x", ""},
		"aufs bookkeeping":     {[]member{directory(".wh..wh.plnk"), file("a", "1")}, "a=1 d/f=f", ""},
		"aufs pseudo-links": {[]member{directory(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "h"), file(".wh..wh.plnk/3.4", "unused"), file(".wh..wh.plnk/5.6", "one"),
			hard("d/h", ".wh..wh.plnk/1.2"), hard("h", ".wh..wh.plnk/1.2"), hard("i", "./.wh..wh.plnk/5.6")},
			"d/h=h h=h i=one d/f=f !.wh..wh.plnk !.wh..wh.plnk/1.2 !.wh..wh.plnk/3.4", ""},
		"aufs, everything": {[]member{file(".wh..wh.aufs", ""), directory(".wh..wh.orph"), file(".wh..wh.orph/x", "x"),
			directory(".wh..wh.orph/d"), file(".wh..wh.orph/d/y", "")}, "d/f=f !.wh..wh.orph !.wh..wh.orph/x !.wh..wh.aufs", ""},
		"aufs, below the root": {[]member{file("e/.wh..wh.orph/x", "x"), directory("e/.wh..wh.orph/d"), file("e/.wh..wh.aufs", ""),
			file("e/y", "y")}, "e/y=y d/f=f !e/.wh..wh.orph !e/.wh..wh.aufs", ""},
		"aufs, link to none":       {[]member{hard("h", ".wh..wh.plnk/1.2")}, "", "is not a file"},
		"in a .wh. directory":      {[]member{file("d/.wh.x/y", "")}, "", ".wh."},
		"up":                       {[]member{file("../x", "")}, "", "leads out"},
		"hard link up":             {[]member{hard("x", "../../etc/passwd")}, "", "leads out"},
		"hard link to nothing":     {[]member{hard("x", "nothing")}, "", "nothing"},
		"opaque above, last":       {[]member{file("d/s/new", "n"), file("d/.wh..wh..opq", ""), file("d/s/f/x", "x"), file("d/f/x", "x")}, "d/s/new=n d/s/f/x=x d/f/x=x !d/g", ""},
		"below a file":             {[]member{file("a", "1"), file("a/b", "2")}, "", "not a directory"},
		"root is a link":           {[]member{link("./", "/tmp")}, "", "not a directory"},
		"whiteout of nothing":      {[]member{file("d/.wh.", "")}, "", "whiteout"},
		"whiteout of the parent":   {[]member{file("d/.wh..", "")}, "", "whiteout"},
		"overlay's own attributes": {[]member{{tar.Header{Name: "d", Typeflag: tar.TypeDir, PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y"}}, ""}}, "d/f=f", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			ctx := context.Background()
			if _, err := s.Unpack(ctx, id(1), tarball(t, base...), nil); err != nil {
				t.Fatal(err)
			}
			// As for a real image: alone first, and over what lies below if that is not enough.
			below, err := s.Stack([]layer.ID{id(1)})
			if err != nil {
				t.Fatal(err)
			}
			top := id(2)
			made, err := s.Unpack(ctx, top, tarball(t, c.layer...), nil)
			if err == nil && made.Implied || err != nil && strings.Contains(err.Error(), "is not a file of this layer") {
				top = id(3)
				_, err = s.Unpack(ctx, top, tarball(t, c.layer...), below)
			}
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want one about %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			tree, err := s.Stack([]layer.ID{id(1), top})
			if err != nil {
				t.Fatal(err)
			}
			if got, want := listing(t, tree), mounted(t, s, []layer.ID{id(1), top}); got != want {
				t.Errorf("the manifests say\n%s\nand the mount\n%s", got, want)
			}
			for _, w := range strings.Fields(c.want) {
				path, content, _ := strings.Cut(w, "=")
				none := strings.HasPrefix(path, "!")
				e, ok, err := tree.Lookup(strings.TrimPrefix(path, "!"))
				if err != nil || ok == none {
					t.Errorf("%s: found %v, %v", path, ok, err)
					continue
				}
				if content == "" {
					continue
				}
				f, err := tree.Open(&e)
				if err != nil {
					t.Fatal(err)
				}
				data, _ := io.ReadAll(f)
				f.Close()
				if string(data) != strings.ReplaceAll(content, "_", " ") {
					t.Errorf("%s holds %q, want %q", path, data, content)
				}
			}
		})
	}
}

// A layer that cannot be read to its end is not there at all.
func TestUnpackBreaksOff(t *testing.T) {
	s := newStore(t)
	whole := tarball(t, file("a", strings.Repeat("x", 5000))).Bytes()
	for _, n := range []int{100, 600, 3000} {
		if _, err := s.Unpack(context.Background(), id(1), bytes.NewReader(whole[:n]), nil); err == nil {
			t.Errorf("%d bytes were enough", n)
		}
		if s.Has(id(1)) {
			t.Fatal("half a layer is in the store")
		}
	}
}

// A layer whose manifest the disk has damaged is as good as none, and is replaced by the next of its id.
func TestCommitReplacesDamaged(t *testing.T) {
	s := newStore(t)
	ctx := context.Background()
	if _, err := s.Unpack(ctx, id(1), tarball(t, file("a", "1")), nil); err != nil {
		t.Fatal(err)
	}
	name := s.manifestPath(id(1))
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	data[30] ^= 1
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
	again := reopen(t, s)
	if again.Has(id(1)) {
		t.Fatal("the damage was not noticed")
	}
	if _, err := again.Unpack(ctx, id(1), tarball(t, file("a", "1")), nil); err != nil {
		t.Fatal(err)
	}
	if !again.Has(id(1)) {
		t.Error("the layer was not replaced")
	}
}

// Zeros become holes, and the bytes stay the same.
func TestSparse(t *testing.T) {
	s := newStore(t)
	body := strings.Repeat("\x00", 1<<20) + "end" + strings.Repeat("\x00", 300000)
	if _, err := s.Unpack(context.Background(), id(1), tarball(t, file("sparse", body)), nil); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(s.fsDir(id(1)), "sparse")
	data, err := os.ReadFile(name)
	if err != nil || string(data) != body {
		t.Fatalf("%d bytes, %v", len(data), err)
	}
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		t.Fatal(err)
	}
	if st.Blocks*512 > 64<<10 {
		t.Errorf("%d bytes on disk", st.Blocks*512)
	}
}

// A layer that was only indexed looks the same as one that was unpacked, but for the bytes.
func TestIndex(t *testing.T) {
	s := newStore(t)
	ctx := context.Background()
	members := []member{directory("d"), file("d/f", "hello"), hard("d/g", "d/f"), link("l", "d/f"), file("x/y/z", "deep"), file("d/.wh.gone", ""), file("o/.wh..wh..opq", "")}
	if err := s.Index(ctx, id(1), tarball(t, members...)); err != nil {
		t.Fatal(err)
	}
	if s.Has(id(1)) || !s.HasEntries(id(1)) {
		t.Error("an indexed layer is taken for one that is there")
	}
	if _, err := s.Unpack(ctx, id(2), tarball(t, members...), nil); err != nil {
		t.Fatal(err)
	}
	index, err := s.Manifest(id(1))
	if err != nil {
		t.Fatal(err)
	}
	whole, err := s.Manifest(id(2))
	if err != nil {
		t.Fatal(err)
	}
	if index.Summary.Content != whole.Summary.Content || index.Identity != whole.Identity || index.Entries == 0 {
		t.Errorf("indexed %+v, unpacked %+v", index.Summary, whole.Summary)
	}
	if err := s.Index(ctx, id(3), strings.NewReader("no tar, but long enough to be taken for the beginning of one")); err == nil || s.HasEntries(id(3)) {
		t.Errorf("what is no tar was indexed: %v", err)
	}
}

// A job keeps the entries that it has indexed, whoever removes what is stored of them.
func TestIndexIsKept(t *testing.T) {
	s := newStore(t)
	if err := s.Index(t.Context(), id(1), tarball(t, file("d/f", "hello"))); err != nil {
		t.Fatal(err)
	}
	if gone, err := s.EntriesPart().Remove(part.Item{Kind: part.Entries, ID: string(id(1))}); err != nil || !gone {
		t.Fatalf("removed: %v, %v", gone, err)
	}
	m, err := s.Manifest(id(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := m.Lookup("d/f"); !ok {
		t.Error("the manifest lost an entry")
	}
	if _, err := s.Unpack(t.Context(), id(1), tarball(t, file("d/f", "hello")), nil); err != nil || !s.Has(id(1)) {
		t.Errorf("unpack: %v", err)
	}
}

// What a new name gets from its directory, or from the umask, must not be taken for what the layer says.
func TestUnpackAttributes(t *testing.T) {
	s := newStore(t)
	want := map[string]tar.Header{}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "late/", Mode: 0o755},
		{Typeflag: tar.TypeDir, Name: "late/", Mode: 0o2775, Gid: 8},
		{Typeflag: tar.TypeReg, Name: "late/file", Mode: 0o644},
		{Typeflag: tar.TypeDir, Name: "mail/", Mode: 0o2775, Gid: 8},
		{Typeflag: tar.TypeReg, Name: "mail/root", Mode: 0o644},
		{Typeflag: tar.TypeDir, Name: "mail/dir/", Mode: 0o755},
		{Typeflag: tar.TypeSymlink, Name: "mail/link", Linkname: "root", Mode: 0o777},
		{Typeflag: tar.TypeFifo, Name: "mail/pipe", Mode: 0o666},
		{Typeflag: tar.TypeReg, Name: "open", Mode: 0o666},
		{Typeflag: tar.TypeReg, Name: "su", Mode: 0o4755},
		{Typeflag: tar.TypeReg, Name: "su-daemon", Mode: 0o6751, Uid: 1, Gid: 1},
		{Typeflag: tar.TypeReg, Name: "none", Mode: 0},
		{Typeflag: tar.TypeReg, Name: "private", Mode: 0o600},
		{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777},
	} {
		want[strings.TrimSuffix(h.Name, "/")] = h
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	c, err := s.Unpack(t.Context(), layer.ID(fmt.Sprintf("%x", sha256.Sum256([]byte("x")))), &b, nil)
	if err != nil {
		t.Fatal(err)
	}
	for path, h := range want {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(s.fsDir(c.ID), path), &st); err != nil {
			t.Fatal(err)
		}
		if st.Mode&0o7777 != uint32(h.Mode) || int(st.Uid) != h.Uid || int(st.Gid) != h.Gid {
			t.Errorf("/%s has mode %o and owner %d:%d, want %o and %d:%d", path, st.Mode&0o7777, st.Uid, st.Gid, h.Mode, h.Uid, h.Gid)
		}
	}
}

// What the file system gives every file is neither removed nor damage; that is tried with a default access control list, which gives new
// files and directories one each.
func TestGivenAttributes(t *testing.T) {
	s := newStore(t)
	list := []byte("\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x07\x00\x07\x00\x00\x00\x04\x00\x07\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x07\x00\xff\xff\xff\xff")
	if err := unix.Setxattr(s.Store.tmp, "system.posix_acl_default", list, 0); err == unix.ENOTSUP {
		t.Skip("the file system knows no access control lists")
	} else if err != nil {
		t.Fatal(err)
	}
	c := step(t, s, nil, func(root *rootfs.Root) {
		at := fmt.Sprintf("/proc/self/fd/%d/", root.Fd())
		if err := errors.Join(os.Mkdir(at+"dir", 0o755), os.WriteFile(at+"dir/file", nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	})
	if n, err := unix.Lgetxattr(filepath.Join(s.fsDir(c.ID), "dir/file"), "system.posix_acl_access", nil); err != nil || n == 0 {
		t.Errorf("the file has no attribute, so nothing was tried: %v", err)
	}
}

// TestTimesOfEarlierSteps has a step move and change files that an earlier one has just made, and do it again later: the times are those
// of the earlier step both times, so the layer is the same.
func TestTimesOfEarlierSteps(t *testing.T) {
	s := newStore(t)
	for n := range 20 {
		made := step(t, s, nil, func(root *rootfs.Root) {
			for _, name := range []string{"changed", "moved"} {
				if err := os.WriteFile(fmt.Sprintf("/proc/self/fd/%d/%s%d", root.Fd(), name, n), []byte(name), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
		change := func(root *rootfs.Root) {
			dir := fmt.Sprintf("/proc/self/fd/%d/", root.Fd())
			err := errors.Join(os.Chmod(dir+fmt.Sprint("changed", n), 0o600), os.Rename(dir+fmt.Sprint("moved", n), dir+"elsewhere"),
				os.WriteFile(dir+"new", []byte("new"), 0o644))
			if err != nil {
				t.Fatal(err)
			}
		}
		at := step(t, s, []layer.ID{made.ID}, change)
		time.Sleep(50 * time.Millisecond)
		if again := step(t, s, []layer.ID{made.ID}, change); again.ID != at.ID {
			t.Fatalf("round %d: the layer is %s, and later %s", n, at.ID, again.ID)
		}
	}
}
