//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// An application in Flask. What was built answers a request.
func TestFlask(t *testing.T) {
	name := registry + "/flask:latest"
	p := open(t, "flask", "-t", name, "--push")
	first := p.build()
	first.wantRan("RUN apt-get update", "WORKDIR /app", "COPY app.py")

	rootfs := unpack(t, "docker://"+name)
	const ask = `import app; print(app.app.test_client().get("/?name=kiln").get_data(as_text=True))`
	got := command(t, "chroot", "--userspec=65534:65534", rootfs, "sh", "-c", "cd /app && exec python3 -B -c '"+ask+"'")
	if strings.TrimSpace(got) != "hello kiln, from user 65534" {
		t.Errorf("the application answered %q", got)
	}
	p.build().wantAllCached(first)
	p.edit("app.py", "hello", "good day,")
	p.build().wantRan("COPY app.py")
}

// The counter of the tutorials of compose: its compose file and its Dockerfile are built as they are. The images that they name come from a
// mirror of Docker Hub.
func TestCounter(t *testing.T) {
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
	command(t, kilnPath, "pull", "--quiet", "redis:alpine")

	// It counts, with the server of the other image.
	web, server := t.TempDir(), t.TempDir()
	for name, to := range map[string]string{"counter-web": web, "redis:alpine": server} {
		command(t, kilnPath, "save", "--output", to+"/image.tar", name)
		command(t, "skopeo", "copy", "--quiet", "docker-archive:"+to+"/image.tar", "oci:"+to+"/image:latest")
		command(t, "umoci", "unpack", "--image", to+"/image:latest", to+"/bundle")
	}
	port := freePort(t)
	redis := exec.Command("chroot", server+"/bundle/rootfs", "redis-server", "--bind", "127.0.0.1", "--port", port, "--dir", "/data")
	if err := redis.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		redis.Process.Kill()
		redis.Wait()
	})
	waitFor(t, "127.0.0.1:"+port)
	const ask = `import app; c = app.app.test_client(); c.get("/"); print(c.get("/").get_data(as_text=True))`
	got := command(t, "chroot", web+"/bundle/rootfs", "env", "REDIS_HOST=127.0.0.1", "REDIS_PORT="+port, "sh", "-c",
		"cd /code && exec python3 -B -c '"+ask+"'")
	if strings.TrimSpace(got) != "This page was seen 2 times." {
		t.Errorf("the application answered %q", got)
	}
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
