package sandbox

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/kilnbuild/kiln/internal/passwd"
)

// opened runs a script as the first process of a sandbox, until the test ends, and returns the way in.
func (im image) opened(t *testing.T, script string, change ...func(*Spec)) *Entry {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := Spec{Root: im.mount(t), Process: Process{Args: []string{"/bin/sh", "-c", script}, Env: []string{defaultPath}, User: root},
		Privileges: Privileges{IDs: im.ids}, Entry: &Entry{}}
	for _, c := range change {
		c(&s)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := Run(ctx, s); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("the first process: %v", err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return s.Entry
}

// sh runs a script in the sandbox and returns its output.
func (e *Entry) sh(ctx context.Context, script string, change ...func(*Further)) (string, Status, error) {
	var out bytes.Buffer
	f := Further{Process: Process{Args: []string{"/bin/sh", "-c", script}, Env: []string{defaultPath}, User: root},
		Stdio: Stdio{Stdout: &out, Stderr: &out}}
	for _, c := range change {
		c(&f)
	}
	status, err := e.Run(ctx, f)
	return out.String(), status, err
}

func (e *Entry) expect(t *testing.T, script, want string, change ...func(*Further)) {
	t.Helper()
	if out, st, err := e.sh(context.Background(), script, change...); err != nil || out != want {
		t.Errorf("%q: %+v, %v\n%swant\n%s", script, st, err, out, want)
	}
}

// A process that enters is where the first one is, with its privileges.
func TestEntry(t *testing.T) {
	confined(t, func(t *testing.T, c confinement, im image) {
		const show = `for n in cgroup ipc mnt net pid user uts; do readlink /proc/self/ns/$n; done; hostname; readlink /proc/self/root; pwd
			grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups|[UG]id|Sig[BIC])' /proc/self/status; cat /proc/self/oom_score_adj; ls /proc/self/fd | wc -l
			cat /proc/self/limits; umask`
		e := im.opened(t, "{ "+show+"; } > /first; exec sleep 1000", c.spec,
			func(s *Spec) { s.Network.Mode, s.Network.Hostname = NetworkNone, "there" })
		e.expect(t, "until [ \"$(tail -n1 /first)\" = 0022 ]; do sleep 0.05; done", "")
		first, err := os.ReadFile(im.upper + "/first")
		if err != nil {
			t.Fatal(err)
		}
		e.expect(t, show, string(first))
		e.expect(t, "cat /proc/1/comm; echo $$ | grep -v '^1$' > /dev/null && echo another", "sleep\nanother\n")
		e.expect(t, "id -u; echo $HOME; pwd; echo $A; echo mine > /tmp/f", "1\n/somewhere\n/etc\nb\n", func(f *Further) {
			f.Process.User, f.Process.Cwd = passwd.User{UID: 1, GID: 1, Home: "/somewhere"}, "/etc"
			f.Process.Args[2] = "id -u; echo $HOME; pwd; echo $A"
			f.Process.Env = append(f.Process.Env, "A=b")
		})
		e.expect(t, "readlink /proc/self/fd/0 && [ ! -s /dev/null ] && cat", "/null\n", func(f *Further) { f.Stdio.Stderr = nil })
		if c.insecure {
			e.expect(t, "grep CapEff /proc/self/status; grep Seccomp: /proc/self/status", "CapEff:\t00000000a80425fb\nSeccomp:\t2\n",
				func(f *Further) { f.Confined = true })
		}
	})
}

func TestEntryStatus(t *testing.T) {
	confined(t, func(t *testing.T, c confinement, im image) {
		e := im.opened(t, "exec sleep 1000", c.spec)
		if _, st, err := e.sh(context.Background(), "exit 7"); st.ExitCode != 7 || err != nil {
			t.Errorf("%+v, %v", st, err)
		}
		if _, st, err := e.sh(context.Background(), "kill -9 $$"); st.ExitCode != 137 || st.Signal != syscall.SIGKILL || err != nil {
			t.Errorf("%+v, %v", st, err)
		}
		_, st, err := e.sh(context.Background(), "", func(f *Further) { f.Process.Args = []string{"none"} })
		if !errors.As(err, new(*ExecError)) || st.ExitCode != 127 {
			t.Errorf("no program: %+v, %v", st, err)
		}
		_, st, err = e.sh(context.Background(), "true", func(f *Further) { f.Process.Cwd = "/none" })
		if failed, ok := errors.AsType[*SetupError](err); !ok || failed.Errno != syscall.ENOENT {
			t.Errorf("no directory: %+v, %v", st, err)
		}
		// It is killed with its context, and nothing else is.
		ctx, cancel := context.WithCancel(context.Background())
		_, _, err = e.sh(ctx, "echo ready; exec sleep 1000", func(f *Further) {
			f.Stdio.Stdout = writerFunc(func([]byte) { cancel() })
		})
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		e.expect(t, "for p in /proc/[0-9]*/comm; do cat $p; done | grep -c sleep", "1\n")
		for range 20 { // whatever it is just doing
			ctx, cancel := context.WithCancel(context.Background())
			go cancel()
			if _, st, err := e.sh(ctx, "exec sleep 1000"); !errors.Is(err, context.Canceled) {
				t.Errorf("%+v, %v", st, err)
			}
		}
		e.expect(t, "for p in /proc/[0-9]*/comm; do cat $p; done | grep -c sleep", "1\n")
	})
}

// Processes that have entered are killed when the first one ends, and none enters any more.
func TestEntryEnds(t *testing.T) {
	confined(t, func(t *testing.T, c confinement, im image) {
		e := im.opened(t, "until [ -e /stop ]; do sleep 0.05; done", c.spec)
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				if _, st, err := e.sh(context.Background(), "trap '' TERM; : > /stop; exec sleep 1000"); !errors.Is(err, ErrEnded) &&
					(st.ExitCode != 137 || err != nil) {
					t.Errorf("%+v, %v", st, err)
				}
			})
		}
		all.Wait()
		if _, _, err := e.sh(context.Background(), "true"); !errors.Is(err, ErrEnded) {
			t.Error(err)
		}
		never := &Entry{}
		if _, _, err := im.sh(t, "", args("none"), func(s *Spec) { s.Entry = never }); err == nil {
			t.Error("none was executed")
		}
		<-never.Opened()
		if _, _, err := never.sh(context.Background(), "true"); !errors.Is(err, ErrEnded) {
			t.Error(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, _, err := (&Entry{}).sh(ctx, "true"); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestEntryStdio(t *testing.T) {
	confined(t, func(t *testing.T, c confinement, im image) {
		if err := os.Symlink("busybox", im.lower+"/bin/stty"); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("busybox", im.lower+"/bin/tty"); err != nil {
			t.Fatal(err)
		}
		e := im.opened(t, "exec sleep 1000", c.spec)
		e.expect(t, "cat | wc -c", "1000000\n", func(f *Further) { f.Stdio.Stdin = typed(t, strings.Repeat("x", 1000000)) })
		// Terminals of their own, each of which controls its session.
		for _, name := range []string{"0", "0", "0"} {
			sizes := make(chan TerminalSize)
			var out bytes.Buffer
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			status, err := e.Run(context.Background(), Further{
				Process: Process{Args: []string{"sh", "-c", "stty -echo; tty; stty size; echo to tty > /dev/tty; echo ready; " +
					"until [ \"$(stty size)\" = '44 88' ]; do sleep 0.05; done; echo resized; read line; echo read $line; exit 7"},
					Env: []string{defaultPath}, User: passwd.User{UID: 1, GID: 1, Home: "/"}},
				Stdio: Stdio{Stdin: r, Terminal: &Terminal{Size: TerminalSize{33, 77}, Resized: sizes}, Stdout: writerFunc(func(p []byte) {
					was := out.String()
					out.Write(p)
					now := out.String()
					reached := func(text string) bool { return !strings.Contains(was, text) && strings.Contains(now, text) }
					if reached("ready") {
						go func() { sizes <- TerminalSize{44, 88} }()
					}
					if reached("resized") {
						go func() { _, _ = io.WriteString(w, "typed\n") }()
					}
				})},
			})
			want := "/dev/pts/" + name + "\n33 77\nto tty\nready\nresized\nread typed\n"
			if got := strings.ReplaceAll(out.String(), "\r", ""); got != want || err != nil || status.ExitCode != 7 {
				t.Errorf("%+v, %v, %q, want %q", status, err, got, want)
			}
			r.Close()
			w.Close()
		}
		signals := make(chan syscall.Signal, 1)
		_, st, err := e.sh(context.Background(), "trap 'exit 5' USR1; echo ready; while :; do sleep 0.05; done", func(f *Further) {
			f.Process.Signals = signals
			f.Stdio.Stdout = writerFunc(func([]byte) { signals <- syscall.SIGUSR1 })
		})
		if st.ExitCode != 5 || err != nil {
			t.Errorf("%+v, %v", st, err)
		}
	})
}

// While processes enter, those that are there get at nothing of kiln's through them, and can do no more than to stop and kill them.
func TestEntryIsWatched(t *testing.T) {
	for _, c := range []confinement{{name: "sandbox"}, {name: "userns", ids: true}, {name: "insecure userns", ids: true, insecure: true}} {
		t.Run(c.name, func(t *testing.T) {
			im := newImage(t)
			if c.ids {
				im = im.asUsers(t)
			}
			// They see a process when it has executed the launcher, and not before.
			const watch = `while :; do for p in /proc/[0-9]*; do
				n=${p#/proc/}; [ $n = 1 ] || [ $n = $$ ] || {
				for l in $p/exe $p/cwd $p/root $p/fd/*; do r=$(readlink $l 2>/dev/null) || continue
					case $r in /bin/busybox|/launcher|/|/etc|pipe:*|/null|/dev/null) ;; *) echo "$l $r" >> /seen;; esac; done
				cat $p/maps 2>/dev/null | grep -v -e /bin/busybox -e launcher -e memfd:plan -e ' 0 *$' -e '\[' >> /seen
				[ $((n % 3)) != 0 ] || kill -STOP $n 2>/dev/null; [ $((n % 5)) != 0 ] || kill -KILL $n 2>/dev/null
				[ $((n % 3)) != 0 ] || kill -CONT $n 2>/dev/null; }; done; done`
			e := im.opened(t, watch, c.spec)
			for range 100 {
				out, st, err := e.sh(context.Background(), "echo done")
				if err != nil || st.ExitCode == 0 && out != "done\n" || st.ExitCode != 0 && st.ExitCode != 137 {
					t.Errorf("%+v, %v, %q", st, err, out)
				}
			}
			if seen, err := os.ReadFile(im.upper + "/seen"); len(seen) > 0 {
				t.Errorf("%.2000s, %v", seen, err)
			}
		})
	}
}
