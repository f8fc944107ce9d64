// Package registrytest runs the distribution registry, Debian's docker-registry, on loopback for tests. It does not know
// what the tests put there.
package registrytest

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// startTimeout is how long the registry may take to answer on a machine that is busy with other tests.
const startTimeout = 5 * time.Minute

// Registry is a registry that runs until the test ends.
type Registry struct {
	// Host is its "127.0.0.1:port".
	Host string
	// Dir is where it keeps its data.
	Dir string
}

// Start starts a registry that speaks plain http, knows no users and allows deletion. The test fails when docker-registry
// is not installed.
func Start(t testing.TB) *Registry {
	t.Helper()
	return StartWith(t, "")
}

// KeepManifests is an option of StartWith: the registry does not allow to remove a manifest.
const KeepManifests = "keep"

// StartWith is Start with more lines for the registry's configuration, in YAML, and options.
func StartWith(t testing.TB, more string, options ...string) *Registry {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Fatalf("find the registry: %v: install Debian's package docker-registry", err)
	}
	r := &Registry{Host: freeAddress(t), Dir: t.TempDir()}
	file := filepath.Join(t.TempDir(), "config.yml")
	config := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"+
		"storage: {filesystem: {rootdirectory: %s}, delete: {enabled: %t}}\nhttp: {addr: %s}\n%s",
		r.Dir, !slices.Contains(options, KeepManifests), r.Host, more)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(program, "serve", file)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatalf("start the registry: %v", err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it is killed in the end
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it has ended already, then
		<-ended
	})
	for until := time.Now().Add(startTimeout); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get("http://" + r.Host + "/v2/")
		if err == nil {
			resp.Body.Close()
			return r
		}
		select {
		case <-ended:
			t.Fatalf("the registry ended:\n%s", log.String())
		default:
		}
		if time.Now().After(until) {
			t.Fatalf("the registry does not answer: %v", err)
		}
	}
}

// freeAddress returns an address on loopback that nothing listened on a moment ago.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// StartWithUser starts a registry as Start does, which asks for the password of a user.
func StartWithUser(t testing.TB, user, password string) *Registry {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(file, fmt.Appendf(nil, "%s:%s\n", user, hash), 0o600); err != nil {
		t.Fatal(err)
	}
	return StartWith(t, fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s}}\n", file))
}
