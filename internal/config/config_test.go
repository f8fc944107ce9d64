package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	c, err := Parse("/etc/kiln/kiln.toml", []byte(`
root = "/srv/kiln"

[archive]
  maxSize = "2GB"
  maxEntries = 10

[history]
  maxAge = 172800
  maxEntries = 20

[registry."docker.io"]
  mirrors = ["127.0.0.1:5000", "harbor.corp/proxy"]

[registry."127.0.0.1:5000"]
  http = true

[registry."harbor.corp"]
  insecure = true
  ca = ["ca.pem", "/abs/ca.pem"]
  realms = ["auth.corp:5001"]
  credentialHelper = "corp"
  [[registry."harbor.corp".keypair]]
    key = "k.pem"
    cert = "/abs/c.pem"
`))
	if err != nil {
		t.Fatal(err)
	}
	entries := int64(20)
	want := &Config{
		File: "/etc/kiln/kiln.toml", Root: "/srv/kiln", History: &History{MaxAge: Duration{48 * time.Hour}, MaxEntries: &entries}, Archive: Archive{MaxSize: "2GB", MaxEntries: 10, Size: 2 << 30}, Registries: Registries{
			"docker.io":      {Mirrors: []string{"127.0.0.1:5000", "harbor.corp/proxy"}},
			"127.0.0.1:5000": {HTTP: true},
			"harbor.corp": {Insecure: true, CA: []string{"/etc/kiln/ca.pem", "/abs/ca.pem"}, Realms: []string{"auth.corp:5001"},
				CredentialHelper: "corp", KeyPairs: []KeyPair{{Key: "/etc/kiln/k.pem", Cert: "/abs/c.pem"}}},
		}}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"\n\n[registry.\"x\"]\nmirror = [\"y\"]\n":                               "kiln.toml:4: unknown key registry.x.mirror",
		"\n[limits]\npids = \"many\"\n":                                          "kiln.toml:3: limits.pids: want a whole number, not a TOML string",
		"root = 5\n":                                                             "kiln.toml:1: root: want a string, not a TOML integer",
		"[worker]\n":                                                             "kiln.toml:1: unknown key worker",
		"root = \n":                                                              "kiln.toml:1: ",
		"\n[registry.\"x\"]\nhttp = \"yes\"\n":                                   "kiln.toml:3: ",
		"[archive]\nmaxSize = \"much\"\n":                                        "archive.maxSize",
		"[history]\nmaxEntries = -1\n":                                           "history.maxEntries",
		"[history]\nmaxAge = \"old\"\n":                                          "kiln.toml:2: ",
		"[history]\nmaxAge = -1\n":                                               "is negative",
		"[archive]\nmaxEntries = -1\n":                                           "archive.maxEntries",
		"[registry.\"https://x\"]\n":                                             "want a registry's name",
		"[registry.\"x/y\"]\n":                                                   "want a registry's name",
		"[registry.\"x\"]\nmirrors = [\"https://y\"]\n":                          "without https://",
		"[registry.\"x\"]\nrealms = [\"y/z\"]\n":                                 "without https://",
		"[registry.\"docker.io\"]\n[registry.\"index.docker.io\"]\n":             "the same registry",
		"[registry.\"x\"]\n[[registry.\"x\".keypair]]\nkey = \"/k\"\n":           "both key and cert",
		"[registry.\"x\"]\nhttp = true\nhttp = true\n":                           "kiln.toml:3: ",
		"[registry.\"x\"]\ncredentialHelper = \"../x\"\n":                        "docker-credential-NAME",
		"[registry.\"*.x\"]\ncredentialHelper = \"x\"\nhttp = true\n":            "credentialHelper alone",
		"[registry.\"*.x:*\"]\n":                                                 "want a registry's name",
		"[registry.\"x\"]\n" + strings.Repeat("a.", 20000) + "b = 1\nhttp=1 1\n": "kiln.toml:",
	} {
		_, err := Parse("kiln.toml", []byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%.80q) = %.300v, want %q", text, err, want)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(dir, "xdg"))
	t.Setenv("KILN_CONFIG", "")
	if c, err := Load(); err != nil {
		t.Errorf("without a file: %v, %v", c, err)
	}
	write := func(path, root string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("root = '"+root+"'\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(dir, "xdg/kiln/kiln.toml"), "/xdg")
	if c, err := Load(); err != nil || c.Root != "/xdg" {
		t.Errorf("XDG_CONFIG_HOME: %+v, %v", c, err)
	}
	named := filepath.Join(dir, "other.toml")
	t.Setenv("KILN_CONFIG", named)
	if _, err := Load(); err == nil || !strings.Contains(err.Error(), named) {
		t.Errorf("$KILN_CONFIG that does not exist: %v", err)
	}
	write(named, "/named")
	if c, err := Load(); err != nil || c.Root != "/named" {
		t.Errorf("KILN_CONFIG: %+v, %v", c, err)
	}
	t.Setenv("KILN_CONFIG", "/dev/zero")
	if _, err := Load(); err == nil {
		t.Error("read /dev/zero")
	}
}

func TestCredentialHelper(t *testing.T) {
	r := Registries{
		"*.dkr.ecr.*.amazonaws.com": {CredentialHelper: "ecr"}, "gcr.io": {CredentialHelper: "gcr"}, "*-docker.pkg.dev": {CredentialHelper: "gcr"},
		"*.corp": {CredentialHelper: "short"}, "a*.corp": {CredentialHelper: "long"}, "ab.corp": {HTTP: true}, "abc.corp": {CredentialHelper: "own"},
	}
	for name, want := range map[string]string{
		"12.dkr.ecr.eu-west-1.amazonaws.com": "ecr", "dkr.ecr.eu-west-1.amazonaws.com": "", "12.dkr.ecr.a.b.amazonaws.com": "",
		"12.dkr.ecr.eu-west-1.amazonaws.com.evil.example": "", "evil.example.dkr.ecr.x.amazonaws.com": "", "gcr.io": "gcr", "eu.gcr.io": "",
		"europe-docker.pkg.dev": "gcr", "x.europe-docker.pkg.dev": "", "b.corp": "short", "a.corp": "long", "ab.corp": "long", "abc.corp": "own",
		"a.corp:5000": "", "docker.io": "",
	} {
		if got := r.CredentialHelper(name); got != want {
			t.Errorf("the helper of %s is %q, want %q", name, got, want)
		}
	}
}

func TestRootDir(t *testing.T) {
	t.Setenv("KILN_ROOT", "")
	c := &Config{}
	if os.Geteuid() == 0 {
		if dir, err := c.RootDir(""); err != nil || dir != "/var/lib/kiln" {
			t.Errorf("default: %s, %v", dir, err)
		}
	}
	c.Root = "/conf"
	if dir, err := c.RootDir(""); err != nil || dir != "/conf" {
		t.Errorf("kiln.toml: %s, %v", dir, err)
	}
	t.Setenv("KILN_ROOT", "/env")
	if dir, err := c.RootDir(""); err != nil || dir != "/env" {
		t.Errorf("KILN_ROOT: %s, %v", dir, err)
	}
	if dir, err := c.RootDir("/flag"); err != nil || dir != "/flag" {
		t.Errorf("--root: %s, %v", dir, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("[registry.\"docker.io\"]\nmirrors = [\"127.0.0.1:5000\"]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = Parse("/kiln.toml", data) // must not panic
	})
}
