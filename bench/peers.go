package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// job is one build, or several at once.
type job struct {
	dir         string
	dockerfiles []string
	noCache     bool
	cold        bool     // the builder has nothing of earlier builds
	dest        string   // a tar of an OCI layout; "" for an image in the builder's own store
	push        string   // a name in the registry to push to, or ""
	buildArgs   []string // NAME=VALUE
	secrets     []string // id=ID,src=FILE
	contexts    []string // NAME=DIRECTORY; for kiln alone
	imports     string   // a name in the registry of the cache to read, or ""
	exports     string   // one of the cache to write, of all steps
}

// peer is a builder.
type peer interface {
	name() string
	version() string
	build(job) (usage, error)
	// forget empties its store.
	forget() error
	stop()
}

// peerNames are all that kiln can be compared with.
var peerNames = []string{"buildkit", kilndName, "buildah", "docker", "docker-legacy"}

func startPeer(e *env, name string) (peer, error) {
	switch name {
	case kilndName:
		return newKilnd(e, filepath.Join(e.tmp, kilndName), e.reg.host)
	case "buildkit":
		return newBuildkit(e, filepath.Join(e.tmp, "buildkit"), e.reg.host)
	case "buildah":
		return newBuildah(e)
	}
	return newDocker(e, name == "docker")
}

// firstLine returns the first line that a command prints.
func firstLine(args ...string) string {
	out, _ := exec.Command(args[0], args[1:]...).Output()
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

// beforeName is the name of the other kiln in the tables.
const beforeName = "before"

// kilnPeer is one kiln: that of this source, or another version of it.
type kilnPeer struct {
	e       *env
	label   string
	program string
	root    string
	prefix  []string // the command that executes the program, if there is one
}

// newKiln returns a kiln that reaches these registries without TLS.
func newKiln(e *env, label, program string, registries ...string) (*kilnPeer, error) {
	config := filepath.Join(e.tmp, "kiln.toml")
	err := os.WriteFile(config, []byte(withoutTLS(registries)), 0o600)
	return &kilnPeer{e: e, label: label, program: program, root: filepath.Join(e.tmp, label+"-root")}, err
}

// withoutTLS returns the settings of registries, which are the same in kiln.toml and in buildkitd.toml.
func withoutTLS(registries []string) string {
	text := ""
	for _, host := range registries {
		text += fmt.Sprintf("[registry.%q]\nhttp = true\n", host)
	}
	return text
}

func (k *kilnPeer) name() string    { return k.label }
func (k *kilnPeer) version() string { return firstLine(k.program, "--version") }
func (k *kilnPeer) forget() error   { return os.RemoveAll(k.root) }
func (k *kilnPeer) restart() error  { return k.forget() }
func (k *kilnPeer) stop()           {}

func (k *kilnPeer) build(j job) (usage, error) {
	return together(len(j.dockerfiles), func(i int) (usage, error) {
		args := append(slices.Clone(k.prefix), k.program, "build", "--progress=plain", "-f", j.dockerfiles[i])
		if j.noCache {
			args = append(args, "--no-cache")
		}
		for flag, values := range map[string][]string{"--build-arg": j.buildArgs, "--secret": j.secrets, "--build-context": j.contexts} {
			for _, value := range values {
				args = append(args, flag, value)
			}
		}
		if j.imports != "" {
			args = append(args, "--cache-from", "type=registry,ref="+j.imports)
		}
		if j.exports != "" {
			args = append(args, "--cache-to", "type=registry,mode=max,ref="+j.exports)
		}
		switch {
		case j.dest != "":
			args = append(args, "-o", "type=oci,dest="+j.dest)
		case j.push != "":
			args = append(args, "--push", "-t", j.push)
		default:
			args = append(args, "-t", fmt.Sprintf("bench%d", i))
		}
		return execute(k.e.ctx, []string{"KILN_ROOT=" + k.root, "KILN_CONFIG=" + filepath.Join(k.e.tmp, "kiln.toml")}, append(args, j.dir)...)
	})
}

// daemon is a server of a builder that this program started.
type daemon struct {
	cmd *exec.Cmd
	log string
}

// startDaemon starts a server and waits until the command ready succeeds.
func startDaemon(e *env, name string, ready []string, args ...string) (*daemon, error) {
	d := &daemon{cmd: exec.Command(args[0], args[1:]...), log: filepath.Join(e.tmp, name+".log")}
	f, err := os.Create(d.log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	d.cmd.Stdout, d.cmd.Stderr = f, f
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	for range 200 {
		if exec.CommandContext(e.ctx, ready[0], ready[1:]...).Run() == nil {
			return d, nil
		}
		if e.ctx.Err() != nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	d.stop()
	text, _ := os.ReadFile(d.log)
	if len(text) > 1000 {
		text = text[len(text)-1000:]
	}
	return nil, fmt.Errorf("%s does not answer: %s", args[0], text)
}

func (d *daemon) stop() {
	if d == nil {
		return // it did not start
	}
	d.cmd.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(20*time.Second, func() { d.cmd.Process.Kill() })
	d.cmd.Wait()
	kill.Stop()
}

// measured does what f does, and gives it the daemon's memory.
func (d *daemon) measured(f func() (usage, error)) (usage, error) {
	resetPeak(d.cmd.Process.Pid)
	u, err := f()
	u.rss = peak(d.cmd.Process.Pid)
	u.cpu = 0 // of the client alone, it would mislead
	return u, err
}

// kilndName is the peer that is kiln itself, by kilnd and buildctl.
const kilndName = "kilnd"

// buildkit is a server of BuildKit's API: BuildKit, or kilnd.
type buildkit struct {
	e *env
	// label is its name, and server the command that starts it.
	label  string
	server []string
	dir    string
	config string
	addr   string
	*daemon
}

// newBuildkit starts a daemon with this root directory, which reaches these registries without TLS.
func newBuildkit(e *env, dir string, registries ...string) (*buildkit, error) {
	return newServer(e, "buildkit", dir, registries, "buildkitd", "--oci-worker-net=host")
}

// newKilnd is newBuildkit for a kilnd that it builds from this source.
func newKilnd(e *env, dir string, registries ...string) (*buildkit, error) {
	program := filepath.Join(e.tmp, "kilnd-program")
	cmd := exec.CommandContext(e.ctx, "go", "build", "-trimpath", "-o", program, "./cmd/kilnd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build kilnd (run from the top of the source): %w\n%s", err, out)
	}
	return newServer(e, kilndName, dir, registries, program)
}

// newServer starts a server with a command that takes --config.
func newServer(e *env, label, dir string, registries []string, server ...string) (*buildkit, error) {
	for _, name := range []string{"buildctl", server[0]} {
		if _, err := exec.LookPath(name); err != nil {
			return nil, fmt.Errorf("there is no %s in $PATH", name)
		}
	}
	b := &buildkit{e: e, label: label, server: server, dir: dir, config: dir + ".toml", addr: "unix://" + dir + ".sock"}
	// Nothing is collected while it is measured.
	text := fmt.Sprintf("root = %q\n[grpc]\naddress = [%q]\n[worker.oci]\ngc = false\n[worker.containerd]\nenabled = false\n", dir, b.addr)
	if err := os.WriteFile(b.config, []byte(text+withoutTLS(registries)), 0o600); err != nil {
		return nil, err
	}
	return b, b.start()
}

func (b *buildkit) start() (err error) {
	b.daemon, err = startDaemon(b.e, b.label, []string{"buildctl", "--addr", b.addr, "debug", "workers"},
		append(slices.Clone(b.server), "--config", b.config)...)
	return err
}

// restart starts the daemon anew, with an empty root directory.
func (b *buildkit) restart() error {
	b.stop()
	if err := removeAll(b.dir); err != nil {
		return err
	}
	return b.start()
}

func (b *buildkit) name() string    { return b.label }
func (b *buildkit) version() string { return firstLine(b.server[0], "--version") }

func (b *buildkit) forget() error {
	_, err := execute(b.e.ctx, nil, "buildctl", "--addr", b.addr, "prune", "--all")
	return err
}

func (b *buildkit) build(j job) (usage, error) {
	return b.measured(func() (usage, error) {
		return together(len(j.dockerfiles), func(i int) (usage, error) {
			dir, file := filepath.Split(j.dockerfiles[i])
			args := []string{"buildctl", "--addr", b.addr, "build", "--progress=plain", "--frontend=dockerfile.v0",
				"--local", "context=" + j.dir, "--local", "dockerfile=" + dir, "--opt", "filename=" + file}
			if j.noCache {
				args = append(args, "--no-cache")
			}
			for _, arg := range j.buildArgs {
				args = append(args, "--opt", "build-arg:"+arg)
			}
			for _, secret := range j.secrets {
				args = append(args, "--secret", secret)
			}
			if j.imports != "" {
				args = append(args, "--import-cache", "type=registry,ref="+j.imports)
			}
			if j.exports != "" {
				args = append(args, "--export-cache", "type=registry,mode=max,ref="+j.exports)
			}
			switch {
			case j.dest != "":
				args = append(args, "--output", "type=oci,dest="+j.dest)
			case j.push != "":
				args = append(args, "--output", "type=image,push=true,name="+j.push)
			default:
				args = append(args, "--output", fmt.Sprintf("type=image,name=bench%d", i))
			}
			return execute(b.e.ctx, nil, args...)
		})
	})
}

type buildah struct {
	e       *env
	args    []string
	runtime string
}

func newBuildah(e *env) (peer, error) {
	if _, err := exec.LookPath("buildah"); err != nil {
		return nil, err
	}
	policy := filepath.Join(e.tmp, "policy.json")
	if err := os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
		return nil, err
	}
	dir := filepath.Join(e.tmp, "buildah")
	b := &buildah{e: e, args: []string{"buildah", "--root", dir, "--runroot", dir + "-run", "--storage-driver", "overlay"}}
	// The other peers use runc too.
	if path, err := exec.LookPath("runc"); err == nil {
		b.runtime = "--runtime=" + path
	}
	return b, nil
}

func (b *buildah) name() string    { return "buildah" }
func (b *buildah) version() string { return firstLine("buildah", "--version") }

func (b *buildah) run(args ...string) (usage, error) {
	return execute(b.e.ctx, nil, append(append([]string{}, b.args...), args...)...)
}

func (b *buildah) forget() error {
	_, err := b.run("rmi", "--all", "--force")
	return err
}

func (b *buildah) stop() {
	b.e.ctx = context.WithoutCancel(b.e.ctx)
	_, _ = b.run("rm", "--all")
	_ = b.forget()
}

func (b *buildah) build(j job) (usage, error) {
	policy := "--signature-policy=" + filepath.Join(b.e.tmp, "policy.json")
	return together(len(j.dockerfiles), func(i int) (usage, error) {
		name := fmt.Sprintf("bench%d", i)
		args := []string{"build", policy, "--tls-verify=false", "--layers", "--network=host", "-f", j.dockerfiles[i], "-t", name}
		if b.runtime != "" {
			args = append(args, b.runtime)
		}
		if j.noCache {
			args = append(args, "--no-cache")
		}
		for _, arg := range j.buildArgs {
			args = append(args, "--build-arg", arg)
		}
		u, err := b.run(append(args, j.dir)...)
		if err != nil {
			return u, err
		}
		switch {
		case j.dest != "":
			return b.then(u, "push", policy, name, "oci-archive:"+j.dest)
		case j.push != "":
			return b.then(u, "push", policy, "--tls-verify=false", name, "docker://"+j.push)
		}
		return u, nil
	})
}

// then adds a further command to what was measured.
func (b *buildah) then(u usage, args ...string) (usage, error) {
	more, err := b.run(args...)
	return usage{wall: u.wall + more.wall, cpu: u.cpu + more.cpu, rss: max(u.rss, more.rss)}, err
}

type docker struct {
	e        *env
	buildkit bool
	host     string
	*daemon
}

func newDocker(e *env, withBuildkit bool) (peer, error) {
	for _, name := range []string{"docker", "dockerd"} {
		if _, err := exec.LookPath(name); err != nil {
			return nil, fmt.Errorf("there is no %s in $PATH", name)
		}
	}
	d := &docker{e: e, buildkit: withBuildkit}
	dir := filepath.Join(e.tmp, d.name())
	d.host = "unix://" + dir + ".sock"
	var err error
	d.daemon, err = startDaemon(e, d.name(), []string{"docker", "-H", d.host, "version"},
		"dockerd", "--data-root", dir, "--exec-root", dir+"-exec",
		"--pidfile", dir+".pid", "-H", d.host, "--bridge=none", "--iptables=false")
	return d, err
}

func (d *docker) name() string {
	if d.buildkit {
		return "docker"
	}
	return "docker-legacy"
}

func (d *docker) version() string {
	return firstLine("docker", "--version") + "; " + firstLine("dockerd", "--version")
}

func (d *docker) forget() error {
	_, err := execute(d.e.ctx, nil, "docker", "-H", d.host, "system", "prune", "--all", "--force")
	return err
}

func (d *docker) build(j job) (usage, error) {
	if j.dest != "" {
		return usage{}, fmt.Errorf("it writes no OCI layouts")
	}
	environ := []string{"DOCKER_BUILDKIT=0"}
	if d.buildkit {
		environ = []string{"DOCKER_BUILDKIT=1"}
	}
	return d.measured(func() (usage, error) {
		return together(len(j.dockerfiles), func(i int) (usage, error) {
			name := j.push
			if name == "" {
				name = fmt.Sprintf("bench%d", i)
			}
			args := []string{"docker", "-H", d.host, "build", "--network=host", "-f", j.dockerfiles[i], "-t", name}
			if j.noCache {
				args = append(args, "--no-cache")
			}
			for _, arg := range j.buildArgs {
				args = append(args, "--build-arg", arg)
			}
			u, err := execute(d.e.ctx, environ, append(args, j.dir)...)
			if err == nil && j.push != "" {
				var more usage
				more, err = execute(d.e.ctx, environ, "docker", "-H", d.host, "push", name)
				u.wall += more.wall
			}
			return u, err
		})
	})
}
