package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	gcr "github.com/google/go-containerregistry/pkg/registry"

	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/kilntest"
)

// hasty is kiln with little patience for servers.
func hasty() {
	fetch.SetUsual(fetch.Patience{FirstByte: 5 * time.Second, Answer: 5 * time.Second, Idle: 5 * time.Second, Pause: 10 * time.Millisecond})
	main()
}

// sickRegistry is a registry. The first part of a repository's name says what goes wrong, and is left out then: with "well" nothing, "busy"
// asks to come again later, once for each kind of request, and "full" always; "down" is not well; "mute" never answers for manifests,
// "deaf" for what is sent to it, and "torn" for blobs after the first.
type sickRegistry struct {
	name  string
	next  http.Handler
	stuck chan struct{} // gets a value when a request is not answered

	mu    sync.Mutex
	seen  map[string]bool
	blobs int
}

func startSickRegistry(t *testing.T) *sickRegistry {
	t.Helper()
	s := &sickRegistry{next: gcr.New(gcr.Logger(log.New(io.Discard, "", 0))), stuck: make(chan struct{}, 1), seen: map[string]bool{}}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	t.Cleanup(srv.CloseClientConnections)
	s.name = strings.TrimPrefix(srv.URL, "http://")
	return s
}

func (s *sickRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fault, rest, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")
	if !ok {
		s.next.ServeHTTP(w, r)
		return
	}
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	request := r.Method + r.URL.Path
	if i := strings.Index(request, "/uploads/"); i >= 0 {
		request = request[:i] // of all uploads
	}
	s.mu.Lock()
	again := s.seen[request]
	s.seen[request] = true
	hangs := fault == "mute" && strings.Contains(rest, "/manifests/") || fault == "deaf" && !reads
	if fault == "torn" && r.Method == http.MethodGet && strings.Contains(rest, "/blobs/") {
		s.blobs++
		hangs = s.blobs > 1
	}
	s.mu.Unlock()
	switch {
	case hangs:
		_, _ = io.Copy(io.Discard, r.Body) // so that it shows when the client is gone
		select {
		case s.stuck <- struct{}{}:
		default:
		}
		<-r.Context().Done()
	case fault == "down":
		http.Error(w, "", http.StatusServiceUnavailable)
	case fault == "full", fault == "busy" && !again:
		w.Header().Set("Retry-After", map[string]string{"full": "1", "busy": "0"}[fault])
		http.Error(w, "", http.StatusTooManyRequests)
	default:
		r.URL.Path = "/v2/" + rest
		s.next.ServeHTTP(&located{w, fault}, r)
	}
}

// located is an answer whose Location has the first part of the repository's name again.
type located struct {
	http.ResponseWriter
	fault string
}

func (l *located) WriteHeader(status int) {
	if to := l.Header().Get("Location"); strings.HasPrefix(to, "/v2/") {
		l.Header().Set("Location", "/v2/"+l.fault+"/"+strings.TrimPrefix(to, "/v2/"))
	}
	l.ResponseWriter.WriteHeader(status)
}

// faultsContext makes a context of two steps, of which the second uses a cache mount, and waits if the build argument WAIT says so.
func faultsContext(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	busybox, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	const dockerfile = `FROM scratch
COPY busybox /bin/busybox
ARG WAIT
RUN --mount=type=cache,id=pkg,target=/pkg ["/bin/busybox", "sh", "-c", "set -e; cd /bin; ./busybox echo found: $(./busybox ls /pkg); ./busybox head -c 100000 /dev/urandom > /pkg/kept; echo made > /made; if test $WAIT; then echo up and running; ./busybox sleep 10000; fi"]
`
	for name, data := range map[string][]byte{"Dockerfile": []byte(dockerfile), "busybox": busybox} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// faultsBuild returns a build in a root directory.
func faultsBuild(ctx context.Context, program, root, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, append([]string{"build", "--progress=plain", dir}, args...)...)
	cmd.Env = append(os.Environ(), "KILN_ROOT="+root, "KILN_CONFIG="+os.DevNull, "DOCKER_CONFIG="+filepath.Dir(root))
	return cmd
}

// TestCacheFaults has caches in a registry that is not well. What can be built is built, and each cache has one warning with the cause.
func TestCacheFaults(t *testing.T) {
	s := startSickRegistry(t)
	dir := faultsContext(t)
	for fault, want := range map[string][]string{
		"busy": {"does not exist yet"},
		"full": {"is not used: .*429", "was not exported to .*: .*429"},
		"down": {"is not used: .*503", "was not exported to .*: .*503"},
		"mute": {"is not used: .*(silent|answer)", "was not exported to .*: .*(silent|answer)"},
		"deaf": {"does not exist yet", "was not exported to .*: .*(silent|answer)"},
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), kilntest.Hang)
			defer cancel()
			cache := s.name + "/" + fault + "/app-" + fault + ":cache"
			top := t.TempDir()
			out, err := faultsBuild(ctx, "kiln-hasty", filepath.Join(top, "root"), dir, "--cache-from", cache,
				"--cache-to", "type=registry,mode=max,ref="+cache, "-o", filepath.Join(top, "out")).CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if made, err := os.ReadFile(filepath.Join(top, "out", "made")); err != nil || string(made) != "made\n" {
				t.Errorf("the result has %q: %v", made, err)
			}
			for _, w := range want {
				if n := len(regexp.MustCompile("(?m)^WARN: the cache .*"+w).FindAll(out, -1)); n != 1 {
					t.Errorf("%d warnings %q", n, w)
				}
			}
			if n := bytes.Count(out, []byte("WARN: ")); n != len(want) {
				t.Errorf("%d warnings, want %d", n, len(want))
			}
			if fault == "busy" {
				again, err := faultsBuild(ctx, "kiln-hasty", filepath.Join(top, "other"), dir, "--cache-from", cache, "-o", filepath.Join(top, "out2")).CombinedOutput()
				if err != nil || bytes.Count(again, []byte("CACHED")) != 2 || bytes.Contains(again, []byte("WARN")) {
					t.Errorf("what was exported is not found: %v\n%s", err, again)
				}
			}
			if t.Failed() {
				t.Logf("%s", out)
			}
		})
	}
}

// interrupted is a build that is told to stop.
type interrupted struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  io.Reader
	seen bytes.Buffer
}

func startInterrupted(t *testing.T, cmd *exec.Cmd) *interrupted {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	return &interrupted{t: t, cmd: cmd, out: r}
}

// says waits until the build has said something.
func (i *interrupted) says(text string) {
	i.t.Helper()
	buf := make([]byte, 4096)
	for !strings.Contains(i.seen.String(), text) {
		n, err := i.out.Read(buf)
		i.seen.Write(buf[:n])
		if err != nil {
			i.cmd.Wait()
			i.t.Fatalf("kiln ended before it said %q:\n%s", text, i.seen.String())
		}
	}
}

func (i *interrupted) interrupt() {
	i.t.Helper()
	if err := i.cmd.Process.Signal(syscall.SIGINT); err != nil {
		i.t.Fatal(err)
	}
}

// ends wants the exit status of an interrupted command, and returns all that it said.
func (i *interrupted) ends() string {
	i.t.Helper()
	_, _ = io.Copy(&i.seen, i.out)
	_ = i.cmd.Wait()
	if got := i.cmd.ProcessState.ExitCode(); got != 130 {
		i.t.Errorf("exit status %d\n%s", got, i.seen.String())
	}
	return i.seen.String()
}

// wantClean wants nothing to be left in a root directory of what commands had begun.
func wantClean(t *testing.T, root string) {
	t.Helper()
	if left, err := kilntest.Leftovers(root); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

// TestCachesInterrupted stops builds while a cache is exported, and while a cache mount is restored, to and from a registry that does not
// answer. Nothing is left behind, and what is interrupted again ends without waiting for the registry.
func TestCachesInterrupted(t *testing.T) {
	dir := faultsContext(t)
	for _, fault := range []string{"deaf", "mute"} {
		t.Run("export, "+fault, func(t *testing.T) {
			s := startSickRegistry(t)
			ctx, cancel := context.WithTimeout(t.Context(), kilntest.Hang)
			defer cancel()
			root := filepath.Join(t.TempDir(), "root")
			b := startInterrupted(t, faultsBuild(ctx, "kiln", root, dir, "--cache-to", "type=registry,mode=max,mounts=all,ref="+s.name+"/"+fault+"/app:cache"))
			b.says("exporting cache to")
			<-s.stuck
			b.interrupt()
			if out := b.ends(); !strings.Contains(out, "kiln: interrupted") || strings.Contains(out, "WARN") {
				t.Errorf("it said:\n%s", out)
			}
			wantClean(t, root)
		})
	}
	t.Run("twice", func(t *testing.T) {
		s := startSickRegistry(t)
		ctx, cancel := context.WithTimeout(t.Context(), kilntest.Hang)
		defer cancel()
		root := filepath.Join(t.TempDir(), "root")
		b := startInterrupted(t, faultsBuild(ctx, "kiln", root, dir, "--build-arg", "WAIT=1", "--cache-to", "type=registry,mode=max,ref="+s.name+"/deaf/app:cache"))
		b.says("up and running")
		b.interrupt()
		b.says("exporting cache to") // of the step that succeeded
		b.interrupt()
		if out := b.ends(); strings.Contains(out, "kiln: interrupted") {
			t.Errorf("it ended by itself:\n%s", out)
		}
		// What it left is cleared away by the next command.
		if out, err := faultsBuild(ctx, "kiln", root, dir).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		wantClean(t, root)
	})
	t.Run("restore", func(t *testing.T) {
		s := startSickRegistry(t)
		ctx, cancel := context.WithTimeout(t.Context(), kilntest.Hang)
		defer cancel()
		top := t.TempDir()
		if out, err := faultsBuild(ctx, "kiln", filepath.Join(top, "first"), dir, "--cache-to", fmt.Sprintf("type=registry,mounts=pkg,ref=%s/well/app:cache", s.name)).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		from := func(fault string) string {
			return fmt.Sprintf("type=registry,mounts=pkg,ref=%s/%s/app:cache", s.name, fault)
		}
		root := filepath.Join(top, "root")
		b := startInterrupted(t, faultsBuild(ctx, "kiln", root, dir, "--no-cache", "--cache-from", from("torn")))
		select {
		case <-s.stuck: // the mount's index is read, and its files are not
		case <-ctx.Done():
			t.Fatal("the mount's files are not asked for")
		}
		b.interrupt()
		if out := b.ends(); !strings.Contains(out, "kiln: interrupted") || strings.Contains(out, "found:\n") {
			t.Errorf("it said:\n%s", out)
		}
		wantClean(t, root)
		out, err := faultsBuild(ctx, "kiln", root, dir, "--no-cache", "--cache-from", from("well")).CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("found: kept")) || bytes.Contains(out, []byte("WARN")) {
			t.Errorf("the mount is not restored afterwards: %v\n%s", err, out)
		}
		wantClean(t, root)
	})
}
