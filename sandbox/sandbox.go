// Package sandbox runs one process in one root file system, isolated as Docker isolates a build step, and others beside it where that is
// wanted (Entry). It knows nothing of layers, caches or Dockerfiles: file systems come as detached mounts, users as numbers.
//
// Nothing is mounted outside the process's own mount namespace and nothing is left when kiln dies, however it dies: the
// process's pid namespace lies inside another one, whose only other member is a keeper that dies with kiln and takes
// everything with it.
package sandbox

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/passwd"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/kilnbuild/kiln/sandbox/internal/calls"
	"github.com/kilnbuild/kiln/sandbox/internal/cgroup"
	"github.com/kilnbuild/kiln/sandbox/internal/socketcall"
)

// Spec says what to run and in which surroundings.
type Spec struct {
	// Root is a detached mount that becomes the file system of the process. Run uses it up: it can still be read through
	// the descriptor, which stays the caller's to close, but not be given to Run again.
	Root *os.File
	// ReadOnly shows Root to the process read-only. What Run makes in it, as mount points, is made before, and stays.
	ReadOnly bool
	Process  Process
	// Mounts are attached in their order, on top of what the sandbox itself mounts.
	Mounts []Mount
	// Devices are device nodes that the process may use, attached after the Mounts. Those that are not the process's own must be on
	// read-only mounts: it can change the mode and the owner of others.
	Devices    []Mount
	Network    Network
	Privileges Privileges
	Resources  Resources
	Stdio      Stdio
	// Entry lets further processes in while the process runs; nil lets none in. It serves one Run.
	Entry *Entry
}

// Process is the program that is run.
type Process struct {
	// Args is the program and its arguments. A program without a slash is looked for in the PATH of Env.
	Args []string
	// Env is the environment, "NAME=value" each. HOME is added if it is missing: the user's home directory, or "/".
	Env []string
	// Cwd is the working directory, an absolute path in the root; "" is "/". If it is missing it is made with its missing parents,
	// owned by User with mode 0755, and stays.
	Cwd string
	// User is the user that the process runs as.
	User passwd.User
	// Architecture is that of the image, as the OCI image specification names it; "" is the machine's. With "386" the process may
	// make sockets by socketcall(2), which programs for other architectures do not need.
	Architecture string
	// Emulator executes the programs of another architecture that the process and its descendants execute. It takes a UserNamespace or IDs,
	// of which no process without the Emulator may be, and cannot be Insecure.
	Emulator *Emulator
	// Rlimits are set in place of those that kiln runs with.
	Rlimits []Rlimit
	// Signals are sent to the process as they come, while it runs; nil is for none. The process is the first of its PID namespace, so a
	// signal without a handler does nothing to it, but for SIGKILL and SIGSTOP: see pid_namespaces(7).
	Signals <-chan syscall.Signal
}

// Emulator is a program that the kernel executes in place of those of another architecture, in a user namespace alone, from Linux 6.7
// on. It is not in the root of the process, which finds it at the most in what /proc shows of its own processes, and cannot change it.
type Emulator struct {
	// Program is the emulator, which takes no libraries. It stays the caller's.
	Program *os.File
	// Name is the interpreter that Rule names, a file name.
	Name string
	// Rule is what is written to the file register of binfmt_misc, with the flag F.
	Rule string
}

// Network is what a process reaches, and what names it knows.
type Network struct {
	Mode NetworkMode
	// Namespace is the network namespace of NetworkJoin. It stays the caller's.
	Namespace *os.File
	// ResolvConf is the content of /etc/resolv.conf for NetworkJoin; with the other networks it is the host's.
	ResolvConf string
	// Hostname is the host name, DefaultHostname if "".
	Hostname string
	// Hosts are added to /etc/hosts.
	Hosts []Host
}

// Privileges are what a process may do.
type Privileges struct {
	// Insecure runs the process with all of kiln's capabilities, without Docker's seccomp profile, with /proc and /sys writable and
	// devices usable.
	Insecure bool
	// IDs puts the process into the user namespace of the map; nil leaves it in kiln's. Root and Mounts must have their ids mapped
	// by it already, and User is one inside. See NewIDMap.
	IDs *mount.IDMap
	// SharedProc gives the process the /proc and /sys that kiln itself has, read-only, for a kiln that is in a user namespace in a
	// container: the kernel lets it mount none while parts of those are covered. The process sees the other processes of the container
	// then, under their numbers there, and what /proc shows to everybody, as their command lines. It needs a UserNamespace, so
	// that it can look into none of them, and cannot be Insecure.
	SharedProc bool
	// UserNamespace is one of NewUserNamespace, which no other process uses at the same time. nil leaves the process in that of kiln,
	// or of IDs. It stays the caller's.
	UserNamespace *os.File
}

// Resources are what a process may take.
type Resources struct {
	// Limits bound what the process and its descendants take together.
	Limits Limits
	// CgroupParent is a control group, as a path from the top of each hierarchy of the machine, in which the process and its
	// descendants get a group of their own in each for the time of the run; "" is one in kiln's own group, for Limits alone.
	CgroupParent string
	// Pool has control groups of earlier runs; nil is for none.
	Pool *Pool
	// ShmSize is the size of /dev/shm in bytes, 64 MiB if 0.
	ShmSize int64
}

// Mount is a file system, directory or file that the process finds at a path.
type Mount struct {
	// Source is a detached mount of a directory or a file. Run uses it up as it does Spec.Root.
	Source *os.File
	// Target is an absolute path. Links in it are followed inside the root; what is missing is made for the time of the
	// run.
	Target string
	// Shared says that others may use what is mounted at the same time. Mount points that are made in it stay, since others may have
	// mounts there by then.
	Shared bool
}

// Host is a line of /etc/hosts.
type Host struct{ Name, IP string }

// NetworkMode is which network a process has.
type NetworkMode int

const (
	// NetworkHost is the network of kiln itself.
	NetworkHost NetworkMode = iota
	// NetworkNone is a loopback interface and nothing else.
	NetworkNone
	// NetworkJoin is that of Network.Namespace.
	NetworkJoin
)

// Rlimit is a resource limit, see getrlimit(2).
type Rlimit struct {
	// Name is the resource as in "nofile": the constant's name without RLIMIT_, in lower case.
	Name string
	// Soft and Hard are the limits in the resource's unit; the highest number means unlimited.
	Soft, Hard uint64
}

// Status is how a process ended.
type Status struct {
	// ExitCode is the exit status, 128 plus the signal's number if a signal ended the process. A program that could not be
	// executed gives 127 if it was not found and 126 otherwise.
	ExitCode int
	// Signal is the signal that ended the process, or 0.
	Signal syscall.Signal
	// CPU is the processor time that the process and the descendants that it waited for took.
	CPU time.Duration
	// Memory is the largest resident set that one of these had, in bytes.
	Memory int64
	// OOMKills is how many processes of the run the kernel killed because its control group ran out of memory, and PidsRefused
	// how many were not started since there were too many.
	OOMKills, PidsRefused int64
	// NoPidsLimit is why no control group limited the number of processes although one should have; nil if one did.
	NoPidsLimit *PidsError
}

// SetupError says which of the preparations failed inside the sandbox, before the program was executed.
type SetupError struct {
	// Op says what was to be done: "mount /proc".
	Op string
	// Errno is why it was not done.
	Errno syscall.Errno
	// Hint says what to do about it; it may be "".
	Hint string
}

func (e *SetupError) Error() string {
	s := "set up the sandbox: " + e.Op + ": " + e.Errno.Error()
	if e.Hint != "" {
		s += ": " + e.Hint
	}
	return s
}

// Unwrap returns Errno.
func (e *SetupError) Unwrap() error { return e.Errno }

// ExecError says that the program could not be executed.
type ExecError struct {
	// Name is the program as in Process.Args.
	Name string
	// Reason is why, in words.
	Reason string
	// Errno is what execve(2) said.
	Errno syscall.Errno
}

func (e *ExecError) Error() string { return fmt.Sprintf("exec: %q: %s", e.Name, e.Reason) }

// Unwrap returns Errno.
func (e *ExecError) Unwrap() error { return e.Errno }

const defaultShmSize = 64 << 20

// ttyGroup is the group of terminals on all well-known distributions.
const ttyGroup = 5

// Run runs a process to its end and returns how it ended. An exit status other than 0 is no error. When ctx is done the
// process and all its descendants are killed, and the error is ctx's cause. Whatever happens, no process and no mount is
// left when Run returns. Errors are *SetupError, *ExecError, *LimitError, *mount.Error or ctx's, wrapped, or say what is wrong with s or
// with the image.
func Run(ctx context.Context, s Spec) (Status, error) {
	if s.Entry != nil {
		defer s.Entry.End()
	}
	if err := ctx.Err(); err != nil {
		return Status{}, context.Cause(ctx)
	}
	if err := s.check(); err != nil {
		return Status{}, err
	}
	ns, err := userns.Current()
	if err != nil {
		return Status{}, err
	}
	if status, err := s.checkProgram(ns); err != nil {
		return status, err
	}
	r := &run{spec: s, ns: ns, tree: tree{root: s.Root, ids: s.Privileges.IDs, keep: s.ReadOnly}}
	defer r.close()
	if err := r.prepare(); err != nil {
		return Status{}, errors.Join(err, r.clean())
	}
	status, err := r.run(ctx)
	if cleanErr := r.clean(); cleanErr != nil {
		err = errors.Join(err, cleanErr)
	}
	return status, err
}

// checkProgram returns why the process cannot be executed, or not as its user.
func (s *Spec) checkProgram(ns userns.Namespace) (Status, error) {
	if err := s.checkArguments(); err != nil {
		return Status{ExitCode: 126}, err
	}
	for _, gid := range append([]uint32{s.Process.User.GID}, s.Process.User.Groups...) {
		if !ns.Single() && !ns.HasGroup(gid) {
			return Status{}, &userns.NoIDError{What: "group", ID: gid}
		}
	}
	if !ns.HasUser(s.Process.User.UID) {
		return Status{}, &userns.NoIDError{What: "user", ID: s.Process.User.UID}
	}
	if m := s.Privileges.IDs; m != nil {
		for _, id := range append([]uint32{s.Process.User.UID, s.Process.User.GID}, s.Process.User.Groups...) {
			if id >= m.Count {
				return Status{}, fmt.Errorf("run as user %d, group %d: the user namespace of the step has %d ids", s.Process.User.UID, id, m.Count)
			}
		}
	}
	return Status{}, nil
}

// check returns what cannot be done about s.
func (s *Spec) check() error {
	if len(s.Process.Args) == 0 || s.Process.Args[0] == "" {
		return errors.New("run: no program")
	}
	for _, list := range [][]string{s.Process.Args, s.Process.Env, {s.Network.Hostname}} {
		for _, v := range list {
			if strings.IndexByte(v, 0) >= 0 {
				return fmt.Errorf("run: %q holds a zero byte", v)
			}
		}
	}
	if s.Network.Mode < NetworkHost || s.Network.Mode > NetworkJoin || (s.Network.Mode == NetworkJoin) != (s.Network.Namespace != nil) {
		return fmt.Errorf("run with network %d: no such mode", s.Network.Mode)
	}
	if err := s.Resources.Limits.Check(); err != nil {
		return fmt.Errorf("run with %w", err)
	}
	if s.Privileges.SharedProc && (s.Privileges.Insecure || s.Privileges.UserNamespace == nil) {
		return errors.New("run with kiln's own /proc: only without privileges, in a user namespace of its own")
	}
	if s.Privileges.UserNamespace != nil && s.Privileges.IDs != nil {
		return errors.New("run in two user namespaces")
	}
	if s.Process.Emulator != nil && (s.Privileges.Insecure || s.Privileges.UserNamespace == nil && s.Privileges.IDs == nil) {
		return errors.New("run with an emulator: only without privileges, in a user namespace")
	}
	if len(s.Process.Cwd) >= unix.PathMax { // an image may name any
		return errors.New("the working directory is longer than the 4095 bytes that Linux takes")
	}
	if s.Process.Cwd != "" && !path.IsAbs(s.Process.Cwd) {
		return fmt.Errorf("run in %q: not an absolute path", s.Process.Cwd)
	}
	for _, h := range s.Network.Hosts {
		if strings.ContainsAny(h.Name+h.IP, "\n\x00") {
			return fmt.Errorf("run with host %q: not a name and an address", h.Name+" "+h.IP)
		}
	}
	for _, m := range slices.Concat(s.Mounts, s.Devices) {
		if !path.IsAbs(m.Target) || strings.IndexByte(m.Target, 0) >= 0 {
			return fmt.Errorf("mount at %q: not an absolute path", m.Target)
		}
	}
	for _, l := range s.Process.Rlimits {
		if _, ok := resources[l.Name]; !ok {
			return fmt.Errorf("set limit %s: no such resource", l.Name)
		}
		if l.Soft > l.Hard {
			return fmt.Errorf("set limit %s: the soft limit is above the hard limit", l.Name)
		}
	}
	return nil
}

// run is a Run that is under way.
type run struct {
	spec    Spec
	ns      userns.Namespace // that kiln is in
	tree    tree
	supply  *supply
	files   []*os.File // to be closed at the end
	cgroups *cgroup.Groups
	cgroup  *os.File // of version 2, in which the keeper is made; nil: kiln's own
	keeper  *calls.List
	process *calls.List
	program *calls.List // what the launcher does
	launch  *calls.Launch
	waited  *calls.Call // the keeper's, for the process
	status  *calls.Buffer
	usage   *calls.Buffer
	execs   []attempt // to execute the program
	streams streams
	sockets *socketcall.Maker // nil where the process needs none
	running *calls.Process    // the keeper
	pts     *os.File          // the /dev/pts of the sandbox, for those that enter; nil if nobody may
	entered bool              // the process enters the sandbox of another run, whose supply and cgroups these are; the keeper is a helper
}

// attempt is one to execute the program, and whether the file is there.
type attempt struct{ execute, look *calls.Call }

func (r *run) close() {
	for _, f := range r.files {
		f.Close()
	}
	if r.supply != nil && !r.entered {
		r.supply.close()
	}
	if r.pts != nil {
		r.pts.Close()
	}
	r.streams.close()
	if r.sockets != nil {
		r.sockets.Take.Close()
	}
	r.tree.close()
	if r.launch != nil {
		r.launch.Close()
	}
	if r.running != nil {
		r.running.Close()
	}
}

// own closes f when the run is over.
func (r *run) own(f *os.File, err error) (*os.File, error) {
	if err == nil {
		r.files = append(r.files, f)
	}
	return f, err
}

// clean takes away what was made for the run outside of it.
func (r *run) clean() error {
	return errors.Join(r.tree.clean(), r.leaveGroups())
}

// prepare makes everything that kiln can make outside the sandbox, and the plan of the rest.
func (r *run) prepare() error {
	s := &r.spec
	conf, err := s.Network.ResolvConf, error(nil)
	if s.Network.Mode != NetworkJoin {
		if conf, err = resolver(); err != nil {
			return err
		}
	}
	if s.Network.Hostname == "" {
		s.Network.Hostname = DefaultHostname
	}
	if s.Resources.ShmSize == 0 {
		s.Resources.ShmSize = defaultShmSize
	}
	supplied := map[string]string{"hosts": hosts(s.Network.Hostname, s.Network.Hosts), "resolv.conf": conf}
	p := parts{}
	if e := s.Process.Emulator; e != nil {
		supplied[e.Name] = ""
		if p.emulator, err = r.own(e.mount()); err != nil {
			return err
		}
	}
	r.supply, err = newSupply(supplied)
	if err != nil {
		return err
	}
	if p.dev, err = r.own(newDev(s.Stdio.Terminal != nil)); err != nil {
		return err
	}
	pts := []mount.Option{{Name: "mode", Value: "620"}, {Name: "ptmxmode", Value: "666"}}
	if r.ns.HasGroup(ttyGroup) {
		pts = append(pts, mount.Option{Name: "gid", Value: fmt.Sprint(ttyGroup)})
	}
	if s.Privileges.IDs == nil {
		if p.pts, err = r.own(mount.New("devpts", mount.NoSuid|mount.NoExec, pts...)); err != nil {
			return err
		}
	} else {
		p.ptsOptions = pts // whose terminals belong to the users of the namespace that it is mounted in
	}
	if p.shm, err = r.own(mount.New("tmpfs", mount.NoSuid|mount.NoDev|mount.NoExec, mount.Option{Name: "mode", Value: "1777"},
		mount.Option{Name: "size", Value: fmt.Sprint(s.Resources.ShmSize)})); err != nil {
		return err
	}
	if s.Privileges.IDs != nil {
		for _, f := range []*os.File{r.supply.fs, p.dev, p.shm} {
			if err := mount.MapIDs(f, s.Privileges.IDs); err != nil {
				return err
			}
		}
	}
	for _, k := range []struct {
		at   string
		root *os.File
		f    **os.File
	}{{"/proc", nil, &p.procAt}, {"/sys", nil, &p.sysAt}, {"/dev", p.dev, &p.devAt}} {
		f, _, err := r.tree.mountPoint(k.at, how{want: directory, strict: true, keep: true})
		if *k.f, err = r.own(f, err); err != nil {
			return fmt.Errorf("mount %s: %w", k.at, err)
		}
		r.tree.cover(k.at, k.root, false)
	}
	r.tree.cover("/dev/pts", p.pts, false)
	r.tree.cover("/dev/shm", p.shm, false)
	r.tree.cover("/dev/mqueue", nil, false)
	for _, name := range []string{"hosts", "resolv.conf"} {
		f, at, err := r.tree.mountPoint("/etc/"+name, how{want: file})
		if f, err = r.own(f, err); err != nil {
			return fmt.Errorf("mount /etc/%s: %w", name, err)
		}
		r.tree.cover(at, nil, false)
		p.etc = append(p.etc, f)
	}
	for _, m := range slices.Concat(s.Mounts, s.Devices) {
		var st unix.Stat_t
		if err := unix.Fstat(int(m.Source.Fd()), &st); err != nil {
			return fmt.Errorf("mount at %s: %w", m.Target, err)
		}
		want := file
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			want = directory
		}
		f, at, err := r.tree.mountTarget(m.Target, want)
		if f, err = r.own(f, err); err != nil {
			return fmt.Errorf("mount at %s: %w", m.Target, err)
		}
		r.tree.cover(at, m.Source, m.Shared)
		p.targets = append(p.targets, f)
	}
	if s.Process.Cwd == "" {
		s.Process.Cwd = "/"
	}
	if err := r.makeCwd(); err != nil {
		return fmt.Errorf("make working directory: %w", err)
	}
	if err := r.tree.ready(); err != nil {
		return err
	}
	if err = r.descriptors(&p); err != nil {
		return err
	}
	if err := r.enterGroups(); err != nil {
		return err
	}
	if r.hostSys() && (r.spec.Privileges.IDs != nil || r.spec.Privileges.UserNamespace != nil) && !r.ns.Nested {
		// Without what is mounted in it. The process could not leave that out, and with privileges it could take away what covers it.
		if p.sys, err = r.own(hostSysAlone()); err != nil {
			return err
		}
	}
	if !unified() && (len(r.cgroups.Shown()) > 0 || r.hostSys() && p.sys == nil) {
		if p.shown, err = r.own(r.newShown()); err != nil {
			return err
		}
	}
	if err := r.prepareLaunch(&p); err != nil {
		return err
	}
	return r.plan(p)
}

// prepareLaunch makes what a process needs besides the sandbox that it is in: its control groups, and its program.
func (r *run) prepareLaunch(p *parts) (err error) {
	if p.cgroups, r.cgroup, err = r.cgroups.Join(); err != nil {
		return err
	}
	r.files = append(r.files, p.cgroups...)
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if p.kiln, err = r.own(os.NewFile(uintptr(max(fd, 0)), "kiln"), err); err != nil {
		return fmt.Errorf("open kiln's own process: %w", err)
	}
	if r.program, err = r.launchPlan(); err != nil {
		return err
	}
	r.launch, err = calls.NewLaunch(r.program)
	return err
}

// makeCwd makes the working directory if it is missing, with its missing parents, for the user, as BuildKit does. One inside a file
// system of the kernel is left to the process, which looks whether it is there.
func (r *run) makeCwd() error {
	clean := path.Clean(r.spec.Process.Cwd)
	if clean == "/" {
		return nil
	}
	for at, c := range r.tree.covers {
		if c.dir == nil && (clean == at || strings.HasPrefix(clean, at+"/")) {
			return nil
		}
	}
	user := r.spec.Process.User
	f, _, err := r.tree.mountPoint(r.spec.Process.Cwd, how{want: directory, keep: true, uid: user.UID, gid: user.GID})
	if err != nil {
		return err
	}
	return f.Close()
}

// run starts the process and waits for its end.
func (r *run) run(ctx context.Context) (Status, error) {
	if r.spec.Stdio.Debug != nil {
		if _, err := io.WriteString(r.spec.Stdio.Debug, r.keeper.String()+"the launcher:\n"+r.program.String()); err != nil {
			return Status{}, fmt.Errorf("write the plan of the sandbox: %w", err)
		}
	}
	if err := calls.Hide(); err != nil {
		return Status{}, err
	}
	var err error
	if r.running, err = calls.NewProcess(r.keeper); err != nil {
		return Status{}, err
	}
	if err := calls.Settle(ctx); err != nil {
		return Status{}, err
	}
	if _, err := r.running.Start(r.cgroup); err != nil {
		e := &SetupError{Op: "start a process"}
		errors.As(err, &e.Errno)
		return Status{}, e
	}
	r.launch.Started()
	for _, f := range r.files {
		f.Close()
	}
	r.files = nil
	r.streams.start(r)
	if r.sockets != nil {
		go r.sockets.Serve()
		defer r.sockets.End()
	}
	kill := r.running.Kill
	if r.entered {
		kill = r.streams.signals.kill
	}
	var killed sync.WaitGroup
	killed.Add(1)
	stop := context.AfterFunc(ctx, func() {
		defer killed.Done()
		kill()
	})
	err = r.running.Wait()
	if !stop() {
		killed.Wait()
	}
	if r.spec.Entry != nil && !r.entered {
		r.spec.Entry.End()
	}
	r.streams.end(r.entered)
	if err != nil {
		return Status{}, err
	}
	if ctx.Err() != nil {
		return Status{}, context.Cause(ctx)
	}
	return r.result()
}

// result reads what the processes left in the arenas.
func (r *run) result() (Status, error) {
	if err := r.execError(); err != nil {
		return Status{ExitCode: err.code()}, err
	}
	for _, l := range []*calls.List{r.keeper, r.process, r.program} {
		if c, errno := l.Failed(); c != nil {
			return Status{}, r.setupError(c.Name, errno)
		}
	}
	var memory, pids int64
	if !r.entered {
		memory, pids = r.cgroups.Killed()
	}
	if !r.keeper.Passed(r.waited) {
		return Status{ExitCode: 137, Signal: syscall.SIGKILL, OOMKills: memory, PidsRefused: pids, NoPidsLimit: r.noPidsLimit()}, nil
	}
	ws := syscall.WaitStatus(binary.NativeEndian.Uint32(r.status.Bytes()))
	usage := (*unix.Rusage)(unsafe.Pointer(&r.usage.Bytes()[0]))
	status := Status{
		ExitCode: ws.ExitStatus(),
		CPU:      time.Duration(usage.Utime.Nano() + usage.Stime.Nano()),
		Memory:   usage.Maxrss << 10,
		OOMKills: memory, PidsRefused: pids, NoPidsLimit: r.noPidsLimit(),
	}
	if ws.Signaled() {
		status.Signal = ws.Signal()
		status.ExitCode = 128 + int(status.Signal)
	}
	for _, o := range r.streams.outs {
		if err := o.Err(); err != nil {
			return status, fmt.Errorf("write the output of the process: %w", err)
		}
	}
	return status, nil
}

func (r *run) setupError(op string, errno syscall.Errno) error {
	e := &SetupError{Op: op, Errno: errno}
	switch {
	case op == "mount /proc" && errno == syscall.EPERM && r.ns.Nested:
		e.Hint = "in a container it takes a /proc of which nothing is covered: docker run --security-opt systempaths=unconfined, or " +
			"procMount: Unmasked in Kubernetes; or kiln build --no-process-sandbox, with which a step sees the processes of the container"
	case op == "mount /proc" && errno == syscall.EPERM && r.spec.Process.Emulator != nil:
		e.Hint = "a step with an emulator of its own is in a user namespace, which in a container takes a /proc of which nothing is covered: " +
			"docker run --security-opt systempaths=unconfined; or register an emulator on the machine: " +
			"docker run --privileged tonistiigi/binfmt --install all"
	case op == openBinfmt && errno == syscall.ENODEV:
		e.Hint = "the kernel has no binfmt_misc (CONFIG_BINFMT_MISC)"
	case op == makeBinfmt && errno == syscall.EPERM:
		e.Hint = "a user namespace can have one from Linux 6.7 on"
	case op == "change the root" && errno == syscall.EPERM:
		e.Hint = "the system call policy of the container that kiln runs in does not allow it: docker run --security-opt seccomp=unconfined, " +
			"or seccompProfile Unconfined in Kubernetes, does"
	case strings.HasPrefix(op, "set limit ") && errno == syscall.EPERM:
		e.Hint = "kiln's own hard limit is lower, and may not be exceeded"
	}
	return e
}

// code is the exit status that a shell gives for the error.
func (e *ExecError) code() int {
	if e.Errno == syscall.ENOENT {
		return 127
	}
	return 126
}

// execError returns why no attempt to execute the program went well, nil if one did or none was made.
func (r *run) execError() *ExecError {
	name := r.spec.Process.Args[0]
	e := &ExecError{Name: name, Errno: syscall.ENOENT, Reason: "executable file not found in $PATH"}
	if strings.Contains(name, "/") {
		e.Reason = "no such file or directory"
	}
	if c, errno := r.program.Failed(); c != nil {
		if !slices.ContainsFunc(r.execs, func(a attempt) bool { return a.execute == c }) {
			return nil
		}
		e.Errno, e.Reason = errno, errno.Error()
		return e
	}
	if !r.program.Ended() {
		return nil
	}
	for _, a := range r.execs {
		switch errno := r.program.Errno(a.execute); {
		case errno == syscall.ENOENT && r.program.Errno(a.look) == 0:
			e.Reason = "the interpreter or loader that it names does not exist"
			return e
		case errno == syscall.EACCES:
			e.Errno, e.Reason = errno, errno.Error()
		}
	}
	return e
}

// Limits of what is executed: of one string the kernel's MAX_ARG_STRLEN, see execve(2), and of the directories of PATH one that
// keeps the paths that are tried small.
const (
	maxArgument = 128<<10 - 1
	maxPath     = 4096
)

// checkArguments returns an *ExecError for arguments and an environment with which the kernel would execute nothing.
func (s *Spec) checkArguments() error {
	tooLong := func(reason string) error {
		return &ExecError{Name: s.Process.Args[0], Errno: syscall.E2BIG, Reason: reason}
	}
	for i, v := range s.Process.Args {
		if len(v) > maxArgument {
			return tooLong(fmt.Sprintf("argument %d has %d bytes, and Linux allows %d", i, len(v), maxArgument))
		}
	}
	for _, v := range s.Process.Env {
		name, value, _ := strings.Cut(v, "=")
		name = name[:min(len(name), 80)]
		if len(v) > maxArgument {
			return tooLong(fmt.Sprintf("the environment variable %s has %d bytes, and Linux allows %d with its name", name, len(v), maxArgument))
		}
		if n := strings.Count(value, ":"); name == "PATH" && n >= maxPath {
			return tooLong(fmt.Sprintf("PATH has %d directories, and kiln allows %d", n+1, maxPath))
		}
	}
	if len(s.Process.Args[0]) >= unix.PathMax {
		return &ExecError{Name: s.Process.Args[0][:80] + "...", Errno: syscall.ENAMETOOLONG, Reason: syscall.ENAMETOOLONG.Error()}
	}
	return nil
}

// candidates are the paths that the program may be at, in the order of PATH.
func candidates(name string, env []string) []string {
	if strings.Contains(name, "/") {
		return []string{name}
	}
	i := slices.IndexFunc(env, func(v string) bool { return strings.HasPrefix(v, "PATH=") })
	if i < 0 {
		return nil
	}
	var list []string
	for _, dir := range strings.Split(strings.TrimPrefix(env[i], "PATH="), ":") {
		if dir == "" {
			dir = "."
		}
		list = append(list, dir+"/"+name)
	}
	return list
}
