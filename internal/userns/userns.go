// Package userns starts kiln again as root of a user namespace of its own if it is not root, so that all other packages can be
// written for root. It does not know what kiln does there.
package userns

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// marker is the environment variable that tells a kiln that it was started by another. No process that kiln starts sees it.
const marker = "_KILN_USERNS"

// inside is what Enter found; nil for a kiln that was not started by another.
var inside *caller

// caller describes the user who called kiln. Its form in the environment is "FD UID GID".
type caller struct {
	socket   *os.File // to the kiln that started this one
	uid, gid int
}

// Needed reports whether the process lacks privileges that builds need, and therefore has to call Run.
func Needed() bool {
	if inside != nil {
		return false
	}
	if os.Geteuid() != 0 {
		return true
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&hdr, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_ADMIN) == 0
}

// Inside reports whether another kiln has started this one by Run.
func Inside() bool { return inside != nil }

// UID returns the id of the user that called kiln, as that user sees it.
func UID() int {
	if inside != nil {
		return inside.uid
	}
	return os.Geteuid()
}

// GID returns the id of the group of the user that called kiln, as that user sees it.
func GID() int {
	if inside != nil {
		return inside.gid
	}
	return os.Getegid()
}

// AsCaller returns what makes a program that is started from inside see the ids of the user that called kiln and not root's:
// programs such as ssh and git look up who they are. attr may be nil, and is added to.
func AsCaller(attr *syscall.SysProcAttr) *syscall.SysProcAttr {
	if inside == nil || inside.uid == 0 {
		return attr
	}
	if attr == nil {
		attr = &syscall.SysProcAttr{}
	}
	attr.Cloneflags |= unix.CLONE_NEWUSER
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: inside.uid, HostID: 0, Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: inside.gid, HostID: 0, Size: 1}}
	return attr
}

// Error says why kiln cannot get a user namespace that it can work in, and how to fix that.
type Error struct {
	// Doing is what failed: "make a user namespace".
	Doing string
	// Hint says what to change; it may be "".
	Hint string
	Err  error
}

func (e *Error) Error() string {
	s := fmt.Sprintf("build as an ordinary user: %s: %v", e.Doing, e.Err)
	if e.Hint != "" {
		s += ": " + e.Hint
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Run starts the program again, with the same arguments, environment and files, in a new user namespace and a new mount
// namespace, in which it is root, and returns its exit status. It is told the signals that come; see Told. It dies when this process dies.
// The error is an *Error.
func Run(signals <-chan syscall.Signal) (int, error) {
	// The signal of Pdeathsig comes when the thread ends that started the process.
	runtime.LockOSThread()
	ids, err := Find()
	if err != nil {
		return 0, err
	}
	p, err := start(ids)
	if m, ok := errors.AsType[*mapError](err); ok {
		ids.none(m.Error())
		p, err = start(ids)
	}
	if err != nil {
		return 0, err
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			select {
			case s := <-signals:
				_, _ = p.socket.Write([]byte{byte(s)})
			case <-ended:
				return
			}
		}
	}()
	state, err := p.Wait()
	if err != nil {
		return 0, &Error{Doing: "wait for kiln in its user namespace", Err: err}
	}
	ws := state.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return ws.ExitStatus(), nil
}

type process struct {
	*os.Process
	socket *os.File // to it
}

// start starts the program with these ids.
func start(ids *IDs) (*process, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, &Error{Doing: "make a pair of sockets", Err: err}
	}
	theirs, ours := os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket")
	// It keeps its number, so that it takes no place of a file that kiln was given, as by -f <(…).
	if _, err := unix.FcntlInt(theirs.Fd(), unix.F_SETFD, 0); err != nil {
		theirs.Close()
		ours.Close()
		return nil, &Error{Doing: "make a pair of sockets", Err: err}
	}
	p, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{
		Env:   append(os.Environ(), fmt.Sprintf("%s=%d %d %d", marker, fds[0], ids.uid, ids.gid)),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
			Pdeathsig:  syscall.SIGKILL,
			// It is executed before it is root, so its capabilities have to survive that.
			AmbientCaps: capabilities(),
		},
	})
	theirs.Close()
	if err != nil {
		ours.Close()
		return nil, refused(err)
	}
	// StartProcess returns when execve(2) has closed files. Only later its files in /proc belong to the caller again, if the caller
	// is not dumpable: see proc(5). It says so itself, when it runs.
	if _, err = ours.Read(make([]byte, 1)); err != nil {
		err = &Error{Doing: "start kiln in a user namespace", Err: err}
	}
	if err == nil {
		err = ids.write(p.Pid)
	}
	if err == nil {
		err = send(ours, ids.Missing)
	}
	if err != nil {
		ours.Close() // it reads the end, and goes
		_, _ = p.Wait()
		return nil, err
	}
	return &process{p, ours}, nil
}

// capabilities are all that the kernel knows.
func capabilities() []uintptr {
	var all []uintptr
	for c := range uintptr(64) {
		if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil {
			break
		} else if has >= 0 {
			all = append(all, c)
		}
	}
	return all
}

// Enter must be the first call of a program that calls Run. In a process that Run has started it waits until the namespace is ready. The
// error is an *Error, or ErrOrphan.
func Enter() error {
	value, ok := os.LookupEnv(marker)
	if !ok {
		return nil
	}
	_ = os.Unsetenv(marker)
	var fd, uid, gid int
	if _, err := fmt.Sscanf(value, "%d %d %d", &fd, &uid, &gid); err != nil {
		return &Error{Doing: "read $" + marker, Err: err}
	}
	unix.CloseOnExec(fd)
	if err := unix.Send(fd, []byte{0}, unix.MSG_NOSIGNAL); err != nil {
		return ErrOrphan
	}
	socket := os.NewFile(uintptr(fd), "socket")
	why, err := receive(socket)
	if err != nil {
		return ErrOrphan
	}
	single = why
	inside = &caller{socket, uid, gid}
	// Where a security module takes a new namespace's capabilities away, this is the first call that fails.
	c, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return powerless(err)
	}
	return unix.Close(c)
}

// single says why there is only one ID and how to get more; "" if there are more.
var single string

// maxText limits the text that send sends and receive receives, in bytes.
const maxText = 255

func send(w io.Writer, text string) error {
	text = text[:min(len(text), maxText)]
	_, err := w.Write(append([]byte{byte(len(text))}, text...))
	return err
}

func receive(r io.Reader) (string, error) {
	var b [1 + maxText]byte
	if _, err := io.ReadFull(r, b[:1]); err != nil {
		return "", err
	}
	text := b[1:][:b[0]]
	_, err := io.ReadFull(r, text)
	return string(text), err
}

// Note says what does not work because there is only one ID, why, and how to fix that; "" if there are more.
func Note() string {
	if ns, err := Current(); err != nil || !ns.Single() {
		return ""
	}
	return "there is one user id and no more, so that in a RUN all files look like root's, and chown and USER to others fail: " + whySingle()
}

func whySingle() string { return cmp.Or(single, "the user namespace that kiln runs in has no other") }

// NoIDError reports an ID that does not exist in kiln's user namespace.
type NoIDError struct {
	// What is "user" or "group".
	What string
	ID   uint32
}

func (e *NoIDError) Error() string {
	why := "/etc/subuid and /etc/subgid say which these are"
	if ns, err := Current(); err == nil && ns.Single() {
		why = whySingle()
	}
	return fmt.Sprintf("%s id %d is not among the ids that kiln's user may use: %s", e.What, e.ID, why)
}

// ErrOrphan says that the process that started this one has given up.
var ErrOrphan = errors.New("the user namespace was not made")

// Told calls f, in a goroutine of its own, with each signal that the process that called Run passes on. It does nothing in a process that
// Run has not started.
func Told(f func(syscall.Signal)) {
	if inside == nil {
		return
	}
	go func() {
		var b [1]byte
		for {
			if n, err := inside.socket.Read(b[:]); n != 1 || err != nil {
				return
			}
			f(syscall.Signal(b[0]))
		}
	}()
}

// refused explains why a process in a new user namespace could not be started.
func refused(err error) error {
	if path, ok := errors.AsType[*os.PathError](err); ok {
		err = path.Err
	}
	e := &Error{Doing: "make a user namespace", Err: err}
	switch {
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EUSERS):
		e.Hint = "the limit of user namespaces is reached; it is user.max_user_namespaces, which sysctl(8) shows and sets"
	case errors.Is(err, unix.EINVAL):
		e.Hint = "the kernel has no user namespaces (CONFIG_USER_NS)"
	case sysctl("kernel/unprivileged_userns_clone") == "0":
		e.Hint = "this machine keeps them from its users; sysctl kernel.unprivileged_userns_clone=1, by root, allows them"
	case sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
		e.Hint = appArmor
	case seccomp():
		e.Hint = "the system call policy of the container that kiln runs in does not allow it: " +
			"docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined, " +
			"or seccompProfile Unconfined in Kubernetes, does"
		if bareRoot() {
			e.Hint += "; besides, " + noCapability
		}
	}
	return e
}

// bareRoot reports whether kiln is root without CAP_SETFCAP, and so may make no user namespace in which root is somebody: see "Mapping
// user ID 0" of user_namespaces(7). That is so in a container without capabilities.
func bareRoot() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return os.Geteuid() == 0 && unix.Capget(&hdr, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SETFCAP) == 0
}

const noCapability = "kiln is root without the capability CAP_SETFCAP, which root needs for that: " +
	"add SETFCAP, SETUID and SETGID to those of the container " +
	"(docker run --cap-add), or run kiln as another user (docker run --user)"

const appArmor = "AppArmor keeps them from programs that it does not know; " +
	"sysctl kernel.apparmor_restrict_unprivileged_userns=0, by root, or a profile for kiln with \"userns,\" allows them"

// powerless explains why kiln has no privileges in its user namespace.
func powerless(err error) error {
	e := &Error{Doing: "mount a file system in kiln's user namespace", Err: err}
	switch {
	case bareRoot():
		e.Doing, e.Hint = "give kiln's user namespace its ids", noCapability
	case sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
		e.Hint = appArmor
	case seccomp():
		e.Hint = "the system call policy of the container that kiln runs in does not allow it"
	}
	return e
}

func sysctl(name string) string {
	data, _ := os.ReadFile("/proc/sys/" + name) // most machines do not have it
	return strings.TrimSpace(string(data))
}

// seccomp reports whether the process has a system call filter.
func seccomp() bool {
	data, _ := os.ReadFile("/proc/self/status")
	_, value, _ := bytes.Cut(data, []byte("\nSeccomp:\t"))
	return len(value) > 0 && value[0] == '2'
}

// Namespace is the user namespace that the process is in. The zero value is the initial one.
type Namespace struct {
	// Nested says that it is not the initial one: device nodes cannot be created, and overlays store their marks in user attributes.
	Nested bool
	// Users and Groups are the IDs that exist in it.
	users, groups []extent
}

// extent is a line of /proc/self/uid_map: n IDs from inside on are those from outside on.
type extent struct{ inside, outside, n uint32 }

// initialUserNamespace is the inode number of the initial user namespace (PROC_USER_INIT_INO of the kernel).
const initialUserNamespace = 0xeffffffd

// Current returns the namespace that the process is in.
var Current = sync.OnceValues(func() (Namespace, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/user", &st); err != nil {
		return Namespace{}, fmt.Errorf("look at the user namespace: %w", err)
	}
	if st.Ino == initialUserNamespace {
		return Namespace{}, nil
	}
	ns := Namespace{Nested: true}
	var err error
	if ns.users, err = readMap("/proc/self/uid_map"); err != nil {
		return ns, err
	}
	ns.groups, err = readMap("/proc/self/gid_map")
	return ns, err
})

// Check returns a *NoIDError unless a file can belong to this user and group.
func (n Namespace) Check(uid, gid uint32) error {
	if !n.HasUser(uid) {
		return &NoIDError{"user", uid}
	}
	if !n.HasGroup(gid) {
		return &NoIDError{"group", gid}
	}
	return nil
}

// HasUser reports whether the user ID exists.
func (n Namespace) HasUser(uid uint32) bool { return !n.Nested || has(n.users, uid) }

// HasGroup reports whether the group ID exists.
func (n Namespace) HasGroup(gid uint32) bool { return !n.Nested || has(n.groups, gid) }

// Single reports whether the namespace has only one user.
func (n Namespace) Single() bool { return n.Nested && len(n.users) == 1 && n.users[0].n == 1 }

// MayBeRoot reports whether user 0 may be the host's root, who is exempt from RLIMIT_NPROC. If user 0 is user 0 of the parent namespace,
// it cannot be known.
func (n Namespace) MayBeRoot() bool {
	if !n.Nested {
		return true
	}
	return slices.ContainsFunc(n.users, func(e extent) bool { return e.inside == 0 && e.outside == 0 })
}

// Identity returns the maps of users and of groups, in the form of user_namespaces(7), of a namespace below this one in which
// every id is what it is in this one.
func (n Namespace) Identity() (users, groups string) {
	if !n.Nested {
		const all = "0 0 4294967295\n"
		return all, all
	}
	lines := func(list []extent) string {
		var b strings.Builder
		for _, e := range list {
			fmt.Fprintf(&b, "%d %d %d\n", e.inside, e.inside, e.n)
		}
		return b.String()
	}
	return lines(n.users), lines(n.groups)
}

// String is the same for two namespaces in which the files on a disk have the same owners.
func (n Namespace) String() string {
	if !n.Nested {
		return ""
	}
	var b strings.Builder
	for i, list := range [][]extent{n.users, n.groups} {
		for _, e := range list {
			fmt.Fprintf(&b, "%s %d %d %d\n", []string{"uid", "gid"}[i], e.inside, e.outside, e.n)
		}
	}
	return b.String()
}

func has(list []extent, id uint32) bool {
	return slices.ContainsFunc(list, func(e extent) bool { return id >= e.inside && id-e.inside < e.n })
}

func readMap(name string) ([]extent, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("look at the user namespace: %w", err)
	}
	var list []extent
	for line := range strings.Lines(string(data)) {
		var n [3]uint32
		f := strings.Fields(line)
		for i := range min(len(f), 3) {
			v, err := strconv.ParseUint(f[i], 10, 32)
			if err != nil {
				return nil, fmt.Errorf("look at the user namespace: %s: %w", name, err)
			}
			n[i] = uint32(v)
		}
		list = append(list, extent{n[0], n[1], n[2]})
	}
	return list, nil
}
