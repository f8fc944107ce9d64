package daemon

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/daemon/apierr"
	"github.com/kilnbuild/kiln/daemon/asked"
	"github.com/kilnbuild/kiln/daemon/attrs"
	"github.com/kilnbuild/kiln/daemon/client"
	"github.com/kilnbuild/kiln/daemon/directories"
	"github.com/kilnbuild/kiln/daemon/policies"
	"github.com/kilnbuild/kiln/daemon/records"
	"github.com/kilnbuild/kiln/daemon/returned"
	log "github.com/kilnbuild/kiln/daemon/status"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/sourcepolicy"
	"github.com/kilnbuild/kiln/llb"
)

// buildJob is one request for a build: a job, and what its client makes of it by LLBBridge.
type buildJob struct {
	server  *Server
	request *controlapi.SolveRequest
	// user is who asked for it, and alone may use it: see client.User.
	user   string
	cancel context.CancelCauseFunc
	record *records.Build
	// statements are what the record says of how the images were made.
	statements []records.Attestation
	log        *log.Log
	client     *client.Client

	// made is what frontends have made for the build.
	made *asked.Build

	// job and its context are set before ready is closed, and over is closed when nothing may use them any more.
	job         *build.Job
	ctx         context.Context
	ready, over chan struct{}
	// policy is the source policy; nil for none.
	policy *sourcepolicy.Policy
	// using are the requests by LLBBridge that use the job.
	using sync.WaitGroup

	mu   sync.Mutex
	held held
	// sources are the Dockerfiles of the build, by the names that errors call them.
	sources map[string]*pb.SourceInfo
	// own is what the client itself makes of the build.
	own *bridge
	// caches are those that are exported to directories of the client.
	caches []*client.Cache
}

// provides returns what frontends are given.
func (b *buildJob) provides() directories.Provider {
	if b.held.local != nil {
		return b.held.local.directories
	}
	return b.client
}

// Frontends that are built in.
const (
	frontendDockerfile = "dockerfile.v0"
	frontendGateway    = "gateway.v0"
)

// failure returns an error of the build as its client is to get it.
func (b *buildJob) failure(err error) error {
	b.note(err)
	shown := apierr.Build{Source: b.source, Digests: b.digests, Located: b.located, Failed: b.left}
	return shown.Error(err)
}

// source returns a Dockerfile of the build by the name that errors call it; nil for none.
func (b *buildJob) source(name string) *pb.SourceInfo {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sources[name]
}

// read notes a Dockerfile, for errors and warnings to quote; from makes the directory that it is in, and is empty if that is not known.
func (b *buildJob) read(name string, text []byte, from *pb.Definition) *pb.SourceInfo {
	if known := b.source(name); known != nil && bytes.Equal(known.Data, text) {
		return known
	}
	info := &pb.SourceInfo{Filename: name, Data: text, Language: apierr.Language, Definition: from}
	b.log.Source(info)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sources[name] = info
	return info
}

// run does the build. The result is nil for one that did not get far.
func (b *buildJob) run(ctx context.Context) (*build.Result, error) {
	stream := events.New(b.log)
	defer stream.Close()
	b.made = b.server.requests.Begin(b.user, b.request.Frontend, b.request.FrontendAttrs, b.request.FrontendInputs)
	b.made.Session = b.request.Session
	defer b.made.Close()
	b.client = client.New(client.Config{
		Sessions: b.server.sessions, User: b.user, Root: b.server.config.Root.Dir(), Tmp: b.server.tmp,
		Limit: b.server.config.Root.Archive, Warn: stream.Warn,
	}, b.request.Session)
	defer b.client.Close() // what is lost is sent again
	o, request, err := b.options()
	if err != nil {
		return nil, err
	}
	if b.job, err = b.server.config.Builder.Begin(o, stream); err != nil {
		return nil, err
	}
	return b.job.Do(ctx, request, func(ctx context.Context, res *build.Result) error {
		b.ctx = ctx
		close(b.ready)
		made, err := b.make(ctx)
		if err == nil {
			err = b.export(ctx, made, res)
		}
		b.own.containers.Close()
		b.finished()
		return err
	})
}

// options returns what the job is to do with the result, and how the build is called in the history.
func (b *buildJob) options() (o build.Options, r *build.Request, err error) {
	req := b.request
	want, err := attrs.ReadBuild(req.FrontendAttrs)
	if err != nil {
		return o, nil, err
	}
	o.Debug, o.Later = b.server.config.Debug, true
	o.Export.Attest = want.Attest
	o.Run.Request.Limits = want.Limits
	o.Cache.Pull, o.Cache.AskFirst = want.Pull == "pull", want.Pull == ""
	o.Client.Secrets, o.Client.Agents, o.Client.Locals, o.Client.Stores = b.client, b.client, b.client, b.client
	o.Client.Uploads = b.client
	o.Client.Credentials, o.Client.User = b.client, b.user
	if o.Pins.Policy, err = policies.Read(req.SourcePolicy); err != nil {
		return o, nil, err
	}
	b.policy = o.Pins.Policy
	if req.SourcePolicySession != "" {
		if req.SourcePolicySession != req.Session {
			return o, nil, status.Error(codes.InvalidArgument, "the session of the source policy is not that of the build")
		}
		// What is opened with the context of a request would end with it.
		ask := policies.Client{Check: b.client.CheckPolicy, Resolve: b.unadmitted}
		o.Pins.Ask = func(s sourcepolicy.Source, platform string, left *int) (sourcepolicy.Source, bool, error) {
			return ask.Ask(b.ctx, s, platform, left)
		}
	}
	if o.Client.Allow, err = b.server.entitled(req.Entitlements); err != nil {
		return o, nil, err
	}
	if n := len(exporters(req)); n > maxExporters {
		return o, nil, full("exporters", maxExporters)
	}
	for i, e := range exporters(req) {
		attrs.Date(e, req.FrontendAttrs)
		out, err := attrs.Output(e.Type, e.Attrs, b.client.Receiver(i), b.client.Warn)
		if err != nil {
			return o, nil, err
		}
		o.Export.Outputs = append(o.Export.Outputs, out)
	}
	if len(o.Export.Outputs) == 0 {
		o.Export.Outputs = []build.Output{{Type: build.OutputCacheOnly}}
		o.Export.Attest.Provenance, o.Export.Attest.SBOM = nil, nil
	}
	if o.Cache.From, o.Cache.To, err = b.cacheSpecs(req.Cache); err != nil {
		return o, nil, err
	}
	return o, &build.Request{Target: build.Target{Stage: req.FrontendAttrs["target"]}, Unrecorded: req.Internal}, nil
}

// exporters returns what a request wants to be done with the result.
func exporters(req *controlapi.SolveRequest) []*controlapi.Exporter {
	if len(req.Exporters) == 0 && req.ExporterDeprecated != "" {
		return []*controlapi.Exporter{{Type: req.ExporterDeprecated, Attrs: req.ExporterAttrsDeprecated}}
	}
	return req.Exporters
}

// make makes what the request asks for, as far as it can be done without solving: what a frontend returns, or what the client does.
func (b *buildJob) make(ctx context.Context) (*result, error) {
	req := b.request
	switch {
	case req.Frontend == "" && req.Definition != nil:
		return b.definition(ctx, req.Definition)
	case req.Frontend == "":
		return b.own.wait(ctx)
	}
	return b.frontend(ctx, b.made.Root, req.FrontendInputs)
}

// frontend has a frontend make a result.
func (b *buildJob) frontend(ctx context.Context, by *asked.Request, inputs map[string]*pb.Definition) (*result, error) {
	if by.Frontend == frontendGateway && by.Attrs[attrSource] == frontendDockerfile { // as BuildKit, which has it built in as well
		attrs := maps.Clone(by.Attrs)
		delete(attrs, attrSource)
		by = by.As(frontendDockerfile, attrs)
	}
	res, err := b.call(ctx, by, inputs)
	if err != nil {
		return nil, err
	}
	for _, r := range res.all() {
		if r.asked == nil {
			r.asked = by
		}
	}
	return res, nil
}

// call calls a frontend.
func (b *buildJob) call(ctx context.Context, by *asked.Request, inputs map[string]*pb.Definition) (*result, error) {
	switch by.Frontend {
	case frontendDockerfile:
		return b.dockerfile(ctx, by, inputs)
	case frontendGateway:
		return b.gateway(ctx, by.Attrs, inputs)
	}
	return nil, status.Errorf(codes.InvalidArgument, "invalid frontend: %s", by.Frontend)
}

// export does with a result what the request asks for.
func (b *buildJob) export(ctx context.Context, made *result, res *build.Result) error {
	p, err := b.product(made)
	if err != nil {
		return err
	}
	if made != nil && (made.single != nil || made.metadata[returned.KeyPlatforms] != nil) {
		var have []llb.Platform
		for _, img := range p.Images {
			have = append(have, img.Platform.Normalize())
		}
		if text := returned.Mismatch(b.request.FrontendAttrs["platform"], have, p.Given.ByPlatform); text != "" {
			b.client.Warn(text)
		}
	}
	if len(p.Images) == 0 {
		if made == nil || len(exporters(b.request)) == 0 {
			return nil
		}
		if err := made.add(p, nil, "", nil); err != nil { // an image without layers
			return err
		}
	}
	p.API = b.described(made)
	if made != nil {
		b.mu.Lock()
		b.held.returned = made.metadata
		b.mu.Unlock()
	}
	if err := b.findExporters(ctx, made); err != nil {
		return err
	}
	if err := b.job.Export(ctx, p, res); err != nil {
		return err
	}
	b.describe(p)
	if b.request.EnableSessionExporter {
		return b.client.Exported(ctx, b.response(res))
	}
	return nil
}

// response returns what the client is told of the result.
func (b *buildJob) response(res *build.Result) map[string]string {
	about := res.Response()
	b.mu.Lock()
	defer b.mu.Unlock()
	for name, value := range b.held.returned {
		if strings.HasPrefix(name, prefixReturned) {
			about[name] = string(value)
		}
	}
	return about
}

// findExporters adds what the client wants to be done with a result, now that there is one.
func (b *buildJob) findExporters(ctx context.Context, made *result) error {
	if !b.request.EnableSessionExporter || made == nil {
		return nil
	}
	var refs []string
	if made.single != nil {
		refs = append(refs, made.single.id)
	}
	for _, name := range slices.Sorted(maps.Keys(made.refs)) {
		refs = append(refs, made.refs[name].id)
	}
	found, err := b.client.Exporters(ctx, made.metadata, refs)
	if err != nil {
		return err
	}
	var all []build.Output
	for i, e := range found {
		out, err := attrs.Output(e.Type, e.Attrs, b.client.Receiver(len(exporters(b.request))+i), b.client.Warn)
		if err != nil {
			return err
		}
		all = append(all, out)
	}
	return b.job.AddOutputs(all)
}

// use begins the use of the job by a request of the client. It waits until the job is there. End must be called if there is no error.
func (b *buildJob) use(ctx context.Context) error {
	select {
	case <-b.ready:
	case <-b.over:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.over:
		return status.Errorf(codes.NotFound, "the build %s has ended", b.request.Ref)
	default:
		if b.held.requests++; b.held.requests > maxRequests {
			return full("requests", maxRequests)
		}
		b.using.Add(1)
		return nil
	}
}

// finished waits until no request of the client uses the job, and lets none begin.
func (b *buildJob) finished() {
	b.mu.Lock()
	select {
	case <-b.over:
	default:
		close(b.over)
	}
	b.mu.Unlock()
	b.using.Wait()
}

// newID returns an ID that cannot be guessed.
func newID() string { return fmt.Sprintf("r%s", rand.Text()) }
