package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/session/grpchijack"
	"github.com/tonistiigi/fsutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ran returns the steps of a build that ran, by their names.
func (d *instance) ran(ref string) []string {
	d.t.Helper()
	stream, err := d.control.Status(d.t.Context(), &controlapi.StatusRequest{Ref: ref})
	if err != nil {
		d.t.Fatal(err)
	}
	done := map[string]bool{}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			d.t.Fatal(err)
		}
		for _, v := range r.Vertexes {
			if v.Completed != nil && strings.Contains(v.Name, "] COPY") || strings.Contains(v.Name, "] WORKDIR") {
				done[v.Name] = !v.Cached
			}
		}
	}
	var names []string
	for name, fresh := range done {
		if fresh {
			names = append(names, name)
		}
	}
	return names
}

// Fifty clients build at once, with files of their own that are the same: all are served, and each step runs once for all of them.
func TestClients(t *testing.T) {
	d := startDaemon(t, t.TempDir())
	const n = 50
	var clients sync.WaitGroup
	for i := range n {
		dir := dockerfile(t)
		if err := os.WriteFile(filepath.Join(dir, "a"), []byte("a"), 0o644); err != nil {
			t.Fatal(err)
		}
		s := d.session(dir)
		defer s.Close()
		clients.Go(func() {
			if err := d.build(t.Context(), s, fmt.Sprintf("client-%d", i)); err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	clients.Wait()
	times := map[string]int{}
	for i := range n {
		for _, name := range d.ran(fmt.Sprintf("client-%d", i)) {
			times[name]++
		}
	}
	if len(times) == 0 {
		t.Error("no step ran")
	}
	for name, times := range times {
		if times != 1 {
			t.Errorf("%s ran %d times", name, times)
		}
	}
}

// A client that goes away ends its own build, and no other.
func TestClientGoes(t *testing.T) {
	d := startDaemon(t, t.TempDir())
	s := d.session(dockerfile(t))
	defer s.Close()
	returned, ended := d.waiting("stays", s)
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := d.control.Solve(ctx, &controlapi.SolveRequest{Ref: "goes", Session: s.ID()})
		gone <- err
	}()
	stream, err := d.control.Status(t.Context(), &controlapi.StatusRequest{Ref: "goes"})
	if err != nil {
		t.Fatal(err)
	}
	leave()
	if err := <-gone; status.Code(err) != codes.Canceled {
		t.Errorf("the build of the client that went: %v", err)
	}
	for err == nil { // it has ended in the daemon as well
		_, err = stream.Recv()
	}
	if err := returned(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the build of the other client: %v", err)
	}
}

// buffer is a file of a client.
type buffer struct{ bytes.Buffer }

func (*buffer) Close() error { return nil }

// One build has several outputs, of which each goes where its client wants it; of a platform that was asked for the files are in a
// directory only if the client wants that.
func TestOutputs(t *testing.T) {
	d := startDaemon(t, t.TempDir())
	src, out := dockerfile(t), t.TempDir()
	if err := os.WriteFile(filepath.Join(src, "a"), []byte("a"), 0o644); err != nil {
		t.Fatal(err)
	}
	fs, err := fsutil.NewFS(src)
	if err != nil {
		t.Fatal(err)
	}
	s, err := session.NewSession(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var files, image buffer
	write := func(to *buffer) filesync.FileOutputFunc {
		return func(map[string]string) (io.WriteCloser, error) { return to, nil }
	}
	s.Allow(filesync.NewFSSyncProvider(filesync.StaticDirSource{"context": fs, "dockerfile": fs}))
	s.Allow(filesync.NewFSSyncTarget(filesync.WithFSSyncDir(0, out), filesync.WithFSSync(1, write(&files)),
		filesync.WithFSSync(2, write(&image))))
	go func() { _ = s.Run(context.Background(), grpchijack.Dialer(d.control)) }()
	resp, err := d.control.Solve(t.Context(), &controlapi.SolveRequest{
		Ref: "outputs", Session: s.ID(), Frontend: "dockerfile.v0",
		FrontendAttrs: map[string]string{"attest:provenance": "mode=min,inline-only=true"},
		Exporters: []*controlapi.Exporter{
			{Type: "local", Attrs: map[string]string{"platform-split": "true"}}, {Type: "tar"}, {Type: "oci", Attrs: map[string]string{"name": "x"}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	found, err := filepath.Glob(filepath.Join(out, "linux_*", "a"))
	if err != nil || len(found) != 1 {
		t.Errorf("the directory has %q, %v", found, err)
	}
	if names := namesIn(t, &files.Buffer); !slices.Contains(names, "a") {
		t.Errorf("the tar has %q", names)
	}
	if names := namesIn(t, &image.Buffer); !slices.Contains(names, "index.json") {
		t.Errorf("the layout has %q", names)
	}
	if resp.ExporterResponse["containerimage.digest"] == "" {
		t.Errorf("the client is told %q", resp.ExporterResponse)
	}
}

func namesIn(t *testing.T, archive io.Reader) []string {
	t.Helper()
	var names []string
	for r := tar.NewReader(archive); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, strings.TrimPrefix(h.Name, "./"))
	}
}

// What a request must not ask for is an error that names it, before anything is built.
func TestRefused(t *testing.T) {
	d := startDaemon(t, t.TempDir())
	s := d.session(dockerfile(t))
	defer s.Close()
	for name, c := range map[string]struct {
		req  *controlapi.SolveRequest
		want string
	}{
		"attribute": {&controlapi.SolveRequest{FrontendAttrs: map[string]string{"platfrom": "linux/amd64"}}, "platfrom"},
		"exporter":  {&controlapi.SolveRequest{Exporters: []*controlapi.Exporter{{Type: "disk"}}}, "disk"},
		"key": {&controlapi.SolveRequest{Exporters: []*controlapi.Exporter{{Type: "oci", Attrs: map[string]string{"colour": "red"}}}},
			"colour"},
		"entitlement": {&controlapi.SolveRequest{Entitlements: []string{"security.insecure"}}, "--allow-insecure-entitlement"},
		"version":     {&controlapi.SolveRequest{CompatibilityVersion: 99}, "compatibility-version 99"},
		"cache": {&controlapi.SolveRequest{Cache: &controlapi.CacheOptions{Imports: []*controlapi.CacheOptionsEntry{{Type: "tape"}}}},
			"tape"},
		"frontend": {&controlapi.SolveRequest{Frontend: "fortran.v0"}, "fortran.v0"},
	} {
		c.req.Ref, c.req.Session = "refused "+name, s.ID()
		if c.req.Frontend == "" {
			c.req.Frontend = "dockerfile.v0"
		}
		if _, err := d.control.Solve(t.Context(), c.req); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, c.want)
		}
	}
	if info, err := os.Stat(filepath.Join(d.dir, "sock")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info.Mode(), err)
	}
}

// What buildx' drivers start is accepted: for containers, and for pods with and without privileges.
func TestDrivers(t *testing.T) {
	none := filepath.Join(t.TempDir(), "kiln.toml")
	if err := os.WriteFile(none, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KILN_CONFIG", none)
	for _, args := range [][]string{
		nil, {"--allow-insecure-entitlement=network.host"}, {"--allow-insecure-entitlement=network.host", "--oci-worker-no-process-sandbox"},
		{"--config", none, "--allow-insecure-entitlement", "network.host", "--allow-insecure-entitlement", "security.insecure", "--debug"},
	} {
		s, err := read("buildkitd", args)
		if err != nil {
			t.Errorf("%q: %v", args, err)
			continue
		}
		if want := slices.Contains(args, "--oci-worker-no-process-sandbox"); s.config.NoProcessSandbox != want || s.root != "/var/lib/buildkit" {
			t.Errorf("%q: %+v in %s", args, s.config.NoProcessSandbox, s.root)
		}
		if want := []string{"unix:///run/buildkit/buildkitd.sock"}; !slices.Equal(s.addresses, want) {
			t.Errorf("%q: it listens on %q, where buildctl does not look", args, s.addresses)
		}
	}
}

// What a command line must not ask for ends with status 2: TCP without certificates is open to whoever can reach the port.
func TestUsage(t *testing.T) {
	for want, args := range map[string][]string{
		"--tlscert":      {"--addr", "tcp://127.0.0.1:0"},
		"entitlement":    {"--allow-insecure-entitlement", "everything"},
		"no such worker": {"--containerd-worker=true"},
		"vsock":          {"--addr", "vsock://1:2"},
		"argument":       {"build"},
	} {
		cmd := exec.Command(os.Args[0], append([]string{"--root", filepath.Join(t.TempDir(), "root")}, args...)...)
		cmd.Env = append(os.Environ(), serveVariable+"=1")
		said, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).ExitStatus() != exitUsage || !bytes.Contains(said, []byte(want)) {
			t.Errorf("%q: %v, %s", args, err, said)
		}
	}
}
