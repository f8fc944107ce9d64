//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// kiln's own image, built by kiln for two platforms: it is the same whoever builds it, and builds images in containers as an ordinary user.
func TestImage(t *testing.T) {
	ownRoot(t) // of some gigabytes, which the other tests do not need
	build := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command("../image/build", append([]string{kilnPath, "--progress=plain", "-t", registry + "/" + name}, args...)...)
		for name, value := range proxies(t) {
			cmd.Args = append(cmd.Args, "--build-arg", name+"="+value)
		}
		cmd.Env = append(os.Environ(), "DEBIAN_IMAGE="+debian)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return registry + "/" + name
	}
	image := build("kiln:v1")
	command(t, kilnPath, "push", image)

	t.Run("reproducible", func(t *testing.T) {
		t.Setenv("KILN_ROOT", t.TempDir())
		again := build("kiln:again", "--no-cache")
		command(t, kilnPath, "push", again)
		if first, second := remoteDigest(t, image), remoteDigest(t, again); first != second {
			t.Errorf("the image is %s, and without the cache, in another root directory, %s", first, second)
			t.Log(command(t, kilnPath, "pull", image), command(t, kilnPath, "diff", image, again))
		}
	})
	t.Run("platforms", func(t *testing.T) { testImagePlatforms(t, image) })

	tar := filepath.Join(t.TempDir(), "kiln.tar")
	build("kiln:one", "--platform", "linux/amd64", "-o", "type=docker,rewrite-timestamp=true,dest="+tar)
	t.Run("docker", func(t *testing.T) {
		client := []string{"docker", "--host", startDocker(t)}
		command(t, client[0], append(client[1:], "load", "--input", tar)...)
		testImageRuns(t, registry+"/kiln:one", "systempaths=unconfined", append(client, "run", "--rm", "--network=none")...)

		daemon := filepath.Join(t.TempDir(), "kilnd.tar")
		build("kilnd:one", "--target", "kilnd", "--platform", "linux/amd64", "-o", "type=docker,rewrite-timestamp=true,dest="+daemon)
		command(t, client[0], append(client[1:], "load", "--input", daemon)...)
		testImageServes(t, client[2], registry+"/kilnd:one")
	})
	t.Run("podman", func(t *testing.T) {
		dir := t.TempDir()
		client := []string{"podman", "--root", dir + "/root", "--runroot", dir + "/run"}
		t.Cleanup(func() {
			command(t, "podman", "--root", dir+"/root", "--runroot", dir+"/run", "system", "reset", "--force")
		})
		command(t, client[0], append(client[1:], "load", "--quiet", "--input", tar)...)
		// podman asks for more than root of a container has.
		run := append(client, "run", "--rm", "--network=host", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
		testImageRuns(t, registry+"/kiln:one", "unmask=ALL", run...)
		testECR(t, registry+"/kiln:one", run...)
	})
}

// testImagePlatforms runs the programs of the image for both platforms, those of the other by an emulator.
func testImagePlatforms(t *testing.T, image string) {
	var platforms []struct {
		OS, Architecture string
		Config           struct{ User string }
	}
	if err := json.Unmarshal([]byte(command(t, kilnPath, "image", "inspect", image)), &platforms); err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, p := range platforms {
		have = append(have, p.OS+"/"+p.Architecture)
		if p.Config.User != "kiln" {
			t.Errorf("the user for %s is %q", p.Architecture, p.Config.User)
		}
	}
	if want := []string{"linux/amd64", "linux/arm64"}; !slices.Equal(have, want) {
		t.Errorf("the image is for %q, want %q", have, want)
	}
	script := `set -e
id -un; kiln version; git --version; ssh -V 2>&1; newuidmap 2>&1 | grep -i usage > /dev/null
for helper in ecr-login gcr acr-env; do echo registry.example | docker-credential-$helper get > /tmp/said 2>&1 || true; test -s /tmp/said; done
git ls-remote https://127.0.0.1:1/none 2>&1 | grep -i connect > /dev/null
find / -xdev -perm /6000 2> /dev/null | grep . && exit 1; echo complete`
	for _, platform := range have {
		out := command(t, kilnPath, "run", "--rm", "--platform", platform, "--entrypoint", "sh", image, "-c", script)
		for _, want := range []string{"kiln\n", " " + platform + "\n", "git version 2.", "OpenSSH", "complete"} {
			if !strings.Contains(out, want) {
				t.Errorf("for %s the programs printed no %q:\n%s", platform, want, out)
			}
		}
	}
}

// testImageRuns builds with kiln's image in a container that the command runs, with and without what docs/ci.md says that it needs. Unmask
// is the engine's option for an unmasked /proc.
func testImageRuns(t *testing.T, image, unmask string, run ...string) {
	ctx := t.TempDir()
	if err := os.Chmod(ctx, 0o755); err != nil {
		t.Fatal(err)
	}
	fetchBusybox(t, "amd64", filepath.Join(ctx, "busybox"))
	dockerfile := `FROM scratch
COPY --chmod=755 busybox /bin/
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox chown 33:65534 /bin/busybox && echo $((6*7)) && /bin/busybox stat -c %u:%g /bin/busybox"]
`
	if err := os.WriteFile(filepath.Join(ctx, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		t.Fatal(err)
	}
	docs := []string{"--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined"}
	shared := t.TempDir() // as an emptyDir is
	if err := os.Chmod(shared, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		flags []string
		build []string
		ok    bool
		says  []string
	}{
		{"unmasked", append(slices.Clone(docs), "--security-opt="+unmask), nil, true, []string{"33:65534"}},
		{"masked", docs, []string{"--no-process-sandbox"}, true, []string{"33:65534"}},
		{"masked, not told", docs, nil, false, []string{"--no-process-sandbox", "procMount: Unmasked"}},
		{"few capabilities", append(slices.Clone(docs), "--cap-drop=ALL", "--cap-add=SETUID", "--cap-add=SETGID"), []string{"--no-process-sandbox"}, true,
			[]string{"33:65534"}},
		{"a volume of root", append(slices.Clone(docs), "--volume", shared+":/home/kiln/.local/share"), []string{"--no-process-sandbox"}, true,
			[]string{"33:65534"}},
		{"no new privileges", append(slices.Clone(docs), "--security-opt=no-new-privileges"), []string{"--no-process-sandbox"}, false,
			[]string{"newuidmap", "there is one user id and no more"}},
	} {
		args := append(slices.Clone(run), c.flags...)
		args = append(append(args, "--volume", ctx+":/workspace:ro", image, "build", "--progress=plain"), c.build...)
		out, err := exec.Command(args[0], append(args[1:], ".")...).CombinedOutput()
		if (err == nil) != c.ok {
			t.Errorf("%s: %v\n%s", c.name, err, out)
		}
		for _, want := range c.says {
			if !bytes.Contains(out, []byte(want)) {
				t.Errorf("%s: the output has no %q:\n%s", c.name, want, out)
			}
		}
	}
}

// testImageServes builds with the image of the daemon: with buildctl in containers without privileges, of which one is what a pod of
// buildx' kubernetes driver with rootless=true has, and with buildx' docker-container driver, whose containers are privileged.
func testImageServes(t *testing.T, host, image string) {
	t.Setenv("DOCKER_HOST", host)
	t.Setenv("BUILDX_CONFIG", t.TempDir())
	tool := func(name string) string { return filepath.Join(os.Getenv("TOOLS"), name) }
	ctx := t.TempDir()
	fetchBusybox(t, "amd64", filepath.Join(ctx, "busybox"))
	dockerfile := `FROM scratch AS build
COPY --chmod=755 busybox /bin/
RUN ["/bin/busybox", "sh", "-c", "echo $((6*7)) > /made"]
FROM scratch
COPY --from=build /made /
`
	if err := os.WriteFile(filepath.Join(ctx, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		t.Fatal(err)
	}
	made := func(out string) {
		t.Helper()
		if made, err := os.ReadFile(filepath.Join(out, "made")); err != nil || string(made) != "42\n" {
			t.Errorf("the build made %q, %v", made, err)
		}
	}
	for name, args := range map[string][]string{
		"kilnd": {"--security-opt=systempaths=unconfined", image},
		"pod": {"--volume=/home/user/.local/share/buildkit", image,
			"--allow-insecure-entitlement=network.host", "--oci-worker-no-process-sandbox"},
	} {
		run := []string{
			"run", "--detach", "--name=" + name, "--network=host", "--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined",
		}
		command(t, "docker", append(run, args...)...)
		t.Cleanup(func() { command(t, "docker", "rm", "--force", "--volumes", name) })
		ready := func() bool { return exec.Command("docker", "exec", name, "buildctl", "debug", "workers").Run() == nil }
		for until := time.Now().Add(5 * time.Minute); !ready(); time.Sleep(100 * time.Millisecond) {
			if time.Now().After(until) {
				t.Fatalf("%s is not ready: %s", name, command(t, "docker", "logs", name))
			}
		}
		out := t.TempDir()
		command(t, tool("buildctl"), "--addr=docker-container://"+name, "build", "--frontend=dockerfile.v0",
			"--local=context="+ctx, "--local=dockerfile="+ctx, "--output=type=local,dest="+out)
		made(out)
	}

	if !everyCapability(t) {
		t.Skip("BUILDX' CONTAINERS ARE NOT TESTED: they are privileged, and this machine's root has not all capabilities to give")
	}
	command(t, tool("buildx"), "create", "--name", "kilnd", "--driver", "docker-container", "--driver-opt", "network=host,image="+image)
	t.Cleanup(func() { command(t, tool("buildx"), "rm", "kilnd") })
	out := t.TempDir()
	command(t, tool("buildx"), "build", "--builder", "kilnd", "-o", out, ctx)
	made(out)
}

// everyCapability reports whether a process can have all capabilities of the kernel.
func everyCapability(t *testing.T) bool {
	last, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(last)))
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(status), fmt.Sprintf("\nCapBnd:\t%016x\n", uint64(1)<<(n+1)-1))
}

// testECR shows that the helper of ECR asks the service that the environment names, by the identity in it. The command runs a container in
// the host's network.
func testECR(t *testing.T, image string, run ...string) {
	const host = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
	ecr := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		fmt.Fprintf(w, `{"authorizationData":[{"authorizationToken":"QVdTOmVjci1wYXNzd29yZA==","expiresAt":2e9,"proxyEndpoint":"https://%s"}]}`, host)
	}))
	defer ecr.Close()
	args := append(slices.Clone(run), "-e", "AWS_ACCESS_KEY_ID=id", "-e", "AWS_SECRET_ACCESS_KEY=key", "-e", "AWS_ENDPOINT_URL_ECR="+ecr.URL, "--entrypoint", "sh", image,
		"-c", "echo "+host+" | docker-credential-ecr-login get")
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil || !bytes.Contains(out, []byte("ecr-password")) {
		t.Errorf("the helper of ECR: %v\n%s", err, out)
	}
}
