// Package seccomp compiles Docker's default system call policy, as it is for a container with Docker's default
// capabilities, to a filter for seccomp(2). It knows nothing of processes: whoever wants the filter installs it.
//
// The policy is data in table.go, generated from github.com/moby/profiles. The filter is a binary search over call numbers,
// since the kernel runs it for every number when it is installed, and a list of comparisons would cost most of a step's
// start. It is stricter than Docker's in these points:
//
//   - Numbers that no table knows, and the x32 ABI, get ENOSYS, so that programs fall back.
//   - Sockets of the families key and rxrpc, and the terminal ioctls that push input, are refused.
//   - socketpair(2) is held to the rule of socket(2): the kernel makes the sockets before it finds that their family has no pairs.
//   - The upper half of an argument that the kernel cuts off cannot hide a value.
//   - A rule on arguments cannot be got around by a call that has them in memory, where a filter cannot look. Of those that the
//     ABIs have, socketcall(2) of 386 alone reaches calls that have such a rule; see Compile. All calls that ipc(2) reaches are
//     allowed, arm's EABI has neither, and clone3(2) and io_uring_setup(2) are refused as in Docker's policy.
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
	notify                 // socketcall(2): the calls that make sockets are left to whoever reads notifications, others go through
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

// A Filter is a program for seccomp(2).
type Filter struct {
	Program []unix.SockFilter
	// Notifies says that the filter leaves calls of socketcall(2) to a listener, see seccomp_unotify(2): those of SocketcallSocket and
	// SocketcallSocketpair. Without a listener they get ENOSYS. Socketcalls is a filter for one.
	Notifies bool
}

// Socketcalls is a second filter, which only leaves socketcall(2) to a listener. The kernel asks the filter that was installed last, so
// if this one cannot get a listener, the first one still protects.
func Socketcalls() []unix.SockFilter {
	prog := []unix.SockFilter{load(offsetArch), jump(unix.BPF_JEQ, unix.AUDIT_ARCH_I386, 0, 2), load(offsetNr),
		jump(unix.BPF_JEQ, socketcall, 1, 0), result(unix.SECCOMP_RET_ALLOW)}
	return append(prog, decide(notify)...)
}

// keyCalls are add_key(2), request_key(2) and keyctl(2) in each ABI.
var keyCalls = map[uint32][]uint32{
	unix.AUDIT_ARCH_X86_64: {248, 249, 250, x32 + 248, x32 + 249, x32 + 250}, unix.AUDIT_ARCH_I386: {286, 287, 288},
	unix.AUDIT_ARCH_AARCH64: {217, 218, 219}, unix.AUDIT_ARCH_ARM: {309, 310, 311},
}

// x32 marks the numbers of the x32 ABI, whose processes are of AUDIT_ARCH_X86_64.
const x32 = 0x40000000

// Keys is the filter that refuses the calls of the kernel's key service, for a GOARCH, and allows all else. Keys belong to users of the
// machine, whatever user namespace a process is in: see keyrings(7).
func Keys(goarch string) []unix.SockFilter {
	prog := []unix.SockFilter{load(offsetArch)}
	for _, a := range abis[goarch] {
		body := []unix.SockFilter{load(offsetNr)}
		for _, nr := range keyCalls[a.audit] {
			body = append(body, jump(unix.BPF_JEQ, nr, 0, 1), errno(unix.EPERM))
		}
		body = append(body, result(unix.SECCOMP_RET_ALLOW))
		prog = append(prog, branch(unix.BPF_JEQ, a.audit, len(body))...)
		prog = append(prog, body...)
	}
	return append(prog, result(unix.SECCOMP_RET_KILL_PROCESS))
}

// Calls of socketcall(2) that make sockets, from linux/net.h.
const (
	SocketcallSocket     = 1
	SocketcallSocketpair = 8
)

// socketcall is the number of socketcall(2) in the ABI of 386.
const socketcall = 102

// Compile returns the filter for a GOARCH, for the programs of an image of an architecture as the OCI image specification names it,
// "" for that of the machine. It fails if there is no table for the GOARCH.
//
// socketcall(2) has the family of a socket in memory. Where it can be done without it gets ENOSYS. The C library of Debian for 386
// and programs of Go for it know no other way to a socket, so in an image of 386 it is there, and Filter.Notifies is set.
func Compile(goarch, image string) (Filter, error) {
	list, ok := abis[goarch]
	if !ok {
		return Filter{}, fmt.Errorf("compile seccomp filter: no system call table for %s", goarch)
	}
	var f Filter
	prog := []unix.SockFilter{load(offsetArch)}
	for _, a := range list {
		calls := a.calls
		if a.audit == unix.AUDIT_ARCH_I386 && image == "386" {
			calls, f.Notifies = append(slices.Clone(calls), call{socketcall, notify}), true
		}
		body := append([]unix.SockFilter{load(offsetNr)}, search(intervals(calls))...)
		prog = append(prog, branch(unix.BPF_JEQ, a.audit, len(body))...)
		prog = append(prog, body...)
	}
	f.Program = append(prog, result(unix.SECCOMP_RET_KILL_PROCESS))
	return f, nil
}

// Refused reports whether the policy refuses socket(2) with a family, on every machine.
func Refused(family uint32) bool {
	r := rules[slices.IndexFunc(rules, func(r rule) bool { return r.name == "socket" })]
	is := func(c condition) bool { return c.op == equal && family == c.value || c.op == less && family < c.value }
	return slices.ContainsFunc(extra[r.name], is) || !slices.ContainsFunc(r.anyOf, is)
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
	case notify:
		return []unix.SockFilter{load(offsetArgs), jump(unix.BPF_JEQ, SocketcallSocket, 1, 0), jump(unix.BPF_JEQ, SocketcallSocketpair, 0, 1),
			result(unix.SECCOMP_RET_USER_NOTIF), result(unix.SECCOMP_RET_ALLOW)}
	}
	r := rules[act-withRule]
	var prog []unix.SockFilter
	for _, c := range slices.Concat(r.refuse, extra[r.name]) {
		prog = append(prog, load(offsetArgs+8*c.arg), jump(unix.BPF_JEQ, c.value, 0, 1), errno(unix.EPERM))
	}
	if len(r.anyOf) == 0 {
		return append(prog, result(unix.SECCOMP_RET_ALLOW))
	}
	for list := r.anyOf; len(list) > 0; {
		n := 1
		for n < len(list) && list[n].op != maskedEqual && list[0].op != maskedEqual && list[n].arg == list[0].arg {
			n++
		}
		prog = append(prog, anyOf(list[:n])...)
		list = list[n:]
	}
	return append(prog, errno(unix.EPERM))
}

// anyOf returns the instructions that allow the call if one of the conditions holds, and go on behind them if none does. The
// conditions are about one argument; one that is masked comes alone.
func anyOf(list []condition) []unix.SockFilter {
	c := list[0]
	low, high := load(offsetArgs+8*c.arg), load(offsetArgs+8*c.arg+4)
	yes := result(unix.SECCOMP_RET_ALLOW)
	if c.op == maskedEqual {
		and := unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: c.mask}
		return []unix.SockFilter{low, and, jump(unix.BPF_JEQ, c.value, 0, 1), yes}
	}
	n := len(list)
	prog := []unix.SockFilter{high, jump(unix.BPF_JEQ, 0, 0, uint8(n+3)), low}
	for i, c := range list {
		to := uint8(n - i) // the instruction that allows
		switch c.op {
		case equal:
			prog = append(prog, jump(unix.BPF_JEQ, c.value, to, 0))
		case less:
			prog = append(prog, jump(unix.BPF_JGE, c.value, 0, to))
		}
	}
	return append(prog, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: 1}, yes)
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
