package daemon

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	pbgateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/daemon/asked"
	"github.com/kilnbuild/kiln/daemon/gateway"
	"github.com/kilnbuild/kiln/llb"
)

// Attributes of requests for a frontend that is an image.
const (
	attrSource  = "source"
	attrCommand = "cmdline"
	attrDevel   = "gateway-devel"
	// attrContext begins those of named contexts.
	attrContext = "context:"
)

// imageName matches what can be the name of an image or of a named context, and nothing that means more in a Dockerfile.
var imageName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$`)

// gateway has a frontend that is the program of an image make a result.
func (b *buildJob) gateway(ctx context.Context, all map[string]string, inputs map[string]*pb.Definition) (*result, error) {
	if _, ok := all[attrDevel]; ok {
		return nil, status.Error(codes.InvalidArgument, "development gateway is no longer supported")
	}
	name := all[attrSource]
	if name == "" {
		return nil, status.Error(codes.InvalidArgument, "no source specified for gateway")
	}
	f, err := b.frontendImage(ctx, name, all)
	if err != nil {
		return nil, err
	}
	f.Options, f.Inputs, f.Session, f.NoNetwork = all, len(inputs) > 0, b.request.Session, b.held.local != nil
	f.Workers = []gateway.Worker{gateway.WorkerOf(b.server.worker())}

	leave, err := b.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	own := b.newBridge(inputs)
	own.cgroupParent = all[asked.CgroupParent]
	defer own.containers.Close()
	err = gateway.Run(ctx, b, f, gateway.Bridge{
		Register: func(g grpc.ServiceRegistrar) {
			pbgateway.RegisterLLBBridgeServer(g, &bridges{Server: b.server, only: own})
		},
		Returned: own.returned, Panicked: b.server.panicked,
	})
	own.mu.Lock()
	defer own.mu.Unlock()
	switch {
	case own.err != nil:
		return nil, own.err // which says more than how its program has ended
	case err != nil:
		return nil, err
	case own.result == nil:
		return nil, &gateway.Error{Name: name, Err: errNoResult}
	}
	return own.result, nil
}

// errNoResult is of a frontend that ended without a result.
var errNoResult = status.Error(codes.Unknown, "no result for incomplete build")

// frontendImage returns the image of a frontend. Like a FROM its name can stand for a named context.
func (b *buildJob) frontendImage(ctx context.Context, name string, all map[string]string) (*gateway.Frontend, error) {
	if !imageName.MatchString(name) || strings.EqualFold(name, "scratch") {
		return nil, status.Errorf(codes.InvalidArgument, "%q cannot be the image of a frontend", name)
	}
	r := &build.Request{
		Source: contexts.Source{Given: &contexts.Given{Name: "frontend", Text: []byte("FROM " + name + "\n")}, Named: map[string]string{}},
		Target: build.Target{Platforms: []llb.Platform{llb.Host()}},
	}
	for attr, value := range all {
		if context, ok := strings.CutPrefix(attr, attrContext); ok {
			r.Source.Named[context] = value
		}
	}
	p, err := b.job.Lower(ctx, r, &build.Result{})
	if err != nil {
		return nil, fmt.Errorf("frontend %s: %w", name, err)
	}
	img := p.Images[0]
	roots, err := b.job.Solve(ctx, img.Root)
	if err != nil {
		return nil, err
	}
	f := &gateway.Frontend{Name: name, Root: roots[0], Platform: img.Platform, Config: &img.Config}
	if op, ok := img.Root.Vertex.Op().(llb.Image); ok {
		f.Digest = op.Digest
	}
	return f, nil
}
