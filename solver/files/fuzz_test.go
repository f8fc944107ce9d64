package files

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/kilnbuild/kiln/internal/localdir"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/snapshot/blob"
)

// The most that a fuzzed archive may unpack to, so that no run fills the disk.
const fuzzMost = 1 << 20

// FuzzUnpack has ADD unpack any archive: nothing is written outside of the layer, and an archive that is compressed
// unpacks to what the same one does that is not.
func FuzzUnpack(f *testing.F) {
	outside := filepath.Join(os.TempDir(), "kiln-fuzz-outside")
	for _, headers := range [][]tar.Header{
		{{Name: "a/b", Mode: 0o644, Size: 3}, {Name: "a", Typeflag: tar.TypeDir, Mode: 0o700}, {Name: "c", Typeflag: tar.TypeLink, Linkname: "a/b"}},
		{{Name: "../x", Size: 3}, {Name: "/../../y", Size: 3}, {Name: "./z/../../w", Size: 3}},
		{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: os.TempDir()}, {Name: "l/kiln-fuzz-outside", Size: 3}},
		{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../../../../../../../../" + os.TempDir()}, {Name: "l/kiln-fuzz-outside", Size: 3}},
		{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "l"}, {Name: "l/x", Size: 3}, {Name: "l", Typeflag: tar.TypeDir}},
		{{Name: "h", Typeflag: tar.TypeLink, Linkname: "../../../../../../etc/passwd"}}, {{Name: "h", Typeflag: tar.TypeLink, Linkname: "h"}},
		{{Name: "f", Size: 3}, {Name: "f/x", Size: 3}, {Name: "f", Typeflag: tar.TypeDir}, {Name: "f/x", Typeflag: tar.TypeFifo}},
		{{Name: "dev", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, {Name: "wh", Typeflag: tar.TypeChar}, {Name: ".wh.a", Size: 3}, {Name: ".wh..wh..opq", Size: 3}},
		{{Name: "x", Size: 3, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b", "SCHILY.xattr.trusted.overlay.opaque": "y"}}},
		{{Name: "x", Size: 3, PAXRecords: map[string]string{"KILN.x": strings.Repeat("long ", 100)}}, {Name: strings.Repeat("d/", 200) + "x", Size: 3}},
		{{Name: ".", Typeflag: tar.TypeDir, Mode: 0o111}, {Name: "", Typeflag: tar.TypeDir}, {Name: "set", Mode: 0o6755, Uid: 7, Gid: 8, Size: 3}},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			if w.WriteHeader(&h) == nil && h.Size > 0 {
				w.Write([]byte("abc"))
			}
		}
		w.Close()
		for kind := range compressors {
			f.Add(b.Bytes(), uint(kind))
			f.Add(compressors[kind](f, b.Bytes()), uint(0))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, kind uint) {
		if !small(data) {
			return
		}
		plain, err := unpacked(t, data)
		if _, statErr := os.Lstat(outside); statErr == nil {
			os.Remove(outside)
			t.Fatal("a file was written outside of the layer")
		}
		// An archive in two compressions is a file like any other, and so is what is no archive.
		if kind %= uint(len(compressors)); kind == 0 || !isTar(data) {
			return
		}
		again, againErr := unpacked(t, compressors[kind](t, data))
		if (err == nil) != (againErr == nil) || plain.Content != again.Content {
			t.Errorf("compressed it unpacks to %x, %v, and as it is to %x, %v", again.Content, againErr, plain.Content, err)
		}
	})
}

var compressors = []func(t testing.TB, data []byte) []byte{
	func(_ testing.TB, data []byte) []byte { return data },
	func(t testing.TB, data []byte) []byte {
		return compressed(t, data, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil })
	},
	func(t testing.TB, data []byte) []byte {
		return compressed(t, data, func(w io.Writer) (io.WriteCloser, error) { return xz.WriterConfig{DictCap: 1 << 16}.NewWriter(w) })
	},
	func(t testing.TB, data []byte) []byte {
		return compressed(t, data, func(w io.Writer) (io.WriteCloser, error) {
			return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<16))
		})
	},
}

func compressed(t testing.TB, data []byte, open func(io.Writer) (io.WriteCloser, error)) []byte {
	var b bytes.Buffer
	w, err := open(&b)
	if err == nil {
		_, err = w.Write(data)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// isTar says whether data is an archive that is not compressed.
func isTar(data []byte) bool {
	_, err := tar.NewReader(bytes.NewReader(data)).Next()
	return err == nil
}

// small says whether an archive unpacks to no more than fuzzMost.
func small(data []byte) bool {
	archive, ok := OpenArchive(bytes.NewReader(data), layer.Limit{Size: fuzzMost})
	for ok {
		_, err := archive.Next()
		if err == nil {
			_, err = io.Copy(io.Discard, archive)
		}
		if _, large := errors.AsType[*layer.LimitError](err); large {
			return false
		}
		ok = err == nil
	}
	return true
}

// unpacked is the layer of an ADD that has data as its archive.
func unpacked(t *testing.T, data []byte) (layer.Summary, error) {
	t.Helper()
	root, dir := t.TempDir(), t.TempDir()
	images, err := cas.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	store, err := snapshot.Open(snapshot.Config{Root: root, Tmp: root, Blobs: blob.Store{CAS: images}})
	if err != nil {
		t.Fatal(err)
	}
	job := store.Job()
	defer job.Close()
	if err := os.WriteFile(filepath.Join(dir, "archive"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	local, err := localdir.Open(t.Context(), dir, nil, filepath.Join(root, "id"), root)
	if err != nil {
		t.Fatal(err)
	}
	action := llb.Action{Copy: &llb.Copy{Dest: "/dest", Sources: []llb.CopySource{{Input: 1, Path: "/archive", Unpack: true}}}}
	c := Change{Op: llb.File{Actions: []llb.Action{action}}, Inputs: []Input{{Tree: layer.NewStack(nil)}, {Tree: local, Local: true}}, Tmp: root}
	planned, err := Digest(t.Context(), c)
	if err != nil {
		return layer.Summary{}, err
	}
	p, result, err := Write(t.Context(), c, job, "")
	if err != nil {
		return layer.Summary{}, err
	}
	defer p.Close()
	if !result.Same(planned, len(planned.Archives) > 0) {
		return layer.Summary{}, &layer.ChangedError{}
	}
	committed, err := p.CommitWritten(t.Context(), result.Summary, "")
	return committed.Summary, err
}

// FuzzGlob compares what a source with wildcards selects with path.Match on whole paths.
func FuzzGlob(f *testing.F) {
	all := []string{"a", "a/b", "a/b/c.txt", "a/[x]", "ab", "ab/c.txt", "b*", "ä", `q\`, "z.txt"}
	slices.Sort(all)
	dir := f.TempDir()
	for _, name := range all {
		p := filepath.Join(dir, name)
		if strings.Contains(name, ".") || !slices.ContainsFunc(all, func(o string) bool { return strings.HasPrefix(o, name+"/") }) {
			if err := os.WriteFile(p, nil, 0o644); err != nil {
				f.Fatal(err)
			}
		} else if err := os.Mkdir(p, 0o755); err != nil {
			f.Fatal(err)
		}
	}
	for _, pattern := range []string{"*", "*/*", "a*/*.txt", "?", "[a-b]*", `\**`, `a/\[x]`, "a//b/*", "./*/../a*", "[^a]", "[]", "a[", `q\\`, "**", "*/b/c*", `[\]-a]`, "[a/b]", `\./*`, "a[ -0]b"} {
		f.Add(pattern)
	}
	tree, err := localdir.Open(context.Background(), dir, nil, filepath.Join(f.TempDir(), "id"), f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, pattern string) {
		if strings.ContainsRune(pattern, 0) || len(pattern) > 255 {
			return // no name of a file
		}
		clean := strings.TrimPrefix(path.Clean("/"+pattern), "/")
		got, err := glob(tree, pattern, true)
		if !slices.ContainsFunc(components(pattern), wild) {
			if err != nil || len(got) != 1 {
				t.Errorf("the plain path %q selects %q, %v", pattern, got, err)
			}
			return
		}
		for part := range strings.SplitSeq(clean, "/") {
			if name := unescape(part); name == "." || name == ".." {
				return // a directory that path.Match does not know
			}
			if _, partErr := path.Match(part, ""); partErr != nil {
				if wild(part) && err == nil {
					t.Errorf("%q is taken, and its component %q is malformed", pattern, part)
				}
				return
			}
		}
		if err != nil {
			t.Fatalf("%q: %v", pattern, err)
		}
		var want []string
		for _, name := range all {
			// A range of characters with the slash in it takes one in path.Match: that is nobody's intention.
			deep := strings.Count(name, "/") == strings.Count(clean, "/")
			if ok, err := path.Match(clean, name); err == nil && ok && deep {
				want = append(want, name)
			}
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%q selects %q, and should %q", pattern, got, want)
		}
	})
}
