package ops

import (
	"bufio"
	"compress/bzip2"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/xi2/xz"
)

// openArchive returns the tar in a file, which is compressed by gzip, bzip2, xz or zstd, or not at all; ok is false for a
// file that is none. Only the content tells, never the name.
func openArchive(r io.Reader, limit layer.Limit) (archive *layer.Reader, ok bool) {
	buf := bufio.NewReaderSize(r, 64<<10)
	head, _ := buf.Peek(6)
	var plain io.Reader
	switch {
	case strings.HasPrefix(string(head), "BZh"):
		plain = bzip2.NewReader(buf)
	case string(head) == "\xfd7zXZ\x00":
		z, err := xz.NewReader(buf, maxXZWindow)
		if err != nil && !unreadable(err) {
			return nil, false
		}
		plain = z
	default:
		z, err := Uncompress(buf)
		if err != nil {
			return nil, false
		}
		plain = z
	}
	archive = layer.NewReader(plain, limit)
	err := archive.Begin()
	return archive, err == nil || unreadable(err)
}

// unreadable says of an error that what was read cannot be looked into, or only with too much memory. It may well be an
// archive, and must not pass for a file.
func unreadable(err error) bool {
	return slices.ContainsFunc([]error{xz.ErrMemlimit, xz.ErrOptions, zstd.ErrDecoderSizeExceeded, zstd.ErrWindowSizeExceeded},
		func(target error) bool { return errors.Is(err, target) })
}

// IsArchive reports whether a file is what openArchive reads.
func IsArchive(r io.Reader) bool {
	_, ok := openArchive(r, layer.Limit{})
	return ok
}

// maxXZWindow bounds the memory that an xz file may ask for: 64 MiB is what xz -9 needs.
const maxXZWindow = 64 << 20

// archive unpacks a file of the source into the destination if it is an archive, and reports whether it is.
func (c *copying) archive(tree layer.Tree, e *layer.Entry) (bool, error) {
	f, err := tree.Open(e)
	if err != nil {
		return false, err
	}
	defer f.Close()
	sum := sha256.New()
	body := io.TeeReader(f, sum)
	in, ok := openArchive(body, c.limit)
	if !ok {
		return false, nil
	}
	dest, _, err := c.b.Resolve(c.op.Dest, true)
	if err != nil {
		return true, err
	}
	err = c.b.Mkdirs(dest, func(path string) layer.Entry {
		e := c.newDir(path)
		e.Mode = 0o755 // --chmod is not for archives
		return e
	})
	if err != nil {
		return true, err
	}
	if !c.writing {
		if err := tree.Sum(c.ctx, []*layer.Entry{e}); err != nil {
			return true, err
		}
		c.archives = append(c.archives, fmt.Sprintf("%x into /%s", e.Digest, dest))
		return true, nil
	}
	err = c.unpack(in, dest)
	if err == nil {
		_, err = io.Copy(io.Discard, body) // what follows the archive's end is part of the file's digest
	}
	if err != nil {
		return true, fmt.Errorf("unpack the archive /%s: %w", e.Path, err)
	}
	c.archives = append(c.archives, fmt.Sprintf("%x into /%s", sum.Sum(nil), dest))
	return true, nil
}

func (c *copying) unpack(archive *layer.Reader, dest string) error {
	for {
		if c.ctx.Err() != nil {
			return context.Cause(c.ctx)
		}
		e, err := archive.Next()
		if err == io.EOF {
			// A checksum at the end tells of damage; what is no part of the compressed file is none.
			if err := archive.Rest(); err != nil && !errors.Is(err, gzip.ErrHeader) {
				return err
			}
			return nil
		}
		if err != nil {
			return err
		}
		// The archive's own top says nothing about the directory that it is unpacked into.
		if e.Path == "" {
			continue
		}
		if err := c.member(e, archive, dest); err != nil {
			return err
		}
	}
}

// member puts one entry of an archive below dest. Its directories are followed where they are symbolic links, inside the
// root; what it replaces is not.
func (c *copying) member(e layer.Entry, body io.Reader, dest string) error {
	name := e.Name()
	dir, _, err := c.b.Resolve(join(dest, layer.Parent(e.Path)), true)
	if err != nil {
		return err
	}
	e.Path = join(dir, name)
	if c.owner != nil {
		e.UID, e.GID = c.owner.uid, c.owner.gid
	}
	if e.Type != layer.Hardlink {
		return c.b.Put(e, body)
	}
	linkDir, _, err := c.b.Resolve(join(dest, layer.Parent(e.Link)), true)
	if err != nil {
		return err
	}
	target := join(linkDir, e.Link[strings.LastIndexByte(e.Link, '/')+1:])
	file, ok, err := c.b.Lookup(target)
	if err != nil {
		return err
	}
	if !ok || file.Type == layer.Dir {
		return &layer.HeaderError{Name: e.Path, Msg: fmt.Sprintf("is a hard link to /%s, which is no file", target)}
	}
	own, err := c.b.Own(target)
	if err != nil {
		return err
	}
	if !own {
		if file.Type != layer.File {
			return errors.New("a hard link to a special file of a lower layer is not supported")
		}
		if err := c.b.CopyUp(file, target); err != nil {
			return err
		}
	}
	return c.b.Link(e, target)
}
