package daemon

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	controlapi "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/daemon/asked"
	"github.com/kilnbuild/kiln/daemon/attrs"
	"github.com/kilnbuild/kiln/daemon/directories"
	"github.com/kilnbuild/kiln/daemon/status"
	"github.com/kilnbuild/kiln/daemon/subrequest"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/store"
)

// Frontends run frontends that are images for builds of this process's own command line. A build stays what it is: what a frontend asks of
// its client is answered from the build's own contexts, without a session, and what it makes becomes the product of the build.
type Frontends struct{ server *Server }

// NewFrontends returns Frontends for a Builder, which keeps what it builds in root. log is told what the user should know.
func NewFrontends(b *build.Builder, root *store.Root, log func(text string)) (*Frontends, error) {
	work, err := root.Work()
	if err != nil {
		return nil, err
	}
	return &Frontends{&Server{config: Config{Builder: b, Root: root, Log: log}, tmp: work.Scratch.Path(), requests: asked.NewResults()}}, nil
}

// local is what a build of a command line has in place of a client.
type local struct {
	*build.Foreign
	directories *directories.Directories
	// failed are errors of steps by the digests that they have for a frontend, to be returned in place of what it makes of them.
	failed map[string]error
}

// Run implements build.Frontends.
func (f *Frontends) Run(ctx context.Context, foreign *build.Foreign) (*build.Product, error) {
	whole, err := foreign.Contexts(ctx)
	if err != nil {
		return nil, err
	}
	d := directories.New(whole.Trees)
	foreign.Job.Provide(d, whole.Layouts)
	id := subrequest.ID(foreign.Request.Call)
	b := &buildJob{
		server: f.server, cancel: func(error) {}, job: foreign.Job, ctx: ctx, log: status.NewLog(f.server.tmp),
		request: &controlapi.SolveRequest{
			Ref: newID(), Session: newID(), Frontend: frontendGateway, FrontendAttrs: attrs.Foreign(foreign, whole, id), Entitlements: foreign.Allow,
		},
		ready: make(chan struct{}), over: make(chan struct{}), sources: map[string]*pb.SourceInfo{},
	}
	defer b.log.Release()
	b.made = f.server.requests.Begin("", b.request.Frontend, b.request.FrontendAttrs, nil)
	defer b.made.Close()
	close(b.ready)
	b.held.refs, b.held.local = map[string]*ref{}, &local{foreign, d, map[string]error{}}
	made, err := b.frontend(ctx, b.made.Root, nil)
	b.finished()
	if err != nil {
		return nil, b.returned(err)
	}
	if id != "" {
		if err := subrequest.Read(foreign.Request.Call, made.metadata, foreign.Result); err != nil {
			return nil, b.returned(err)
		}
		return nil, nil
	}
	p, err := b.product(made)
	if err != nil {
		return nil, err
	}
	if len(p.Images) == 0 { // an image without layers, as for a client
		if err := made.add(p, nil, "", nil); err != nil {
			return nil, err
		}
	}
	if p.Epoch == nil {
		if n, err := strconv.ParseInt(foreign.Request.Target.Args[argEpoch], 10, 64); err == nil {
			p.Epoch = &n
		}
	}
	p.API = b.described(made)
	return p, nil
}

// argEpoch is the build argument with the time of what is built, which frontends need not say themselves.
const argEpoch = "SOURCE_DATE_EPOCH"

// note keeps the error of a step, which a frontend is told.
func (b *buildJob) note(err error) {
	step, ok := errors.AsType[*solver.VertexError](err)
	if b.held.local == nil || !ok {
		return
	}
	names := append(b.digests(step.Vertex.Digest()), step.Vertex.Digest().String())
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, name := range names {
		if len(b.held.local.failed) < maxFailed {
			b.held.local.failed[name] = err
		}
	}
}

// returned is the error of a frontend as the command line shows it: that of a step which failed, or else with a line of the Dockerfile.
func (b *buildJob) returned(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	if step, ok := errors.AsType[*errdefs.VertexError](err); ok {
		b.mu.Lock()
		failed := b.held.local.failed[step.Digest]
		b.mu.Unlock()
		if failed != nil {
			return failed
		}
	}
	at := *b.held.local.Line
	at.Msg, at.Err = fmt.Sprintf("frontend %s: %v", b.held.local.Syntax.Image, err), err
	for _, s := range errdefs.Sources(err) {
		if len(s.Ranges) > 0 {
			at.File, at.Line = s.Info.GetFilename(), int(s.Ranges[0].GetStart().GetLine())
			at.EndLine = max(at.Line, int(s.Ranges[len(s.Ranges)-1].GetEnd().GetLine()))
		}
	}
	return &at
}

// warned tells people of a warning that a frontend has sent.
func (b *buildJob) warned(req *gateway.WarnRequest) {
	if l := b.held.local; l != nil {
		l.Warn(status.Warning(req, l.Result.DockerfileName))
	}
}
