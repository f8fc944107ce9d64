//go:build e2e

package e2e

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
)

// startKilnd starts a kilnd of its own and returns the address of its socket.
func startKilnd(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kilnd-") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "sock")
	cmd := exec.Command(filepath.Join(filepath.Dir(kilnPath), "kilnd"), "--root", filepath.Join(dir, "root"), "--addr", "unix://"+socket)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		<-ended
		if t.Failed() {
			t.Logf("kilnd: %s", &said)
		}
	})
	for {
		if _, err := os.Stat(socket); err == nil {
			return "unix://" + socket
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("kilnd: %v\n%s", err, &said)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Docker's clients drive kilnd: buildx with its remote driver, bake with definitions and compose files, compose, and BuildKit's own
// buildctl.
func TestClients(t *testing.T) {
	address := startKilnd(t)
	buildx := filepath.Join(os.Getenv("TOOLS"), "buildx")
	t.Setenv("BUILDX_CONFIG", t.TempDir())
	t.Setenv("BUILDX_BUILDER", "kiln")
	command(t, buildx, "create", "--name", "kiln", "--driver", "remote", address)
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) string {
		t.Helper()
		data, err := os.ReadFile(name)
		if err != nil {
			t.Error(err)
		}
		return string(data)
	}
	write("Dockerfile", "FROM "+debian+" AS base\nARG WHO=nobody\n"+
		"RUN --mount=type=secret,id=word cat /run/secrets/word > /made && echo $WHO >> /made\n"+
		"FROM scratch\nCOPY --from=base /made /\n")
	write("word", "hello ")

	t.Run("inspect", func(t *testing.T) {
		out := command(t, buildx, "inspect")
		if !strings.Contains(out, "running") || !strings.Contains(out, "linux/amd64") && !strings.Contains(out, "linux/arm64") {
			t.Errorf("buildx inspect prints %s", out)
		}
	})
	t.Run("build", func(t *testing.T) {
		out, metadata := filepath.Join(t.TempDir(), "out"), filepath.Join(t.TempDir(), "metadata")
		command(t, buildx, "build", "--build-arg", "WHO=you", "--secret", "id=word,src="+filepath.Join(dir, "word"), "-o", out,
			"--metadata-file", metadata, dir)
		if got := read(filepath.Join(out, "made")); got != "hello you\n" {
			t.Errorf("/made holds %q", got)
		}
		if got := read(metadata); !strings.Contains(got, "buildx.build.ref") {
			t.Errorf("the metadata is %s", got)
		}
	})
	t.Run("push", func(t *testing.T) {
		name := registry + "/client:v1"
		command(t, buildx, "build", "--push", "-t", name, "--provenance=mode=max", "--secret", "id=word,src="+filepath.Join(dir, "word"), dir)
		text := command(t, buildx, "imagetools", "inspect", "--format", "{{json .Provenance}}", name)
		if !strings.Contains(text, "llbDefinition") || !strings.Contains(text, "pkg:docker/"+registry+"/debian@bookworm") {
			t.Errorf("the provenance is %s", text)
		}
	})
	t.Run("load", func(t *testing.T) {
		t.Setenv("DOCKER_HOST", startDocker(t))
		write("Loaded", "FROM "+debian+"\nRUN echo loaded > /made\n")
		command(t, buildx, "build", "--load", "-t", "client:loaded", "-f", filepath.Join(dir, "Loaded"), dir)
		if got := command(t, "docker", "run", "--rm", "--network=none", "client:loaded", "cat", "/made"); got != "loaded" {
			t.Errorf("in a container /made holds %q", got)
		}
	})
	t.Run("failure", func(t *testing.T) {
		write("Failing", "FROM "+debian+"\nRUN echo before\nRUN exit 7\n")
		out, err := exec.Command(buildx, "build", "--progress=plain", "-f", filepath.Join(dir, "Failing"), dir).CombinedOutput()
		if err == nil || !strings.Contains(string(out), ">>> RUN exit 7") || !strings.Contains(string(out), "exit code: 7") {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("bake", func(t *testing.T) {
		write("docker-bake.hcl", `
variable "WHO" { default = "baked" }
target "default" {
  args = { WHO = WHO }
  secret = ["id=word,src=word"]
  output = ["type=local,dest=out-bake"]
}
`)
		write("compose.yaml", "services:\n  app:\n    build:\n      context: .\n      args: {WHO: composed}\n")
		cmd := exec.Command(buildx, "bake", "-f", "docker-bake.hcl")
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if got := read(filepath.Join(dir, "out-bake/made")); got != "hello baked\n" {
			t.Errorf("bake made %q", got)
		}
		cmd = exec.Command(buildx, "bake", "-f", "compose.yaml", "--set", "app.secrets=id=word,src=word",
			"--set", "app.output=type=local,dest=out-compose")
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if got := read(filepath.Join(dir, "out-compose/made")); got != "hello composed\n" {
			t.Errorf("bake made %q of the compose file", got)
		}
	})
	t.Run("compose", func(t *testing.T) {
		// compose calls buildx as a plugin, and needs no engine for what it pushes.
		plugins := filepath.Join(t.TempDir(), "cli-plugins")
		if err := errors.Join(os.Mkdir(plugins, 0o755), os.Symlink(buildx, filepath.Join(plugins, "docker-buildx"))); err != nil {
			t.Fatal(err)
		}
		t.Setenv("DOCKER_CONFIG", filepath.Dir(plugins))
		app, tool := registry+"/composed:app", registry+"/composed:tool"
		write("services.yaml", `
services:
  app:
    image: `+app+`
    build:
      context: .
      args: {WHO: compose}
      secrets: [word]
  tool:
    image: `+tool+`
    build:
      context: .
      dockerfile_inline: |
        FROM scratch
        COPY --from=app /made /of-app
      additional_contexts: {app: "service:app"}
secrets:
  word: {file: word}
`)
		compose := func(args ...string) string {
			t.Helper()
			cmd := exec.Command(filepath.Join(os.Getenv("TOOLS"), "docker-compose"), "-f", "services.yaml", "--progress=plain")
			cmd.Args = append(cmd.Args, args...)
			cmd.Dir = dir
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			return string(out)
		}
		compose("build", "--push")
		out := t.TempDir()
		for image, file := range map[string]string{app: "/made", tool: "/of-app"} {
			command(t, kilnPath, "pull", image)
			command(t, kilnPath, "cp", image+":"+file, out)
		}
		for _, name := range []string{"made", "of-app"} {
			if got := read(filepath.Join(out, name)); got != "hello compose\n" {
				t.Errorf("compose made %q of /%s", got, name)
			}
		}
		if again := compose("build", "--push", "tool"); !strings.Contains(again, "CACHED") {
			t.Errorf("nothing is cached: %s", again)
		}
	})
	t.Run("buildctl", func(t *testing.T) {
		out := filepath.Join(t.TempDir(), "out")
		cmd := exec.Command(filepath.Join(os.Getenv("TOOLS"), "buildctl"), "--addr", address, "build", "--output", "type=local,dest="+out)
		cmd.Stdin = bytes.NewReader(definition(t, debian))
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if got := read(filepath.Join(out, "made")); got != "by LLB\n" {
			t.Errorf("/made holds %q", got)
		}
	})
}

// definition returns the LLB of a process in an image that writes to a mount, which is the result.
func definition(t *testing.T, image string) []byte {
	t.Helper()
	def := &pb.Definition{}
	put := func(op *pb.Op) string {
		t.Helper()
		data, err := op.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		def.Def = append(def.Def, data)
		return digest.FromBytes(data).String()
	}
	root := put(&pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "docker-image://" + image}}})
	exec := put(&pb.Op{Inputs: []*pb.Input{{Digest: root}}, Op: &pb.Op_Exec{Exec: &pb.ExecOp{
		Meta: &pb.Meta{Args: []string{"sh", "-c", "echo by LLB > /out/made"}, Cwd: "/", Env: []string{"PATH=/usr/bin:/bin"}},
		Mounts: []*pb.Mount{
			{Input: 0, Dest: "/", Output: int64(pb.SkipOutput), Readonly: true},
			{Input: int64(pb.Empty), Dest: "/out", Output: 0},
		},
	}}})
	put(&pb.Op{Inputs: []*pb.Input{{Digest: exec}}})
	data, err := def.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return data
}
