// Foreigntool is what steps for other processors run, and what looks at their emulators from the machine's own processor.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Println("foreigntool:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch args[0] {
	case "say": // who I am, and what follows
		fmt.Println(runtime.GOARCH, filepath.Base(os.Args[0]), os.Getuid(), os.Geteuid(), strings.Join(args[1:], " "))
		return nil
	case "each": // runs the program for each of the comma-separated arguments
		for _, list := range args[1:] {
			if err := child(strings.Split(list, ",")); err != nil {
				return err
			}
		}
		return nil
	case "as": // UID PROGRAM ARGS...
		uid, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		if err := errors.Join(syscall.Setgid(uid), syscall.Setuid(uid)); err != nil {
			return err
		}
		return child(args[2:])
	case "make": // files of several kinds
		return errors.Join(os.MkdirAll("/made/dir", 0o2775), os.WriteFile("/made/dir/file", []byte("x"), 0o640), os.Chown("/made/dir/file", 5, 6),
			os.Symlink("dir/file", "/made/link"), os.Link("/made/dir/file", "/made/hard"), syscall.Mkfifo("/made/pipe", 0o600),
			copyFile("/tool", "/made/setuid"), os.Chmod("/made/setuid", 0o755|os.ModeSetuid), copyFile("/tool", "/made/unreadable"),
			os.Chmod("/made/unreadable", 0o111), syscall.Setxattr("/made/dir/file", "user.some", []byte("value"), 0))
	case "wait": // until there is a file
		for {
			if _, err := os.Stat(args[1]); err == nil {
				return nil
			}
			syscall.Nanosleep(&syscall.Timespec{Nsec: 1e7}, nil)
		}
	case "attack":
		return attack()
	case "hide": // PROGRAM ARGS...: hides the emulators of the machine from the program
		all := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1<<32 - 1}}
		return start([]string{"/proc/self/exe", "hidden"}, args[1:], &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: all, GidMappings: all, GidMappingsEnableSetgroups: true, Credential: &syscall.Credential{},
		})
	case "hidden":
		if err := syscall.Mount("binfmt_misc", "/proc/sys/fs/binfmt_misc", "binfmt_misc", 0, ""); err != nil {
			return err
		}
		program, err := exec.LookPath(args[1])
		if err != nil {
			return err
		}
		return syscall.Exec(program, args[1:], os.Environ())
	}
	return fmt.Errorf("what is %q?", args[0])
}

func child(args []string) error { return start(args[:1], args[1:], nil) }

// start runs a program to its end, and exits as it did.
func start(program, args []string, attr *syscall.SysProcAttr) error {
	cmd := exec.Command(program[0], append(program[1:], args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = os.Stdin, os.Stdout, os.Stderr, attr
	err := cmd.Run()
	if e, ok := errors.AsType[*exec.ExitError](err); ok && e.ExitCode() >= 0 {
		os.Exit(e.ExitCode())
	}
	return err
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}

// attack tries to change the emulator of another process, which runs while it is opened and has ended when it is written to.
func attack() error {
	victim := exec.Command("/tool", "wait", "/go")
	if err := victim.Start(); err != nil {
		return err
	}
	exe := fmt.Sprintf("/proc/%d/exe", victim.Process.Pid)
	var own, its syscall.Stat_t
	for { // until it has executed its program
		if err := errors.Join(syscall.Stat("/proc/self/exe", &own), syscall.Stat(exe, &its)); err != nil {
			return err
		}
		if own.Ino != its.Ino || own.Dev != its.Dev {
			break
		}
		syscall.Nanosleep(&syscall.Timespec{Nsec: 1e6}, nil)
	}
	const path = 0x200000 // O_PATH
	fd, err := syscall.Open(exe, path, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile("/go", nil, 0o600), victim.Wait()); err != nil {
		return err
	}
	name := fmt.Sprintf("/proc/self/fd/%d", fd)
	if f, err := os.OpenFile(name, os.O_WRONLY, 0); err == nil {
		f.Close()
		fmt.Println("WRITABLE")
	}
	if os.Chmod(name, 0o755) == nil {
		fmt.Println("CHMOD")
	}
	if os.Chown(name, 0, 0) == nil {
		fmt.Println("CHOWN")
	}
	fmt.Println("attacked", its.Ino != own.Ino)
	return nil
}
