package daemon

import (
	"context"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/daemon/containers"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/container"
	"github.com/kilnbuild/kiln/solver/work"
)

// Root implements containers.Job.
func (b *buildJob) Root(ctx context.Context, id string) (solver.Ref, error) {
	r, err := b.ref(id)
	if err != nil {
		return solver.Ref{}, err
	}
	if r == nil {
		return solver.Ref{}, status.Error(codes.InvalidArgument, "empty ref")
	}
	root, err := r.solve(ctx, b.job)
	return root, b.failure(err)
}

// Container implements containers.Job.
func (b *buildJob) Container(ctx context.Context, w work.Exec) (*container.Container, error) {
	c, err := b.job.Container(ctx, w)
	return c, b.failure(err)
}

// in has f do a request with the containers of the bridge that it is about, in a context of the build.
func in[Request, Response any](s *bridges, request context.Context, req Request,
	f func(*containers.Set, context.Context, Request) (Response, error)) (resp Response, err error) {
	ctx, b, end, err := s.build(request)
	if err != nil {
		return resp, err
	}
	defer end()
	return f(b.containers, ctx, req)
}

// NewContainer makes a container of refs.
func (s *bridges) NewContainer(ctx context.Context, req *gateway.NewContainerRequest) (*gateway.NewContainerResponse, error) {
	return in(s, ctx, req, (*containers.Set).NewContainer)
}

// ReleaseContainer ends a container.
func (s *bridges) ReleaseContainer(ctx context.Context, req *gateway.ReleaseContainerRequest) (*gateway.ReleaseContainerResponse, error) {
	return in(s, ctx, req, (*containers.Set).ReleaseContainer)
}

// ReadFileContainer returns bytes of a file of a container.
func (s *bridges) ReadFileContainer(ctx context.Context, req *gateway.ReadFileRequest) (*gateway.ReadFileResponse, error) {
	return in(s, ctx, req, (*containers.Set).ReadFileContainer)
}

// ReadDirContainer lists a directory of a container.
func (s *bridges) ReadDirContainer(ctx context.Context, req *gateway.ReadDirRequest) (*gateway.ReadDirResponse, error) {
	return in(s, ctx, req, (*containers.Set).ReadDirContainer)
}

// StatFileContainer describes a file of a container.
func (s *bridges) StatFileContainer(ctx context.Context, req *gateway.StatFileRequest) (*gateway.StatFileResponse, error) {
	return in(s, ctx, req, (*containers.Set).StatFileContainer)
}

// ExecProcess runs processes in containers.
func (s *bridges) ExecProcess(stream gateway.LLBBridge_ExecProcessServer) error {
	_, b, end, err := s.build(stream.Context())
	if err != nil {
		return err
	}
	defer end()
	return b.containers.ExecProcess(stream)
}
