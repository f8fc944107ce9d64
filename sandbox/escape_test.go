package sandbox

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/kilntest"
	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/passwd"
)

// What a step may name as its program leads to nothing but its own root, and what executes it is not kiln.

// tool puts a program that ends with status 0 on the host, outside of any image, and returns its path.
func tool(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "true")
	if err := os.WriteFile(name, data, 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

// notFound fails the test unless the step ended as one whose program does not exist.
func notFound(t *testing.T, what string, out string, st Status, err error) {
	t.Helper()
	var e *ExecError
	if !errors.As(err, &e) || st.ExitCode != 127 {
		t.Errorf("%s: %+v, %v, %q", what, st, err, out)
	}
}

func TestNoDescriptorLeadsToTheHost(t *testing.T) {
	host := tool(t)
	leak, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	for n := 100; n < 110; n++ { // without O_CLOEXEC
		if err := unix.Dup2(int(leak.Fd()), n); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(n)
	}
	confined(t, func(t *testing.T, c confinement, im image) {
		last := 64
		if c.name == "sandbox" {
			last = 255
		}
		for n := 3; n <= last; n++ {
			through := fmt.Sprintf("/proc/self/fd/%d%s%s", n, strings.Repeat("/..", 10), host)
			link, script := im.lower+"/bin/link", im.lower+"/bin/script"
			os.Remove(link)
			if err := errors.Join(os.Symlink(through, link), os.WriteFile(script, []byte("#!"+through+"\n"), 0o755)); err != nil {
				t.Fatal(err)
			}
			as := user(root)
			if n%2 == 0 {
				as = user(passwd.User{UID: 1000, GID: 1000})
			}
			for what, change := range map[string]func(*Spec){
				"exec form": args(through),
				"link":      args("/bin/link"),
				"#!":        args("/bin/script"),
				"PATH":      func(s *Spec) { args("true")(s); env("PATH=" + filepath.Dir(through))(s) },
			} {
				out, st, err := im.sh(t, "", c.spec, change, as)
				notFound(t, fmt.Sprintf("%s through descriptor %d", what, n), out, st, err)
			}
		}
	})
}

func TestLauncherIsNotKiln(t *testing.T) {
	kiln, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(kiln)
	if err != nil {
		t.Fatal(err)
	}
	confined(t, func(t *testing.T, c confinement, im image) {
		if err := errors.Join(os.Symlink("/proc/self/exe", im.lower+"/bin/link"),
			os.WriteFile(im.lower+"/bin/script", []byte("#!/proc/self/exe\n"), 0o755),
			os.WriteFile(im.lower+"/bin/loaded", interpreted("/proc/self/exe"), 0o755)); err != nil {
			t.Fatal(err)
		}
		// Were it kiln, that is this test, it would run a test and end with status 0.
		for _, program := range []string{"/proc/self/exe", "/bin/link", "/bin/script", "/bin/loaded", "/proc/1/exe"} {
			out, st, err := im.sh(t, "", c.spec, args(program, "-test.run=^$"))
			want := 127
			if program == "/bin/loaded" && kilntest.Before(6, 7) {
				// No file without data can be a loader there: the kernel ends a process that would start by one.
				want = 128 + int(unix.SIGSEGV)
			}
			if st.ExitCode != want || out != "" {
				t.Errorf("%s: %+v, %v, %q", program, st, err, out)
			}
		}
	})
	if after, err := os.ReadFile(kiln); err != nil || !bytes.Equal(content, after) {
		t.Errorf("the file of kiln has changed: %v", err)
	}
}

// interpreted is an executable file for which the kernel executes a loader, see elf(5).
func interpreted(loader string) []byte {
	const headers = 64 + 2*56
	path := append([]byte(loader), 0)
	var b bytes.Buffer
	for _, part := range []any{
		elf.Header64{Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
			Type: uint16(elf.ET_EXEC), Machine: uint16(map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[runtime.GOARCH]), Version: uint32(elf.EV_CURRENT), Entry: 0x800000 + headers,
			Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 2},
		elf.Prog64{Type: uint32(elf.PT_INTERP), Flags: uint32(elf.PF_R), Off: headers, Filesz: uint64(len(path)), Memsz: uint64(len(path)), Align: 1},
		elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: 0x800000, Filesz: headers, Memsz: headers, Align: 1 << 16},
		path,
	} {
		_ = binary.Write(&b, binary.LittleEndian, part)
	}
	return b.Bytes()
}

// No path of the image is executed while the process has kiln's memory and descriptors.
func TestOnlyTheLauncherExecutesImages(t *testing.T) {
	im := newImage(t)
	var plan bytes.Buffer
	im.expect(t, "true", "", func(s *Spec) { s.Stdio.Debug = &plan })
	before, after, _ := strings.Cut(plan.String(), "the launcher:\n")
	if strings.Contains(before, "execve(") || !strings.Contains(after, "execve(") || strings.Count(before, "execveat(4, \"\"") != 1 {
		t.Error(plan.String())
	}
}

func TestMemoryIsHidden(t *testing.T) {
	im := newImage(t)
	im.expect(t, "true", "", user(passwd.User{UID: 1, GID: 1}))
	if n, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || n == 1 {
		t.Errorf("kiln's memory can be read by others: %d, %v", n, err)
	}
}

// A PATH, however long, costs no more than the kernel would allow for it.
func TestLongPath(t *testing.T) {
	im := newImage(t)
	im.expect(t, "", "found\n", args("echo", "found"), env("PATH="+strings.Repeat("/none:", 500)+"/bin"))
	for what, path := range map[string]string{"many": strings.Repeat(":", 1<<20), "long": strings.Repeat("x", 1<<20)} {
		out, st, err := im.sh(t, "", args("echo"), env("PATH="+path))
		var e *ExecError
		if !errors.As(err, &e) || e.Errno != unix.E2BIG {
			t.Errorf("%s: %+v, %v, %q", what, st, err, out)
		}
	}
}

// A step may change the mode, the owner and the times of what its descriptors and its devices stand for. None of it is the host's.
func TestDevicesOfTheHostStayAsTheyAre(t *testing.T) {
	given := filepath.Join(t.TempDir(), "given")
	if err := unix.Mknod(given, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	state := func() string {
		var s strings.Builder
		for _, name := range []string{"/dev/null", "/dev/zero", "/dev/tty", given} {
			var st unix.Stat_t
			if err := unix.Stat(name, &st); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(&s, name, st.Mode, st.Uid, st.Gid, st.Mtim)
		}
		return s.String()
	}
	before := state()
	confined(t, func(t *testing.T, c confinement, im image) {
		const change = "for f in /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /dev/null /dev/zero /dev/tty /given; do chmod 600 $f; chown 33:33 $f; touch -d @100 $f; done; echo x > /given"
		for _, stdout := range []bool{true, false} {
			node := cloned(t, given, false)
			if err := mount.SetAttr(node, mount.ReadOnly, false); err != nil {
				t.Fatal(err)
			}
			_, _, err := im.sh(t, change, c.spec, func(s *Spec) {
				s.Devices = []Mount{{Source: node, Target: "/given"}}
				if !stdout {
					s.Stdio.Stdout, s.Stdio.Stderr = nil, nil
				}
			})
			if err != nil {
				t.Error(err)
			}
		}
	})
	if after := state(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
		_ = os.Chmod("/dev/null", 0o666)
		_ = os.Chown("/dev/null", 0, 0)
	}
}
