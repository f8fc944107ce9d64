//go:build vm

// Package vm runs kiln on kernels that are not this machine's: in a virtual machine with the kernel of Debian's cloud
// images, or those that $KERNELS names, a disk of ext4, control groups of version 2, and nothing but busybox, kiln, and
// the tests that the packages have anyway.
//
// A test is a shell script in guest/: it runs as root in a directory of its own, and passes if its status is 0.
//
// $ARCH is the machine's architecture, as Go names it: amd64 if it is not set, or arm64. The packages' own tests, those of
// packages.sh, take long where this machine emulates another architecture, and run there only if $TESTS is set.
package vm

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

const source = "../.."

// packages are those whose tests run in the machine, from their own directories below /src.
var packages = []string{"internal/mount", "snapshot", "sandbox"}

// hang is far longer than any run takes: what is not done by then hangs.
const hang = 2 * time.Hour

// A machine is what differs between architectures.
type machine struct {
	arch    string
	kernel  string   // the Debian package that depends on the newest kernel of the cloud images
	console string   // the kernel's name for the serial port
	qemu    []string // the emulator, the board and the processor
}

var machines = map[string]machine{
	"amd64": {"amd64", "linux-image-cloud-amd64", "ttyS0", []string{"qemu-system-x86_64", "-cpu", "max"}},
	// The architected algorithm of pointer authentication is slow to emulate.
	"arm64": {"arm64", "linux-image-cloud-arm64", "ttyAMA0", []string{"qemu-system-aarch64", "-machine", "virt", "-cpu", "max,pauth-impdef=on"}},
}

// modules are what the kernel needs for its disk and for the tests, in an order in which they load. Those that it has built in are
// not there.
var modules = []string{"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk",
	"crc16", "crc32c_generic", "libcrc32c", "mbcache", "jbd2", "ext4", "overlay", "tun"}

func TestKernels(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("run as root: the machine's disk has files of root's")
	}
	m, ok := machines[cmp.Or(os.Getenv("ARCH"), "amd64")]
	if !ok {
		t.Fatalf("ARCH=%s: it is amd64 or arm64", os.Getenv("ARCH"))
	}
	debian := newArchive(t, m.arch)
	dirs := filepath.SplitList(os.Getenv("KERNELS"))
	if len(dirs) == 0 {
		dirs = []string{debian.unpack(t, debian.newestKernel(t, m.kernel))}
	}
	busybox := "/bin/busybox"
	if m.arch != runtime.GOARCH {
		busybox = debian.unpack(t, "busybox-static") + busybox
	}
	root, scripts := guestRoot(t, m, busybox)
	for _, dir := range dirs {
		images, err := filepath.Glob(filepath.Join(dir, "boot/vmlinuz-*"))
		if err != nil || len(images) != 1 {
			t.Fatalf("%s is not an unpacked kernel package: %q, %v", dir, images, err)
		}
		version := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
		t.Run(version, func(t *testing.T) { boot(t, m, images[0], dir, root, scripts) })
	}
}

// An archive has the packages of this machine's Debian for one architecture. Where that is not this machine's, apt's lists are
// downloaded into a directory of the test's, so that neither apt nor dpkg of this machine is configured for it.
type archive struct {
	arch    string
	options []string
}

func newArchive(t *testing.T, arch string) archive {
	t.Helper()
	a := archive{arch, []string{"-qq", "-o", "APT::Sandbox::User=root"}}
	if arch != runtime.GOARCH {
		dir := t.TempDir()
		check(t, os.Mkdir(dir+"/lists", 0o755))
		a.options = append(a.options, "-o", "Dir::State::Lists="+dir+"/lists", "-o", "Dir::Cache="+dir,
			"-o", "APT::Architectures::="+runtime.GOARCH, "-o", "APT::Architectures::="+arch)
		run(t, dir, "apt-get", append(a.options, "update")...)
	}
	return a
}

// newestKernel returns the package that the package name depends on.
func (a archive) newestKernel(t *testing.T, name string) string {
	t.Helper()
	out := run(t, ".", "apt-cache", append(a.options, "depends", "--important", name+":"+a.arch)...)
	for word := range strings.FieldsSeq(out) {
		if p, _, _ := strings.Cut(word, ":"); strings.HasPrefix(p, "linux-image-") && p != name {
			return p
		}
	}
	t.Fatalf("%s depends on no kernel:\n%s", name, out)
	return ""
}

// unpack downloads a package and returns a directory with its files.
func (a archive) unpack(t *testing.T, name string) string {
	t.Helper()
	dir := t.TempDir()
	run(t, dir, "apt-get", append(a.options, "download", name+":"+a.arch)...)
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		t.Fatal(debs, err)
	}
	run(t, dir, "dpkg-deb", "-x", debs[0], dir+"/files")
	return dir + "/files"
}

func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", cmd, err, out, stderr.String())
	}
	return string(out)
}

// guestRoot makes the directory that becomes the machine's disk, but for the kernel's modules, and returns it with the names of
// the tests in it.
func guestRoot(t *testing.T, m machine, busybox string) (root string, tests []string) {
	t.Helper()
	root = t.TempDir()
	for _, dir := range []string{"bin", "dev", "etc", "home/user", "lib/modules", "proc", "root", "src", "sys", "tmp", "tests", "var"} {
		check(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	check(t, os.Chmod(root+"/tmp", os.ModeSticky|0o777))
	check(t, os.Chown(root+"/home/user", 1000, 1000))
	copyFile(t, busybox, root+"/bin/busybox")
	for name, text := range map[string]string{
		"passwd": "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
		"group":  "root:x:0:\nuser:x:1000:\n", "hosts": "127.0.0.1 localhost\n", "resolv.conf": "nameserver 127.0.0.1\n",
		"subuid": "user:100000:65536\n", "subgid": "user:100000:65536\n",
	} {
		check(t, os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644))
	}
	t.Setenv("CGO_ENABLED", "0")
	t.Setenv("GOARCH", m.arch)
	run(t, source, "go", "build", "-trimpath", "-o", root+"/bin/kiln", "./cmd/kiln")
	for _, p := range packages {
		dir := filepath.Join(root, "src", p)
		check(t, os.MkdirAll(dir, 0o755))
		run(t, source, "go", "test", "-c", "-trimpath", "-o", dir+"/test", "./"+p)
		if data := filepath.Join(source, p, "testdata"); exists(data) {
			check(t, os.CopyFS(dir+"/testdata", os.DirFS(data)))
		}
	}
	scripts, err := filepath.Glob("guest/*.sh")
	check(t, err)
	for _, s := range scripts {
		name := strings.TrimSuffix(filepath.Base(s), ".sh")
		if name == "packages" && m.arch != runtime.GOARCH && os.Getenv("TESTS") == "" {
			continue
		}
		copyFile(t, s, filepath.Join(root, "tests", name+".sh"))
		tests = append(tests, name)
	}
	if len(tests) == 0 {
		t.Fatal("there are no tests in guest/")
	}
	copyFile(t, "guest/init", root+"/init")
	return root, tests
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func exists(path string) bool { _, err := os.Lstat(path); return err == nil }

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	check(t, err)
	check(t, os.WriteFile(to, data, 0o755))
}

// boot runs all tests on one kernel.
func boot(t *testing.T, m machine, image, kernel, root string, tests []string) {
	tmp := t.TempDir()
	order := unpackModules(t, kernel, root+"/lib/modules")
	check(t, os.WriteFile(root+"/lib/modules/order", []byte(strings.Join(order, "\n")+"\n"), 0o644))
	disk := filepath.Join(tmp, "disk")
	run(t, tmp, "mke2fs", "-q", "-t", "ext4", "-d", root, disk, "3g")
	initrd := filepath.Join(tmp, "initrd")
	writeInitrd(t, initrd, root, order)

	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	qemu := exec.CommandContext(ctx, m.qemu[0], append(m.qemu[1:], "-accel", "tcg,thread=multi", "-smp", "2", "-m", "2048",
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio", "-kernel", image, "-initrd", initrd,
		"-drive", "file="+disk+",format=raw,if=virtio,cache=unsafe", "-append", "console="+m.console+" quiet panic=-1 cgroup_no_v1=all")...)
	var stderr bytes.Buffer
	qemu.Stderr = &stderr
	stdout, err := qemu.StdoutPipe()
	check(t, err)
	qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	check(t, qemu.Start())
	started := time.Now()
	results, rest := read(stdout, func(name, status string) {
		t.Logf("%v: %s: status %s", time.Since(started).Round(time.Second), name, status)
	})
	if err := qemu.Wait(); err != nil {
		t.Errorf("%v\n%s", err, stderr.String())
	}
	for _, name := range tests {
		t.Run(name, func(t *testing.T) {
			r, ok := results[name]
			if !ok {
				t.Fatalf("it did not come to an end; what the machine said outside of tests that did:\n%s", rest)
			}
			if r.status != "0" {
				t.Errorf("status %s", r.status)
			}
			t.Log("\n" + r.output)
		})
	}
}

type result struct{ output, status string }

// read reads the console to its end: what each test printed, and all that was printed besides. It calls ended when a test ends.
func read(console io.Reader, ended func(name, status string)) (map[string]result, string) {
	results := map[string]result{}
	var current, rest strings.Builder
	lines := bufio.NewScanner(console)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimSuffix(lines.Text(), "\r")
		f := strings.Fields(line)
		switch {
		case len(f) == 2 && f[0] == "@@begin":
			rest.WriteString(current.String())
			current.Reset()
		case len(f) == 3 && f[0] == "@@end":
			results[f[1]] = result{output: current.String(), status: f[2]}
			ended(f[1], f[2])
			current.Reset()
		default:
			current.WriteString(line + "\n")
		}
	}
	return results, rest.String() + current.String()
}

// unpackModules copies the modules that there are, and returns their names in the order of modules.
func unpackModules(t *testing.T, kernel, to string) []string {
	t.Helper()
	found := map[string]string{}
	check(t, filepath.WalkDir(filepath.Join(kernel, "lib/modules"), func(path string, d fs.DirEntry, err error) error {
		if name, _, ok := strings.Cut(filepath.Base(path), ".ko"); ok && d.Type().IsRegular() {
			found[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	}))
	var order []string
	for _, name := range modules {
		path, ok := found[name]
		if !ok {
			continue
		}
		data, err := os.ReadFile(path)
		check(t, err)
		if strings.HasSuffix(path, ".xz") {
			data = []byte(run(t, ".", "xz", "-dc", path))
		}
		check(t, os.WriteFile(filepath.Join(to, name+".ko"), data, 0o644))
		order = append(order, name)
	}
	return order
}

// writeInitrd writes the archive that the kernel starts from: it loads the modules and goes over to the disk. The form is cpio's "newc",
// see Documentation/driver-api/early-userspace/buffer-format.rst of the Linux source.
func writeInitrd(t *testing.T, name, root string, order []string) {
	t.Helper()
	f, err := os.Create(name)
	check(t, err)
	defer f.Close()
	w := bufio.NewWriter(f)
	ino, at := 0, 0
	put := func(b []byte) {
		w.Write(b) // an error is Flush's
		for at += len(b); at%4 != 0; at++ {
			w.WriteByte(0)
		}
	}
	add := func(name string, mode int, data []byte) {
		ino++
		header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
			ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
		put([]byte(header))
		put(data)
	}
	for _, dir := range []string{"bin", "dev", "proc", "modules", "disk"} {
		add(dir, 0o040755, nil)
	}
	busybox, err := os.ReadFile(root + "/bin/busybox")
	check(t, err)
	add("bin/busybox", 0o100755, busybox)
	init := "#!/bin/busybox sh\n/bin/busybox mount -t devtmpfs dev /dev\n"
	for _, m := range order {
		data, err := os.ReadFile(filepath.Join(root, "lib/modules", m+".ko"))
		check(t, err)
		add("modules/"+m+".ko", 0o100644, data)
		init += "/bin/busybox insmod /modules/" + m + ".ko\n"
	}
	init += "/bin/busybox mount -t ext4 /dev/vda /disk\nexec /bin/busybox switch_root /disk /init\n"
	add("init", 0o100755, []byte(init))
	add("TRAILER!!!", 0, nil)
	check(t, w.Flush())
}
