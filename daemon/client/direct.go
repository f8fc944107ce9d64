// Package client is what the client of one session provides to a build.
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/session/secrets"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"

	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/localdir"
)

// waitForSession is how long a client may take to open the session that its request names.
const waitForSession = 5 * time.Second

// Client is the client of one session.
type Client struct {
	manager *session.Manager
	id      string
	dir     string
	trees   []*localdir.Dir
}

// New returns the client of the session id. dir is an empty directory for what it sends.
func New(m *session.Manager, id, dir string) *Client { return &Client{manager: m, id: id, dir: dir} }

// Local is a directory of the client, and what is wanted of it.
type Local struct {
	Name                     string
	Include, Exclude, Follow []string
}

func (c *Client) caller(ctx context.Context) (session.Caller, error) {
	if c.id == "" {
		return nil, errors.New("the request has no session, and the build needs something of its client")
	}
	ctx, cancel := context.WithTimeout(ctx, waitForSession)
	defer cancel()
	return c.manager.Get(ctx, c.id, false)
}

// Open returns the files of a directory of the client.
func (c *Client) Open(ctx context.Context, l Local) (layer.Tree, error) {
	caller, err := c.caller(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(c.dir, "context-")
	if err != nil {
		return nil, err
	}
	err = filesync.FSSync(ctx, caller, filesync.FSSendRequestOpt{
		Name: l.Name, IncludePatterns: l.Include, ExcludePatterns: l.Exclude, FollowPaths: l.Follow, DestDir: dir,
		Filter: func(_ string, s *fstypes.Stat) bool {
			s.Uid, s.Gid = 0, 0
			return true
		},
	})
	if err != nil {
		return nil, fmt.Errorf("receive the directory %s of the client: %w", l.Name, err)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	tree, err := localdir.Open(ctx, abs, nil, dir+".digests", c.dir)
	if err != nil {
		return nil, err
	}
	c.trees = append(c.trees, tree)
	return tree, nil
}

// Close removes what the client has sent.
func (c *Client) Close() error {
	for _, t := range c.trees {
		t.Close()
	}
	return os.RemoveAll(c.dir)
}

// Secret implements session.Secrets.
func (c *Client) Secret(ctx context.Context, id string) ([]byte, bool, error) {
	caller, err := c.caller(ctx)
	if err != nil {
		return nil, false, err
	}
	data, err := secrets.GetSecret(ctx, caller, id)
	if errors.Is(err, secrets.ErrNotFound) {
		return nil, false, nil
	}
	return data, err == nil, err
}

// Receiver returns what takes the output of a request by its number.
func (c *Client) Receiver(n int) exporter.Receiver { return &receiver{c, n} }

type receiver struct {
	*Client
	n int
}

// WriteFile implements exporter.Receiver.
func (r *receiver) WriteFile(ctx context.Context, about map[string]string, write func(io.Writer) error) error {
	caller, err := r.caller(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := filesync.CopyFileWriter(ctx, about, r.n, caller)
	if err != nil {
		return err
	}
	if err := write(w); err != nil {
		return err
	}
	return w.Close()
}

// WriteFiles implements exporter.Receiver.
func (r *receiver) WriteFiles(ctx context.Context, epoch *time.Time, roots ...exporter.Root) error {
	caller, err := r.caller(ctx)
	if err != nil {
		return err
	}
	return filesync.CopyToCaller(ctx, files{roots, epoch}, r.n, caller, nil, filesync.WithExporterMultiPlatformTransfer())
}

// WriteBlobs implements exporter.Receiver.
func (r *receiver) WriteBlobs(context.Context, []ocispec.Descriptor, func(ocispec.Descriptor) (io.ReadCloser, error)) error {
	return errors.New("tar=false is not supported yet")
}

// files are root file systems as fsutil sends them.
type files struct {
	roots []exporter.Root
	epoch *time.Time
}

// Walk implements fsutil.FS.
func (f files) Walk(ctx context.Context, _ string, fn fs.WalkDirFunc) error {
	roots := slices.Clone(f.roots)
	slices.SortFunc(roots, func(x, y exporter.Root) int { return strings.Compare(x.Dir, y.Dir) })
	for _, r := range roots {
		if r.Dir != "" {
			top := &layer.Entry{Path: r.Dir, Type: layer.Dir, Mode: 0o755, ModTime: time.Unix(0, 0)}
			if err := f.call(top, fn); err != nil {
				return err
			}
		}
		if err := f.walk(ctx, r, "", map[string]string{}, fn); err != nil {
			return err
		}
	}
	return nil
}

func (f files) walk(ctx context.Context, r exporter.Root, dir string, links map[string]string, fn fs.WalkDirFunc) error {
	list, err := r.Tree.List(dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		below := e.Path
		e.Path = strings.TrimPrefix(r.Dir+"/"+e.Path, "/")
		if first := links[e.LinkID]; e.LinkID != "" && first != "" {
			e.Type, e.Link = layer.Hardlink, first
		} else if e.LinkID != "" {
			links[e.LinkID] = e.Path
		}
		if err := f.call(&e, fn); err != nil {
			return err
		}
		if e.Type == layer.Dir {
			if err := f.walk(ctx, r, below, links, fn); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f files) call(e *layer.Entry, fn fs.WalkDirFunc) error {
	s := &fstypes.Stat{Path: e.Path, Uid: uint32(e.UID), Gid: uint32(e.GID), ModTime: e.ModTime.UnixNano(), Size: e.Size, Linkname: e.Link}
	if f.epoch != nil {
		s.ModTime = f.epoch.UnixNano()
	}
	mode := fs.FileMode(e.Mode & 0o777)
	for bit, m := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if e.Mode&bit != 0 {
			mode |= m
		}
	}
	switch e.Type {
	case layer.Dir:
		mode |= fs.ModeDir
	case layer.Symlink:
		mode |= fs.ModeSymlink
	case layer.Fifo:
		mode |= fs.ModeNamedPipe
	case layer.Char:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	case layer.Block:
		mode |= fs.ModeDevice
	}
	s.Mode, s.Devmajor, s.Devminor = uint32(mode), int64(e.Major), int64(e.Minor)
	return fn(e.Path, &fsutil.DirEntryInfo{Stat: s}, nil)
}

// Open implements fsutil.FS.
func (f files) Open(path string) (io.ReadCloser, error) {
	for _, r := range f.roots {
		below, ok := path, r.Dir == ""
		if !ok {
			below, ok = strings.CutPrefix(path, r.Dir+"/")
		}
		if !ok {
			continue
		}
		e, found, err := r.Tree.Lookup(below)
		if err != nil {
			return nil, err
		}
		if found {
			return r.Tree.Open(&e)
		}
	}
	return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
}
