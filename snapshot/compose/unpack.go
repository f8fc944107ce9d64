package compose

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"strings"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
)

// Unpack puts the entries of an image layer's tar into the builder. It reads tarball to EOF, because only the last Read reports
// whether the bytes were valid. What the tar writes through its own symbolic links stays inside the layer (image-spec, layer.md).
// Links of lower layers are not followed, as an overlay does not follow them either when the image runs: an entry below such a
// link creates a directory that replaces the link.
func (b *Builder) Unpack(ctx context.Context, tarball io.Reader, limit layer.Limit) error {
	b.ofImage = true
	r := layer.NewReader(ctxio.Reader(ctx, tarball), limit)
	r.Ahead()
	defer r.Close()
	b.Most(limit.OrDefault().Entries)
	aufs := pseudoLinks{b: b}
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e, err := r.Next()
		if err == io.EOF {
			return errors.Join(aufs.drop(), r.Rest())
		}
		if err != nil {
			return err
		}
		if !aufs.keep(&e) {
			continue
		}
		if err := unpackEntry(b, e, r); err != nil {
			return err
		}
	}
}

// pseudoLinks removes the bookkeeping files of AUFS from a layer: everything whose name begins with .wh..wh., such as .wh..wh.aufs and
// .wh..wh.orph/, and what is below it. Only the files in .wh..wh.plnk/ are needed until the layer is complete, since hard links refer
// to them.
type pseudoLinks struct {
	b    *Builder
	held string // temporary directory of the files in .wh..wh.plnk/; "" if there are none
}

const (
	meta = layer.WhiteoutPrefix + layer.WhiteoutPrefix
	plnk = meta + "plnk"
)

// keep reports whether an entry is unpacked, and redirects its path and link to the directory held.
func (p *pseudoLinks) keep(e *layer.Entry) bool {
	if e.Type == layer.Hardlink {
		if top, _, below := strings.Cut(e.Link, "/"); top == plnk && below && p.held != "" {
			e.Link = p.held + "/" + e.Link[strings.LastIndexByte(e.Link, '/')+1:]
		}
	}
	top, _, below := strings.Cut(e.Path, "/")
	if !strings.HasPrefix(top, meta) || top == layer.OpaqueName {
		return !strings.Contains(layer.Parent(e.Path), "/"+meta) // AUFS also uses such names outside the root
	}
	if top != plnk || !below || e.Type != layer.File && e.Type != layer.Hardlink {
		return false
	}
	if p.held == "" {
		p.held = "plnk-" + rand.Text() // a name that a layer's author cannot predict
	}
	e.Path = p.held + "/" + e.Name()
	return true
}

// drop removes the files of .wh..wh.plnk/; their other names stay.
func (p *pseudoLinks) drop() error {
	if p.held == "" {
		return nil
	}
	return p.b.forget(p.held)
}

func unpackEntry(b *Builder, e layer.Entry, body io.Reader) error {
	dir, _, err := b.Resolve(layer.Parent(e.Path), true)
	if err != nil {
		return err
	}
	base := e.Name()
	if base == "" {
		return b.Put(e, nil)
	}
	physical := base
	if dir != "" {
		physical = dir + "/" + base
	}
	if hidden, ok := strings.CutPrefix(base, layer.WhiteoutPrefix); ok {
		switch {
		case base == layer.OpaqueName && dir == "":
			return nil // overlayfs does not look for the mark on a root, so it has no effect where the image runs or in a RUN
		case base == layer.OpaqueName:
			return b.Opaque(dir)
		case strings.HasPrefix(base, meta):
			return nil // see pseudoLinks
		case hidden == "" || hidden == "." || hidden == "..":
			return &layer.HeaderError{Name: e.Path, Msg: "is a whiteout without a valid name"}
		}
		if dir != "" {
			hidden = dir + "/" + hidden
		}
		return b.Whiteout(hidden)
	}
	e.Path = physical
	if e.Type == layer.Hardlink {
		return unpackLink(b, e)
	}
	return b.Put(e, body)
}

// unpackLink creates a hard link to a file of the same layer. If the file is in a lower layer it is copied instead, as other
// unpackers do.
func unpackLink(b *Builder, e layer.Entry) error {
	dir, _, err := b.Resolve(layer.Parent(e.Link), true)
	if err != nil {
		return err
	}
	target := e.Link[strings.LastIndexByte(e.Link, '/')+1:]
	if dir != "" {
		target = dir + "/" + target
	}
	err = b.Link(e, target)
	var missing *layer.PathError
	if b.parent == nil || !errors.As(err, &missing) {
		return err
	}
	lower, ok, lookup := b.Lookup(target)
	if lookup != nil || !ok || lower.Type != layer.File {
		return err
	}
	return b.CopyUp(lower, e.Path)
}

// CopyUp puts a copy of a file of a lower layer at a physical path.
func (b *Builder) CopyUp(file layer.Entry, to string) error {
	var body io.ReadCloser
	if b.to != nil {
		var err error
		if body, err = b.parent.Open(&file); err != nil {
			return err
		}
		defer body.Close()
	}
	file.Path = to
	return b.Put(file, body)
}
