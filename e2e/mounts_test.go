//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The examples of docs/cache-mounts.md, by way of a registry: on a machine that has never built before, the step that runs again finds in its
// cache mounts all that it needs.
func TestCacheMounts(t *testing.T) {
	text, err := os.ReadFile("../docs/cache-mounts.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := map[string]string{}
	for _, m := range regexp.MustCompile("(?s)\n## (\\w+)\n[^#]*?```dockerfile\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		examples[m[1]] = m[2]
	}
	for _, c := range []struct {
		name, files string
		// base is a directory of testdata/corpus/images; env are settings of this machine.
		base string
		env  []string
		// offline says that the second build needs no network, otherwise it prints want.
		offline bool
		want    string
	}{
		{"npm", "node-npm-multistage", "node", []string{"NPM_CONFIG_REGISTRY=" + npmRegistry(), "NODE_EXTRA_CA_CERTS=/ca.crt"}, true, ""},
		{"Go", "go-scratch-certs", "golang", []string{"GOPROXY=" + command(t, "go", "env", "GOPROXY"), "GOSUMDB=" + command(t, "go", "env", "GOSUMDB"), "SSL_CERT_FILE=/ca.crt"}, true, ""},
		{"apt", "", "", nil, false, "Need to get 0 B/"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dockerfile := examples[c.name]
			if dockerfile == "" {
				t.Fatal("the documentation has no example")
			}
			dir := t.TempDir()
			if c.files != "" {
				if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata/corpus", c.files))); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
				t.Fatal(err)
			}
			from := regexp.MustCompile(`(?m)^FROM (\S+)`).FindStringSubmatch(dockerfile)[1]
			base := debian
			if c.base != "" {
				base = machineBase(t, c.base, c.env)
			}
			ref := fmt.Sprintf("%s/mounts/%s:cache", registry, strings.ToLower(c.name))
			args := []string{
				"--build-context", from + "=docker-image://" + base, "--cache-from", "type=registry,mounts=all,ref=" + ref,
				"--cache-to", "type=registry,mode=max,mounts=all,ref=" + ref,
			}
			first := &project{t: t, dir: dir, args: args}
			first.run()
			t.Setenv("KILN_ROOT", filepath.Join(t.TempDir(), "root"))
			first.run().wantRan() // every step is cached
			t.Setenv("KILN_ROOT", filepath.Join(t.TempDir(), "root"))
			again := []string{"--no-cache"}
			if c.offline {
				again = append(again, "--network=none")
			}
			_, log, err := first.try(again...)
			if err != nil {
				t.Fatalf("the second machine: %v\n%s", err, log)
			}
			if !strings.Contains(log, c.want) || strings.Contains(log, "was not restored") {
				t.Errorf("the second machine prints\n%s\nwithout %q", log, c.want)
			}
		})
	}
}

// npmRegistry returns the registry that this machine uses. A machine without npm, or one that has no opinion, leaves the choice to the npm in
// the image.
func npmRegistry() string {
	out, err := exec.Command("npm", "config", "get", "registry").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// machineBase returns an image of testdata/corpus/images with the settings that this machine needs to download packages.
func machineBase(t *testing.T, name string, env []string) string {
	t.Helper()
	plain, tuned := registry+"/mounts/"+name+":plain", registry+"/mounts/"+name+":tuned"
	openCorpus(t, "images/"+name, map[string]string{"debian:bookworm-slim": debian}, "-t", plain, "--push").build()
	dir := t.TempDir()
	ca, err := os.ReadFile(caFile)
	if err != nil {
		t.Fatal(err)
	}
	text := "FROM " + plain + "\nCOPY ca.crt /ca.crt\n"
	for _, kv := range env {
		key, value, _ := strings.Cut(kv, "=")
		if value != "" {
			text += fmt.Sprintf("ENV %s=%q\n", key, value)
		}
	}
	for file, data := range map[string][]byte{"ca.crt": ca, "Dockerfile": []byte(text)} {
		if err := os.WriteFile(filepath.Join(dir, file), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	(&project{t: t, dir: dir, args: []string{"-t", tuned, "--push"}}).run()
	return tuned
}
