package seccomp

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// data is a system call as the kernel shows it to a filter.
type data struct {
	nr, arch uint32
	args     [6]uint64
}

// run interprets a filter. A filter that the kernel would refuse fails the test.
func run(t *testing.T, prog []unix.SockFilter, d data) uint32 {
	t.Helper()
	mem := make([]byte, 64)
	binary.LittleEndian.PutUint32(mem[offsetNr:], d.nr)
	binary.LittleEndian.PutUint32(mem[offsetArch:], d.arch)
	for i, a := range d.args {
		binary.LittleEndian.PutUint64(mem[offsetArgs+8*i:], a)
	}
	var acc uint32
	for pc := 0; pc < len(prog); pc++ {
		in := prog[pc]
		test := false
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			acc = binary.LittleEndian.Uint32(mem[in.K:])
			continue
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= in.K
			continue
		case unix.BPF_RET | unix.BPF_K:
			return in.K
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(in.K)
			continue
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			test = acc == in.K
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			test = acc >= in.K
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			test = acc > in.K
		default:
			t.Fatalf("instruction %d: code %#x", pc, in.Code)
		}
		if test {
			pc += int(in.Jt)
		} else {
			pc += int(in.Jf)
		}
	}
	t.Fatal("the filter has no end")
	return 0
}

// plain reads the policy from top to bottom for one call.
func plain(list []statement, known map[string]uint32, highest uint32, nr uint32, args [6]uint64) uint32 {
	var name []string
	for n, v := range known {
		if v == nr {
			name = append(name, n) // some numbers have two names
		}
	}
	const eperm, enosys = unix.SECCOMP_RET_ERRNO | 1, unix.SECCOMP_RET_ERRNO | 38
	if name == nil {
		return enosys
	}
	is := func(s string) bool { return slices.Contains(name, s) }
	if is("socketcall") {
		return enosys
	}
	if is("socketpair") {
		name = []string{"socket"}
	}
	family, command := uint32(args[0]), uint32(args[1])
	if is("socket") && (family == 15 || family == 33) || is("ioctl") && (command == 0x5412 || command == 0x541c) {
		return eperm
	}
	for _, s := range list {
		if !slices.ContainsFunc(s.Names, is) {
			continue
		}
		holds := true
		for _, a := range s.Args {
			v := args[a.Index]
			switch a.Op {
			case "SCMP_CMP_EQ":
				holds = v == a.Value
			case "SCMP_CMP_LT":
				holds = v < a.Value
			case "SCMP_CMP_MASKED_EQ":
				holds = v&a.Value == a.ValueTwo
			default:
				panic(a.Op)
			}
		}
		if holds && s.Action == "SCMP_ACT_ALLOW" {
			return unix.SECCOMP_RET_ALLOW
		}
		if holds {
			return unix.SECCOMP_RET_ERRNO | s.ErrnoRet
		}
	}
	if nr > highest && !slices.ContainsFunc(list, func(s statement) bool { return slices.ContainsFunc(s.Names, is) }) {
		return enosys
	}
	return eperm
}

func TestFilterIsThePolicy(t *testing.T) {
	interesting := []uint64{
		0, 1, 2, 8, 10, 15, 16, 17, 33, 37, 38, 39, 40, 41, 0x5411, 0x5412, 0x541b, 0x541c, 0x20000, 0x20008, 0x10000000,
		0x40000000, 0x7e020000, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<32 | 15, 1<<32 | 38, 1<<32 | 40, 1<<32 | 0x5412,
		1<<32 | 0x20000000, 1<<63 | 8, 1<<64 - 1, 0x01200011, 0x003d0f00,
	}
	for goarch, names := range map[string][]string{"amd64": {"amd64", "386"}, "arm64": {"arm64", "arm"}} {
		f, err := Compile(goarch, goarch)
		if err != nil || f.Notifies {
			t.Fatal(err, f.Notifies)
		}
		prog := f.Program
		t.Logf("%s: %d instructions", goarch, len(prog))
		if len(prog) > unix.BPF_MAXINSNS {
			t.Errorf("%d instructions", len(prog))
		}
		list := statements(t, goarch)
		for i, a := range abis[goarch] {
			known := numbers(t, names[i])
			var highest uint32
			for _, s := range list {
				for _, n := range s.Names {
					if nr := known[n]; nr < 0xf0000 {
						highest = max(highest, nr)
					}
				}
			}
			var calls []uint32
			for nr := range uint32(1100) {
				calls = append(calls, nr)
			}
			calls = append(calls, 0xf0000, 0xf0001, 0xf0002, 0xf0003, 0xf0005, 0xf0006, 1<<30, 1<<30|59, 1<<30|520, 1<<31, 1<<32-1)
			for _, nr := range calls {
				for _, v := range interesting {
					for arg := range 2 {
						var args [6]uint64
						args[arg] = v
						got := run(t, prog, data{nr, a.audit, args})
						if want := plain(list, known, highest, nr, args); got != want {
							t.Errorf("%s: call %d, argument %d %#x: %#x, want %#x", names[i], nr, arg, v, got, want)
						}
					}
				}
			}
		}
		if got := run(t, prog, data{0, 0xdeadbeef, [6]uint64{}}); got != unix.SECCOMP_RET_KILL_PROCESS {
			t.Errorf("foreign ABI: %#x", got)
		}
	}
	if _, err := Compile("s390x", ""); err == nil {
		t.Error("no error for an architecture without a table")
	}
}

// In an image of 386 the calls of socketcall that have a family in memory, and no others, are left to the reader of notifications. All
// else is as in other images.
func TestSocketcall(t *testing.T) {
	other, err := Compile("amd64", "amd64")
	if err != nil {
		t.Fatal(err)
	}
	f, err := Compile("amd64", "386")
	if err != nil || !f.Notifies {
		t.Fatal(err, f.Notifies)
	}
	for number := range uint64(25) {
		want := uint32(unix.SECCOMP_RET_ALLOW)
		if number == 1 || number == 8 { // SYS_SOCKET, SYS_SOCKETPAIR of linux/net.h
			want = unix.SECCOMP_RET_USER_NOTIF
		}
		d := data{102, unix.AUDIT_ARCH_I386, [6]uint64{number}}
		if got := run(t, f.Program, d); got != want {
			t.Errorf("socketcall %d in an image of 386: %#x, want %#x", number, got, want)
		}
		if got := run(t, other.Program, d); got != unix.SECCOMP_RET_ERRNO|38 {
			t.Errorf("socketcall %d in an image of amd64: %#x", number, got)
		}
	}
	for _, arch := range []uint32{unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_X86_64} {
		for nr := range uint32(1100) {
			if arch == unix.AUDIT_ARCH_I386 && nr == 102 {
				continue
			}
			for _, family := range []uint64{1, 38, 40} {
				d := data{nr, arch, [6]uint64{family}}
				if got, want := run(t, f.Program, d), run(t, other.Program, d); got != want {
					t.Errorf("ABI %#x, call %d in an image of 386: %#x, want %#x", arch, nr, got, want)
				}
			}
		}
	}
	for goarch, image := range map[string]string{"arm64": "386", "amd64": "arm64"} {
		if f, err := Compile(goarch, image); err != nil || f.Notifies {
			t.Errorf("image of %s on %s: %v, %v", image, goarch, f.Notifies, err)
		}
	}
}

// What else a multiplexing call reaches is allowed whatever its arguments are, so that nothing is got around.
func TestMultiplexers(t *testing.T) {
	known := numbers(t, "386")
	acts := map[uint32]action{}
	for _, c := range calls386 {
		acts[c.nr] = c.act
	}
	for _, name := range []string{
		"bind", "connect", "listen", "accept4", "getsockname", "getpeername", "sendto", "recvfrom", "shutdown", "setsockopt", "getsockopt",
		"sendmsg", "recvmsg", "recvmmsg", "sendmmsg", // socketcall
		"semget", "semctl", "semtimedop_time64", "msgsnd", "msgrcv", "msgget", "msgctl", "shmat", "shmdt", "shmget", "shmctl", // ipc
	} {
		if nr, ok := known[name]; !ok || acts[nr] != allow {
			t.Errorf("%s, call %d: action %d", name, nr, acts[nr])
		}
	}
	for _, name := range []string{"socketcall", "ipc"} {
		for _, goarch := range []string{"amd64", "arm64", "arm"} {
			if nr, ok := numbers(t, goarch)[name]; ok {
				t.Errorf("%s has %s, call %d", goarch, name, nr)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	for family, want := range map[uint32]bool{
		unix.AF_UNSPEC: false, unix.AF_UNIX: false, unix.AF_INET: false, unix.AF_INET6: false, unix.AF_NETLINK: false, unix.AF_PACKET: false,
		unix.AF_ALG: true, unix.AF_VSOCK: true, unix.AF_KEY: true, unix.AF_RXRPC: true, unix.AF_AX25: true, 46: true, 1<<32 - 1: true,
	} {
		if Refused(family) != want {
			t.Errorf("family %d: refused %t", family, !want)
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	for b.Loop() {
		if _, err := Compile("amd64", ""); err != nil {
			b.Fatal(err)
		}
	}
}
