package sandbox

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/kilntest"
	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/passwd"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

var root = passwd.User{Groups: []uint32{0}, Home: "/root"}

// image is a root file system on disk, made of busybox, to be changed by a test before it is mounted.
type image struct {
	lower, upper, work string
	ids                *mount.IDMap // nil: steps have kiln's
}

// asUsers gives the image's steps a user namespace of their own.
func (im image) asUsers(t testing.TB) image {
	t.Helper()
	m, err := NewIDMap(100000, 200000, 65536)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Namespace.Close() })
	im.ids = m
	f, err := mount.Overlay{Lower: []string{im.lower, im.upper}, IDMap: m}.Mount()
	if errors.Is(err, mount.ErrNoIDMap) && kilntest.Before(6, 15) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	return im
}

func newImage(t testing.TB) image {
	t.Helper()
	dir := t.TempDir()
	im := image{lower: dir + "/lower", upper: dir + "/upper", work: dir + "/work"}
	for _, d := range []string{im.upper, im.work, im.lower, im.lower + "/bin", im.lower + "/etc", im.lower + "/proc",
		im.lower + "/sys", im.lower + "/dev", im.lower + "/tmp", im.lower + "/root"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(im.lower+"/bin/busybox", busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields("sh cat ls true false id env sleep mount mknod dd echo grep wc hostname pwd touch rm ln " +
		"mkdir rmdir setsid nohup su umount stat test sed chmod tr sort df nc ip tail head unshare find mv kill awk readlink ping") {
		if err := os.Symlink("busybox", im.lower+"/bin/"+name); err != nil {
			t.Fatal(err)
		}
	}
	im.write(t, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/sh\n")
	im.write(t, "etc/group", "root:x:0:\ndaemon:x:1:\nadm:x:4:daemon\n")
	return im
}

func (im image) write(t testing.TB, name, content string) {
	t.Helper()
	p := filepath.Join(im.lower, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// mount returns a new overlay of the image. What is in upper already stays.
func (im image) mount(t testing.TB) *os.File {
	t.Helper()
	if err := os.RemoveAll(im.work + "/work/incompat"); err != nil {
		t.Fatal(err)
	}
	f, err := mount.Overlay{Lower: []string{im.lower}, Upper: im.upper, Work: im.work, Volatile: true, IDMap: im.ids}.Mount()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// sh runs a script in the image and returns its output.
func (im image) sh(t testing.TB, script string, change ...func(*Spec)) (string, Status, error) {
	t.Helper()
	var out bytes.Buffer
	s := Spec{Root: im.mount(t), Process: Process{Args: []string{"/bin/sh", "-c", script}, Env: []string{defaultPath}, User: root},
		Privileges: Privileges{IDs: im.ids}, Stdio: Stdio{Stdout: &out, Stderr: &out}}
	for _, c := range change {
		c(&s)
	}
	status, err := Run(context.Background(), s)
	return out.String(), status, err
}

// lines runs a script that must end well, and returns the lines of its output.
func (im image) lines(t testing.TB, script string, change ...func(*Spec)) []string {
	t.Helper()
	out, st, err := im.sh(t, script, change...)
	if err != nil || st.ExitCode != 0 {
		t.Fatalf("%q: %+v, %v\n%s", script, st, err, out)
	}
	return strings.Split(strings.TrimSuffix(out, "\n"), "\n")
}

func (im image) expect(t testing.TB, script, want string, change ...func(*Spec)) {
	t.Helper()
	out, st, err := im.sh(t, script, change...)
	if err != nil || out != want {
		t.Errorf("%q: %+v, %v\n%swant\n%s", script, st, err, out, want)
	}
}

// changed are the paths that a run left in the upper directory, sorted.
func (im image) changed(t testing.TB) string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(im.upper, func(p string, _ os.DirEntry, err error) error {
		if err == nil && p != im.upper {
			list = append(list, strings.TrimPrefix(p, im.upper))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(list, " ")
}

// cloned returns a clone of what is mounted at a path.
func cloned(t *testing.T, path string, recursive bool) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := mount.Clone(f, recursive)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func user(u passwd.User) func(*Spec)    { return func(s *Spec) { s.Process.User = u } }
func network(n NetworkMode) func(*Spec) { return func(s *Spec) { s.Network.Mode = n } }
func insecure(s *Spec)                  { s.Privileges.Insecure = true }
func cwd(dir string) func(*Spec)        { return func(s *Spec) { s.Process.Cwd = dir } }
func args(list ...string) func(*Spec)   { return func(s *Spec) { s.Process.Args = list } }
func env(list ...string) func(*Spec)    { return func(s *Spec) { s.Process.Env = list } }
func with(list ...Mount) func(*Spec)    { return func(s *Spec) { s.Mounts = list } }

func TestProcess(t *testing.T) {
	im := newImage(t)
	im.expect(t, "echo $$ /proc/[0-9]*", "1 /proc/1\n")
	im.expect(t, "hostname; grep -c buildkitsandbox /etc/hosts", "buildkitsandbox\n1\n")
	im.expect(t, "hostname; grep -cw mine /etc/hosts", "mine\n1\n", func(s *Spec) { s.Network.Hostname = "mine" })
	im.expect(t, "grep internal /etc/hosts", "10.1.2.3\tdb.internal\n",
		func(s *Spec) { s.Network.Hosts = []Host{{Name: "db.internal", IP: "10.1.2.3"}} })
	im.expect(t, "umask; cat; test -t 0 || echo none", "0022\nnone\n")
	im.expect(t, "cat /proc/self/cgroup | grep -v ':/$' | wc -l", "0\n")
	im.expect(t, "",
		"SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\nSigCgt:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t2\n",
		args("grep", "-E", "^(Sig(Blk|Ign|Cgt)|NoNewPrivs|Seccomp):", "/proc/self/status"))
	im.expect(t, "ulimit -Sn; ulimit -Hn; ulimit -c", "1000\n2000\n0\n", func(s *Spec) {
		s.Process.Rlimits = []Rlimit{{"nofile", 1000, 2000}, {"core", 0, 0}}
	})
	im.expect(t, "df -k /dev/shm | awk 'NR==2{print $2}'", "16384\n", func(s *Spec) { s.Resources.ShmSize = 16 << 20 })
	im.expect(t, "df -k /dev/shm | awk 'NR==2{print $2}'", "65536\n")
}

func TestOwnNamespaces(t *testing.T) {
	im := newImage(t)
	for _, ns := range []string{"mnt", "pid", "ipc", "uts", "cgroup", "net"} {
		own, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []NetworkMode{NetworkHost, NetworkNone} {
			out := im.lines(t, "readlink /proc/self/ns/"+ns, network(n))[0]
			if shared := ns == "net" && n == NetworkHost; (out == own) != shared {
				t.Errorf("%s with network %d: %s, kiln's is %s", ns, n, out, own)
			}
		}
	}
	im.expect(t, "ls /sys/class/net; cat /sys/class/net/lo/operstate; ping -c 1 -W 1 127.0.0.1 | grep -c '1 packets received'",
		"lo\nunknown\n1\n", network(NetworkNone))
}

func TestCapabilities(t *testing.T) {
	im := newImage(t)
	show := "sed -n 's/^Cap\\(...\\):.0*/\\1 /p' /proc/self/status"
	im.expect(t, show, "Inh \nPrm a80425fb\nEff a80425fb\nBnd a80425fb\nAmb \n")
	im.expect(t, show, "Inh \nPrm \nEff \nBnd a80425fb\nAmb \n", user(passwd.User{UID: 1, GID: 1, Groups: []uint32{1}}))
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, bounding, _ := strings.Cut(string(status), "CapBnd:\t")
	bounding, _, _ = strings.Cut(bounding, "\n")
	bounding = strings.TrimLeft(bounding, "0")
	im.expect(t, show+"; grep Seccomp: /proc/self/status",
		"Inh \nPrm "+bounding+"\nEff "+bounding+"\nBnd "+bounding+"\nAmb \nSeccomp:\t0\n", insecure)
}

func TestUsers(t *testing.T) {
	im := newImage(t)
	root := im.mount(t)
	for spec, want := range map[string]string{
		"":            "uid=0(root) gid=0(root) groups=0(root)\n/root\n",
		"daemon":      "uid=1(daemon) gid=1(daemon) groups=1(daemon),4(adm)\n/usr/sbin\n",
		"daemon:root": "uid=1(daemon) gid=0(root) groups=0(root)\n/usr/sbin\n",
		"5:6":         "uid=5 gid=6 groups=6\n/\n",
	} {
		u, err := LookupUser(root, spec)
		if err != nil {
			t.Fatal(err)
		}
		im.expect(t, "id; echo $HOME", want, user(u))
	}
	im.expect(t, "echo $HOME", "/mine\n", env(defaultPath, "HOME=/mine"))
}

func TestHostileUserFiles(t *testing.T) {
	victim := t.TempDir() + "/passwd"
	if err := os.WriteFile(victim, []byte("app:x:7:7::/:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, make := range map[string]func(p string) error{
		"link to the host": func(p string) error { return os.Symlink(victim, p) },
		"link up":          func(p string) error { return os.Symlink("../../../../../../../.."+victim, p) },
		"magic link":       func(p string) error { return os.Symlink("/proc/self/fd/0", p) },
		"pipe":             func(p string) error { return unix.Mkfifo(p, 0o644) },
		"device":           func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))) },
		"directory":        func(p string) error { return os.Mkdir(p, 0o755) },
		"loop":             func(p string) error { return os.Symlink("passwd", p) },
		"sparse giant":     func(p string) error { return errors.Join(os.WriteFile(p, nil, 0o644), os.Truncate(p, 1<<30)) },
	} {
		im := newImage(t)
		if err := errors.Join(os.Remove(im.lower+"/etc/passwd"), make(im.lower+"/etc/passwd")); err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if u, err := LookupUser(im.mount(t), "app"); err == nil {
			t.Errorf("%s: %+v", name, u)
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
			t.Errorf("%s: it took %d bytes of memory", name, n)
		}
	}
}

func TestNothingLeaks(t *testing.T) {
	t.Setenv("CANARY", "1")
	im := newImage(t)
	leak, err := os.Open("/") // without O_CLOEXEC below
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	for n := 60; n < 70; n++ {
		if err := unix.Dup2(int(leak.Fd()), n); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(n)
	}
	im.expect(t, "", "0\n1\n2\n3\n", args("ls", "/proc/self/fd")) // 3 is the directory that ls reads
	im.expect(t, "tr '\\0' '\\n' < /proc/1/environ | sort", "HOME=/root\n"+defaultPath+"\n")
	im.expect(t, "cat /proc/*/environ | grep -c CANARY", "0\n")
	// The host's root is not behind anything.
	im.expect(t, "ls /..; ls /../../proc/1/root/", strings.Repeat("bin\ndev\netc\nproc\nroot\nsys\ntmp\n", 2))
	for _, l := range im.lines(t, "cat /proc/self/mountinfo") {
		if f := strings.Fields(l); strings.HasPrefix(f[4], "/mnt") || strings.Contains(l, "/dev/vd") {
			t.Errorf("the host's mount: %s", l)
		}
	}
}

func TestSupervisorFilesAreProtected(t *testing.T) {
	im := newImage(t)
	im.expect(t, `for f in /proc/sys/kernel/hostname /proc/sysrq-trigger /etc/hosts /etc/resolv.conf /sys/kernel/mm/ksm/run; do
		(: >> $f) 2> /dev/null && echo "$f is writable"; done
		cat /proc/kcore /proc/keys /proc/timer_list /proc/interrupts 2> /dev/null | wc -c; ls /sys/firmware /proc/acpi /proc/scsi 2> /dev/null | grep -v : | grep -c .
		grep -c ' /sys sysfs ro,' /proc/mounts; mkdir /m; mount -t tmpfs none /m 2> /dev/null || echo no mount; umount /proc 2> /dev/null || echo no umount
		unshare -m true 2> /dev/null || echo no unshare`, "0\n0\n1\nno mount\nno umount\nno unshare\n")
	im.expect(t, `(: >> /proc/sys/vm/swappiness) && echo writable; mkdir -p /m2; mount -t tmpfs none /m2 && echo mounted; grep -c ' /sys sysfs rw,' /proc/mounts`,
		"writable\nmounted\n1\n", insecure)
}

func TestDevices(t *testing.T) {
	im := newImage(t)
	im.expect(t, `echo x > /dev/null; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; (echo x > /dev/full) 2> /dev/null || echo full
		ls -l /dev | grep -c '^b'; ls -d /dev/pts/ptmx /dev/shm /dev/mqueue /dev/fd /dev/stdin; echo y > /dev/y && cat /dev/y`,
		"3\n3\nfull\n0\n/dev/fd\n/dev/mqueue\n/dev/pts/ptmx\n/dev/shm\n/dev/stdin\ny\n")
	// Nodes may be made of every device, to be kept in the image, but not opened of others than those that are in /dev anyway.
	if err := DeviceNodes(); err != nil {
		t.Fatal(err)
	}
	const use = `for d in /tmp /dev /dev/shm; do
		mknod $d/n c 1 3 && (echo x > $d/n) 2> /dev/null && echo "$d/n usable"
		mknod $d/b b 7 0; dd if=$d/b count=1 2> /dev/null && echo "$d/b usable"
		mknod $d/k c 1 11; dd if=$d/k count=1 2> /dev/null && echo "$d/k usable"
		mknod $d/c c 5 1; (echo x > $d/c) 2> /dev/null && echo "$d/c usable"; done; stat -c '%t,%T' /tmp/b; rm /tmp/k /tmp/c`
	im.expect(t, use, "/tmp/n usable\n7,0\n")
	if im.changed(t) != "/etc /tmp /tmp/b /tmp/n" {
		t.Error(im.changed(t))
	}
}

func TestExec(t *testing.T) {
	im := newImage(t)
	im.write(t, "bin/script", "#!/bin/nope\n")
	im.write(t, "bin/text", "echo no shebang\n")
	im.write(t, "bin/private", "#!/bin/sh\n")
	for _, n := range []string{"script", "text"} {
		if err := os.Chmod(im.lower+"/bin/"+n, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name  string
		code  int
		errno syscall.Errno
		text  string
	}{
		{"nope", 127, unix.ENOENT, `exec: "nope": executable file not found in $PATH`},
		{"/bin/nope", 127, unix.ENOENT, `exec: "/bin/nope": no such file or directory`},
		{"script", 127, unix.ENOENT, `exec: "script": the interpreter or loader that it names does not exist`},
		{"text", 126, unix.ENOEXEC, `exec: "text": exec format error`},
		{"private", 126, unix.EACCES, `exec: "private": permission denied`},
		{"/bin", 126, unix.EACCES, `exec: "/bin": permission denied`},
	} {
		_, st, err := im.sh(t, "", args(c.name))
		var e *ExecError
		if !errors.As(err, &e) || e.Errno != c.errno || err.Error() != c.text || st.ExitCode != c.code {
			t.Errorf("%s: %+v, %v", c.name, st, err)
		}
	}
	var e *ExecError
	if _, _, err := im.sh(t, "", args("sh"), env("A=b")); !errors.As(err, &e) || e.Errno != unix.ENOENT {
		t.Errorf("without PATH: %v", err)
	}
	im.expect(t, "", "found\n", args("echo", "found"), env("PATH=/none:/etc/passwd:/bin"))
	big := make([]string, 3000)
	for i := range big {
		big[i] = strings.Repeat("x", 1000)
	}
	if _, _, err := im.sh(t, "", args(append([]string{"echo"}, big...)...)); !errors.As(err, &e) || e.Errno != unix.E2BIG {
		t.Errorf("many arguments: %v", err)
	}
}

func TestStatus(t *testing.T) {
	im := newImage(t)
	if _, st, err := im.sh(t, "exit 42"); err != nil || st.ExitCode != 42 || st.Signal != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	// Process 1 has no default actions, so the signal is one that the kernel sends.
	if _, st, err := im.sh(t, "ulimit -t 1; while :; do :; done"); err != nil || st.ExitCode != 137 || st.Signal != unix.SIGKILL || st.CPU < time.Second/2 {
		t.Errorf("%+v, %v", st, err)
	}
	im.expect(t, "(sleep 300; echo late) & echo done", "done\n")
}

func TestOutputStreams(t *testing.T) {
	im := newImage(t)
	var out, errs bytes.Buffer
	st, err := Run(context.Background(), Spec{Root: im.mount(t), Process: Process{Args: []string{"/bin/sh", "-c",
		"dd if=/dev/zero bs=64k count=100 2> /dev/null; echo e >&2"}, Env: []string{defaultPath}}, Stdio: Stdio{Stdout: &out, Stderr: &errs}})
	if err != nil || st.ExitCode != 0 || out.Len() != 100*64<<10 || errs.String() != "e\n" {
		t.Errorf("%+v, %v, %d, %q", st, err, out.Len(), errs.String())
	}
	st, err = Run(context.Background(), Spec{Root: im.mount(t), Process: Process{Args: []string{"/bin/sh", "-c", "dd if=/dev/zero bs=64k count=100"},
		Env: []string{defaultPath}}, Stdio: Stdio{Stdout: failing{}}})
	if !errors.Is(err, errFailing) || st.ExitCode != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	if st, err = Run(context.Background(), Spec{Root: im.mount(t), Process: Process{Args: []string{"/bin/echo"}}}); err != nil || st.ExitCode != 0 {
		t.Errorf("%+v, %v", st, err)
	}
}

type failing struct{}

var errFailing = errors.New("disk full")

func (failing) Write([]byte) (int, error) { return 0, errFailing }

func TestWorkingDirectory(t *testing.T) {
	im := newImage(t)
	if err := os.Symlink("/tmp", im.lower+"/link"); err != nil {
		t.Fatal(err)
	}
	im.expect(t, "pwd -P", "/a/b\n", cwd("/a/b"))
	im.expect(t, "pwd -P", "/tmp/new\n", cwd("/link/new"))
	im.expect(t, "pwd -P", "/sys/kernel\n", cwd("/sys/kernel"))
	im.expect(t, "pwd -P", "/\n", cwd("/../.."))
	if got := im.changed(t); got != "/a /a/b /etc /tmp /tmp/new" {
		t.Error(got)
	}
	var e *SetupError
	if _, _, err := im.sh(t, "pwd", cwd("/proc/nope")); !errors.As(err, &e) || e.Errno != unix.ENOENT {
		t.Error(err)
	}
	if _, _, err := im.sh(t, "pwd", cwd("/etc/passwd")); err == nil {
		t.Error("a file as working directory")
	}
}

func TestMistakes(t *testing.T) {
	im := newImage(t)
	for name, change := range map[string]func(*Spec){
		"no program":      args(),
		"zero byte":       args("a\x00b"),
		"network":         network(7),
		"relative":        cwd("a"),
		"resource":        func(s *Spec) { s.Process.Rlimits = []Rlimit{{"nofiles", 1, 1}} },
		"soft above hard": func(s *Spec) { s.Process.Rlimits = []Rlimit{{"nofile", 2, 1}} },
		"host":            func(s *Spec) { s.Network.Hosts = []Host{{"a\n1.2.3.4", "b"}} },
		"mount at /":      func(s *Spec) { s.Mounts = []Mount{{Source: s.Root, Target: "/"}} },
		"mount in /proc":  func(s *Spec) { s.Mounts = []Mount{{Source: s.Root, Target: "/proc/x"}} },
	} {
		if _, _, err := im.sh(t, "true", change); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	f := im.mount(t)
	s := Spec{Root: f, Process: Process{Args: []string{"/bin/true"}}}
	if _, err := Run(context.Background(), s); err != nil {
		t.Fatal(err)
	}
	var e *SetupError
	if _, err := Run(context.Background(), s); !errors.As(err, &e) {
		t.Errorf("a root that is used up: %v", err)
	}
}
