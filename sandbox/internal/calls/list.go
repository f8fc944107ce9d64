// Package calls has a process make a list of system calls that was prepared before, while it shares the memory of kiln, and then execute a
// program by way of the launcher. It knows nothing of what the calls are for.
package calls

import (
	"fmt"
	"reflect"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A List is the system calls by which a process makes its surroundings before it executes a program. It is built in advance and can be
// printed.
type List struct {
	// Flags are the clone flags of the process that carries the list out.
	Flags uint64
	// Closes is the call after which neither the process nor those that it starts have descriptors of kiln's; nil if that is when they end.
	Closes *Call

	calls []*Call
	// prog and clone are set by assemble.
	prog   *program
	clone  *cloneArgs
	memory *arena
}

// Call is one system call of a List.
type Call struct {
	// Name says what the call is for, as it is to be read before ": permission denied".
	Name string

	index    int
	nr       uintptr
	args     []any
	tolerate uint64
	skip     int
	zero     bool
}

// Filter is struct sock_fprog of seccomp(2).
type Filter struct {
	// N is the number of instructions, and Text the instructions.
	N    int
	Text []byte
}

// FilterOf returns a filter of instructions.
func FilterOf(program []unix.SockFilter) *Filter {
	text := make([]byte, 0, len(program)*8)
	for _, in := range program {
		text = append(text, Raw(in)...)
	}
	return &Filter{N: len(program), Text: text}
}

// Rights is struct msghdr of sendmsg(2): a byte, and the descriptor FD as SCM_RIGHTS of unix(7).
type Rights struct{ FD int }

// Buffer is memory of Size bytes that a call writes to.
type Buffer struct {
	Size   int
	offset uintptr
	mem    []byte
}

// Bytes returns the memory, which lasts as long as that of the Process. It is nil before the list is in memory.
func (b *Buffer) Bytes() []byte { return b.mem }

// Strings is a vector of strings as execve(2) takes it. It is laid out once for all calls that take it.
type Strings struct {
	List   []string
	offset uintptr
}

func (v *Strings) size() uintptr {
	n := align(uintptr(len(v.List)+1) * wordSize)
	for _, s := range v.List {
		n += align(uintptr(len(s)) + 1)
	}
	return n
}

// Add appends a call. Its arguments are numbers (any integer), strings and byte slices (by address; strings end in a zero byte), *Buffer,
// *Strings, *Filter and *Rights (by address), *Call (the result of that call) or *List (for Clone only).
func (l *List) Add(name string, nr uintptr, args ...any) *Call {
	c := &Call{index: len(l.calls), Name: name, nr: nr, args: args}
	l.calls = append(l.calls, c)
	return c
}

// Or makes error numbers, which must be below 64, no failure of the call.
func (c *Call) Or(errnos ...syscall.Errno) *Call {
	for _, e := range errnos {
		c.tolerate |= 1 << e
	}
	return c
}

// Skipping leaves out the next n calls after an error that is no failure.
func (c *Call) Skipping(n int) *Call {
	c.skip = n
	return c
}

// MustBeZero makes a result other than zero the error ESRCH.
func (c *Call) MustBeZero() *Call {
	c.zero = true
	return c
}

// Failed returns the call that failed and why, when the list has been carried out; nil if none did.
func (l *List) Failed() (*Call, syscall.Errno) {
	if l.prog.failed == 0 {
		return nil, 0
	}
	return l.calls[l.prog.failed-1], syscall.Errno(l.prog.errno)
}

// Passed reports whether the call is over, and did not fail.
func (l *List) Passed(c *Call) bool { return l.prog.pc > uintptr(c.index) && l.prog.failed == 0 }

// Ended reports whether all calls are over, and none failed.
func (l *List) Ended() bool { return l.prog.pc >= l.prog.n && l.prog.failed == 0 }

// Errno returns the error of a call that is over and did not fail, 0 for none.
func (l *List) Errno(c *Call) syscall.Errno {
	return syscall.Errno(-min(0, *(*int)(l.memory.pointer(l.prog.results + uintptr(c.index)*wordSize))))
}

// String lists the calls, a line each, much as strace(1) would. $n is the result of call n.
func (l *List) String() string {
	var b strings.Builder
	for _, o := range l.calls {
		fmt.Fprintf(&b, "%3d %s: %s\n", o.index, o.Name, o.text())
		for _, a := range o.args {
			if sub, ok := a.(*List); ok {
				for line := range strings.Lines(sub.String()) {
					b.WriteString("    " + line)
				}
			}
		}
	}
	return b.String()
}

func (c *Call) text() string {
	args := make([]string, len(c.args))
	for i, a := range c.args {
		switch a := a.(type) {
		case string:
			args[i] = fmt.Sprintf("%q", a)
		case []byte:
			args[i] = fmt.Sprintf("%d bytes", len(a))
		case *Buffer:
			args[i] = fmt.Sprintf("buffer of %d", a.Size)
		case *Filter:
			args[i] = fmt.Sprintf("%d instructions", a.N)
		case *Rights:
			args[i] = fmt.Sprintf("descriptor %d", a.FD)
		case *Call:
			args[i] = fmt.Sprintf("$%d", a.index)
		case *List:
			args[i] = "the following"
		case *Strings:
			args[i] = fmt.Sprintf("%d strings", len(a.List))
		default:
			if n := number(a); n > 4096 {
				args[i] = fmt.Sprintf("%#x", n)
			} else {
				args[i] = fmt.Sprint(a)
			}
		}
	}
	name := callNames[c.nr]
	if name == "" {
		name = fmt.Sprintf("syscall %d", c.nr)
	}
	s := name + "(" + strings.Join(args, ", ") + ")"
	for e := range syscall.Errno(64) {
		if c.tolerate&(1<<e) != 0 {
			s += " or " + unix.ErrnoName(e)
		}
	}
	return s
}

// callNames are the names of the calls that plans are made of.
var callNames = map[uintptr]string{
	Check: "check", Clone: "clone3", unix.SYS_CLOSE_RANGE: "close_range", unix.SYS_CAPSET: "capset",
	unix.SYS_DUP3: "dup3", unix.SYS_EXECVE: "execve", unix.SYS_EXECVEAT: "execveat",
	unix.SYS_EXIT_GROUP: "exit_group", unix.SYS_CLOSE: "close",
	unix.SYS_FCHDIR: "fchdir", unix.SYS_FSCONFIG: "fsconfig", unix.SYS_FSMOUNT: "fsmount", unix.SYS_FSOPEN: "fsopen",
	unix.SYS_GETCWD: "getcwd", unix.SYS_GETPID: "getpid", unix.SYS_IOCTL: "ioctl", unix.SYS_KEYCTL: "keyctl",
	unix.SYS_MOUNT_SETATTR: "mount_setattr", unix.SYS_MOVE_MOUNT: "move_mount", unix.SYS_OPENAT: "openat",
	unix.SYS_PIDFD_OPEN: "pidfd_open", unix.SYS_OPENAT2: "openat2", unix.SYS_OPEN_TREE: "open_tree",
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
func (l *List) size() uintptr {
	n := align(unsafe.Sizeof(program{})) + align(unsafe.Sizeof(cloneArgs{})) + stackSize +
		uintptr(len(l.calls))*(align(unsafe.Sizeof(rawCall{}))+align(wordSize))
	vectors := map[*Strings]bool{}
	for _, o := range l.calls {
		for _, arg := range o.args {
			switch arg := arg.(type) {
			case string:
				n += align(uintptr(len(arg)) + 1)
			case []byte:
				n += align(uintptr(len(arg)))
			case *Strings:
				if !vectors[arg] {
					vectors[arg] = true
					n += arg.size()
				}
			case *Buffer:
				n += align(uintptr(arg.Size))
			case *Filter:
				n += 2*wordSize + align(uintptr(len(arg.Text)))
			case *Rights:
				n += align(uintptr(unix.CmsgSpace(4))) + align(1) + align(unsafe.Sizeof(unix.Iovec{})) + align(unsafe.Sizeof(unix.Msghdr{}))
			case *List:
				n += arg.size()
			}
		}
	}
	return n
}

// lay lays the plan out in the arena, the program first.
func (l *List) lay(a *arena) {
	prog := (*program)(a.pointer(a.alloc(unsafe.Sizeof(program{}))))
	l.prog, l.memory = prog, a
	prog.n = uintptr(len(l.calls))
	prog.calls = a.alloc(prog.n * unsafe.Sizeof(rawCall{}))
	prog.results = a.alloc(prog.n * wordSize)
	for i, o := range l.calls {
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
			case *Strings:
				if arg.offset == 0 {
					arg.offset = a.strings(arg.List)
				}
				c.args[j] = a.address(arg.offset)
			case *Buffer:
				if arg.offset == 0 {
					arg.offset = a.alloc(uintptr(arg.Size))
					arg.mem = a.mem[arg.offset:][:arg.Size]
				}
				c.args[j] = a.address(arg.offset)
				if o.nr == Check {
					c.args[j] = arg.offset
				}
			case *Filter:
				at := a.alloc(2 * wordSize)
				*(*uint16)(a.pointer(at)) = uint16(arg.N)
				*(*uintptr)(a.pointer(at + wordSize)) = a.address(a.bytes(arg.Text))
				c.args[j] = a.address(at)
			case *Rights:
				control, vector := a.bytes(unix.UnixRights(arg.FD)), a.bytes(Raw(unix.Iovec{Base: (*byte)(a.pointer(a.alloc(1))), Len: 1}))
				c.args[j] = a.address(a.bytes(Raw(unix.Msghdr{Iov: (*unix.Iovec)(a.pointer(vector)), Iovlen: 1,
					Control: (*byte)(a.pointer(control)), Controllen: uint64(unix.CmsgSpace(4))})))
			case *Call:
				c.args[j] = uintptr(arg.index)
				c.slots |= 1 << j
			case *List:
				arg.assemble(a)
				c.args[j] = uintptr(unsafe.Pointer(arg.clone))
			default:
				c.args[j] = number(arg)
			}
		}
	}
}

// assemble lays the plan out in the arena for interpret, with a stack and the arguments of the clone that starts it.
func (l *List) assemble(a *arena) {
	l.lay(a)
	l.prog.base = a.pointer(0)
	// What clone finds on the new stack.
	stack := a.alloc(stackSize)
	top := uintptr(stackSize - 64)
	*(*uintptr)(a.pointer(stack + top + 32)) = reflect.ValueOf(interpret).Pointer()
	*(*uintptr)(a.pointer(stack + top + 40)) = uintptr(unsafe.Pointer(l.prog))
	l.clone = (*cloneArgs)(a.pointer(a.alloc(unsafe.Sizeof(cloneArgs{}))))
	*l.clone = cloneArgs{
		flags:      l.Flags | unix.CLONE_VM | unix.CLONE_CLEAR_SIGHAND,
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
