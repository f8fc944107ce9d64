package snapshot

import (
	"context"
	"io"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootfs"
)

// Export writes a whole file tree into the directory called dir, which exists and is empty, with all that the entries say.
func (s *Store) Export(ctx context.Context, tree layer.Tree, dir string) error {
	root, err := rootfs.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	d := newDisk(root, s)
	defer d.close()
	links := map[string]string{}
	var write func(e layer.Entry) error
	write = func(e layer.Entry) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e.Opaque = false
		if first, ok := links[e.LinkID]; ok && e.LinkID != "" {
			return d.put(&layer.Entry{Path: e.Path, Type: layer.Hardlink, Link: first}, nil)
		}
		if e.LinkID != "" {
			links[e.LinkID] = e.Path
		}
		var body io.ReadCloser
		if e.Type == layer.File {
			if body, err = tree.Open(&e); err != nil {
				return err
			}
			defer body.Close()
		}
		if err := d.put(&e, body); err != nil {
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
		return d.times(&e)
	}
	top, _, err := tree.Lookup("")
	if err != nil {
		return err
	}
	return write(top)
}
