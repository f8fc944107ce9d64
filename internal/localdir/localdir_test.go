package localdir

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/ctxtest"
	"github.com/kilnbuild/kiln/internal/ignore"
	"github.com/kilnbuild/kiln/internal/layer"
	"golang.org/x/sys/unix"
)

// place is a build context, and where its digests are kept.
type place struct {
	t     *testing.T
	dir   string
	cache string
	tmp   string
	now   func() time.Time // if it is not nil, the clock of those that open it
}

func newPlace(t *testing.T) *place {
	return &place{t: t, dir: t.TempDir(), cache: filepath.Join(t.TempDir(), "context", "id"), tmp: t.TempDir()}
}

func (p *place) write(name, text string) string {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		p.t.Fatal(err)
	}
	return path
}

func (p *place) open(patterns ...string) *Dir {
	p.t.Helper()
	var m *ignore.Matcher
	if patterns != nil {
		var err error
		if m, err = ignore.New(context.Background(), patterns); err != nil {
			p.t.Fatal(err)
		}
	}
	d, err := Open(context.Background(), p.dir, m, p.cache, p.tmp)
	if err != nil {
		p.t.Fatal(err)
	}
	if p.now != nil {
		d.now = p.now
	}
	return d
}

func (p *place) close(d *Dir) {
	p.t.Helper()
	if err := d.Close(); err != nil {
		p.t.Fatal(err)
	}
	if left, _ := os.ReadDir(p.tmp); len(left) > 0 {
		p.t.Errorf("left in tmp: %v", left)
	}
}

// digests returns the digests of all files of the directory, as a build would learn them.
func digests(t *testing.T, d *Dir) map[string]layer.Digest {
	t.Helper()
	out := map[string]layer.Digest{}
	var all []*layer.Entry
	var walk func(dir string)
	walk = func(dir string) {
		list, err := d.List(dir)
		if err != nil {
			t.Fatal(err)
		}
		for i := range list {
			e := &list[i]
			all = append(all, e)
			if e.Type == layer.Dir {
				walk(e.Path)
			}
		}
	}
	walk("")
	if err := d.Sum(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		out[e.Path] = e.Digest
	}
	return out
}

// TestEveryEditIsSeen edits a file a thousand times, keeping its size and setting its times back, as fast as the machine
// can, so that many edits fall into one tick of the kernel's clock.
func TestEveryEditIsSeen(t *testing.T) {
	p := newPlace(t)
	path := p.write("file", "00000000")
	// The file is old: its digest is one that the cache may keep.
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 1000 {
		text := fmt.Sprintf("%08d", rnd.IntN(10))
		switch i % 3 {
		case 0: // in place
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteString(text); err != nil {
				t.Fatal(err)
			}
			f.Close()
		case 1: // by a new file
			if err := errors.Join(os.WriteFile(path+"~", []byte(text), 0o644), os.Rename(path+"~", path)); err != nil {
				t.Fatal(err)
			}
		case 2: // while it is being built: between the look and the end of the build
			d := p.open()
			digests(t, d)
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			p.close(d)
		}
		if err := os.Chtimes(path, info.ModTime(), info.ModTime()); err != nil {
			t.Fatal(err)
		}
		d := p.open()
		if got := digests(t, d)["file"]; got != sha256.Sum256([]byte(text)) {
			t.Fatalf("edit %d was not seen", i)
		}
		p.close(d)
	}
}

// kept returns the cache of the context's digests when it has been read.
func (p *place) kept() *statCache {
	c := openStatCache(p.cache, p.tmp)
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c
}

// settle stops the clock at the first moment at which a file is settled that changed before the file called path did.
func (p *place) settle(path string) {
	p.t.Helper()
	at := p.changed(path).Add(settled)
	p.now = func() time.Time { return at }
}

// changed returns when the file called path changed last.
func (p *place) changed(path string) time.Time {
	p.t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		p.t.Fatal(err)
	}
	return time.Unix(st.Ctim.Unix())
}

func TestStatCache(t *testing.T) {
	p := newPlace(t)
	for i := range 50 {
		p.write(fmt.Sprintf("d%d/f%d", i%7, i), fmt.Sprint(i))
	}
	p.write("young", "0")
	p.settle(filepath.Join(p.dir, "d0/f0"))
	slow := p.open()
	digests(t, slow)
	// A build that takes long: what it read was too young then, and is not trusted because it is old by now.
	slow.now = func() time.Time { return time.Now().Add(time.Hour) }
	p.close(slow)
	if n := p.kept().count(); n != 0 {
		t.Fatalf("%d digests were kept of files that had just been written when they were read", n)
	}
	for young := ""; young == "" || p.changed(young) == p.changed(filepath.Join(p.dir, "d0/f49")); { // the kernel's clock has ticks
		young = p.write("young", "1")
	}
	p.settle(filepath.Join(p.dir, "young"))

	d := p.open()
	want := digests(t, d)
	p.close(d)
	c := p.kept()
	if c.count() != 50 {
		t.Fatalf("%d digests were kept, want those of the 50 files that are old", c.count())
	}

	t.Run("used", func(t *testing.T) {
		// What Lookup and List return has its digest already, and nothing is read.
		d := p.open()
		defer p.close(d)
		e, ok, err := d.Lookup("d1/f1")
		if err != nil || !ok || e.Digest != sha256.Sum256([]byte("1")) {
			t.Errorf("Lookup = %+v, %v, %v", e, ok, err)
		}
	})
	t.Run("renamed", func(t *testing.T) {
		// A renamed directory's files are the same files.
		if err := os.Rename(filepath.Join(p.dir, "d2"), filepath.Join(p.dir, "moved")); err != nil {
			t.Fatal(err)
		}
		d := p.open()
		defer p.close(d)
		list, err := d.List("moved")
		if err != nil || len(list) == 0 {
			t.Fatal(list, err)
		}
		for _, e := range list {
			if e.Digest != want["d2/"+e.Name()] {
				t.Errorf("%s is not known any more", e.Path)
			}
		}
		if err := os.Rename(filepath.Join(p.dir, "moved"), filepath.Join(p.dir, "d2")); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("touched", func(t *testing.T) {
		now := time.Now()
		if err := os.Chtimes(filepath.Join(p.dir, "d1/f1"), now, now); err != nil {
			t.Fatal(err)
		}
		d := p.open()
		defer p.close(d)
		if got := digests(t, d)["d1/f1"]; got != want["d1/f1"] {
			t.Error("a touch changes the digest")
		}
	})
	t.Run("damaged", func(t *testing.T) {
		whole, err := os.ReadFile(p.cache)
		if err != nil {
			t.Fatal(err)
		}
		check := func(what string, data []byte) {
			t.Helper()
			if err := os.WriteFile(p.cache, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if n := p.kept().count(); n != 0 {
				t.Errorf("%s: %d digests are believed", what, n)
			}
		}
		for i := 0; i < len(whole); i += 13 {
			data := bytes.Clone(whole)
			data[i] ^= 1 << (i % 8)
			check(fmt.Sprintf("a flipped bit at %d", i), data)
			check(fmt.Sprintf("a cut at %d", i), whole[:i])
			check(fmt.Sprintf("zeros from %d", i), append(bytes.Clone(whole[:i]), make([]byte, len(whole)-i)...))
		}
		check("something more", append(bytes.Clone(whole), make([]byte, recordSize)...))
		d := p.open()
		for name, digest := range digests(t, d) {
			if digest != want[name] {
				t.Errorf("%s has another digest after the damage", name)
			}
		}
		p.close(d)
		if n := p.kept().count(); n == 0 {
			t.Error("the damaged cache was not made again")
		}
	})
	t.Run("concurrent", func(t *testing.T) {
		a, b := p.open(), p.open()
		digests(t, a)
		digests(t, b)
		p.close(a)
		p.close(b)
		d := p.open()
		defer p.close(d)
		for name, digest := range digests(t, d) {
			if digest != want[name] {
				t.Errorf("%s has another digest", name)
			}
		}
	})
}

// TestChanged: a file that was changed since it was found has what it has now, one that was removed is gone, and what is no file any more
// is an error with which the step is planned again.
func TestChanged(t *testing.T) {
	p := newPlace(t)
	path := p.write("file", "")
	d := p.open()
	defer p.close(d)
	for what, c := range map[string]struct {
		change func() error
		want   layer.Type // 0 for an error
	}{
		"grown":   {func() error { return os.WriteFile(path, make([]byte, 1001), 0o644) }, layer.File},
		"removed": {func() error { return os.Remove(path) }, layer.Whiteout},
		"in file": {func() error { return errors.Join(os.RemoveAll(p.dir+"/in"), os.WriteFile(p.dir+"/in", nil, 0o644)) }, layer.Whiteout},
		"fifo":    {func() error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o644)) }, 0},
		"folder":  {func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o755)) }, 0},
	} {
		os.RemoveAll(path)
		p.write("file", strings.Repeat("x", 1000))
		name := "file"
		if what == "in file" {
			name = "in/file"
			p.write(name, "")
		}
		e, ok, err := d.Lookup(name)
		if !ok || err != nil {
			t.Fatal(ok, err)
		}
		if err := c.change(); err != nil {
			t.Fatal(err)
		}
		e.Digest = layer.Digest{}
		err = d.Sum(t.Context(), []*layer.Entry{&e})
		if c.want == 0 && !errors.As(err, new(*layer.ChangedError)) {
			t.Errorf("%s: Sum = %v, want a ChangedError", what, err)
		}
		if c.want != 0 && (err != nil || e.Type != c.want) {
			t.Errorf("%s: it is %c, %v", what, e.Type, err)
		}
		if what == "grown" && (e.Size != 1001 || e.Digest != sha256.Sum256(make([]byte, 1001))) {
			t.Errorf("%s: it has %d bytes", what, e.Size)
		}
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if list, err := d.List("file"); len(list) > 0 || err != nil {
		t.Errorf("a directory that was removed has %v, %v", list, err)
	}
	if _, err := d.Open(&layer.Entry{Path: "file", Type: layer.File}); !errors.As(err, new(*layer.ChangedError)) {
		t.Errorf("Open of a file that was removed: %v", err)
	}
}

// whileRead is a context that calls a function whenever somebody who reads looks at it.
type whileRead struct {
	context.Context
	call func()
}

func (w whileRead) Err() error {
	w.call()
	return nil
}

// TestChangedWhileRead: a file that changes while it is read is read again, and if it does so each time what it had when it was opened
// counts from then on, with a warning.
func TestChangedWhileRead(t *testing.T) {
	for _, c := range []struct {
		name    string
		changes int // while it is read
		copied  bool
	}{{"once", 1, false}, {"twice", 2, false}, {"always", 1 << 20, true}} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlace(t)
			path := p.write("log", "line\n")
			d := p.open()
			defer p.close(d)
			var warned []string
			d.Warn(func(text string) { warned = append(warned, text) })
			e, _, err := d.Lookup("log")
			if err != nil {
				t.Fatal(err)
			}
			changes, opened := 0, int64(0)
			ctx := whileRead{t.Context(), func() {
				info, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				if changes++; changes > c.changes {
					return
				}
				opened = info.Size() // at most: it is looked at several times
				if err := os.WriteFile(path, bytes.Repeat([]byte("line\n"), changes+1), 0o644); err != nil {
					t.Fatal(err)
				}
			}}
			if err := d.sum(ctx, &e, make([]byte, 1<<10), func(int) {}); err != nil {
				t.Fatal(err)
			}
			if len(warned) > 0 != c.copied {
				t.Errorf("warnings: %q", warned)
			}
			f, err := d.Open(&e)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			text, err := io.ReadAll(f)
			if err != nil || int64(len(text)) != e.Size || e.Digest != sha256.Sum256(text) || c.copied && e.Size > opened {
				t.Errorf("the file has %d bytes and is said to have %d, %v; it had %d when it was opened", len(text), e.Size, err, opened)
			}
			if again, ok, err := d.Lookup("log"); !ok || err != nil || c.copied && (again.Size != e.Size || again.Digest != e.Digest) {
				t.Errorf("it is %+v when it is looked up again, %v; it was %+v", again, err, e)
			}
		})
	}
}

// TestWrittenTo: when steps have failed often enough because of what is written to a directory, what is read then counts.
func TestWrittenTo(t *testing.T) {
	p := newPlace(t)
	p.write("dir/a", "a")
	p.write("b", "b")
	d := p.open()
	defer p.close(d)
	warned := 0
	d.Warn(func(string) { warned++ })
	for range 2 * maxChanges {
		p.write("b", "bb")
		if digests(t, d)["b"] != sha256.Sum256([]byte("bb")) {
			t.Fatal("a change was not seen")
		}
		p.write("b", "b")
		if warned > 0 {
			break
		}
		d.Changed()
	}
	before := digests(t, d)
	p.write("dir/a", "A")
	p.write("b", "new")
	p.write("dir/new", "new")
	if err := os.Remove(filepath.Join(p.dir, "b")); err != nil {
		t.Fatal(err)
	}
	if after := digests(t, d); warned != 1 || !maps.Equal(before, after) || len(after) != 3 {
		t.Errorf("there were %d warnings, and the files are %x and were %x", warned, after, before)
	}
	for name, want := range map[string]string{"dir/a": "a", "b": "bb"} {
		e, ok, err := d.Lookup(name)
		if !ok || err != nil {
			t.Fatalf("%s: %v, %v", name, ok, err)
		}
		f, err := d.Open(&e)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(f)
		f.Close()
		if err != nil || string(text) != want {
			t.Errorf("%s has %q, %v, want %q", name, text, err, want)
		}
	}
}

// TestXattrs: extended attributes of users are part of a context, those of others and of overlays are not, and a change of one is seen.
func TestXattrs(t *testing.T) {
	p := newPlace(t)
	file, dir := p.write("dir/file", "x"), filepath.Join(p.dir, "dir")
	if err := unix.Setxattr(file, "user.k", []byte("v"), 0); errors.Is(err, unix.ENOTSUP) {
		t.Skip("the file system has no extended attributes")
	}
	big := strings.Repeat("v", 2000)
	for _, x := range []struct{ path, name, value string }{
		{file, "user.big", big}, {file, "user.overlay.opaque", "y"}, {file, "trusted.t", "t"}, {dir, "user.d", ""}, {dir, "user.overlay.origin", ""},
	} {
		if err := unix.Setxattr(x.path, x.name, []byte(x.value), 0); err != nil && !errors.Is(err, unix.EPERM) && x.value != big {
			t.Fatal(x.name, err)
		}
	}
	has := func(d *Dir, path, want string) {
		t.Helper()
		entries, err := d.List(layer.Parent(path))
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(entries, func(e layer.Entry) bool { return e.Path == path })
		e, _, err := d.Lookup(path)
		if err := errors.Join(err, d.Sum(t.Context(), []*layer.Entry{&entries[i], &e})); err != nil {
			t.Fatal(err)
		}
		for _, e := range []layer.Entry{entries[i], e} {
			got := ""
			for _, x := range e.Xattrs {
				got += fmt.Sprintf("%s=%.1s ", x.Name, x.Value)
			}
			if got != want {
				t.Errorf("%s has %q, want %q", path, got, want)
			}
		}
	}
	_, err := unix.Getxattr(file, "user.big", nil)
	all := "user.big=v user.k=v "
	if err != nil {
		all = "user.k=v " // ext4 has a block for them
	}
	p.settle(file)
	for range 2 { // the second time from the cache
		d := p.open()
		has(d, "dir", "user.d= ")
		has(d, "dir/file", all)
		p.close(d)
	}
	if err := errors.Join(unix.Setxattr(file, "user.k", []byte("w"), 0), unix.Setxattr(dir, "user.d", []byte("1"), 0)); err != nil {
		t.Fatal(err)
	}
	d := p.open()
	has(d, "dir", "user.d=1 ")
	has(d, "dir/file", strings.Replace(all, "k=v", "k=w", 1))
	p.close(d)
}

// TestIgnoredIsNeverOpened: what .dockerignore excludes cannot disturb, whatever it is.
func TestIgnoredIsNeverOpened(t *testing.T) {
	p := newPlace(t)
	p.write("kept", "kept")
	p.write("out/back/file", "file")
	for _, name := range []string{"fifo", "out/fifo"} {
		if err := unix.Mkfifo(filepath.Join(p.dir, name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// fanotify or the like would tell who opens a file; its access time does as well.
	secret := p.write("secret", "secret")
	closed := filepath.Join(p.dir, "closed")
	if err := os.Mkdir(closed, 0); err != nil {
		t.Fatal(err)
	}
	long := time.Unix(1000, 0)
	for _, path := range []string{secret, closed} {
		if err := os.Chtimes(path, long, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	d := p.open("fifo", "secret", "closed", "out", "!out/back")
	defer p.close(d)
	got := digests(t, d)
	if len(got) != 4 {
		t.Errorf("the tree is %v, want kept, out, out/back, out/back/file", got)
	}
	for _, path := range []string{secret, closed} {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		if st.Atim.Sec != long.Unix() {
			t.Errorf("%s was opened", path)
		}
	}
	for _, name := range []string{"secret", "closed", "out/fifo"} {
		if _, ok, err := d.Lookup(name); ok || err != nil {
			t.Errorf("Lookup(%s) = %v, %v, want nothing", name, ok, err)
		}
	}
	if _, ok, err := d.Lookup("out/back/file"); !ok || err != nil {
		t.Errorf("what an exception brings back is not there: %v", err)
	}
}

func TestEntries(t *testing.T) {
	p := newPlace(t)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("outside"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.write("a", "a")
	for from, to := range map[string]string{"absolute": outside, "up": "../../../../../../etc/passwd", "dir": filepath.Dir(outside), "self": "self", "proc": "/proc/self/root"} {
		if err := os.Symlink(to, filepath.Join(p.dir, from)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(p.dir, "a"), filepath.Join(p.dir, "b")); err != nil {
		t.Fatal(err)
	}
	// The name of a socket must be short: sun_path has 108 bytes.
	t.Chdir(p.dir)
	l, err := net.Listen("unix", "socket")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d := p.open()
	defer p.close(d)

	a, _, _ := d.Lookup("a")
	b, _, _ := d.Lookup("b")
	if a.LinkID == "" || a.LinkID != b.LinkID {
		t.Errorf("two names of a file have the link ids %q and %q", a.LinkID, b.LinkID)
	}
	s, ok, err := d.Lookup("socket")
	if !ok || err != nil || s.Type != layer.File || s.Size != 0 {
		t.Errorf("a socket is %+v, %v, want an empty file", s, err)
	}
	if err := d.Sum(context.Background(), []*layer.Entry{&s}); err != nil || s.Digest != sha256.Sum256(nil) {
		t.Errorf("a socket's digest is %x, %v", s.Digest, err)
	}
	for _, name := range []string{"absolute", "up", "dir", "self", "proc"} {
		e, ok, err := d.Lookup(name)
		if !ok || err != nil || e.Type != layer.Symlink {
			t.Errorf("%s is %+v, %v, want a symbolic link", name, e, err)
		}
		// Nothing is behind a link, and no file is opened through one.
		if _, ok, err := d.Lookup(name + "/outside"); ok || err != nil {
			t.Errorf("Lookup behind %s = %v, %v", name, ok, err)
		}
		if _, err := d.List(name); err == nil {
			t.Errorf("List lists what %s points to", name)
		}
		if f, err := d.Open(&layer.Entry{Path: name, Type: layer.File}); err == nil {
			text, _ := io.ReadAll(f)
			t.Errorf("Open opens what %s points to: %q", name, text)
		}
	}
	for _, name := range []string{"../" + filepath.Base(p.dir) + "/a", "..", "x/../../a"} {
		if e, ok, _ := d.Lookup(name); ok && e.Type == layer.File && e.Path == "a" {
			t.Errorf("Lookup(%q) leads out and back in", name)
		}
	}
}

// However many files there are, few digests are kept in memory; all are found, in this build and in the next.
func TestManyDigests(t *testing.T) {
	p := newPlace(t)
	c := openStatCache(p.cache, p.tmp)
	c.room = 10
	const n = 3*most + 7
	old := time.Now().Add(-time.Hour)
	made := func(i int) (stamp, layer.Digest) {
		return stamp{dev: 1, ino: uint64(i * 7919 % n), mtime: old.UnixNano(), ctime: old.UnixNano()}, layer.Digest{byte(i), byte(i >> 8), byte(i >> 16)}
	}
	for i := range n {
		s, d := made(i)
		c.put(s, learnt{digest: d}, time.Now())
		if len(c.fresh) > most {
			t.Fatalf("%d digests are in memory", len(c.fresh))
		}
	}
	found := func(c *statCache) {
		t.Helper()
		var at finger
		for i := range n {
			s, want := made(i)
			if got, ok := c.get(s, &at); !ok || got.digest != want {
				t.Fatalf("digest %d is %x, %v", i, got.digest, ok)
			}
		}
	}
	found(c)
	if err := c.save(); err != nil {
		t.Fatal(err)
	}
	found(openStatCache(p.cache, p.tmp))
}

// TestEnds shows that looking at a large directory and reading a large file end with the context.
func TestEnds(t *testing.T) {
	p := newPlace(t)
	const n = 1000
	for i := range n {
		p.write(fmt.Sprintf("dir/%d", i), "")
	}
	if err := os.Truncate(p.write("large", ""), 1<<40); err != nil {
		t.Fatal(err)
	}
	d, err := Open(ctxtest.EndAfter(n/2), p.dir, nil, p.cache, p.tmp)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.List("dir"); !errors.Is(err, ctxtest.ErrEnded) {
		t.Errorf("List: %v", err)
	}
	if _, _, err := d.Lookup("large"); !errors.Is(err, ctxtest.ErrEnded) {
		t.Errorf("Lookup: %v", err)
	}
	large := &layer.Entry{Path: "large", Type: layer.File, Size: 1 << 40}
	if err := d.sum(ctxtest.EndAfter(10), large, make([]byte, 4<<10), func(int) {}); !errors.Is(err, ctxtest.ErrEnded) {
		t.Errorf("sum: %v", err)
	}
	f, err := d.Open(&layer.Entry{Path: "large", Type: layer.File, Size: 1 << 40})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Read(make([]byte, 1)); !errors.Is(err, ctxtest.ErrEnded) {
		t.Errorf("Read: %v", err)
	}
	p.close(d)
}

// TestHideRoot: kiln's root directory is nowhere in a context, by whatever path somebody gets there, with and without patterns.
func TestHideRoot(t *testing.T) {
	names := func(t *testing.T, d *Dir) (all []string) {
		var walk func(dir string)
		walk = func(dir string) {
			list, err := d.List(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range list {
				all = append(all, e.Path)
				if e.Type == layer.Dir {
					walk(e.Path)
				}
			}
		}
		walk("")
		return all
	}
	for what, c := range map[string]struct {
		root     string
		patterns []string
		want     string
	}{
		"below":         {".kiln", nil, "blobs blobs/mine sub sub/blobs sub/file x"},
		"deep":          {"sub/cache/kiln", nil, ".kiln .kiln/layers .kiln/layers/l .kiln/other blobs blobs/mine sub sub/blobs sub/cache sub/file x"},
		"with patterns": {".kiln", []string{"*", "!.kiln", "!x"}, "x"},
		"a name in it":  {".kiln", []string{"*", "!.kiln/other"}, ""},
		"outside":       {"..", nil, ".kiln .kiln/layers .kiln/layers/l .kiln/other blobs blobs/mine sub sub/blobs sub/file x"},
		"a link to it":  {"link", nil, "blobs blobs/mine link sub sub/blobs sub/file x"},
	} {
		t.Run(what, func(t *testing.T) {
			p := newPlace(t)
			for _, name := range []string{"x", "sub/file", "sub/blobs", "blobs/mine", ".kiln/layers/l", ".kiln/other"} {
				p.write(name, name)
			}
			root := filepath.Join(p.dir, c.root)
			switch what {
			case "a link to it":
				if err := os.Symlink(".kiln", root); err != nil {
					t.Fatal(err)
				}
			case "deep":
				p.write(c.root+"/layers/l", "l")
			}
			d := p.open(c.patterns...)
			defer p.close(d)
			if err := d.HideRoot(root); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(names(t, d), " "); got != c.want {
				t.Errorf("there are %s, want %s", got, c.want)
			}
			if what == "outside" {
				return
			}
			for _, name := range []string{c.root, c.root + "/layers", c.root + "/layers/l", c.root + "/other"} {
				_, ok, err := d.Lookup(strings.TrimPrefix(name, "/"))
				if err != nil || ok != strings.Contains(" "+c.want+" ", " "+strings.TrimPrefix(name, "/")+" ") && name != "" {
					t.Errorf("Lookup(%q) = %v, %v", name, ok, err)
				}
			}
		})
	}
	p := newPlace(t)
	d := p.open()
	defer p.close(d)
	if err := d.HideRoot(p.dir); err == nil {
		t.Error("a context is kiln's root directory")
	}
}

// What Sum is about to read is announced, and counted as it is read; digests that are known are neither.
func TestReading(t *testing.T) {
	p := newPlace(t)
	p.write("one", strings.Repeat("x", 1000))
	p.write("two", strings.Repeat("y", 500))
	d := p.open()
	defer p.close(d)
	var announced, read atomic.Int64
	d.Reading(func(_ context.Context, total int64) func(n int) {
		announced.Add(total)
		return func(n int) { read.Add(int64(n)) }
	})
	list, err := d.List("")
	if err != nil {
		t.Fatal(err)
	}
	entries := []*layer.Entry{&list[0], &list[1]}
	for range 2 {
		if err := d.Sum(t.Context(), entries); err != nil {
			t.Fatal(err)
		}
		if announced.Load() != 1500 || read.Load() != 1500 {
			t.Errorf("%d bytes were announced, and %d read", announced.Load(), read.Load())
		}
	}
}
