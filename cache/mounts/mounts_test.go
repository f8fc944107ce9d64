package mounts

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/kilnbuild/kiln/snapshot/dir"
)

// place keeps blobs in memory, and counts the bytes that were put there first.
type place struct {
	mu    sync.Mutex
	blobs map[digest.Digest][]byte
	sent  int64
}

func (p *place) Put(_ context.Context, desc ocispec.Descriptor, open func() (io.ReadCloser, error)) error {
	r, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if digest.FromBytes(data) != desc.Digest || int64(len(data)) != desc.Size {
		return fmt.Errorf("a blob of %d bytes is not %v", len(data), desc)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.blobs == nil {
		p.blobs = map[digest.Digest][]byte{}
	}
	if p.blobs[desc.Digest] == nil {
		p.sent += desc.Size
	}
	p.blobs[desc.Digest] = data
	return nil
}

func (p *place) open(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	data, ok := p.blobs[desc.Digest]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return cas.VerifyReader(io.NopCloser(bytes.NewReader(data)), desc, "memory"), nil
}

// env is what the functions of the package need.
type env struct {
	t    *testing.T
	disk *dir.FS
	tmp  string
	place
}

func newEnv(t *testing.T) *env {
	ns, err := userns.Current()
	if err != nil {
		t.Fatal(err)
	}
	tmp := t.TempDir()
	disk, err := dir.NewFS(tmp, ns)
	if err != nil {
		t.Fatal(err)
	}
	return &env{t: t, disk: disk, tmp: tmp}
}

func (e *env) write(from string, old *Contents) *Written {
	e.t.Helper()
	w, err := Write(e.t.Context(), e.disk, from, e.tmp, old, 1<<40, e)
	if err != nil {
		e.t.Fatal(err)
	}
	return w
}

func (e *env) contents(w *Written) *Contents {
	e.t.Helper()
	r, err := e.open(e.t.Context(), w.Index)
	if err != nil {
		e.t.Fatal(err)
	}
	c, err := Decode(e.t.Context(), r, e.tmp, 1<<40)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { c.Close() })
	return c
}

func (e *env) restore(c *Contents) string {
	e.t.Helper()
	to := filepath.Join(e.t.TempDir(), "to")
	if err := errors.Join(os.Mkdir(to, 0o700), Restore(e.t.Context(), e.disk, c, to, e.open)); err != nil {
		e.t.Fatal(err)
	}
	return to
}

// describe returns all that a directory has, as text.
func describe(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		fmt.Fprintf(&b, "%s %o %d:%d %d.%09d", rel, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch d.Type() {
		case fs.ModeSymlink:
			target, err := os.Readlink(path)
			fmt.Fprintf(&b, " -> %s", target)
			if err != nil {
				return err
			}
		case 0:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(data)
			fmt.Fprintf(&b, " %d %s", len(data), hex.EncodeToString(sum[:4]))
			if name, ok := first[st.Ino]; ok {
				fmt.Fprintf(&b, " = %s", name)
			} else {
				first[st.Ino] = rel
			}
		}
		value := make([]byte, 64)
		if n, err := unix.Lgetxattr(path, "user.note", value); err == nil {
			fmt.Fprintf(&b, " note=%s", value[:n])
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// random returns n bytes that do not compress, the same for a seed.
func random(seed, n int) []byte {
	b := make([]byte, n)
	src := rand.NewChaCha8(sha256.Sum256([]byte(fmt.Sprint(seed))))
	_, _ = src.Read(b)
	return b
}

// fill makes n files of size bytes in directories named by digests, as npm's cache has them, beginning with number from.
func fill(t *testing.T, root string, from, n, size int) {
	t.Helper()
	for i := from; i < from+n; i++ {
		data := random(i, size)
		sum := fmt.Sprintf("%x", sha256.Sum256(data))
		name := filepath.Join(root, sum[:2], sum[2:])
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRoundTrip: what can be in a cache comes back as it was, with times, owners, links and attributes; what cannot is left out.
func TestRoundTrip(t *testing.T) {
	e := newEnv(t)
	from := t.TempDir()
	in := func(name string) string { return filepath.Join(from, name) }
	old := time.Unix(1e9, 123456789)
	err := errors.Join(
		os.Chmod(from, 0o1777),
		os.MkdirAll(in("a/b"), 0o555), os.WriteFile(in("a.txt"), nil, 0o400), os.WriteFile(in("a/b/big"), random(1, 3<<20), 0o640),
		os.WriteFile(in("a/same"), random(1, 3<<20), 0o600), os.WriteFile(in("sparse"), make([]byte, 1<<20), 0o644),
		os.Link(in("a/b/big"), in("hard")), os.Symlink("../../etc/passwd", in("soft")), os.Symlink("nowhere", in("a/dangling")),
		os.WriteFile(in("privileged"), []byte("x"), 0o755), os.Chmod(in("privileged"), 0o755|fs.ModeSetuid|fs.ModeSetgid),
		os.Lchown(in("a/same"), 12, 34), unix.Mkfifo(in("pipe"), 0o600), os.WriteFile(in(".wh.x"), nil, 0o600),
		unix.Setxattr(in("a/same"), "user.note", []byte("hello"), 0), unix.Setxattr(in("a"), "user.note", []byte("dir"), 0),
		os.Chtimes(in("a/b/big"), old, old), os.Chtimes(in("a/b"), old, old), os.Chtimes(in("a"), old, old),
	)
	if err != nil {
		t.Fatal(err)
	}
	w := e.write(from, nil)
	to := e.restore(e.contents(w))
	for _, left := range []string{"pipe", ".wh.x"} {
		if _, err := os.Lstat(filepath.Join(to, left)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s was restored: %v", left, err)
		}
		if err := os.Remove(in(left)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(in("privileged"), 0o755), os.Chtimes(from, old, old), os.Chtimes(to, old, old)); err != nil {
		t.Fatal(err)
	}
	if got, want := describe(t, to), describe(t, from); got != want {
		t.Errorf("restored:\n%swant:\n%s", got, want)
	}
	if again := e.write(to, e.contents(w)); again.Files != w.Files || again.Size != w.Size || !slices.Equal(descriptors(again.Blocks), descriptors(w.Blocks)) {
		t.Errorf("written again: %+v, want the blocks of %+v", again, w)
	}
}

func descriptors(all []ocispec.Descriptor) (digests []digest.Digest) {
	for _, d := range all {
		digests = append(digests, d.Digest)
	}
	return digests
}

// TestOnlyNewIsSent: the second export sends the new files and the index, wherever the files are, and blocks do not become many.
func TestOnlyNewIsSent(t *testing.T) {
	e := newEnv(t)
	from := t.TempDir()
	fill(t, from, 0, 1000, 64<<10)
	w := e.write(from, nil)
	if len(w.Blocks) < 6 || len(w.Blocks) > 9 {
		t.Errorf("64 MB became %d blocks", len(w.Blocks))
	}
	const added = 20 * 64 << 10
	fill(t, from, 1000, 20, 64<<10)
	e.sent = 0
	next := e.write(from, e.contents(w))
	if e.sent < added || e.sent > added+256<<10 || len(next.Blocks) != len(w.Blocks)+1 {
		t.Errorf("20 files of 64 KiB: %d bytes were sent, and there are %d blocks after %d", e.sent, len(next.Blocks), len(w.Blocks))
	}
	e.sent = 0
	if same := e.write(from, e.contents(next)); e.sent != 0 || same.Index.Digest != next.Index.Digest {
		t.Errorf("nothing is new, and %d bytes were sent", e.sent)
	}
	for i := range 30 {
		fill(t, from, 2000+i, 1, 64<<10)
		next = e.write(from, e.contents(next))
	}
	if len(next.Blocks) > len(w.Blocks)+maxSmall+1 {
		t.Errorf("after 30 exports there are %d blocks", len(next.Blocks))
	}
	if got, want := describe(t, e.restore(e.contents(next))), describe(t, from); !strings.HasSuffix(got, want[strings.IndexByte(want, '\n'):]) {
		t.Error("the files differ after many exports")
	}
	// What most is gone from goes.
	all, err := filepath.Glob(filepath.Join(from, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all[:len(all)*2/3] {
		if err := os.RemoveAll(d); err != nil {
			t.Fatal(err)
		}
	}
	left := e.write(from, e.contents(next))
	stored := int64(0)
	for _, b := range left.Blocks {
		stored += b.Size
	}
	if stored > 2*left.Size {
		t.Errorf("%d bytes of blocks are kept for %d bytes of files", stored, left.Size)
	}
	e.restore(e.contents(left))
}

// TestTooLarge: a mount that is too large is an error before anything is sent.
func TestTooLarge(t *testing.T) {
	e := newEnv(t)
	from := t.TempDir()
	fill(t, from, 0, 10, 1<<10)
	if _, err := Write(t.Context(), e.disk, from, e.tmp, nil, 10<<10-1, e); !errors.As(err, new(*TooLargeError)) || e.sent != 0 {
		t.Errorf("Write = %v, and %d bytes were sent", err, e.sent)
	}
	w, err := Write(t.Context(), e.disk, from, e.tmp, nil, 10<<10, e)
	if err != nil {
		t.Fatal(err)
	}
	r, _ := e.open(t.Context(), w.Index)
	if _, err := Decode(t.Context(), r, e.tmp, 10<<10-1); err == nil {
		t.Error("an index of more bytes than are allowed was read")
	}
}

// TestChanging: files that come, go and change while they are read give what was there at some time, or an error, and never other bytes.
func TestChanging(t *testing.T) {
	e := newEnv(t)
	from := t.TempDir()
	fill(t, from, 0, 200, 4<<10)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			name := filepath.Join(from, fmt.Sprint("x", i%50))
			switch i % 3 {
			case 0:
				_ = os.WriteFile(name, random(i, i%9<<10), 0o600)
			case 1:
				_ = os.RemoveAll(name)
			case 2:
				_ = os.MkdirAll(filepath.Join(name, "in"), 0o700)
			}
		}
	}()
	written := 0
	for range 20 {
		w, err := Write(t.Context(), e.disk, from, e.tmp, nil, 1<<40, e)
		if err != nil {
			continue
		}
		written++
		e.restore(e.contents(w))
	}
	close(stop)
	<-stopped
	if written == 0 {
		t.Error("no export succeeded")
	}
	if left, _ := filepath.Glob(filepath.Join(e.tmp, "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestDamaged: blocks that are gone, cut or others make Restore fail.
func TestDamaged(t *testing.T) {
	e := newEnv(t)
	from := t.TempDir()
	fill(t, from, 0, 20, 1<<20)
	w := e.write(from, nil)
	c := e.contents(w)
	for name, damage := range map[string]func(data []byte) []byte{
		"gone": func([]byte) []byte { return nil },
		"cut":  func(data []byte) []byte { return data[:len(data)/2] },
		"other": func(data []byte) []byte {
			data = slices.Clone(data)
			data[len(data)/2] ^= 1
			return data
		},
		"longer": func(data []byte) []byte { return append(slices.Clone(data), data...) },
	} {
		t.Run(name, func(t *testing.T) {
			sound := e.blobs[w.Blocks[1].Digest]
			defer func() { e.blobs[w.Blocks[1].Digest] = sound }()
			if e.blobs[w.Blocks[1].Digest] = damage(sound); e.blobs[w.Blocks[1].Digest] == nil {
				delete(e.blobs, w.Blocks[1].Digest)
			}
			to := t.TempDir()
			err := Restore(t.Context(), e.disk, c, to, e.open)
			if err == nil || name == "gone" && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Restore = %v", err)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Restore(ctx, e.disk, c, t.TempDir(), e.open); !errors.Is(err, context.Canceled) {
		t.Errorf("Restore after the end of its context = %v", err)
	}
}

// index returns an index of entries and blocks as it is sent.
func index(t testing.TB, tmp string, entries []layer.Entry, blocks []Block) []byte {
	name := filepath.Join(tmp, "hostile")
	os.Remove(name)
	w, err := layer.NewWriter(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := w.Add(&e); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Close(time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out)
	if err == nil {
		err = errors.Join(encode(z, f, blocks), z.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestHostile: an index with what no kiln writes is refused before anything is restored.
func TestHostile(t *testing.T) {
	top := layer.Entry{Type: layer.Dir, Mode: 0o755}
	sum := sha256.Sum256([]byte("x"))
	file := layer.Entry{Path: "f", Type: layer.File, Mode: 0o644, Size: 1, Digest: sum}
	desc := ocispec.Descriptor{MediaType: pack.BlockType, Digest: digest.FromString("block"), Size: 10}
	good := []Block{{desc, []Piece{{1, 1}}}}
	with := func(change func(e *layer.Entry)) []layer.Entry {
		e := file
		change(&e)
		return []layer.Entry{top, e}
	}
	for name, c := range map[string]struct {
		entries []layer.Entry
		blocks  []Block
		want    string // "" for no error
	}{
		"good":       {[]layer.Entry{top, file}, good, ""},
		"empty":      {[]layer.Entry{top}, nil, ""},
		"no entries": {nil, nil, "own directory"},
		"no top":     {[]layer.Entry{file}, []Block{{desc, []Piece{{0, 1}}}}, "own directory"},
		"setuid":     {with(func(e *layer.Entry) { e.Mode = 0o4755 }), good, "set-user-ID"},
		"setgid":     {with(func(e *layer.Entry) { e.Mode = 0o2755 }), good, "set-user-ID"},
		"setuid directory": {
			[]layer.Entry{top, {Path: "d", Type: layer.Dir, Mode: 0o4755}}, nil, "another kind",
		},
		"device":   {[]layer.Entry{top, {Path: "d", Type: layer.Block, Mode: 0o600, Major: 8}}, nil, "a device"},
		"pipe":     {[]layer.Entry{top, {Path: "d", Type: layer.Fifo, Mode: 0o600}}, nil, "a device or a pipe"},
		"whiteout": {[]layer.Entry{top, {Path: "d", Type: layer.Whiteout}}, nil, "a device or a pipe"},
		"opaque":   {[]layer.Entry{top, {Path: "d", Type: layer.Dir, Mode: 0o755, Opaque: true}}, nil, "another kind"},
		"capability": {
			with(func(e *layer.Entry) { e.Xattrs = []layer.Xattr{{Name: "security.capability", Value: "x"}} }), good, "security.capability",
		},
		"trusted":       {with(func(e *layer.Entry) { e.Xattrs = []layer.Xattr{{Name: "trusted.x", Value: "x"}} }), good, "trusted.x"},
		"leads out":     {with(func(e *layer.Entry) { e.Path = "../f" }), good, "not clean"},
		"absolute":      {with(func(e *layer.Entry) { e.Path = "/f" }), good, "not clean"},
		"through link":  {[]layer.Entry{top, {Path: "l", Type: layer.Symlink, Mode: 0o777, Link: "/etc"}, {Path: "l/f", Type: layer.Dir, Mode: 0o755}}, nil, "no directory"},
		"link out":      {[]layer.Entry{top, {Path: "h", Type: layer.Hardlink, Link: "../../etc/shadow"}}, nil, "no file"},
		"no bytes":      {[]layer.Entry{top, file}, nil, "no block has"},
		"twice":         {[]layer.Entry{top, file}, []Block{{desc, []Piece{{1, 1}, {1, 1}}}}, "cannot have"},
		"not a file":    {[]layer.Entry{top, file}, []Block{{desc, []Piece{{0, 1}}}}, "cannot have"},
		"no such entry": {[]layer.Entry{top, file}, []Block{{desc, []Piece{{7, 1}}}}, "larger than"},
		"mostly unused": {[]layer.Entry{top, file}, []Block{{desc, []Piece{{1, 1}, {-1, 1}, {-1, 1}}}}, "not needed"},
		"huge":          {with(func(e *layer.Entry) { e.Size = 1 << 40 }), good, "bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			tmp := t.TempDir()
			got, err := Decode(t.Context(), bytes.NewReader(index(t, tmp, c.entries, c.blocks)), tmp, 1<<30)
			if err == nil {
				got.Close()
			}
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("Decode = %v, want %q", err, c.want)
			}
		})
	}
}

// FuzzDecode: whatever is read as an index is refused, or restored without leaving the directory.
func FuzzDecode(f *testing.F) {
	plain := func(data []byte) []byte {
		z, err := zstd.NewReader(bytes.NewReader(data))
		if err != nil {
			f.Fatal(err)
		}
		defer z.Close()
		out, err := io.ReadAll(z)
		if err != nil {
			f.Fatal(err)
		}
		return out
	}
	sum := sha256.Sum256([]byte("x"))
	top := layer.Entry{Type: layer.Dir, Mode: 0o755}
	f.Add(plain(index(f, f.TempDir(), []layer.Entry{top}, nil)))
	f.Add(plain(index(f, f.TempDir(), []layer.Entry{
		top, {Path: "f", Type: layer.File, Mode: 0o644, Size: 1, Digest: sum}, {Path: "h", Type: layer.Hardlink, Link: "f"},
		{Path: "l", Type: layer.Symlink, Mode: 0o777, Link: "f"},
	}, []Block{{ocispec.Descriptor{Digest: digest.FromString("b"), Size: 9}, []Piece{{-1, 1}, {1, 1}}}})))
	ns, err := userns.Current()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		tmp := t.TempDir()
		c, err := decode(bufio.NewReader(bytes.NewReader(data)), tmp, 1<<20)
		if err != nil {
			return
		}
		defer c.Close()
		disk, err := dir.NewFS(tmp, ns)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(tmp, "to")
		if err := os.Mkdir(to, 0o700); err != nil {
			t.Fatal(err)
		}
		_ = Restore(t.Context(), disk, c, to, func(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
			return nil, fs.ErrNotExist
		})
		if names, err := os.ReadDir(tmp); err != nil || len(names) != 1 {
			t.Errorf("beside the directory there is %v, %v", names, err)
		}
	})
}
