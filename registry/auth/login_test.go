package auth

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
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
		if got, err := NewKeychain().Lookup(t.Context(), host); err != nil || got != (credential{username: "u", password: "p:" + host}) {
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
