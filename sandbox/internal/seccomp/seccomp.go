// Package seccomp compiles Docker's default system call policy, as it is for a container with Docker's default
// capabilities, to a filter for seccomp(2). It knows nothing of processes: whoever wants the filter installs it.
//
// The policy is data in table.go, generated from github.com/moby/profiles. The filter is a binary search over call numbers,
// since the kernel runs it for every number when it is installed, and a list of comparisons would cost most of a step's
// start. It is stricter than Docker's in five points: numbers that no table knows and the x32 ABI get ENOSYS, so that
// programs fall back; sockets of the families key and rxrpc and the terminal ioctls that push input are refused; and the
// upper half of an argument that the kernel cuts off cannot hide a value.
package seccomp

//go:generate go test -run TestTable -update .

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// An action is what becomes of a call: one of the constants, or withRule plus an index into rules.
type action uint8

const (
	absent   action = iota // ENOSYS
	refuse                 // EPERM
	allow                  // goes through
	withRule               // rules[action-withRule] decides
)

// call is the action for one number of one architecture.
type call struct {
	nr  uint32
	act action
}

// rule decides by a call's arguments: it goes through if one of the conditions holds, or if there are none.
type rule struct {
	name   string
	anyOf  []condition
	refuse []condition
}

type operator uint8

const (
	equal operator = iota
	less
	greater
	maskedEqual // arg & mask == value
)

// condition compares the lower 32 bits of an argument. Unless it is masked it does not hold if an upper bit is set.
type condition struct {
	arg         uint32
	op          operator
	value, mask uint32
}

// An abi is a set of call numbers: what seccomp_data.arch holds, and the table.
type abi struct {
	audit uint32
	calls []call
}

// The ABIs that a process may use on each architecture.
var abis = map[string][]abi{
	"amd64": {{unix.AUDIT_ARCH_X86_64, callsAMD64}, {unix.AUDIT_ARCH_I386, calls386}},
	"arm64": {{unix.AUDIT_ARCH_AARCH64, callsARM64}, {unix.AUDIT_ARCH_ARM, callsARM}},
}

// extra is what is refused beyond Docker's policy, by call.
var extra = map[string][]condition{
	"socket": {{arg: 0, value: unix.AF_KEY}, {arg: 0, value: unix.AF_RXRPC}},
	"ioctl":  {{arg: 1, value: unix.TIOCSTI}, {arg: 1, value: unix.TIOCLINUX}},
}

// Offsets in struct seccomp_data, see seccomp(2). Arguments are 64 bits wide, and both architectures are little-endian.
const (
	offsetNr   = 0
	offsetArch = 4
	offsetArgs = 16
)

// Compile returns the filter for a GOARCH. It fails if there is no table for it.
func Compile(goarch string) ([]unix.SockFilter, error) {
	list, ok := abis[goarch]
	if !ok {
		return nil, fmt.Errorf("compile seccomp filter: no system call table for %s", goarch)
	}
	prog := []unix.SockFilter{load(offsetArch)}
	for _, a := range list {
		body := append([]unix.SockFilter{load(offsetNr)}, search(intervals(a.calls))...)
		prog = append(prog, branch(unix.BPF_JEQ, a.audit, len(body))...)
		prog = append(prog, body...)
	}
	return append(prog, result(unix.SECCOMP_RET_KILL_PROCESS)), nil
}

// intervals turns a table into the numbers at which the action changes. The first is at 0.
func intervals(calls []call) []call {
	calls = slices.Clone(calls)
	slices.SortFunc(calls, func(a, b call) int { return int(a.nr) - int(b.nr) })
	list := []call{{0, absent}}
	add := func(nr uint32, act action) {
		last := &list[len(list)-1]
		switch {
		case last.act == act:
		case last.nr == nr:
			last.act = act
		default:
			list = append(list, call{nr, act})
		}
	}
	for _, c := range calls {
		add(c.nr, c.act)
		add(c.nr+1, absent)
	}
	// A number that was absent for no width at all may leave two equal neighbours.
	return slices.CompactFunc(list, func(a, b call) bool { return a.act == b.act })
}

// search is the binary search: with a call's number loaded it returns the call's action.
func search(list []call) []unix.SockFilter {
	if len(list) == 1 {
		return decide(list[0].act)
	}
	mid := len(list) / 2
	low, high := search(list[:mid]), search(list[mid:])
	// "Below" is the branch that is laid out first.
	return slices.Concat(jumpIf(unix.BPF_JGE, list[mid].nr, len(low)), low, high)
}

func decide(act action) []unix.SockFilter {
	switch act {
	case absent:
		return []unix.SockFilter{errno(unix.ENOSYS)}
	case refuse:
		return []unix.SockFilter{errno(unix.EPERM)}
	case allow:
		return []unix.SockFilter{result(unix.SECCOMP_RET_ALLOW)}
	}
	r := rules[act-withRule]
	var prog []unix.SockFilter
	for _, c := range slices.Concat(r.refuse, extra[r.name]) {
		prog = append(prog, load(offsetArgs+8*c.arg), jump(unix.BPF_JEQ, c.value, 0, 1), errno(unix.EPERM))
	}
	if len(r.anyOf) == 0 {
		return append(prog, result(unix.SECCOMP_RET_ALLOW))
	}
	for _, c := range r.anyOf {
		prog = append(prog, c.compile()...)
	}
	return append(prog, errno(unix.EPERM))
}

// compile returns the instructions that allow the call if the condition holds and go on behind them if not.
func (c condition) compile() []unix.SockFilter {
	low, high := load(offsetArgs+8*c.arg), load(offsetArgs+8*c.arg+4)
	yes := result(unix.SECCOMP_RET_ALLOW)
	if c.op == maskedEqual {
		and := unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: c.mask}
		return []unix.SockFilter{low, and, jump(unix.BPF_JEQ, c.value, 0, 1), yes}
	}
	var test unix.SockFilter
	switch c.op {
	case equal:
		test = jump(unix.BPF_JEQ, c.value, 0, 1)
	case less:
		test = jump(unix.BPF_JGE, c.value, 1, 0)
	case greater:
		test = jump(unix.BPF_JGT, c.value, 0, 1)
	}
	return []unix.SockFilter{high, jump(unix.BPF_JEQ, 0, 0, 3), low, test, yes}
}

// jumpIf jumps over n instructions if the accumulator compares true, and goes on with the next if not. An offset in a
// condition has 8 bits.
func jumpIf(op uint16, k uint32, n int) []unix.SockFilter {
	if n <= 255 {
		return []unix.SockFilter{jump(op, k, uint8(n), 0)}
	}
	return []unix.SockFilter{jump(op, k, 0, 1), {Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(n)}}
}

// branch goes on with the next instruction if the accumulator compares true, and jumps over n of them if not.
func branch(op uint16, k uint32, n int) []unix.SockFilter {
	return []unix.SockFilter{jump(op, k, 1, 0), {Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(n)}}
}

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func jump(op uint16, k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, K: k, Jt: yes, Jf: no}
}

func result(v uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: v}
}

func errno(e unix.Errno) unix.SockFilter {
	return result(unix.SECCOMP_RET_ERRNO | uint32(e))
}
