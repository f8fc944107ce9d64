//go:build e2e

package e2e

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Dockerfiles after the patterns that many projects follow, from bases with the names that these have there. Each image
// does what it is for, by its own configuration, and a second build finds everything cached.
func TestCorpus(t *testing.T) {
	bases := map[string]string{"debian:bookworm-slim": debian}
	for name, dir := range map[string]string{"node:18": "node", "golang:1.19": "golang"} {
		bases[name] = registry + "/" + name
		openCorpus(t, "images/"+dir, bases, "-t", bases[name], "--push").build()
	}

	t.Run("node-npm-multistage", func(t *testing.T) {
		npmrc := filepath.Join(t.TempDir(), "npmrc")
		// A machine without npm, or one that has no opinion, leaves the choice to the npm in the image.
		var settings string
		if out, err := exec.Command("npm", "config", "get", "registry").Output(); err == nil {
			settings = "registry=" + string(out)
		}
		if err := os.WriteFile(npmrc, []byte(settings), 0o600); err != nil {
			t.Fatal(err)
		}
		p := openCorpus(t, "node-npm-multistage", bases, "-t", "corpus/node:latest", "--secret", "id=npmrc,src="+npmrc)
		p.run("--target", "test").wantRan("WORKDIR", "COPY package.json", "RUN --mount=type=cache", "COPY . .", "RUN npm run", "RUN npm test")
		first := p.build()
		first.wantRan("COPY --from=build", "COPY --from=deps")
		p.build().wantAllCached(first)
		c := unpackImage(t, "corpus/node:latest")
		if got := c.run("node", "dist/server.js", "--check"); got != "0007 BUILT" {
			t.Errorf("the server printed %q", got)
		}
		if c.Process.User.UID != 1000 || c.Process.Cwd != "/app" {
			t.Errorf("the server's process is %+v", c.Process)
		}
		c.wantNone("/root/.npmrc", "/run/secrets", "/app/src", "/app/npm-debug.log")
	})

	t.Run("nginx-spa", func(t *testing.T) {
		p := openCorpus(t, "nginx-spa", bases, "-t", "corpus/nginx:latest")
		p.run("--target", "test")
		first := p.build("--build-arg", "TITLE=Hello there")
		first.wantRan("RUN TITLE", "COPY --from=build", "RUN nginx -t")
		p.build("--build-arg", "TITLE=Hello there").wantAllCached(first)
		c := unpackImage(t, "corpus/nginx:latest")
		if got := c.run("cat", "/usr/share/nginx/html/index.html"); !strings.Contains(got, "<title>Hello there</title>\n") {
			t.Errorf("index.html holds %q", got)
		}
		if got := c.run("readlink", "/var/log/nginx/access.log"); got != "/dev/stdout" {
			t.Errorf("what nginx logs goes to %q", got)
		}
		p.edit("site/index.html", "of one page", "of a single page")
		p.build("--build-arg", "TITLE=Hello there").wantRan("COPY site", "RUN TITLE", "COPY --from=build", "RUN nginx -t")
	})

	t.Run("go-scratch-certs", func(t *testing.T) {
		t.Setenv("E2E_GOPROXY", command(t, "go", "env", "GOPROXY"))
		t.Setenv("E2E_GOSUMDB", command(t, "go", "env", "GOSUMDB"))
		p := openCorpus(t, "go-scratch-certs", bases, "-t", "corpus/go:latest", "--secret", "id=proxy,env=E2E_GOPROXY", "--secret", "id=sumdb,env=E2E_GOSUMDB")
		first := p.build()
		p.build().wantAllCached(first)
		c := unpackImage(t, "corpus/go:latest")
		if got := c.run(); got != "appuser: Don't communicate by sharing memory, share memory by communicating." {
			t.Errorf("the program printed %q", got)
		}
		p.edit("main_test.go", "nothing is said", "it said nothing")
		p.build().wantSame(first) // the program's bytes are the same
	})

	t.Run("go-monorepo", func(t *testing.T) {
		shared := openCorpus(t, "go-monorepo-shared", nil)
		p := openCorpus(t, "go-monorepo", bases, "--build-context", "shared="+shared.dir)
		services := []string{"api", "worker"}
		first := map[string]*result{}
		for _, s := range services {
			first[s] = p.build("--target", s, "-t", "corpus/"+s+":latest")
			if got, want := unpackImage(t, "corpus/"+s+":latest").run(), "greetings from the "+s; got != want {
				t.Errorf("the service printed %q, and should print %q", got, want)
			}
		}
		for _, s := range services {
			p.build("--target", s, "-t", "corpus/"+s+":latest").wantAllCached(first[s])
		}
		p.edit("services/worker/main.go", `"worker"`, `"busy worker"`)
		p.build("--target", "api").wantAllCached(first["api"])
		p.build("--target", "worker").wantRan("COPY services/worker", "RUN", "COPY --from=build-worker")
		shared.edit("shared.go", "greetings", "regards")
		p.build("--target", "api").wantRan("COPY --from=shared", "RUN", "COPY --from=build-api")
	})

	t.Run("python-pip", func(t *testing.T) {
		p := openCorpus(t, "python-pip", bases, "-t", "corpus/python:latest")
		first := p.build()
		p.build().wantAllCached(first)
		c := unpackImage(t, "corpus/python:latest")
		if got := c.run("pages", "a & b"); got != "<p>a &amp; b</p>" {
			t.Errorf("the program printed %q", got)
		}
		if c.Process.User.UID != 999 {
			t.Errorf("the program's process is %+v", c.Process)
		}
		c.wantNone("/root/.cache/pip", "/src", "/usr/bin/pip3")
	})

	t.Run("php-cli", func(t *testing.T) {
		p := openCorpus(t, "php-cli", bases, "-t", "corpus/php:latest")
		first := p.build()
		p.build().wantAllCached(first)
		c := unpackImage(t, "corpus/php:latest")
		if got := c.run("php", "index.php"); got != "2 visitors, 64M" {
			t.Errorf("the page is %q", got)
		}
		c.wantNone("/var/www/html/README.md", "/var/www/html/lib/index_test.php")
		p.edit("lib/index_test.php", "not PHP", "not PHP either")
		p.build().wantAllCached(first)
	})

	t.Run("ruby-gem", func(t *testing.T) {
		p := openCorpus(t, "ruby-gem", bases, "-t", "corpus/ruby:latest")
		first := p.build()
		p.build().wantAllCached(first)
		c := unpackImage(t, "corpus/ruby:latest")
		if got := c.run("counter", "banana"); got != "a=3 b=1 n=2" {
			t.Errorf("the program printed %q", got)
		}
		c.wantNone("/test", "/gem")
	})

	t.Run("c-from-source", func(t *testing.T) {
		p := openCorpus(t, "c-from-source", bases, "-t", "corpus/c:latest")
		command(t, "tar", "-C", p.dir, "-czf", filepath.Join(p.dir, "zsum-1.0.tar.gz"), "zsum-1.0")
		first := p.build()
		p.build().wantAllCached(first)
		if got := unpackImage(t, "corpus/c:latest").run("zsum"); got != "00000000" {
			t.Errorf("the sum of nothing is %q", got)
		}
		p.build("--build-arg", "CFLAGS=-O0").wantRan("RUN make", "COPY --from=build", "RUN ldd")
	})

	t.Run("heredocs", func(t *testing.T) {
		p := openCorpus(t, "heredocs", bases, "-t", "corpus/heredocs:latest")
		first := p.build("--build-arg", "GREETING=good day")
		p.build("--build-arg", "GREETING=good day").wantAllCached(first)
		c := unpackImage(t, "corpus/heredocs:latest")
		if got := c.run(); got != "goodbye, world\nSEVERAL\nLINES" {
			t.Errorf("the entrypoint printed %q", got)
		}
		for name, want := range map[string]string{
			"/etc/app/one": "greeting=good day", "/etc/app/two": "name=WORLD", "/srv/b/index": "b of good day",
			"/srv/perl": "1,4,9,16,25", "/srv/shebang": "perl", "/srv/lines": "2", "/srv/both": "first\nsecond",
		} {
			if got := c.run("cat", name); got != want {
				t.Errorf("%s holds %q, and should %q", name, got, want)
			}
		}
	})

	t.Run("onbuild", func(t *testing.T) {
		base := registry + "/make-app:1"
		openCorpus(t, "onbuild-base", bases, "-t", base, "--push").build()
		bases := maps.Clone(bases)
		bases["make-app:1"] = base
		p := openCorpus(t, "onbuild", bases, "-t", "corpus/onbuild:latest")
		// The user of the base's last trigger may not write into a directory of root's.
		if _, log, err := p.try(); err == nil || !strings.Contains(log, "Permission denied") {
			t.Errorf("a step of the user nobody wrote into a directory of root's: %v\n%s", err, log)
		}
		p.edit("Dockerfile", "> extra", "> /tmp/extra")
		first := p.build("--build-arg", "EXTRA=more")
		p.build("--build-arg", "EXTRA=more").wantAllCached(first)
		c := unpackImage(t, "corpus/onbuild:latest")
		if got := c.run(); got != "stressed" {
			t.Errorf("the answer is %q", got)
		}
		if got := c.run("stat", "--format=%U", "question"); got != "nobody" {
			t.Errorf("the question is %s's", got)
		}
		c.wantNone("/tmp/scratch")
	})

	t.Run("secrets-ssh", func(t *testing.T) {
		const token = "a token that nobody may see"
		t.Setenv("E2E_TOKEN", token)
		dir := t.TempDir()
		command(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "a key", "-f", dir+"/key")
		public, err := os.ReadFile(dir + "/key.pub")
		if err != nil {
			t.Fatal(err)
		}
		p := openCorpus(t, "secrets-ssh", bases, "-t", "corpus/secrets:latest", "--secret", "id=token,env=E2E_TOKEN", "--ssh", "default="+startAgent(t, dir+"/key"))
		first := p.build()
		p.build().wantAllCached(first)
		c := unpackImage(t, "corpus/secrets:latest")
		for name, want := range map[string]string{
			"keys": strings.TrimSpace(string(public)), "modes": "440 0:33\n400 0:0",
			"sum": strings.Fields(command(t, "sh", "-c", `printf %s "$E2E_TOKEN" | sha256sum`))[0],
		} {
			if got := c.run("cat", "/fetched/"+name); got != want {
				t.Errorf("/fetched/%s holds %q, and should %q", name, got, want)
			}
		}
		if out, err := exec.Command("grep", "--recursive", "--devices=skip", "--files-with-matches", "--fixed-strings", token, os.Getenv("KILN_ROOT")).Output(); err == nil {
			t.Errorf("the secret is in the store:\n%s", out)
		}
	})
}

// startAgent starts an ssh-agent that has one key, and returns its socket.
func startAgent(t *testing.T, key string) (socket string) {
	t.Helper()
	// Paths of sockets may not be as long as those of t.TempDir are.
	dir, err := os.MkdirTemp("", "agent-")
	if err != nil {
		t.Fatal(err)
	}
	socket = dir + "/socket"
	cmd := exec.Command("ssh-agent", "-D", "-a", socket)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("SSH_AUTH_SOCK", socket)
	for range 6000 { // five minutes
		if _, err := os.Stat(socket); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	command(t, "ssh-add", "-q", key)
	return socket
}

// openCorpus opens a directory of testdata/corpus; bases are the images that its Dockerfile names.
func openCorpus(t *testing.T, name string, bases map[string]string, args ...string) *project {
	t.Helper()
	for _, base := range slices.Sorted(maps.Keys(bases)) {
		args = append(args, "--build-context", base+"=docker-image://"+bases[base])
	}
	return open(t, filepath.Join("corpus", name), args...)
}

// container is an image that is unpacked, with what its configuration makes of it.
type container struct {
	t      *testing.T
	rootfs string

	Process struct {
		User struct{ UID, GID uint32 }
		Args []string
		Env  []string
		Cwd  string
	}
}

// unpackImage unpacks an image of the store.
func unpackImage(t *testing.T, name string) *container {
	t.Helper()
	c := &container{t: t, rootfs: unpack(t, "oci:"+os.Getenv("KILN_ROOT")+":docker.io/"+name)}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(c.rootfs), "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, c); err != nil {
		t.Fatal(err)
	}
	return c
}

// run runs a program in the image as the image says, by default the one that the image names, and returns what it prints.
func (c *container) run(args ...string) string {
	c.t.Helper()
	if len(args) == 0 {
		args = c.Process.Args
	}
	cmd := &exec.Cmd{
		Path: args[0], Args: args, Env: c.Process.Env, Dir: c.Process.Cwd,
		SysProcAttr: &syscall.SysProcAttr{Chroot: c.rootfs, Credential: &syscall.Credential{Uid: c.Process.User.UID, Gid: c.Process.User.GID}},
	}
	for _, kv := range c.Process.Env {
		if list, ok := strings.CutPrefix(kv, "PATH="); ok && !strings.Contains(args[0], "/") {
			for _, dir := range filepath.SplitList(list) {
				if _, err := os.Lstat(filepath.Join(c.rootfs, dir, args[0])); err == nil {
					cmd.Path = filepath.Join(dir, args[0])
					break
				}
			}
		}
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		c.t.Errorf("%s in the image: %v\n%s%s", strings.Join(args, " "), err, out, &stderr)
	}
	return strings.TrimSuffix(string(out), "\n")
}

// wantNone says what the image must not have.
func (c *container) wantNone(names ...string) {
	c.t.Helper()
	for _, name := range names {
		if _, err := os.Lstat(filepath.Join(c.rootfs, name)); err == nil {
			c.t.Errorf("the image has %s", name)
		}
	}
}
