package ops

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/docker/go-units"
	"github.com/moby/buildkit/util/suggest"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/ignore"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/sandbox"
	"github.com/kilnbuild/kiln/snapshot"
)

// NotFoundError is a source that does not exist.
type NotFoundError struct {
	Path string
	// Ignored is what of .dockerignore excludes it; nil where nothing does.
	Ignored *ignore.Reason
	// Similar is a path that exists and was probably meant; "" for none.
	Similar string
}

func (e *NotFoundError) Error() string {
	switch {
	case e.Ignored != nil:
		return fmt.Sprintf("%q is excluded by %s", "/"+e.Path, e.Ignored)
	case e.Similar != "":
		return fmt.Sprintf("%q not found (did you mean %s?)", "/"+e.Path, e.Similar)
	}
	return fmt.Sprintf("%q not found", "/"+e.Path)
}

// notFound returns the error for a path of a tree, which is physical where links are followed.
func notFound(tree layer.Tree, name, physical string) error {
	err := &NotFoundError{Path: strings.TrimPrefix(path.Clean("/"+name), "/")}
	if d, ok := tree.(ignoring); ok {
		if reason, ok := d.Ignored(physical); ok {
			err.Ignored = &reason
			return err
		}
	}
	err.Similar = similar(tree, physical)
	return err
}

// similar returns the path that is nearly the given one: one of its components has another name, "" where there is none.
func similar(tree layer.Tree, name string) string {
	dir := ""
	parts := strings.Split(name, "/")
	for i, part := range parts {
		at, e, err := snapshot.Resolve(tree.Lookup, join(dir, part), true)
		if err == nil && e != nil {
			dir = at
			continue
		}
		list, err := tree.List(dir)
		if err != nil {
			return ""
		}
		names := make([]string, len(list))
		for i := range list {
			names[i] = list[i].Name()
		}
		match, ok := suggest.Search(part, names, false)
		// Any two short names are nearly the same.
		if !ok || len(part) < 3 {
			return ""
		}
		found := path.Join(append([]string{dir, match}, parts[i+1:]...)...)
		if _, e, err := snapshot.Resolve(tree.Lookup, found, true); err != nil || e == nil {
			return ""
		}
		return found
	}
	return ""
}

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
		s += fmt.Sprintf(": it had as many processes and threads as it may have (limit %d, --pids-limit)", cmp.Or(e.Limits.Pids, sandbox.DefaultPids))
	case status.PidsRefused > 0:
		s += ": its control group had as many processes and threads as it may have"
	case signal == syscall.SIGKILL && e.OutOfMemory:
		s += ": the machine ran out of memory"
	case signal == syscall.SIGSEGV || signal == syscall.SIGILL || signal == syscall.SIGBUS || signal == syscall.SIGABRT:
		s += ": the program crashed"
	case status.ExitCode == 127:
		s += ": a command was not found"
	case status.ExitCode == 126:
		s += ": a command could not be executed"
	}
	return s
}

// oomKills returns how many processes the kernel has killed for want of memory; 0 where it does not say. See proc(5).
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

// NoExecError is a program that cannot be executed, with advice.
type NoExecError struct {
	Err    *sandbox.ExecError
	Advice string
}

func (e *NoExecError) Error() string { return e.Err.Error() + ": " + e.Advice }

// Unwrap returns the cause.
func (e *NoExecError) Unwrap() error { return e.Err }

// explain adds advice to the error of a program that cannot be executed; platform is the step's.
func explain(err error, platform string) error {
	e, ok := errors.AsType[*sandbox.ExecError](err)
	if !ok {
		return err
	}
	host := llb.Platform{OS: "linux", Architecture: runtime.GOARCH}.Normalize()
	p, parseErr := llb.ParsePlatform(platform, host)
	foreign := parseErr == nil && p.Architecture != host.Architecture
	switch {
	case e.Errno == syscall.ENOEXEC && foreign:
		return &NoExecError{e, fmt.Sprintf("the step is for %s and this machine is %s: Debian's packages qemu-user-static and binfmt-support make it run such programs", p, host)}
	case e.Errno == syscall.ENOEXEC:
		return &NoExecError{e, fmt.Sprintf("it is no program for %s, nor a script that begins with #!", host)}
	case e.Errno == syscall.EAGAIN:
		return &NoExecError{e, "its user has as many processes and threads as it may have (RLIMIT_NPROC), in this step and those beside it"}
	case e.Errno == syscall.ENOENT && e.Reason == "no such file or directory" && isShell(e.Name):
		return &NoExecError{e, fmt.Sprintf("there is no %s in this image: use the exec form, RUN [\"program\", \"argument\"], or a base image with a shell", e.Name)}
	}
	return err
}

func isShell(name string) bool {
	switch path.Base(name) {
	case "sh", "bash", "ash", "dash", "zsh", "ksh":
		return true
	}
	return false
}
