package auth

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestServerName(t *testing.T) {
	for server, want := range map[string]string{
		"": "docker.io", "docker.io": "docker.io", "https://index.docker.io/v1/": "docker.io", "registry-1.docker.io": "docker.io",
		"reg.corp": "reg.corp", "reg.corp:5000/team/app": "reg.corp:5000", "https://reg.corp/v2/": "reg.corp", "http://[::1]:5000": "[::1]:5000",
	} {
		if got := ServerName(server); got != want {
			t.Errorf("ServerName(%q) = %q, want %q", server, got, want)
		}
	}
}

// TestStoreTogether shows that no login is lost when several processes log in at once.
func TestStoreTogether(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", filepath.Join(t.TempDir(), "new"))
	var all sync.WaitGroup
	hosts := []string{"a.corp", "b.corp", "c.corp", "d.corp", "docker.io"}
	for _, host := range hosts {
		all.Go(func() {
			if _, err := Store(t.Context(), host, "u", "p:"+host); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, host := range hosts {
		if got, err := NewKeychain(nil).Lookup(t.Context(), host); err != nil || got != (credential{username: "u", password: "p:" + host}) {
			t.Errorf("%s = %+v, %v", host, got, err)
		}
	}
}

// TestStoreRefuses shows that a file that kiln does not understand is not replaced, and that no error quotes it.
func TestStoreRefuses(t *testing.T) {
	for _, text := range []string{"{", `[]`, `{"auths": "` + canary + `"}`, `{"auths": {"x": {"auth": "` + canary} {
		dir := t.TempDir()
		t.Setenv("DOCKER_CONFIG", dir)
		path := filepath.Join(dir, "config.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Store(t.Context(), "a.corp", "u", "p"); err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %v", text, err)
		}
		if _, err := Erase(t.Context(), "a.corp"); err == nil {
			t.Errorf("%s: Erase succeeded", text)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("%s became %s, %v", text, got, err)
		}
	}
}

// TestStoreNull shows that null and an empty file are objects without members, as Docker takes them.
func TestStoreNull(t *testing.T) {
	for _, text := range []string{"", "\n", "null", " null\n", `{"auths": null}`, `{"auths": null, "credHelpers": null}`} {
		dir := t.TempDir()
		t.Setenv("DOCKER_CONFIG", dir)
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if found, err := Erase(t.Context(), "a.corp"); err != nil || found {
			t.Errorf("%s: Erase: %v, %v", text, found, err)
		}
		if _, err := Store(t.Context(), "a.corp", "u", "p"); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if got, err := NewKeychain(nil).Lookup(t.Context(), "a.corp"); err != nil || got != (credential{username: "u", password: "p"}) {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
}

// TestStoreKeepsSpecialFiles shows that what is neither missing nor a regular file is refused: a pipe, for whose writer nothing waits, and
// a link that leads to nothing, which stays.
func TestStoreKeepsSpecialFiles(t *testing.T) {
	for why, make := range map[string]func(path string) error{
		"not a regular file":   func(path string) error { return unix.Mkfifo(path, 0o600) },
		"a file that does not": func(path string) error { return os.Symlink("missing.json", path) },
	} {
		dir := t.TempDir()
		t.Setenv("DOCKER_CONFIG", dir)
		path := filepath.Join(dir, "config.json")
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		before, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Store(t.Context(), "a.corp", "u", "p"); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v", why, err)
		}
		if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
			t.Errorf("%s: the file was replaced: %v", why, err)
		}
	}
}
