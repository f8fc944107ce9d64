// Package stdio copies between files of kiln and the descriptors of a process: pipes, or a terminal. It does not know the process.
package stdio

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const bufferSize = 32 << 10

// past is a deadline that is over.
var past = time.Unix(1, 0)

// Output copies what comes through a pipe or from a terminal to a writer.
type Output struct {
	from *os.File
	fd   int // of from
	to   io.Writer
	err  error
	done chan struct{}
}

// NewOutput returns an Output of a file that does not block. Close closes it.
func NewOutput(from *os.File, to io.Writer) *Output {
	o := &Output{from: from, to: to, done: make(chan struct{})}
	if conn, err := from.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) { o.fd = int(fd) })
	}
	return o
}

// Copy copies until the end of the file, or, after End, until it is empty. When the writer fails the rest is read and thrown away, so that
// the process does not block.
func (o *Output) Copy() {
	defer close(o.done)
	buf := make([]byte, bufferSize)
	for {
		n, err := o.from.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if n, err = unix.Read(o.fd, buf); err != nil || n <= 0 {
				return
			}
		}
		if n > 0 && o.err == nil {
			_, o.err = o.to.Write(buf[:n])
		}
		if err != nil {
			return
		}
	}
}

// End waits for Copy. Every process that had the other end is dead, unless one sent it away.
func (o *Output) End() {
	_ = o.from.SetReadDeadline(past)
	<-o.done
}

// Err returns why the writer failed, after End.
func (o *Output) Err() error { return o.err }

// Close closes the file.
func (o *Output) Close() { o.from.Close() }

// Input copies what is read of a file to a process.
type Input struct {
	from, to *os.File
	// terminal says that to is one, which is read as well.
	terminal   bool
	stop, wake *os.File // a pipe: closing stop ends the wait for from
	done       chan struct{}
}

// NewInput returns an Input for a pipe that does not block, which it closes. The other file stays the caller's.
func NewInput(from, to *os.File) (*Input, error) {
	wake, stop, err := os.Pipe()
	if err != nil {
		to.Close()
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	return &Input{from: from, to: to, stop: stop, wake: wake, done: make(chan struct{})}, nil
}

// NewTerminalInput returns an Input for kiln's end of a terminal, which does not block. Both files stay the caller's.
func NewTerminalInput(from, to *os.File) (*Input, error) {
	wake, stop, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	return &Input{from: from, to: to, terminal: true, stop: stop, wake: wake, done: make(chan struct{})}, nil
}

// endOfInput is what a terminal takes for the end of input at the beginning of a line: VEOF of termios(3).
const endOfInput = 4

// Copy copies until one of the files ends, or until End. It takes no more from the file than the process's pipe or terminal took, and one
// buffer.
func (i *Input) Copy() {
	defer close(i.done)
	buf := make([]byte, bufferSize)
	for i.wait() {
		n, err := unix.Read(int(i.from.Fd()), buf)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil || n <= 0 {
			if i.terminal {
				_, _ = i.to.Write([]byte{endOfInput})
			} else {
				i.to.Close()
			}
			return
		}
		if _, err := i.to.Write(buf[:n]); err != nil {
			return // the process reads nothing any more
		}
	}
}

// wait waits until something can be read of the file; false after End.
func (i *Input) wait() bool {
	for {
		ready := []unix.PollFd{{Fd: int32(i.from.Fd()), Events: unix.POLLIN}, {Fd: int32(i.wake.Fd()), Events: unix.POLLIN}}
		_, err := unix.Poll(ready, -1)
		if !errors.Is(err, unix.EINTR) {
			return err == nil && ready[1].Revents == 0
		}
	}
}

// End is called when the process is dead, and waits for Copy.
func (i *Input) End() {
	i.stop.Close()
	_ = i.to.SetWriteDeadline(past)
	<-i.done
}

// Close closes what NewInput opened, and the pipe.
func (i *Input) Close() {
	i.stop.Close()
	i.wake.Close()
	if !i.terminal {
		i.to.Close()
	}
}
