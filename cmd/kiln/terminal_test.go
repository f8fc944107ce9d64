package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/kilnbuild/kiln/internal/kilntest"
	"github.com/kilnbuild/kiln/registry/registrytest"
)

// slowLink is how many bytes a second the test's link to its registry passes.
const slowLink = 6_000_000

// throttled returns the address of a server that passes connections on to another, and the link over which comes what that one answers.
func throttled(t *testing.T, to string) (address string, link *slow) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	link = &slow{}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			go func() {
				_, _ = io.Copy(server, client)
				server.Close()
			}()
			go func() {
				_, _ = io.Copy(link.writer(client), server)
				client.Close()
			}()
		}
	}()
	return l.Addr().String(), link
}

// slow is a link that passes slowLink for all connections together. After hold it stops, for as long as somebody wants to look at what is
// on the screen.
type slow struct {
	mu     sync.Mutex
	free   time.Time     // when it can pass more
	left   int           // what it passes before it stops
	resume chan struct{} // is closed when it goes on; nil: it does not stop
}

// hold has the link stop after n bytes, until the returned function is called.
func (s *slow) hold(n int) (resume func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left, s.resume = n, make(chan struct{})
	return sync.OnceFunc(func() { close(s.resume) })
}

type slowWriter struct {
	*slow
	w io.Writer
}

func (s *slow) writer(w io.Writer) io.Writer { return slowWriter{s, w} }

func (s slowWriter) Write(p []byte) (int, error) {
	s.mu.Lock()
	if now := time.Now(); s.free.Before(now) {
		s.free = now
	}
	s.free = s.free.Add(time.Duration(len(p)) * time.Second / slowLink)
	until := s.free
	var stopped chan struct{}
	if s.left -= len(p); s.left < 0 {
		stopped = s.resume
	}
	s.mu.Unlock()
	time.Sleep(time.Until(until))
	if stopped != nil {
		<-stopped
	}
	return s.w.Write(p)
}

// pane is a program in a tmux of its own.
type pane struct {
	t      *testing.T
	socket string
	last   string
}

// newPane starts a shell command on a terminal of some size.
func newPane(t *testing.T, width, height int, command string, env ...string) *pane {
	t.Helper()
	p := &pane{t: t, socket: filepath.Join(t.TempDir(), "tmux")}
	t.Cleanup(func() { _ = p.command("kill-server").Run() }) // it may have ended
	cmd := p.command("-f", "/dev/null", "new-session", "-d", "-x", fmt.Sprint(width), "-y", fmt.Sprint(height), command+"; sleep 600")
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("start tmux: %v: %s: install Debian's package tmux", err, out)
	}
	return p
}

func (p *pane) command(args ...string) *exec.Cmd {
	return exec.Command("tmux", append([]string{"-S", p.socket}, args...)...)
}

func (p *pane) run(args ...string) string {
	p.t.Helper()
	out, err := p.command(args...).Output()
	if err != nil {
		p.t.Fatalf("tmux %s: %v", strings.Join(args, " "), err)
	}
	return string(out)
}

// until waits until the screen shows a pattern, and checks on the way that the view is there once, and no wider than the screen.
func (p *pane) until(width int, pattern string) {
	p.t.Helper()
	want := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(kilntest.Hang); ; time.Sleep(20 * time.Millisecond) {
		p.last = p.run("capture-pane", "-p")
		if n := strings.Count(p.last, "[+] Building"); n > 1 {
			p.t.Fatalf("the view is on the screen %d times:\n%s", n, p.last)
		}
		for _, l := range strings.Split(p.last, "\n") {
			if utf8.RuneCountInString(l) > width {
				p.t.Fatalf("a line is wider than %d columns:\n%s", width, p.last)
			}
		}
		if want.MatchString(p.last) {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("no %q on the screen:\n%s", pattern, p.last)
		}
	}
}

// all returns what the terminal has shown, with lines that it wrapped as they were written.
func (p *pane) all() string { return p.run("capture-pane", "-p", "-J", "-S", "-") }

// TestTerminal shows a build on real terminals of several widths: the layers of a base image on a slow link, a step that draws a progress
// bar, a resized terminal, the summary, and cached steps.
func TestTerminal(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	if err := kilntest.Base(base); err != nil {
		t.Fatal(err)
	}
	reg := registrytest.Start(t)
	random := rand.NewChaCha8([32]byte{1})
	for _, name := range []string{"one", "two"} {
		data := make([]byte, 6_000_000)
		_, _ = random.Read(data)
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(".dockerignore", "base\nroot-*\n")
	write("Dockerfile", "FROM base\nCOPY one /\nCOPY two /\n")
	env := func(root string) []string {
		return []string{"KILN_ROOT=" + filepath.Join(dir, root), "KILN_CONFIG=" + os.DevNull, "DOCKER_CONFIG=" + dir, "KILN_PROGRESS=", "NO_COLOR="}
	}
	push := exec.Command("kiln", "build", "-q", "--build-context", "base=oci-layout://"+base, "-t", reg.Host+"/large", "--push", dir)
	push.Env = append(os.Environ(), env("root-push")...)
	if out, err := push.CombinedOutput(); err != nil {
		t.Fatalf("push the base image: %v: %s", err, out)
	}
	address, link := throttled(t, reg.Host)
	write("ctx", "")
	bar := "i=0; while [ $i -le 100 ]; do printf '\\r\\033[32m%d of 100' $i; sleep 0.05; i=$((i+1)); done"
	write("app.df", "FROM "+address+"/large\nRUN "+bar+"\nRUN true\nCOPY ctx /\n")

	const hex12 = "[0-9a-f]{12}"
	const rate = ` \d\.\d\dMB / 6\.00MB  [\d.]+[kM]?B/s  [\dhms]+ left\n`
	for _, tc := range []struct {
		width         int
		layer, resize string
	}{
		{20, ` => => [0-9a-f]+ \d+%`, ` => \[2/4\] RU`},
		{40, ` => => sha256:` + hex12 + ` \d+%`, ` => \[2/4\] RUN i=0`},
		{80, ` => => sha256:` + hex12 + rate, ` => \[2/4\] RUN i=0; while`},
		{200, ` => => sha256:` + hex12 + rate, ` => \[2/4\] RUN i=0; while`},
	} {
		t.Run(fmt.Sprint(tc.width), func(t *testing.T) {
			root := fmt.Sprintf("root-%d", tc.width)
			build := fmt.Sprintf("kiln build --progress tty -t app -f %s/app.df %s; echo", dir, dir)
			resume := link.hold(9_000_000)
			defer resume()
			p := newPane(t, tc.width, 24, build+" status $?; read x; "+build+" again $?", env(root)...)
			p.until(tc.width, `(?s)\[1/4\] FROM .*`+tc.layer)
			if tc.width >= 80 && !regexp.MustCompile(`\[2/4\] RUN .* waiting\n`).MatchString(p.last) {
				t.Errorf("the step does not wait for its base image:\n%s", p.last)
			}
			resume()
			p.until(tc.width, ` => => # \d+ of 100\n`)
			if n := strings.Count(p.last, " of 100\n"); n != 1 {
				t.Errorf("the progress bar of the step has %d lines:\n%s", n, p.last)
			}
			p.run("resize-window", "-x", fmt.Sprint(tc.width+7), "-y", "20")
			p.until(tc.width+7, tc.resize)
			p.until(tc.width+7, `status 0\n`)
			shown := p.all()
			for _, want := range []string{
				`\[\+\] Built in \d+\.\ds \(`, `(?m)^ slowest`, `(?m)^ new`, `(?m)^ image   sha256:[0-9a-f]{64}$`,
				`(?m)^ name    docker\.io/library/app:latest$`,
			} {
				if !regexp.MustCompile(want).MatchString(shown) {
					t.Errorf("the summary has no %s:\n%s", want, shown)
				}
			}
			if strings.Contains(shown, "[+] Building") {
				t.Errorf("the view has left something:\n%s", shown)
			}
			p.run("send-keys", "Enter")
			p.until(tc.width+7, `again 0\n`)
			if shown := p.all(); !strings.Contains(shown, " => CACHED 4 steps") {
				t.Errorf("cached steps are not folded:\n%s", shown)
			}
		})
	}
}
