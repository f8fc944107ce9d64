package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	content "github.com/containerd/containerd/api/services/content/v1"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client/buildid"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/session/grpchijack"
	"github.com/tonistiigi/fsutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// serveVariable has the test binary be kilnd.
const serveVariable = "KILND_TEST_SERVE"

func TestMain(m *testing.M) {
	if os.Getenv(serveVariable) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// instance is a kilnd, and a connection to it.
type instance struct {
	t       *testing.T
	dir     string
	process *exec.Cmd
	said    bytes.Buffer
	done    chan error
	conn    *grpc.ClientConn
	control controlapi.ControlClient
	bridge  gateway.LLBBridgeClient
}

// patience is how long a machine may take, however busy it is.
const patience = 5 * time.Minute

// startDaemon starts a kilnd whose root directory is in dir, with further arguments.
func startDaemon(t *testing.T, dir string, args ...string) *instance {
	t.Helper()
	socket := filepath.Join(dir, "sock")
	d := &instance{t: t, dir: dir, done: make(chan error, 1)}
	d.process = exec.Command(os.Args[0], append([]string{"--root", filepath.Join(dir, "root"), "--addr", "unix://" + socket}, args...)...)
	d.process.Env = append(os.Environ(), serveVariable+"=1", "GOGC=20", "HOME="+dir)
	d.process.Stderr = &d.said
	if err := d.process.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { d.done <- d.process.Wait() }()
	t.Cleanup(func() {
		_ = d.process.Process.Kill()
		d.wait()
		if t.Failed() {
			t.Logf("kilnd said:\n%s", d.said.String())
		}
	})
	d.connect("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := d.control.Info(ctx, &controlapi.InfoRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Fatalf("kilnd does not answer: %v", err)
	}
	return d
}

// connect connects to kilnd.
func (d *instance) connect(address string, opts ...grpc.DialOption) {
	d.t.Helper()
	var err error
	if d.conn, err = grpc.NewClient(address, opts...); err != nil {
		d.t.Fatal(err)
	}
	conn := d.conn
	d.t.Cleanup(func() { conn.Close() })
	d.control, d.bridge = controlapi.NewControlClient(conn), gateway.NewLLBBridgeClient(conn)
}

// wait returns how kilnd has ended.
func (d *instance) wait() error {
	err := <-d.done
	d.done <- err
	return err
}

// session is what a client provides: one directory as both contexts, and more.
func (d *instance) session(dir string, more ...session.Attachable) *session.Session {
	d.t.Helper()
	fs, err := fsutil.NewFS(dir)
	if err != nil {
		d.t.Fatal(err)
	}
	s, err := session.NewSession(d.t.Context(), "")
	if err != nil {
		d.t.Fatal(err)
	}
	s.Allow(filesync.NewFSSyncProvider(filesync.StaticDirSource{"context": fs, "dockerfile": fs}))
	for _, a := range more {
		s.Allow(a)
	}
	go func() { _ = s.Run(context.Background(), grpchijack.Dialer(d.control)) }()
	return s
}

// build builds the Dockerfile in a directory, and follows what happens.
func (d *instance) build(ctx context.Context, s *session.Session, ref string) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		stream, err := d.control.Status(ctx, &controlapi.StatusRequest{Ref: ref})
		for err == nil {
			_, err = stream.Recv()
		}
		if !errors.Is(err, io.EOF) && ctx.Err() == nil && status.Code(err) != codes.Unavailable {
			d.t.Errorf("the status of %s: %v", ref, err)
		}
	})
	_, err := d.control.Solve(ctx, &controlapi.SolveRequest{Ref: ref, Session: s.ID(), Frontend: "dockerfile.v0"})
	return err
}

// dockerfile makes a directory with a Dockerfile whose steps need no program.
func dockerfile(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	text := []byte("FROM scratch\nCOPY a /\nWORKDIR /w\nCOPY --link a b\n")
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// usage is what a process takes.
type usage struct{ memory, descriptors, mounts, files int }

// usage measures kilnd.
func (d *instance) usage() usage {
	d.t.Helper()
	proc := fmt.Sprintf("/proc/%d/", d.process.Process.Pid)
	read := func(name string) string {
		data, err := os.ReadFile(proc + name)
		if err != nil {
			d.t.Fatal(err)
		}
		return string(data)
	}
	var u usage
	for line := range strings.Lines(read("status")) {
		if value, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.Atoi(strings.Fields(value)[0])
			if err != nil {
				d.t.Fatal(err)
			}
			u.memory = kib << 10
		}
	}
	u.mounts = strings.Count(read("mountinfo"), "\n")
	fds, err := os.ReadDir(proc + "fd")
	if err != nil {
		d.t.Fatal(err)
	}
	u.descriptors = len(fds)
	_ = filepath.WalkDir(filepath.Join(d.dir, "root", "tmp"), func(string, os.DirEntry, error) error {
		u.files++
		return nil
	})
	return u
}

// buildsVariable has TestStays build that often; 10000 is its long form.
const buildsVariable = "KILND_BUILDS"

// A daemon stays up: after many builds it takes no more memory, descriptors, mounts and files than after a tenth of them.
func TestStays(t *testing.T) {
	n := 200
	if v := os.Getenv(buildsVariable); v != "" {
		var err error
		if n, err = strconv.Atoi(v); err != nil || n < 10 {
			t.Fatalf("%s=%q is not a number from 10 on", buildsVariable, v)
		}
	}
	d := startDaemon(t, t.TempDir())
	dir := dockerfile(t)
	s := d.session(dir)
	defer s.Close()
	var before usage
	for i := range n {
		if i == n/10 {
			before = d.usage()
		}
		// Every second build has something to do.
		if i%2 == 0 {
			if err := os.WriteFile(filepath.Join(dir, "a"), fmt.Appendf(nil, "%d", i), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.build(t.Context(), s, fmt.Sprintf("build-%d", i)); err != nil {
			t.Fatalf("build %d: %v", i, err)
		}
	}
	after := d.usage()
	t.Logf("after %d builds: %+v; after %d: %+v", n/10, before, n, after)
	// What a short run gains is noise: buffers of the runtime, and records of the history up to the number that is kept.
	slack := 8 << 20
	if n >= 10000 {
		slack = 0
	}
	if after.memory > before.memory*11/10+slack {
		t.Errorf("memory grows from %d to %d bytes", before.memory, after.memory)
	}
	if after.descriptors > before.descriptors+8 || after.mounts > before.mounts || after.files > before.files+8 {
		t.Errorf("what is open grows from %+v to %+v", before, after)
	}
	if err := d.process.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := d.wait(); err != nil {
		t.Errorf("kilnd ended with %v", err)
	}
}

// waiting begins a build that waits for its client to return a result, and returns how it ended.
func (d *instance) waiting(ref string, s *session.Session) (returned func() error, ended <-chan error) {
	d.t.Helper()
	end := make(chan error, 1)
	go func() {
		_, err := d.control.Solve(context.Background(), &controlapi.SolveRequest{Ref: ref, Session: s.ID()})
		end <- err
	}()
	ctx := buildid.AppendToOutgoingContext(d.t.Context(), ref)
	if _, err := d.bridge.Ping(ctx, &gateway.PingRequest{}); err != nil {
		d.t.Fatal(err)
	}
	return func() error {
		_, err := d.bridge.Return(ctx, &gateway.ReturnRequest{Result: &gateway.Result{}})
		return err
	}, end
}

// SIGTERM lets builds end that go on, and none begin.
func TestDrains(t *testing.T) {
	d := startDaemon(t, t.TempDir())
	s := d.session(dockerfile(t))
	defer s.Close()
	returned, ended := d.waiting("one", s)
	if err := d.process.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for code := codes.OK; code != codes.Unavailable; {
		_, err := d.control.Solve(t.Context(), &controlapi.SolveRequest{Ref: "two", Session: s.ID(), Frontend: "dockerfile.v0"})
		if code = status.Code(err); err == nil {
			t.Fatal("a build began that should not have")
		}
		select {
		case err := <-ended:
			t.Fatalf("the build ended before its client wanted: %v", err)
		default:
		}
	}
	if err := returned(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the build ended with %v", err)
	}
	if err := d.wait(); err != nil {
		t.Errorf("kilnd ended with %v", err)
	}
}

// What a kilnd leaves that is killed with builds going on is cleared away by the next one, and its root directory is as good as before.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	contextDir := dockerfile(t)
	if err := os.WriteFile(filepath.Join(contextDir, "a"), []byte("a"), 0o644); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		d := startDaemon(t, dir)
		s := d.session(contextDir)
		if err := d.build(t.Context(), s, "whole"); err != nil {
			t.Fatalf("start %d: %v", i, err)
		}
		_, ended := d.waiting("waits", s)
		go func() { _ = d.build(t.Context(), s, "runs") }()
		if err := d.process.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = d.wait()
		if err := <-ended; err == nil {
			t.Error("a build of a daemon that was killed has succeeded")
		}
		s.Close()
	}
	d := startDaemon(t, dir)
	list, err := d.control.ListenBuildHistory(t.Context(), &controlapi.BuildHistoryRequest{EarlyExit: true})
	if err != nil {
		t.Fatal(err)
	}
	for {
		e, err := list.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e.Type != controlapi.BuildHistoryEventType_COMPLETE || e.Record.Ref == "waits" {
			t.Errorf("the history has %v of %s", e.Type, e.Record.Ref)
		}
	}
	left, err := os.ReadDir(filepath.Join(dir, "root", "tmp"))
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 2 { // the directory of this kilnd, and its lock
		t.Errorf("%d things are left in tmp: %v", len(left), left)
	}
	if got, want := d.usage().mounts, mounts(t); got > want {
		t.Errorf("kilnd has %d mounts, and this process %d", got, want)
	}
	stream, err := d.control.Prune(t.Context(), &controlapi.PruneRequest{All: true})
	for err == nil {
		_, err = stream.Recv()
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	du, err := d.control.DiskUsage(t.Context(), &controlapi.DiskUsageRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(du.Record) > 0 {
		t.Errorf("after everything was removed, there is %v", du.Record)
	}
}

// mounts returns how many mounts this process sees.
func mounts(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(data, []byte("\n"))
}

// blob reads a blob of the history.
func (d *instance) blob(desc *controlapi.Descriptor) []byte {
	d.t.Helper()
	stream, err := content.NewContentClient(d.conn).Read(d.t.Context(), &content.ReadContentRequest{Digest: desc.Digest})
	if err != nil {
		d.t.Fatal(err)
	}
	var data []byte
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return data
		}
		if err != nil {
			d.t.Fatal(err)
		}
		data = append(data, part.Data...)
	}
}

// The history has how a build was made and what happened in it, and outlives the daemon; nothing can be written to its content store.
func TestHistory(t *testing.T) {
	dir, contextDir := t.TempDir(), dockerfile(t)
	if err := os.WriteFile(filepath.Join(contextDir, "a"), []byte("a"), 0o644); err != nil {
		t.Fatal(err)
	}
	d := startDaemon(t, dir)
	s := d.session(contextDir)
	if err := d.build(t.Context(), s, "one"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := d.process.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := d.wait(); err != nil {
		t.Fatal(err)
	}
	d = startDaemon(t, dir)
	list, err := d.control.ListenBuildHistory(t.Context(), &controlapi.BuildHistoryRequest{EarlyExit: true, Ref: "one"})
	if err != nil {
		t.Fatal(err)
	}
	e, err := list.Recv()
	if err != nil {
		t.Fatal(err)
	}
	rec := e.Record
	if rec.Frontend != "dockerfile.v0" || rec.NumTotalSteps == 0 || rec.NumCompletedSteps != rec.NumTotalSteps || rec.Error != nil {
		t.Errorf("the record is %v", rec)
	}
	if n := len(rec.GetResult().GetAttestations()); n != 1 {
		t.Fatalf("there are %d attestations", n)
	}
	provenance := string(d.blob(rec.Result.Attestations[0]))
	for _, want := range []string{`"buildDefinition"`, `"filename": "Dockerfile"`} {
		if !strings.Contains(provenance, want) {
			t.Errorf("the provenance lacks %s:\n%s", want, provenance)
		}
	}
	stream, err := d.control.Status(t.Context(), &controlapi.StatusRequest{Ref: "one"})
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range m.Vertexes {
			names[v.Name] = v.Completed != nil
		}
	}
	if !names["[1/3] COPY a /"] || !names["[2/3] WORKDIR /w"] {
		t.Errorf("the log has %v", names)
	}
	_, err = content.NewContentClient(d.conn).Delete(t.Context(), &content.DeleteContentRequest{Digest: rec.Logs.Digest})
	if err == nil {
		t.Error("a blob of the history was deleted")
	}
}
