package sandbox

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/kilnbuild/kiln/internal/passwd"
)

// typed returns a file from which a text can be read, and then its end.
func typed(t *testing.T, text string) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	go func() {
		_, _ = io.WriteString(w, text)
		w.Close()
	}()
	return r
}

func TestStdin(t *testing.T) {
	confined(t, func(t *testing.T, c confinement, im image) {
		with := func(f *os.File) func(*Spec) {
			return func(s *Spec) {
				c.spec(s)
				s.Stdio.Stdin = f
			}
		}
		// More than a pipe holds, read to its end; and /dev/stdin can be opened by the user.
		im.expect(t, "cat | wc -c", "1000000\n", with(typed(t, strings.Repeat("x", 1000000))))
		im.expect(t, "cat /dev/stdin", "as another\n", with(typed(t, "as another\n")), func(s *Spec) {
			s.Process.User = passwd.User{UID: 1, GID: 1, Home: "/"}
		})
		// A process that reads nothing ends, whatever there is to be read.
		im.expect(t, "echo done", "done\n", with(typed(t, strings.Repeat("x", 1000000))))
		// So does one that leaves a reader behind.
		im.expect(t, "sleep 1000 & echo done", "done\n", with(typed(t, strings.Repeat("x", 1000000))))
		// What was not typed yet is not waited for, and is there for whoever reads next.
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		im.expect(t, "echo done", "done\n", with(r))
		_, _ = io.WriteString(w, "later")
		w.Close()
		if rest, err := io.ReadAll(r); string(rest) != "later" || err != nil {
			t.Errorf("%q is left, %v", rest, err)
		}
	})
}

// A terminal is the process's own: it controls its session, belongs to its user, has the size that it was given and those that come
// later, and ends with the process.
func TestTerminal(t *testing.T) {
	confined(t, func(t *testing.T, c confinement, im image) {
		for _, name := range []string{"stty", "tty"} {
			if err := os.Symlink("busybox", im.lower+"/bin/"+name); err != nil {
				t.Fatal(err)
			}
		}
		sizes := make(chan TerminalSize)
		var out bytes.Buffer
		script := `stty -echo; tty; stty size; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo terminal; echo to tty > /dev/tty
			echo on the console > /dev/console; stat -c '%u %g %a' $(tty); echo to stderr >&2; trap 'stty size; echo resized' WINCH; echo ready
			until read line; do :; done; echo "read $line"; read line || echo end; exit 7`
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		s := Spec{
			Root: im.mount(t), Process: Process{Args: []string{"/bin/sh", "-c", script}, Env: []string{defaultPath}, User: passwd.User{UID: 1, GID: 1, Home: "/"}},
			Privileges: Privileges{IDs: im.ids}, Network: Network{Mode: NetworkNone},
			Stdio: Stdio{Stdin: r, Terminal: &Terminal{Size: TerminalSize{33, 77}, Resized: sizes}},
		}
		c.spec(&s)
		s.Stdio.Stdout = writerFunc(func(p []byte) {
			was := out.String()
			out.Write(p)
			now := out.String()
			reached := func(text string) bool { return !strings.Contains(was, text) && strings.Contains(now, text) }
			if reached("ready") {
				go func() { sizes <- TerminalSize{44, 88} }()
			}
			if reached("resized") {
				go func() {
					_, _ = io.WriteString(w, "typed\n")
					w.Close()
				}()
			}
		})
		status, err := Run(context.Background(), s)
		want := "/dev/pts/0\n33 77\nterminal\nto tty\non the console\n1 5 620\nto stderr\nready\n44 88\nresized\nread typed\nend\n"
		if got := strings.ReplaceAll(out.String(), "\r", ""); got != want || err != nil || status.ExitCode != 7 {
			t.Errorf("%+v, %v, %q, want %q", status, err, got, want)
		}
	})
}

type writerFunc func(p []byte)

func (w writerFunc) Write(p []byte) (int, error) {
	w(p)
	return len(p), nil
}

// All that was written to a terminal is shown, however fast its process ends.
func TestTerminalEnd(t *testing.T) {
	im := newImage(t)
	for range 20 {
		im.expect(t, "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo 1234567; done", strings.Repeat("1234567\r\n", 200), func(s *Spec) {
			s.Stdio.Terminal = &Terminal{}
		})
	}
	im.expect(t, "cat < /dev/null; sleep 1000 & echo done", "done\r\n", func(s *Spec) { s.Stdio.Terminal = &Terminal{} })
}

func TestSignals(t *testing.T) {
	confined(t, func(t *testing.T, c confinement, im image) {
		signals := make(chan syscall.Signal, 10)
		var out bytes.Buffer
		status, err := Run(context.Background(), func() Spec {
			s := Spec{
				Root: im.mount(t), Process: Process{Args: []string{"/bin/sh", "-c", "trap 'echo got' USR1; trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done"},
					Env: []string{defaultPath}, User: root, Signals: signals},
				Privileges: Privileges{IDs: im.ids}, Network: Network{Mode: NetworkNone},
			}
			c.spec(&s)
			s.Stdio.Stdout = writerFunc(func(p []byte) {
				out.Write(p)
				if bytes.Contains(p, []byte("ready")) {
					signals <- syscall.SIGUSR1
				}
				if bytes.Contains(p, []byte("got")) {
					signals <- syscall.SIGTERM
				}
			})
			return s
		}())
		if out.String() != "ready\ngot\n" || err != nil || status.ExitCode != 5 {
			t.Errorf("%+v, %v, %q", status, err, out.String())
		}
		signals <- syscall.SIGKILL // before it begins
		if _, status, err := im.sh(t, "sleep 1000", c.spec, func(s *Spec) { s.Process.Signals = signals }); err != nil || status.ExitCode != 137 {
			t.Errorf("killed: %+v, %v", status, err)
		}
		close(signals)
		im.expect(t, "echo done", "done\n", c.spec, func(s *Spec) { s.Process.Signals = signals })
	})
}

func TestReadOnly(t *testing.T) {
	confined(t, func(t *testing.T, c confinement, im image) {
		im.expect(t, "echo 2> /dev/null > /f || echo refused; echo x > /dev/shm/f && cat /dev/shm/f; cat /proc/self/comm; pwd", "refused\nx\ncat\n/new\n",
			c.spec, func(s *Spec) { s.ReadOnly, s.Process.Cwd = true, "/new" })
	})
}
