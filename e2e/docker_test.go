//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// docker load takes the tar, and runs the image, where there is an engine. The engine is a private one, so that the
// user's, if there is one, is left alone.
func TestDockerLoad(t *testing.T) {
	host := startDocker(t)
	tar := filepath.Join(t.TempDir(), "docker.tar")
	image := open(t, "outputs", "-t", "loaded:v1").build("--output", "type=docker,dest="+tar)

	if out := command(t, "docker", "--host", host, "load", "--input", tar); !strings.Contains(out, "loaded:v1") {
		t.Errorf("docker load printed %q", out)
	}
	if id := command(t, "docker", "--host", host, "image", "inspect", "--format", "{{.Id}}", "loaded:v1"); id != image.id {
		t.Errorf("docker says that the image is %s, and kiln %s", id, image.id)
	}
	if got := command(t, "docker", "--host", host, "run", "--rm", "--network=none", "loaded:v1", "cat", "/made"); got != "made by RUN" {
		t.Errorf("in a container /made holds %q", got)
	}
}

// --load puts an image into Docker and into podman, without the layers that they have, and they run it.
func TestEngines(t *testing.T) {
	t.Run("docker", func(t *testing.T) {
		host := startDocker(t)
		testEngine(t, host, nil, "docker", "--host", host)
	})
	t.Run("podman", func(t *testing.T) {
		host := startPodman(t)
		testEngine(t, host, []string{"--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"}, "podman") // it asks for more than root of a container has
		storage := open(t, "outputs", "-t", "stored:v1").build("--output", "type=containers-storage")
		if id := command(t, "podman", "image", "inspect", "--format", "sha256:{{.Id}}", "stored:v1"); id != storage.id {
			t.Errorf("podman says that the image is %s, and kiln %s", id, storage.id)
		}
	})
}

// testEngine tests the engine at host, whose client runs images with further flags.
func testEngine(t *testing.T, host string, flags []string, client ...string) {
	t.Setenv("DOCKER_HOST", host)
	engine := func(args ...string) string {
		t.Helper()
		return command(t, client[0], append(client[1:], args...)...)
	}
	loaded := func(p *project, fresh int) {
		t.Helper()
		iid := filepath.Join(t.TempDir(), "iid")
		out, err := exec.Command(kilnPath, "build", "--progress=plain", "--build-arg", "BASE="+debian, "--load", "-t", "engine:v1", "--iidfile", iid, p.dir).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		id, err := os.ReadFile(iid)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimPrefix(engine("image", "inspect", "--format", "{{.Id}}", "engine:v1"), "sha256:"); "sha256:"+got != string(id) {
			t.Errorf("the engine says that the image is %s, and kiln %s", got, id)
		}
		if got := engine(append(append([]string{"run", "--rm", "--network=none"}, flags...), "engine:v1", "cat", "/made")...); got != "made by RUN" {
			t.Errorf("in a container /made holds %q", got)
		}
		layers := strings.Fields(engine("image", "inspect", "--format", "{{range .RootFS.Layers}}{{.}} {{end}}", "engine:v1"))
		if got := len(layers) - strings.Count(string(out), " already exists\n"); got != fresh && fresh >= 0 {
			t.Errorf("%d of %d layers were sent, want %d:\n%s", got, len(layers), fresh, out)
		}
	}
	p := open(t, "outputs", "-t", "engine:v1")
	loaded(p, -1)
	loaded(p, 0)
	p.edit("Dockerfile", "LABEL what=outputs\n", "LABEL what=outputs more=1\n")
	p.edit("Dockerfile", "COPY --chmod=600 Dockerfile /copied/", "COPY --chmod=640 Dockerfile /copied/")
	loaded(p, 1)
	// What the engine has lost is sent again.
	engine("image", "rm", "--force", "engine:v1")
	engine("image", "prune", "--force")
	loaded(p, -1)
}

// startPodman starts podman's service, with a storage of its own, which CONTAINERS_STORAGE_CONF names for this test.
func startPodman(t *testing.T) (host string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "podman-")
	if err != nil {
		t.Fatal(err)
	}
	config := dir + "/storage.conf"
	text := fmt.Sprintf("[storage]\ndriver = \"overlay\"\ngraphroot = %q\nrunroot = %q\n", dir+"/graph", dir+"/run")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONTAINERS_STORAGE_CONF", config)
	host = "unix://" + dir + "/podman.sock"
	log, err := os.Create(dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("podman", "system", "service", "--time=0", host)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
		exec.Command("umount", "--recursive", dir+"/graph/overlay").Run() // podman leaves it mounted
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	for range 600 { // five minutes
		if _, err := os.Stat(dir + "/podman.sock"); err == nil {
			return host
		}
		time.Sleep(500 * time.Millisecond)
	}
	said, _ := os.ReadFile(dir + "/log")
	t.Fatalf("podman's service does not listen; its log:\n%s", said)
	return ""
}

// startDocker starts an engine without a network. Where that cannot be done the test is skipped, which go test says.
func startDocker(t *testing.T) (host string) {
	t.Helper()
	for _, name := range []string{"dockerd", "docker"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("DOCKER LOAD IS NOT TESTED: there is no %s on this machine; apt-get install docker.io", name)
		}
	}
	// Paths of sockets may not be as long as those of t.TempDir are.
	dir, err := os.MkdirTemp("", "dockerd-")
	if err != nil {
		t.Fatal(err)
	}
	host = "unix://" + dir + "/docker.sock"
	log, err := os.Create(dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("dockerd", "--host="+host, "--data-root="+dir+"/data", "--exec-root="+dir+"/exec", "--pidfile="+dir+"/pid",
		"--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Skipf("DOCKER LOAD IS NOT TESTED: start dockerd: %v", err)
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		// It stops its containerd and unmounts what it has mounted.
		cmd.Process.Signal(os.Interrupt)
		select {
		case <-ended:
		case <-time.After(5 * time.Minute):
			cmd.Process.Kill()
			<-ended
		}
		exec.Command("umount", dir+"/exec/netns/default").Run() // dockerd leaves it mounted after containers on the host's network
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	for range 600 { // five minutes
		if exec.Command("docker", "--host", host, "version").Run() == nil {
			return host
		}
		select {
		case <-ended:
			text, _ := os.ReadFile(dir + "/log")
			t.Skipf("DOCKER LOAD IS NOT TESTED: dockerd has ended; its log:\n%s", text)
		case <-time.After(500 * time.Millisecond):
		}
	}
	text, _ := os.ReadFile(dir + "/log")
	t.Skipf("DOCKER LOAD IS NOT TESTED: dockerd does not answer; its log:\n%s", text)
	return ""
}
