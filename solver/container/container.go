// Package container runs processes that are no step: any number of them over one root file system, with mounts and a network, of which
// nothing is kept.
package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"

	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/sandbox"
	"github.com/kilnbuild/kiln/solver/execute"
	"github.com/kilnbuild/kiln/solver/work"
)

// NotAllowedError says that a job has not been given an entitlement.
type NotAllowedError struct {
	// Entitlement is "network.host" or "security.insecure".
	Entitlement string
}

func (e *NotAllowedError) Error() string { return e.Entitlement + " is not allowed for this build" }

// MissingSecretError says that a job has not been given a secret that a process requires.
type MissingSecretError struct{ ID string }

func (e *MissingSecretError) Error() string {
	return fmt.Sprintf("the build was not given the secret %q", e.ID)
}

// ErrClosed says that a Container was closed.
var ErrClosed = errors.New("the container has been closed")

// Container is a root file system with mounts and a network, in which any number of processes run that are no step: what they write goes
// with it. It is safe for concurrent use.
type Container struct {
	prepared *execute.Prepared
	job      *execute.Job
	network  llb.Network
	ctx      context.Context // of its processes
	cancel   context.CancelCauseFunc
	entry    sandbox.Entry

	mu      sync.Mutex
	started bool
	closed  bool
	failed  error // of the process that failed first
	running sync.WaitGroup
}

// Process is what runs in a Container.
type Process struct {
	Args []string
	// Env is the whole environment, "NAME=value" in order.
	Env []string
	// Secrets are put into the environment.
	Secrets []Secret
	// Cwd is an absolute path, "/" if "". For the first process of a container it is made where it is missing.
	Cwd string
	// User is as in llb.Exec.
	User     string
	Security llb.Security
	// Signals are sent to the process as they come; nil is for none.
	Signals <-chan syscall.Signal
	Stdio   sandbox.Stdio
}

// New prepares the root file system, the mounts, and the network of an Exec, whose own program is not looked at. Close must be called,
// before that of the job.
func New(ctx context.Context, job *execute.Job, w work.Exec) (*Container, error) {
	p, err := job.Prepare(ctx, w)
	if err != nil {
		return nil, err
	}
	c := &Container{prepared: p, job: job, network: w.Op.Network}
	c.ctx, c.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	return c, nil
}

// AddFile mounts a file with a content, which every user can read and nobody change. It is called before Start.
func (c *Container) AddFile(target string, content []byte) error {
	return c.prepared.AddFile(target, content)
}

// Root returns the root file system, which may change at any time. It stays the container's.
func (c *Container) Root() *os.File { return c.prepared.Root() }

// Mounted returns what mount i of the Exec shows; nil for what is not there, as a secret that is not required. It stays the container's.
func (c *Container) Mounted(i int) *os.File { return c.prepared.Mounted(i) }

// Secret is a secret that becomes a variable, empty if the job has none of that id.
type Secret struct {
	ID, Variable string
	// Required makes that an error.
	Required bool
}

// Start starts a process, and returns a function that waits for its end, which is to be called once. The first process is that with number
// 1 in the container: when it ends all others are killed, and none can be started any more (sandbox.ErrEnded). A process is killed when ctx
// is done. Errors are those of sandbox.Run and sandbox.Entry, *NotAllowedError, and ErrClosed.
func (c *Container) Start(ctx context.Context, p Process) (wait func() (sandbox.Status, error), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	run := c.enter
	if !c.started {
		run = c.first
	}
	c.started = true
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(c.ctx, func() { cancel(context.Cause(c.ctx)) })
	var (
		status sandbox.Status
		failed error
		done   = make(chan struct{})
	)
	c.running.Go(func() {
		defer close(done)
		defer stop()
		defer cancel(nil)
		status, failed = run(ctx, p)
		if cause := context.Cause(ctx); errors.Is(failed, sandbox.ErrEnded) && cause != nil {
			failed = cause
		}
		c.ended(status, failed)
	})
	return func() (sandbox.Status, error) {
		<-done
		return status, failed
	}, nil
}

// ExitError is a process that did not succeed.
type ExitError struct{ Status sandbox.Status }

func (e *ExitError) Error() string { return fmt.Sprintf("exit code: %d", e.Status.ExitCode) }

// ended notes how a process has ended.
func (c *Container) ended(status sandbox.Status, err error) {
	if err == nil && status.ExitCode != 0 {
		err = &ExitError{status}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed == nil {
		c.failed = err
	}
}

// first runs the first process.
func (c *Container) first(ctx context.Context, p Process) (sandbox.Status, error) {
	defer c.entry.End()
	process, err := c.process(ctx, p)
	if err != nil {
		return sandbox.Status{}, err
	}
	spec := c.prepared.Spec
	spec.Entry = &c.entry
	spec.Process.Args, spec.Process.Env, spec.Process.Cwd = process.Args, process.Env, process.Cwd
	spec.Process.User, spec.Process.Signals, spec.Stdio = process.User, process.Signals, p.Stdio
	spec.Privileges.Insecure = p.Security == llb.SecurityInsecure
	c.prepared.Spec.Privileges.Insecure = spec.Privileges.Insecure // so that nobody gets its network afterwards
	status, err := sandbox.Run(ctx, spec)
	return status, c.explain(err)
}

// enter runs another process.
func (c *Container) enter(ctx context.Context, p Process) (sandbox.Status, error) {
	select {
	case <-c.entry.Opened(): // what the first process is, is known
	case <-ctx.Done():
		return sandbox.Status{}, context.Cause(ctx)
	}
	process, err := c.process(ctx, p)
	if err != nil {
		return sandbox.Status{}, err
	}
	insecure := p.Security == llb.SecurityInsecure
	if insecure && !c.prepared.Spec.Privileges.Insecure {
		return sandbox.Status{}, errors.New("a process with --security=insecure runs only in a container whose first process has that too")
	}
	status, err := c.entry.Run(ctx, sandbox.Further{Process: process, Confined: !insecure, Stdio: p.Stdio})
	return status, c.explain(err)
}

func (c *Container) explain(err error) error {
	if err == nil {
		return nil
	}
	return c.prepared.Explain(err)
}

// process returns what the sandbox is told of a process.
func (c *Container) process(ctx context.Context, p Process) (sandbox.Process, error) {
	out := sandbox.Process{Args: p.Args, Env: slices.Concat(p.Env, c.prepared.Spec.Process.Env), Cwd: p.Cwd, Signals: p.Signals}
	for entitlement, asked := range map[string]bool{
		"network.host": c.network == llb.NetworkHost, "security.insecure": p.Security == llb.SecurityInsecure,
	} {
		if asked && !slices.Contains(c.job.Allow, entitlement) {
			return out, &NotAllowedError{entitlement}
		}
	}
	for _, s := range p.Secrets {
		value, ok, err := c.job.Secret(ctx, s.ID)
		if err == nil && !ok && s.Required {
			err = &MissingSecretError{s.ID}
		}
		if err != nil {
			return out, fmt.Errorf("secret for %s: %w", s.Variable, err)
		}
		out.Env = append(out.Env, s.Variable+"="+string(value))
	}
	var err error
	out.User, err = c.prepared.User(p.User)
	return out, err
}

// Close kills the processes, waits for their ends, and lets go of everything. The error is that of the process that failed first: as of
// Start, an *ExitError, or ErrClosed of one that ran still.
func (c *Container) Close() error {
	c.mu.Lock()
	closed := c.closed
	c.closed = true
	c.mu.Unlock()
	c.cancel(ErrClosed)
	c.running.Wait()
	if !closed {
		c.prepared.Close()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failed
}
