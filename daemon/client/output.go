package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/layer"
	sessioncontent "github.com/moby/buildkit/session/content"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/util/grpcerrors"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc/codes"
)

// Receiver returns what takes the output of a request by its number, which is its place among the outputs that the request asks for.
func (c *Client) Receiver(number int) exporter.Receiver { return &destination{c, number} }

// destination is an output to a client.
type destination struct {
	*Client
	number int
}

// WriteFile implements exporter.Receiver. A file that was not written in full ends with an error at the client, too.
func (d *destination) WriteFile(ctx context.Context, about map[string]string, write func(io.Writer) error) error {
	calling, caller, err := d.call(ctx)
	if err != nil {
		return err
	}
	if !supports(caller, filesync.FileSend_ServiceDesc.ServiceName, "DiffCopy") {
		return errTakesNothing
	}
	// The end of this context, and not that of the stream, tells the client that the file is not whole.
	calling, cancel := context.WithCancel(calling)
	defer cancel()
	w, err := filesync.CopyFileWriter(calling, about, d.number, caller)
	if err == nil {
		count, end := events.From(ctx).Counting("sending tarball", events.Moving, 0)
		err = write(countingWriter{w, count})
		end()
	}
	if err == nil {
		err = w.Close()
	}
	if err == nil || grpcerrors.Code(err) == codes.AlreadyExists { // it has it, and wants no other
		return nil
	}
	if calling.Err() != nil {
		return context.Cause(calling)
	}
	return fmt.Errorf("send the file to the client: %w", err)
}

var errTakesNothing = errors.New("the client takes no files")

// countingWriter is a writer that says how much was written.
type countingWriter struct {
	io.Writer
	count func(n int64)
}

// Write implements io.Writer.
func (w countingWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.count(int64(n))
	return n, err
}

// WriteFiles implements exporter.Receiver.
func (d *destination) WriteFiles(ctx context.Context, epoch *time.Time, roots ...exporter.Root) error {
	calling, caller, err := d.call(ctx)
	if err != nil {
		return err
	}
	if !supports(caller, filesync.FileSend_ServiceDesc.ServiceName, "DiffCopy") {
		return errTakesNothing
	}
	report := events.From(ctx).Transferring("copying files", events.Moving, 0)
	progress := func(n int, last bool) { report(int64(n), last) }
	files := &files{tree: exporter.Joined(roots), epoch: epoch}
	// All that is for one directory goes in one transfer, which lets a client remove what is not among it.
	err = filesync.CopyToCaller(calling, files, d.number, caller, progress, filesync.WithExporterMultiPlatformTransfer())
	switch {
	case files.err != nil:
		return files.err
	case err != nil:
		return fmt.Errorf("send the files to the client: %w", failed(calling, err))
	}
	return nil
}

// files is a tree as package fsutil sends it. It implements fsutil.FS.
type files struct {
	tree  layer.Tree
	epoch *time.Time
	// err is the error of a walk.
	err error
}

// Walk implements fsutil.FS: all files are walked, whatever the path is.
func (f *files) Walk(ctx context.Context, _ string, fn fs.WalkDirFunc) error {
	links := map[string]string{}
	var walk func(dir string) error
	walk = func(dir string) error {
		list, err := f.tree.List(dir)
		if err != nil {
			f.err = err
			return err
		}
		for i := range list {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			e := &list[i]
			if first, ok := links[e.LinkID]; ok && e.LinkID != "" {
				e.Type, e.Link, e.Size = layer.Hardlink, first, 0
			} else if e.LinkID != "" {
				links[e.LinkID] = e.Path
			}
			if err := fn(e.Path, &fsutil.DirEntryInfo{Stat: f.stat(e)}, nil); err != nil {
				return err
			}
			if e.Type == layer.Dir {
				if err := walk(e.Path); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return walk("")
}

// stat describes an entry.
func (f *files) stat(e *layer.Entry) *types.Stat {
	s := &types.Stat{
		Path: e.Path, Mode: uint32(e.FSMode()), Uid: e.UID, Gid: e.GID, Size: e.Size, ModTime: e.ModTime.UnixNano(), Linkname: e.Link,
		Devmajor: int64(e.Major), Devminor: int64(e.Minor),
	}
	if f.epoch != nil {
		s.ModTime = f.epoch.UnixNano()
	}
	for _, x := range e.Xattrs {
		if s.Xattrs == nil {
			s.Xattrs = map[string][]byte{}
		}
		s.Xattrs[x.Name] = []byte(x.Value)
	}
	return s
}

// Open implements fsutil.FS.
func (f *files) Open(path string) (io.ReadCloser, error) {
	e, ok, err := f.tree.Lookup(strings.TrimPrefix(path, "/"))
	if err != nil {
		return nil, err
	}
	if !ok || e.Type != layer.File {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return f.tree.Open(&e)
}

// exportStore is the name of the content store into which clients have an OCI layout written.
const exportStore = "export"

// WriteBlobs implements exporter.Receiver.
func (d *destination) WriteBlobs(ctx context.Context, blobs []ocispec.Descriptor,
	open func(ocispec.Descriptor) (io.ReadCloser, error)) error {
	calling, caller, err := d.call(ctx)
	if err != nil {
		return err
	}
	return writeBlobs(calling, sessioncontent.NewCallerStore(caller, exportStore), blobs, open)
}

// writeBlobs writes those blobs to a store of a client that it does not have.
func writeBlobs(
	calling context.Context, store content.Store, blobs []ocispec.Descriptor, open func(ocispec.Descriptor) (io.ReadCloser, error),
) error {
	for _, desc := range blobs {
		if err := writeBlob(calling, store, desc, open); err != nil && !errdefs.IsAlreadyExists(err) {
			return fmt.Errorf("send blob %s to the client: %w", desc.Digest, failed(calling, err))
		}
	}
	return nil
}

func writeBlob(
	calling context.Context, store content.Store, desc ocispec.Descriptor, open func(ocispec.Descriptor) (io.ReadCloser, error),
) error {
	if _, err := store.Info(calling, desc.Digest); err == nil {
		return nil
	}
	r, err := open(desc)
	if err != nil {
		return err
	}
	defer r.Close()
	return content.WriteBlob(calling, store, desc.Digest.String(), r, desc)
}
