package containers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/daemon/apierr"
	"github.com/kilnbuild/kiln/internal/steptest"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/container"
	"github.com/kilnbuild/kiln/solver/execute"
	"github.com/kilnbuild/kiln/solver/session"
	"github.com/kilnbuild/kiln/solver/work"
)

// machine is a build with one result, "root", in which there is a shell.
type machine struct {
	t    *testing.T
	job  *execute.Job
	root solver.Ref
	set  *Set
	gateway.LLBBridgeClient
}

func (m *machine) Root(_ context.Context, id string) (solver.Ref, error) {
	if id != "root" {
		return solver.Ref{}, status.Errorf(codes.NotFound, "no such ref: %s", id)
	}
	return m.root, nil
}

func (m *machine) Container(ctx context.Context, w work.Exec) (*container.Container, error) {
	return container.New(ctx, m.job, w)
}

// server has the methods of a Set, and no others of the service.
type server struct {
	gateway.UnimplementedLLBBridgeServer
	*Set
}

func (s server) NewContainer(ctx context.Context, r *gateway.NewContainerRequest) (*gateway.NewContainerResponse, error) {
	return s.Set.NewContainer(ctx, r)
}

func (s server) ReleaseContainer(ctx context.Context, r *gateway.ReleaseContainerRequest) (*gateway.ReleaseContainerResponse, error) {
	return s.Set.ReleaseContainer(ctx, r)
}

func (s server) ExecProcess(x gateway.LLBBridge_ExecProcessServer) error { return s.Set.ExecProcess(x) }

func (s server) ReadFileContainer(ctx context.Context, r *gateway.ReadFileRequest) (*gateway.ReadFileResponse, error) {
	return s.Set.ReadFileContainer(ctx, r)
}

func (s server) ReadDirContainer(ctx context.Context, r *gateway.ReadDirRequest) (*gateway.ReadDirResponse, error) {
	return s.Set.ReadDirContainer(ctx, r)
}

func (s server) StatFileContainer(ctx context.Context, r *gateway.StatFileRequest) (*gateway.StatFileResponse, error) {
	return s.Set.StatFileContainer(ctx, r)
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	steps := steptest.New(t, &session.Session{Secrets: steptest.Secrets{"s": "secret"}})
	m := &machine{t: t, job: steps.Job}
	m.root = steps.Make(steptest.Shell(t), steptest.File("/file", "0123456789", "0644"),
		llb.Action{Symlink: &llb.Symlink{Path: "/link", Target: "file"}},
		llb.Action{Symlink: &llb.Symlink{Path: "/out", Target: "/../etc/passwd"}})
	m.serve()
	return m
}

// serve makes a Set, and a client of it.
func (m *machine) serve() {
	listener, err := net.Listen("unix", filepath.Join(m.t.TempDir(), "s"))
	if err != nil {
		m.t.Fatal(err)
	}
	m.set = New(m)
	g := grpc.NewServer(grpc.UnaryInterceptor(apierr.Unary(nil)), grpc.StreamInterceptor(apierr.Stream(nil)))
	gateway.RegisterLLBBridgeServer(g, server{Set: m.set})
	go func() { _ = g.Serve(listener) }()
	conn, err := grpc.NewClient("unix://"+listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		m.t.Fatal(err)
	}
	m.LLBBridgeClient = gateway.NewLLBBridgeClient(conn)
	m.t.Cleanup(func() {
		m.set.Close()
		_ = conn.Close()
		g.Stop()
	})
}

// make makes a container of the root with further mounts.
func (m *machine) make(id string, mounts ...*pb.Mount) {
	m.t.Helper()
	req := &gateway.NewContainerRequest{ContainerID: id, Network: pb.NetMode_NONE,
		Mounts: append([]*pb.Mount{{Dest: "/", ResultID: "root"}}, mounts...)}
	if _, err := m.NewContainer(m.t.Context(), req); err != nil {
		m.t.Fatal(err)
	}
}

// talk is one stream of processes.
type talk struct {
	t *testing.T
	gateway.LLBBridge_ExecProcessClient
	seen map[string]string // what happened to each process: its output, and other messages in brackets
}

func (m *machine) talk(ctx context.Context) *talk {
	m.t.Helper()
	stream, err := m.ExecProcess(ctx)
	if err != nil {
		m.t.Fatal(err)
	}
	return &talk{m.t, stream, map[string]string{}}
}

func (k *talk) say(id string, m *gateway.ExecMessage) {
	k.t.Helper()
	m.ProcessID = id
	if err := k.Send(m); err != nil {
		k.t.Fatal(err)
	}
}

func (k *talk) start(id, container, script string, change ...func(*gateway.InitMessage)) {
	k.t.Helper()
	init := &gateway.InitMessage{ContainerID: container, Meta: &pb.Meta{Args: []string{"/bin/sh", "-c", script}}, Fds: []uint32{1, 2}}
	for _, f := range change {
		f(init)
	}
	k.say(id, &gateway.ExecMessage{Input: &gateway.ExecMessage_Init{Init: init}})
}

func (k *talk) in(id, text string, eof bool) {
	k.t.Helper()
	k.say(id, &gateway.ExecMessage{Input: &gateway.ExecMessage_File{File: &gateway.FdMessage{Data: []byte(text), EOF: eof}}})
}

// until receives until something has happened to a process.
func (k *talk) until(id, what string) {
	k.t.Helper()
	for !strings.Contains(k.seen[id], what) {
		if strings.Contains(k.seen[id], "[done]") {
			k.t.Fatalf("%s has ended without %s: %q", id, what, k.seen)
		}
		m, err := k.Recv()
		if err != nil {
			k.t.Fatalf("%s: %v, after %q", id, err, k.seen[id])
		}
		s := &bytes.Buffer{}
		switch in := m.Input.(type) {
		case *gateway.ExecMessage_Started:
			s.WriteString("[started]")
		case *gateway.ExecMessage_File:
			s.Write(in.File.Data)
			if in.File.EOF {
				fmt.Fprintf(s, "[eof %d]", in.File.Fd)
			}
		case *gateway.ExecMessage_Exit:
			fmt.Fprintf(s, "[exit %d %s]", in.Exit.Code, in.Exit.Error.GetMessage())
		case *gateway.ExecMessage_Done:
			s.WriteString("[done]")
		}
		k.seen[m.ProcessID] += s.String()
	}
}

func (k *talk) want(id, want string) {
	k.t.Helper()
	k.until(id, "[done]")
	if got := strings.ReplaceAll(k.seen[id], "\r", ""); got != want {
		k.t.Errorf("%s: %q, want %q", id, got, want)
	}
}

const ended = "[exit 0 ][eof 1][eof 2][done]"

// Processes of one stream are beside each other in a container, and each has its own input, output, terminal and signals.
func TestProcesses(t *testing.T) {
	m := newMachine(t)
	m.make("c", &pb.Mount{Dest: "/tmpfs", MountType: pb.MountType_TMPFS},
		&pb.Mount{Dest: "/s", MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "s", Mode: 0o400}})
	k := m.talk(t.Context())
	open := func(i *gateway.InitMessage) { i.Fds = []uint32{0, 1, 2} }
	k.start("first", "c", "echo $PATH; echo typed > /tmpfs/f; read line; exit 3", open)
	k.start("cat", "c", "until [ -s /tmpfs/f ]; do :; done; cat /tmpfs/f /s; cat", open)
	k.in("cat", "a", false)
	k.in("cat", "b\n", true)
	k.want("cat", "[started]typed\nsecretab\n"+ended)
	k.in("cat", "late", true) // the client did not know
	k.start("env", "c", "echo $A$B; echo error >&2", func(i *gateway.InitMessage) {
		i.Secretenv, i.Meta.Env = []*pb.SecretEnv{{ID: "s", Name: "A"}, {ID: "none", Name: "B", Optional: true}}, []string{"B=b"}
		i.Fds = []uint32{2}
	})
	k.want("env", "[started]error\n[exit 0 ][eof 2][done]")
	k.start("tty", "c", "echo $TERM; trap 'echo resized; exit 7' WINCH; echo ready; while :; do :; done", open,
		func(i *gateway.InitMessage) { i.Tty = true })
	k.until("tty", "ready")
	k.say("tty", &gateway.ExecMessage{Input: &gateway.ExecMessage_Resize{Resize: &gateway.ResizeMessage{Rows: 40, Cols: 80}}})
	k.want("tty", "[started]xterm\nready\nresized\n[exit 7 exit code: 7][eof 1][eof 2][done]")
	k.start("signal", "c", "trap 'exit 5' INT; echo ready; while :; do :; done")
	k.until("signal", "ready")
	k.say("signal", &gateway.ExecMessage{Input: &gateway.ExecMessage_Signal{Signal: &gateway.SignalMessage{Name: "INT"}}})
	k.want("signal", "[started]ready\n[exit 5 exit code: 5][eof 1][eof 2][done]")
	k.start("none", "c", "", func(i *gateway.InitMessage) { i.Meta.Args = []string{"/none"} })
	k.until("none", "[exit 127 ")
	k.start("privileged", "c", "true", func(i *gateway.InitMessage) { i.Security = pb.SecurityMode_INSECURE })
	k.until("privileged", "[exit 255 security.insecure is not allowed")
	k.start("mode", "c", "true", func(i *gateway.InitMessage) { i.Security = 2 })
	k.until("mode", "[exit 255 invalid security mode")
	k.start("hung", "c", "echo ready; while :; do :; done")
	k.until("hung", "ready")
	k.in("first", "\n", false)
	k.want("first", "[started]/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n[exit 3 exit code: 3][eof 1][eof 2][done]")
	k.want("hung", "[started]ready\n[exit 137 exit code: 137][eof 1][eof 2][done]")
	if err := k.CloseSend(); err != nil {
		t.Error(err)
	}
	if _, err := k.Recv(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

// Nothing that a process does or does not read and write keeps others, or the end of a container, waiting.
func TestEnds(t *testing.T) {
	m := newMachine(t)
	running := func(k *talk, id string) {
		k.start(id+"1", id, "echo ready; while :; do :; done", func(i *gateway.InitMessage) { i.Fds = []uint32{0, 1} })
		k.until(id+"1", "ready")
		for range 3 { // which it does not read
			k.in(id+"1", strings.Repeat("x", 300<<10), false)
		}
		k.start(id+"2", id, "echo ready; while :; do echo 1234567; done")
		k.until(id+"2", "ready")
	}
	m.make("released")
	k := m.talk(t.Context())
	running(k, "released")
	released := make(chan error)
	go func() {
		_, err := m.ReleaseContainer(t.Context(), &gateway.ReleaseContainerRequest{ContainerID: "released"})
		released <- err
	}()
	for _, id := range []string{"released1", "released2"} {
		if k.until(id, "[done]"); !strings.Contains(k.seen[id], "[exit 255 context canceled]") {
			t.Errorf("%.100q", k.seen[id][max(0, len(k.seen[id])-100):])
		}
	}
	if err := <-released; status.Code(err) != codes.Canceled {
		t.Errorf("a container with processes was released: %v", err)
	}
	m.make("released")

	ctx, cancel := context.WithCancel(t.Context())
	m.make("stream")
	k = m.talk(ctx)
	running(k, "stream")
	cancel()
	k = m.talk(t.Context())
	k.start("after", "stream", "true")
	k.until("after", "[done]")
	if _, err := m.ReleaseContainer(t.Context(), &gateway.ReleaseContainerRequest{ContainerID: "stream"}); err == nil {
		t.Error("processes of a stream that ended have succeeded")
	}

	m.make("closed")
	k = m.talk(t.Context())
	running(k, "closed")
	m.set.Close()
	for {
		if _, err := k.Recv(); err != nil {
			break
		}
	}
	late := &gateway.NewContainerRequest{ContainerID: "x", Mounts: []*pb.Mount{{Dest: "/", ResultID: "root"}}}
	if _, err := m.NewContainer(t.Context(), late); status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
}

// What a client asks for is checked before anything is made.
func TestInvalid(t *testing.T) {
	m := newMachine(t)
	root := &pb.Mount{Dest: "/", ResultID: "root"}
	for name, req := range map[string]*gateway.NewContainerRequest{
		"no id":       {Mounts: []*pb.Mount{root}},
		"long id":     {ContainerID: strings.Repeat("x", maxName+1), Mounts: []*pb.Mount{root}},
		"no root":     {ContainerID: "x"},
		"nil":         {ContainerID: "x", Mounts: []*pb.Mount{root, nil}},
		"many":        {ContainerID: "x", Mounts: append(make([]*pb.Mount, maxMounts), root)},
		"root tmpfs":  {ContainerID: "x", Mounts: []*pb.Mount{{Dest: "/", MountType: pb.MountType_TMPFS}}},
		"at the root": {ContainerID: "x", Mounts: []*pb.Mount{root, {Dest: "/../"}}},
		"unknown ref": {ContainerID: "x", Mounts: []*pb.Mount{{Dest: "/", ResultID: "other"}}},
		"no cache":    {ContainerID: "x", Mounts: []*pb.Mount{root, {Dest: "/c", MountType: pb.MountType_CACHE}}},
		"no secret":   {ContainerID: "x", Mounts: []*pb.Mount{root, {Dest: "/c", MountType: pb.MountType_SECRET}}},
		"no agent":    {ContainerID: "x", Mounts: []*pb.Mount{root, {Dest: "/c", MountType: pb.MountType_SSH}}},
		"network":     {ContainerID: "x", Mounts: []*pb.Mount{root}, Network: 9},
		"host":        {ContainerID: "x", Mounts: []*pb.Mount{root}, ExtraHosts: []*pb.HostIP{{Host: "a", IP: "b"}}},
		"nil host":    {ContainerID: "x", Mounts: []*pb.Mount{root}, ExtraHosts: []*pb.HostIP{nil}},
		"platform":    {ContainerID: "x", Mounts: []*pb.Mount{root}, Platform: &pb.Platform{OS: "linux", Architecture: "\x00"}},
		"secret": {ContainerID: "x", Mounts: []*pb.Mount{root, {Dest: "/c", MountType: pb.MountType_SECRET,
			SecretOpt: &pb.SecretOpt{ID: "none"}}}},
	} {
		// Without the wire, which has no nil.
		if _, err := m.set.NewContainer(t.Context(), req); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	unknown := &gateway.NewContainerRequest{ContainerID: "x", Mounts: []*pb.Mount{root, {Dest: "/c", MountType: 99}}}
	if _, err := m.NewContainer(t.Context(), unknown); status.Code(err) != codes.InvalidArgument ||
		!strings.Contains(err.Error(), "/c: there is no mount of type 99") {
		t.Error(err)
	}
	m.make("c")
	again := &gateway.NewContainerRequest{ContainerID: "c", Mounts: []*pb.Mount{root}}
	if _, err := m.NewContainer(t.Context(), again); status.Code(err) != codes.AlreadyExists {
		t.Error(err)
	}
	init := func(i *gateway.InitMessage) *gateway.ExecMessage {
		return &gateway.ExecMessage{ProcessID: "p", Input: &gateway.ExecMessage_Init{Init: i}}
	}
	for name, messages := range map[string][]*gateway.ExecMessage{
		"no id":        {{}},
		"no process":   {{ProcessID: "p", Input: &gateway.ExecMessage_File{File: &gateway.FdMessage{}}}},
		"no message":   {{ProcessID: "p"}},
		"no meta":      {init(&gateway.InitMessage{ContainerID: "c"})},
		"no container": {init(&gateway.InitMessage{ContainerID: "x", Meta: &pb.Meta{Args: []string{"a"}}})},
		"descriptor":   {init(&gateway.InitMessage{ContainerID: "c", Meta: &pb.Meta{Args: []string{"a"}}, Fds: []uint32{3}})},
		"twice": {init(&gateway.InitMessage{ContainerID: "c", Meta: &pb.Meta{}}),
			init(&gateway.InitMessage{ContainerID: "c", Meta: &pb.Meta{}})},
	} {
		k := m.talk(t.Context())
		for _, msg := range messages {
			k.say(msg.ProcessID, msg)
		}
		for {
			if _, err := k.Recv(); err != nil {
				if errors.Is(err, io.EOF) || status.Code(err) == codes.Canceled {
					t.Errorf("%s: %v", name, err)
				}
				break
			}
		}
	}
}

// Files are those that processes have written, and nothing outside of the mount.
func TestFiles(t *testing.T) {
	m := newMachine(t)
	m.make("c", &pb.Mount{Dest: "/tmpfs", MountType: pb.MountType_TMPFS}, &pb.Mount{Dest: "/scratch"})
	k := m.talk(t.Context())
	k.start("p", "c", "mkfifo /fifo; mknod /dev/x c 5 0; mkdir /d; echo deep > /d/f; echo in tmpfs > /tmpfs/f; "+
		"ln -s f /tmpfs/l; ln -s / /tmpfs/r; ln -s ../../file /d/up; echo x > /scratch/y; echo made; while :; do :; done")
	k.until("p", "made")
	for _, c := range []struct {
		mount int32
		path  string
		rng   *gateway.FileRange
		want  string
	}{
		{0, "/file", nil, "0123456789"}, {0, "/link", nil, "0123456789"}, {0, "/file", &gateway.FileRange{Offset: 2, Length: 3}, "234"},
		{0, "/d/../d/f", nil, "deep\n"},
		{1, "/f", nil, "in tmpfs\n"}, {1, "/l", nil, "in tmpfs\n"}, {2, "/y", nil, "x\n"}, {0, "/file", &gateway.FileRange{Offset: 20}, ""},
	} {
		got, err := m.ReadFileContainer(t.Context(), &gateway.ReadFileRequest{Ref: "c", MountIndex: c.mount, FilePath: c.path, Range: c.rng})
		if err != nil || string(got.Data) != c.want {
			t.Errorf("%d %s: %q, %v", c.mount, c.path, got.GetData(), err)
		}
	}
	for _, c := range []struct {
		mount int32
		path  string
		rng   *gateway.FileRange
		want  string
	}{
		{0, "/fifo", nil, "not a regular file"}, {0, "/d", nil, "not a regular file"}, {0, "/dev/null", nil, ""}, {0, "/proc/1/environ", nil, ""},
		{0, "/out", nil, "/out"}, {0, "/../../etc/shadow", nil, "no such file"}, {0, "file", nil, "relative"},
		{0, "/missing", nil, "/missing: no such file"}, {1, "/r", nil, ""}, {0, "/d/up", nil, ""},
		{0, "/file", &gateway.FileRange{Offset: -1, Length: 3}, "invalid range"}, {0, "/file", &gateway.FileRange{Length: -1}, "invalid range"},
		{3, "/file", nil, "out of bounds"}, {-1, "/file", nil, "out of bounds"}, {0, "/f\x00", nil, ""},
	} {
		got, err := m.ReadFileContainer(t.Context(), &gateway.ReadFileRequest{Ref: "c", MountIndex: c.mount, FilePath: c.path, Range: c.rng})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%d %s: %q, %v, want an error with %q", c.mount, c.path, got.GetData(), err, c.want)
		}
	}
	list, err := m.ReadDirContainer(t.Context(), &gateway.ReadDirRequest{Ref: "c", DirPath: "/", IncludePattern: "[fl]*"})
	names := []string{}
	for _, e := range list.GetEntries() {
		names = append(names, e.Path)
	}
	if len(names) != 3 || err != nil {
		t.Errorf("%q, %v", names, err)
	}
	if _, err := m.ReadDirContainer(t.Context(), &gateway.ReadDirRequest{Ref: "c", DirPath: "/file"}); err == nil {
		t.Error("a file is listed")
	}
	for path, want := range map[string]string{"/link": "-rw-r--r-- file 10", "/out": "Lrwxrwxrwx out /../etc/passwd", "/d": "drwxr-xr-x d 0",
		"/fifo": "prw-r--r-- fifo 0"} {
		st, err := m.StatFileContainer(t.Context(), &gateway.StatFileRequest{Ref: "c", Path: path})
		got := fmt.Sprint(os.FileMode(st.GetStat().GetMode()), " ", st.GetStat().GetPath(), " ", st.GetStat().GetSize())
		if st.GetStat().GetLinkname() != "" {
			got = fmt.Sprint(os.FileMode(st.Stat.Mode), " ", st.Stat.Path, " ", st.Stat.Linkname)
		}
		if path == "/link" {
			want = "-rw-r--r-- link 10"
		}
		if got != want || err != nil {
			t.Errorf("%s: %s, %v, want %s", path, got, err, want)
		}
	}
}
