// Package containers has the containers of one client of BuildKit's API: a root file system with mounts, made of results of a build, in
// which the client starts processes. They end with the client's connection, and with the build.
package containers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path"
	"slices"
	"sync"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/container"
	"github.com/kilnbuild/kiln/solver/work"
)

// Job is what containers need of the build that they belong to. It is safe for concurrent use.
type Job interface {
	// Root returns the root file system of a result of the build, by the id that the client has for it, once it is made.
	Root(ctx context.Context, id string) (solver.Ref, error)
	// Container prepares a container, which is closed before the build ends.
	Container(ctx context.Context, w work.Exec) (*container.Container, error)
}

// Limits of what one client has at the same time, or asks for at once.
const (
	maxContainers = 64
	maxMounts     = 256
	maxHosts      = 1024
	maxName       = 256 // bytes of the id of a container or process
)

// Set are the containers of one client.
type Set struct {
	job Job
	// ctx is that of the streams.
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu     sync.Mutex
	all    map[string]*entry
	closed bool
	// making are the containers that are being made.
	making sync.WaitGroup
}

// entry is a container of a Set.
type entry struct {
	*container.Container // nil while it is being made
	// mounts are the numbers of the mounts of the request in those of the container; rootMount is its root.
	mounts []int
	// path is PATH of processes for which the client gives none.
	path string
}

// rootMount stands for the root file system among the mounts of a container.
const rootMount = -1

// New returns a Set without containers. Close must be called, before the build ends.
func New(job Job) *Set {
	s := &Set{job: job, all: map[string]*entry{}}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	return s
}

// Close ends all processes, containers and streams. None can be made any more.
func (s *Set) Close() {
	s.mu.Lock()
	s.closed = true
	all := s.all
	s.all = map[string]*entry{}
	s.mu.Unlock()
	s.cancel(errClosed)
	s.making.Wait()
	for _, e := range all {
		if e.Container != nil {
			_ = e.Container.Close() // how its processes ended is known
		}
	}
}

// NewContainer makes a container, of results of the build.
func (s *Set) NewContainer(ctx context.Context, req *gateway.NewContainerRequest) (*gateway.NewContainerResponse, error) {
	w, e, err := s.request(ctx, req)
	if err != nil {
		return nil, err
	}
	if err := s.reserve(req.ContainerID, e); err != nil {
		return nil, err
	}
	defer s.making.Done()
	c, err := s.job.Container(ctx, w)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && s.closed {
		_ = c.Close()
		err = errClosed
	}
	if err != nil {
		delete(s.all, req.ContainerID)
		return nil, err
	}
	e.Container = c
	return &gateway.NewContainerResponse{}, nil
}

var errClosed = status.Error(codes.Unavailable, "the build is over")

// reserve takes an id for a container. Whoever gets it calls making.Done.
func (s *Set) reserve(id string, e *entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return errClosed
	case s.all[id] != nil:
		return status.Errorf(codes.AlreadyExists, "there is a container %s already", id)
	case len(s.all) >= maxContainers:
		return status.Errorf(codes.ResourceExhausted, "there are %d containers already, and more are not allowed at the same time", maxContainers)
	}
	s.all[id] = e
	s.making.Add(1)
	return nil
}

// get returns a container that has been made.
func (s *Set) get(id string) (*entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.all[id]; e != nil && e.Container != nil {
		return e, nil
	}
	return nil, status.Errorf(codes.NotFound, "container %q previously released or not created", id)
}

// ReleaseContainer ends a container with its processes. As with BuildKit the error is that of the process that failed first, also by that.
func (s *Set) ReleaseContainer(_ context.Context, req *gateway.ReleaseContainerRequest) (*gateway.ReleaseContainerResponse, error) {
	e, err := s.get(req.ContainerID)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	delete(s.all, req.ContainerID)
	s.mu.Unlock()
	err = e.Container.Close()
	if errors.Is(err, container.ErrClosed) {
		err = errReleased
	}
	return &gateway.ReleaseContainerResponse{}, err
}

// request returns what a request asks for.
func (s *Set) request(ctx context.Context, req *gateway.NewContainerRequest) (work.Exec, *entry, error) {
	invalid := func(format string, args ...any) (work.Exec, *entry, error) {
		return work.Exec{}, nil, status.Errorf(codes.InvalidArgument, format, args...)
	}
	switch {
	case req.ContainerID == "" || len(req.ContainerID) > maxName:
		return invalid("the id of a container has 1 to %d bytes", maxName)
	case len(req.Mounts) > maxMounts:
		return invalid("%d mounts are more than the %d that a container can have", len(req.Mounts), maxMounts)
	case len(req.ExtraHosts) > maxHosts:
		return invalid("%d hosts are more than the %d that a container can have", len(req.ExtraHosts), maxHosts)
	}
	platform, defaultPath, err := platform(req.Platform)
	if err != nil {
		return work.Exec{}, nil, err
	}
	w := work.Exec{Op: llb.Exec{Hostname: req.Hostname}, Platform: platform, In: []solver.Ref{{}}}
	switch req.Network {
	case pb.NetMode_UNSET:
	case pb.NetMode_HOST:
		w.Op.Network = llb.NetworkHost
	case pb.NetMode_NONE:
		w.Op.Network = llb.NetworkNone
	default:
		return invalid("invalid network mode %d", req.Network)
	}
	for _, h := range req.ExtraHosts {
		if h == nil || net.ParseIP(h.IP) == nil {
			return invalid("failed to parse IP %s", h.GetIP())
		}
		w.Op.ExtraHosts = append(w.Op.ExtraHosts, llb.ExtraHost{Host: h.Host, IP: h.IP})
	}
	e := &entry{path: defaultPath}
	for i, m := range req.Mounts {
		if m == nil {
			return invalid("mount %d is nil", i)
		}
		number, err := s.mount(ctx, &w, m)
		if err != nil {
			return w, nil, err
		}
		e.mounts = append(e.mounts, number)
	}
	if !slices.Contains(e.mounts, rootMount) {
		return invalid("root mount is required")
	}
	return w, e, nil
}

// Values of PATH for processes without one, as BuildKit has them.
const (
	unixPath    = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	windowsPath = `PATH=c:\Windows\System32;c:\Windows;C:\Windows\System32\WindowsPowerShell\v1.0`
)

// platform returns the platform of a container's programs, which are for Linux whatever system the client names, and a PATH for them.
func platform(p *pb.Platform) (name, defaultPath string, err error) {
	host := llb.Host()
	if p == nil {
		return host.String(), unixPath, nil
	}
	defaultPath = unixPath
	if p.OS == "windows" {
		defaultPath = windowsPath
	}
	if p.Architecture == "" {
		return host.String(), defaultPath, nil
	}
	of, err := llb.ParsePlatform(path.Join("linux", p.Architecture, p.Variant), host)
	if err != nil {
		return "", "", status.Error(codes.InvalidArgument, err.Error())
	}
	return of.String(), defaultPath, nil
}

// mount adds a mount, and returns its number, or rootMount.
func (s *Set) mount(ctx context.Context, w *work.Exec, m *pb.Mount) (int, error) {
	var root solver.Ref
	if m.ResultID != "" {
		var err error
		if root, err = s.job.Root(ctx, m.ResultID); err != nil {
			return 0, fmt.Errorf("mount at %s: %w", m.Dest, err)
		}
	}
	if m.Dest == pb.RootMount {
		switch {
		case m.MountType != pb.MountType_BIND:
			return 0, status.Errorf(codes.InvalidArgument, "invalid mount type %s for %s", m.MountType, m.Dest)
		case m.Selector != "" && path.Clean(m.Selector) != "/":
			return 0, status.Errorf(codes.InvalidArgument, "a selector is not possible for %s", m.Dest)
		}
		w.In[0], w.Op.ReadOnly = root, m.Readonly
		return rootMount, nil
	}
	out := llb.Mount{Target: path.Join("/", m.Dest), ReadOnly: m.Readonly}
	if out.Target == "/" {
		return 0, status.Errorf(codes.InvalidArgument, "a mount at %q is not possible", m.Dest)
	}
	switch m.MountType {
	case pb.MountType_BIND:
		out.Type, out.Source, out.Input = llb.MountBind, path.Join("/", m.Selector), len(w.In)
		w.In = append(w.In, root)
	case pb.MountType_CACHE:
		out.Type, out.Source, out.Mode = llb.MountCache, path.Join("/", m.Selector), 0o755
		if m.CacheOpt == nil || m.CacheOpt.ID == "" {
			return 0, status.Errorf(codes.InvalidArgument, "the cache mount at %s has no id", m.Dest)
		}
		out.CacheID = m.CacheOpt.ID
		sharing, ok := sharings[m.CacheOpt.Sharing]
		if !ok {
			return 0, status.Errorf(codes.InvalidArgument, "invalid cache sharing option %d", m.CacheOpt.Sharing)
		}
		out.Sharing = sharing
		if m.ResultID != "" {
			out.Input = len(w.In)
			w.In = append(w.In, root)
		}
	case pb.MountType_TMPFS:
		out.Type = llb.MountTmpfs
		if size := m.TmpfsOpt.GetSize(); size < 0 {
			return 0, status.Errorf(codes.InvalidArgument, "the size of the file system at %s is negative", m.Dest)
		} else if size > 0 {
			out.Size = size
		}
	case pb.MountType_SECRET:
		o := m.SecretOpt
		if o == nil || o.ID == "" {
			return 0, status.Errorf(codes.InvalidArgument, "the secret at %s has no id", m.Dest)
		}
		out.Type, out.ID, out.Required = llb.MountSecret, o.ID, !o.Optional
		out.Mode, out.UID, out.GID = o.Mode&0o777, int(o.Uid), int(o.Gid)
	case pb.MountType_SSH:
		o := m.SSHOpt
		if o == nil {
			return 0, status.Errorf(codes.InvalidArgument, "SSH mount %q requires options", m.Dest)
		}
		out.Type, out.ID, out.Required = llb.MountSSH, o.ID, !o.Optional
		if out.ID == "" {
			out.ID = "default"
		}
		out.Mode, out.UID, out.GID = o.Mode&0o777, int(o.Uid), int(o.Gid)
	default:
		return 0, &MountTypeError{m.Dest, m.MountType}
	}
	w.Op.Mounts = append(w.Op.Mounts, out)
	return len(w.Op.Mounts) - 1, nil
}

// MountTypeError is a mount of a type that this version of BuildKit's API does not have.
type MountTypeError struct {
	Dest string
	Type pb.MountType
}

func (e *MountTypeError) Error() string {
	return fmt.Sprintf("mount at %s: there is no mount of type %d: a container can have mounts of the types %s, %s, %s, %s and %s",
		e.Dest, e.Type, pb.MountType_BIND, pb.MountType_CACHE, pb.MountType_TMPFS, pb.MountType_SECRET, pb.MountType_SSH)
}

// GRPCStatus returns what the client gets.
func (e *MountTypeError) GRPCStatus() *status.Status {
	return status.New(codes.InvalidArgument, e.Error())
}

var sharings = map[pb.CacheSharingOpt]llb.Sharing{
	pb.CacheSharingOpt_SHARED: llb.SharingShared, pb.CacheSharingOpt_PRIVATE: llb.SharingPrivate, pb.CacheSharingOpt_LOCKED: llb.SharingLocked,
}

// security returns how a process is confined.
func security(m pb.SecurityMode) (llb.Security, error) {
	switch m {
	case pb.SecurityMode_SANDBOX:
		return llb.SecuritySandbox, nil
	case pb.SecurityMode_INSECURE:
		return llb.SecurityInsecure, nil
	}
	return "", fmt.Errorf("invalid security mode %d", m)
}

// errNoArgs is of a process without a program.
var errNoArgs = errors.New("a process needs a program")
