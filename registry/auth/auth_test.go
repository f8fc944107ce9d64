package auth

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/config"
)

const canary = "c4n4ry-p4ssword"

// useDockerConfig has config.json hold v.
func useDockerConfig(t *testing.T, v any) {
	t.Helper()
	dir := t.TempDir()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", dir)
}

// server is a registry that speaks https.
type server struct{ name, addr string }

func (s server) Name() string   { return s.name }
func (s server) Addr() string   { return s.addr }
func (s server) Scheme() string { return "https" }

func (s server) Realms() []string {
	if s.name == "named.corp" {
		return []string{"auth.corp"}
	}
	return nil
}

func (s server) Owns(u *url.URL) bool { return u.Scheme == "https" && u.Host == s.addr }

func (s server) Ask(*http.Request) (*http.Response, error) {
	return nil, errors.New("nothing is asked")
}

func TestRealm(t *testing.T) {
	for _, c := range []struct {
		registry, realm string
		secret, ok      bool
	}{
		{"docker.io", "https://auth.docker.io/token", true, true},
		{"docker.io", "https://registry-1.docker.io/token", true, true},
		{"docker.io", "http://auth.docker.io/token", true, false},
		{"docker.io", "http://auth.docker.io/token", false, false},
		{"docker.io", "https://auth.docker.io.evil.com/token", true, false},
		{"docker.io", "https://auth.docker.io@evil.com/token", true, false},
		{"docker.io", "https://auth.docker.io:8443/token", true, false},
		{"docker.io", "https://evil.com/token", false, true},
		{"ghcr.io", "https://ghcr.io/token", true, true},
		{"ghcr.io", "https://auth.docker.io/token", true, false},
		{"reg.corp:5000", "https://reg.corp:5001/auth", true, true},
		{"reg.corp:5000", "http://reg.corp:5001/auth", true, false},
		{"reg.corp:5000", "https://auth.corp/auth", true, false},
		{"named.corp", "https://auth.corp/auth", true, true},
		{"named.corp", "http://auth.corp/auth", true, false},
		{"127.0.0.1:5000", "https://127.0.0.1:5001/auth", true, false},
		{"ghcr.io", "file:///etc/passwd", false, false},
		{"ghcr.io", "", true, false},
		{"ghcr.io", "https://", false, false},
		{"ghcr.io", "//ghcr.io/token", true, false},
	} {
		s := server{name: c.registry, addr: c.registry}
		if s.name == "docker.io" {
			s.addr = "registry-1.docker.io"
		}
		if u, err := New(s, nil).realm(c.realm, c.secret); (err == nil) != c.ok {
			t.Errorf("%s to %q (secret %v) = %v, %v", c.registry, c.realm, c.secret, u, err)
		}
	}
}

func TestHelpers(t *testing.T) {
	bin := t.TempDir()
	script := "#!/bin/sh\nread s\ncase \"$s\" in known*) printf '{\"Username\":\"u\",\"Secret\":\"%s\"}' \"$LD_CANARY$s\";; token*) printf '{\"Username\":\"<token>\",\"Secret\":\"idt\"}';; none*) echo 'credentials not found in native keychain'; exit 1;; *) echo broken >&2; exit 1;; esac\n"
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-test"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("LD_CANARY", canary)
	useDockerConfig(t, map[string]any{"credsStore": "test", "credHelpers": map[string]string{"absent.corp": "absent", "slash.corp": "../x"}})
	for host, want := range map[string]credential{
		"known.corp": {username: "u", password: "known.corp"},
		"token.corp": {identityToken: "idt"},
		"none.corp":  {},
	} {
		if got, err := NewKeychain(nil).Lookup(t.Context(), host); err != nil || got != want {
			t.Errorf("%s = %+v, %v", host, got, err)
		}
	}
	for _, host := range []string{"absent.corp", "slash.corp", "other.corp"} {
		if got, err := NewKeychain(nil).Lookup(t.Context(), host); err == nil {
			t.Errorf("%s = %+v", host, got)
		}
	}
}

// TestOddHelpers has helpers that leave a program behind, fail after they printed a password, or print without end.
func TestOddHelpers(t *testing.T) {
	bin := t.TempDir()
	answer := `printf '{"Username":"u","Secret":"` + canary + `"}'`
	for name, script := range map[string]string{
		"agent":  answer + "; sleep 5 &",
		"failed": answer + "; echo no luck >&2; exit 1",
		"silent": "exit 1",
		"long":   "head -c 50000000 /dev/zero",
	} {
		if err := os.WriteFile(filepath.Join(bin, "docker-credential-"+name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	for name, want := range map[string]string{
		"agent":  "",
		"failed": "exit status 1: no luck",
		"silent": "exit status 1",
		"long":   "it printed no credentials",
	} {
		useDockerConfig(t, map[string]any{"credsStore": name})
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		got, err := NewKeychain(nil).Lookup(t.Context(), "reg.corp")
		runtime.ReadMemStats(&after)
		switch {
		case want == "" && (err != nil || got != credential{username: "u", password: canary}):
			t.Errorf("%s = %+v, %v", name, got, err)
		case want != "" && (err == nil || !strings.HasSuffix(err.Error(), want) || strings.Contains(err.Error(), canary)):
			t.Errorf("%s: %v, want %q", name, err, want)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 8*maxCredentials {
			t.Errorf("%s: %d bytes were allocated", name, n)
		}
	}
}

// TestSettingsHelpers shows that helpers of kiln.toml come after Docker's configuration, and that one which fails is no error but a reason.
func TestSettingsHelpers(t *testing.T) {
	bin := t.TempDir()
	script := "#!/bin/sh\nread s\ncase \"$s\" in known*) printf '{\"Username\":\"u\",\"Secret\":\"%s\"}' \"$s\";; *) echo no identity >&2; exit 1;; esac\n"
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-cloud"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	useDockerConfig(t, map[string]any{"auths": map[string]any{"known.file.corp": map[string]string{"username": "f", "password": "p"}}})
	k := NewKeychain(config.Registries{"*.corp": {CredentialHelper: "cloud"}, "*.file.corp": {CredentialHelper: "cloud"},
		"absent.corp": {CredentialHelper: "absent"}})
	for _, c := range []struct {
		registry string
		want     credential
		says     string
	}{
		{"known.corp", credential{username: "u", password: "known.corp"}, "are those of docker-credential-cloud"},
		{"known.file.corp", credential{username: "f", password: "p"}, "are those of " + os.Getenv("DOCKER_CONFIG")},
		{"other.corp", credential{}, "no identity"},
		{"absent.corp", credential{}, "executable file not found"},
		{"known.example", credential{}, "has no credentials for known.example"},
	} {
		if got, err := k.Lookup(t.Context(), c.registry); err != nil || got != c.want {
			t.Errorf("%s = %+v, %v, want %+v", c.registry, got, err, c.want)
		}
		if got := k.Describe(c.registry); !strings.Contains(got, c.says) {
			t.Errorf("%s is described as %q, want %q", c.registry, got, c.says)
		}
	}
	_, missing, err := Check(k.settings)
	if err != nil || len(missing) != 1 || missing[0] != "docker-credential-absent" {
		t.Errorf("missing helpers: %q, %v", missing, err)
	}
}

func TestDockerConfig(t *testing.T) {
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	c, err := parseDockerConfig("config.json", []byte(`{"auths":{
		"https://index.docker.io/v1/":{"auth":"`+b64("hub:p:w")+`"}, "https://reg.corp/v2/":{"auth":"`+b64("u:p")+`"},
		"id.corp":{"identitytoken":"t"}, "raw.corp":{"registrytoken":"r"}, "bad.corp":{"auth":"%%%"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]credential{
		"docker.io": {username: "hub", password: "p:w"}, "reg.corp": {username: "u", password: "p"}, "id.corp": {identityToken: "t"},
		"raw.corp": {registryToken: "r"}, "evil.reg.corp": {}, "corp": {}, "reg.corp:443": {},
	} {
		if got, err := c.lookup(t.Context(), host); err != nil || got != want {
			t.Errorf("%s = %+v, %v", host, got, err)
		}
	}
	if _, err := c.lookup(t.Context(), "bad.corp"); err == nil {
		t.Error("took an auth that is no base64")
	}
	if _, err := parseDockerConfig("config.json", []byte(`{"auths":{"x":{"auth":"`+canary+`"`)); err == nil || strings.Contains(err.Error(), canary) {
		t.Errorf("%v", err)
	}
}

func TestParseChallenges(t *testing.T) {
	for value, want := range map[string][]challenge{
		``: nil,
		`Bearer realm="https://a/b",service="s",scope="repository:x:pull,push"`: {{"bearer", map[string]string{"realm": "https://a/b", "service": "s", "scope": "repository:x:pull,push"}}},
		`Basic realm=x, Bearer realm="y\"z"`:                                    {{"basic", map[string]string{"realm": "x"}}, {"bearer", map[string]string{"realm": `y"z`}}},
		`Negotiate, Basic realm="q"`:                                            {{"negotiate", map[string]string{}}, {"basic", map[string]string{"realm": "q"}}},
		`Bearer realm = "a" , service=b`:                                        {{"bearer", map[string]string{"realm": "a", "service": "b"}}},
		`Bearer realm="unterminated`:                                            {{"bearer", map[string]string{}}},
		`realm="x"`:                                                             nil,
	} {
		if got := parseChallenges([]string{value}); !reflect.DeepEqual(got, want) {
			t.Errorf("%s = %v, want %v", value, got, want)
		}
	}
}

func FuzzParseChallenges(f *testing.F) {
	f.Add(`Basic realm=x, Bearer realm="y\"z"`)
	f.Fuzz(func(t *testing.T, s string) { parseChallenges([]string{s}) })
}

func FuzzDockerConfig(f *testing.F) {
	f.Add([]byte(`{"auths":{"x":{"auth":"dTpw"}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseDockerConfig("config.json", data)
		if err == nil && c.CredsStore == "" && len(c.CredHelpers) == 0 {
			_, _ = c.lookup(t.Context(), "x") // must not panic
		}
	})
}

func TestCovers(t *testing.T) {
	for _, tc := range []struct {
		have, need string
		want       bool
	}{
		{"repository:a:pull,push", "repository:a:pull", true},
		{"repository:a:pull,push", "repository:a:push,pull", true},
		{"repository:a:pull", "repository:a:pull,push", false},
		{"repository:a:pull,push", "repository:b:pull", false},
		{"repository:a:pull,push repository:b:pull", "repository:b:pull", true},
		{"repository:a:pull,push", "repository:a:pull repository:b:pull", false},
		{"repository:h:5000/a:pull", "repository:h:5000/b:pull", false},
		{"repository:a:pull", "repository:a:delete", false},
	} {
		if got := covers(strings.Split(tc.have, " "), strings.Split(tc.need, " ")); got != tc.want {
			t.Errorf("covers(%q, %q) = %v", tc.have, tc.need, got)
		}
	}
}
