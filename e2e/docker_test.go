//go:build e2e

package e2e

import (
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
