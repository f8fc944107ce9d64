package calls

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The processes that are started here share kiln's memory until they execute the launcher, so that nothing is copied,
// however large kiln is. They run on stacks of their own, and nothing of Go but interpret, which makes the system calls of
// a list that was prepared before.

// program is a list of calls in the form that interpret works on. It lies outside Go's heap, in an arena.
type program struct {
	cloneArgs uintptr        // the address of what clone is to take; it must be the first field
	base      unsafe.Pointer // the arena
	calls     uintptr        // where in the arena the calls are, [n]rawCall
	results   uintptr        // and their results, [n]uintptr
	n         uintptr
	pc        uintptr
	failed    uintptr // the index of the call that failed, plus one
	errno     uintptr
}

// rawCall is an op in the form that interpret works on.
type rawCall struct {
	nr       uintptr
	args     [6]uintptr
	slots    uintptr // bit i: args[i] is the index of the call whose result is meant
	tolerate uintptr // bit e: the error number e is no failure
	skip     uintptr // how many calls are left out after a tolerated error
	zero     uintptr // if not 0, another result than 0 is ESRCH
}

// Calls that interpret carries out itself, by numbers that the kernel does not have.
const (
	// Clone is clone3(2) of a process that carries out the *List which is the argument.
	Clone = 1<<20 + iota
	// Check fails with the error number of the third argument if the first byte of the *Buffer is not the second argument.
	Check
)

// cloneArgs is struct clone_args of clone3(2).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// clone is clone3(2) for args that hold a stack, on which the arguments of interpret are prepared. It returns in the old
// process only: a process id or a negative error number.
//
//go:noescape
func clone(args *cloneArgs, size uintptr) uintptr

// interpret carries out a program from p.pc on. It does not return but when it wants to clone; r is the result of that when
// it is called again.
//
// It runs where there is no Go: it must not grow its stack, allocate, or write a pointer.
//
//go:nosplit
//go:norace
//go:nocheckptr
//go:noinline
func interpret(p *program, r uintptr) *program {
	cloned := p.pc > 0
	for p.pc < p.n {
		c := (*rawCall)(unsafe.Add(p.base, p.calls+p.pc*unsafe.Sizeof(rawCall{})))
		var errno syscall.Errno
		switch {
		case cloned:
			cloned = false
			if r > ^uintptr(4095) {
				errno = syscall.Errno(-r)
			}
		case c.nr == Clone:
			p.cloneArgs = c.args[0]
			return p
		case c.nr == Check:
			if uintptr(*(*byte)(unsafe.Add(p.base, c.args[0]))) != c.args[1] {
				errno = syscall.Errno(c.args[2])
			}
		default:
			r, _, errno = syscall.RawSyscall6(c.nr, value(p, c, 0), value(p, c, 1), value(p, c, 2), value(p, c, 3),
				value(p, c, 4), value(p, c, 5))
			if errno == 0 && c.zero != 0 && r != 0 {
				errno = syscall.ESRCH
			}
		}
		*(*uintptr)(unsafe.Add(p.base, p.results+p.pc*wordSize)) = r
		switch {
		case errno == 0:
			p.pc++
		case errno == syscall.EINTR:
		case errno < 64 && c.tolerate&(1<<errno) != 0:
			*(*uintptr)(unsafe.Add(p.base, p.results+p.pc*wordSize)) = -uintptr(errno)
			p.pc += 1 + c.skip
		default:
			p.errno = uintptr(errno)
			p.failed = p.pc + 1
			p.pc = p.n
		}
	}
	for {
		syscall.RawSyscall6(syscall.SYS_EXIT_GROUP, 1, 0, 0, 0, 0, 0)
	}
}

const wordSize = unsafe.Sizeof(uintptr(0))

// value is argument i of a call.
//
//go:nosplit
//go:norace
//go:nocheckptr
func value(p *program, c *rawCall, i uintptr) uintptr {
	v := *(*uintptr)(unsafe.Add(unsafe.Pointer(&c.args), i*wordSize))
	if c.slots&(1<<i) != 0 {
		v = *(*uintptr)(unsafe.Add(p.base, p.results+v*wordSize))
	}
	return v
}

// start clones the first process with every signal blocked, so that no handler of Go's runs in it before its handlers are
// the default ones.
//
//go:nosplit
//go:norace
//go:noinline
func start(args *cloneArgs) uintptr {
	all, old := ^uint64(0), uint64(0)
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	r := clone(args, unsafe.Sizeof(cloneArgs{}))
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&old)), 0, 8, 0, 0)
	return r
}
