// Package socketcall makes sockets for processes of 386 images, whose programs may know no other way to one than socketcall(2).
package socketcall

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/thread"
	"github.com/kilnbuild/kiln/sandbox/internal/calls"
	"github.com/kilnbuild/kiln/sandbox/internal/seccomp"
)

// In an image of 386 programs may know no other way to a socket than socketcall(2), which has the family of the socket in memory. The
// filter cannot look there, and whoever looks and then lets the call go on has looked at what another thread changes meanwhile. So
// the caller waits, kiln reads the arguments once, makes the socket as the caller, and puts it among the caller's descriptors: see
// seccomp_unotify(2).

// A Maker serves a process and its descendants, by the listener that the process hands over. Both ends of the Handover are the caller's to
// close.
type Maker struct {
	calls.Handover
	done chan struct{}
}

// Plan has the process send kiln the listener of a second filter, which leaves to kiln what the first does. Where the process can have
// none, since whoever runs kiln has one already (EBUSY) or the kernel knows none (EINVAL), the call gets ENOSYS. The descriptor spare is
// used up.
func Plan(l *calls.List, spare *os.File) (*Maker, error) {
	h, err := calls.NewHandover()
	if err != nil {
		return nil, err
	}
	listener := l.Add("listen to socketcall", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER,
		calls.FilterOf(seccomp.Socketcalls())).Or(syscall.EBUSY, syscall.EINVAL).Skipping(2)
	l.Add("move the listener", unix.SYS_DUP3, listener, int(spare.Fd()), unix.O_CLOEXEC)
	l.Add("send the listener", unix.SYS_SENDMSG, int(h.Give.Fd()), &calls.Rights{FD: int(spare.Fd())}, unix.MSG_NOSIGNAL)
	return &Maker{h, make(chan struct{})}, nil
}

// Serve makes sockets until none of the processes is left.
func (m *Maker) Serve() {
	defer close(m.done)
	defer m.Take.Close()
	listener := m.Receive()
	if listener == nil {
		return
	}
	defer listener.Close()
	conn, err := listener.SyscallConn()
	if err != nil {
		return
	}
	for {
		var n notification
		var err error
		if waitErr := conn.Read(func(fd uintptr) (ready bool) {
			err = n.receive(int(fd))
			return err != unix.EAGAIN
		}); waitErr != nil || err == io.EOF {
			return
		}
		if err == nil {
			_ = conn.Control(func(fd uintptr) { n.answer(int(fd)) })
		}
	}
}

// End waits for Serve, when all the processes are dead.
func (m *Maker) End() {
	m.Hurry()
	<-m.done
}

// A notification is a call that waits: struct seccomp_notif of linux/seccomp.h. The numbers of the ioctls hold the sizes of the
// structures, so these are what the kernel takes whatever its own have become.
type notification struct {
	id  uint64
	pid uint32
	_   uint32 // flags
	// struct seccomp_data
	_    int32  // number
	_    uint32 // architecture
	_    uint64 // address of the instruction
	args [6]uint64
}

const (
	ioctlIsValid = 0x40082102 // SECCOMP_IOCTL_NOTIF_ID_VALID
	ioctlAdd     = 0x40182103 // SECCOMP_IOCTL_NOTIF_ADDFD
)

func ioctl[T any](fd int, request uintptr, arg *T) (uintptr, unix.Errno) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(arg)))
	return r, errno
}

// receive takes the next notification. The error is EAGAIN if there is none yet, io.EOF if there will be none, ENOENT for one whose
// process died meanwhile.
func (n *notification) receive(fd int) error {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if _, err := unix.Poll(p, 0); err != nil {
		return unix.EAGAIN
	}
	switch got := p[0].Revents; {
	case got&unix.POLLIN != 0: // else the next call would block
	case got == 0:
		return unix.EAGAIN
	default:
		return io.EOF
	}
	if _, errno := ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_RECV, n); errno != 0 {
		return errno
	}
	return nil
}

// answer makes the sockets of a call, and ends it.
func (n *notification) answer(fd int) {
	if errno := n.makeSockets(fd); errno != 0 {
		n.end(fd, 0, errno)
	}
}

// end has the call return a number or an error. It fails if the caller waits no more.
func (n *notification) end(fd int, value int64, errno unix.Errno) {
	// struct seccomp_notif_resp
	_, _ = ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_SEND, &struct {
		id, value uint64
		error     int32
		flags     uint32
	}{n.id, uint64(value), -int32(errno), 0})
}

// add puts a descriptor among the caller's, where it gets the number that is returned. With SECCOMP_ADDFD_FLAG_SEND that is what the
// call returns, if the caller still waits.
func (n *notification) add(fd, socket int, flags uint32, closeOnExec bool) (uint32, unix.Errno) {
	// struct seccomp_notif_addfd
	arg := struct {
		id                              uint64
		flags, source, number, newFlags uint32
	}{id: n.id, flags: flags, source: uint32(socket)}
	if closeOnExec {
		arg.newFlags = unix.O_CLOEXEC
	}
	number, errno := ioctl(fd, ioctlAdd, &arg)
	if errno == unix.EINVAL {
		errno = unix.ENOSYS // a kernel before 5.14 does not know the flag
	}
	return uint32(number), errno
}

// makeSockets makes what the call asks for, and ends the call. After an error it still waits: ENOSYS is for what kiln cannot find out.
func (n *notification) makeSockets(fd int) unix.Errno {
	c, err := openCaller(n.pid)
	if err != nil {
		return unix.ENOSYS
	}
	defer c.close()
	// Until here the number may have become that of another process. What was opened before a call that is still valid is the caller's.
	if _, errno := ioctl(fd, ioctlIsValid, &n.id); errno != 0 {
		return errno
	}
	args := make([]byte, 16)
	pair := n.args[0] == seccomp.SocketcallSocketpair
	if !pair {
		args = args[:12]
	}
	if _, err := c.memory.ReadAt(args, int64(uint32(n.args[1]))); err != nil {
		return unix.EFAULT
	}
	word := func(i int) uint32 { return binary.LittleEndian.Uint32(args[4*i:]) }
	kind := word(1)
	sockets, errno := c.sockets(pair, word(0), kind, word(2))
	if errno != 0 {
		return errno
	}
	defer func() {
		for _, s := range sockets {
			unix.Close(s)
		}
	}()
	closeOnExec := kind&unix.SOCK_CLOEXEC != 0
	if !pair {
		_, errno := n.add(fd, sockets[0], unix.SECCOMP_ADDFD_FLAG_SEND, closeOnExec)
		return errno
	}
	var numbers []byte
	for _, s := range sockets {
		number, errno := n.add(fd, s, 0, closeOnExec)
		if errno != 0 {
			return errno
		}
		numbers = binary.LittleEndian.AppendUint32(numbers, number)
	}
	if _, err := c.memory.WriteAt(numbers, int64(word(3))); err != nil {
		return unix.EFAULT
	}
	n.end(fd, 0, 0)
	return 0
}

// sockets makes a socket, or a pair of them, as the caller.
func (c *caller) sockets(pair bool, family, kind, protocol uint32) (fds []int, errno unix.Errno) {
	if seccomp.Refused(family) {
		return nil, unix.EPERM
	}
	errno = unix.ENOSYS
	c.do(func() {
		fds = make([]int, 1)
		var err error
		if pair {
			var two [2]int
			two, err = unix.Socketpair(int(family), int(kind|unix.SOCK_CLOEXEC), int(int32(protocol)))
			fds = two[:]
		} else {
			fds[0], err = unix.Socket(int(family), int(kind|unix.SOCK_CLOEXEC), int(int32(protocol)))
		}
		errno, _ = err.(unix.Errno)
	})
	return fds, errno
}

// A caller is a thread that waits.
type caller struct {
	memory  *os.File
	network *os.File // nil: kiln's own
	// uid and gid are the real, effective, saved and file system ids, in kiln's user namespace.
	uid, gid [4]int
	// capabilities are the effective ones in kiln's user namespace: none of a caller that is in another one.
	capabilities uint64
}

// openCaller opens what is known of a thread. See proc(5).
func openCaller(tid uint32) (*caller, error) {
	dir := fmt.Sprintf("/proc/%d/", tid)
	c := &caller{}
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":\t")
		switch name {
		case "Uid":
			_, err = fmt.Sscan(value, &c.uid[0], &c.uid[1], &c.uid[2], &c.uid[3])
		case "Gid":
			_, err = fmt.Sscan(value, &c.gid[0], &c.gid[1], &c.gid[2], &c.gid[3])
		case "CapEff":
			_, err = fmt.Sscanf(value, "%x", &c.capabilities)
		}
		if err != nil {
			return nil, fmt.Errorf("read %sstatus: %w", dir, err)
		}
	}
	user, err := os.Open(dir + "ns/user")
	if err != nil {
		return nil, err
	}
	defer user.Close()
	if own, err := isOwn(user, "user"); err != nil {
		return nil, err
	} else if !own {
		c.capabilities = 0
	}
	if c.network, err = os.Open(dir + "ns/net"); err != nil {
		return nil, err
	}
	own, err := isOwn(c.network, "net")
	if err != nil {
		c.close()
		return nil, err
	}
	if own { // which kiln may have no right to enter
		c.network.Close()
		c.network = nil
	}
	if c.memory, err = os.OpenFile(dir+"mem", os.O_RDWR, 0); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// isOwn reports whether a namespace of a kind is kiln's.
func isOwn(ns *os.File, kind string) (bool, error) {
	var a, b unix.Stat_t
	if err := unix.Fstat(int(ns.Fd()), &a); err != nil {
		return false, err
	}
	err := unix.Stat("/proc/self/ns/"+kind, &b)
	return a.Dev == b.Dev && a.Ino == b.Ino, err
}

func (c *caller) close() {
	if c.network != nil {
		c.network.Close()
	}
	if c.memory != nil {
		c.memory.Close()
	}
}

// do calls f with the ids, the effective capabilities and the network of the caller, in a thread that ends with it; not at all if it cannot
// have them. What is permitted to the thread stays, so that nobody who may do less can look into kiln through it.
func (c *caller) do(f func()) {
	thread.Do(func() {
		if c.become() == nil {
			f()
		}
	})
}

func (c *caller) become() error {
	if c.network != nil {
		if err := unix.Setns(int(c.network.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network: %w", err)
		}
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("get capabilities: %w", err)
	}
	// Of this thread alone, which the functions of package syscall are not.
	for _, call := range [][6]uintptr{
		{unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1},
		{unix.SYS_SETRESGID, uintptr(c.gid[0]), uintptr(c.gid[1]), uintptr(c.gid[2])},
		{unix.SYS_SETFSGID, uintptr(c.gid[3])},
		{unix.SYS_SETRESUID, uintptr(c.uid[0]), uintptr(c.uid[1]), uintptr(c.uid[2])},
		{unix.SYS_SETFSUID, uintptr(c.uid[3])},
	} {
		if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
			return fmt.Errorf("become the caller's user: %w", errno)
		}
	}
	if err := calls.Hide(); err != nil {
		return err
	}
	data[0].Effective = data[0].Permitted & uint32(c.capabilities)
	data[1].Effective = data[1].Permitted & uint32(c.capabilities>>32)
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	return nil
}
