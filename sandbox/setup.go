package sandbox

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/sandbox/internal/calls"
)

// parts are the descriptors that the process is given to set itself up with; none of them survives that.
type parts struct {
	dev, pts, shm        *os.File // detached file systems; pts may be nil
	ptsOptions           []mount.Option
	procAt, sysAt, devAt *os.File // mount points in the root
	etc                  []*os.File
	targets              []*os.File // of Spec.Mounts and Spec.Devices
	in, out, err         *os.File   // nil for /dev/null
	kiln                 *os.File   // kiln's pidfd
	cgroups              []*os.File // what is written to for joining the control groups of version 1
	shown                *os.File   // a file system for /sys/fs/cgroup; nil if it is one of version 2, or what /sys has there is empty
	emulator             *os.File   // a mount of the emulator's program; nil for none
	sys                  *os.File   // a clone of the machine's /sys alone; nil if the process makes its own or clones all that is there
}

// capabilities are those that a process has, which are Docker's.
const capabilities uint64 = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID |
	1<<unix.CAP_KILL | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETPCAP | 1<<unix.CAP_NET_BIND_SERVICE |
	1<<unix.CAP_NET_RAW | 1<<unix.CAP_SYS_CHROOT | 1<<unix.CAP_MKNOD | 1<<unix.CAP_AUDIT_WRITE | 1<<unix.CAP_SETFCAP

// Paths below /proc and /sys that a process sees empty, and those below /proc that it may not write: Docker's.
var (
	maskedProcFiles = []string{"interrupts", "kcore", "keys", "latency_stats", "sched_debug", "timer_list", "timer_stats"}
	maskedProcDirs  = []string{"acpi", "asound", "scsi"}
	maskedSysDirs   = []string{"devices/virtual/powercap", "firmware"}
	// What else is mounted below the machine's /sys, where a process has that and not one of its own.
	hostSysDirs  = []string{"fs/bpf", "fs/pstore", "kernel/config", "kernel/debug", "kernel/security", "kernel/tracing"}
	readOnlyProc = []string{"bus", "fs", "irq", "sys", "sysrq-trigger"}
)

// thermalThrottle finds the directories below /sys that count how often each processor was too hot.
var thermalThrottle = sync.OnceValue(func() []string {
	dirs, _ := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle") // the pattern is well-formed
	for i, d := range dirs {
		dirs[i] = strings.TrimPrefix(d, "/sys/")
	}
	return dirs
})

// resources are the resource limits by name, see getrlimit(2).
var resources = map[string]int{
	"as": unix.RLIMIT_AS, "core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA,
	"fsize": unix.RLIMIT_FSIZE, "locks": unix.RLIMIT_LOCKS, "memlock": unix.RLIMIT_MEMLOCK,
	"msgqueue": unix.RLIMIT_MSGQUEUE, "nice": unix.RLIMIT_NICE, "nofile": unix.RLIMIT_NOFILE,
	"nproc": unix.RLIMIT_NPROC, "rss": unix.RLIMIT_RSS, "rtprio": unix.RLIMIT_RTPRIO, "rttime": unix.RLIMIT_RTTIME,
	"sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK,
}

const (
	moveFromFd  = unix.MOVE_MOUNT_F_EMPTY_PATH
	moveToFd    = unix.MOVE_MOUNT_T_EMPTY_PATH
	cloneTree   = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC
	sizeofIfreq = 40 // struct ifreq, see netdevice(7)
	standard    = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
)

func fd(f *os.File) int { return int(f.Fd()) }

// plan makes the plans of the keeper and of the process.
func (r *run) plan(p parts) error {
	var err error
	if r.process, err = r.processPlan(p); err != nil {
		return err
	}
	k := &calls.List{Flags: unix.CLONE_NEWPID}
	planKeeper(k, p)
	if r.spec.Network.Mode == NetworkJoin {
		k.Add("enter the network namespace", unix.SYS_SETNS, fd(r.spec.Network.Namespace), unix.CLONE_NEWNET)
	}
	if m := r.spec.Privileges.IDs; m != nil {
		k.Add("enter the user namespace", unix.SYS_SETNS, fd(m.Namespace), unix.CLONE_NEWUSER)
	}
	if f := r.spec.Privileges.UserNamespace; f != nil {
		k.Add("enter the user namespace", unix.SYS_SETNS, fd(f), unix.CLONE_NEWUSER)
	}
	r.planWait(k, p)
	return nil
}

// planKeeper is what a process that starts that of the run, and waits for it, does first.
func planKeeper(k *calls.List, p parts) {
	k.Add("leave kiln's session", unix.SYS_SETSID)
	for _, f := range p.cgroups {
		k.Add("join a control group", unix.SYS_WRITE, fd(f), []byte("0"), 1)
	}
}

// planWait is what it does then.
func (r *run) planWait(k *calls.List, p parts) {
	// Here, since a change of privileges would take the signal away.
	k.Add("die with kiln", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, int(unix.SIGKILL), 0, 0, 0)
	k.Add("see that kiln is alive", unix.SYS_PPOLL, calls.Raw(unix.PollFd{Fd: int32(fd(p.kiln)), Events: unix.POLLIN}), 1,
		calls.Raw(unix.Timespec{}), 0, 8).MustBeZero()
	process := k.Add(startProcess, calls.Clone, r.process)
	k.Closes = k.Add("close files", unix.SYS_CLOSE_RANGE, 0, uint32(1<<32-1), 0) // the process has closed its own by then, see CLONE_VFORK
	r.status, r.usage = &calls.Buffer{Size: 4}, &calls.Buffer{Size: int(unsafe.Sizeof(unix.Rusage{}))}
	r.waited = k.Add("wait for the process", unix.SYS_WAIT4, process, r.status, 0, r.usage)
	k.Add("exit", unix.SYS_EXIT_GROUP, 0)
	r.keeper = k
}

// processPlan is what the process does until it is the launcher: it makes its namespaces, mounts and descriptors.
func (r *run) processPlan(p parts) (*calls.List, error) {
	s := &r.spec
	// The keeper waits until the program is executed (vfork), as far as the kernel is concerned: else a change of oom_score_adj
	// would be for all that share kiln's memory, kiln included.
	const namespaces = unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
	l := &calls.List{Flags: namespaces | unix.CLONE_VFORK}
	if s.Network.Mode == NetworkNone {
		l.Flags |= unix.CLONE_NEWNET
	}
	r.planIdentity(l, calls.Here(), "/proc/self")
	r.planRoot(l, p)
	if s.Network.Mode == NetworkNone {
		sock := l.Add("open a socket", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		req := make([]byte, sizeofIfreq)
		copy(req, "lo")
		binary.NativeEndian.PutUint16(req[unix.IFNAMSIZ:], unix.IFF_UP|unix.IFF_RUNNING)
		l.Add("bring up the loopback interface", unix.SYS_IOCTL, sock, unix.SIOCSIFFLAGS, req)
	}
	l.Add("set the host name", unix.SYS_SETHOSTNAME, s.Network.Hostname, len(s.Network.Hostname))

	// The step's own, since it may change the mode and the owner of what its descriptors stand for.
	null := l.Add("open /dev/null", unix.SYS_OPENAT, fd(p.dev), "null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	r.planProgram(l, p, null)
	if r.streams.signals != nil {
		const first = 1                               // the process is the first of its namespace
		r.streams.signals.plan(l, first, fd(p.devAt)) // which nothing needs any more
	}
	if err := r.planFilter(l, p.dev); err != nil { // and neither this
		return nil, err
	}
	return l, r.launch.Add(l)
}

// planIdentity has a process leave what it has of kiln's: session, keyring, signals, and in a user namespace its ids. proc is where the
// process finds itself in the /proc of kiln, below the directory that is dir.
func (r *run) planIdentity(l *calls.List, dir any, proc string) {
	l.Add("start a session", unix.SYS_SETSID)
	l.Add("leave kiln's keyring", unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0).
		Or(syscall.ENOSYS, syscall.EPERM) // of a container's system call policy, which is the process's too: it gets at no keyring then
	// Real-time signals too: a parent that used posix_spawn, as make does, leaves the first of them ignored.
	for sig := 1; sig <= 64; sig++ {
		if sig != int(unix.SIGKILL) && sig != int(unix.SIGSTOP) {
			// struct sigaction of the kernel: the handler is its first word and SIG_DFL is 0.
			l.Add(fmt.Sprintf("reset signal %d", sig), unix.SYS_RT_SIGACTION, sig, make([]byte, 32), 0, 8)
		}
	}
	if adj, ok := oomScore(); ok {
		file := l.Add("open oom_score_adj", unix.SYS_OPENAT, dir, proc+"/oom_score_adj", unix.O_WRONLY|unix.O_CLOEXEC, 0)
		l.Add("rather die than kiln", unix.SYS_WRITE, file, []byte(adj), len(adj))
	}
	if r.spec.Privileges.IDs != nil {
		l.Add("leave kiln's groups", unix.SYS_SETGROUPS, 0, 0)
		l.Add("become the group of the namespace's root", unix.SYS_SETRESGID, 0, 0, 0)
		l.Add("become the namespace's root", unix.SYS_SETRESUID, 0, 0, 0)
	}
}

// planProgram gives a process that is in its root what its program begins with: umask, working directory, and descriptors, of which null
// takes the places of those that are nothing.
func (r *run) planProgram(l *calls.List, p parts, null any) {
	s := &r.spec
	l.Add("set the umask", unix.SYS_UMASK, 0o022)
	dir := l.Add("open working directory "+s.Process.Cwd, unix.SYS_OPENAT2, calls.Here(), s.Process.Cwd,
		calls.Raw(unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}), unix.SizeofOpenHow)
	l.Add("change to working directory "+s.Process.Cwd, unix.SYS_FCHDIR, dir)
	cwd := &calls.Buffer{Size: unix.PathMax}
	l.Add("read the working directory", unix.SYS_GETCWD, cwd, cwd.Size)
	l.Add("see that the working directory is in the root", calls.Check, cwd, int('/'), int(unix.EXDEV))

	orNull := func(f *os.File) any {
		if f == nil {
			return null
		}
		return fd(f)
	}
	l.Add("set standard input", unix.SYS_DUP3, orNull(p.in), 0, 0)
	l.Add("set standard output", unix.SYS_DUP3, orNull(p.out), 1, 0)
	l.Add("set standard error", unix.SYS_DUP3, orNull(p.err), 2, 0)
	if r.streams.tty != nil {
		l.Add("take the terminal", unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	}
}

// launchPlan is what the launcher does: it takes the process's privileges away, and executes its program.
func (r *run) launchPlan() (*calls.List, error) {
	s := &r.spec
	l := calls.NewLaunchList()
	// Only now, when nothing more is opened: kiln may have more files open than the process may have. It takes privileges.
	if err := r.planLimits(l); err != nil {
		return nil, err
	}
	if err := r.planPrivileges(l); err != nil {
		return nil, err
	}
	l.Add("unblock signals", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, make([]byte, 8), 0, 8)

	env := s.Process.Env
	if !hasName(env, "HOME") {
		env = append(append([]string(nil), env...), "HOME="+s.Process.User.Home)
	}
	argv, envp := &calls.Strings{List: s.Process.Args}, &calls.Strings{List: env}
	paths := candidates(s.Process.Args[0], env)
	for _, name := range paths {
		r.execs = append(r.execs, attempt{execute: l.Add("execute "+name, unix.SYS_EXECVE, name, argv, envp).
			Or(syscall.ENOENT, syscall.ENOTDIR, syscall.EACCES)})
	}
	look := calls.Raw(unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS})
	for i, name := range paths {
		r.execs[i].look = l.Add("look for "+name, unix.SYS_OPENAT2, calls.Here(), name, look, unix.SizeofOpenHow).
			Or(syscall.ENOENT, syscall.ENOTDIR, syscall.EACCES, syscall.ELOOP, syscall.ENAMETOOLONG).Skipping(1)
		l.Add("close "+name, unix.SYS_CLOSE_RANGE, 3, uint32(1<<32-1), 0)
	}
	return l, nil
}

// oomScore is what a process's oom_score_adj is to be: half-way from kiln's to the highest, so that when memory is short the
// kernel chooses a step before kiln. False where kiln does not know its own. See proc(5).
func oomScore() (string, bool) {
	text, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return "", false
	}
	own, err := strconv.Atoi(strings.TrimSpace(string(text)))
	return strconv.Itoa((own + 1001) / 2), err == nil
}

func hasName(env []string, name string) bool {
	for _, v := range env {
		if strings.HasPrefix(v, name+"=") {
			return true
		}
	}
	return false
}

// planRoot attaches everything that is mounted and makes it the only file tree.
func (r *run) planRoot(l *calls.List, p parts) {
	s := &r.spec
	private := calls.Raw(unix.MountAttr{Propagation: unix.MS_PRIVATE})
	containment := uint64(0)
	if !r.privileged() && !r.cgroups.Guarded() {
		containment = unix.MOUNT_ATTR_NODEV
	}
	contained := calls.Raw(unix.MountAttr{Attr_set: containment, Propagation: unix.MS_PRIVATE})
	setattr := func(name string, f *os.File, attr []byte) {
		l.Add(name, unix.SYS_MOUNT_SETATTR, fd(f), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr, len(attr))
	}

	l.Add("keep mounts from the host", unix.SYS_MOUNT_SETATTR, calls.Here(), "/", unix.AT_RECURSIVE, private, len(private))
	var proc *calls.Call
	if s.Privileges.SharedProc {
		// Read-only: the files of kiln's processes and of other steps' belong to the user that this one is, oom_score_adj among them.
		proc = r.planClone(l, "/proc", standard|unix.MOUNT_ATTR_RDONLY)
	}
	// The supplies can be cloned while they are attached. Somewhere below the old root they vanish with it.
	l.Add("attach the supplies", unix.SYS_MOVE_MOUNT, fd(r.supply.fs), "", calls.Here(), "/proc", moveFromFd)
	binfmt := r.planEmulator(l, p)
	clone := func(name string) *calls.Call {
		return l.Add("clone "+name+" of the supplies", unix.SYS_OPEN_TREE, fd(r.supply.fs), name, cloneTree)
	}
	// The whole cannot be made read-only while a process that another step is starting still has one of its files open.
	readOnly := calls.Raw(unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	cloneReadOnly := func(name string) *calls.Call {
		c := clone(name)
		l.Add("make "+name+" read-only", unix.SYS_MOUNT_SETATTR, c, "", unix.AT_EMPTY_PATH, readOnly, len(readOnly))
		return c
	}
	attr := contained
	if s.ReadOnly {
		attr = calls.Raw(unix.MountAttr{Attr_set: containment | unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE})
	}
	setattr("contain the root", s.Root, attr)
	l.Add("attach the root", unix.SYS_MOVE_MOUNT, fd(s.Root), "", calls.Here(), "/", moveFromFd)

	if proc == nil {
		proc = r.planMount(l, "proc", "/proc", standard)
	}
	l.Add("attach /proc", unix.SYS_MOVE_MOUNT, proc, "", fd(p.procAt), "", moveFromFd|moveToFd)
	if binfmt != nil {
		// It lasts as long as the mounts of the process, which does not see it: /proc/sys is covered by a clone without it.
		l.Add("attach binfmt_misc", unix.SYS_MOVE_MOUNT, binfmt, "", proc, "sys/fs/binfmt_misc", moveFromFd)
	}
	sysAttr := standard
	if !s.Privileges.Insecure {
		sysAttr |= unix.MOUNT_ATTR_RDONLY
	}
	sys := r.planSys(l, p, sysAttr)
	l.Add("attach /sys", unix.SYS_MOVE_MOUNT, sys, "", fd(p.sysAt), "", moveFromFd|moveToFd)
	r.planGroups(l, p, sys, sysAttr)
	mask := func(below string, dir any, with string, names []string) {
		for _, name := range names {
			at := l.Add("open "+below+"/"+name, unix.SYS_OPENAT, dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC).
				Or(syscall.ENOENT).Skipping(3)
			l.Add("mask "+below+"/"+name, unix.SYS_MOVE_MOUNT, cloneReadOnly(with), "", at, "", moveFromFd|moveToFd)
		}
	}
	if !s.Privileges.Insecure {
		mask("/proc", proc, "nothing", maskedProcFiles)
		mask("/proc", proc, "empty", maskedProcDirs)
		mask("/sys", sys, "empty", maskedSysDirs)
		mask("/sys", sys, "empty", thermalThrottle())
		if r.hostSys() {
			mask("/sys", sys, "empty", hostSysDirs)
		}
		for _, name := range readOnlyProc {
			c := l.Add("clone /proc/"+name, unix.SYS_OPEN_TREE, proc, name, cloneTree).Or(syscall.ENOENT).Skipping(2)
			l.Add("make /proc/"+name+" read-only", unix.SYS_MOUNT_SETATTR, c, "", unix.AT_EMPTY_PATH, readOnly, len(readOnly))
			l.Add("attach /proc/"+name, unix.SYS_MOVE_MOUNT, c, "", proc, name, moveFromFd)
		}
	}

	l.Add("attach /dev", unix.SYS_MOVE_MOUNT, fd(p.dev), "", fd(p.devAt), "", moveFromFd|moveToFd)
	if p.pts != nil {
		l.Add("attach /dev/pts", unix.SYS_MOVE_MOUNT, fd(p.pts), "", fd(p.dev), "pts", moveFromFd)
	} else {
		pts := r.planMount(l, "devpts", "/dev/pts", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, p.ptsOptions...)
		l.Add("attach /dev/pts", unix.SYS_MOVE_MOUNT, pts, "", fd(p.dev), "pts", moveFromFd)
	}
	if r.streams.tty != nil {
		console := l.Add("clone the terminal", unix.SYS_OPEN_TREE, fd(p.pts), "0", cloneTree)
		l.Add("attach /dev/console", unix.SYS_MOVE_MOUNT, console, "", fd(p.dev), "console", moveFromFd)
	}
	l.Add("attach /dev/shm", unix.SYS_MOVE_MOUNT, fd(p.shm), "", fd(p.dev), "shm", moveFromFd)
	for _, d := range devices {
		var node any
		if f := r.supply.nodes[d.name]; f != nil {
			node = fd(f)
		} else {
			node = clone(d.name)
		}
		l.Add("attach /dev/"+d.name, unix.SYS_MOVE_MOUNT, node, "", fd(p.dev), d.name, moveFromFd)
	}
	mqueue := r.planMount(l, "mqueue", "/dev/mqueue", standard)
	l.Add("attach /dev/mqueue", unix.SYS_MOVE_MOUNT, mqueue, "", fd(p.dev), "mqueue", moveFromFd)

	for i, name := range []string{"hosts", "resolv.conf"} {
		l.Add("attach /etc/"+name, unix.SYS_MOVE_MOUNT, cloneReadOnly(name), "", fd(p.etc[i]), "", moveFromFd|moveToFd)
	}
	for i, m := range slices.Concat(s.Mounts, s.Devices) {
		attr := contained
		if i >= len(s.Mounts) {
			attr = private
		}
		setattr("contain "+m.Target, m.Source, attr)
		l.Add("attach "+m.Target, unix.SYS_MOVE_MOUNT, fd(m.Source), "", fd(p.targets[i]), "", moveFromFd|moveToFd)
	}

	// pivot_root(2) stacks the old root on the new one; by its descriptor it is sure that it is what goes.
	old := l.Add("open the old root", unix.SYS_OPENAT, calls.Here(), "/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
	l.Add("enter the root", unix.SYS_FCHDIR, fd(s.Root))
	l.Add("change the root", unix.SYS_PIVOT_ROOT, ".", ".")
	l.Add("enter the old root", unix.SYS_FCHDIR, old)
	l.Add("detach the old root", unix.SYS_UMOUNT2, ".", unix.MNT_DETACH)
	l.Add("enter the root again", unix.SYS_FCHDIR, fd(s.Root))
}

// hostSys reports whether /sys is the machine's mount of it. It shows the devices of a network, so that only who owns that may
// mount it anew: of the machine's network that is nobody in another user namespace, and in one of the step's own it is nobody of
// a network that kiln has made.
func (r *run) hostSys() bool {
	p, mode := &r.spec.Privileges, r.spec.Network.Mode
	if mode == NetworkHost && p.UserNamespace != nil {
		return true
	}
	return p.SharedProc || r.ns.Nested && mode == NetworkHost || p.IDs != nil && mode != NetworkNone
}

// planSys makes what is to be /sys: a descriptor of it, or the call that returns one.
func (r *run) planSys(l *calls.List, p parts, attr int) any {
	switch {
	case p.sys != nil:
		set := calls.Raw(unix.MountAttr{Attr_set: uint64(attr), Propagation: unix.MS_PRIVATE})
		l.Add("contain /sys", unix.SYS_MOUNT_SETATTR, fd(p.sys), "", unix.AT_EMPTY_PATH, set, len(set))
		return fd(p.sys)
	case r.hostSys():
		return r.planClone(l, "/sys", attr)
	}
	return r.planMount(l, "sysfs", "/sys", attr)
}

// planGroups attaches what the process sees of control groups: in the cgroup namespace that it has, its own group is the top. Of version 1
// that is a mount for each hierarchy in which it has a group. Of others it sees nothing, whatever the machine has at that place.
func (r *run) planGroups(l *calls.List, p parts, sys any, attr int) {
	at := "/sys/fs/cgroup"
	if unified() {
		l.Add("attach "+at, unix.SYS_MOVE_MOUNT, r.planMount(l, "cgroup2", at, attr), "", sys, "fs/cgroup", moveFromFd)
		return
	}
	if p.shown == nil {
		return
	}
	l.Add("attach "+at, unix.SYS_MOVE_MOUNT, fd(p.shown), "", sys, "fs/cgroup", moveFromFd)
	for _, controllers := range r.cgroups.Shown() {
		name := strings.Join(controllers, ",")
		c := l.Add("open cgroup", unix.SYS_FSOPEN, "cgroup", unix.FSOPEN_CLOEXEC)
		l.Add("name cgroup", unix.SYS_FSCONFIG, c, unix.FSCONFIG_SET_STRING, "source", "cgroup", 0)
		for _, controller := range controllers {
			l.Add("set "+controller+" of cgroup", unix.SYS_FSCONFIG, c, unix.FSCONFIG_SET_FLAG, controller, 0, 0)
		}
		l.Add("make cgroup", unix.SYS_FSCONFIG, c, unix.FSCONFIG_CMD_CREATE, 0, 0, 0)
		m := l.Add("mount "+at+"/"+name, unix.SYS_FSMOUNT, c, unix.FSMOUNT_CLOEXEC, attr)
		l.Add("attach "+at+"/"+name, unix.SYS_MOVE_MOUNT, m, "", fd(p.shown), name, moveFromFd)
	}
	set := calls.Raw(unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	l.Add("make "+at+" read-only", unix.SYS_MOUNT_SETATTR, fd(p.shown), "", unix.AT_EMPTY_PATH, set, len(set))
}

// newShown returns a file system for /sys/fs/cgroup, with a directory for each hierarchy of version 1 in which the run has a group, and
// links to it by the names of its controllers.
func (r *run) newShown() (*os.File, error) {
	fs, err := mount.New("tmpfs", mount.NoSuid|mount.NoDev|mount.NoExec, mount.Option{Name: "mode", Value: "755"},
		mount.Option{Name: "size", Value: "64k"})
	if err != nil {
		return nil, err
	}
	for _, controllers := range r.cgroups.Shown() {
		name := strings.Join(controllers, ",")
		err := unix.Mkdirat(fd(fs), name, 0o755)
		for _, controller := range controllers {
			if err == nil && controller != name {
				err = unix.Symlinkat(name, fd(fs), controller)
			}
		}
		if err != nil {
			fs.Close()
			return nil, fmt.Errorf("make /sys/fs/cgroup/%s: %w", name, err)
		}
	}
	if r.spec.Privileges.IDs != nil {
		if err := mount.MapIDs(fs, r.spec.Privileges.IDs); err != nil {
			fs.Close()
			return nil, err
		}
	}
	return fs, nil
}

// hostSysAlone clones the machine's mount of /sys.
func hostSysAlone() (*os.File, error) {
	f, err := os.OpenFile("/sys", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return mount.Clone(f, false)
}

// planClone clones what the machine has at a path, with all that is mounted there.
func (r *run) planClone(l *calls.List, at string, attr int) *calls.Call {
	set := calls.Raw(unix.MountAttr{Attr_set: uint64(attr), Propagation: unix.MS_PRIVATE})
	c := l.Add("clone the machine's "+at, unix.SYS_OPEN_TREE, calls.Here(), at, cloneTree|unix.AT_RECURSIVE)
	l.Add("contain "+at, unix.SYS_MOUNT_SETATTR, c, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, set, len(set))
	return c
}

// planMount mounts a file system of the kernel, detached; the result is its descriptor.
func (r *run) planMount(l *calls.List, fs, at string, attr int, options ...mount.Option) *calls.Call {
	c := l.Add("open "+fs, unix.SYS_FSOPEN, fs, unix.FSOPEN_CLOEXEC)
	l.Add("name "+fs, unix.SYS_FSCONFIG, c, unix.FSCONFIG_SET_STRING, "source", fs, 0)
	for _, o := range options {
		l.Add("set "+o.Name+" of "+fs, unix.SYS_FSCONFIG, c, unix.FSCONFIG_SET_STRING, o.Name, o.Value, 0)
	}
	l.Add("make "+fs, unix.SYS_FSCONFIG, c, unix.FSCONFIG_CMD_CREATE, 0, 0, 0)
	return l.Add("mount "+at, unix.SYS_FSMOUNT, c, unix.FSMOUNT_CLOEXEC, attr)
}

// unified reports whether the host has the second version of control groups at their usual place.
func unified() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// maxFiles is how many open files a process may have unless Spec says otherwise: some programs try to close them all.
const maxFiles = 1 << 20

// planLimits sets the resource limits.
func (r *run) planLimits(l *calls.List) error {
	limits := r.spec.Process.Rlimits
	given := false
	for _, lim := range limits {
		given = given || lim.Name == "nofile"
	}
	if !given {
		var own unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
			return fmt.Errorf("get limit nofile: %w", err)
		}
		limits = append([]Rlimit{{Name: "nofile", Soft: min(own.Max, maxFiles), Hard: own.Max}}, limits...)
	}
	for _, lim := range limits {
		l.Add("set limit "+lim.Name, unix.SYS_PRLIMIT64, 0, resources[lim.Name],
			calls.Raw(unix.Rlimit{Cur: lim.Soft, Max: lim.Hard}), 0)
	}
	return nil
}

// planPrivileges takes the process's privileges away.
func (r *run) planPrivileges(l *calls.List) error {
	s := &r.spec
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var own [2]unix.CapUserData
	if err := unix.Capget(&hdr, &own[0]); err != nil {
		return fmt.Errorf("get capabilities: %w", err)
	}
	keep := uint64(own[0].Permitted) | uint64(own[1].Permitted)<<32
	if !s.Privileges.Insecure {
		keep &= capabilities
		for c := range 64 {
			if capabilities&(1<<c) == 0 {
				// EINVAL is for numbers beyond the last capability.
				left := 64 - c - 1 - bits.OnesCount64(capabilities>>(c+1))
				l.Add(fmt.Sprintf("drop capability %d", c), unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0, 0, 0).
					Or(syscall.EINVAL).Skipping(left)
			}
		}
	}
	l.Add("clear ambient capabilities", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	groups := make([]byte, 4*len(s.Process.User.Groups))
	for i, g := range s.Process.User.Groups {
		binary.NativeEndian.PutUint32(groups[4*i:], g)
	}
	if !r.ns.Single() { // there the kernel does not allow it, and there is no other group
		l.Add("set supplementary groups", unix.SYS_SETGROUPS, len(s.Process.User.Groups), groups)
	}
	l.Add("set the group", unix.SYS_SETRESGID, s.Process.User.GID, s.Process.User.GID, s.Process.User.GID)
	l.Add("set the user", unix.SYS_SETRESUID, s.Process.User.UID, s.Process.User.UID, s.Process.User.UID)
	if s.Process.User.UID != 0 {
		keep = 0
	}
	low, high := uint32(keep), uint32(keep>>32)
	l.Add("set capabilities", unix.SYS_CAPSET, calls.Raw(hdr), calls.Raw([2]unix.CapUserData{
		{Effective: low, Permitted: low}, {Effective: high, Permitted: high}}))
	return nil
}
