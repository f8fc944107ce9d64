package mounts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/cachemount"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/snapshot/dir"
)

// Mount is a cache mount whose files are in a directory.
type Mount struct {
	cachemount.Identity
	Dir string
}

// identityAttribute is the extended attribute, as JSON, of a mount's directory in a tar.
const identityAttribute = "user.kiln.mount"

// noLimit is more bytes than files can have.
const noLimit = 1 << 62

// Measure returns how many files and directories there are below from, and how many bytes the files have.
func Measure(ctx context.Context, disk *dir.FS, from string) (files int, size int64, err error) {
	top, err := os.OpenFile(from, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0, 0, ignoreGone(err)
	}
	err = scan(ctx, disk, top, noLimit, func(e *layer.Entry) error {
		files++
		size += e.Size
		return nil
	})
	return max(0, files-1), size, err
}

// WriteTar writes mounts as one tar, with a directory for each that is named after its id. The same files give the same tar. Unfinished
// work goes to the directory tmp.
func WriteTar(ctx context.Context, disk *dir.FS, all []Mount, tmp string, to io.Writer) (err error) {
	tmp, err = os.MkdirTemp(tmp, "tar-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	var trees []*tree
	defer func() {
		for _, t := range trees {
			err = errors.Join(err, t.close())
		}
	}()
	names := map[string]bool{}
	for i, m := range all {
		t := &tree{ctx: ctx, id: m.Identity, name: nameFor(m.ID, names)}
		if t.root, err = rootfs.Open(m.Dir); err != nil {
			return err
		}
		trees = append(trees, t)
		w := &writer{tmp: filepath.Join(tmp, fmt.Sprint(i)), root: t.root, buf: make([]byte, inMemory+1)}
		if err := os.Mkdir(w.tmp, 0o700); err != nil {
			return err
		}
		if t.manifest, err = w.find(ctx, disk, noLimit); err != nil {
			return err
		}
	}
	slices.SortFunc(trees, func(a, b *tree) int { return layer.Compare(a.name, b.name) })
	return layer.WriteTar(to, func(yield func(*layer.Entry, layer.Body) bool) {
		for _, t := range trees {
			for e, body := range t.entries() {
				if !yield(e, body) {
					return
				}
			}
		}
	})
}

// nameFor returns a name for the directory of a mount that is not in names, and adds it.
func nameFor(id string, names map[string]bool) string {
	base := strings.Trim(strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '-':
			return r
		}
		return '_'
	}, id), "_.")
	base = base[:min(len(base), 100)]
	if base == "" {
		base = "mount"
	}
	name := base
	for n := 2; names[name]; n++ {
		name = fmt.Sprintf("%s_%d", base, n)
	}
	names[name] = true
	return name
}

// tree is a mount that is written as a directory of a tar.
type tree struct {
	ctx      context.Context
	id       cachemount.Identity
	name     string
	root     *rootfs.Root
	manifest *layer.Manifest // nil before it is found
}

func (t *tree) close() error {
	if t.manifest == nil {
		return t.root.Close()
	}
	return errors.Join(t.manifest.Close(), t.root.Close())
}

func (t *tree) entries() iter.Seq2[*layer.Entry, layer.Body] {
	return func(yield func(*layer.Entry, layer.Body) bool) {
		for e := range t.manifest.All() {
			path := e.Path
			if path == "" {
				id, err := json.Marshal(t.id)
				if err == nil { // plain values can be encoded
					e.Xattrs = append(e.Xattrs, layer.Xattr{Name: identityAttribute, Value: string(id)})
				}
				e.Path = t.name
			} else {
				e.Path = layer.Join(t.name, path)
			}
			if e.Type == layer.Hardlink {
				e.Link = layer.Join(t.name, e.Link)
			}
			if !yield(e, func(w io.Writer) error { return t.copy(w, path, e.Size) }) {
				return
			}
		}
	}
}

func (t *tree) copy(w io.Writer, path string, size int64) error {
	f, err := t.root.OpenNoSymlinks(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if n, err := io.CopyN(w, ctxio.Reader(t.ctx, f), size); err != nil {
		return errors.Join(fmt.Errorf("it had %d bytes, and has %d", size, n), ctxio.Ended(t.ctx))
	}
	return nil
}

// ReadTar writes the mounts in an untrusted tar, which may be compressed, to directories in tmp, and calls place for each: a tar that
// WriteTar wrote or, with an identity, any tar of the files of that mount. place may move the directory away. Errors in the tar are
// *layer.HeaderError, *layer.LimitError, and those of archive/tar and decompressors.
func ReadTar(
	ctx context.Context, disk *dir.FS, r io.Reader, only *cachemount.Identity, limit layer.Limit, tmp string, place func(Mount) error,
) error {
	tmp, err := os.MkdirTemp(tmp, "tar-")
	if err != nil {
		return err
	}
	defer dirtree.Remove(tmp)
	root, err := rootfs.Open(tmp)
	if err != nil {
		return err
	}
	defer root.Close()
	limit = limit.OrDefault()
	limit.Entries = min(limit.Entries, MaxFiles)
	u := &unpacker{out: disk.NewWriter(root), dirs: map[string]*layer.Entry{}}
	defer u.out.Close()
	plain, err := layer.Uncompress(ctxio.Reader(ctx, r))
	if err != nil {
		return err
	}
	defer plain.Close()
	tarball := layer.NewReader(plain, limit)
	for {
		e, err := tarball.Next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = u.add(ctx, e, tarball, only)
		}
		if err != nil {
			return err
		}
	}
	if err := u.finish(); err != nil {
		return err
	}
	if only == nil && len(u.found) == 0 {
		return errNoMounts
	}
	for _, m := range u.found {
		m.Dir = filepath.Join(tmp, m.Dir)
		if err := place(m); err != nil {
			return err
		}
	}
	return nil
}

// errNoMounts is returned for a tar that is not one of WriteTar's.
var errNoMounts = errors.New("it is not what kiln cache mounts export writes; --id says which cache mount its files are of")

// plainName is the directory of a tar's files that are of one mount.
const plainName = "files"

type unpacker struct {
	out   *dir.Writer
	dirs  map[string]*layer.Entry
	found []Mount
}

func (u *unpacker) add(ctx context.Context, e layer.Entry, body io.Reader, only *cachemount.Identity) error {
	bad := func(what string) error { return &layer.HeaderError{Name: e.Path, Msg: what} }
	if msg := layer.BadName(e.Path); msg != "" {
		return bad(msg)
	}
	if err := u.place(&e, only); err != nil {
		return err
	}
	if e.Path == "" {
		return nil
	}
	e.Xattrs = slices.DeleteFunc(e.Xattrs, func(x layer.Xattr) bool {
		return !strings.HasPrefix(x.Name, attributePrefix) || x.Name == identityAttribute
	})
	switch e.Type {
	case layer.Dir:
		e.Mode &= dirMode
		return u.dir(&e)
	case layer.File:
		e.Mode &= fileMode
	case layer.Symlink, layer.Hardlink:
	default:
		return bad("a device or a pipe is nothing that a cache mount can have")
	}
	if err := u.parents(layer.Parent(e.Path)); err != nil {
		return err
	}
	err := u.out.Put(&e, ctxio.Reader(ctx, body))
	if errors.Is(err, unix.EEXIST) {
		return bad("it comes twice")
	}
	return err
}

// place gives an entry the path that it has in the directory of all mounts; "" if it is of none.
func (u *unpacker) place(e *layer.Entry, only *cachemount.Identity) error {
	if only != nil {
		if len(u.found) == 0 {
			u.found = append(u.found, Mount{*only, plainName})
			top := layer.Entry{Path: plainName, Type: layer.Dir, Mode: only.Mode & 0o777, UID: uint32(only.UID), GID: uint32(only.GID)}
			if err := u.dir(&top); err != nil {
				return err
			}
		}
		if e.Path == "" { // the directory itself is as the mount says
			return nil
		}
		e.Path = layer.Join(plainName, e.Path)
		if e.Type == layer.Hardlink {
			e.Link = layer.Join(plainName, e.Link)
		}
		return nil
	}
	top, _, inside := strings.Cut(e.Path, "/")
	if inside || e.Path == "" || e.Type != layer.Dir {
		if e.Path != "" && !slices.ContainsFunc(u.found, func(m Mount) bool { return m.Dir == top }) {
			return errNoMounts
		}
		return nil
	}
	for _, x := range e.Xattrs {
		m := Mount{Dir: top}
		if x.Name == identityAttribute && json.Unmarshal([]byte(x.Value), &m.Identity) == nil {
			u.found = append(u.found, m)
			return nil
		}
	}
	return errNoMounts
}

// dir makes a directory, or gives one the attributes that it has in the tar.
func (u *unpacker) dir(e *layer.Entry) error {
	if err := u.parents(layer.Parent(e.Path)); err != nil {
		return err
	}
	_, known := u.dirs[e.Path]
	u.dirs[e.Path] = e
	if known {
		return u.out.SetDir(e)
	}
	err := u.out.Put(e, nil)
	if errors.Is(err, unix.EEXIST) {
		return &layer.HeaderError{Name: e.Path, Msg: "it comes twice"}
	}
	return err
}

// parents makes the directories that a tar does not have.
func (u *unpacker) parents(path string) error {
	if path == "" || u.dirs[path] != nil {
		return nil
	}
	return u.dir(&layer.Entry{Path: path, Type: layer.Dir, Mode: 0o755})
}

// finish sets the times of directories, whose content is complete.
func (u *unpacker) finish() error {
	for _, e := range u.dirs {
		if e.ModTime.IsZero() {
			continue
		}
		if err := u.out.SetTime(e); err != nil {
			return err
		}
	}
	return nil
}
