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
			case "SCMP_CMP_GT":
				holds = v > a.Value && v <= 1<<32-1
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
		prog, err := Compile(goarch)
		if err != nil {
			t.Fatal(err)
		}
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
	if _, err := Compile("s390x"); err == nil {
		t.Error("no error for an architecture without a table")
	}
}

func BenchmarkCompile(b *testing.B) {
	for b.Loop() {
		if _, err := Compile("amd64"); err != nil {
			b.Fatal(err)
		}
	}
}
