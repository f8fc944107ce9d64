// Package directories gives frontends that are images the directories of the user of this process, as a client elsewhere sends its own:
// with the files that the patterns of a request select, by the code that BuildKit's clients select them with.
package directories

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/once"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver/session"
)

// Provider is what frontends are given of a client: its directories, and what it uploads.
type Provider interface {
	session.Locals
	session.Uploads
	// Received returns the names of the directories that were asked for, in order.
	Received() []string
	// Also has further sessions of the same user asked for what the client itself does not have.
	Also(sessions ...string)
}

// Directories are what a frontend may ask for, by names. They are a Provider without uploads, and safe for
// concurrent use.
type Directories struct {
	trees    map[string]layer.Tree
	selected once.Map[string, layer.Tree]

	mu       sync.Mutex
	received map[string]bool
}

// New returns Directories with trees, which stay open as long as they are used.
func New(trees map[string]layer.Tree) *Directories {
	return &Directories{trees: trees, received: map[string]bool{}}
}

// UnknownError is a directory that a frontend asks for and that the build does not have.
type UnknownError struct {
	Name string
	// Known are the names of those that there are.
	Known []string
}

func (e *UnknownError) Error() string {
	return fmt.Sprintf("the frontend asks for %q of the client, and the build has %s", e.Name, strings.Join(e.Known, ", "))
}

// Open implements session.Locals. What a Local says of how files are sent makes no difference: all that are selected are there.
func (d *Directories) Open(ctx context.Context, l llb.Local) (layer.Tree, error) {
	tree := d.trees[l.Name]
	if tree == nil || l.Session != "" {
		return nil, &UnknownError{l.Name, slices.Sorted(maps.Keys(d.trees))}
	}
	d.mu.Lock()
	d.received[l.Name] = true
	d.mu.Unlock()
	if len(l.Include)+len(l.Exclude)+len(l.Follow) == 0 {
		return tree, nil
	}
	key, err := json.Marshal([]any{l.Name, l.Include, l.Exclude, l.Follow})
	if err != nil {
		return nil, err
	}
	return d.selected.Do(ctx, string(key), func(ctx context.Context) (layer.Tree, error) {
		s, err := newSelection(ctx, tree, l)
		if err != nil {
			return nil, fmt.Errorf("read the directory %q: %w", l.Name, err)
		}
		return s, nil
	})
}

// Received returns the names of the directories that were asked for, in order.
func (d *Directories) Received() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.received))
}

// Also implements Provider: there are no sessions.
func (d *Directories) Also(...string) {}

// errNoUploads is the error of a frontend that asks for an upload.
var errNoUploads = errors.New("the build has nothing that is uploaded")

// Upload implements session.Uploads.
func (d *Directories) Upload(context.Context, string) (io.ReadCloser, bool, error) {
	return nil, false, errNoUploads
}

// selection is a tree with those files of another that patterns select.
type selection struct {
	layer.Tree
	paths map[string]bool
}

// newSelection returns what a Local selects of a tree.
func newSelection(ctx context.Context, tree layer.Tree, l llb.Local) (*selection, error) {
	files, err := fsutil.NewFilterFS(walked{ctx, tree}, &fsutil.FilterOpt{
		IncludePatterns: l.Include, ExcludePatterns: l.Exclude, FollowPaths: l.Follow,
	})
	if err != nil {
		return nil, err
	}
	s := &selection{tree, map[string]bool{"": true}}
	err = files.Walk(ctx, "", func(p string, _ fs.DirEntry, err error) error {
		for ; err == nil && !s.paths[p]; p = layer.Parent(p) {
			s.paths[p] = true
		}
		return err
	})
	return s, err
}

// Lookup implements layer.Tree.
func (s *selection) Lookup(path string) (layer.Entry, bool, error) {
	if !s.paths[path] {
		return layer.Entry{}, false, nil
	}
	return s.Tree.Lookup(path)
}

// List implements layer.Tree.
func (s *selection) List(dir string) ([]layer.Entry, error) {
	if !s.paths[dir] {
		return nil, nil
	}
	list, err := s.Tree.List(dir)
	return slices.DeleteFunc(slices.Clone(list), func(e layer.Entry) bool { return !s.paths[e.Path] }), err
}

// walked is a tree as an fsutil.FS, whose paths alone are asked for.
type walked struct {
	ctx  context.Context
	tree layer.Tree
}

// Open implements fsutil.FS.
func (w walked) Open(name string) (io.ReadCloser, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: errors.ErrUnsupported}
}

// Walk implements fsutil.FS. A directory comes before what is in it.
func (w walked) Walk(_ context.Context, target string, f fs.WalkDirFunc) error {
	at := strings.TrimPrefix(path.Clean("/"+target), "/")
	if at == "" {
		return w.below("", f)
	}
	e, ok, err := w.tree.Lookup(at)
	if err != nil || !ok {
		return err // what does not exist has no entries
	}
	return skipped(w.visit(&e, f))
}

// skipped returns the error of a walk that was not asked to end.
func skipped(err error) error {
	if errors.Is(err, fs.SkipDir) || errors.Is(err, fs.SkipAll) {
		return nil
	}
	return err
}

// visit calls f for an entry, and for all below it.
func (w walked) visit(e *layer.Entry, f fs.WalkDirFunc) error {
	if err := ctxio.Ended(w.ctx); err != nil {
		return err
	}
	err := f(e.Path, dirEntry(e), nil)
	switch {
	case err == nil && e.Type == layer.Dir:
		return w.below(e.Path, f)
	case errors.Is(err, fs.SkipDir) && e.Type == layer.Dir:
		return nil
	}
	return err
}

// below calls f for what is in a directory.
func (w walked) below(dir string, f fs.WalkDirFunc) error {
	list, err := w.tree.List(dir)
	if err != nil {
		return err
	}
	for i := range list {
		if err := w.visit(&list[i], f); err != nil {
			if errors.Is(err, fs.SkipDir) {
				return nil // of a file: the rest of its directory
			}
			return err
		}
	}
	return nil
}

// dirEntry returns an entry as fsutil wants it.
func dirEntry(e *layer.Entry) fs.DirEntry {
	mode := fs.FileMode(e.Mode & 0o777)
	switch e.Type {
	case layer.Dir:
		mode |= fs.ModeDir
	case layer.Symlink:
		mode |= fs.ModeSymlink
	case layer.File, layer.Hardlink:
	default:
		mode |= fs.ModeIrregular
	}
	return &fsutil.DirEntryInfo{Stat: &types.Stat{Path: e.Path, Mode: uint32(mode), Size: e.Size, Linkname: e.Link}}
}
