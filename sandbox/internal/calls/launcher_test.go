package calls

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestLauncher runs the launcher alone, with a plan that has a call of each kind. With SANDBOX_TEST_LAUNCHER it writes the program
// and the plan to that directory, to be run on a machine of another kind.
func TestLauncher(t *testing.T) {
	l := &List{}
	l.Add("close the plan", unix.SYS_CLOSE, launcherPlanFd)
	l.Add("fail and go on", unix.SYS_CLOSE, launcherPlanFd).Or(unix.EBADF).Skipping(1)
	l.Add("be skipped", unix.SYS_EXIT_GROUP, 1)
	text := "six arguments\n"
	l.Add("write", unix.SYS_WRITE, 1, text, len(text), 0, 0, 0)
	l.Add("try a program", unix.SYS_EXECVE, "/nope", &Strings{}, &Strings{}).Or(unix.ENOENT)
	l.Add("execute another", unix.SYS_EXECVE, "/bin/echo", &Strings{List: []string{"echo", "executed"}}, &Strings{})
	a, f, err := newLauncherArena(l.size())
	if err != nil {
		t.Fatal(err)
	}
	defer a.free()
	defer f.Close()
	l.lay(a)
	if dir := os.Getenv("SANDBOX_TEST_LAUNCHER"); dir != "" {
		if err := errors.Join(os.WriteFile(dir+"/launcher", launcherELF(), 0o755), os.WriteFile(dir+"/plan", a.mem, 0o644)); err != nil {
			t.Fatal(err)
		}
		return
	}
	program, err := launcherFile()
	if err != nil {
		t.Fatal(err)
	}
	run := func(files ...*os.File) (string, error) {
		cmd := exec.Command(fmt.Sprintf("/proc/self/fd/%d", program.Fd()))
		cmd.ExtraFiles = files
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run(f); err != nil || out != text+"executed\n" || l.prog.failed != 0 || l.prog.pc != uintptr(len(l.calls)-1) {
		t.Errorf("%v, %q, %+v", err, out, l.prog)
	}
	var exit *exec.ExitError
	if out, err := run(); !errors.As(err, &exit) || exit.ExitCode() != 127 || out != "" {
		t.Errorf("without a plan: %v, %q", err, out)
	}
	l.prog.pc, l.calls[4].tolerate = 0, 0
	(*rawCall)(a.pointer(l.prog.calls + 4*unsafe.Sizeof(rawCall{}))).tolerate = 0
	if out, err := run(f); !errors.As(err, &exit) || exit.ExitCode() != 127 || out != text || l.prog.failed != 5 || unix.Errno(l.prog.errno) != unix.ENOENT {
		t.Errorf("%v, %q, %+v", err, out, l.prog)
	}
}

// The file that a step may find as /proc/self/exe cannot be changed, not even by root with all privileges on the host.
func TestLauncherCannotBeChanged(t *testing.T) {
	f, err := launcherFile()
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	for what, err := range map[string]error{
		"write":    func() error { f, err := os.OpenFile(name, os.O_WRONLY, 0); f.Close(); return err }(),
		"truncate": os.Truncate(name, 0),
		"chmod":    os.Chmod(name, 0o4755),
		"chown":    os.Chown(name, 1, 1),
		"xattr":    unix.Setxattr(name, "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0),
	} {
		if !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.ETXTBSY) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
