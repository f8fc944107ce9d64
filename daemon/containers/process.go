package containers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/daemon/apierr"
	"github.com/kilnbuild/kiln/internal/signalname"
	"github.com/kilnbuild/kiln/sandbox"
	"github.com/kilnbuild/kiln/solver/container"
)

// Limits of one stream of processes.
const (
	maxRunning = 256     // processes at the same time
	maxStarted = 1 << 16 // processes in all
	maxPending = 1 << 20 // bytes that a process has not read yet: after that the stream waits
)

// conversation is a stream by which a client starts processes, types to them, and gets what they write.
type conversation struct {
	set    *Set
	stream gateway.LLBBridge_ExecProcessServer
	ctx    context.Context
	cancel context.CancelCauseFunc

	sending   sync.Mutex
	running   sync.WaitGroup
	processes map[string]*process // by the client's ids; nil for those that have ended
	mu        sync.Mutex
	count     int // that run
}

// process is one that a client has started.
type process struct {
	input   *input                    // nil without standard input
	resized chan sandbox.TerminalSize // nil without a terminal
	signals chan syscall.Signal
	started chan struct{} // closed when the client has been told
	done    chan struct{}
}

// ExecProcess serves one stream. When it ends so do its processes.
func (s *Set) ExecProcess(stream gateway.LLBBridge_ExecProcessServer) error {
	x := &conversation{set: s, stream: stream, processes: map[string]*process{}}
	x.ctx, x.cancel = context.WithCancelCause(stream.Context())
	defer context.AfterFunc(s.ctx, func() { x.cancel(context.Cause(s.ctx)) })()
	err := x.receive()
	if err != nil {
		x.cancel(err)
	}
	// The client says nothing more, and may still listen.
	x.mu.Lock()
	for _, p := range x.processes {
		if p != nil && p.input != nil {
			p.input.end()
		}
	}
	x.mu.Unlock()
	x.running.Wait()
	failed := context.Cause(x.ctx)
	x.cancel(nil)
	if err == nil {
		err = failed
	}
	return err
}

// receive does what the client says, until it says nothing more.
func (x *conversation) receive() error {
	messages := make(chan *gateway.ExecMessage)
	failed := make(chan error, 1)
	go func() { // which ends with the stream
		defer close(messages)
		for {
			m, err := x.stream.Recv()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				failed <- err
				return
			}
			select {
			case messages <- m:
			case <-x.ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case m, more := <-messages:
			if !more {
				select {
				case err := <-failed:
					return err
				default:
					return nil
				}
			}
			if err := x.do(m); err != nil {
				return err
			}
		case <-x.ctx.Done():
			return context.Cause(x.ctx)
		}
	}
}

// do does what one message says.
func (x *conversation) do(m *gateway.ExecMessage) error {
	id := m.ProcessID
	if id == "" || len(id) > maxName {
		return status.Errorf(codes.InvalidArgument, "ProcessID required, of at most %d bytes", maxName)
	}
	x.mu.Lock()
	p, known := x.processes[id]
	x.mu.Unlock()
	if start := m.GetInit(); start != nil {
		if known {
			return status.Errorf(codes.AlreadyExists, "Process %s already exists", id)
		}
		return x.start(id, start)
	}
	if !known {
		return status.Errorf(codes.NotFound, "IO for process %q not found", id)
	}
	if p == nil {
		return nil // it has ended, and the client does not know yet
	}
	switch {
	case m.GetFile() != nil:
		f := m.GetFile()
		if p.input == nil || f.Fd != 0 {
			return status.Errorf(codes.OutOfRange, "fd %d unavailable to write", f.Fd)
		}
		if err := p.input.write(x.ctx, f.Data); err != nil {
			return err
		}
		if f.EOF {
			p.input.end()
		}
	case m.GetResize() != nil:
		r := m.GetResize()
		if p.resized == nil {
			return nil // it has no terminal
		}
		select {
		case p.resized <- sandbox.TerminalSize{Rows: uint16(min(r.Rows, 1<<16-1)), Columns: uint16(min(r.Cols, 1<<16-1))}:
		case <-p.done:
		case <-x.ctx.Done():
		}
	case m.GetSignal() != nil:
		number, err := signalname.Parse(m.GetSignal().Name)
		if err != nil {
			return status.Errorf(codes.InvalidArgument, "Unknown signal: %v", err)
		}
		select {
		case p.signals <- number:
		case <-p.done:
		case <-x.ctx.Done():
		}
	default:
		return status.Errorf(codes.InvalidArgument, "unexpected message for process %q", id)
	}
	return nil
}

// start starts a process.
func (x *conversation) start(id string, init *gateway.InitMessage) error {
	if init.Meta == nil {
		return status.Error(codes.InvalidArgument, "process meta is required")
	}
	e, err := x.set.get(init.ContainerID)
	if err != nil {
		return err
	}
	for _, fd := range init.Fds {
		if fd > 2 {
			return status.Errorf(codes.InvalidArgument, "a process has the descriptors 0 to 2, and not %d", fd)
		}
	}
	p := &process{signals: make(chan syscall.Signal, 1), started: make(chan struct{}), done: make(chan struct{})}
	x.mu.Lock()
	switch {
	case x.count >= maxRunning:
		err = status.Errorf(codes.ResourceExhausted, "%d processes run already, and more are not allowed at the same time", maxRunning)
	case len(x.processes) >= maxStarted:
		err = status.Errorf(codes.ResourceExhausted, "%d processes are all that can be started by one stream", maxStarted)
	}
	if err == nil {
		x.count++
		x.processes[id] = p
	}
	x.mu.Unlock()
	if err != nil {
		return err
	}
	// The first process that a client starts is that with number 1.
	wait, err := x.begin(id, p, e, init)
	// Started comes before all output, and before what the process failed of.
	defer close(p.started)
	failed := x.send(&gateway.ExecMessage{ProcessID: id, Input: &gateway.ExecMessage_Started{Started: &gateway.StartedMessage{}}})
	x.running.Go(func() {
		if err == nil {
			err = wait()
		}
		x.ended(id, p, init.Fds, err)
	})
	return failed
}

// begin starts a process in a container, and returns what waits for its end.
func (x *conversation) begin(id string, p *process, e *entry, init *gateway.InitMessage) (wait func() error, err error) {
	mode, err := security(init.Security)
	if err != nil {
		return nil, err
	}
	if len(init.Meta.Args) == 0 {
		return nil, errNoArgs
	}
	q := container.Process{
		Args: init.Meta.Args, Env: withDefault(init.Meta.Env, e.path), Cwd: init.Meta.Cwd, User: init.Meta.User, Security: mode,
		Signals: p.signals,
	}
	for _, s := range init.Secretenv {
		if s.GetID() == "" {
			return nil, fmt.Errorf("secret ID missing for %q environment variable", s.GetName())
		}
		q.Secrets = append(q.Secrets, container.Secret{ID: s.ID, Variable: s.Name, Required: !s.Optional})
	}
	if slices.Contains(init.Fds, 0) {
		if p.input, err = newInput(); err != nil {
			return nil, err
		}
		q.Stdio.Stdin = p.input.read
	}
	for fd, to := range map[uint32]*io.Writer{1: &q.Stdio.Stdout, 2: &q.Stdio.Stderr} {
		if slices.Contains(init.Fds, fd) {
			*to = output{x, id, fd, p.started}
		}
	}
	if init.Tty {
		p.resized = make(chan sandbox.TerminalSize, 1)
		q.Env = withDefault(q.Env, "TERM=xterm")
		q.Stdio.Terminal = &sandbox.Terminal{Resized: p.resized}
	}
	ended, err := e.Start(x.ctx, q)
	if err != nil {
		return nil, err
	}
	return func() error {
		st, err := ended()
		if err == nil && st.ExitCode != 0 {
			err = &gateway.ExitError{ExitCode: uint32(st.ExitCode)}
		}
		return err
	}, nil
}

// withDefault adds a variable, "NAME=value", unless there is one of the name.
func withDefault(env []string, variable string) []string {
	name, _, _ := strings.Cut(variable, "=")
	if slices.ContainsFunc(env, func(v string) bool { return strings.HasPrefix(v, name+"=") }) {
		return env
	}
	return append(slices.Clone(env), variable)
}

// ended tells the client how a process ended.
func (x *conversation) ended(id string, p *process, fds []uint32, err error) {
	close(p.done)
	if p.input != nil {
		p.input.close()
	}
	x.mu.Lock()
	x.processes[id] = nil
	x.count--
	x.mu.Unlock()
	exit := &gateway.ExitMessage{}
	if err != nil {
		if errors.Is(err, container.ErrClosed) {
			err = errReleased
		}
		exit.Code = gateway.UnknownExitStatus
		shown := (&apierr.Build{}).Error(err)
		if e, ok := errors.AsType[*gateway.ExitError](shown); ok {
			exit.Code = e.ExitCode
		}
		exit.Error = apierr.Status(x.ctx, shown).Proto()
	}
	messages := []*gateway.ExecMessage{{ProcessID: id, Input: &gateway.ExecMessage_Exit{Exit: exit}}}
	for _, fd := range fds {
		if fd > 0 {
			end := &gateway.ExecMessage_File{File: &gateway.FdMessage{Fd: fd, EOF: true}}
			messages = append(messages, &gateway.ExecMessage{ProcessID: id, Input: end})
		}
	}
	messages = append(messages, &gateway.ExecMessage{ProcessID: id, Input: &gateway.ExecMessage_Done{Done: &gateway.DoneMessage{}}})
	for _, m := range messages {
		if x.send(m) != nil {
			return // nobody listens any more
		}
	}
}

// errReleased is of processes of a container that its client has released.
var errReleased = fmt.Errorf("the container was released: %w", context.Canceled)

// send sends a message; the stream takes one at a time.
func (x *conversation) send(m *gateway.ExecMessage) error {
	x.sending.Lock()
	defer x.sending.Unlock()
	return x.stream.Send(m)
}

// output sends what a process writes to the client.
type output struct {
	x  *conversation
	id string
	fd uint32
	// started is closed when the client has been told of the process.
	started <-chan struct{}
}

func (o output) Write(data []byte) (int, error) {
	<-o.started
	m := &gateway.ExecMessage{ProcessID: o.id, Input: &gateway.ExecMessage_File{File: &gateway.FdMessage{Fd: o.fd, Data: slices.Clone(data)}}}
	if err := o.x.send(m); err != nil {
		return 0, err
	}
	return len(data), nil
}

// input is what a client types: it is kept until the process reads it.
type input struct {
	read    *os.File // the process's
	pipe    *os.File // kiln's end
	mu      sync.Mutex
	pending int           // bytes that are not in the pipe yet
	queue   [][]byte      // of them
	ending  bool          // nothing comes after them
	more    chan struct{} // says that queue or ending has changed
	less    chan struct{} // says that pending has
	closed  chan struct{}
	once    sync.Once
	copying sync.WaitGroup
}

func newInput() (*input, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	i := &input{read: r, pipe: w, more: make(chan struct{}, 1), less: make(chan struct{}, 1), closed: make(chan struct{})}
	i.copying.Go(i.copy)
	return i, nil
}

// copy writes what is pending to the pipe, until it is closed.
func (i *input) copy() {
	defer i.pipe.Close()
	for {
		i.mu.Lock()
		queue, ending := i.queue, i.ending
		i.queue = nil
		i.mu.Unlock()
		for _, data := range queue {
			_, err := i.pipe.Write(data)
			i.mu.Lock()
			i.pending -= len(data)
			i.mu.Unlock()
			notify(i.less)
			if err != nil {
				return
			}
		}
		if ending && queue == nil {
			return
		}
		if ending {
			continue
		}
		select {
		case <-i.more:
		case <-i.closed:
			return
		}
	}
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// write adds to what is pending. It waits while that is too much already, unless the process ends.
func (i *input) write(ctx context.Context, data []byte) error {
	for len(data) > 0 {
		i.mu.Lock()
		if i.ending {
			i.mu.Unlock()
			return status.Error(codes.OutOfRange, "fd 0 unavailable to write")
		}
		if i.pending < maxPending {
			i.queue = append(i.queue, data)
			i.pending += len(data)
			data = nil
		}
		i.mu.Unlock()
		notify(i.more)
		if data == nil {
			return nil
		}
		select {
		case <-i.less:
		case <-i.closed:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// end says that nothing comes any more.
func (i *input) end() {
	i.mu.Lock()
	i.ending = true
	i.mu.Unlock()
	notify(i.more)
}

// close is called when nobody reads any more.
func (i *input) close() {
	i.once.Do(func() {
		close(i.closed)
		i.pipe.Close()
		i.copying.Wait()
		i.read.Close()
	})
}
