package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/mount"
	networks "github.com/kilnbuild/kiln/internal/network"
	"github.com/kilnbuild/kiln/internal/passwd"
)

// running counts the processes whose command line holds a mark.
func running(t testing.TB, mark string) (n int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte(mark)) {
			n++
		}
	}
	return n
}

// hang is far longer than anything takes that a test waits for, on a machine with much else to do.
const hang = 5 * time.Minute

func waitFor(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(hang); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Errorf("it does not come: %s", what)
}

// stubborn starts three processes, two of them in the background, that do not end by themselves or by most signals.
func stubborn(mark string) string {
	return fmt.Sprintf(`trap '' TERM INT HUP QUIT
		(setsid sh -c 'trap "" TERM INT HUP; (sleep %[1]s &); sleep %[1]s' &) & sleep %[1]s`, mark)
}

func TestCancel(t *testing.T) {
	im := newImage(t)
	mark := "71234.5"
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	reason := errors.New("enough")
	go func() {
		waitFor(t, "processes", func() bool { return running(t, mark) >= 3 })
		cancel(reason)
	}()
	_, err := Run(ctx, Spec{Root: im.mount(t), Process: Process{Args: []string{"sh", "-c", stubborn(mark)}, Env: []string{defaultPath}}})
	if !errors.Is(err, reason) {
		t.Error(err)
	}
	if n := running(t, mark); n != 0 {
		t.Errorf("%d processes are left", n)
	}
	if _, err := Run(ctx, Spec{Root: im.mount(t), Process: Process{Args: []string{"true"}, Env: []string{defaultPath}}}); !errors.Is(err, reason) {
		t.Error(err)
	}
}

// TestMain is also the program that TestKilnKilled kills: a kiln that runs a step.
func TestMain(m *testing.M) {
	if dir := os.Getenv("SANDBOX_TEST_STEP"); dir != "" {
		root, err := mount.Overlay{Lower: []string{dir + "/lower"}, Upper: dir + "/upper", Work: dir + "/work"}.Mount()
		pool := &networks.Pool{}
		n, netErr := pool.Get()
		if err = errors.Join(err, netErr); err == nil {
			_, err = Run(context.Background(), Spec{Root: root, Process: Process{Args: []string{"sh", "-c", os.Getenv("SANDBOX_TEST_SCRIPT")},
				Env: []string{defaultPath}, User: passwd.User{Groups: []uint32{0}}}, Network: Network{Mode: NetworkJoin, Namespace: n.Namespace()}})
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestKilnKilled(t *testing.T) {
	// The second one changes its user, which clears the parent death signal of the process itself.
	for i, script := range []string{stubborn("71234.6"), "exec su daemon -s /bin/sh -c 'sleep 71234.6 & sleep 71234.6 & exec sleep 71234.6'"} {
		im := newImage(t)
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "SANDBOX_TEST_STEP="+filepath.Dir(im.lower), "SANDBOX_TEST_SCRIPT="+script)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "processes", func() bool { return running(t, "71234.6") >= 3 })
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		waitFor(t, fmt.Sprintf("end of the processes of script %d", i), func() bool { return running(t, "71234.6") == 0 })
	}
}

func TestMounts(t *testing.T) {
	im := newImage(t)
	dir := t.TempDir()
	for name, content := range map[string]string{"a": "a\n", "b": "b\n", "sub/c": "c\n", "sub/inner/keep": ""} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(dir+"/"+name), 0o755), os.WriteFile(dir+"/"+name, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("/real", im.lower+"/link"), os.Mkdir(im.lower+"/real", 0o755),
		os.Symlink("../../../../../../real", im.lower+"/up")); err != nil {
		t.Fatal(err)
	}
	source := func(name string) *os.File { return cloned(t, dir+"/"+name, true) }
	tmpfs := func() *os.File {
		f, err := mount.Tmpfs(0, 0o755, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	im.expect(t, "cat /new/deep/dir/c /new2/file", "c\na\n", with(Mount{Source: source("sub"), Target: "/new/deep/dir"}, Mount{Source: source("a"), Target: "/new2/file"}))
	im.expect(t, "cat /m", "b\n", with(Mount{Source: source("a"), Target: "/m"}, Mount{Source: source("b"), Target: "/m"}))
	im.expect(t, "cat /d/c 2> /dev/null; ls /d", "a\n", with(Mount{Source: source("sub"), Target: "/d"}, Mount{Source: source("."), Target: "/d"}, Mount{Source: tmpfs(), Target: "/d"}, Mount{Source: source("a"), Target: "/d/a"}))
	im.expect(t, "ls /real", "one\ntwo\n", with(Mount{Source: source("a"), Target: "/link/one"}, Mount{Source: source("a"), Target: "/up/two"}))
	// Nested: the mount point is made in the file system that is mounted above it, and removed there.
	im.expect(t, "cat /s/n/a /s/n/sub/c; ls /s/inner", "a\nc\nb\nkeep\n", with(Mount{Source: source("sub"), Target: "/s"}, Mount{Source: source("."), Target: "/s/n"}, Mount{Source: source("b"), Target: "/s/inner/b"}))
	if names, _ := filepath.Glob(dir + "/sub/*"); len(names) != 2 {
		t.Error(names)
	}
	im.expect(t, "cat /etc/hosts /dev/shm/x/a; ls /etc", "b\na\na\n", with(Mount{Source: source("b"), Target: "/etc/hosts"}, Mount{Source: source("."), Target: "/dev/shm/x"}, Mount{Source: source("b"), Target: "/etc/hosts"}), func(s *Spec) {
		s.Process.Args[2] = "cat /etc/hosts /dev/shm/x/a; cat /dev/shm/x/a"
	})
	im.expect(t, "cd /; ls /x/../y; cat y/a", "a\nb\nsub\na\n", with(Mount{Source: tmpfs(), Target: "/x"}, Mount{Source: source("."), Target: "/x/../y"}))
	im.expect(t, "grep -c ' /t tmpfs ' /proc/mounts; touch /t/x", "1\n", with(Mount{Source: tmpfs(), Target: "/t"}))
	if got := im.changed(t); got != "/etc /real" {
		t.Error(got)
	}
	for _, m := range []Mount{{Source: source("a"), Target: "/etc"}, {Source: source("."), Target: "/etc/passwd"}, {Source: source("a"), Target: "/etc/passwd/x"}, {Source: source("a"), Target: "/sys/kernel/x"}, {Source: source("a"), Target: "/link/.."}} {
		if _, _, err := im.sh(t, "true", with(m)); err == nil {
			t.Errorf("no error for a mount at %s", m.Target)
		}
	}
	// Nothing covers the step's /proc and /sys or lies inside them, whatever leads there: a link of the image or of another mount, too.
	if err := errors.Join(os.Symlink("../sys/.", im.lower+"/to-sys"), os.Symlink("/proc", dir+"/sub/to-proc")); err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]string{
		"/proc": "the step's own /proc", "/sys": "the step's own /sys", "//real/../proc/.": "the step's own /proc", "/to-sys": "the step's own /sys",
		"/m/to-proc": "the step's own /proc", "/m/to-proc/sys": "inside the step's own /proc", "/to-sys/fs": "inside the step's own /sys",
		"/m/to-proc/../sys/new": "inside the step's own /sys", "/": "root directory", "/proc/..": "root directory",
	} {
		_, _, err := im.sh(t, "true", with(Mount{Source: source("sub"), Target: "/m"}, Mount{Source: tmpfs(), Target: target}))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a mount at %s: %v", target, err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("the host sees a mount: %v", err)
	}
}

func mtime(t testing.TB, p string) time.Time {
	t.Helper()
	st, err := os.Lstat(p)
	if err != nil {
		t.Fatal(err)
	}
	return st.ModTime()
}

func TestStubs(t *testing.T) {
	im := newImage(t)
	old := time.Unix(1700000000, 0)
	if err := os.Chtimes(im.lower+"/etc", old, old); err != nil {
		t.Fatal(err)
	}
	im.expect(t, "true", "")
	if got := im.changed(t); got != "/etc" || !mtime(t, im.upper+"/etc").Equal(old) {
		t.Error(got, mtime(t, im.upper+"/etc"))
	}
	// A change of the process's own shows.
	im.expect(t, "touch /etc/new; rm /etc/new", "")
	if mtime(t, im.upper+"/etc").Equal(old) {
		t.Error("the time of a change was lost")
	}

	im = newImage(t)
	for _, d := range []string{"proc", "sys", "dev", "etc"} {
		if err := os.RemoveAll(im.lower + "/" + d); err != nil {
			t.Fatal(err)
		}
	}
	old22 := unix.Umask(0o077)
	im.expect(t, "test -s /etc/hosts && test -f /etc/resolv.conf", "")
	unix.Umask(old22)
	if got := im.changed(t); got != "/dev /proc /sys" {
		t.Error(got)
	}
	if st, err := os.Stat(im.upper + "/proc"); err != nil || st.Mode().Perm() != 0o755 {
		t.Error(st, err)
	}

	// What is not as it was made stays.
	im = newImage(t)
	tmp := func() *os.File {
		f, err := mount.Tmpfs(0, 0o755, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	im.expect(t, "touch /a/x; chmod 700 /b; mv /c /moved", "", with(Mount{Source: tmp(), Target: "/a/s"}, Mount{Source: tmp(), Target: "/b/s"}, Mount{Source: tmp(), Target: "/c/s"}))
	if got := im.changed(t); got != "/a /a/x /b /etc /moved" {
		t.Error(got)
	}
}

func TestDanglingResolvConf(t *testing.T) {
	im := newImage(t)
	if err := os.Symlink("../run/systemd/resolve/stub-resolv.conf", im.lower+"/etc/resolv.conf"); err != nil {
		t.Fatal(err)
	}
	im.expect(t, "test -L /etc/resolv.conf && test -s /etc/resolv.conf && echo there", "there\n")
	if got := im.changed(t); got != "/etc" {
		t.Error(got)
	}
}

// TestHostileRoots gives a victim directory to images that point at it wherever the sandbox mounts, makes or removes.
func TestHostileRoots(t *testing.T) {
	for _, name := range []string{"proc", "sys", "dev", "etc", "etc/hosts", "etc/resolv.conf", "m", "tmp"} {
		for _, up := range []string{"", "../../../../../../../../../../.."} {
			victim := t.TempDir()
			for _, d := range []string{"pts", "shm", "mqueue", "deep/er"} {
				if err := os.MkdirAll(victim+"/"+d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			for _, f := range []string{"ptmx", "null", "hosts", "resolv.conf", "secret", "deep/er/file"} {
				if err := os.WriteFile(victim+"/"+f, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			before := listing(t, victim)
			im := newImage(t)
			if err := errors.Join(os.RemoveAll(im.lower+"/"+name), os.Symlink(up+victim, im.lower+"/"+name)); err != nil {
				t.Fatal(err)
			}
			tmp, err := mount.Tmpfs(0, 0o755, 0, 0)
			if err != nil {
				t.Fatal(err)
			}
			out, _, err := im.sh(t, "ls "+victim+"/secret; echo x > /etc/hosts; rm -rf /tmp/*; rm -rf /m/*", with(Mount{Source: tmp, Target: "/m/deep/er"}), cwd("/tmp/deep"))
			tmp.Close()
			if strings.Contains(out, "secret\n") && !strings.Contains(out, "No such file") {
				t.Errorf("%s: the victim is in reach: %s", name, out)
			}
			if kernel := name == "proc" || name == "sys" || name == "dev"; kernel && err == nil {
				t.Errorf("/%s is a link and there is no error", name)
			}
			if after := listing(t, victim); after != before {
				t.Errorf("/%s -> %s changed the victim:\n%s\n%s", name, up+victim, before, after)
			}
		}
	}
	for _, name := range []string{"proc", "dev", "etc/hosts", "etc"} {
		im := newImage(t)
		if err := os.RemoveAll(im.lower + "/" + name); err != nil {
			t.Fatal(err)
		}
		if name == "etc/hosts" {
			if err := os.Mkdir(im.lower+"/"+name, 0o755); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(im.lower+"/"+name, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, _, err := im.sh(t, "true"); err == nil || !strings.Contains(err.Error(), "in the image") {
			t.Errorf("/%s of the wrong kind: %v", name, err)
		}
	}
}

// TestStubSwapped is an image step that puts a link to a victim where the sandbox made a mount point.
func TestStubSwapped(t *testing.T) {
	victim := t.TempDir()
	if err := errors.Join(os.MkdirAll(victim+"/b/c", 0o755), os.WriteFile(victim+"/b/f", nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	before := listing(t, victim)
	im := newImage(t)
	tmp, err := mount.Tmpfs(0, 0o755, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tmp.Close()
	m := cloned(t, "/bin/busybox", false)
	_, _, err = im.sh(t, "mv /a /elsewhere; ln -s "+victim+" /a", with(Mount{Source: tmp, Target: "/a/b/c"}, Mount{Source: m, Target: "/a/b/f"}))
	if err != nil {
		t.Error(err)
	}
	if after := listing(t, victim); after != before {
		t.Errorf("%s\n%s", before, after)
	}
}

func listing(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(dir, func(p string, st os.FileInfo, err error) error {
		if err == nil {
			fmt.Fprintln(&b, p, st.Mode(), st.Size(), st.ModTime().UnixNano())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestSeccompFromInside(t *testing.T) {
	confined(t, func(t *testing.T, c confinement, im image) {
		if !c.insecure {
			probe(t, im, "^TestProbe$", c.spec)
		}
	})
}

// probe runs a test of this program in the sandbox.
func probe(t *testing.T, im image, test string, change ...func(*Spec)) {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(im.lower+"/bin/probe", self, 0o755); err != nil {
		t.Fatal(err)
	}
	// Under the race detector it is not static.
	var libraries []Mount
	for _, dir := range []string{"/lib", "/lib64", "/usr/lib"} {
		if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
			continue
		}
		libraries = append(libraries, Mount{Source: cloned(t, dir, true), Target: dir})
	}
	change = append(change, with(libraries...), args("probe", "-test.run="+test), func(s *Spec) { s.Process.Env = append(s.Process.Env, "SANDBOX_TEST_PROBE=1") })
	out, st, err := im.sh(t, "", change...)
	if err != nil || st.ExitCode != 0 {
		t.Errorf("%+v, %v\n%s", st, err, out)
	}
}

// TestProbe makes calls that the filter refuses, when it runs in the sandbox.
func TestProbe(t *testing.T) {
	if os.Getenv("SANDBOX_TEST_PROBE") == "" {
		t.SkipNow() // TestSeccompFromInside runs it
	}
	for _, c := range []struct {
		name string
		nr   uintptr
		args [3]uintptr
		want unix.Errno
	}{
		{"socket alg", unix.SYS_SOCKET, [3]uintptr{unix.AF_ALG, unix.SOCK_SEQPACKET, 0}, unix.EPERM},
		{"socket vsock", unix.SYS_SOCKET, [3]uintptr{unix.AF_VSOCK, unix.SOCK_STREAM, 0}, unix.EPERM},
		{"socket rxrpc", unix.SYS_SOCKET, [3]uintptr{unix.AF_RXRPC, unix.SOCK_DGRAM, 0}, unix.EPERM},
		{"socket key", unix.SYS_SOCKET, [3]uintptr{unix.AF_KEY, unix.SOCK_RAW, 2}, unix.EPERM},
		{"socket ax25", unix.SYS_SOCKET, [3]uintptr{unix.AF_AX25, unix.SOCK_DGRAM}, unix.EPERM},
		{"socketpair alg", unix.SYS_SOCKETPAIR, [3]uintptr{unix.AF_ALG, unix.SOCK_SEQPACKET}, unix.EPERM},
		{"socketpair vsock", unix.SYS_SOCKETPAIR, [3]uintptr{unix.AF_VSOCK, unix.SOCK_STREAM}, unix.EPERM},
		{"socket alg, hidden", unix.SYS_SOCKET, [3]uintptr{1<<32 | unix.AF_ALG, unix.SOCK_SEQPACKET, 0}, unix.EPERM},
		{"unshare user", unix.SYS_UNSHARE, [3]uintptr{unix.CLONE_NEWUSER}, unix.EPERM},
		{"unshare time", unix.SYS_UNSHARE, [3]uintptr{unix.CLONE_NEWTIME}, unix.EPERM},
		{"clone user", unix.SYS_CLONE, [3]uintptr{unix.CLONE_NEWUSER | uintptr(unix.SIGCHLD)}, unix.EPERM},
		{"setns", unix.SYS_SETNS, [3]uintptr{}, unix.EPERM},
		{"perf_event_open", unix.SYS_PERF_EVENT_OPEN, [3]uintptr{}, unix.EPERM},
		{"ptrace of another", unix.SYS_PTRACE, [3]uintptr{unix.PTRACE_ATTACH, 1 << 21}, unix.ESRCH},
		{"io_uring_enter", unix.SYS_IO_URING_ENTER, [3]uintptr{}, unix.EPERM},
		{"request_key", unix.SYS_REQUEST_KEY, [3]uintptr{}, unix.EPERM},
		{"umount2", unix.SYS_UMOUNT2, [3]uintptr{}, unix.EPERM},
		{"pivot_root", unix.SYS_PIVOT_ROOT, [3]uintptr{}, unix.EPERM},
		{"open_tree", unix.SYS_OPEN_TREE, [3]uintptr{}, unix.EPERM},
		{"move_mount", unix.SYS_MOVE_MOUNT, [3]uintptr{}, unix.EPERM},
		{"mount_setattr", unix.SYS_MOUNT_SETATTR, [3]uintptr{}, unix.EPERM},
		{"fsmount", unix.SYS_FSMOUNT, [3]uintptr{}, unix.EPERM},
		{"init_module", unix.SYS_INIT_MODULE, [3]uintptr{}, unix.EPERM},
		{"finit_module", unix.SYS_FINIT_MODULE, [3]uintptr{}, unix.EPERM},
		{"kexec_load", unix.SYS_KEXEC_LOAD, [3]uintptr{}, unix.EPERM},
		{"reboot", unix.SYS_REBOOT, [3]uintptr{}, unix.EPERM},
		{"swapon", unix.SYS_SWAPON, [3]uintptr{}, unix.EPERM},
		{"syslog", unix.SYS_SYSLOG, [3]uintptr{}, unix.EPERM},
		{"settimeofday", unix.SYS_SETTIMEOFDAY, [3]uintptr{}, unix.EPERM},
		{"acct", unix.SYS_ACCT, [3]uintptr{}, unix.EPERM},
		{"quotactl", unix.SYS_QUOTACTL, [3]uintptr{}, unix.EPERM},
		{"fanotify_init", unix.SYS_FANOTIFY_INIT, [3]uintptr{}, unix.EPERM},
		{"io_uring_setup", unix.SYS_IO_URING_SETUP, [3]uintptr{}, unix.EPERM},
		{"add_key", unix.SYS_ADD_KEY, [3]uintptr{}, unix.EPERM},
		{"keyctl", unix.SYS_KEYCTL, [3]uintptr{}, unix.EPERM},
		{"bpf", unix.SYS_BPF, [3]uintptr{}, unix.EPERM},
		{"userfaultfd", unix.SYS_USERFAULTFD, [3]uintptr{}, unix.EPERM},
		{"mount", unix.SYS_MOUNT, [3]uintptr{}, unix.EPERM},
		{"fsopen", unix.SYS_FSOPEN, [3]uintptr{}, unix.EPERM},
		{"open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, [3]uintptr{}, unix.EPERM},
		{"clone3", unix.SYS_CLONE3, [3]uintptr{}, unix.ENOSYS},
		{"TIOCSTI", unix.SYS_IOCTL, [3]uintptr{0, unix.TIOCSTI}, unix.EPERM},
		{"TIOCLINUX", unix.SYS_IOCTL, [3]uintptr{0, unix.TIOCLINUX}, unix.EPERM},
		{"unknown", 999, [3]uintptr{}, unix.ENOSYS},
		{"x32 getpid", 0x40000000 | 39, [3]uintptr{}, unix.ENOSYS},
	} {
		if _, _, errno := unix.RawSyscall(c.nr, c.args[0], c.args[1], c.args[2]); errno != c.want {
			t.Errorf("%s: %v, want %v", c.name, errno, c.want)
		}
	}
	if err := unix.Chmod("/tmp", 0o4755); err != nil {
		t.Error(err)
	}
	// In a user namespace nobody may.
	if err := unix.Mknod("/tmp/node", unix.S_IFBLK|0o600, int(unix.Mkdev(7, 0))); err != nil && !strings.Contains(readFile(t, "/proc/self/uid_map"), "100000") {
		t.Error(err)
	}
	if fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, 0); err != nil {
		t.Error(err)
	} else {
		unix.Close(fd)
	}
}

func TestManyAtOnce(t *testing.T) {
	im := newImage(t)
	fds := func() int {
		names, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	run := func(i int) error {
		up := t.TempDir()
		if err := errors.Join(os.Mkdir(up+"/u", 0o755), os.Mkdir(up+"/w", 0o755)); err != nil {
			return err
		}
		f, err := mount.Overlay{Lower: []string{im.lower}, Upper: up + "/u", Work: up + "/w", Volatile: true}.Mount()
		if err != nil {
			return err
		}
		defer f.Close()
		var out bytes.Buffer
		st, err := Run(context.Background(), Spec{Root: f, Process: Process{Args: []string{"sh", "-c", "echo $$ " + strconv.Itoa(i)}, Env: []string{defaultPath}}, Stdio: Stdio{Stdout: &out}})
		if want := fmt.Sprintf("1 %d\n", i); err == nil && (out.String() != want || st.ExitCode != 0) {
			err = fmt.Errorf("%q, %+v", out.String(), st)
		}
		return err
	}
	if err := run(0); err != nil {
		t.Fatal(err)
	}
	before := fds()
	done := make(chan error)
	for w := range 8 {
		go func() {
			var errs []error
			for i := range 25 {
				errs = append(errs, run(100*w+i))
			}
			done <- errors.Join(errs...)
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if after := fds(); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func TestPlan(t *testing.T) {
	im := newImage(t)
	var plan bytes.Buffer
	im.expect(t, "true", "", func(s *Spec) { s.Stdio.Debug = &plan })
	text := plan.String()
	last := -1
	for _, step := range []string{"ppoll(", "clone3(", "keyctl(", "pivot_root(", "umount2(", "getcwd(", "seccomp(", "close_range(5,", "execveat(4,", "wait4(",
		"close(3)", "setgroups(", "setresgid(", "setresuid(", "capset(", `execve("/bin/sh"`} {
		i := strings.LastIndex(text, step)
		if i < last || i < 0 {
			t.Errorf("%s is out of order", step)
		}
		last = max(i, last)
	}
}

func TestOnlyStub(t *testing.T) {
	for text, want := range map[string]bool{
		"nameserver 127.0.0.53\noptions edns0\n":       true,
		"nameserver 127.0.0.53\nnameserver 10.0.0.1\n": false,
		"nameserver 10.0.0.1\n":                        false,
		"":                                             false,
		"# nameserver 127.0.0.53\nsearch example.org\n": false,
		"nameserver 127.0.0.53\nnameserver 127.0.0.53 ": true,
		"nameserver nonsense\nnameserver 127.0.0.53\n":  false,
	} {
		if got := onlyStub(text); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// TestSharedMount has two steps make the same mount point in what they share, of which the first ends before the second begins: it does
// not take the mount point away. Of directories that are a step's own nothing is left.
func TestSharedMount(t *testing.T) {
	im := newImage(t)
	dir := t.TempDir()
	tmpfs := func() *os.File {
		f, err := mount.Tmpfs(0, 0o755, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	prepared := func() *run {
		t.Helper()
		upper, work := t.TempDir(), t.TempDir()
		root, err := mount.Overlay{Lower: []string{im.lower}, Upper: upper, Work: work, Volatile: true}.Mount()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { root.Close() })
		r := &run{spec: Spec{Root: root, Process: Process{Args: []string{"/bin/touch", "/shared/in/x"}, Env: []string{defaultPath}}, Mounts: []Mount{
			{Source: cloned(t, dir, true), Target: "/shared", Shared: true}, {Source: tmpfs(), Target: "/shared/in"}}}, tree: tree{root: root}}
		t.Cleanup(r.close)
		if err := r.prepare(); err != nil {
			t.Fatal(err)
		}
		return r
	}
	first, second := prepared(), prepared()
	for _, r := range []*run{first, second} {
		st, err := r.run(context.Background())
		if err = errors.Join(err, r.clean()); err != nil || st.ExitCode != 0 {
			t.Fatalf("%+v, %v", st, err)
		}
	}
	if names, err := filepath.Glob(dir + "/*/*"); err != nil || len(names) != 0 {
		t.Errorf("%v, %q", err, names)
	}
}
