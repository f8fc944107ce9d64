package sandbox

import (
	"fmt"
	"reflect"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A plan is the list of system calls by which a process makes its surroundings before it executes the step's program. It is
// built in advance and can be printed; assemble gives it the form that interpret carries out.
type plan struct {
	ops []*op
	// flags are the clone flags of the process that carries the plan out.
	flags uint64
	// prog and clone are set by assemble.
	prog  *program
	clone *cloneArgs
}

// op is one system call.
type op struct {
	index int
	// name says what the call is for, as it is to be read behind "could not".
	name string
	nr   uintptr
	// args are numbers (any integer), strings and byte slices (by address; strings end in a zero byte), *buffer, *vector,
	// *fprog and *rights (by address), *op (the result of that call) or *plan (for nrClone only).
	args     []any
	tolerate uint64
	skip     int
	zero     bool
}

// fprog is struct sock_fprog of seccomp(2): n instructions.
type fprog struct {
	n    int
	text []byte
}

// rights is struct msghdr of sendmsg(2): a byte, and a descriptor as SCM_RIGHTS of unix(7).
type rights struct{ fd int }

// buffer is memory that a call writes to.
type buffer struct {
	size   int
	offset uintptr
}

// vector is a list of strings as execve(2) takes it. It is laid out once for all calls that take it.
type vector struct {
	list   []string
	offset uintptr
}

func (v *vector) size() uintptr {
	n := align(uintptr(len(v.list)+1) * wordSize)
	for _, s := range v.list {
		n += align(uintptr(len(s)) + 1)
	}
	return n
}

// add appends a call.
func (p *plan) add(name string, nr uintptr, args ...any) *op {
	o := &op{index: len(p.ops), name: name, nr: nr, args: args}
	p.ops = append(p.ops, o)
	return o
}

// or makes error numbers, which must be below 64, no failure of the call.
func (o *op) or(errnos ...syscall.Errno) *op {
	for _, e := range errnos {
		o.tolerate |= 1 << e
	}
	return o
}

// skipping leaves out the next n calls after an error that is no failure.
func (o *op) skipping(n int) *op {
	o.skip = n
	return o
}

// mustBeZero makes a result other than zero the error ESRCH.
func (o *op) mustBeZero() *op {
	o.zero = true
	return o
}

// String lists the calls, a line each, much as strace(1) would. $n is the result of call n.
func (p *plan) String() string {
	var b strings.Builder
	for _, o := range p.ops {
		fmt.Fprintf(&b, "%3d %s: %s\n", o.index, o.name, o.call())
		for _, a := range o.args {
			if sub, ok := a.(*plan); ok {
				for line := range strings.Lines(sub.String()) {
					b.WriteString("    " + line)
				}
			}
		}
	}
	return b.String()
}

func (o *op) call() string {
	args := make([]string, len(o.args))
	for i, a := range o.args {
		switch a := a.(type) {
		case string:
			args[i] = fmt.Sprintf("%q", a)
		case []byte:
			args[i] = fmt.Sprintf("%d bytes", len(a))
		case *buffer:
			args[i] = fmt.Sprintf("buffer of %d", a.size)
		case *fprog:
			args[i] = fmt.Sprintf("%d instructions", a.n)
		case *rights:
			args[i] = fmt.Sprintf("descriptor %d", a.fd)
		case *op:
			args[i] = fmt.Sprintf("$%d", a.index)
		case *plan:
			args[i] = "the following"
		case *vector:
			args[i] = fmt.Sprintf("%d strings", len(a.list))
		default:
			if n := number(a); n > 4096 {
				args[i] = fmt.Sprintf("%#x", n)
			} else {
				args[i] = fmt.Sprint(a)
			}
		}
	}
	name := callNames[o.nr]
	if name == "" {
		name = fmt.Sprintf("syscall %d", o.nr)
	}
	s := name + "(" + strings.Join(args, ", ") + ")"
	for e := range syscall.Errno(64) {
		if o.tolerate&(1<<e) != 0 {
			s += " or " + unix.ErrnoName(e)
		}
	}
	return s
}

// callNames are the names of the calls that plans are made of.
var callNames = map[uintptr]string{
	nrByte: "check", nrClone: "clone3", unix.SYS_CLOSE_RANGE: "close_range", unix.SYS_CAPSET: "capset",
	unix.SYS_DUP3: "dup3", unix.SYS_EXECVE: "execve", unix.SYS_EXECVEAT: "execveat",
	unix.SYS_EXIT_GROUP: "exit_group", unix.SYS_CLOSE: "close",
	unix.SYS_FCHDIR: "fchdir", unix.SYS_FSCONFIG: "fsconfig", unix.SYS_FSMOUNT: "fsmount", unix.SYS_FSOPEN: "fsopen",
	unix.SYS_GETCWD: "getcwd", unix.SYS_IOCTL: "ioctl", unix.SYS_KEYCTL: "keyctl", unix.SYS_MOUNT_SETATTR: "mount_setattr",
	unix.SYS_MOVE_MOUNT: "move_mount", unix.SYS_OPENAT: "openat", unix.SYS_OPENAT2: "openat2", unix.SYS_OPEN_TREE: "open_tree",
	unix.SYS_PIVOT_ROOT: "pivot_root", unix.SYS_PPOLL: "ppoll", unix.SYS_PRCTL: "prctl", unix.SYS_PRLIMIT64: "prlimit64",
	unix.SYS_RT_SIGACTION: "rt_sigaction", unix.SYS_RT_SIGPROCMASK: "rt_sigprocmask", unix.SYS_SECCOMP: "seccomp", unix.SYS_SENDMSG: "sendmsg",
	unix.SYS_SETGROUPS: "setgroups", unix.SYS_SETHOSTNAME: "sethostname", unix.SYS_SETNS: "setns", unix.SYS_SETRESGID: "setresgid",
	unix.SYS_SETRESUID: "setresuid", unix.SYS_SETSID: "setsid", unix.SYS_SOCKET: "socket", unix.SYS_UMASK: "umask",
	unix.SYS_UMOUNT2: "umount2", unix.SYS_WAIT4: "wait4", unix.SYS_WRITE: "write",
}

// number is an integer argument as the kernel takes it.
func number(a any) uintptr {
	switch a := a.(type) {
	case int:
		return uintptr(a)
	case uint32:
		return uintptr(a)
	case uint64:
		return uintptr(a)
	case uintptr:
		return a
	}
	panic(fmt.Sprintf("argument of type %T", a))
}

// stackSize is what interpret has for its frames and the kernel's signal frames, of which there are none.
const stackSize = 16 << 10

// arena is memory outside Go's heap for assembled plans, the stacks of the processes that carry them out, and whatever
// their calls point to.
type arena struct {
	mem  []byte
	used uintptr
	// base is the address that the memory has in the process that works with it, if that is not kiln's own; see launcher.go.
	base uintptr
}

// newArena returns an arena of n bytes.
func newArena(n uintptr) (*arena, error) {
	mem, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map memory for the sandbox: %w", err)
	}
	return &arena{mem: mem}, nil
}

func (a *arena) free() { _ = unix.Munmap(a.mem) }

// alloc returns the offset of n zero bytes.
func (a *arena) alloc(n uintptr) uintptr {
	off := a.used
	a.used += align(n)
	return off
}

func align(n uintptr) uintptr { return (n + 15) &^ 15 }

func (a *arena) pointer(off uintptr) unsafe.Pointer { return unsafe.Pointer(&a.mem[off]) }
func (a *arena) address(off uintptr) uintptr {
	if a.base != 0 {
		return a.base + off
	}
	return uintptr(a.pointer(off))
}

func (a *arena) bytes(b []byte) uintptr {
	off := a.alloc(uintptr(len(b)))
	copy(a.mem[off:], b)
	return off
}

// size is the memory that assemble takes, which is more than lay takes.
func (p *plan) size() uintptr {
	n := align(unsafe.Sizeof(program{})) + align(unsafe.Sizeof(cloneArgs{})) + stackSize +
		uintptr(len(p.ops))*(align(unsafe.Sizeof(rawCall{}))+align(wordSize))
	vectors := map[*vector]bool{}
	for _, o := range p.ops {
		for _, arg := range o.args {
			switch arg := arg.(type) {
			case string:
				n += align(uintptr(len(arg)) + 1)
			case []byte:
				n += align(uintptr(len(arg)))
			case *vector:
				if !vectors[arg] {
					vectors[arg] = true
					n += arg.size()
				}
			case *buffer:
				n += align(uintptr(arg.size))
			case *fprog:
				n += 2*wordSize + align(uintptr(len(arg.text)))
			case *rights:
				n += align(uintptr(unix.CmsgSpace(4))) + align(1) + align(unsafe.Sizeof(unix.Iovec{})) + align(unsafe.Sizeof(unix.Msghdr{}))
			case *plan:
				n += arg.size()
			}
		}
	}
	return n
}

// lay lays the plan out in the arena, the program first.
func (p *plan) lay(a *arena) {
	prog := (*program)(a.pointer(a.alloc(unsafe.Sizeof(program{}))))
	p.prog = prog
	prog.n = uintptr(len(p.ops))
	prog.calls = a.alloc(prog.n * unsafe.Sizeof(rawCall{}))
	prog.results = a.alloc(prog.n * wordSize)
	for i, o := range p.ops {
		c := (*rawCall)(a.pointer(prog.calls + uintptr(i)*unsafe.Sizeof(rawCall{})))
		c.nr, c.tolerate, c.skip = o.nr, uintptr(o.tolerate), uintptr(o.skip)
		if o.zero {
			c.zero = 1
		}
		for j, arg := range o.args {
			switch arg := arg.(type) {
			case string:
				c.args[j] = a.address(a.bytes(append([]byte(arg), 0)))
			case []byte:
				c.args[j] = a.address(a.bytes(arg))
			case *vector:
				if arg.offset == 0 {
					arg.offset = a.strings(arg.list)
				}
				c.args[j] = a.address(arg.offset)
			case *buffer:
				if arg.offset == 0 {
					arg.offset = a.alloc(uintptr(arg.size))
				}
				c.args[j] = a.address(arg.offset)
				if o.nr == nrByte {
					c.args[j] = arg.offset
				}
			case *fprog:
				at := a.alloc(2 * wordSize)
				*(*uint16)(a.pointer(at)) = uint16(arg.n)
				*(*uintptr)(a.pointer(at + wordSize)) = a.address(a.bytes(arg.text))
				c.args[j] = a.address(at)
			case *rights:
				control, vector := a.bytes(unix.UnixRights(arg.fd)), a.bytes(raw(unix.Iovec{Base: (*byte)(a.pointer(a.alloc(1))), Len: 1}))
				c.args[j] = a.address(a.bytes(raw(unix.Msghdr{Iov: (*unix.Iovec)(a.pointer(vector)), Iovlen: 1,
					Control: (*byte)(a.pointer(control)), Controllen: uint64(unix.CmsgSpace(4))})))
			case *op:
				c.args[j] = uintptr(arg.index)
				c.slots |= 1 << j
			case *plan:
				arg.assemble(a)
				c.args[j] = uintptr(unsafe.Pointer(arg.clone))
			default:
				c.args[j] = number(arg)
			}
		}
	}
}

// assemble lays the plan out in the arena for interpret, with a stack and the arguments of the clone that starts it.
func (p *plan) assemble(a *arena) {
	p.lay(a)
	p.prog.base = a.pointer(0)
	// What clone finds on the new stack.
	stack := a.alloc(stackSize)
	top := uintptr(stackSize - 64)
	*(*uintptr)(a.pointer(stack + top + 32)) = reflect.ValueOf(interpret).Pointer()
	*(*uintptr)(a.pointer(stack + top + 40)) = uintptr(unsafe.Pointer(p.prog))
	p.clone = (*cloneArgs)(a.pointer(a.alloc(unsafe.Sizeof(cloneArgs{}))))
	*p.clone = cloneArgs{
		flags:      p.flags | unix.CLONE_VM | unix.CLONE_CLEAR_SIGHAND,
		exitSignal: uint64(unix.SIGCHLD),
		stack:      uint64(a.address(stack)),
		stackSize:  uint64(top),
	}
}

// strings lays out a vector of addresses of strings that ends in a zero, as execve(2) takes it.
func (a *arena) strings(list []string) uintptr {
	off := a.alloc(uintptr(len(list)+1) * wordSize)
	for i, s := range list {
		*(*uintptr)(a.pointer(off + uintptr(i)*wordSize)) = a.address(a.bytes(append([]byte(s), 0)))
	}
	return off
}
