//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// An image for two platforms, whose RUN steps run for both: one of the two by an emulator.
func TestPlatforms(t *testing.T) {
	native, foreign := "amd64", "arm64"
	if runtime.GOARCH == "arm64" {
		native, foreign = foreign, native
	}
	machine := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}
	base := registry + "/platforms-base:latest"
	name := registry + "/platforms:latest"
	p := open(t, "platforms", "--build-arg", "BASE="+base)
	for arch := range machine {
		fetchBusybox(t, arch, filepath.Join(p.dir, "busybox-"+arch))
	}

	// Without an emulator what fails says what is missing, and the platform that this machine has is not in its way.
	enable := withoutEmulator(t, machine[foreign])
	path := os.Getenv("PATH")
	t.Setenv("PATH", withoutQEMU(t, path))
	_, log, err := p.try("--target", "base", "--platform", "linux/"+native+",linux/"+foreign)
	if err == nil {
		t.Errorf("a step for %s ran, and nothing can run it", foreign)
	}
	for _, want := range []string{"linux/" + foreign, "qemu-user-static", "Dockerfile:6"} {
		if !strings.Contains(log, want) {
			t.Errorf("what a build for %s printed has no %q:\n%s", foreign, want, log)
		}
	}
	p.run("--target", "base", "--platform", "linux/"+native)
	t.Setenv("PATH", path)

	// One that is not registered on the machine does.
	p.run("--target", "base", "--platform", "linux/amd64,linux/arm64", "-t", base, "--push")
	p.args = append(p.args, "--platform", "linux/amd64,linux/arm64", "-t", name)
	first := p.run("--push")
	first.wantRan("RUN echo", "RUN echo", "COPY --from=cross", "COPY --from=cross", "RUN uname", "RUN uname", "RUN sh", "RUN sh")

	var index struct {
		MediaType string
		Manifests []struct {
			Platform struct{ OS, Architecture string }
		}
	}
	raw := command(t, "skopeo", "inspect", "--tls-verify=false", "--raw", "docker://"+name)
	if err := json.Unmarshal([]byte(raw), &index); err != nil {
		t.Fatal(err)
	}
	var platforms []string
	for _, m := range index.Manifests {
		platforms = append(platforms, m.Platform.OS+"/"+m.Platform.Architecture)
	}
	if !strings.Contains(index.MediaType, "index") || !slices.Equal(platforms, []string{"linux/amd64", "linux/arm64"}) {
		t.Errorf("what is pushed is no index of two platforms: %s", raw)
	}

	files := p.files()
	for arch, uname := range machine {
		var config struct{ OS, Architecture string }
		text := command(t, "skopeo", "--override-arch", arch, "inspect", "--tls-verify=false", "--config", "docker://"+name)
		if err := json.Unmarshal([]byte(text), &config); err != nil {
			t.Fatal(err)
		}
		if config.OS != "linux" || config.Architecture != arch {
			t.Errorf("skopeo says that the image for %s is for %s/%s", arch, config.OS, config.Architecture)
		}
		cross := fmt.Sprintf("made on %s for linux/%s", machine[native], arch)
		for file, want := range map[string]string{"machine": uname, "cross": cross, "piped": strings.ToUpper(uname + "\n" + cross)} {
			got, err := os.ReadFile(filepath.Join(files, "linux_"+arch, file))
			if err != nil || string(got) != want+"\n" {
				t.Errorf("in the image for %s, /%s holds %q, and should %q: %v", arch, file, got, want, err)
			}
		}
	}

	// With one that is registered the image is the same.
	digest := remoteDigest(t, name)
	enable()
	p.run("--push").wantRan()
	p.run("--push", "--no-cache").wantRan(first.ran...)
	if d := remoteDigest(t, name); d != digest {
		t.Errorf("the pushed index is %s, and it was %s", d, digest)
	}
	// What was pushed runs: the emulator is given by the kernel, to a chroot too.
	for arch, uname := range machine {
		dir := t.TempDir()
		command(t, "skopeo", "--override-arch", arch, "copy", "--quiet", "--src-tls-verify=false", "docker://"+name, "oci:"+dir+"/image:latest")
		command(t, "umoci", "unpack", "--image", dir+"/image:latest", dir+"/bundle")
		if got := command(t, "chroot", dir+"/bundle/rootfs", "uname", "-m"); got != uname {
			t.Errorf("uname -m printed %q in the image for %s", got, arch)
		}
	}
}

// A Debian for another processor, in which apt-get installs packages, on a machine that knows no emulator.
func TestForeignDebian(t *testing.T) {
	arch, machine := "arm64", "aarch64"
	if runtime.GOARCH == arch {
		arch, machine = "amd64", "x86_64"
	}
	withoutEmulator(t, machine)
	p := open(t, "foreign", "--platform", "linux/"+arch)
	fetch(t, arch, filepath.Join(p.dir, "files.tar"), "?essential", "apt", "ca-certificates")
	first, log, err := p.try("-t", "foreign:debian")
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	first.wantRan("ADD", "RUN cp", "RUN apt-get", "RUN dpkg")
	if want := strings.Join([]string{arch, machine, "nobody", "61", "62", "63"}, "\n") + "\n"; !strings.Contains(log, want) {
		t.Errorf("the last step should print %q, of all:\n%s", want, log)
	}
	p.run().wantRan()
}

// fetch writes a tar of the files of packages of Debian for an architecture, of which nothing is run.
func fetch(t *testing.T, arch, dest string, packages ...string) {
	t.Helper()
	sources, err := aptSources()
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(t.TempDir(), "sources.list")
	if err := os.WriteFile(list, []byte(sources), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"--variant=extract", "--architectures=" + arch, "--quiet"}
	for _, p := range packages {
		args = append(args, "--include="+p)
	}
	command(t, "mmdebstrap", append(args, "bookworm", dest, list)...)
}

// fetchBusybox writes the program of Debian's busybox-static for an architecture to dest.
func fetchBusybox(t *testing.T, arch, dest string) {
	t.Helper()
	dir := t.TempDir()
	fetch(t, arch, dir+"/files.tar", "busybox-static")
	command(t, "tar", "-C", dir, "-xf", dir+"/files.tar", "./bin/busybox")
	if err := os.Rename(dir+"/bin/busybox", dest); err != nil {
		t.Fatal(err)
	}
}

// withoutQEMU returns a directory in the place of those of a $PATH: it has their programs, but none of QEMU.
func withoutQEMU(t *testing.T, path string) string {
	t.Helper()
	dir := t.TempDir()
	for _, from := range filepath.SplitList(path) {
		programs, _ := os.ReadDir(from) // it may not exist
		for _, p := range programs {
			if !strings.HasPrefix(p.Name(), "qemu-") {
				_ = os.Symlink(filepath.Join(from, p.Name()), filepath.Join(dir, p.Name())) // the first one counts
			}
		}
	}
	return dir
}

// withoutEmulator sees to it that the kernel has no interpreter for programs of a machine, as uname -m names it, until
// the returned function is called. After that it has one until the test ends, when it has again what it had before.
func withoutEmulator(t *testing.T, machine string) (enable func()) {
	t.Helper()
	const dir = "/proc/sys/fs/binfmt_misc"
	if _, err := os.Stat(dir + "/register"); errors.Is(err, fs.ErrNotExist) {
		if err := unix.Mount("binfmt_misc", dir, "binfmt_misc", 0, ""); err != nil {
			t.Fatalf("mount binfmt_misc: %v", err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(dir, 0); err != nil {
				t.Error(err)
			}
		})
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0); err != nil {
			t.Fatal(err)
		}
	}
	entry := "qemu-" + machine
	if text, err := os.ReadFile(filepath.Join(dir, entry)); err == nil {
		if !strings.HasPrefix(string(text), "enabled") {
			t.Fatalf("%s/%s is disabled: this test would not leave it so", dir, entry)
		}
		write(entry, "0")
		t.Cleanup(func() { write(entry, "1") })
		return func() { write(entry, "1") }
	}
	// The package says how it is registered, with the flag F, by which the kernel opens the interpreter now and not in
	// the root of the program.
	line, err := os.ReadFile("/usr/lib/binfmt.d/" + entry + ".conf")
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		write("register", strings.TrimSpace(string(line)))
		t.Cleanup(func() { write(entry, "-1") })
	}
}
