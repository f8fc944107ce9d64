package layer

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// written returns the bytes of a manifest of entries, which a Writer takes as they are.
func written(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	name := filepath.Join(t.TempDir(), "manifest")
	w, err := NewWriter(name)
	if err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		if err := w.Add(&entries[i]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Close(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// receive writes data as a manifest, with a checksum that is right, and receives it.
func receive(t testing.TB, data []byte, limit Limit) (*Manifest, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "manifest")
	sum := sha256.Sum256(data)
	if err := os.WriteFile(name, append(bytes.Clone(data), sum[:]...), 0o600); err != nil {
		t.Fatal(err)
	}
	return ReceiveManifest(name, limit)
}

func sound() []Entry {
	return []Entry{
		{Path: "", Type: Dir, Mode: 0o755}, {Path: "dir", Type: Dir, Mode: 0o755, Opaque: true},
		{Path: "dir/link", Type: Hardlink, Link: "file", Mode: 0o644, Size: 0}, {Path: "dir/sub", Type: Dir, Mode: 0o700}, {Path: "dir/sub/pipe", Type: Fifo},
		{Path: "dir2", Type: Whiteout}, {Path: "file", Type: File, Mode: 0o4755, Size: 3, UID: 7, Xattrs: []Xattr{{"user.a", "1"}, {"user.b", ""}}},
		{Path: "sym", Type: Symlink, Link: "../../etc", Mode: 0o777, Clock: true}, {Path: "zero", Type: Char, Major: 1, Minor: 5},
	}
}

func TestReceiveManifest(t *testing.T) {
	data := written(t, sound()...)
	data = data[:len(data)-sha256.Size]
	m, err := receive(t, data, Limit{})
	if err != nil {
		t.Fatal(err)
	}
	if m.Entries != len(sound()) || m.Plain {
		t.Errorf("%+v", m.Summary)
	}
	var copied bytes.Buffer
	if n, err := m.WriteTo(&copied); err != nil || n != int64(copied.Len()) || !bytes.Equal(copied.Bytes()[:len(data)], data) {
		t.Errorf("WriteTo = %d, %v", n, err)
	}
	m.Close()
	if _, err := receive(t, data, Limit{Entries: 3}); err == nil {
		t.Error("more entries than are allowed")
	}

	at := func(entries []Entry, path string) *Entry {
		for i := range entries {
			if entries[i].Path == path {
				return &entries[i]
			}
		}
		panic(path)
	}
	for _, tc := range []struct {
		name   string
		change func(e []Entry)
		want   string
	}{
		{"a path that leads out", func(e []Entry) { at(e, "sym").Path = "s/../../x" }, "not clean"},
		{"an absolute path", func(e []Entry) { at(e, "").Path, at(e, "").Type = "/etc", File }, "not clean"},
		{"a mark of the layer format", func(e []Entry) { at(e, "sym").Path = "sym/.wh.x" }, ".wh."},
		{"no directory", func(e []Entry) { at(e, "dir/sub").Type = Symlink; at(e, "dir/sub").Link = "/" }, "no directory that it is in"},
		{"a link to nothing", func(e []Entry) { at(e, "dir/link").Link = "none" }, "no file"},
		{"a link to a directory", func(e []Entry) { at(e, "dir/link").Link = "dir" }, "no file"},
		{"a symbolic link to nowhere", func(e []Entry) { at(e, "sym").Link = "" }, "none"},
		{"a target that is too long", func(e []Entry) { at(e, "sym").Link = strings.Repeat("x", MaxPath) }, "none"},
		{"a mode", func(e []Entry) { at(e, "file").Mode = 0o10000 }, "no layer"},
		{"an opaque file", func(e []Entry) { at(e, "file").Opaque = true }, "no layer"},
		{"a negative size", func(e []Entry) { at(e, "file").Size = -1 }, ""},
		{"a large file", func(e []Entry) { at(e, "file").Size = 1 << 50 }, "more than"},
		{"an attribute of overlayfs", func(e []Entry) { at(e, "file").Xattrs[0].Name = "trusted.overlay.opaque" }, "keeps"},
		{"attributes in another order", func(e []Entry) { at(e, "file").Xattrs[0].Name = "user.c" }, "order"},
		{"a type", func(e []Entry) { at(e, "zero").Type = 'x' }, ""},
	} {
		entries := sound()
		tc.change(entries)
		data := written(t, entries...)
		_, err := receive(t, data[:len(data)-sha256.Size], Limit{})
		if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	// The summary is that of the entries.
	for i := 1; i <= footerSize; i++ {
		other := bytes.Clone(data)
		other[len(other)-i] ^= 1
		created := len(other)-i >= len(other)-footerSize+16 && len(other)-i < len(other)-footerSize+24
		unknown := len(other)-i > len(other)-footerSize+24 && len(other)-i < len(other)-footerSize+32
		if m, err := receive(t, other, Limit{}); err == nil {
			m.Close()
			if !created && !unknown {
				t.Errorf("byte %d from the end of the footer can be changed", i)
			}
		}
	}
}

// Whatever bytes arrive with a checksum that is right, none of them makes kiln panic, and what is accepted can be read.
func FuzzReceiveManifest(f *testing.F) {
	data := written(f, sound()...)
	data = data[:len(data)-sha256.Size]
	f.Add(data)
	f.Add(written(f)[:len(magic)+footerSize])
	for _, at := range []int{len(magic), len(magic) + 4, len(data) - footerSize, len(data) - footerSize + 8} {
		other := bytes.Clone(data)
		binary.LittleEndian.PutUint64(other[at:], 1<<40)
		f.Add(other)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := receive(t, data, Limit{})
		if err != nil {
			return
		}
		defer m.Close()
		for e := range m.All() {
			if msg := BadName(e.Path); msg != "" {
				t.Errorf("%q: %s", e.Path, msg)
			}
			m.Above(e.Path)
			m.OpaqueAbove(e.Path)
		}
	})
}
