//go:build e2e

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/kilntest"
	"golang.org/x/crypto/bcrypt"
)

// An application in Flask is built, tried and edited, by the commands that README has.
func TestFlask(t *testing.T) {
	ownRoot(t)
	p := open(t, "flask", "-t", "hello")
	first := p.build()
	first.wantRan("RUN apt-get update", "WORKDIR /app", "COPY app.py")
	port := freePort(t)
	try := func(want string) {
		t.Helper()
		c := start(t, "run", "--rm", "-p", "127.0.0.1:"+port+":5000", "hello")
		if got := c.get("http://127.0.0.1:" + port + "/?name=kiln"); got != want {
			t.Errorf("the application answered %q, and not %q", got, want)
		}
		c.end(os.Interrupt)
	}
	try("hello kiln, from user 65534\n")

	p.build().wantAllCached(first)
	p.edit("app.py", "hello", "good day,")
	p.build().wantRan("COPY app.py")
	try("good day, kiln, from user 65534\n")
}

// The counter of the tutorials of compose: its compose file and its Dockerfile are built as they are. The images that they name come from a
// mirror of Docker Hub.
func TestCounter(t *testing.T) {
	ownRoot(t)
	mirror(t)
	bases := open(t, "counter-bases", "--push")
	bases.run("--target", "python", "-t", registry+"/library/python:3.12-alpine")
	bases.run("--target", "redis", "-t", registry+"/library/redis:alpine")

	dir := open(t, "counter").dir
	compose := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(kilnPath, append([]string{"compose", "--project-name", "counter"}, args...)...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("kiln compose %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	t.Log(compose("build"))
	first := command(t, kilnPath, "inspect", "--format", "{{.Id}}", "counter-web")
	compose("build")
	if again := command(t, kilnPath, "inspect", "--format", "{{.Id}}", "counter-web"); again != first {
		t.Errorf("the image of web is %s, and it was %s", again, first)
	}

	// It counts, in the other image's server, which it reaches at a port of the machine.
	port, redisPort := freePort(t), freePort(t)
	redis := start(t, "run", "--rm", "-p", "0.0.0.0:"+redisPort+":6379", "redis:alpine")
	redis.until("PING", func() (string, error) { return ping("127.0.0.1:" + redisPort) })
	web := start(t, "run", "--rm", "-p", port+":5000", "--add-host", "redis:host-gateway", "-e", "REDIS_PORT="+redisPort, "counter-web",
		"flask", "--debug", "run") // Debian's Flask is too old for the order of the Dockerfile
	for n := 1; n <= 3; n++ {
		if got, want := web.get("http://127.0.0.1:"+port+"/"), fmt.Sprintf("This page was seen %d times.\n", n); got != want {
			t.Errorf("the application answered %q, and not %q", got, want)
		}
	}
	web.end(syscall.SIGTERM)
	redis.end(syscall.SIGTERM)
}

// A script that was written for docker does its work with kiln in the place of docker.
func TestDockerScript(t *testing.T) {
	mirror(t)
	command(t, "skopeo", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false", "docker://"+debian, "docker://"+registry+"/library/debian:bookworm")
	const user, password = "ci", "correct horse: battery staple"
	private := startPrivate(t, user, password)

	bin := t.TempDir()
	if err := os.Symlink(kilnPath, bin+"/docker"); err != nil {
		t.Fatal(err)
	}
	dir := open(t, "ci").dir
	cmd := exec.Command(dir+"/job.sh", private, user, "1.2.3")
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "REGISTRY_PASSWORD="+password, "DOCKER_CONFIG="+t.TempDir(), "KILN_ROOT="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasSuffix(string(out), "== done\n") {
		t.Fatalf("job.sh: %v\n%s", err, out)
	}
	if strings.Contains(string(out), password) {
		t.Errorf("the password is shown:\n%s", out)
	}
	refused, err := os.ReadFile(dir + "/refused")
	if err != nil || !strings.Contains(string(refused), private) || !strings.Contains(string(refused), "login") {
		t.Errorf("without a login kiln says %q, %v", refused, err)
	}
}

// ownRoot gives kiln a root directory of the test's own, and has the end of the test fail if kiln has left anything behind.
func ownRoot(t *testing.T) {
	t.Helper()
	root := t.TempDir()
	t.Setenv("KILN_ROOT", root)
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		left, err := kilntest.Leftovers(root)
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %s, %v", strings.Join(left, "\n"), err)
		}
	})
}

// service is a kiln run that serves something, until the test ends it.
type service struct {
	t      *testing.T
	cmd    *exec.Cmd
	log    string
	exited chan struct{}
}

func start(t *testing.T, args ...string) *service {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s := &service{t, exec.Command(kilnPath, args...), log.Name(), make(chan struct{})}
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		s.cmd.Wait()
		close(s.exited)
	}()
	t.Cleanup(func() {
		s.cmd.Process.Kill()
		<-s.exited
	})
	return s
}

// fatal ends the test, with what the service has printed.
func (s *service) fatal(format string, args ...any) {
	s.t.Helper()
	text, err := os.ReadFile(s.log)
	s.t.Fatalf("kiln %s: %s, %v; it printed\n%s", strings.Join(s.cmd.Args[1:], " "), fmt.Sprintf(format, args...), err, text)
}

// until returns the first answer to what is asked, while there is none and the service has not ended.
func (s *service) until(what string, ask func() (string, error)) string {
	s.t.Helper()
	var err error
	for range 3000 { // five minutes
		var answer string
		if answer, err = ask(); err == nil {
			return answer
		}
		select {
		case <-s.exited:
			s.fatal("it ended: %v", s.cmd.ProcessState)
		case <-time.After(100 * time.Millisecond):
		}
	}
	s.fatal("%s: %v", what, err)
	return ""
}

// get returns the body of the answer to a GET, which has to be a success.
func (s *service) get(url string) string {
	s.t.Helper()
	return s.until("GET "+url, func() (string, error) {
		// Until the program listens, connections are reset.
		res, err := http.Get(url)
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if res.StatusCode != http.StatusOK {
			s.fatal("GET %s: %s\n%s", url, res.Status, body)
		}
		return string(body), err
	})
}

// end sends a signal, and waits until the service has ended, which has to be a success.
func (s *service) end(sig os.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.fatal("%v: %v", sig, err)
	}
	select {
	case <-s.exited:
		if !s.cmd.ProcessState.Success() {
			s.fatal("%v: %v", sig, s.cmd.ProcessState)
		}
	case <-time.After(5 * time.Minute):
		s.fatal("%v did not end it", sig)
	}
}

// ping asks a Redis whether it is there.
func ping(address string) (string, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, "PING\r\n"); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && answer != "+PONG\r\n" {
		err = fmt.Errorf("it said %q", answer)
	}
	return answer, err
}

// mirror has kiln take the images of Docker Hub from the tests' own registry until the test ends.
func mirror(t *testing.T) {
	t.Helper()
	config := filepath.Join(t.TempDir(), "kiln.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "[registry.\"docker.io\"]\nmirrors = [%q]\n", registry), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KILN_CONFIG", config)
}

// startPrivate starts a registry that wants a password, and returns its address.
func startPrivate(t *testing.T, user, password string) string {
	t.Helper()
	dir := t.TempDir()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	address := "127.0.0.1:" + freePort(t)
	config := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %[1]s/registry}}\n"+
		"http: {addr: %[2]s}\nauth: {htpasswd: {realm: team, path: %[1]s/htpasswd}}\n", dir, address)
	if err := errors.Join(os.WriteFile(dir+"/htpasswd", fmt.Appendf(nil, "%s:%s\n", user, hash), 0o600),
		os.WriteFile(dir+"/registry.yml", []byte(config), 0o600)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker-registry", "serve", dir+"/registry.yml")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	waitFor(t, address)
	if res, err := http.Get("http://" + address + "/v2/"); err != nil || res.StatusCode != http.StatusUnauthorized {
		t.Fatalf("the registry wants no password: %v, %v", res, err)
	}
	return address
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// waitFor waits until somebody listens at an address.
func waitFor(t *testing.T, address string) {
	t.Helper()
	for range 3000 { // five minutes
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("nobody listens at %s", address)
}
