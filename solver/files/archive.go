package files

import (
	"bufio"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/gunzip"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/klauspost/compress/zstd"
	"github.com/xi2/xz"
)

// Archive is a tar that may be compressed.
type Archive struct {
	*layer.Reader
	plain io.Reader // the tar
}

// OpenArchive returns the tar in a file, which may be compressed by gzip, bzip2, xz or zstd. ok is false if the file is not an
// archive. Only the content is considered, never the name.
func OpenArchive(r io.Reader, limit layer.Limit) (archive Archive, ok bool) {
	buf := bufio.NewReaderSize(r, 64<<10)
	head, _ := buf.Peek(6)
	var plain io.Reader
	switch {
	case strings.HasPrefix(string(head), "BZh"):
		plain = bzip2.NewReader(buf)
	case string(head) == "\xfd7zXZ\x00":
		z, err := xz.NewReader(buf, maxXZWindow)
		if err != nil && !unreadable(err) {
			return Archive{}, false
		}
		plain = z
	default:
		z, err := layer.Uncompress(buf)
		if err != nil {
			return Archive{}, false
		}
		plain = z
	}
	archive = Archive{layer.NewReader(plain, limit), plain}
	archive.Rooted = true
	err := archive.Begin()
	return archive, err == nil || unreadable(err)
}

// Ahead has entries read, and gzip decompressed, in goroutines of their own from now on. stop ends that; until it returns the file must not
// be used, and afterwards the archive.
func (a Archive) Ahead() (stop func()) {
	z, ok := a.plain.(*gunzip.Reader)
	if ok {
		z.Ahead(nil)
	}
	a.Reader.Ahead()
	return func() {
		a.Reader.Close()
		if ok {
			_ = z.Close() // it always succeeds
		}
	}
}

// Newest returns the time of the newest regular file. The archive is read to its end.
func (a Archive) Newest() (time.Time, error) {
	var made time.Time
	for {
		e, err := a.Next()
		if err == io.EOF {
			return made, nil
		}
		if err != nil {
			return made, err
		}
		if e.Type == layer.File && e.ModTime.After(made) {
			made = e.ModTime
		}
	}
}

// unreadable reports whether an error means that the compressed data cannot be read, or only with too much memory. It may be an
// archive, and must not be copied as a file.
func unreadable(err error) bool {
	return slices.ContainsFunc([]error{xz.ErrMemlimit, xz.ErrOptions, zstd.ErrDecoderSizeExceeded, zstd.ErrWindowSizeExceeded},
		func(target error) bool { return errors.Is(err, target) })
}

// IsArchive reports whether OpenArchive accepts a file.
func IsArchive(r io.Reader) bool {
	_, ok := OpenArchive(r, layer.Limit{})
	return ok
}

// maxXZWindow limits the memory that an xz file may require: xz -9 needs 64 MiB.
const maxXZWindow = 64 << 20

// archive unpacks a source file into the destination if it is an archive, and reports whether it is. If the sink takes no bytes,
// only the destination is created; since files of layers may not be readable then, they are assumed to be archives.
func (c *copying) archive(tree layer.Tree, e *layer.Entry) (bool, error) {
	if !c.sink.bodies() && !c.context {
		return true, c.archived(tree, e, &c.result.Others)
	}
	f, err := tree.Open(e)
	if err != nil {
		return false, err
	}
	defer f.Close()
	sum := sha256.New()
	body := io.TeeReader(f, sum)
	in, ok := OpenArchive(body, c.Limit)
	if !ok {
		return false, nil
	}
	if !c.sink.bodies() {
		return true, c.archived(tree, e, &c.result.Archives)
	}
	dest, err := c.archiveDir()
	if err != nil {
		return true, err
	}
	c.b.Most(c.Limit.OrDefault().Entries)
	stop := in.Ahead()
	err = c.unpack(in.Reader, dest)
	stop()
	if err == nil {
		_, err = io.Copy(io.Discard, body) // the digest includes the bytes after the archive's end
	}
	if err != nil {
		return true, fmt.Errorf("unpack the archive /%s: %w", e.Path, err)
	}
	if c.context {
		c.result.Archives = append(c.result.Archives, fmt.Sprintf("%x into /%s", sum.Sum(nil), dest))
	}
	return true, nil
}

// archived appends an archive that is not unpacked to a list.
func (c *copying) archived(tree layer.Tree, e *layer.Entry, list *[]string) error {
	dest, err := c.archiveDir()
	if err != nil {
		return err
	}
	if err := tree.Sum(c.ctx, []*layer.Entry{e}); err != nil {
		return err
	}
	if e.Type == layer.Whiteout {
		return &layer.ChangedError{Path: e.Path}
	}
	*list = append(*list, fmt.Sprintf("%x into /%s", e.Digest, dest))
	return nil
}

// archiveDir creates the directory into which archives are unpacked, and returns its physical path.
func (c *copying) archiveDir() (string, error) {
	dest, _, err := c.b.Resolve(c.op.Dest, true)
	if err != nil {
		return "", err
	}
	return dest, c.b.Mkdirs(dest, func(path string) layer.Entry {
		e := c.newDir(path)
		e.Mode = 0o755 | e.Mode&setGID // --chmod does not apply to archives
		return e
	})
}

func (c *copying) unpack(archive *layer.Reader, dest string) error {
	for {
		if c.ctx.Err() != nil {
			return context.Cause(c.ctx)
		}
		e, err := archive.Next()
		if err == io.EOF {
			// A wrong checksum at the end is an error. Other errors after the end of the archive, such as missing bytes, are ignored.
			if err := archive.Rest(); damaged(err) {
				return err
			}
			return nil
		}
		if err != nil {
			return err
		}
		// The archive's entry for its root does not apply to the destination directory.
		if e.Path == "" {
			continue
		}
		if err := c.member(e, archive, dest); err != nil {
			return err
		}
	}
}

// damaged reports whether an error at the end of an archive is a wrong checksum or an exceeded limit.
func damaged(err error) bool {
	if _, ok := errors.AsType[*layer.LimitError](err); ok {
		return true
	}
	if e, ok := errors.AsType[bzip2.StructuralError](err); ok {
		return strings.HasSuffix(string(e), "checksum mismatch")
	}
	return errors.Is(err, gzip.ErrChecksum) || errors.Is(err, zstd.ErrCRCMismatch) || errors.Is(err, xz.ErrData)
}

// directory returns the physical path of the parent directory of a member in dest. Symbolic links are followed as in a chroot at
// dest. A link whose target does not exist is an error, since the directory cannot be created through it. Other missing
// components are used as written.
func (c *copying) directory(dest, member string) (string, error) {
	dir, _, err := c.b.ResolveBelow(dest, layer.Parent(member), true, func(path string, link layer.Entry) error {
		msg := fmt.Sprintf("is below the symbolic link /%s to %q, which does not exist", layer.Clip(path), layer.Clip(link.Link))
		return &layer.HeaderError{Name: member, Msg: msg}
	})
	return dir, err
}

// The range of times of an archive's members, as in Docker. Times outside it become firstTime.
var firstTime, lastTime = time.Unix(0, 0), time.Unix(0, math.MaxInt64)

// member puts one entry of an archive in dest. Symbolic links in its parent directories are followed inside dest; the last
// component is replaced.
func (c *copying) member(e layer.Entry, body io.Reader, dest string) error {
	name := e.Name()
	dir, err := c.directory(dest, e.Path)
	if err != nil {
		return err
	}
	if e.ModTime.Before(firstTime) || e.ModTime.After(lastTime) {
		e.ModTime = firstTime
	}
	e.Path = join(dir, name)
	c.own(&e)
	if e.Type != layer.Hardlink {
		return c.b.Put(e, body)
	}
	linkDir, err := c.directory(dest, e.Link)
	if err != nil {
		return err
	}
	target := join(linkDir, e.Link[strings.LastIndexByte(e.Link, '/')+1:])
	file, ok, err := c.b.Lookup(target)
	if err != nil {
		return err
	}
	if !ok || file.Type == layer.Dir {
		return &layer.HeaderError{Name: e.Path, Msg: fmt.Sprintf("is a hard link to /%s, which is not a file", target)}
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
