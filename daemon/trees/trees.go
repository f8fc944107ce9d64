// Package trees answers requests of BuildKit's API for the files of a root file system.
package trees

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	fstypes "github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/snapshot/compose"
)

// maxRead bounds the bytes of a file in one answer: a message of the API has twice as many at most.
const maxRead = 8 << 20

// Read returns a regular file of at most limit bytes.
func Read(t layer.Tree, name string, limit int64) ([]byte, error) {
	e, err := Find(t, "open", name, true)
	if err != nil {
		return nil, err
	}
	if e.Type != layer.File || e.Size > limit {
		return nil, &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("it is not a file of at most %d bytes", limit)}
	}
	f, err := t.Open(e)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// Find returns an entry of a tree, following links unless it is the last component and last is not set. "" is the root.
func Find(t layer.Tree, op, name string, last bool) (*layer.Entry, error) {
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	if clean == "" {
		return &layer.Entry{Type: layer.Dir, Mode: 0o755}, nil
	}
	at, e, err := compose.Resolve(t.Lookup, clean, last)
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
	}
	e.Path = at
	return e, nil
}

// ReadFile returns bytes of a file.
func ReadFile(t layer.Tree, req *gateway.ReadFileRequest) (*gateway.ReadFileResponse, error) {
	e, err := Find(t, "open", req.FilePath, true)
	if err != nil {
		return nil, err
	}
	if e.Type != layer.File {
		return nil, &fs.PathError{Op: "read", Path: req.FilePath, Err: errors.New("it is not a regular file")}
	}
	f, err := t.Open(e)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	from, length := int64(0), int64(maxRead)
	if r := req.Range; r != nil {
		from = r.Offset
		if r.Length > 0 {
			length = min(length, r.Length)
		}
	}
	if from < 0 {
		return nil, status.Error(codes.InvalidArgument, "the offset is negative")
	}
	if from > e.Size {
		return &gateway.ReadFileResponse{}, nil
	}
	if _, err := io.CopyN(io.Discard, f, from); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, length+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > length {
		if req.Range == nil || req.Range.Length <= 0 || req.Range.Length > length {
			return nil, status.Errorf(codes.ResourceExhausted, "file %s is larger than the %d bytes of one answer", req.FilePath, length)
		}
		data = data[:length]
	}
	return &gateway.ReadFileResponse{Data: data}, nil
}

// maxListed bounds the entries of a directory in one answer.
const maxListed = 1 << 16

// ReadDir lists a directory.
func ReadDir(t layer.Tree, req *gateway.ReadDirRequest) (*gateway.ReadDirResponse, error) {
	e, err := Find(t, "open", req.DirPath, true)
	if err != nil {
		return nil, err
	}
	if e.Type != layer.Dir {
		return nil, &fs.PathError{Op: "readdirent", Path: req.DirPath, Err: errors.New("not a directory")}
	}
	list, err := t.List(e.Path)
	if err != nil {
		return nil, err
	}
	resp := &gateway.ReadDirResponse{}
	for i := range list {
		if req.IncludePattern != "" {
			if ok, err := path.Match(req.IncludePattern, list[i].Name()); err != nil || !ok {
				if err != nil {
					return nil, status.Errorf(codes.InvalidArgument, "%q: %v", req.IncludePattern, err)
				}
				continue
			}
		}
		if len(resp.Entries) == maxListed {
			return nil, status.Errorf(codes.ResourceExhausted, "directory %s has more than %d entries", req.DirPath, maxListed)
		}
		resp.Entries = append(resp.Entries, stat(&list[i]))
	}
	return resp, nil
}

// StatFile describes a file.
func StatFile(t layer.Tree, req *gateway.StatFileRequest) (*gateway.StatFileResponse, error) {
	e, err := Find(t, "lstat", req.Path, false)
	if err != nil {
		return nil, err
	}
	return &gateway.StatFileResponse{Stat: stat(e)}, nil
}

// stat returns an entry as BuildKit's API has it.
func stat(e *layer.Entry) *fstypes.Stat {
	return &fstypes.Stat{
		Path: path.Base("/" + e.Path), Mode: uint32(e.FSMode()), Uid: e.UID, Gid: e.GID, Size: e.Size, ModTime: e.ModTime.UnixNano(),
		Linkname: e.Link, Devmajor: int64(e.Major), Devminor: int64(e.Minor),
	}
}
