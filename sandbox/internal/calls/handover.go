package calls

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A Handover is a pair of sockets by which the process passes on one descriptor.
type Handover struct {
	// Give is the end that the process sends to, as Rights of sendmsg(2). Take is kiln's.
	Give, Take *os.File
}

// NewHandover returns a pair, both ends of which are the caller's to close.
func NewHandover() (Handover, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return Handover{}, fmt.Errorf("make a pair of sockets: %w", err)
	}
	return Handover{os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket")}, nil
}

// Hurry ends Receive.
func (h Handover) Hurry() { _ = h.Take.SetReadDeadline(time.Unix(1, 0)) }

// Receive returns what the process passes on, nil if it ended before.
func (h Handover) Receive() *os.File {
	conn, err := h.Take.SyscallConn()
	if err != nil {
		return nil
	}
	control := make([]byte, unix.CmsgSpace(4))
	var n int
	if waitErr := conn.Read(func(fd uintptr) bool {
		_, n, _, _, err = unix.Recvmsg(int(fd), make([]byte, 1), control, unix.MSG_CMSG_CLOEXEC)
		return err != unix.EAGAIN && err != unix.EINTR
	}); waitErr != nil || err != nil {
		return nil
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return nil
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil
	}
	if err := unix.SetNonblock(fds[0], true); err != nil { // so that no thread waits for it
		unix.Close(fds[0])
		return nil
	}
	return os.NewFile(uintptr(fds[0]), "descriptor of a process")
}
