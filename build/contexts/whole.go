package contexts

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/frontend/source"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/registry/layout"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// DockerfileDir is the name of the directory with the Dockerfile among those of llb.Local.
const DockerfileDir = "dockerfile"

// defaultName is the name of a Dockerfile that is not a file.
const defaultName = "Dockerfile"

// Whole are contexts as a frontend gets them that reads them itself: with all of their files, whatever an ignore file says.
type Whole struct {
	// Trees are the directories: Main and DockerfileDir, and those of named contexts.
	Trees map[string]layer.Tree
	// Address is that of a build context that the frontend has to fetch; "" for Main.
	Address string
	// Filename is the path of the Dockerfile in DockerfileDir, or in the context at Address; "" for the usual ones of that. OwnDockerfile says
	// that DockerfileDir has it although the context is elsewhere.
	Filename      string
	OwnDockerfile bool
	// Named are the named contexts as BuildKit writes them: "local:NAME" for a directory of Trees, "oci-layout://NAME@DIGEST" for a directory
	// of Layouts.
	Named   map[string]string
	Layouts map[string]string
}

// Whole opens what Load has opened once more, for a frontend that reads it itself. main is the tree of a context from standard input, and
// text and name are the Dockerfile, which Load has read. The trees are closed with l.Open.
func (l *Loader) Whole(ctx context.Context, main layer.Tree, text []byte, name string) (*Whole, error) {
	w := &Whole{Trees: map[string]layer.Tree{}, Named: map[string]string{}, Layouts: map[string]string{}}
	l.Open.Add = func(name string, tree layer.Tree) { w.Trees[name] = tree }
	var err error
	switch {
	case isDir(l.Context):
		err = l.wholeDir(ctx, w)
	case l.Context == Stdin:
		w.Trees[Main] = main
		if _, inContext, err := main.Lookup(name); err == nil && inContext && !elsewhere(l.Dockerfile) {
			w.Trees[DockerfileDir], w.Filename = main, name
		}
	default:
		w.Address, w.Filename, w.OwnDockerfile = l.Context, l.Dockerfile, elsewhere(l.Dockerfile)
	}
	if err != nil {
		return nil, &input.Error{Err: err}
	}
	if w.Trees[DockerfileDir] == nil && (w.Address == "" || w.OwnDockerfile) {
		w.Filename = defaultName
		w.Trees[DockerfileDir] = textFile{name: w.Filename, text: text}
	}
	for _, name := range slices.Sorted(maps.Keys(l.Named)) {
		if err := l.wholeNamed(ctx, w, name, l.Named[name]); err != nil {
			return nil, &input.Error{Err: fmt.Errorf("named context %q: %w", name, err)}
		}
	}
	return w, nil
}

// wholeDir opens a build context that is a directory, and that of its Dockerfile if it is a file.
func (l *Loader) wholeDir(ctx context.Context, w *Whole) error {
	if err := l.openDir(ctx, Main, l.Context, nil); err != nil || elsewhere(l.Dockerfile) {
		return err
	}
	path, err := l.DockerfilePath()
	if err != nil {
		return err
	}
	w.Filename = filepath.Base(path)
	return l.openDir(ctx, DockerfileDir, filepath.Dir(path), nil)
}

// wholeNamed opens a named context, if it is a directory.
func (l *Loader) wholeNamed(ctx context.Context, w *Whole, name, value string) error {
	if rest, ok := strings.CutPrefix(value, layout.Scheme); ok {
		dir, ref, hasDigest := strings.Cut(rest, "@")
		dir, tag := imagename.SplitTag(dir)
		if !hasDigest {
			ref = tag
		}
		images, err := layout.Open(dir)
		if err != nil {
			return err
		}
		defer images.Close()
		p := llb.Host()
		found, err := images.Named(ctx, ref, ocispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant})
		if err != nil {
			return err
		}
		store := fmt.Sprintf("kiln/layout%d", len(w.Layouts)+1) // with a slash, since nothing before an at sign alone is shown of an address
		w.Layouts[store] = dir
		w.Named[name] = layout.Scheme + store + "@" + found.Target.Digest.String()
		return nil
	}
	if !source.IsDirContext(value) {
		w.Named[name] = value
		return nil
	}
	as := name
	if as == Main || as == DockerfileDir {
		as = "_" + name // as buildx
	}
	w.Named[name] = "local:" + as
	return l.openDir(ctx, as, value, nil)
}

// MayBeForeign reports whether the frontend of the Dockerfile is an image, or may be one: whether it is can be told without doing anything
// only of a Dockerfile that is a file of the client, or where a build argument says so.
func (s *Source) MayBeForeign(args map[string]string) bool {
	const name = defaultName // of errors, which nobody sees
	if _, ok := args[source.ArgSyntax]; ok {
		return source.CheckSyntax(name, nil, args) != nil
	}
	if !isDir(s.Context) || elsewhere(s.Dockerfile) {
		return true
	}
	path, err := s.DockerfilePath()
	if err != nil {
		return false // as the build will say
	}
	text, err := readContextFile(s.Context, path, MaxDockerfile)
	return err == nil && source.CheckSyntax(name, text, args) != nil
}

// textFile is a tree with one file.
type textFile struct {
	name string
	text []byte
}

func (t textFile) entry() layer.Entry {
	return layer.Entry{
		Path: t.name, Type: layer.File, Mode: 0o644, Size: int64(len(t.text)), Digest: sha256.Sum256(t.text), ModTime: modTime(),
	}
}

// Lookup implements layer.Tree.
func (t textFile) Lookup(path string) (layer.Entry, bool, error) {
	switch path {
	case "":
		return layer.Entry{Type: layer.Dir, Mode: 0o755, ModTime: modTime()}, true, nil
	case t.name:
		return t.entry(), true, nil
	}
	return layer.Entry{}, false, nil
}

// List implements layer.Tree.
func (t textFile) List(dir string) ([]layer.Entry, error) {
	if dir != "" {
		return nil, nil
	}
	return []layer.Entry{t.entry()}, nil
}

// Sum implements layer.Tree.
func (t textFile) Sum(context.Context, []*layer.Entry) error { return nil }

// Open implements layer.Tree.
func (t textFile) Open(e *layer.Entry) (io.ReadCloser, error) {
	if e.Path != t.name {
		return nil, &fs.PathError{Op: "open", Path: e.Path, Err: fs.ErrNotExist}
	}
	return io.NopCloser(bytes.NewReader(t.text)), nil
}
