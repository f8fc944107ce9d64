package gateway

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pbgateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"

	"github.com/kilnbuild/kiln/internal/steptest"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/container"
	"github.com/kilnbuild/kiln/solver/execute"
	"github.com/kilnbuild/kiln/solver/session"
	"github.com/kilnbuild/kiln/solver/work"
)

// machine has a root file system with the frontend of testdata.
type machine struct {
	job  *execute.Job
	root solver.Ref
}

func (m *machine) Container(ctx context.Context, w work.Exec) (*container.Container, error) {
	return container.New(ctx, m.job, w)
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	steptest.Root(t)
	file := filepath.Join(t.TempDir(), "frontend")
	build := exec.Command("go", "build", "-o", file, "./testdata/frontend")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	program, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	steps := steptest.New(t, &session.Session{})
	return &machine{steps.Job, steps.Make(steptest.File("/frontend", string(program), "0755"))}
}

// bridge is a build that takes any result.
type bridge struct {
	pbgateway.UnimplementedLLBBridgeServer
	mu       sync.Mutex
	result   *pbgateway.Result
	returned chan struct{}
}

func (b *bridge) Ping(context.Context, *pbgateway.PingRequest) (*pbgateway.PongResponse, error) {
	return &pbgateway.PongResponse{}, nil
}

func (b *bridge) Return(_ context.Context, r *pbgateway.ReturnRequest) (*pbgateway.ReturnResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.result = r.Result
	close(b.returned)
	return &pbgateway.ReturnResponse{}, nil
}

// run runs the frontend, and returns what it has returned of its environment.
func (m *machine) run(ctx context.Context, do string, change ...func(*Frontend)) (string, error) {
	f := &Frontend{
		Name: "example.com/frontend", Root: m.root, Platform: llb.Host(), Options: map[string]string{"do": do, "cmdline": "x y"},
		Session: "the session", Workers: []Worker{{ID: "w"}},
		Config: &dockerspec.DockerOCIImageConfig{ImageConfig: ocispec.ImageConfig{Entrypoint: []string{"/frontend", "arg"}}},
	}
	for _, c := range change {
		c(f)
	}
	b := &bridge{returned: make(chan struct{})}
	err := Run(ctx, m, f, Bridge{Register: func(g grpc.ServiceRegistrar) { pbgateway.RegisterLLBBridgeServer(g, b) }, Returned: b.returned})
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.result.GetMetadata()["env"]), err
}

// A frontend finds what BuildKit's gateway gives to one, and no more than a RUN has.
func TestFrontend(t *testing.T) {
	m := newMachine(t)
	definition := &pb.Definition{Def: [][]byte{[]byte("the definition")}}
	got, err := m.run(t.Context(), "return", func(f *Frontend) { f.Definition = definition })
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"BUILDKIT_FRONTEND_OPT_0=cmdline=x y\n", "BUILDKIT_FRONTEND_OPT_1=do=return\n", "BUILDKIT_SESSION_ID=the session\n",
		`BUILDKIT_WORKERS=[{"id":"w","labels":null,"platforms":null}]`, "BUILDKIT_EXPORTEDPRODUCT=", "args=[arg]", "uid=0", "links=2",
		"the definition",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("it lacks %q:\n%s", want, got)
		}
	}
	labels := func(l map[string]string) func(*Frontend) { return func(f *Frontend) { f.Config.Labels = l } }
	for _, change := range []func(*Frontend){labels(map[string]string{labelNoNetwork: "true"}), func(f *Frontend) { f.NoNetwork = true }} {
		if got, err := m.run(t.Context(), "return", change); err != nil || !strings.Contains(got, "links=1") {
			t.Errorf("%v:\n%s", err, got)
		}
	}
	asks := func(f *Frontend) { f.Options[attrCaps] = "a,b+option" }
	var missing *errdefs.UnsupportedFrontendCapError
	if _, err := m.run(t.Context(), "return", asks, labels(map[string]string{labelCaps: "a+x"})); !errors.As(err, &missing) ||
		missing.Name != "b" {
		t.Error(err)
	}
	if _, err := m.run(t.Context(), "return", asks, labels(map[string]string{labelCaps: "b,a"})); err != nil {
		t.Error(err)
	}
	inputs := func(f *Frontend) { f.Inputs = true }
	if _, err := m.run(t.Context(), "return", inputs); !errors.As(err, &missing) || missing.Name != capInputs {
		t.Error(err)
	}
	if _, err := m.run(t.Context(), "return", inputs, func(f *Frontend) { f.Digest = withInputs[0] }); err != nil {
		t.Error(err)
	}
}

// A frontend that fails says why, and one that does not end is ended.
func TestFrontendFails(t *testing.T) {
	m := newMachine(t)
	var exit *execute.ExitError
	if _, err := m.run(t.Context(), "fail"); !errors.As(err, &exit) || exit.Status.ExitCode != 3 ||
		!strings.HasSuffix(err.Error(), "it does not like that") {
		t.Error(err)
	}
	if got, err := m.run(t.Context(), "leave"); err != nil || got != "" {
		t.Errorf("%q, %v", got, err)
	}
	var silent *SilentError
	if _, err := m.run(t.Context(), "noise"); !errors.As(err, &silent) || !silent.Returned {
		t.Error(err)
	}
	if got, err := m.run(t.Context(), "stay"); err != nil || !slices.Contains(strings.Split(got, "\n"), "uid=0") {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := m.run(t.Context(), "", func(f *Frontend) { f.Config.Entrypoint = nil }); err == nil {
		t.Error("there is no /run")
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(0, cancel)
	if _, err := m.run(ctx, "hang up"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// What works for a frontend keeps it from being silent, whatever asks for its health does not.
func TestActivity(t *testing.T) {
	a := newActivity()
	a.last = time.Now().Add(-time.Hour)
	method := func(name string, f func()) {
		_, _ = a.unary(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: name},
			func(context.Context, any) (any, error) { f(); return nil, nil })
	}
	method("/grpc.health.v1.Health/Check", func() {
		if a.silent() < time.Hour {
			t.Error("it is not silent")
		}
	})
	method("/moby.buildkit.v1.frontend.LLBBridge/Solve", func() {
		if a.silent() != 0 {
			t.Error("it is silent while it is answered")
		}
	})
	if a.silent() >= time.Hour {
		t.Error("it is silent after a request")
	}
	<-a.changed
	a.last = time.Now().Add(-time.Hour)
	a.changed <- struct{}{}
	if err := a.watch(t.Context(), nil, nil); !errors.As(err, new(*SilentError)) {
		t.Error(err)
	}
}
