package sandbox

import (
	"fmt"
	"io"
	"os"
	"reflect"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/sandbox/internal/calls"
	"github.com/kilnbuild/kiln/sandbox/internal/stdio"
)

// Stdio is what a process reads and where it writes. Its descriptors are pipes, or a terminal of its own, and never those of kiln: what it
// does to them changes nothing outside.
type Stdio struct {
	// Stdin is what the process reads, by way of kiln; nil is /dev/null. Nothing is read of it any more when Run returns.
	Stdin *os.File
	// Stdout and Stderr take what the process writes, as it writes it; nil discards it. If they are equal, at most one
	// Write is called at a time and the order of the process's writes is kept.
	Stdout, Stderr io.Writer
	// Terminal gives the process a terminal, which controls its session; nil gives it none. Then Stdin is what is typed there,
	// nothing if nil, Stdout takes all that is shown, and Stderr is not used.
	Terminal *Terminal
	// Debug takes the list of system calls that set the process up, before they are made; nil is for none.
	Debug io.Writer
}

// Terminal is a terminal of a process.
type Terminal struct {
	Size TerminalSize
	// Resized has the sizes that the terminal gets while the process runs; it may be nil.
	Resized <-chan TerminalSize
}

// TerminalSize is the size of a terminal in characters.
type TerminalSize struct{ Rows, Columns uint16 }

// streams are kiln's ends of what a process reads and writes, and of what it is told.
type streams struct {
	outs    []*stdio.Output
	in      *stdio.Input // nil for /dev/null, or a terminal that nobody types at
	tty     *terminal    // nil where the process has none
	signals *signals     // nil where none are sent
	// resizing ends the following of the terminal's sizes.
	resizing func()
}

// start is called when the process has been started.
func (x *streams) start(r *run) {
	for _, o := range x.outs {
		go o.Copy()
	}
	if x.in != nil {
		go x.in.Copy()
	}
	if x.tty != nil {
		x.resizing = x.tty.follow(r.spec.Stdio.Terminal.Resized)
	}
	if x.signals != nil {
		go x.signals.send(r)
	}
}

// end is called when all processes of the run are dead.
func (x *streams) end(entered bool) {
	if x.signals != nil {
		x.signals.end(entered)
	}
	if x.tty != nil {
		x.resizing()
	}
	if x.in != nil {
		x.in.End()
	}
	for _, o := range x.outs {
		o.End()
	}
}

func (x *streams) close() {
	if x.signals != nil {
		x.signals.Take.Close()
	}
	if x.in != nil {
		x.in.Close()
	}
	for _, o := range x.outs {
		o.Close()
	}
}

// descriptors makes the process's standard input, output and error.
func (r *run) descriptors(p *parts) (err error) {
	s := &r.spec.Stdio
	if r.spec.Process.Signals != nil || r.spec.Entry != nil {
		if r.streams.signals, err = newSignals(); err != nil {
			return err
		}
		r.files = append(r.files, r.streams.signals.Give)
	}
	if s.Terminal != nil || r.spec.Entry != nil {
		if err := r.ownTerminals(p); err != nil {
			return err
		}
	}
	if s.Terminal != nil {
		return r.terminal(p)
	}
	if s.Stdin != nil {
		if p.in, err = r.inPipe(); err != nil {
			return err
		}
	}
	if p.out, err = r.outPipe(s.Stdout); err != nil {
		return err
	}
	if same(s.Stdout, s.Stderr) {
		p.err = p.out
		return nil
	}
	p.err, err = r.outPipe(s.Stderr)
	return err
}

func same(a, b io.Writer) bool {
	return a != nil && b != nil && reflect.TypeOf(a) == reflect.TypeOf(b) && reflect.TypeOf(a).Comparable() && a == b
}

// pipe returns a pipe whose end theirs, 0 for reading or 1 for writing, is the process's, which may open it again, as /dev/stdout.
func (r *run) pipe(theirs int) (process, kiln *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	ours := 1 - theirs
	err = r.giveToUser(fds[theirs], -1)
	if nonblock := unix.SetNonblock(fds[ours], true); err == nil && nonblock != nil {
		err = fmt.Errorf("make pipe: %w", nonblock)
	}
	if err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, err
	}
	process, _ = r.own(os.NewFile(uintptr(fds[theirs]), "pipe"), nil)
	return process, os.NewFile(uintptr(fds[ours]), "pipe"), nil
}

// giveToUser gives a descriptor of the process's to its user, and unless gid is -1 to a group of its namespace.
func (r *run) giveToUser(fd, gid int) error {
	uid := int(r.spec.Process.User.UID)
	if m := r.spec.Privileges.IDs; m != nil {
		uid += int(m.FirstUser)
		if gid >= 0 {
			gid += int(m.FirstGroup)
		}
	}
	if err := unix.Fchown(fd, uid, gid); err != nil {
		return fmt.Errorf("give input and output to the user: %w", err)
	}
	return nil
}

func (r *run) outPipe(w io.Writer) (*os.File, error) {
	if w == nil {
		return nil, nil
	}
	process, kiln, err := r.pipe(1)
	if err == nil {
		r.streams.outs = append(r.streams.outs, stdio.NewOutput(kiln, w))
	}
	return process, err
}

func (r *run) inPipe() (*os.File, error) {
	process, kiln, err := r.pipe(0)
	if err != nil {
		return nil, err
	}
	r.streams.in, err = stdio.NewInput(r.spec.Stdio.Stdin, kiln)
	return process, err
}

// ownTerminals makes the file system for /dev/pts if the process would have made it: whoever mounts it in the process's user namespace is
// not kiln, which has to open terminals in it. Owners are those of the namespace all the same.
func (r *run) ownTerminals(p *parts) (err error) {
	if p.pts == nil {
		options := p.ptsOptions
		for i := range options {
			if options[i].Name == "gid" {
				options[i].Value = fmt.Sprint(r.spec.Privileges.IDs.FirstGroup + ttyGroup)
			}
		}
		if p.pts, err = r.own(mount.New("devpts", mount.NoSuid|mount.NoExec, options...)); err != nil {
			return err
		}
	}
	if r.spec.Entry != nil && !r.entered {
		r.pts, err = duplicate(p.pts)
	}
	return err
}

// terminal makes a terminal for the process in the /dev/pts of its sandbox.
func (r *run) terminal(p *parts) error {
	s := &r.spec.Stdio
	fail := func(err error) error { return fmt.Errorf("make a terminal: %w", err) }
	ours, err := unix.Openat(fd(p.pts), "ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	r.streams.tty = &terminal{os.NewFile(uintptr(ours), "terminal")}
	out := s.Stdout
	if out == nil {
		out = io.Discard
	}
	r.streams.outs = append(r.streams.outs, stdio.NewOutput(r.streams.tty.File, out))
	if err := unix.IoctlSetPointerInt(ours, unix.TIOCSPTLCK, 0); err != nil {
		return fail(err)
	}
	theirs, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(ours), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return fail(errno)
	}
	process, _ := r.own(os.NewFile(theirs, "terminal"), nil)
	gid := -1
	if m := r.spec.Privileges.IDs; m == nil && r.ns.HasGroup(ttyGroup) || m != nil && m.Count > ttyGroup {
		gid = ttyGroup
	}
	if err := r.giveToUser(fd(process), gid); err != nil {
		return err
	}
	r.streams.tty.resize(s.Terminal.Size)
	p.in, p.out, p.err = process, process, process
	if s.Stdin != nil {
		r.streams.in, err = stdio.NewTerminalInput(s.Stdin, r.streams.tty.File)
	}
	return err
}

// terminal is kiln's end of a terminal of the process.
type terminal struct{ *os.File }

func (t *terminal) resize(size TerminalSize) {
	conn, err := t.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Control(func(fd uintptr) {
		// What fails is a size that the terminal has already, or nobody sees.
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Columns})
	})
}

// follow gives the terminal the sizes that come, until the returned function is called.
func (t *terminal) follow(sizes <-chan TerminalSize) (end func()) {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case size, more := <-sizes:
				if !more {
					sizes = nil
					continue
				}
				t.resize(size)
			case <-stop:
				return
			}
		}
	}()
	return func() {
		close(stop)
		<-done
	}
}

// signals sends signals to the process, by a descriptor of it that it passes on itself: its number may be that of another by then.
type signals struct {
	calls.Handover
	wake       chan struct{} // says that the process is to be killed
	stop, done chan struct{}
}

func newSignals() (*signals, error) {
	h, err := calls.NewHandover()
	return &signals{Handover: h, wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}, err
}

// plan has the process pass on a descriptor of itself, whose number is self. The descriptor spare is used up.
func (s *signals) plan(l *calls.List, self any, spare int) {
	process := l.Add("open the process", unix.SYS_PIDFD_OPEN, self, 0)
	l.Add("move the process", unix.SYS_DUP3, process, spare, unix.O_CLOEXEC)
	l.Add("send the process", unix.SYS_SENDMSG, fd(s.Give), &calls.Rights{FD: spare}, unix.MSG_NOSIGNAL)
}

// send sends the signals of a run.
func (s *signals) send(r *run) {
	defer close(s.done)
	process := s.Receive()
	if process == nil {
		return
	}
	defer process.Close()
	if e := r.spec.Entry; e != nil && !r.entered {
		e.open(r, process)
	}
	send := func(signal syscall.Signal) { _ = unix.PidfdSendSignal(int(process.Fd()), signal, nil, 0) } // it may have ended
	list := r.spec.Process.Signals
	for {
		select {
		case signal, more := <-list:
			if !more {
				list = nil
				continue
			}
			send(signal)
		case <-s.wake:
			send(syscall.SIGKILL)
		case <-s.stop:
			if r.entered {
				// It is dead by now, unless somebody has killed who started it.
				send(syscall.SIGKILL)
				dead(process)
			}
			return
		}
	}
}

// dead waits until a process has ended.
func dead(process *os.File) {
	for {
		ended := []unix.PollFd{{Fd: int32(process.Fd()), Events: unix.POLLIN}}
		if _, err := unix.Poll(ended, -1); err != unix.EINTR {
			return
		}
	}
}

// kill kills the process, as soon as it has passed its descriptor on.
func (s *signals) kill() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// end waits for send. Of a run that is not entered all processes are dead.
func (s *signals) end(entered bool) {
	close(s.stop)
	if !entered { // else nobody has the other end once the process is dead
		s.Hurry()
	}
	<-s.done
}
