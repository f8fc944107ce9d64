package calls

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Process carries out a List. It shares kiln's memory until it executes a program.
type Process struct {
	list   *List
	memory *arena
	pidfd  *os.File
	id     *int32 // where the kernel puts the pidfd
}

// NewProcess lays a list out in memory. Close must be called, when the process has ended if it was started.
func NewProcess(l *List) (*Process, error) {
	a, err := newArena(l.size() + wordSize)
	if err != nil {
		return nil, err
	}
	l.assemble(a)
	at := a.alloc(wordSize)
	l.clone.flags |= unix.CLONE_PIDFD
	l.clone.pidfd = uint64(a.address(at))
	return &Process{list: l, memory: a, id: (*int32)(a.pointer(at))}, nil
}

// Start starts the process, in a control group of version 2 if that is not nil, and returns its process id. The goroutine stays locked to
// its thread until Wait returns: with PR_SET_PDEATHSIG a process is told when the thread dies that started it.
func (p *Process) Start(group *os.File) (int, error) {
	if group != nil {
		p.list.clone.flags |= unix.CLONE_INTO_CGROUP
		p.list.clone.cgroup = uint64(group.Fd())
	}
	launching.add(p.list)
	runtime.LockOSThread()
	pid := int(start(p.list.clone))
	if pid < 0 {
		p.ended()
		return 0, unix.Errno(-pid)
	}
	p.pidfd = os.NewFile(uintptr(*p.id), "process")
	return pid, nil
}

func (p *Process) ended() {
	launching.remove(p.list)
	runtime.UnlockOSThread()
}

// Kill kills the process.
func (p *Process) Kill() { _ = unix.PidfdSendSignal(int(p.pidfd.Fd()), unix.SIGKILL, nil, 0) }

// Wait waits for the end of the process that was started. See waitid(2).
func (p *Process) Wait() error {
	defer p.ended()
	for {
		err := unix.Waitid(unix.P_PIDFD, int(p.pidfd.Fd()), nil, unix.WEXITED, nil)
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("waitid", err)
		}
	}
}

// Close lets go of the memory, that of Buffers among it.
func (p *Process) Close() {
	if p.pidfd != nil {
		p.pidfd.Close()
	}
	p.memory.free()
}

// A Launch is the list that the launcher carries out, see launcher.go.
type Launch struct {
	memory *arena
	file   *os.File // stands for the memory
}

// NewLaunch lays a list out for the launcher. It is one of NewLaunchList. Close must be called.
func NewLaunch(l *List) (*Launch, error) {
	a, f, err := newLauncherArena(l.size())
	if err != nil {
		return nil, err
	}
	l.lay(a)
	return &Launch{a, f}, nil
}

// Started is called when the process that executes the launcher has been started.
func (l *Launch) Started() { l.file.Close() }

// Close lets go of the memory.
func (l *Launch) Close() {
	l.file.Close()
	l.memory.free()
}

// Add appends the calls by which a process becomes the launcher. They are the last that it makes with kiln's memory, and none of kiln's
// descriptors but 0, 1 and 2 is left after them.
func (l *Launch) Add(to *List) error {
	launcher, err := launcherFile()
	if err != nil {
		return err
	}
	// Both are above the two numbers, see above.
	to.Add("pass the plan on", unix.SYS_DUP3, int(l.file.Fd()), launcherPlanFd, 0)
	to.Add("pass the launcher on", unix.SYS_DUP3, int(launcher.Fd()), launcherExecFd, unix.O_CLOEXEC)
	to.Add("close files", unix.SYS_CLOSE_RANGE, launcherExecFd+1, uint32(1<<32-1), 0)
	argv := &Strings{List: []string{"kiln-launcher"}}
	to.Add("execute the launcher", unix.SYS_EXECVEAT, launcherExecFd, "", argv, &Strings{}, unix.AT_EMPTY_PATH)
	return nil
}

// NewLaunchList returns a list for the launcher.
func NewLaunchList() *List {
	l := &List{}
	l.Add("close the plan", unix.SYS_CLOSE, launcherPlanFd)
	return l
}

// Hide makes kiln's memory, which the processes that are started here share, unreadable for every other process without CAP_SYS_PTRACE in
// the user namespace that kiln was executed in: see ptrace(2), "Ptrace access mode checking". A change of the user of a thread may undo it.
func Hide() error {
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
}

// Raw returns the memory of a structure, as an argument of a call.
func Raw[T any](v T) []byte {
	return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(&v)), unsafe.Sizeof(v))...)
}

// Here is AT_FDCWD as an argument of a call.
func Here() uintptr { n := unix.AT_FDCWD; return uintptr(n) }

func writeFile(dir int, name string, content []byte, mode uint32) error {
	fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Chmod(os.FileMode(mode)); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	return nil
}
