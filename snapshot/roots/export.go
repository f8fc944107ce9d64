package roots

import (
	"context"
	"strings"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/snapshot/dir"
)

// Export writes a whole file tree into the directory called name, which exists and is empty, with all that the entries say.
func Export(ctx context.Context, fs *dir.FS, tree layer.Tree, name string) error {
	root, err := rootfs.Open(name)
	if err != nil {
		return err
	}
	defer root.Close()
	return export(ctx, fs, tree, root, func(int, string) error { return nil })
}

// export writes the tree into root and calls made with the place of each entry, in the order in which it writes them: a directory's own
// before what is in it.
func export(ctx context.Context, fs *dir.FS, tree layer.Tree, root *rootfs.Root, made func(dir int, name string) error) error {
	d := fs.NewWriter(root)
	defer d.Close()
	links := map[string]string{}
	var write func(e layer.Entry) error
	write = func(e layer.Entry) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e.Opaque = false
		if first, ok := links[e.LinkID]; ok && e.LinkID != "" {
			if err := d.Put(&layer.Entry{Path: e.Path, Type: layer.Hardlink, Link: first}, nil); err != nil {
				return err
			}
			return place(d, e.Path, made)
		}
		if e.LinkID != "" {
			links[e.LinkID] = e.Path
		}
		if err := copyEntry(ctx, d, tree, &e); err != nil {
			return err
		}
		if err := place(d, e.Path, made); err != nil {
			return err
		}
		if e.Type != layer.Dir {
			return nil
		}
		list, err := tree.List(e.Path)
		for i := 0; err == nil && i < len(list); i++ {
			err = write(list[i])
		}
		if err != nil {
			return err
		}
		return d.SetTime(&e)
	}
	top, _, err := tree.Lookup("")
	if err != nil {
		return err
	}
	return write(top)
}

// copyEntry writes one entry of the tree.
func copyEntry(ctx context.Context, d *dir.Writer, tree layer.Tree, e *layer.Entry) error {
	if e.Type != layer.File {
		return d.Put(e, nil)
	}
	body, err := tree.Open(e)
	if err != nil {
		return err
	}
	defer body.Close()
	return d.Put(e, ctxio.Reader(ctx, body))
}

// place calls f with the place of a path.
func place(d *dir.Writer, path string, f func(dir int, name string) error) error {
	at, err := d.Directory(path)
	if err != nil {
		return err
	}
	return f(at, path[strings.LastIndexByte(path, '/')+1:])
}
