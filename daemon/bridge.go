package daemon

import (
	"context"
	"maps"
	"slices"

	apitypes "github.com/moby/buildkit/api/types"
	"github.com/moby/buildkit/client/buildid"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/daemon/asked"
	"github.com/kilnbuild/kiln/daemon/client"
	"github.com/kilnbuild/kiln/daemon/containers"
	"github.com/kilnbuild/kiln/daemon/policies"
	"github.com/kilnbuild/kiln/daemon/trees"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver/files"
)

// bridges implement BuildKit's LLBBridge service: with it a client makes a result of its own while a build waits for it.
type bridges struct {
	gateway.UnimplementedLLBBridgeServer
	*Server
	// only is the bridge that is served, that of a frontend which is a process; nil serves those of all builds, which requests name.
	only *bridge
}

// bridge is what one client makes of a build by LLBBridge: the one that asked for the build, or a frontend that is a process.
type bridge struct {
	*buildJob
	// inputs are what a frontend is given.
	inputs     map[string]*pb.Definition
	containers *containers.Set
	// cgroupParent is what the client chose for the steps of a frontend that is a process: see mayUse.
	cgroupParent string

	// returned is closed when the client has returned a result or an error.
	returned chan struct{}
	result   *result
	err      error
}

// newBridge returns a bridge to a build. Its containers are to be closed before the job ends.
func (b *buildJob) newBridge(inputs map[string]*pb.Definition) *bridge {
	return &bridge{buildJob: b, inputs: inputs, containers: containers.New(b), returned: make(chan struct{})}
}

// build returns the build that a request is about, whose job stays until end is called. What is opened with the context stays until the
// build ends; before that the context ends only if the request does before end is called.
func (s *bridges) build(request context.Context) (ctx context.Context, b *bridge, end func(), err error) {
	if b = s.only; b == nil {
		id := buildid.FromIncomingContext(request)
		if id == "" {
			return nil, nil, nil, status.Error(codes.InvalidArgument, "no buildid found in context")
		}
		found, err := s.builds.wait(request, id, client.User(request))
		if err != nil {
			return nil, nil, nil, err
		}
		b = found.own
	}
	if err := b.use(request); err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(b.ctx)
	stop := context.AfterFunc(request, func() { cancel(context.Cause(request)) })
	return ctx, b, func() {
		stop()
		b.using.Done()
	}, nil
}

// Ping says what there is.
func (s *bridges) Ping(ctx context.Context, _ *gateway.PingRequest) (*gateway.PongResponse, error) {
	_, _, end, err := s.build(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	return &gateway.PongResponse{
		FrontendAPICaps: gateway.Caps.All(), LLBCaps: pb.Caps.All(), Workers: []*apitypes.WorkerRecord{s.worker()},
	}, nil
}

// Solve has a frontend make a result, or decodes a definition. Nothing runs yet, unless the request wants that.
func (s *bridges) Solve(ctx context.Context, req *gateway.SolveRequest) (*gateway.SolveResponse, error) {
	ctx, b, end, err := s.build(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if err := b.room(1); err != nil {
		return nil, err
	}
	if err := b.importing(imported(req)); err != nil {
		return nil, b.failure(err)
	}
	if err := b.takeAttrs(req.FrontendOpt); err != nil {
		return nil, err
	}
	if s.only != nil {
		if err := b.mayUse(req.FrontendOpt[asked.CgroupParent]); err != nil {
			return nil, err
		}
	}
	more, err := policies.ReadAll(req.SourcePolicies)
	if err != nil {
		return nil, b.failure(err)
	}
	var res *result
	switch {
	case req.Frontend != "" && len(more) > 0:
		err = status.Error(codes.Unimplemented, "source policies of one request are for definitions, and not for frontends")
	case req.Frontend != "":
		res, err = b.frontend(ctx, b.made.Request(req.Frontend, req.FrontendOpt, req.FrontendInputs), req.FrontendInputs)
	case req.Definition != nil && len(req.Definition.Def) > 0:
		res, err = b.definition(ctx, req.Definition, more...)
	default:
		res = &result{}
	}
	if err == nil && s.only != nil {
		err = b.confined(res)
	}
	if err != nil {
		return nil, b.failure(err)
	}
	if req.Evaluate {
		for _, r := range res.all() {
			if _, err := r.solve(ctx, b.job); err != nil {
				return nil, b.failure(err)
			}
		}
	}
	out, err := b.pb(res)
	if err != nil {
		return nil, b.failure(err)
	}
	return &gateway.SolveResponse{Result: out}, nil
}

// mayUse returns an error for a control group that a frontend chose for steps which is a process. It may name that of the client alone: any
// other could be that of a service of the machine, whose limits the steps would use up, or one outside of the limits of kilnd.
func (b *bridge) mayUse(parent string) error {
	if parent == "" || parent == b.cgroupParent {
		return nil
	}
	return status.Errorf(codes.PermissionDenied, "a frontend cannot choose the control group %.100q: the client can, with %s",
		parent, asked.CgroupParent)
}

// confined returns an error for a result with a step in a control group that a frontend which is a process may not use.
func (b *bridge) confined(res *result) error {
	for _, r := range res.all() {
		for v := range llb.Vertices([]llb.Output{r.root}) {
			if op, ok := v.Op().(llb.Exec); ok {
				if err := b.mayUse(op.CgroupParent); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// all returns the refs of a result.
func (res *result) all() []*ref {
	var all []*ref
	if res.single != nil {
		all = append(all, res.single)
	}
	for _, name := range slices.Sorted(maps.Keys(res.refs)) {
		if r := res.refs[name]; r != nil { // one that is empty
			all = append(all, r)
		}
	}
	return all
}

// Return gives the build the result that it waits for, or an error in its place.
func (s *bridges) Return(request context.Context, req *gateway.ReturnRequest) (*gateway.ReturnResponse, error) {
	_, b, end, err := s.build(request)
	if err != nil {
		return nil, err
	}
	defer end()
	if e := req.Error; e != nil {
		return &gateway.ReturnResponse{}, b.finish(nil, grpcerrors.FromGRPC(status.ErrorProto(e)))
	}
	if req.Result == nil {
		return nil, status.Error(codes.InvalidArgument, "result is required")
	}
	res := &result{metadata: req.Result.Metadata}
	ids := map[string]string{}
	switch r := req.Result.Result.(type) {
	case *gateway.Result_Ref:
		res.single, err = b.ref(r.Ref.GetId())
	case *gateway.Result_RefDeprecated:
		res.single, err = b.ref(r.RefDeprecated)
	case *gateway.Result_Refs:
		for name, one := range r.Refs.GetRefs() {
			ids[name] = one.GetId()
		}
	case *gateway.Result_RefsDeprecated:
		ids = r.RefsDeprecated.GetRefs()
	}
	if err != nil {
		return nil, err
	}
	for name, id := range ids {
		r, err := b.ref(id)
		if err != nil {
			return nil, err
		}
		if res.refs == nil {
			res.refs = map[string]*ref{}
		}
		res.refs[name] = r
	}
	if res.attested, err = b.attested(req.Result.Attestations); err != nil {
		return nil, err
	}
	return &gateway.ReturnResponse{}, b.finish(res, nil)
}

// finish ends the build's waiting for its client.
func (b *bridge) finish(res *result, failed error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.returned:
		return status.Error(codes.FailedPrecondition, "a result was returned already")
	default:
	}
	b.result, b.err = res, failed
	close(b.returned)
	return nil
}

// wait waits for what the client returns.
func (b *bridge) wait(ctx context.Context) (*result, error) {
	select {
	case <-b.returned:
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.result, b.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Inputs returns what the request gives to its frontend.
func (s *bridges) Inputs(request context.Context, _ *gateway.InputsRequest) (*gateway.InputsResponse, error) {
	_, b, end, err := s.build(request)
	if err != nil {
		return nil, err
	}
	defer end()
	return &gateway.InputsResponse{Definitions: b.inputs}, nil
}

// Evaluate makes a ref.
func (s *bridges) Evaluate(ctx context.Context, req *gateway.EvaluateRequest) (*gateway.EvaluateResponse, error) {
	ctx, b, end, err := s.build(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	r, err := b.ref(req.Ref)
	if err != nil || r == nil {
		return &gateway.EvaluateResponse{}, err
	}
	_, err = r.solve(ctx, b.job)
	return &gateway.EvaluateResponse{}, b.failure(err)
}

// tree returns the files of a ref, which can be read until the request ends.
func (s *bridges) tree(ctx context.Context, id string) (t layer.Tree, end func(), err error) {
	ctx, b, end, err := s.build(ctx)
	if err != nil {
		return nil, nil, err
	}
	r, err := b.ref(id)
	if err == nil && r == nil {
		err = status.Error(codes.InvalidArgument, "empty ref")
	}
	if err == nil {
		t, err = r.files(ctx, b.job)
		err = b.failure(err)
	}
	if err != nil {
		end()
		return nil, nil, err
	}
	return files.Until(ctx, t), end, nil
}

// of has f answer a request about the files of a ref.
func of[Request, Response any](s *bridges, ctx context.Context, id string, req Request,
	f func(layer.Tree, Request) (Response, error)) (resp Response, err error) {
	t, end, err := s.tree(ctx, id)
	if err != nil {
		return resp, err
	}
	defer end()
	return f(t, req)
}

// ReadFile returns bytes of a file.
func (s *bridges) ReadFile(ctx context.Context, req *gateway.ReadFileRequest) (*gateway.ReadFileResponse, error) {
	return of(s, ctx, req.Ref, req, trees.ReadFile)
}

// ReadDir lists a directory.
func (s *bridges) ReadDir(ctx context.Context, req *gateway.ReadDirRequest) (*gateway.ReadDirResponse, error) {
	return of(s, ctx, req.Ref, req, trees.ReadDir)
}

// StatFile describes a file.
func (s *bridges) StatFile(ctx context.Context, req *gateway.StatFileRequest) (*gateway.StatFileResponse, error) {
	return of(s, ctx, req.Ref, req, trees.StatFile)
}
