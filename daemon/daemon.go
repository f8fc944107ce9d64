// Package daemon serves BuildKit's API: clients of BuildKit, such as docker buildx, build with kiln through it. It turns requests into
// jobs of package build, and knows neither how a step runs nor how an image is made.
package daemon

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"

	content "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	controlapi "github.com/moby/buildkit/api/services/control"
	apitypes "github.com/moby/buildkit/api/types"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/daemon/apierr"
	"github.com/kilnbuild/kiln/daemon/asked"
	"github.com/kilnbuild/kiln/daemon/client"
	"github.com/kilnbuild/kiln/daemon/records"
	"github.com/kilnbuild/kiln/internal/share"
	"github.com/kilnbuild/kiln/internal/version"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/store"
)

// Config says how a Server works.
type Config struct {
	// Builder builds, and Root is where it keeps what it builds.
	Builder *build.Builder
	Root    *store.Root
	// Entitlements are what clients may ask for: "network.host", "security.insecure", "device".
	Entitlements []string
	// Labels are those of the one worker that there is.
	Labels map[string]string
	// ProvenanceEnv are further values for the provenance of builds, by their names.
	ProvenanceEnv map[string]any
	// Debug shows debug messages of builds.
	Debug bool
	// Log is told what the operator should know.
	Log func(text string)
}

// maxBuilds is how many builds a server works on at once; one user alone has half of them. Others wait.
const maxBuilds = 512

// Server serves BuildKit's API.
type Server struct {
	config Config
	// tmp is a directory of this process for what is unfinished.
	tmp      string
	sessions *client.Sessions
	records  *records.Records
	health   *health.Server
	builds   *builds
	places   *share.Places
	requests *asked.Results
	// draining is closed when no more builds are accepted.
	draining chan struct{}
	drain    sync.Once
	running  sync.WaitGroup
}

// New returns a server.
func New(c Config) (*Server, error) {
	work, err := c.Root.Work()
	if err != nil {
		return nil, err
	}
	sessions, err := client.NewSessions()
	if err != nil {
		return nil, err
	}
	warn := func(err error) { c.Log(err.Error()) }
	return &Server{
		records: records.New(work.History, work.Scratch.Path(), warn),
		config:  c, tmp: work.Scratch.Path(), sessions: sessions, health: health.NewServer(), builds: newBuilds(),
		places: share.New(maxBuilds), requests: asked.NewResults(), draining: make(chan struct{}),
	}, nil
}

// GRPC returns a gRPC server with all services, made with the options.
func (s *Server) GRPC(o ...grpc.ServerOption) *grpc.Server {
	o = append(o,
		grpc.UnaryInterceptor(apierr.Unary(s.panicked)), grpc.StreamInterceptor(apierr.Stream(s.panicked)),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
	)
	g := grpc.NewServer(o...)
	controlapi.RegisterControlServer(g, &control{Server: s})
	gateway.RegisterLLBBridgeServer(g, &bridges{Server: s})
	content.RegisterContentServer(g, contentserver.New(s.records.Content()))
	grpc_health_v1.RegisterHealthServer(g, s.health)
	s.records.RegisterTraceService(g)
	return g
}

// maxMessage bounds a message of the API in bytes, as BuildKit does.
const maxMessage = 16 << 20

// panicked tells the operator of a panic, which ends one request and no others.
func (s *Server) panicked(value any, stack []byte) {
	s.config.Log(fmt.Sprintf("internal error: %v\n%s", value, stack))
}

// Drain waits until all builds have ended, and lets none begin. When ctx ends, those that run are ended.
func (s *Server) Drain(ctx context.Context) {
	s.drain.Do(func() { close(s.draining) })
	s.health.Shutdown()
	stop := context.AfterFunc(ctx, func() { s.builds.cancel(errStopping) })
	defer stop()
	s.running.Wait()
}

// errStopping is why builds end that a server no longer waits for.
var errStopping = errors.New("kilnd is being stopped")

// worker describes the one worker.
func (s *Server) worker() *apitypes.WorkerRecord {
	host, _ := os.Hostname() // without one the root directory alone makes the id
	labels := map[string]string{
		"org.mobyproject.buildkit.worker.executor": "kiln", "org.mobyproject.buildkit.worker.hostname": host,
		"org.mobyproject.buildkit.worker.network": "host", "org.mobyproject.buildkit.worker.snapshotter": "kiln",
	}
	maps.Copy(labels, s.config.Labels)
	var devices []*apitypes.CDIDevice
	for _, d := range s.config.Builder.Devices() {
		devices = append(devices, &apitypes.CDIDevice{Name: d.Name, AutoAllow: d.AutoAllow})
	}
	return &apitypes.WorkerRecord{
		CDIDevices: devices,
		ID:         fmt.Sprintf("%x", sha256.Sum256([]byte(host+"\x00"+s.config.Root.Name())))[:25], Labels: labels,
		Platforms:       []*pb.Platform{platformPB(llb.Host())},
		BuildkitVersion: buildkitVersion(),
	}
}

func platformPB(p llb.Platform) *pb.Platform {
	return &pb.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion}
}

// APIVersion is the version of BuildKit whose API is served.
const APIVersion = "v0.34.2"

// dockerfileVersion is the version of the Dockerfile language that is built in.
const dockerfileVersion = "1.28.0"

func buildkitVersion() *apitypes.BuildkitVersion {
	return &apitypes.BuildkitVersion{Package: "github.com/kilnbuild/kiln", Version: APIVersion, DockerfileVersion: dockerfileVersion,
		Revision: "kiln-" + version.String()}
}

// entitled returns those entitlements that a request asks for. The error says which of them the server does not grant.
func (s *Server) entitled(asked []string) ([]string, error) {
	for _, e := range asked {
		name := e
		if len(e) > len(deviceEntitlement) && e[:len(deviceEntitlement)] == deviceEntitlement {
			name = "device"
		}
		if !slices.Contains(s.config.Entitlements, name) {
			return nil, status.Errorf(codes.PermissionDenied, "entitlement %s is not allowed: kilnd grants it with --allow-insecure-entitlement %s",
				e, name)
		}
	}
	return asked, nil
}

// deviceEntitlement begins the entitlement to one device.
const deviceEntitlement = "device="
