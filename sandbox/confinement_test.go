package sandbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/passwd"
)

// What a step may do is read back from inside, for each way that a step can be confined. The numbers here are Docker's table,
// not what the package believes.

// confinement is one way.
type confinement struct {
	name     string
	ids      bool
	insecure bool
}

var confinements = []confinement{{name: "sandbox"}, {name: "userns", ids: true}, {name: "insecure", insecure: true}, {name: "insecure userns", ids: true, insecure: true}}

// confined calls f for each way, with an image.
func confined(t *testing.T, f func(t *testing.T, c confinement, im image)) {
	for _, c := range confinements {
		t.Run(c.name, func(t *testing.T) {
			im := newImage(t)
			if c.ids {
				im = im.asUsers(t)
			}
			f(t, c, im)
		})
	}
}

func (c confinement) spec(s *Spec) { s.Privileges.Insecure = c.insecure }

func TestReadBackPrivileges(t *testing.T) {
	confined(t, func(t *testing.T, c confinement, im image) {
		status := "grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups|[UG]id)' /proc/self/status"
		bounding := "00000000a80425fb"
		seccomp := 2
		if c.insecure {
			_, after, _ := strings.Cut(readFile(t, "/proc/self/status"), "CapBnd:\t")
			bounding, _, _ = strings.Cut(after, "\n")
			seccomp = 0
			if c.ids {
				seccomp = 2 // that of the kernel's keys
			}
		}
		if c.insecure && c.ids {
			bounding = "000001ffffffffff" // all that there are, and over what belongs to the namespace alone
			if last := strings.TrimSpace(readFile(t, "/proc/sys/kernel/cap_last_cap")); last != "40" {
				t.Skipf("this kernel has %s capabilities", last)
			}
		}
		want := func(uid, gid int, groups, caps string) string {
			ids := func(id int) string { return strings.Repeat(fmt.Sprintf("\t%d", id), 4) }
			return fmt.Sprintf("Uid:%s\nGid:%s\nGroups:\t%s \nCapInh:\t0000000000000000\nCapPrm:\t%[4]s\nCapEff:\t%[4]s\nCapBnd:\t%[5]s\nCapAmb:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t%[6]d\n",
				ids(uid), ids(gid), groups, caps, bounding, seccomp)
		}
		im.expect(t, status, want(0, 0, "0", bounding), c.spec)
		im.expect(t, status, want(7, 8, "8 9 1000", "0000000000000000"), c.spec, user(passwd.User{UID: 7, GID: 8, Groups: []uint32{8, 9, 1000}}))
		// kiln goes on when memory is short.
		own := 0
		fmt.Sscan(readFile(t, "/proc/self/oom_score_adj"), &own)
		im.expect(t, "cat /proc/self/oom_score_adj", fmt.Sprintln((own+1001)/2), c.spec)
		if now := 0; func() bool { fmt.Sscan(readFile(t, "/proc/self/oom_score_adj"), &now); return now != own }() {
			t.Errorf("kiln's own oom_score_adj was %d and is %d", own, now)
		}
	})
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestReadBackNamespaces(t *testing.T) {
	confined(t, func(t *testing.T, c confinement, im image) {
		for _, n := range []NetworkMode{NetworkHost, NetworkNone} {
			out := im.lines(t, "cd /proc/self/ns; for n in mnt pid ipc uts cgroup net user; do readlink $n; done", c.spec, network(n))
			for i, ns := range []string{"mnt", "pid", "ipc", "uts", "cgroup", "net", "user"} {
				own, err := os.Readlink("/proc/self/ns/" + ns)
				if err != nil {
					t.Fatal(err)
				}
				shared := ns == "user" && !c.ids || ns == "net" && n == NetworkHost
				if (out[i] == own) != shared {
					t.Errorf("network %d: %s is %s, kiln's is %s", n, ns, out[i], own)
				}
			}
		}
		want := "         0          0 4294967295\n"
		if c.ids {
			want = "         0     100000      65536\n"
		}
		im.expect(t, "cat /proc/self/uid_map", want, c.spec)
		im.expect(t, "cat /proc/self/cgroup | grep -v ':/$'; echo end", "end\n", c.spec)
		// No descriptor but the three, whatever kiln has open; no terminal; nothing on standard input.
		im.expect(t, "", "0\n1\n2\n3\n", c.spec, args("ls", "/proc/self/fd"))
		im.expect(t, "readlink /proc/self/fd/0; (: < /dev/tty) 2>&1 | grep -o 'No such device or address'; awk '{print $6, $7}' /proc/self/stat",
			"/dev/null\nNo such device or address\n1 0\n", c.spec)
		im.expect(t, "tr '\\0' '\\n' < /proc/1/environ | sort", "HOME=/root\n"+defaultPath+"\n", c.spec)
	})
}

// A working directory that is a descriptor of kiln's would be outside of the root.
func TestReadBackWorkingDirectory(t *testing.T) {
	im := newImage(t)
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
	for n := 3; n < 256; n++ {
		if out, _, err := im.sh(t, "pwd; ls", cwd(fmt.Sprintf("/proc/self/fd/%d", n))); err == nil {
			t.Fatalf("working directory is descriptor %d: %s", n, out)
		}
	}
}

func TestReadBackKernelFiles(t *testing.T) {
	confined(t, func(t *testing.T, c confinement, im image) {
		if c.insecure {
			return
		}
		// Docker's lists.
		im.expect(t, `for f in interrupts kcore keys latency_stats sched_debug timer_list timer_stats; do
				[ ! -e /proc/$f ] || [ -z "$(head -c 100 /proc/$f 2> /dev/null | tr -d '\0')" ] || echo "/proc/$f has something in it"
				[ ! -e /proc/$f ] || { (: >> /proc/$f) 2> /dev/null && echo "/proc/$f is writable"; }
			done
			for d in /proc/acpi /proc/asound /proc/scsi /sys/firmware /sys/devices/virtual/powercap /sys/devices/system/cpu/cpu*/thermal_throttle; do
				[ -z "$(ls -A $d 2> /dev/null)" ] || echo "$d has something in it"
				mkdir $d/x 2> /dev/null && echo "$d is writable"
			done
			for d in bus fs irq sys; do
				f=$(find /proc/$d -type f 2> /dev/null | head -n 1); [ -z "$f" ] || { (: >> $f) 2> /dev/null && echo "$f is writable"; }
			done
			for f in /proc/sysrq-trigger /proc/sys/kernel/core_pattern /proc/sys/kernel/hostname /proc/sys/vm/drop_caches /sys/kernel/mm/ksm/run /sys/power/state; do
				[ ! -e $f ] || { (: >> $f) 2> /dev/null && echo "$f is writable"; }
			done
			for d in /sys/fs/cgroup /sys/fs/cgroup/* /sys/kernel/debug /sys/kernel/tracing /sys/fs/bpf; do mkdir $d/x 2> /dev/null && echo "$d is writable"; done
			for f in /etc/hosts /etc/resolv.conf; do (: >> $f) 2> /dev/null && echo "$f is writable"; done
			for m in /proc/kcore /proc/sys /sys /etc/hosts; do umount $m 2> /dev/null && echo "$m can be unmounted"; done
			mount -o remount,rw /sys 2> /dev/null && echo "/sys can be mounted writable"
			mount -t cgroup2 none /tmp 2> /dev/null && echo "control groups can be mounted"
			mount -t proc none /tmp 2> /dev/null && echo "proc can be mounted"
			awk '{print $4}' /proc/self/mountinfo | grep -v '^/' | grep -v '^[a-z]*:\[' ; echo end`, "end\n", c.spec)
	})
}

// A program's own capabilities work, also for another user than root; but none that the step cannot have.
func TestReadBackFileCapabilities(t *testing.T) {
	confined(t, func(t *testing.T, c confinement, im image) {
		for name, capability := range map[string]int{"busybox-bind": unix.CAP_NET_BIND_SERVICE, "busybox-admin": unix.CAP_SYS_ADMIN} {
			file := im.lower + "/bin/" + name
			data := readFile(t, im.lower+"/bin/busybox")
			if err := os.WriteFile(file, []byte(data), 0o755); err != nil {
				t.Fatal(err)
			}
			// struct vfs_cap_data of version 2, effective; see capabilities(7).
			value := binary.LittleEndian.AppendUint32(nil, 0x02000001)
			value = binary.LittleEndian.AppendUint32(value, 1<<capability)
			if err := unix.Setxattr(file, "security.capability", append(value, make([]byte, 12)...), 0); err != nil {
				t.Fatal(err)
			}
		}
		im.expect(t, "", "CapEff:\t0000000000000400\n", c.spec, args("busybox-bind", "grep", "CapEff", "/proc/self/status"), user(passwd.User{UID: 1, GID: 1}))
		out, st, err := im.sh(t, "", c.spec, args("busybox-admin", "grep", "CapEff", "/proc/self/status"), user(passwd.User{UID: 1, GID: 1}))
		if refused := errors.Is(err, unix.EPERM); refused == c.insecure {
			t.Errorf("a program with CAP_SYS_ADMIN: %+v, %v, %s", st, err, out)
		}
	})
}

// What a step writes is the same on the disk with and without a user namespace.
func TestIDsOnDisk(t *testing.T) {
	var want string
	for _, ids := range []bool{false, true} {
		im := newImage(t)
		if ids {
			im = im.asUsers(t)
		}
		out, st, err := im.sh(t, `mkdir -p /d/e; echo x > /d/f; chown 33:44 /d/f; chown 65535:65535 /d/e; ln -s f /d/l; ln /d/f /d/h; mkfifo /d/p; chmod 6755 /d/f
			rm /etc/group; chmod 700 /root; chown 5 /bin; rm -r /tmp; mkdir /tmp; touch -d @1000000000 /d/f /d/e /d`)
		if err != nil || st.ExitCode != 0 {
			t.Fatalf("%+v, %v\n%s", st, err, out)
		}
		var b strings.Builder
		for p := range strings.FieldsSeq(im.changed(t)) {
			var s unix.Stat_t
			if err := unix.Lstat(im.upper+p, &s); err != nil {
				t.Fatal(err)
			}
			opaque := make([]byte, 1)
			n, _ := unix.Lgetxattr(im.upper+p, "trusted.overlay.opaque", opaque)
			fmt.Fprintf(&b, "%s %o %d:%d %d %d opaque=%d\n", p, s.Mode, s.Uid, s.Gid, s.Nlink, s.Rdev, max(n, 0))
		}
		if !ids {
			want = b.String()
		} else if b.String() != want {
			t.Errorf("with a user namespace:\n%s\nwithout:\n%s", b.String(), want)
		}
	}
	if !strings.Contains(want, "/d/f 106755 33:44 2 0") || !strings.Contains(want, "/d/e 40755 65535:65535") {
		t.Error(want)
	}
}

// canary is an abstract socket of the host's.
const canary = "@kiln-test-canary"

func TestReadBackSockets(t *testing.T) {
	l, err := net.Listen("unix", canary)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	confined(t, func(t *testing.T, c confinement, im image) {
		probe(t, im, "^TestProbeCanary$", c.spec, network(NetworkNone))
	})
}

// TestProbeCanary runs in the sandbox.
func TestProbeCanary(t *testing.T) {
	if os.Getenv("SANDBOX_TEST_PROBE") == "" {
		t.SkipNow() // TestReadBackSockets runs it
	}
	if c, err := net.Dial("unix", canary); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("the host's abstract sockets can be reached: %v, %v", c, err)
	}
}

// call32 is a system call of the 32-bit interface and the error that it must end with.
type call32 struct {
	name string
	args [4]uint32 // the number first
	want unix.Errno
	// memory is words that the program has; atMemory is their address.
	memory []uint32
}

// atMemory stands for the address of a program's memory, and atMemory+n for that of the word n.
const atMemory = 0xfffff000

var calls32 = []call32{
	{name: "socketcall", args: [4]uint32{102, 1, atMemory}, memory: []uint32{unix.AF_INET, unix.SOCK_STREAM, 0}, want: unix.ENOSYS},
	{name: "socketcall alg", args: [4]uint32{102, 1, atMemory}, memory: []uint32{unix.AF_ALG, unix.SOCK_SEQPACKET, 0}, want: unix.ENOSYS},
	{name: "socketcall vsock", args: [4]uint32{102, 1, atMemory}, memory: []uint32{unix.AF_VSOCK, unix.SOCK_STREAM, 0}, want: unix.ENOSYS},
	{name: "socketpair alg", args: [4]uint32{360, unix.AF_ALG, unix.SOCK_SEQPACKET}, want: unix.EPERM},
	{name: "socketpair vsock", args: [4]uint32{360, unix.AF_VSOCK, unix.SOCK_STREAM}, want: unix.EPERM},
	{name: "unshare user", args: [4]uint32{310, unix.CLONE_NEWUSER}, want: unix.EPERM},
	{name: "clone user", args: [4]uint32{120, unix.CLONE_NEWUSER | uint32(unix.SIGCHLD)}, want: unix.EPERM},
	{name: "clone3", args: [4]uint32{435}, want: unix.ENOSYS},
	{name: "setns", args: [4]uint32{346}, want: unix.EPERM},
	{name: "socket alg", args: [4]uint32{359, unix.AF_ALG, unix.SOCK_SEQPACKET}, want: unix.EPERM},
	{name: "socket vsock", args: [4]uint32{359, unix.AF_VSOCK, unix.SOCK_STREAM}, want: unix.EPERM},
	{name: "socket rxrpc", args: [4]uint32{359, unix.AF_RXRPC, unix.SOCK_DGRAM}, want: unix.EPERM},
	{name: "socket key", args: [4]uint32{359, unix.AF_KEY, unix.SOCK_RAW, 2}, want: unix.EPERM},
	{name: "TIOCSTI", args: [4]uint32{54, 0, unix.TIOCSTI}, want: unix.EPERM},
	{name: "TIOCLINUX", args: [4]uint32{54, 0, unix.TIOCLINUX}, want: unix.EPERM},
	{name: "io_uring_setup", args: [4]uint32{425}, want: unix.EPERM},
	{name: "add_key", args: [4]uint32{286}, want: unix.EPERM},
	{name: "request_key", args: [4]uint32{287}, want: unix.EPERM},
	{name: "keyctl", args: [4]uint32{288}, want: unix.EPERM},
	{name: "bpf", args: [4]uint32{357}, want: unix.EPERM},
	{name: "userfaultfd", args: [4]uint32{374}, want: unix.EPERM},
	{name: "perf_event_open", args: [4]uint32{336}, want: unix.EPERM},
	{name: "open_by_handle_at", args: [4]uint32{342}, want: unix.EPERM},
	{name: "mount", args: [4]uint32{21}, want: unix.EPERM},
	{name: "umount", args: [4]uint32{22}, want: unix.EPERM},
	{name: "umount2", args: [4]uint32{52}, want: unix.EPERM},
	{name: "pivot_root", args: [4]uint32{217}, want: unix.EPERM},
	{name: "fsopen", args: [4]uint32{430}, want: unix.EPERM},
	{name: "open_tree", args: [4]uint32{428}, want: unix.EPERM},
	{name: "move_mount", args: [4]uint32{429}, want: unix.EPERM},
	{name: "mount_setattr", args: [4]uint32{442}, want: unix.EPERM},
	{name: "init_module", args: [4]uint32{128}, want: unix.EPERM},
	{name: "reboot", args: [4]uint32{88}, want: unix.EPERM},
	{name: "iopl", args: [4]uint32{110}, want: unix.EPERM},
	{name: "vm86", args: [4]uint32{166}, want: unix.EPERM},
	{name: "unknown", args: [4]uint32{9999}, want: unix.ENOSYS},
	{name: "getpid", args: [4]uint32{20}, want: 0},
}

// program32 is an executable file of the 32-bit interface that makes a call. Then it exits with the call's error number, or executes
// /bin/next, or exits with 0 if there is none.
func program32(c call32) []byte {
	const (
		base   = 0x08048000
		header = 52 + 32
		path   = header + 256 // where that of the next program is
		memory = path + 16
	)
	code := bytes.NewBuffer(nil)
	word := func(register byte, v uint32) { // mov
		code.WriteByte(register)
		binary.Write(code, binary.LittleEndian, v)
	}
	const eax, ebx, ecx, edx = 0xb8, 0xbb, 0xb9, 0xba
	address := func(v uint32) uint32 {
		if v >= atMemory {
			return base + memory + 4*(v-atMemory)
		}
		return v
	}
	for i, register := range []byte{eax, ebx, ecx, edx} {
		word(register, address(c.args[i]))
	}
	code.Write([]byte{0xcd, 0x80})             // int 0x80
	code.Write([]byte{0x85, 0xc0, 0x79, 0x0b}) // test eax, eax; jns over the next three
	code.Write([]byte{0x89, 0xc3, 0xf7, 0xdb}) // mov ebx, eax; neg ebx
	word(eax, 1)                               // exit
	code.Write([]byte{0xcd, 0x80})
	word(eax, 11) // execve
	word(ebx, base+path)
	word(ecx, 0)
	word(edx, 0)
	code.Write([]byte{0xcd, 0x80})
	word(eax, 1)
	word(ebx, 0)
	code.Write([]byte{0xcd, 0x80})
	code.Write(make([]byte, path-header-code.Len()))
	code.WriteString("/bin/next\x00\x00\x00\x00\x00\x00\x00")
	for _, v := range c.memory {
		binary.Write(code, binary.LittleEndian, address(v))
	}
	length := uint32(header + code.Len())
	var b bytes.Buffer
	b.WriteString("\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	for _, v := range []any{uint16(2), uint16(3), uint32(1), uint32(base + header), uint32(52), uint32(0), uint32(0), // executable, i386
		uint16(52), uint16(32), uint16(1), uint16(0), uint16(0), uint16(0),
		uint32(1), uint32(0), uint32(base), uint32(base), length, length, uint32(7), uint32(0x1000)} { // loaded, with all rights
		binary.Write(&b, binary.LittleEndian, v)
	}
	return append(b.Bytes(), code.Bytes()...)
}

func TestSeccomp32(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the programs are for i386")
	}
	confined(t, func(t *testing.T, c confinement, im image) {
		if c.insecure {
			return
		}
		for _, call := range calls32 {
			call.try(t, im)
		}
	})
}

// try has a step make the call.
func (c call32) try(t *testing.T, im image, change ...func(*Spec)) string {
	t.Helper()
	if err := os.WriteFile(im.lower+"/bin/call", program32(c), 0o755); err != nil {
		t.Fatal(err)
	}
	out, st, err := im.sh(t, "", append([]func(*Spec){args("call")}, change...)...)
	if errors.Is(err, unix.ENOEXEC) {
		t.Skip("the kernel has no 32-bit interface")
	}
	if err != nil || unix.Errno(st.ExitCode) != c.want {
		t.Errorf("%s: %v, want %v: %+v, %v", c.name, unix.Errno(st.ExitCode), c.want, st, err)
	}
	return out
}

// socketcalls is a call of socketcall(2) that makes sockets.
func socketcalls(family, kind, protocol uint32, want unix.Errno) call32 {
	return call32{name: fmt.Sprintf("socketcall %d %#x %d", family, kind, protocol), args: [4]uint32{102, 1, atMemory},
		memory: []uint32{family, kind, protocol}, want: want}
}

// In an image of 386 programs have sockets by socketcall(2), but for the families that the filter refuses.
func TestSocketcall(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the programs are for i386")
	}
	of386 := func(s *Spec) { s.Process.Architecture = "386" }
	other := func(s *Spec) { s.Process.User = passwd.User{UID: 7, GID: 8, Groups: []uint32{8}} }
	confined(t, func(t *testing.T, c confinement, im image) {
		if c.insecure {
			return
		}
		for _, family := range []uint32{unix.AF_ALG, unix.AF_VSOCK, unix.AF_KEY, unix.AF_RXRPC, unix.AF_AX25, 46, 1 << 31, 1<<32 - 1} {
			socketcalls(family, unix.SOCK_STREAM, 0, unix.EPERM).try(t, im, of386)
			pair := call32{name: fmt.Sprintf("socketcall pair %d", family), args: [4]uint32{102, 8, atMemory}, want: unix.EPERM,
				memory: []uint32{family, unix.SOCK_STREAM, 0, atMemory + 4, 0, 0}}
			pair.try(t, im, of386)
		}
		for _, call := range []call32{
			socketcalls(unix.AF_INET, unix.SOCK_STREAM, 0, 0),
			socketcalls(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0),
			socketcalls(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0, 0),
			socketcalls(unix.AF_NETLINK, unix.SOCK_RAW, 0, 0),
			socketcalls(unix.AF_INET, 1<<30|unix.SOCK_STREAM, 0, unix.EINVAL),
			socketcalls(unix.AF_INET, unix.SOCK_STREAM, 1<<32-1, unix.EINVAL),
			{name: "from nowhere", args: [4]uint32{102, 1, 16}, want: unix.EFAULT},
			{name: "pair", args: [4]uint32{102, 8, atMemory}, memory: []uint32{unix.AF_UNIX, unix.SOCK_STREAM, 0, atMemory + 4, 0, 0}},
			{name: "pair to nowhere", args: [4]uint32{102, 8, atMemory}, memory: []uint32{unix.AF_UNIX, unix.SOCK_STREAM, 0, 16}, want: unix.EFAULT},
			{name: "pair inet", args: [4]uint32{102, 8, atMemory}, memory: []uint32{unix.AF_INET, unix.SOCK_STREAM, 0, atMemory + 4, 0, 0}, want: unix.EOPNOTSUPP},
			{name: "bind", args: [4]uint32{102, 2, atMemory}, memory: []uint32{0, 0, 0}, want: unix.ENOTSOCK},
			{name: "no such call", args: [4]uint32{102, 99, atMemory}, memory: []uint32{0, 0, 0}, want: unix.EINVAL},
		} {
			for _, n := range []NetworkMode{NetworkHost, NetworkNone} {
				call.try(t, im, of386, network(n))
				call.try(t, im, of386, network(n), other)
			}
		}
		// A limit of open files that kiln itself exceeds is the caller's.
		few := func(s *Spec) { s.Process.Rlimits = []Rlimit{{Name: "nofile", Soft: 3, Hard: 3}} }
		socketcalls(unix.AF_INET, unix.SOCK_STREAM, 0, unix.EMFILE).try(t, im, of386, few)

		// What a raw socket takes is the caller's own.
		raw := func(want unix.Errno) call32 { return socketcalls(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP, want) }
		var mine unix.Errno
		if c.ids { // the network belongs to another user namespace
			mine = unix.EPERM
		}
		raw(mine).try(t, im, of386)
		raw(unix.EPERM).try(t, im, of386, other)

		// The socket is one of the network of the step, and of the user.
		im.write(t, "/bin/next", "#!/bin/sh\nreadlink /proc/self/fd/3; awk '{print $7}' /proc/net/unix; stat -Lc %u:%g /proc/self/fd/3; exit 0\n")
		if err := os.Chmod(im.lower+"/bin/next", 0o755); err != nil {
			t.Fatal(err)
		}
		for _, n := range []NetworkMode{NetworkHost, NetworkNone} {
			lines := strings.Fields(socketcalls(unix.AF_UNIX, unix.SOCK_STREAM, 0, 0).try(t, im, of386, network(n), other))
			inode := strings.TrimSuffix(strings.TrimPrefix(lines[0], "socket:["), "]")
			if !slices.Contains(lines[1:], inode) {
				t.Errorf("socket %s is not among those of the step's network: %q", inode, lines)
			}
			if owner := lines[len(lines)-1]; owner != "7:8" {
				t.Errorf("the socket belongs to %s", owner)
			}
		}
		// It is closed when a program is executed if the caller wants that.
		out := socketcalls(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0, 0).try(t, im, of386)
		if strings.Contains(out, "socket:") {
			t.Errorf("the program has the socket: %q", out)
		}
	})
}

// A caller that is killed while it waits, and many that call at once, end with the step.
func TestSocketcallEnds(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the programs are for i386")
	}
	im := newImage(t)
	call := socketcalls(unix.AF_INET, unix.SOCK_STREAM, 0, 0)
	if err := os.WriteFile(im.lower+"/bin/call", program32(call), 0o755); err != nil {
		t.Fatal(err)
	}
	out, st, err := im.sh(t, `for i in 1 2 3 4; do (while :; do call; done) & done; for i in $(seq 50); do call || echo failed; done; kill $(jobs -p); echo end`,
		func(s *Spec) { s.Process.Architecture = "386" })
	if errors.Is(err, unix.ENOEXEC) || strings.Contains(out, "Exec format error") {
		t.Skip("the kernel has no 32-bit interface")
	}
	if err != nil || out != "end\n" {
		t.Errorf("%q, %+v, %v", out, st, err)
	}
}

// The kernel's keys belong to users of the machine, also in a user namespace: only root's own privileges on the machine reach them.
func TestKeys(t *testing.T) {
	confined(t, func(t *testing.T, c confinement, im image) {
		probe(t, im, "^TestProbeKeys$", c.spec, func(s *Spec) { s.Process.Env = append(s.Process.Env, fmt.Sprint("KEYS=", c.insecure && !c.ids)) })
	})
}

// TestProbeKeys runs in the sandbox.
func TestProbeKeys(t *testing.T) {
	if os.Getenv("SANDBOX_TEST_PROBE") == "" {
		t.SkipNow() // TestKeys runs it
	}
	want := os.Getenv("KEYS") == "true"
	if _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_USER_KEYRING, true); (err == nil) != want {
		t.Errorf("keyctl: %v, want it allowed: %v", err, want)
	}
	if _, err := unix.AddKey("user", "kiln-test", []byte("x"), unix.KEY_SPEC_PROCESS_KEYRING); (err == nil) != want {
		t.Errorf("add_key: %v, want it allowed: %v", err, want)
	}
}
