package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client/buildid"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc"

	"github.com/kilnbuild/kiln/daemon/llbpb"
	"github.com/kilnbuild/kiln/internal/steptest"
	"github.com/kilnbuild/kiln/llb"
)

// shell has a build make a root file system with a shell, and links. It returns the context of requests for the build, and the result.
func (d *instance) shell(ref string, links map[string]string) (ctx context.Context, root string) {
	d.t.Helper()
	actions := []llb.Action{steptest.Shell(d.t), {Symlink: &llb.Symlink{Path: "/bin/busybox", Target: "sh"}}}
	for path, target := range links {
		actions = append(actions, llb.Action{Symlink: &llb.Symlink{Path: path, Target: target}})
	}
	g := &llb.Graph{}
	scratch := g.Add(llb.Scratch{}, llb.Meta{}).Output(0)
	def, err := llbpb.Encode(g.Add(llb.File{Actions: actions}, llb.Meta{}, scratch).Output(0))
	if err != nil {
		d.t.Fatal(err)
	}
	ctx = buildid.AppendToOutgoingContext(d.t.Context(), ref)
	res, err := d.bridge.Solve(ctx, &gateway.SolveRequest{Definition: def, Evaluate: true}, grpc.MaxCallRecvMsgSize(16<<20))
	if err != nil {
		d.t.Fatal(err)
	}
	return ctx, res.Result.GetRef().Id
}

// container makes a container of a result, with more mounts.
func (d *instance) container(ctx context.Context, id, root string, more ...*pb.Mount) error {
	mounts := append([]*pb.Mount{{Dest: "/", ResultID: root}}, more...)
	_, err := d.bridge.NewContainer(ctx, &gateway.NewContainerRequest{ContainerID: id, Mounts: mounts})
	return err
}

// running is a process of a container.
type running struct {
	t      *testing.T
	stream gateway.LLBBridge_ExecProcessClient
	output bytes.Buffer
}

// exec starts a process, which has begun to write when exec returns if until is something that it writes.
func (d *instance) exec(ctx context.Context, container, script, until string) *running {
	d.t.Helper()
	stream, err := d.bridge.ExecProcess(ctx)
	if err != nil {
		d.t.Fatal(err)
	}
	r := &running{t: d.t, stream: stream}
	init := &gateway.InitMessage{
		ContainerID: container, Meta: &pb.Meta{Args: []string{"/bin/sh", "-c", script}, Cwd: "/"}, Fds: []uint32{1, 2},
	}
	if err := stream.Send(&gateway.ExecMessage{ProcessID: "p", Input: &gateway.ExecMessage_Init{Init: init}}); err != nil {
		d.t.Fatal(err)
	}
	for until != "" && !strings.Contains(r.output.String(), until) {
		if end, err := r.next(); end != nil || err != nil {
			d.t.Fatalf("%v, %v:\n%s", end, err, r.output.String())
		}
	}
	return r
}

// next takes what the process says next. It returns how it ended, if it has.
func (r *running) next() (*gateway.ExitMessage, error) {
	m, err := r.stream.Recv()
	if err != nil {
		return nil, err
	}
	if f := m.GetFile(); f != nil {
		r.output.Write(f.Data)
	}
	return m.GetExit(), nil
}

// end waits for the end of the process, and returns what it has written.
func (r *running) end() (string, error) {
	r.t.Helper()
	for {
		end, err := r.next()
		if err != nil {
			return r.output.String(), err
		}
		if end != nil {
			if end.Error != nil {
				err = fmt.Errorf("exit code %d: %s", end.Code, end.Error.Message)
			}
			_ = r.stream.CloseSend()
			return r.output.String(), err
		}
	}
}

// No place that a client names for a mount, and no link in its root file system, leads a container out of itself.
func TestContainerMounts(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	d := startDaemon(t, dir)
	s := d.session(t.TempDir())
	defer s.Close()
	returned, ended := d.waiting("c", s)
	up := strings.Repeat("../", 40)
	ctx, root := d.shell("c", map[string]string{"/out": outside, "/up": up + outside[1:], "/fd": "/proc/self/fd", "/sh": "/bin/sh"})
	selected := &pb.Mount{Dest: "/m", MountType: pb.MountType_BIND, ResultID: root, Selector: up + outside[1:]}
	if err := d.container(ctx, "selected", root, selected); err == nil {
		t.Error("a selector leads out of a result")
	}
	for i, dest := range []string{
		"/proc", "/proc/self/fd", "/proc/self/fd/3", "/proc/1/root", "/sys", "/sys/fs/cgroup", "/dev", "/dev/null", "/fd", "/fd/3", "/out", "/out/x",
		"/up", "/up/x", "/" + up + outside[1:] + "/y", "/etc/resolv.conf", "/sh", "/bin/sh", "/a\x00b", "/" + strings.Repeat("d/", 2000), up + "x", ".", "",
		"/" + strings.Repeat("n", 300),
	} {
		id := fmt.Sprint(i)
		if err := d.container(ctx, id, root, &pb.Mount{Dest: dest, MountType: pb.MountType_TMPFS}); err != nil {
			t.Logf("%.60q: %v", dest, err)
			continue
		}
		out, err := d.exec(ctx, id, "busybox touch /out/file /up/file "+outside+"/file; echo done", "").end()
		t.Logf("%.60q: %v %q", dest, err, out)
		_, _ = d.bridge.ReleaseContainer(ctx, &gateway.ReleaseContainerRequest{ContainerID: id})
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("%v, %v are outside", left, err)
	}
	mounted, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", d.process.Process.Pid))
	if err != nil || bytes.Contains(mounted, []byte(dir)) || bytes.Contains(mounted, []byte(outside)) {
		t.Errorf("%v, mounts are left:\n%s", err, mounted)
	}
	if err := returned(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A process that is there first does not get at kiln by those that kiln starts beside it: while they are set up they are kiln's.
func TestContainerSpies(t *testing.T) {
	d := startDaemon(t, t.TempDir())
	s := d.session(t.TempDir())
	defer s.Close()
	returned, ended := d.waiting("c", s)
	ctx, root := d.shell("c", nil)
	if err := d.container(ctx, "c", root); err != nil {
		t.Fatal(err)
	}
	const spy = `b=busybox; echo ready; while [ ! -e /stop ]; do for p in /proc/[0-9]*; do
		e=$($b readlink $p/exe) && case $e in /bin/sh|/launcher) ;; *) echo "exe $e" ;; esac
		r=$($b readlink $p/root) && [ "$r" = / ] || [ -z "$r" ] || echo "root $r"
		for f in $p/fd/[3-9] $p/fd/[1-9][0-9]; do [ ! -L $f ] || { l=$($b readlink $f) && [ "${p##*/}" != 1 ] && echo "fd $f $l"; }; done
		$b dd if=$p/mem of=/dev/null bs=1 count=1 skip=65536 2> /dev/null && echo "mem $p"
		( : > $p/exe ) 2> /dev/null && echo "writable $p"
		cd $p/cwd/.. 2> /dev/null; [ -e kilnd ] && echo "cwd $p"; cd /
	done; done; echo end`
	first := d.exec(ctx, "c", spy, "ready\n")
	for range 60 {
		if _, err := d.exec(ctx, "c", ":", "").end(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.exec(ctx, "c", "echo > /stop", "").end(); err != nil {
		t.Fatal(err)
	}
	if out, err := first.end(); err != nil || out != "ready\nend\n" {
		t.Errorf("%v, it has found:\n%.4000s", err, out)
	}
	if err := returned(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A kilnd that is killed leaves none of the processes of containers, and what else it leaves the next one removes.
func TestKilledContainers(t *testing.T) {
	dir := t.TempDir()
	d := startDaemon(t, dir)
	s := d.session(t.TempDir())
	_, ended := d.waiting("c", s)
	ctx, root := d.shell("c", nil)
	if err := d.container(ctx, "c", root); err != nil {
		t.Fatal(err)
	}
	mark := filepath.Base(dir) + "-marked"
	const script = `busybox setsid sh -c ': %[1]s; while :; do busybox sleep 1000; done' & : %[1]s; echo ready; while :; do busybox sleep 1000; done`
	_ = d.exec(ctx, "c", fmt.Sprintf(script, mark), "ready")
	_ = d.exec(ctx, "c", fmt.Sprintf(script, mark), "ready")
	if n := marked(t, mark); n < 4 {
		t.Errorf("%d processes run", n)
	}
	if err := d.process.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = d.wait()
	<-ended
	s.Close()
	for end := time.Now().Add(patience); marked(t, mark) > 0; { // the kernel takes a moment
		if time.Now().After(end) {
			t.Fatalf("%d processes are left", marked(t, mark))
		}
	}
	startDaemon(t, dir)
	left, err := os.ReadDir(filepath.Join(dir, "root", "tmp"))
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 2 { // the directory of this kilnd, and its lock
		t.Errorf("%d things are left in tmp: %v", len(left), left)
	}
}

// marked returns how many processes there are with a text in their arguments.
func marked(t *testing.T, text string) (n int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		if data, err := os.ReadFile(name); err == nil && bytes.Contains(data, []byte(text)) {
			n++
		}
	}
	return n
}
