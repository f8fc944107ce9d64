package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/sandbox/internal/calls"
)

// ErrEnded says that no process can enter a sandbox any more.
var ErrEnded = errors.New("the first process of the sandbox has ended, or could not be started")

// ErrUnconfined says that no process enters the sandbox of one that has the privileges of a kiln in a user namespace: it could look into
// the memory of kiln, which the other one has for a moment.
var ErrUnconfined = errors.New("no further process can run beside one with the privileges of a rootless kiln")

// Entry lets further processes into the sandbox of a Run: they see its files, processes and network, are held to its limits, and are
// killed when its first process ends. The zero Entry is ready to be used. It is safe for concurrent use.
type Entry struct {
	mu      sync.Mutex
	opened  chan struct{} // closed when first is there, or has ended
	first   *run          // nil before
	process *os.File      // its first process
	ended   bool
	inside  sync.WaitGroup
}

// Further is a process that enters the sandbox of another.
type Further struct {
	// Process is what is run. Architecture, Emulator and Rlimits are those of the first process, whatever is here. The working directory has
	// to exist.
	Process Process
	// Confined takes what Privileges.Insecure gives the first process.
	Confined bool
	Stdio    Stdio
}

// Opened is closed when processes can enter, since the first one is set up, or when none ever will.
func (e *Entry) Opened() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.opening()
}

// opening is opened, made by whoever asks first. mu is held.
func (e *Entry) opening() chan struct{} {
	if e.opened == nil {
		e.opened = make(chan struct{})
	}
	return e.opened
}

// open is called when the first process is set up, with a descriptor of it that stays the caller's.
func (e *Entry) open(r *run, process *os.File) {
	e.mu.Lock()
	defer e.mu.Unlock()
	own, err := duplicate(process)
	if e.ended || err != nil {
		return
	}
	e.first, e.process = r, own
	close(e.opening())
}

// End says that there will be no first process, and does nothing after a Run, which says so itself when its process and with it all others
// are dead. It waits for whoever has started those.
func (e *Entry) End() {
	e.mu.Lock()
	defer e.inside.Wait()
	defer e.mu.Unlock()
	if e.ended {
		return
	}
	e.ended = true
	if e.first == nil {
		close(e.opening())
		return
	}
	e.process.Close()
}

// enter waits until the sandbox is open. Who enters calls inside.Done.
func (e *Entry) enter(ctx context.Context) (first *run, process *os.File, err error) {
	select {
	case <-e.Opened():
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended {
		return nil, nil, ErrEnded
	}
	if p := &e.first.spec.Privileges; p.Insecure && p.IDs == nil && e.first.ns.Nested {
		return nil, nil, ErrUnconfined
	}
	if process, err = duplicate(e.process); err != nil {
		return nil, nil, err
	}
	e.inside.Add(1)
	return e.first, process, nil
}

// Run runs a process in the sandbox to its end, and returns how it ended: by SIGKILL if the first process has ended before. It waits until
// the sandbox is open. When ctx is done the process is killed, and the error is ctx's cause; what it has started lives until the first
// process ends. Other errors are those of the function Run,
// ErrEnded or ErrUnconfined.
func (e *Entry) Run(ctx context.Context, f Further) (Status, error) {
	first, process, err := e.enter(ctx)
	if err != nil {
		return Status{}, err
	}
	defer e.inside.Done()
	s := first.spec
	s.Process.Args, s.Process.Env, s.Process.Cwd = f.Process.Args, f.Process.Env, f.Process.Cwd
	s.Process.User, s.Process.Signals, s.Stdio = f.Process.User, f.Process.Signals, f.Stdio
	s.Privileges.Insecure = s.Privileges.Insecure && !f.Confined
	if s.Process.Cwd == "" {
		s.Process.Cwd = "/"
	}
	r := &run{spec: s, ns: first.ns, supply: first.supply, cgroups: first.cgroups, entered: true}
	defer r.close()
	if _, err := r.own(process, nil); err != nil {
		return Status{}, err
	}
	if err := s.check(); err != nil {
		return Status{}, err
	}
	if status, err := s.checkProgram(r.ns); err != nil {
		return status, err
	}
	if err := r.prepareEntering(process, parts{pts: first.pts}); err != nil {
		return Status{}, err
	}
	status, err := r.run(ctx)
	if failed, ok := errors.AsType[*SetupError](err); ok && failed.ended() {
		err = ErrEnded
	}
	return status, err
}

// What the calls are named that fail when the first process is just ending.
const (
	enterSandbox = "enter the sandbox"
	startProcess = "start the process"
)

// ended reports whether an error is of a process that enters a sandbox which is ending: see setns(2) and clone(2).
func (e *SetupError) ended() bool {
	return e.Op == enterSandbox && e.Errno == unix.ESRCH || e.Op == startProcess && e.Errno == unix.ENOMEM
}

// prepareEntering is prepare for a process that enters the sandbox of another.
func (r *run) prepareEntering(first *os.File, p parts) error {
	if err := r.descriptors(&p); err != nil {
		return err
	}
	null, err := r.own(r.supply.null())
	if err != nil {
		return fmt.Errorf("open /dev/null: %w", err)
	}
	proc, err := r.own(os.OpenFile("/proc", unix.O_PATH|unix.O_DIRECTORY, 0))
	if err != nil {
		return err
	}
	var spare [2]*os.File // descriptors that are used up
	for i := range spare {
		if spare[i], err = r.own(duplicate(proc)); err != nil {
			return err
		}
	}
	if err := r.prepareLaunch(&p); err != nil {
		return err
	}

	// The process is a child of a helper in kiln's PID namespace, of which nobody in the sandbox knows, so that kiln is told how it ended. It
	// begins with kiln's memory and descriptors, in the sight of other processes of the sandbox: PR_SET_DUMPABLE keeps them from both. All
	// that they can do is to stop and to kill it, as they could later.
	l := &calls.List{Flags: unix.CLONE_VFORK} // see processPlan
	r.streams.signals.plan(l, l.Add("learn its number", unix.SYS_GETPID), fd(spare[0]))
	r.planIdentity(l, fd(proc), "self")
	r.planProgram(l, p, fd(null))
	if err := r.planFilter(l, spare[1]); err != nil {
		return err
	}
	if err := r.launch.Add(l); err != nil {
		return err
	}
	r.process = l

	flags := unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
	if r.spec.Network.Mode != NetworkHost {
		flags |= unix.CLONE_NEWNET
	}
	if r.spec.Privileges.IDs != nil || r.spec.Privileges.UserNamespace != nil {
		flags |= unix.CLONE_NEWUSER
	}
	k := &calls.List{}
	planKeeper(k, p)
	k.Add(enterSandbox, unix.SYS_SETNS, fd(first), flags)
	r.planWait(k, p)
	return nil
}

// duplicate returns another descriptor of a file.
func duplicate(f *os.File) (*os.File, error) {
	n, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(n), f.Name()), nil
}
