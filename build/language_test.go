package build

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/parser"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/store"
)

var update = flag.Bool("update", false, "write what the builds make into testdata")

// languageDir holds the specification: what kiln makes of each instruction.
const languageDir = "../testdata/language"

// The context's files are of this time, so that a want can tell a copied time from a new one.
var contextTime = time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)

// TestLanguage builds each case of testdata/language and compares the image, or the error, with the case's want.
func TestLanguage(t *testing.T) {
	base := baseLayout(t)
	names, err := filepath.Glob(languageDir + "/*/*.txtar")
	if err != nil || len(names) == 0 {
		t.Fatal("no cases", err)
	}
	b := newBuilder(t)
	t.Run("cases", func(t *testing.T) {
		for _, name := range names {
			rel, _ := filepath.Rel(languageDir, strings.TrimSuffix(name, ".txtar"))
			t.Run(rel, func(t *testing.T) {
				t.Parallel()
				languageCase(t, b, base, name)
			})
		}
	})
}

// newBuilder returns a Builder in a root directory of its own.
func newBuilder(t *testing.T) *Builder {
	t.Helper()
	root, err := store.Open(context.Background(), t.TempDir(), &config.Config{}) // it outlives what t.Context ends
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := root.Close(); err != nil {
			t.Error(err)
		}
	})
	b, err := New(root, registry.New(nil), &config.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// caseOptions are the options.json of a case.
type caseOptions struct {
	Target    string
	BuildArgs map[string]string
	Labels    map[string]string
	Platforms []string
	Network   llb.Network
	llb.RunOptions
	Allow         []string
	NoCacheFilter []string
	// Contexts are named contexts: a directory of the archive, or docker-image://…
	Contexts map[string]string
	// Secrets are values by id.
	Secrets map[string]string
}

func languageCase(t *testing.T, b *Builder, base, name string) {
	archive, err := txtar.ParseFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if len(bytes.TrimSpace(archive.Comment)) == 0 {
		t.Error("the case does not say what it shows")
	}
	dir := t.TempDir()
	var in caseOptions
	var setup, want []byte
	for i, f := range archive.Files {
		switch f.Name {
		case "options.json":
			d := json.NewDecoder(bytes.NewReader(f.Data))
			d.DisallowUnknownFields()
			if err := d.Decode(&in); err != nil {
				t.Fatal(err)
			}
		case "setup.sh":
			setup = f.Data
		case "want":
			want = f.Data
			archive.Files = archive.Files[:i]
		default:
			file := filepath.Join(dir, f.Name)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, f.Data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if setup != nil {
		cmd := exec.Command("sh", "-euc", "umask 022\n"+string(setup))
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("setup.sh: %v\n%s", err, out)
		}
	}
	settle(t, dir)
	got := describe(t, b, base, dir, in)
	if *update {
		archive.Files = append(archive.Files, txtar.File{Name: "want", Data: []byte(got)})
		if err := os.WriteFile(name, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// settle gives all files of a directory, and itself, one time; symbolic links keep theirs.
func settle(t *testing.T, dir string) {
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Type()&os.ModeSymlink == 0 {
			err = os.Chtimes(p, contextTime, contextTime)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// describe builds a directory and returns the images, or the error, in words.
func describe(t *testing.T, b *Builder, base, dir string, in caseOptions) string {
	out := filepath.Join(t.TempDir(), "out")
	o := Options{
		Source: contexts.Source{Context: dir, Named: map[string]string{"busybox": "oci-layout://" + base}},
		Target: Target{Stage: in.Target, Args: in.BuildArgs, Labels: in.Labels},
		Run:    Run{Network: in.Network, RunOptions: in.RunOptions},
		Client: Client{Allow: in.Allow},
		Cache:  Caching{Off: true, OffFor: in.NoCacheFilter},
		Export: Export{Outputs: []Output{{Type: OutputOCI, Dest: out, Attrs: map[string]string{"tar": "false"}}}},
	}
	for _, p := range in.Platforms {
		parsed, err := llb.ParsePlatform(p, llb.Host())
		if err != nil {
			t.Fatal(err)
		}
		o.Target.Platforms = append(o.Target.Platforms, parsed)
	}
	for name, value := range in.Contexts {
		if !strings.Contains(value, "://") {
			value = filepath.Join(dir, value)
		}
		o.Source.Named[name] = value
	}
	var secrets Secrets
	for id, value := range in.Secrets {
		file := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(file, []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
		secrets = append(secrets, Secret{ID: id, Src: file})
	}
	o.Client.Secrets = secrets
	var text strings.Builder
	res, err := b.Build(context.Background(), o, nil)
	for _, w := range res.Warnings {
		fmt.Fprintf(&text, "warning: line %d: %s: %s\n", w.Location.StartLine, w.Rule, w.Message)
	}
	if err != nil {
		var step *solver.VertexError
		var fault *parser.Error
		switch {
		case errors.As(err, &step):
			fmt.Fprintf(&text, "error: line %d: %v\n", step.Vertex.Meta().Location.StartLine, err)
		case errors.As(err, &fault):
			fmt.Fprintf(&text, "error: %v\n", fault)
		default:
			fmt.Fprintf(&text, "error: %v\n", err)
		}
		return strings.ReplaceAll(text.String(), dir, "DIR")
	}
	layoutIndex(t, &text, out, base)
	return text.String()
}

// layoutIndex describes each image of an OCI layout.
func layoutIndex(t *testing.T, text *strings.Builder, dir, base string) {
	baseLayers := map[digest.Digest]bool{}
	for _, m := range manifests(t, base) {
		for _, l := range m.Layers {
			baseLayers[l.Digest] = true
		}
	}
	for _, m := range manifests(t, dir) {
		var img dockerspec.DockerOCIImage
		readBlob(t, dir, m.Config.Digest, &img)
		fmt.Fprintf(text, "image %s/%s\n", img.OS, path.Join(img.Architecture, img.Variant))
		if img.Author != "" {
			fmt.Fprintf(text, "author %s\n", img.Author)
		}
		var fields map[string]json.RawMessage
		data, err := json.Marshal(img.Config)
		if err == nil {
			err = json.Unmarshal(data, &fields)
		}
		if err != nil {
			t.Fatal(err)
		}
		keys := make([]string, 0, len(fields))
		for k := range fields {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		for _, k := range keys {
			fmt.Fprintf(text, "config %s %s\n", k, fields[k])
		}
		n := 0
		for _, h := range img.History {
			fmt.Fprintf(text, "history %q\n", h.CreatedBy)
			if h.EmptyLayer {
				continue
			}
			if n >= len(m.Layers) {
				t.Fatal("the history has more layers than the image")
			}
			if l := m.Layers[n]; baseLayers[l.Digest] {
				fmt.Fprintf(text, "  the base image\n")
			} else {
				describeLayer(t, text, filepath.Join(dir, "blobs", "sha256", l.Digest.Encoded()))
			}
			n++
		}
	}
}

func manifests(t *testing.T, dir string) []ocispec.Manifest {
	data, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var top ocispec.Index
	if err := json.Unmarshal(data, &top); err != nil {
		t.Fatal(err)
	}
	var out []ocispec.Manifest
	for _, d := range top.Manifests {
		list := []ocispec.Descriptor{d}
		if d.MediaType == ocispec.MediaTypeImageIndex {
			var idx ocispec.Index
			readBlob(t, dir, d.Digest, &idx)
			list = idx.Manifests
		}
		for _, d := range list {
			var m ocispec.Manifest
			readBlob(t, dir, d.Digest, &m)
			out = append(out, m)
		}
	}
	return out
}

func readBlob(t *testing.T, dir string, d digest.Digest, v any) {
	data, err := os.ReadFile(filepath.Join(dir, "blobs", "sha256", d.Encoded()))
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// describeLayer lists a layer's entries: type, name, mode, owner, what it holds, and the time where that is not the build's.
func describeLayer(t *testing.T, text *strings.Builder, file string) {
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		kind := map[byte]string{tar.TypeReg: "file", tar.TypeDir: "dir", tar.TypeSymlink: "symlink", tar.TypeLink: "hardlink",
			tar.TypeFifo: "fifo", tar.TypeChar: "char", tar.TypeBlock: "block"}[h.Typeflag]
		line := fmt.Sprintf("  %s /%s %04o %d:%d", kind, strings.TrimSuffix(h.Name, "/"), h.Mode, h.Uid, h.Gid)
		switch h.Typeflag {
		case tar.TypeReg:
			data, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			if len(data) <= 300 && utf8.Valid(data) {
				line += fmt.Sprintf(" %q", data)
			} else {
				line += fmt.Sprintf(" %d bytes", len(data))
			}
		case tar.TypeSymlink, tar.TypeLink:
			line += " -> " + h.Linkname
		case tar.TypeChar, tar.TypeBlock:
			line += fmt.Sprintf(" %d,%d", h.Devmajor, h.Devminor)
		}
		if time.Since(h.ModTime) > 24*time.Hour {
			line += " " + h.ModTime.UTC().Format(time.RFC3339)
		}
		text.WriteString(line + "\n")
	}
}

// baseLayout makes an OCI layout with an image of busybox, for this machine's platform alone.
func baseLayout(t *testing.T) string {
	const program = "/bin/busybox"
	if os.Geteuid() != 0 {
		t.Fatal("run as root: these builds run steps and make devices")
	}
	busybox, err := os.ReadFile(program)
	if err != nil {
		t.Fatal("install busybox-static: ", err)
	}
	list, err := exec.Command(program, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	put := func(h tar.Header, data []byte) {
		h.Size, h.ModTime = int64(len(data)), contextTime
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin", "dev", "etc", "home", "home/user", "proc", "root", "sys", "usr", "usr/bin", "var"} {
		put(tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}, nil)
	}
	put(tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil)
	put(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"))
	put(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\nwheel:x:10:root,user\nuser:x:1000:\nweb:x:33:\n"))
	put(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, busybox)
	for name := range strings.FieldsSeq(string(list)) {
		if name != "busybox" {
			put(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox", Mode: 0o777}, nil)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(layer.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	blob := func(mediaType string, data []byte) ocispec.Descriptor {
		d := digest.FromBytes(data)
		file := filepath.Join(dir, "blobs", "sha256", d.Encoded())
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
	}
	encode := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	var img dockerspec.DockerOCIImage
	img.OS, img.Architecture = "linux", llb.Host().Architecture
	img.Config.Cmd = []string{"sh"}
	img.Config.Env = []string{"PATH=/bin"}
	img.Config.Labels = map[string]string{"of": "base"}
	img.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer.Bytes())}}
	img.History = []ocispec.History{{CreatedBy: "base", Created: &contextTime}}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	m.Layers = []ocispec.Descriptor{blob(ocispec.MediaTypeImageLayerGzip, packed.Bytes())}
	m.Config = blob(ocispec.MediaTypeImageConfig, encode(img))
	idx := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex}
	idx.SchemaVersion = 2
	idx.Manifests = []ocispec.Descriptor{blob(ocispec.MediaTypeImageManifest, encode(m))}
	idx.Manifests[0].Annotations = map[string]string{ocispec.AnnotationRefName: "latest"}
	for name, data := range map[string][]byte{"index.json": encode(idx), ocispec.ImageLayoutFile: []byte(`{"imageLayoutVersion":"1.0.0"}`)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
