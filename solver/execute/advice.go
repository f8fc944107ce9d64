package execute

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/program"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/sandbox"
)

// ended says how a process that did not succeed ended, and what that means where its status says so.
func (e *ExitError) ended() string {
	status := e.Status
	signal := status.Signal
	s := ""
	if signal != 0 {
		s = "killed by " + unix.SignalName(signal)
	} else {
		s = fmt.Sprintf("exit code: %d", status.ExitCode)
		// A shell reports the signal that ended its child so.
		if name := unix.SignalName(syscall.Signal(status.ExitCode - 128)); status.ExitCode > 128 && name != "" {
			signal = syscall.Signal(status.ExitCode - 128)
			s += ", which a shell gives for " + name
		}
	}
	switch {
	case status.OOMKills > 0 && e.Limits.Memory > 0:
		s += fmt.Sprintf(": out of memory (limit %s, --memory)", units.BytesSize(float64(e.Limits.Memory)))
	case status.OOMKills > 0:
		s += ": its control group ran out of memory"
	case status.PidsRefused > 0 && e.Limits.Pids >= 0:
		limit := cmp.Or(e.Limits.Pids, sandbox.DefaultPids)
		s += fmt.Sprintf(": it had as many processes and threads as it may have (limit %d, --pids-limit)", limit)
	case status.PidsRefused > 0:
		s += ": its control group had as many processes and threads as it may have"
	case signal == syscall.SIGKILL && e.OutOfMemory:
		s += ": the machine ran out of memory"
	case signal == syscall.SIGSEGV || signal == syscall.SIGILL || signal == syscall.SIGBUS || signal == syscall.SIGABRT:
		s += ": the program crashed"
	case e.Fault != "":
		s += ": " + e.Fault
	case status.ExitCode == 127:
		s += ": a command was not found"
	case status.ExitCode == 126:
		s += ": a command could not be executed"
	}
	return s
}

// oomKills returns how many processes the kernel has killed because memory ran out; 0 where it does not say. See proc(5).
func oomKills() int {
	text, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if count, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, _ := strconv.Atoi(strings.TrimSpace(count))
			return n
		}
	}
	return 0
}

// NoExecError is a program that cannot be executed.
type NoExecError struct {
	Err *sandbox.ExecError
	// Args are the program and its arguments.
	Args []string
	// Advice says what to do; "" where that is not known.
	Advice string
}

func (e *NoExecError) Error() string {
	if e.Advice == "" {
		return e.Err.Error()
	}
	return e.Err.Error() + ": " + e.Advice
}

// Unwrap returns the cause.
func (e *NoExecError) Unwrap() error { return e.Err }

// Explain makes a *NoExecError of the error of a program that cannot be executed.
func (p *Prepared) Explain(err error) error {
	e, ok := errors.AsType[*sandbox.ExecError](err)
	if !ok {
		return err
	}
	return &NoExecError{e, p.Spec.Process.Args, p.advice(e)}
}

// advice returns what to do about a program that cannot be executed; "" if that is not known.
func (p *Prepared) advice(e *sandbox.ExecError) string {
	fault := p.fault(e.Name, e.Errno)
	switch {
	case e.Errno == syscall.ENOEXEC && p.foreign.err != nil:
		return p.foreign.err.Error()
	case fault != "":
		return fault
	case e.Errno == syscall.ENOEXEC:
		return fmt.Sprintf("it is neither a program for %s nor a script that begins with #!", cmp.Or(p.work.Platform, llb.Host().String()))
	case e.Errno == syscall.EAGAIN:
		return "its user has as many processes and threads as it may have (RLIMIT_NPROC), in this step and those beside it"
	case e.Errno == syscall.ENOENT && e.Reason == "no such file or directory" && isShell(e.Name):
		return fmt.Sprintf("there is no %s in this image: "+
			"use the exec form, RUN [\"program\", \"argument\"], or a base image with a shell", e.Name)
	}
	return ""
}

// programs looks for what is wrong with programs of the step.
func (p *Prepared) programs() *program.Finder {
	spec := &p.Spec.Process
	_, arch, _ := strings.Cut(cmp.Or(p.work.Platform, llb.Host().String()), "/")
	arch, _, _ = strings.Cut(arch, "/")
	return &program.Finder{Root: rootfs.At(p.root.File), Dir: spec.Cwd, Env: spec.Env, Architecture: arch}
}

// fault returns why a program of the step cannot be executed although it exists; "" if that cannot be told.
func (p *Prepared) fault(name string, errno syscall.Errno) string {
	if errno != syscall.ENOENT && errno != syscall.EACCES && errno != syscall.ENOEXEC {
		return ""
	}
	status := 126
	if errno == syscall.ENOENT {
		status = 127
	}
	if fault := p.programs().Program(name, status); fault != nil {
		return fault.Text
	}
	return ""
}

// commandFault is fault for the commands of a RUN that ended with the status of a shell that cannot execute one.
func (p *Prepared) commandFault(status int) string {
	args := p.Spec.Process.Args
	if status != 126 && status != 127 && status != 2 || len(args) < 3 || !isShell(args[0]) {
		return ""
	}
	if fault := p.programs().Command(args[len(args)-1], status); fault != nil {
		return fault.Text
	}
	return ""
}

func isShell(name string) bool {
	switch path.Base(name) {
	case "sh", "bash", "ash", "dash", "zsh", "ksh":
		return true
	}
	return false
}
