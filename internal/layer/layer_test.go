package layer

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var t0 = time.Unix(1700000000, 123456789)

// sample has an entry of every type, with everything that each can have.
func sample() []*Entry {
	body := Digest{1, 2, 3}
	list := []*Entry{
		{Path: "a", Type: Dir, Mode: 0o755, ModTime: t0, Opaque: true},
		{Path: "a/b", Type: File, Mode: 0o4755, UID: 1, GID: 2, Size: 5, Digest: body, ModTime: t0, Xattrs: []Xattr{{"security.capability", "\x01\x00"}, {"user.x", ""}}},
		{Path: "a/c", Type: Hardlink, Link: "a/b", Mode: 0o4755, UID: 1, GID: 2, ModTime: t0},
		{Path: "a.b", Type: Symlink, Mode: 0o777, Link: "../x", ModTime: t0, Clock: true},
		{Path: "chr", Type: Char, Mode: 0o600, Major: 1, Minor: 3, ModTime: t0},
		{Path: "dir", Type: Dir, Mode: 0o700, ModTime: time.Unix(-5, 0), Implied: true},
		{Path: "gone", Type: Whiteout, ModTime: time.Unix(0, 0)},
		{Path: "pipe", Type: Fifo, Mode: 0o644, UID: 4294967294, ModTime: t0},
	}
	slices.SortFunc(list, func(x, y *Entry) int { return Compare(x.Path, y.Path) })
	return list
}

func write(t testing.TB, list []*Entry) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "manifest")
	w, err := NewWriter(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if err := w.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Close(t0); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestManifestRoundTrip(t *testing.T) {
	want := sample()
	m, err := OpenManifest(write(t, want))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var got []*Entry
	for e := range m.All() {
		got = append(got, e)
	}
	if len(got) != len(want) {
		t.Fatalf("%d entries, want %d", len(got), len(want))
	}
	for i := range want {
		if !got[i].ModTime.Equal(want[i].ModTime) {
			t.Errorf("%s: time %v, want %v", want[i].Path, got[i].ModTime, want[i].ModTime)
		}
		got[i].ModTime = want[i].ModTime
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("got  %+v\nwant %+v", got[i], want[i])
		}
		if e, ok := m.Lookup(want[i].Path); !ok || e.Type != want[i].Type {
			t.Errorf("Lookup(%q) = %+v, %v", want[i].Path, e, ok)
		}
	}
	if _, ok := m.Lookup("a/bb"); ok {
		t.Error("found what is not there")
	}
	if !m.Created.Equal(t0) || !m.Implied {
		t.Errorf("summary %+v", m.Summary)
	}
	if s := Identify(slices.Values(want)); s.Content != m.Content || s.Identity != m.Identity {
		t.Error("Identify and Writer disagree")
	}
}

func TestManifestList(t *testing.T) {
	m, err := OpenManifest(write(t, sample()))
	if err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{"": "a a.b chr dir gone pipe", "a": "a/b a/c", "dir": "", "chr": "", "no": ""} {
		var got []string
		for e := range m.List(dir) {
			got = append(got, e.Path)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("List(%q) = %q, want %q", dir, got, want)
		}
	}
}

// Every byte of a manifest is vouched for: whichever one the disk changes, the manifest is refused and not misread.
func TestManifestDamaged(t *testing.T) {
	name := write(t, sample())
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(t.TempDir(), "bad")
	try := func(data []byte, what string, at int) {
		if err := os.WriteFile(bad, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if m, err := OpenManifest(bad); err == nil {
			m.Close()
			t.Fatalf("%s at %d was not noticed", what, at)
		}
	}
	for i := range good {
		data := slices.Clone(good)
		data[i] ^= 1 << (i % 8)
		try(data, "a flipped bit", i)
		try(good[:i], "a truncation", i)
	}
}

// Content has no part in time, identity only that of the clock: this decides which layers stand in for each other.
func TestContentAndIdentity(t *testing.T) {
	sum := func(change func(e *Entry)) Summary {
		e := &Entry{Path: "f", Type: File, Mode: 0o644, Size: 1, Digest: Digest{7}, ModTime: t0, Xattrs: []Xattr{{"user.a", "b"}}}
		change(e)
		return Identify(slices.Values([]*Entry{e}))
	}
	base := sum(func(*Entry) {})
	for name, c := range map[string]struct {
		change            func(e *Entry)
		content, identity bool // whether each is to change
	}{
		"time":       {func(e *Entry) { e.ModTime = t0.Add(time.Hour) }, false, true},
		"clock":      {func(e *Entry) { e.Clock = true }, false, true},
		"path":       {func(e *Entry) { e.Path = "g" }, true, true},
		"mode":       {func(e *Entry) { e.Mode = 0o600 }, true, true},
		"uid":        {func(e *Entry) { e.UID = 1 }, true, true},
		"gid":        {func(e *Entry) { e.GID = 1 }, true, true},
		"bytes":      {func(e *Entry) { e.Digest = Digest{8} }, true, true},
		"size":       {func(e *Entry) { e.Size = 2 }, true, true},
		"xattr name": {func(e *Entry) { e.Xattrs = []Xattr{{"user.ab", ""}} }, true, true},
		"link":       {func(e *Entry) { e.Type, e.Link = Symlink, "x" }, true, true},
		"link id":    {func(e *Entry) { e.LinkID = "x" }, false, false},
	} {
		s := sum(c.change)
		if changed := s.Content != base.Content; changed != c.content {
			t.Errorf("%s: content changed: %v, want %v", name, changed, c.content)
		}
		if changed := s.Identity != base.Identity; changed != c.identity {
			t.Errorf("%s: identity changed: %v, want %v", name, changed, c.identity)
		}
	}
	clock := func(at time.Time) Summary { return sum(func(e *Entry) { e.Clock, e.ModTime = true, at }) }
	if clock(t0) != clock(t0.Add(time.Second)) {
		t.Error("a time of the clock is part of the identity")
	}
}

// withBodies yields the entries with what writes their bytes.
func withBodies(list []*Entry, body func(*Entry) Body) iter.Seq2[*Entry, Body] {
	return func(yield func(*Entry, Body) bool) {
		for _, e := range list {
			if !yield(e, body(e)) {
				return
			}
		}
	}
}

// Small files are gathered by several goroutines and large ones are not: nothing of that is to be seen in the tar, nor in an error.
func TestTarOfManySizes(t *testing.T) {
	var list []*Entry
	bytesOf := func(e *Entry) []byte { return bytes.Repeat([]byte{byte(e.Size)}, int(e.Size)) }
	for i := range 3000 {
		e := &Entry{Path: fmt.Sprintf("file%04d", i), Type: File, Mode: 0o644, Size: int64(i * 7 % 5000)}
		switch {
		case i%100 == 0:
			e.Type, e.Size = Dir, 0
		case i%97 == 0:
			e.Size = maxTarRun/4 + int64(i)
		case i == 2999:
			e.Size = 3*maxTarRun + 1
		}
		list = append(list, e)
	}
	var want bytes.Buffer
	tw := tar.NewWriter(&want)
	for _, e := range list {
		if err := tw.WriteHeader(header(e)); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(bytesOf(e)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	body := func(e *Entry) Body {
		return func(w io.Writer) error {
			_, err := w.Write(bytesOf(e))
			return err
		}
	}
	if err := WriteTar(&got, withBodies(list, body)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Error("the tar is not that of one entry after the other")
	}

	bad := errors.New("bad")
	for _, at := range []int{1, 97, 1501, 2999} {
		failing := func(e *Entry) Body {
			if e == list[at] {
				return func(io.Writer) error { return bad }
			}
			return body(e)
		}
		if err := WriteTar(io.Discard, withBodies(list, failing)); !errors.Is(err, bad) || !strings.Contains(err.Error(), list[at].Path) {
			t.Errorf("entry %d cannot be read, and the error is %v", at, err)
		}
	}
	full, into := io.Pipe()
	full.CloseWithError(bad)
	if err := WriteTar(into, withBodies(list, body)); !errors.Is(err, bad) {
		t.Errorf("the tar cannot be written, and the error is %v", err)
	}
}

// The times in the tar of a layer are whole seconds, also before 1970, and its headers small. Those of other tars are exact.
func TestTarTimes(t *testing.T) {
	for _, nsec := range []int64{0, 1, 999_999_999} {
		for _, sec := range []int64{1_700_000_000, 0, -5} {
			list := []*Entry{{Path: "f", Type: File, Mode: 0o644, ModTime: time.Unix(sec, nsec)}}
			for _, c := range []struct {
				write func(io.Writer, iter.Seq2[*Entry, Body]) error
				want  time.Time
			}{{WriteLayer, time.Unix(sec, 0)}, {WriteTar, time.Unix(sec, nsec)}} {
				var b bytes.Buffer
				if err := c.write(&b, withBodies(list, func(*Entry) Body { return nil })); err != nil {
					t.Fatal(err)
				}
				size := b.Len()
				e, err := NewReader(&b, Limit{}).Next()
				if err != nil || !e.ModTime.Equal(c.want) {
					t.Errorf("%v is %v, %v, want %v", list[0].ModTime, e.ModTime, err, c.want)
				}
				if small := 3 * tarBlock; sec >= 0 && c.want.Nanosecond() == 0 && size != small {
					t.Errorf("%v takes %d bytes", c.want, size)
				}
			}
			if !list[0].ModTime.Equal(time.Unix(sec, nsec)) {
				t.Error("the entry was changed")
			}
		}
	}
}

func TestTarRoundTrip(t *testing.T) {
	list := sample()
	body := func(w io.Writer) error {
		_, err := io.WriteString(w, "hello")
		return err
	}
	var a, b bytes.Buffer
	for _, w := range []io.Writer{&a, &b} {
		if err := WriteTar(w, withBodies(list, func(*Entry) Body { return body })); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("the same entries give different bytes")
	}
	tr := tar.NewReader(&a)
	got := map[string]Entry{}
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		e, ok, err := FromHeader(h)
		if err != nil || !ok {
			t.Fatal(h.Name, ok, err)
		}
		got[e.Path] = e
	}
	for _, e := range list {
		switch e.Type {
		case Whiteout:
			if _, ok := got[".wh.gone"]; !ok {
				t.Error("no whiteout")
			}
			continue
		case Dir:
			if _, ok := got[e.Path+"/"+OpaqueName]; ok != e.Opaque {
				t.Errorf("%s: opaque %v, want %v", e.Path, ok, e.Opaque)
			}
		}
		g := got[e.Path]
		if !g.ModTime.Equal(e.ModTime) || g.Type != e.Type || g.Mode != e.Mode || g.UID != e.UID || g.Size != e.Size || g.Link != e.Link || g.Major != e.Major || g.Minor != e.Minor {
			t.Errorf("got  %+v\nwant %+v", g, e)
		}
		if e.Type == File && !reflect.DeepEqual(g.Xattrs, e.Xattrs) {
			t.Errorf("attributes %q, want %q", g.Xattrs, e.Xattrs)
		}
	}
}

func TestFromHeaderRefuses(t *testing.T) {
	for name, h := range map[string]*tar.Header{
		"up":               {Typeflag: tar.TypeReg, Name: "../x"},
		"up later":         {Typeflag: tar.TypeReg, Name: "a/../../x"},
		"root is a link":   {Typeflag: tar.TypeSymlink, Name: "/.", Linkname: "/etc"},
		"hard link out":    {Typeflag: tar.TypeLink, Name: "x", Linkname: "../../etc/passwd"},
		"hard link root":   {Typeflag: tar.TypeLink, Name: "x", Linkname: "/"},
		"negative owner":   {Typeflag: tar.TypeReg, Name: "x", Uid: -1},
		"owner too large":  {Typeflag: tar.TypeReg, Name: "x", Gid: 1 << 32},
		"owner keeps":      {Typeflag: tar.TypeReg, Name: "x", Uid: 1<<32 - 1},
		"overlay whiteout": {Typeflag: tar.TypeChar, Name: "x"},
		"unknown type":     {Typeflag: 'Z', Name: "x"},
		"empty link":       {Typeflag: tar.TypeSymlink, Name: "x"},
		"device range":     {Typeflag: tar.TypeBlock, Name: "x", Devmajor: 1 << 40},
	} {
		if e, ok, err := FromHeader(h); err == nil {
			t.Errorf("%s: got %+v, %v", name, e, ok)
		}
	}
}

func FuzzFromHeader(f *testing.F) {
	f.Add("a/b", "c", byte('0'), int64(0), int64(0))
	f.Add("./../x", "/", byte('1'), int64(-1), int64(1<<40))
	f.Fuzz(func(t *testing.T, name, link string, flag byte, uid, size int64) {
		e, ok, err := FromHeader(&tar.Header{Name: name, Linkname: link, Typeflag: flag, Uid: int(uid), Size: size})
		if err != nil || !ok {
			return
		}
		for _, p := range []string{e.Path, e.Link} {
			if e.Type != Symlink && (strings.HasPrefix(p, "/") || p == ".." || strings.HasPrefix(p, "../") || strings.Contains(p, "/../")) {
				t.Errorf("%q leads out", p)
			}
		}
	})
}

// A manifest of another version is told from one that is damaged, and not read.
func TestOtherVersion(t *testing.T) {
	name := write(t, sample())
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	data = bytes.Replace(data[:len(data)-sha256.Size], []byte("manifest 3\n"), []byte("manifest 2\n"), 1)
	sum := sha256.Sum256(data)
	if err := os.WriteFile(name, append(data, sum[:]...), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenManifest(name); !errors.Is(err, ErrOtherVersion) || !errors.Is(err, ErrDamaged) {
		t.Errorf("OpenManifest: %v", err)
	}
}

// FuzzOpenManifest gives a damaged file the checksum that it should have, so that the rest of what is checked has to stand alone.
func FuzzOpenManifest(f *testing.F) {
	good, err := os.ReadFile(write(f, sample()))
	if err != nil {
		f.Fatal(err)
	}
	for _, cut := range []int{0, 1, 8, 100} {
		f.Add(good[:len(good)-cut])
	}
	footer := len(good) - footerSize
	for _, numbers := range [][2]uint64{{^uint64(7), 1}, {0, 0}, {1 << 63, 1 << 60}, {uint64(len(good)), ^uint64(0)}} {
		bad := slices.Clone(good)
		binary.LittleEndian.PutUint64(bad[footer:], numbers[0])
		binary.LittleEndian.PutUint64(bad[footer+8:], numbers[1])
		f.Add(bad)
	}
	// A table that would begin before the file.
	bad := make([]byte, len(magic)+footerSize)
	copy(bad, magic)
	n := uint64(len(bad) / 8)
	binary.LittleEndian.PutUint64(bad[len(magic):], uint64(len(bad))-footerSize-8*n)
	binary.LittleEndian.PutUint64(bad[len(magic)+8:], n)
	f.Add(bad)
	f.Fuzz(func(t *testing.T, data []byte) {
		name := filepath.Join(t.TempDir(), "manifest")
		if end := len(data) - sha256.Size; end >= 0 {
			sum := sha256.Sum256(data[:end])
			data = append(slices.Clone(data[:end]), sum[:]...)
		}
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := OpenManifest(name)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("the error is %v", err)
			}
			return
		}
		if m.Entries*8 != len(m.table) || m.Close() != nil {
			t.Errorf("a table of %d bytes for %d entries", len(m.table), m.Entries)
		}
	})
}

// A directory's whole content must follow it directly, which byte order does not give: '.' and '-' sort before '/'.
func FuzzCompare(f *testing.F) {
	f.Add("a", "a/b", "a.b")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		if (Compare(a, b) < 0) != (Compare(b, a) > 0) || (Compare(a, b) == 0) != (a == b) {
			t.Errorf("no order: %q %q", a, b)
		}
		if Compare(a, b) < 0 && Compare(b, c) < 0 && Compare(a, c) >= 0 {
			t.Errorf("not transitive: %q %q %q", a, b, c)
		}
		if a != "" && Within(b, a) && b != a && Compare(a, c) < 0 && Compare(c, b) < 0 && !Within(c, a) {
			t.Errorf("%q lies between %q and %q", c, a, b)
		}
	})
}
