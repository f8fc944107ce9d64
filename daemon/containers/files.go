package containers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	fstypes "github.com/tonistiigi/fsutil/types"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/internal/layer"
)

// Limits of what is read at once.
const (
	maxFile    = 16 << 20 // bytes
	maxEntries = 1 << 16  // of a directory
)

// mount is a mount of a container whose files are read while processes change them. Paths are resolved beneath it, by descriptor, and
// neither leave it nor enter what is mounted in it.
type mount struct{ root *os.File }

// mount returns a mount by its number in the request for the container.
func (s *Set) mounted(id string, number int32) (mount, error) {
	e, err := s.get(id)
	if err != nil {
		return mount{}, err
	}
	if number < 0 || int(number) >= len(e.mounts) {
		return mount{}, status.Errorf(codes.InvalidArgument, "mount index %d is out of bounds (%d available)", number, len(e.mounts))
	}
	root := e.Root()
	if at := e.mounts[number]; at != rootMount {
		root = e.Mounted(at)
	}
	if root == nil {
		return mount{}, status.Errorf(codes.NotFound, "mountable %d not found", number)
	}
	return mount{root}, nil
}

// open opens a file. Errors are *fs.PathError.
func (m mount) open(name string, flags uint64) (*os.File, error) {
	if !path.IsAbs(name) || strings.IndexByte(name, 0) >= 0 {
		return nil, status.Errorf(codes.InvalidArgument, "can't make %s relative to /", name)
	}
	how := unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	relative := strings.TrimPrefix(path.Clean(name), "/")
	if relative == "" {
		relative = "."
	}
	for {
		fd, err := unix.Openat2(int(m.root.Fd()), relative, &how)
		switch err {
		case nil:
			return os.NewFile(uintptr(fd), name), nil
		case unix.EAGAIN, unix.EINTR: // something was renamed meanwhile
			continue
		}
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
}

// find opens a path without opening what is there.
func (m mount) find(name string, flags uint64) (*os.File, unix.Stat_t, error) {
	f, err := m.open(name, unix.O_PATH|flags)
	if err != nil {
		return nil, unix.Stat_t{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, st, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	return f, st, nil
}

// read opens a file of a type for reading, and nothing else: opening a device or a named pipe may have effects, or never end.
func (m mount) read(name string, kind uint32, wrong error) (*os.File, error) {
	at, st, err := m.find(name, 0)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	if st.Mode&unix.S_IFMT != kind {
		return nil, &fs.PathError{Op: "open", Path: name, Err: wrong}
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", at.Fd()), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// stat describes what f is open on.
func stat(name string, f *os.File, st unix.Stat_t) (*fstypes.Stat, error) {
	out := &fstypes.Stat{Path: name, Uid: st.Uid, Gid: st.Gid, ModTime: st.Mtim.Nano()}
	mode := layer.FSMode(st.Mode)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(f.Fd()), "", buf)
		if err != nil {
			return nil, &fs.PathError{Op: "readlink", Path: name, Err: err}
		}
		out.Linkname = string(buf[:n])
	case unix.S_IFIFO:
		mode |= fs.ModeNamedPipe
	case unix.S_IFCHR:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFBLK:
		mode |= fs.ModeDevice
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		out.Size = st.Size
	}
	if mode&fs.ModeDevice != 0 {
		out.Devmajor, out.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	out.Mode = uint32(mode)
	return out, nil
}

// ReadFileContainer returns bytes of a regular file.
func (s *Set) ReadFileContainer(_ context.Context, req *gateway.ReadFileRequest) (*gateway.ReadFileResponse, error) {
	m, err := s.mounted(req.Ref, req.MountIndex)
	if err != nil {
		return nil, err
	}
	from, length, whole := int64(0), int64(maxFile), true
	if r := req.Range; r != nil {
		if r.Offset < 0 || r.Length < 0 {
			return nil, status.Errorf(codes.InvalidArgument, "invalid range for %s", req.FilePath)
		}
		from, whole = r.Offset, r.Length > maxFile
		length = min(r.Length, length)
	}
	f, err := m.read(req.FilePath, unix.S_IFREG, errors.New("not a regular file"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	limit := length
	if whole {
		limit++
	}
	data, err := io.ReadAll(io.NewSectionReader(f, from, limit))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > length {
		return nil, status.Errorf(codes.ResourceExhausted, "%s exceeds maximum allowed size of %d bytes", req.FilePath, maxFile)
	}
	return &gateway.ReadFileResponse{Data: data}, nil
}

// ReadDirContainer lists a directory.
func (s *Set) ReadDirContainer(ctx context.Context, req *gateway.ReadDirRequest) (*gateway.ReadDirResponse, error) {
	m, err := s.mounted(req.Ref, req.MountIndex)
	if err != nil {
		return nil, err
	}
	if _, err := path.Match(req.IncludePattern, ""); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "%q: %v", req.IncludePattern, err)
	}
	dir, err := m.read(req.DirPath, unix.S_IFDIR, unix.ENOTDIR)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	resp := &gateway.ReadDirResponse{}
	for {
		names, err := dir.Readdirnames(1000)
		for _, name := range names {
			if ok, _ := path.Match(req.IncludePattern, name); req.IncludePattern != "" && !ok {
				continue
			}
			if len(resp.Entries) == maxEntries {
				return nil, status.Errorf(codes.ResourceExhausted, "directory %s has more than %d entries", req.DirPath, maxEntries)
			}
			e, err := (mount{dir}).stat("/"+name, unix.O_NOFOLLOW)
			switch {
			case errors.Is(err, fs.ErrNotExist): // it was removed meanwhile
				continue
			case err != nil:
				return nil, err
			}
			resp.Entries = append(resp.Entries, e)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err := errors.Join(err, context.Cause(ctx)); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// stat describes a file.
func (m mount) stat(name string, flags uint64) (*fstypes.Stat, error) {
	f, st, err := m.find(name, flags)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return stat(path.Base(path.Clean(name)), f, st)
}

// StatFileContainer describes a file. A link that leads out of the mount is described itself, for the client to follow.
func (s *Set) StatFileContainer(_ context.Context, req *gateway.StatFileRequest) (*gateway.StatFileResponse, error) {
	m, err := s.mounted(req.Ref, req.MountIndex)
	if err != nil {
		return nil, err
	}
	st, err := m.stat(req.Path, 0)
	if errors.Is(err, unix.EXDEV) {
		st, err = m.stat(req.Path, unix.O_NOFOLLOW)
	}
	if err != nil {
		return nil, err
	}
	return &gateway.StatFileResponse{Stat: st}, nil
}
