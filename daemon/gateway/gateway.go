// Package gateway runs frontends that are programs of images: each in a container of its own, from which it makes requests to its build by
// LLBBridge, over its standard input and output. A frontend is hostile, as any program of an image is.
package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	apitypes "github.com/moby/buildkit/api/types"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/apicaps"
	"github.com/moby/buildkit/util/grpcerrors"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/kilnbuild/kiln/daemon/apierr"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/sandbox"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/container"
	"github.com/kilnbuild/kiln/solver/execute"
	"github.com/kilnbuild/kiln/solver/work"
)

// Frontend is an image whose program is a frontend.
type Frontend struct {
	// Name is the image's, for errors.
	Name string
	// Root is the root file system of the image, for Platform, and Config its configuration.
	Root     solver.Ref
	Platform llb.Platform
	Config   *dockerspec.DockerOCIImageConfig
	// Digest is that of the image's manifest; "" if it is no image of a registry.
	Digest string
	// Definition is the image as a client would have it, for the frontend itself to read; nil for none.
	Definition *pb.Definition
	// Options are the attributes of the request, and Inputs says that there are inputs as well.
	Options map[string]string
	Inputs  bool
	// Session is that of the client.
	Session string
	Workers []Worker
	// NoNetwork gives it no network, whatever its image says.
	NoNetwork bool
}

// Worker is a worker as frontends are told of it.
type Worker struct {
	ID        string             `json:"id"`
	Labels    map[string]string  `json:"labels"`
	Platforms []ocispec.Platform `json:"platforms"`
}

// WorkerOf returns a worker as frontends are told of it.
func WorkerOf(w *apitypes.WorkerRecord) Worker {
	out := Worker{ID: w.ID, Labels: w.Labels}
	for _, p := range w.Platforms {
		out.Platforms = append(out.Platforms, ocispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant,
			OSVersion: p.OSVersion})
	}
	return out
}

// Containers prepares containers. It is the build.
type Containers interface {
	Container(ctx context.Context, w work.Exec) (*container.Container, error)
}

// Bridge is what a frontend makes requests to.
type Bridge struct {
	// Register registers the services, but for that of health.
	Register func(grpc.ServiceRegistrar)
	// Returned is closed when the frontend has returned its result.
	Returned <-chan struct{}
	// Panicked is told of panics in requests; it may be nil.
	Panicked func(value any, stack []byte)
}

// Limits of frontends.
const (
	// maxSilent is how long a frontend may make no request while none of it is being worked on, and maxExit how long it may run when it has
	// returned its result, or broken the connection.
	maxSilent = 10 * time.Minute
	maxExit   = 10 * time.Second
	// maxMessage bounds a message of it, in bytes, and maxSaid what is kept of what it writes to standard error.
	maxMessage = 16 << 20
	maxSaid    = 4 << 10
	// maxRequests bounds its requests at the same time.
	maxRequests = 1000
)

// Labels of images of frontends, and the attribute that asks for capabilities.
const (
	labelNoNetwork = "moby.buildkit.frontend.network.none"
	labelCaps      = "moby.buildkit.frontend.caps"
	attrCaps       = "frontend.caps"
	capInputs      = "moby.buildkit.frontend.inputs"
)

// definitionFile is where a frontend finds its own image.
const definitionFile = "/run/config/buildkit/metadata/frontend.bin"

// withInputs are the images of frontends that take inputs and do not say so, as BuildKit knows them.
var withInputs = []string{
	"sha256:9ac1c43a60e31dca741a6fe8314130a9cd4c4db0311fbbc636ff992ef60ae76d", // docker/dockerfile:1.1.6
	"sha256:080bd74d8778f83e7b670de193362d8c593c8b14f5c8fb919d28ee8feda0d069", // docker/dockerfile:1.1.7
	"sha256:60543a9d92b92af5088fb2938fb09b2072684af8384399e153e137fe081f8ab4", // docker/dockerfile:1.1.6-experimental
	"sha256:de85b2f3a3e8a2f7fe48e8e84a65f6fdd5cd5183afa6412fff9caa6871649c44", // docker/dockerfile:1.1.7-experimental
}

// Error is a frontend that failed otherwise than by an error that it returned.
type Error struct {
	// Name is that of its image.
	Name string
	Err  error
	// Said is the end of what it wrote to standard error.
	Said string
}

func (e *Error) Error() string {
	s := fmt.Sprintf("frontend %s: %v", e.Name, e.Err)
	if e.Said != "" {
		s += ": " + e.Said
	}
	return s
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// SilentError says that a frontend was ended since it made no requests, or did not end.
type SilentError struct {
	After time.Duration
	// Returned says that it had returned its result, or broken the connection.
	Returned bool
}

func (e *SilentError) Error() string {
	if e.Returned {
		return fmt.Sprintf("it was ended because it ran for %v after its last request", e.After)
	}
	return fmt.Sprintf("it was ended because it made no request for %v", e.After)
}

// Run runs a frontend to its end. What it returns is the bridge's. The error says why it did not end well, as an *Error, or what it lacks.
func Run(ctx context.Context, build Containers, f *Frontend, b Bridge) error {
	if err := f.check(); err != nil {
		return err
	}
	op := llb.Exec{Network: llb.NetworkDefault}
	if none, _ := strconv.ParseBool(f.Config.Labels[labelNoNetwork]); none || f.NoNetwork { // what is no boolean is false, as for BuildKit
		op.Network = llb.NetworkNone
	}
	c, err := build.Container(ctx, work.Exec{Op: op, Platform: f.Platform.String(), In: []solver.Ref{f.Root}})
	if err != nil {
		return &Error{Name: f.Name, Err: err}
	}
	defer func() { _ = c.Close() }() // how it ended is known
	if f.Definition != nil {
		data, err := f.Definition.MarshalVT()
		if err == nil {
			err = c.AddFile(definitionFile, data)
		}
		if err != nil {
			return &Error{Name: f.Name, Err: err}
		}
	}
	said := &tail{}
	if err := f.run(ctx, c, b, said); err != nil {
		return &Error{f.Name, err, said.String()}
	}
	return nil
}

// check returns an error if the frontend cannot do what it is asked for.
func (f *Frontend) check() error {
	has := list(f.Config.Labels[labelCaps])
	if slices.Contains(withInputs, f.Digest) {
		has = append(has, capInputs)
	}
	asked := list(f.Options[attrCaps])
	if f.Inputs {
		asked = append(asked, capInputs)
	}
	for _, name := range asked {
		if !slices.Contains(has, name) {
			return grpcerrors.WrapCode(errdefs.NewUnsupportedFrontendCapError(name), codes.Unimplemented)
		}
	}
	return nil
}

// list returns the names of capabilities, "a,b+option".
func list(text string) (names []string) {
	for name := range strings.SplitSeq(text, ",") {
		if name, _, _ = strings.Cut(name, "+"); name != "" {
			names = append(names, name)
		}
	}
	return names
}

// process returns what the frontend is started as.
func (f *Frontend) process() (container.Process, error) {
	workers, err := json.Marshal(f.Workers)
	if err != nil {
		return container.Process{}, fmt.Errorf("encode the workers: %w", err)
	}
	p := container.Process{Args: []string{"/run"}, Env: slices.Clone(f.Config.Env), Cwd: "/", Security: llb.SecuritySandbox}
	if len(f.Config.Entrypoint) > 0 {
		p.Args = f.Config.Entrypoint
	}
	if f.Config.WorkingDir != "" {
		p.Cwd = f.Config.WorkingDir
	}
	for i, name := range slices.Sorted(maps.Keys(f.Options)) {
		p.Env = append(p.Env, fmt.Sprintf("BUILDKIT_FRONTEND_OPT_%d=%s=%s", i, name, f.Options[name]))
	}
	p.Env = append(p.Env, "BUILDKIT_SESSION_ID="+f.Session, "BUILDKIT_WORKERS="+string(workers),
		"BUILDKIT_EXPORTEDPRODUCT="+apicaps.ExportedProduct)
	return p, nil
}

// run starts the frontend, serves it, and waits for its end.
func (f *Frontend) run(ctx context.Context, c *container.Container, b Bridge, said *tail) error {
	p, err := f.process()
	if err != nil {
		return err
	}
	conn, stdin, stdout, err := newConn()
	if err != nil {
		return err
	}
	defer stdin.Close()
	p.Stdio = sandbox.Stdio{Stdin: stdin, Stdout: stdout, Stderr: said}
	running, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	seen := newActivity()
	g := grpc.NewServer(
		grpc.ChainUnaryInterceptor(seen.unary, apierr.Unary(b.Panicked)), grpc.ChainStreamInterceptor(seen.stream, apierr.Stream(b.Panicked)),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage), grpc.MaxConcurrentStreams(maxRequests),
	)
	b.Register(g)
	grpc_health_v1.RegisterHealthServer(g, health.NewServer())
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = g.Serve(&listener{conn: conn, closed: conn.closed}) // which ends with the connection
	}()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if err := seen.watch(running, b.Returned, conn.closed); err != nil {
			cancel(err)
		}
	}()
	defer func() {
		cancel(nil)
		conn.Close()
		g.Stop()
		<-served
		<-watched
	}()

	wait, err := c.Start(running, p)
	if err != nil {
		return err
	}
	status, err := wait()
	stdout.Close() // and what it has said last is read
	if late, ok := errors.AsType[*SilentError](err); ok && late.Returned && isClosed(b.Returned) {
		return nil // it has done what it was asked for
	}
	if err == nil && status.ExitCode != 0 {
		err = &execute.ExitError{Args: p.Args, Status: status}
	}
	return err
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// tail keeps the end of what is written to it, as a text.
type tail struct{ data []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.data = append(t.data, p[max(0, len(p)-maxSaid):]...)
	t.data = t.data[max(0, len(t.data)-maxSaid):]
	return len(p), nil
}

// String is called when nothing writes any more.
func (t *tail) String() string { return strings.TrimSpace(strings.ToValidUTF8(string(t.data), "?")) }
