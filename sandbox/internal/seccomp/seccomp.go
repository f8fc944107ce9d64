// Package seccomp compiles Docker's default system call policy, as applied to a container with Docker's default capabilities,
// into a filter for seccomp(2). It does not install the filter.
//
// The policy is in table.go, generated from github.com/moby/profiles. The filter is a binary search over call numbers: the kernel
// runs it for every number when it is installed, and a linear list of comparisons would take most of the time that a step needs
// to start. It is stricter than Docker's filter in these points:
//
//   - Numbers that are not in a table, and the x32 ABI, get ENOSYS, so that programs fall back.
//   - Sockets of the families key and rxrpc, and the terminal ioctls that push input, are refused.
//   - socketpair(2) is subject to the rule for socket(2): the kernel creates the sockets before it finds that their family does
//     not support pairs.
//   - The upper half of an argument, which the kernel ignores, cannot hide a value.
//   - A rule on arguments cannot be bypassed by a call whose arguments are in memory, where a filter cannot read them. Among the
//     calls of the supported ABIs, only socketcall(2) of 386 reaches calls with such a rule; see Compile. All calls reached by
//     ipc(2) are allowed, arm's EABI has neither, and clone3(2) and io_uring_setup(2) are refused as in Docker's policy.
package seccomp

//go:generate go test -run TestTable -update .

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// An action is the result for a call: one of the constants, or withRule plus an index into rules.
type action uint8

const (
	absent   action = iota // ENOSYS
	refuse                 // EPERM
	allow                  // permitted
	notify                 // socketcall(2): calls that create sockets are left to the listener, others are permitted
	withRule               // rules[action-withRule] decides
)

// call is the action for one call number of one architecture.
type call struct {
	nr  uint32
	act action
}

// rule permits a call depending on its arguments: if any of the conditions holds, or if there are none.
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

// condition compares the lower 32 bits of an argument. Unless op is maskedEqual, it does not hold if an upper bit is set.
type condition struct {
	arg         uint32
	op          operator
	value, mask uint32
}

// An abi is a set of call numbers: the value of seccomp_data.arch, and the table.
type abi struct {
	audit uint32
	calls []call
}

// The ABIs that a process may use on each architecture.
var abis = map[string][]abi{
	"amd64": {{unix.AUDIT_ARCH_X86_64, callsAMD64}, {unix.AUDIT_ARCH_I386, calls386}},
	"arm64": {{unix.AUDIT_ARCH_AARCH64, callsARM64}, {unix.AUDIT_ARCH_ARM, callsARM}},
}

// extra are the calls, by name, that are refused in addition to Docker's policy.
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
	// Notifies reports that the filter leaves some calls of socketcall(2) to a listener, see seccomp_unotify(2): those of
	// SocketcallSocket and SocketcallSocketpair. Without a listener they get ENOSYS. Socketcalls is a filter with a listener.
	Notifies bool
}

// Socketcalls is a second filter, which only leaves socketcall(2) to a listener. The kernel uses the listener of the filter that
// was installed last, and if this filter cannot have one, the first filter still applies.
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

// x32 is the bit set in the numbers of the x32 ABI, whose processes have AUDIT_ARCH_X86_64.
const x32 = 0x40000000

// Keys returns a filter for a GOARCH that refuses the calls of the kernel's key service and allows all others. Keys belong to
// users of the host, regardless of the user namespace of a process: see keyrings(7).
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

// Calls of socketcall(2) that create sockets, from linux/net.h.
const (
	SocketcallSocket     = 1
	SocketcallSocketpair = 8
)

// socketcall is the number of socketcall(2) in the ABI of 386.
const socketcall = 102

// Compile returns the filter for a GOARCH, for the programs of an image of an architecture as named by the OCI image
// specification, or "" for that of the host. It fails if there is no table for the GOARCH.
//
// socketcall(2) has the family of a socket in memory, so it gets ENOSYS where programs can do without it. Debian's C library for
// 386 and Go programs for 386 have no other way to create a socket. In an image for 386 the call is therefore available, and
// Filter.Notifies is set.
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

// Refused reports whether the policy refuses socket(2) with a family, on every architecture.
func Refused(family uint32) bool {
	r := rules[slices.IndexFunc(rules, func(r rule) bool { return r.name == "socket" })]
	is := func(c condition) bool { return c.op == equal && family == c.value || c.op == less && family < c.value }
	return slices.ContainsFunc(extra[r.name], is) || !slices.ContainsFunc(r.anyOf, is)
}

// intervals converts a table into the numbers at which the action changes. The first is 0.
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
	// An empty gap between numbers may leave two equal neighbors.
	return slices.CompactFunc(list, func(a, b call) bool { return a.act == b.act })
}

// search generates the binary search, which returns the action for the call number in the accumulator.
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

// anyOf returns the instructions that allow the call if any of the conditions holds, and continue after them otherwise. The
// conditions must be for the same argument; a masked condition must be the only one.
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

// jumpIf skips n instructions if the comparison with the accumulator is true, and otherwise continues with the next. The offset
// in a conditional jump has 8 bits.
func jumpIf(op uint16, k uint32, n int) []unix.SockFilter {
	if n <= 255 {
		return []unix.SockFilter{jump(op, k, uint8(n), 0)}
	}
	return []unix.SockFilter{jump(op, k, 0, 1), {Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(n)}}
}

// branch continues with the next instruction if the comparison with the accumulator is true, and otherwise skips n.
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
