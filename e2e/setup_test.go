//go:build e2e

// Package e2e builds real images with a finished kiln: from Debian, with packages of Debian, npm and Go, by way of a real
// registry. What it needs of the machine is in the Makefile; the addresses of package registries are the machine's own.
package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The surroundings of all tests. TestMain makes them.
var (
	kilnPath string // the kiln that is tested
	registry string // "127.0.0.1:PORT"
	debian   string // a minimal Debian in that registry
	caFile   string // the machine's certificates
)

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	kilnPath = os.Getenv("KILN")
	if kilnPath == "" {
		return 0, fmt.Errorf("$KILN does not say which kiln is to be tested; make e2e does")
	}
	tmp, err := os.MkdirTemp("", "kiln-e2e-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(tmp)
	caFile = "/etc/ssl/certs/ca-certificates.crt"
	if f := os.Getenv("SSL_CERT_FILE"); f != "" {
		caFile = f
	}
	// Neither the user's images nor the user's settings are touched or used.
	if err := os.WriteFile(filepath.Join(tmp, "kiln.toml"), nil, 0o600); err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(tmp, "config.json"), []byte("{}"), 0o600); err != nil { // podman wants it to be there
		return 0, err
	}
	os.Setenv("KILN_ROOT", filepath.Join(tmp, "root"))
	os.Setenv("KILN_CONFIG", filepath.Join(tmp, "kiln.toml"))
	os.Setenv("DOCKER_CONFIG", tmp)

	stop, err := startRegistry(tmp)
	if err != nil {
		return 0, err
	}
	defer stop()
	if err := importDebian(tmp); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// startRegistry starts Debian's docker-registry on a free port of the loopback interface.
func startRegistry(tmp string) (stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	registry = l.Addr().String()
	l.Close()
	config := filepath.Join(tmp, "registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s/registry}}\nhttp: {addr: %s}\n", tmp, registry)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command("docker-registry", "serve", config)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		cmd.Process.Kill()
		cmd.Wait()
	}
	for range 3000 { // five minutes
		res, err := http.Get("http://" + registry + "/v2/")
		if err == nil {
			res.Body.Close()
			return stop, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	stop()
	return nil, fmt.Errorf("docker-registry does not answer on %s", registry)
}

// importDebian makes a minimal Debian from the machine's own package sources and pushes it as an image of one layer.
func importDebian(tmp string) error {
	dir := filepath.Join(tmp, "debian")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	sources, err := aptSources()
	if err != nil {
		return err
	}
	list := filepath.Join(tmp, "sources.list")
	if err := os.WriteFile(list, []byte(sources), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nADD rootfs.tar /\nCMD [\"bash\"]\n"), 0o644); err != nil {
		return err
	}
	debian = registry + "/debian:bookworm"
	for _, args := range [][]string{
		{"mmdebstrap", "--variant=minbase", "--quiet", "bookworm", filepath.Join(dir, "rootfs.tar"), list},
		{kilnPath, "build", "--quiet", "--push", "-t", debian, dir},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return os.RemoveAll(dir)
}

// aptSources returns where this machine gets its Debian packages from, for bookworm.
func aptSources() (string, error) {
	out, err := exec.Command("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages", "Component: main").Output()
	if err != nil {
		return "", fmt.Errorf("ask apt for its sources: %w", err)
	}
	lines := map[string]bool{}
	var bookworm, elsewhere string
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) != 3 || lines[line] {
			continue
		}
		lines[line] = true
		uri, release := fields[0], fields[1]
		switch {
		case release == "bookworm" || strings.HasPrefix(release, "bookworm-"):
			bookworm += fmt.Sprintf("deb %s %s main\n", uri, release)
		case strings.HasSuffix(strings.TrimSuffix(uri, "/"), "/debian") && !strings.Contains(release, "-"):
			// Another release of Debian has bookworm in the same place.
			elsewhere = fmt.Sprintf("deb %s bookworm main\n", uri)
		}
	}
	if bookworm == "" {
		bookworm = elsewhere
	}
	if bookworm == "" {
		return "", fmt.Errorf("apt's sources name no archive of Debian:\n%s", out)
	}
	return bookworm, nil
}
