package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// cache is the directory in which everything is made once.
type cache struct {
	top  string
	made string // what belongs to this version of BuildKit and of Go
}

// openCache opens $KILN_SUITES.
func openCache() (cache, error) {
	top := os.Getenv("KILN_SUITES")
	if top == "" || source() == "" {
		return cache{}, fmt.Errorf("start test/buildkit/run, which sets $KILN_SUITES and $KILN_SUITES_SOURCE")
	}
	hash := sha256.New()
	fmt.Fprintln(hash, runtime.Version())
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(source(), name))
		if err != nil {
			return cache{}, err
		}
		hash.Write(data)
	}
	c := cache{top: top, made: filepath.Join(top, fmt.Sprintf("%x", hash.Sum(nil)[:6]))}
	return c, os.MkdirAll(filepath.Join(c.made, "bin"), 0o755)
}

// binaries says how go makes each binary, without the output.
var binaries = map[string][]string{
	"buildctl": {"build", "-trimpath", "github.com/moby/buildkit/cmd/buildctl"},
	"dockerfile-frontend": {"build", "-trimpath", "-tags=netgo,osusergo",
		"github.com/moby/buildkit/frontend/dockerfile/cmd/dockerfile-frontend"},
	"buildkitd":       {"build", "-trimpath", "-tags=netgo,osusergo,seccomp", "github.com/moby/buildkit/cmd/buildkitd"},
	"dockerfile.test": {"test", "-c", "github.com/moby/buildkit/frontend/dockerfile"},
	"client.test":     {"test", "-c", "github.com/moby/buildkit/client"},
}

// binary returns the path of a binary of BuildKit, which is built if that has not been done.
func (c cache) binary(ctx context.Context, name string) (string, error) {
	path := filepath.Join(c.made, "bin", name)
	return path, c.once(name, path, func(tmp string) error {
		args := append([]string{binaries[name][0], "-o", tmp}, binaries[name][1:]...)
		return command(ctx, source(), []string{"CGO_ENABLED=0"}, "go", args...)
	})
}

// frontend returns the path of the archive of an image with BuildKit's Dockerfile front end.
func (c cache) frontend(ctx context.Context) (string, error) {
	binary, err := c.binary(ctx, "dockerfile-frontend")
	if err != nil {
		return "", err
	}
	path := filepath.Join(c.made, "frontend.tar")
	return path, c.once("frontend", path, func(tmp string) error {
		kiln, err := c.kiln(ctx, "kiln")
		if err != nil {
			return err
		}
		dir, err := os.MkdirTemp(c.top, "frontend-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if err := os.Link(binary, filepath.Join(dir, "dockerfile-frontend")); err != nil {
			return err
		}
		return command(ctx, dir, kilnEnv(dir), kiln, "build", "--quiet", "-f", filepath.Join(source(), "images/frontend.Dockerfile"),
			"--output", "type=oci,dest="+tmp, dir)
	})
}

// kiln builds cmd/kiln or cmd/kilnd of this checkout. Those of different checkouts do not replace each other.
func (c cache) kiln(ctx context.Context, name string) (string, error) {
	checkout := filepath.Join(source(), "../..")
	path := filepath.Join(c.top, fmt.Sprintf("%s-%x", name, sha256.Sum256([]byte(checkout)))[:len(name)+9])
	unlock, err := c.lock(filepath.Base(path))
	if err != nil {
		return "", err
	}
	defer unlock()
	return path, command(ctx, checkout, []string{"CGO_ENABLED=0"}, "go", "build", "-trimpath", "-o", path, "./cmd/"+name)
}

// kilnEnv makes kiln use nothing of the user's: neither its root directory nor its settings.
func kilnEnv(dir string) []string {
	return []string{"KILN_ROOT=" + filepath.Join(dir, "root"), "KILN_CONFIG=/dev/null", "DOCKER_CONFIG=" + dir}
}

// once makes path by writing tmp if it does not exist. Of several processes one does it, and the others wait.
func (c cache) once(name, path string, make func(tmp string) error) error {
	unlock, err := c.lock(filepath.Base(c.made) + "-" + name)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	fmt.Fprintf(os.Stderr, "making %s\n", path)
	tmp := path + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := make(tmp); err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	return os.Rename(tmp, path)
}

// lock takes the lock of a name until unlock is called or the process ends.
func (c cache) lock(name string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(c.top, "lock-"+name), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

// command runs a program in dir with further variables, and returns what it printed if it fails.
func command(ctx context.Context, dir string, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
