package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/kilnbuild/kiln/internal/kilntest"
)

// attended has what a person at a terminal works with: an image called app, in a root directory of its own.
func attended(t *testing.T) (dir string, env []string) {
	t.Helper()
	dir = t.TempDir()
	base := filepath.Join(dir, "base")
	if err := kilntest.Base(base); err != nil {
		t.Fatal(err)
	}
	env = []string{"KILN_ROOT=" + filepath.Join(dir, "root"), "KILN_CONFIG=" + os.DevNull, "DOCKER_CONFIG=" + dir, "KILN_PROGRESS=", "NO_COLOR=1", "KILN=" + kilnPath(t)}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(".dockerignore", "base\nroot\n")
	write("Dockerfile", "FROM base\nENV PS1='$ '\n")
	write("failing.df", "FROM app\nRUN touch /removed\nRUN --mount=type=cache,target=/cache --mount=type=tmpfs,target=/mem\\\n"+
		" cd /tmp && echo left > file && echo cached > /cache/f && rm /removed && exit 3\nRUN true\nFROM app AS slow\nRUN sleep 10000\nFROM app\nCOPY --from=0 / /\nCOPY --from=slow / /\n")
	write("noshell.df", "FROM app\nSHELL [\"/bin/other\", \"-c\"]\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"rm /bin/sh; exit 4\"]\n")
	build := exec.Command("kiln", "build", "-q", "--build-context", "base=oci-layout://"+base, "-t", "app", dir)
	build.Env = append(os.Environ(), env...)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the image: %v: %s", err, out)
	}
	return dir, env
}

func kilnPath(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("kiln")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// settings has a shell print whether the terminal is as a shell wants it.
const settings = `; echo "status $?"; stty -a | grep -q ' -icanon' && echo raw || echo cooked`

// TestRunTerminal works in a container at a real terminal.
func TestRunTerminal(t *testing.T) {
	_, env := attended(t)
	p := newPane(t, 80, 24, `$KILN run -it app sh`+settings, env...)
	p.until(80, `\$\n`)
	p.run("send-keys", "tty; stty size; echo $TERM; readlink /proc/self/fd/0", "Enter")
	p.until(80, `/dev/pts/0\n24 80\nxterm\n/dev/pts/0\n`)
	p.run("resize-window", "-x", "90", "-y", "20")
	p.run("send-keys", "until [ \"$(stty size)\" = '20 90' ]; do sleep 0.1; done; echo resi''zed", "Enter")
	p.until(90, `resized\n`)
	// ^C and ^Z are for the program at the container's terminal, and ^D ends its input.
	p.run("send-keys", "sleep 10000", "Enter")
	p.until(90, `sleep 10000\n`)
	p.run("send-keys", "C-c")
	p.until(90, `\^C\n\$\n`)
	p.run("send-keys", "cat > /tmp/f", "Enter") // the shell takes what is typed ahead for itself
	p.until(90, `cat > /tmp/f\n`)
	p.run("send-keys", "typed", "Enter", "C-d")
	p.until(90, `typed\n\$\n`)
	p.run("send-keys", "cat /tmp/f; exit 9", "Enter")
	p.until(90, `typed\nstatus 9\ncooked\n`)
}

// TestRunStopped stops kiln from outside while a program has the terminal: the program is told, the third time it is killed, and the
// terminal is as it was.
func TestRunStopped(t *testing.T) {
	dir, env := attended(t)
	p := newPane(t, 80, 24, `$KILN run --stop-signal USR1 -it app sh -c 'trap "echo told" USR1; echo ready; while :; do sleep 0.1; done'`+settings, env...)
	p.until(80, `ready\n`)
	pids, err := exec.Command("pgrep", "-f", "^"+regexp.QuoteMeta(kilnPath(t))+" run --stop-signal USR1 ").Output()
	if err != nil {
		t.Fatal(err)
	}
	var kiln *os.Process
	for pid := range strings.FieldsSeq(string(pids)) { // the keeper has kiln's name as well, and is a session of its own
		var n, parent int
		if _, err := fmt.Sscan(pid, &n); err != nil {
			t.Fatal(err)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n))
		if err != nil {
			continue
		}
		if _, err := fmt.Sscanf(string(status[strings.LastIndexByte(string(status), ')')+2:]), "S %d", &parent); err == nil && !strings.Contains(string(pids), fmt.Sprintf("%d\n", parent)) {
			kiln, _ = os.FindProcess(n)
		}
	}
	if kiln == nil {
		t.Fatalf("kiln is not among %s", pids)
	}
	for _, want := range []string{`told`, `told(\n.*)*told`, `status 137\ncooked\n`} {
		if err := kiln.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		p.until(80, want)
	}
	if left, err := kilntest.Processes("run\x00--stop-signal\x00USR1\x00"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "root/tmp")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestDebugShell looks at a RUN that failed, while another one runs.
func TestDebugShell(t *testing.T) {
	dir, env := attended(t)
	build := `$KILN build --progress tty -f %s --debug-shell ` + dir + settings
	p := newPane(t, 100, 50, fmt.Sprintf(build, dir+"/failing.df"), env...)
	p.until(100, `exit code: 3(.*\n)*.*a shell in the root file system of the step(.*\n)*.*\$\n`)
	if strings.Contains(p.last, "[+] Building") {
		t.Errorf("the view is still there:\n%s", p.last)
	}
	if out, _ := exec.Command("pgrep", "-f", "^sleep 10000$").Output(); len(out) > 0 && strings.Contains(p.last, "[slow") && !strings.Contains(p.last, "CANCELED") {
		t.Errorf("another step goes on: %s", out)
	}
	p.run("send-keys", "clear; cat /tmp/file /cache/f; ls -d /mem /removed; pwd; tty; echo $TERM; echo more > /tmp/more; exit 7", "Enter")
	p.until(100, `left\ncached\nls: /removed: No such file or directory\n/mem\n/\n/dev/pts/0\nxterm\n(.*\n)*.*exit code: 3\nstatus 1\ncooked\n`)

	// An image without a shell says so.
	p = newPane(t, 250, 50, fmt.Sprintf(build, dir+"/noshell.df"), env...)
	p.until(250, `no shell that can be started \(/bin/other, /bin/sh\); --keep-failed DIR writes the files(.*\n)*status 1\ncooked\n`)
}

// TestOnErrorAsk answers the questions after a RUN that failed.
func TestOnErrorAsk(t *testing.T) {
	dir, env := attended(t)
	p := newPane(t, 250, 60, `cd `+dir+` && $KILN build --on-error=ask -f failing.df .`+settings, env...)
	p.until(250, `s: open a shell .* q: quit\?\n`)
	p.run("send-keys", "what", "Enter")
	p.until(250, `(s: open a shell .* q: quit\?.*\n(.*\n)*){2}`)
	p.run("send-keys", "s", "Enter")
	p.until(250, `exit leaves it, and then the build fails(.*\n)*\$\n`)
	p.run("send-keys", "echo again > /tmp/more; exit", "Enter")
	p.until(250, `(s: open a shell .* q: quit\?.*\n(.*\n)*){3}`)
	p.run("send-keys", "s", "Enter")
	p.until(250, `; exit\n(.*\n)*.*exit leaves it(.*\n)*\$\n`)
	p.run("send-keys", "cat /tmp/more; exit", "Enter")
	p.until(250, `again\n`)
	p.run("send-keys", "k", "Enter")
	p.until(250, `directory:\n`)
	p.run("send-keys", "kept", "Enter")
	p.until(250, `kept/deleted\n(.*\n)*status 1\ncooked\n`)
	for name, want := range map[string]string{"kept/files/tmp/file": "left\n", "kept/files/tmp/more": "again\n", "kept/deleted": "/removed\n"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
