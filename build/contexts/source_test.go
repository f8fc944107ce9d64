package contexts

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/reach"
	"golang.org/x/sys/unix"
)

func TestCheck(t *testing.T) {
	for value, want := range map[string]string{
		".": "dir", "/a:b": "dir", "-": "", "https://example.com/a.tar": "", "https://github.com/a/b.git#v1:sub": "", "git@github.com:a/b.git": "",
		"ftp://example.com/a": "not supported", "https://": "error",
	} {
		dir, err := Check(value)
		switch {
		case want == "dir" && (!dir || err != nil), want == "" && (dir || err != nil):
			t.Errorf("%s: %v, %v", value, dir, err)
		case want == "error" && err == nil, want == "not supported" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v", value, err)
		}
	}
}

// Paths become absolute, and what is no path of the client's stays.
func TestAbsolute(t *testing.T) {
	t.Chdir(t.TempDir())
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	s := Source{Context: "ctx", Dockerfile: "D", Named: map[string]string{
		"dir": "x", "layout": "oci-layout://l:tag", "image": "docker-image://debian", "git": "https://github.com/a/b.git",
	}}
	if err := s.Absolute(); err != nil {
		t.Fatal(err)
	}
	if s.Context != here+"/ctx" || s.Dockerfile != here+"/D" || s.Named["dir"] != here+"/x" || s.Named["layout"] != "oci-layout://"+here+"/l:tag" ||
		s.Named["image"] != "docker-image://debian" || s.Named["git"] != "https://github.com/a/b.git" {
		t.Errorf("%+v", s)
	}
	for _, s := range []Source{{Context: "-"}, {Context: "https://example.com/x.tar", Dockerfile: "sub/D"}, {Context: "/c", Dockerfile: "-"}} {
		was := s
		if err := s.Absolute(); err != nil || s.Context != was.Context || s.Dockerfile != was.Dockerfile {
			t.Errorf("%+v became %+v, %v", was, s, err)
		}
	}
}

// The project of a build has no credentials, and not the branch.
func TestProject(t *testing.T) {
	for value, want := range map[string]string{
		"/a/b": "/a/b", "https://user:secret@example.com/a.git#v1:sub": "https://xxxxx@example.com/a.git", "-": "-",
	} {
		if got := (&Source{Context: value}).Project(); got != want {
			t.Errorf("%s: %s", value, got)
		}
	}
}

// A Dockerfile from the client may name any host, and one from elsewhere none that is further in than where it came from.
func TestHostLimit(t *testing.T) {
	if (&Source{Context: "/ctx"}).HostLimit() != nil {
		t.Error("a Dockerfile of the client is limited")
	}
	s := &Source{Context: "https://127.0.0.1:1/x.tar", Named: map[string]string{"other": "https://10.0.0.1/y.tar"}}
	limit := s.HostLimit()
	if limit == nil {
		t.Fatal("a Dockerfile from elsewhere is not limited")
	}
	for host, want := range map[string]reach.Scope{"127.0.0.1": reach.Anywhere, "10.0.0.1": reach.Anywhere} {
		if got := limit(t.Context(), host); got != want {
			t.Errorf("%s, which the user named: %v", host, got)
		}
	}
	public := (&Source{Context: "https://192.0.2.1/x.tar"}).HostLimit()
	if got := public(t.Context(), "10.0.0.1"); got < reach.Private {
		t.Errorf("what came from a public address may name a private one: %v", got)
	}
}

func TestDockerfilePath(t *testing.T) {
	dir := t.TempDir()
	s := &Source{Context: dir}
	_, err := s.DockerfilePath()
	if _, ok := errors.AsType[*input.Error](err); !ok {
		t.Errorf("no Dockerfile: %v", err)
	}
	for _, name := range []string{"dockerfile", "Dockerfile"} { // the second comes before the first
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if path, err := s.DockerfilePath(); err != nil || path != filepath.Join(dir, name) {
			t.Errorf("%s, %v", path, err)
		}
	}
}

// Files of a context are read in it alone: what a link leads to outside is no error that quotes it.
func TestReadContextFile(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "ctx")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{top + "/secret": "secret", dir + "/file": "FROM scratch", dir + "/.dockerignore": "x\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"out": "../secret", "in": "file"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	if data, err := readContextFile(dir, dir+"/in", 100); err != nil || string(data) != "FROM scratch" {
		t.Errorf("a link within the context: %q, %v", data, err)
	}
	if data, err := readContextFile(dir, dir+"/out", 100); err == nil || !strings.Contains(err.Error(), "out of the context") {
		t.Errorf("a link out of it: %q, %v", data, err)
	}
	if data, err := readContextFile(dir, top+"/secret", 100); err != nil || string(data) != "secret" {
		t.Errorf("a file that the user named: %q, %v", data, err)
	}
	if _, err := readContextFile(dir, dir+"/fifo", 100); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a fifo: %v", err)
	}
	if _, err := readContextFile(dir, dir+"/file", 5); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("a file that is too large: %v", err)
	}
	m, err := readIgnore(t.Context(), dir, dir+"/D.dockerignore", dir+"/.dockerignore")
	if err != nil || m == nil || m.File != ".dockerignore" {
		t.Errorf("the ignore file: %+v, %v", m, err)
	}
	if m, err := readIgnore(t.Context(), dir, dir+"/none"); m != nil || err != nil {
		t.Errorf("no ignore file: %+v, %v", m, err)
	}
}

// A read of standard input, which nobody writes to, ends with the context.
func TestUntil(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	cancel(cause)
	if _, err := until(ctx, r).Read(make([]byte, 1)); !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
	in := &bounded{r: strings.NewReader("abc"), left: 2}
	if _, err := in.Read(make([]byte, 3)); err == nil {
		t.Error("more than the limit is read")
	}
}
