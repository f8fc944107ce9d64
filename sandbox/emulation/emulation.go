// Package emulation finds out which processors' programs a step can execute: this machine's own, those that the kernel passes to an
// emulator which the machine has registered for all of it, and those for which kiln has an emulator that it gives to the step
// alone. It changes nothing on the machine.
package emulation

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/once"
	"github.com/kilnbuild/kiln/internal/passwd"
	"github.com/kilnbuild/kiln/sandbox"
)

// Way is how programs for an architecture are executed.
type Way struct {
	// Native says that the kernel executes them, by itself or by an emulator that is registered on the machine.
	Native bool
	// Emulator is given to the sandbox of a step; nil if Native.
	Emulator *sandbox.Emulator
}

// MissingError says that nothing executes programs for an architecture.
type MissingError struct {
	// Architecture is as the OCI image specification names it.
	Architecture string
	// Err is why, and what to do about it.
	Err error
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("this machine is linux/%s and executes no programs for %s: %v", runtime.GOARCH, e.Architecture, e.Err)
}

// Unwrap returns Err.
func (e *MissingError) Unwrap() error { return e.Err }

// Machine is what is known of this machine. The zero value is ready to use, by any number of goroutines.
type Machine struct {
	// SharedProc is as in sandbox.Spec.
	SharedProc bool

	ways once.Map[string, Way]
}

// Architectures are those that Find knows, as the OCI image specification names them.
func Architectures() []string {
	names := make([]string, len(machines))
	for i, m := range machines {
		names[i] = m.architecture
	}
	return names
}

// Find returns how programs for an architecture are executed, which it tries the first time. The error is a *MissingError if they are
// not.
func (a *Machine) Find(ctx context.Context, architecture string) (Way, error) {
	if architecture == runtime.GOARCH {
		return Way{Native: true}, nil
	}
	// The file of an emulator stays open for as long as the Way is known.
	return a.ways.Do(ctx, architecture, func(ctx context.Context) (Way, error) { return a.find(ctx, architecture) })
}

func (a *Machine) find(ctx context.Context, architecture string) (Way, error) {
	missing := func(format string, args ...any) (Way, error) {
		return Way{}, &MissingError{architecture, fmt.Errorf(format, args...)}
	}
	m := find(architecture)
	if m == nil {
		return missing("kiln knows no emulator for them; an image can be made of COPY from a stage FROM --platform=$BUILDPLATFORM")
	}
	err := a.try(ctx, m, nil)
	if err == nil {
		return Way{Native: true}, nil
	}
	if ctx.Err() != nil {
		return Way{}, context.Cause(ctx)
	}
	path, f, err := lookUp(ctx, m)
	if err != nil {
		return missing("%w; Debian's package qemu-user-static has it, or register an emulator on the machine: "+
			"docker run --privileged tonistiigi/binfmt --install %s", err, architecture)
	}
	e := &sandbox.Emulator{Program: f, Name: "qemu-" + m.qemu, Rule: m.rule("qemu-" + m.qemu)}
	if err := a.try(ctx, m, e); err != nil {
		f.Close()
		if ctx.Err() != nil {
			return Way{}, context.Cause(ctx)
		}
		return missing("%s does not execute them: %w; Debian's packages qemu-user-static and binfmt-support register an emulator for the "+
			"whole machine", path, err)
	}
	return Way{Emulator: e}, nil
}

// try executes the program of a machine, in a root that has nothing else, with an emulator or with what the kernel has.
func (a *Machine) try(ctx context.Context, m *machine, e *sandbox.Emulator) error {
	root, err := mount.Tmpfs(1<<20, 0o755, 0, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	const name = "program"
	fd, err := unix.Openat(int(root.Fd()), name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o700)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(m.program())
	if err := errors.Join(err, f.Chmod(0o755), f.Close()); err != nil {
		return err
	}
	s := sandbox.Spec{Root: root, Network: sandbox.Network{Mode: sandbox.NetworkNone},
		Process:    sandbox.Process{Args: []string{"/" + name}, User: passwd.User{Home: "/"}, Emulator: e},
		Privileges: sandbox.Privileges{SharedProc: a.SharedProc}}
	if e != nil || a.SharedProc {
		users, network, err := sandbox.NewUserNamespace()
		if err != nil {
			return err
		}
		defer users.Close()
		defer network.Close()
		s.Privileges.UserNamespace = users
	}
	status, err := sandbox.Run(ctx, s)
	if err == nil && status.ExitCode != 0 {
		err = fmt.Errorf("a program that only ends ended with status %d", status.ExitCode)
	}
	return err
}

// oldest is the first version of QEMU that learns from the kernel that its arguments are a program's own (AT_FLAGS_PRESERVE_ARGV0).
const oldest = 6

// lookUp finds the emulator of a machine in $PATH, and opens it.
func lookUp(ctx context.Context, m *machine) (path string, f *os.File, err error) {
	names := []string{"qemu-" + m.qemu + "-static", "qemu-" + m.qemu}
	var refused error
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		f, err := os.Open(path)
		if err == nil {
			if err = usable(ctx, path, f); err == nil {
				return path, f, nil
			}
			f.Close()
		}
		if refused == nil {
			refused = fmt.Errorf("%s cannot be used: %w", path, err)
		}
	}
	if refused == nil {
		refused = fmt.Errorf("there is no %s in $PATH", names[0])
	}
	return "", nil, refused
}

// usable returns why a program cannot be given to a step, in whose root there are no libraries for it.
func usable(ctx context.Context, path string, f *os.File) error {
	e, err := elf.NewFile(f)
	if err != nil {
		return fmt.Errorf("it is not a program: %w", err)
	}
	if own := find(runtime.GOARCH); e.Machine != own.elf || e.Class != own.class {
		return errors.New("it is not a program for this machine")
	}
	for _, p := range e.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("it is not statically linked")
		}
	}
	v, err := version(ctx, path)
	if err != nil {
		return err
	}
	if v < oldest {
		return fmt.Errorf("it is QEMU %d, and kiln needs %d or later", v, oldest)
	}
	return nil
}

// versionTime is how long a program may take to say its version.
const versionTime = time.Minute

func version(ctx context.Context, path string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	var out prefix
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("ask it for its version: %w", err)
	}
	// "qemu-aarch64 version 7.2.22 (Debian …"
	_, text, _ := strings.Cut(out.String(), " version ")
	major, _, _ := strings.Cut(text, ".")
	v, err := strconv.Atoi(major)
	if err != nil || !strings.HasPrefix(out.String(), "qemu-") {
		return 0, errors.New("it does not say which version of QEMU it is")
	}
	return v, nil
}

// prefix keeps the first bytes that are written to it.
type prefix struct{ strings.Builder }

const maxPrefix = 256

func (p *prefix) Write(b []byte) (int, error) {
	p.Builder.Write(b[:min(len(b), maxPrefix-p.Len())])
	return len(b), nil
}
