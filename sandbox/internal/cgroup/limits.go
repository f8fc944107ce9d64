package cgroup

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
)

// DefaultPids is how many processes and threads a run may have if Limits does not say.
const DefaultPids = 4096

// Limits bound what a process and its descendants take together, by control groups: see Documentation/admin-guide/cgroup-v1
// and cgroup-v2.rst of the Linux source. What is asked for and cannot be had is an error of Run. The zero value of each is
// none, but for Pids.
type Limits struct {
	// Pids is how many processes and threads there may be; 0 is DefaultPids, where the machine lets kiln have control groups, and else
	// what Status.NoPidsLimit says; -1 is no limit.
	Pids int64
	// Memory is in bytes. MemorySwap is memory and swap together, in bytes; 0 is twice Memory, where swap can be limited;
	// -1 is no limit.
	Memory, MemorySwap int64
	// CPUShares is a weight from 2 to 262144, where processes without a limit have 1024.
	CPUShares int64
	// CPUQuota is how many microseconds of processor time there are in each CPUPeriod, in microseconds (0: 100000).
	CPUPeriod, CPUQuota int64
	// CPUs and Mems are the processors and memory nodes that may be used, as "0-3,5".
	CPUs, Mems string
}

// LimitError is a limit that was asked for and cannot be applied.
type LimitError struct {
	// Controller is the kernel's name of what applies it: "memory".
	Controller string
	// Err is why not.
	Err error
}

func (e *LimitError) Error() string { return "limit the step's " + e.Controller + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *LimitError) Unwrap() error { return e.Err }

// errNoController is a machine without the controller.
var errNoController = errors.New("this machine's control groups have no such controller: either the kernel lacks it, or it is not mounted")

// Check returns an error that names the value which no machine can apply.
func (l Limits) Check() error {
	switch {
	case l.Pids < -1:
		return fmt.Errorf("a limit of %d processes: want a number of at least 1, or -1 for no limit", l.Pids)
	case l.Memory < 0 || l.Memory > 0 && l.Memory < 6<<20:
		return fmt.Errorf("a limit of %d bytes of memory: the least is 6 MB", l.Memory)
	case l.MemorySwap != 0 && l.Memory == 0:
		return errors.New("a limit of memory and swap together needs one of memory")
	case l.MemorySwap < -1 || l.MemorySwap > 0 && l.MemorySwap < l.Memory:
		return errors.New("the limit of memory and swap together is below that of memory")
	case l.CPUShares != 0 && (l.CPUShares < 2 || l.CPUShares > 262144):
		return fmt.Errorf("%d cpu shares: want 2 to 262144", l.CPUShares)
	case l.CPUPeriod != 0 && (l.CPUPeriod < 1000 || l.CPUPeriod > 1000000):
		return fmt.Errorf("a cpu period of %d microseconds: want 1000 to 1000000", l.CPUPeriod)
	case l.CPUQuota < -1 || l.CPUQuota > 0 && l.CPUQuota < 1000:
		return fmt.Errorf("a cpu quota of %d microseconds: want at least 1000", l.CPUQuota)
	}
	for _, list := range []string{l.CPUs, l.Mems} {
		if _, err := parseSet(list); err != nil {
			return err
		}
	}
	return nil
}

// Tightened returns l with those of others that are tighter. Weights and sets have no order: those of l come first.
func (l Limits) Tightened(others Limits) Limits {
	if others.Memory > 0 && (l.Memory == 0 || others.Memory < l.Memory) {
		l.Memory = others.Memory
	}
	if others.MemorySwap > 0 && (l.MemorySwap <= 0 || others.MemorySwap < l.MemorySwap) || others.MemorySwap < 0 && l.MemorySwap == 0 {
		l.MemorySwap = others.MemorySwap
	}
	if l.CPUQuota == 0 && l.CPUPeriod == 0 {
		l.CPUQuota, l.CPUPeriod = others.CPUQuota, others.CPUPeriod
	}
	l.CPUShares = cmp.Or(l.CPUShares, others.CPUShares)
	l.CPUs, l.Mems = cmp.Or(l.CPUs, others.CPUs), cmp.Or(l.Mems, others.Mems)
	return l
}

// controllers are those that apply what is asked for.
func (l Limits) controllers() []string {
	var list []string
	if l.Memory > 0 {
		list = append(list, "memory")
	}
	if l.CPUShares > 0 || l.CPUQuota > 0 || l.CPUPeriod > 0 {
		list = append(list, "cpu")
	}
	if l.CPUs != "" || l.Mems != "" {
		list = append(list, "cpuset")
	}
	if l.Pids > 0 {
		list = append(list, "pids")
	}
	return list
}

// setting is a value for one file of a control group.
type setting struct {
	file, value string
	// read is the file that tells what holds, if not the same.
	read string
	// same says whether what was read is what was set.
	same func(got string) bool
	// optional says that a kernel without the file is no error.
	optional bool
}

// settings returns what to write for a controller, in this order.
func (l Limits) settings(controller string, unified bool) []setting {
	var list []setting
	add := func(file, value string) *setting {
		s := setting{file: file, value: value, same: func(got string) bool { return got == value }}
		list = append(list, s)
		return &list[len(list)-1]
	}
	number := func(file string, n int64) *setting { return add(file, strconv.FormatInt(n, 10)) }
	bytes := func(file string, n int64) *setting {
		if n < 0 {
			return add(file, "max")
		}
		s := number(file, n)
		page := int64(os.Getpagesize())
		want := strconv.FormatInt(n/page*page, 10)
		s.same = func(got string) bool { return got == want }
		return s
	}
	set := func(file, value, read string) {
		if value == "" {
			return
		}
		want, _ := parseSet(value)
		s := add(file, value)
		s.read = read
		s.same = func(got string) bool {
			is, err := parseSet(got)
			return err == nil && is == want
		}
	}
	quota, period := l.CPUQuota, l.CPUPeriod
	if period == 0 {
		period = 100000
	}
	total := l.MemorySwap
	if total == 0 && l.Memory > math.MaxInt64/2 {
		total = -1
	} else if total == 0 {
		total = 2 * l.Memory
	}
	switch {
	case controller == "pids":
		number("pids.max", l.Pids)
	case controller == "memory" && unified:
		bytes("memory.max", l.Memory)
		swap := int64(-1)
		if total >= 0 {
			swap = total - l.Memory
		}
		bytes("memory.swap.max", swap).optional = l.MemorySwap == 0
	case controller == "memory":
		bytes("memory.limit_in_bytes", l.Memory)
		if total >= 0 { // a new group has no limit
			bytes("memory.memsw.limit_in_bytes", total).optional = l.MemorySwap == 0
		}
	case controller == "cpu" && unified:
		if l.CPUShares > 0 {
			// The range of shares onto that of weights, as every runtime does it.
			number("cpu.weight", 1+(l.CPUShares-2)*9999/262142)
		}
		if quota > 0 {
			add("cpu.max", fmt.Sprintf("%d %d", quota, period))
		} else if l.CPUPeriod > 0 {
			add("cpu.max", fmt.Sprintf("max %d", period))
		}
	case controller == "cpu":
		if l.CPUShares > 0 {
			number("cpu.shares", l.CPUShares)
		}
		if l.CPUPeriod > 0 {
			number("cpu.cfs_period_us", period)
		}
		if quota > 0 {
			number("cpu.cfs_quota_us", quota)
		}
	case controller == "cpuset" && unified:
		// What is asked for and is not there is left out silently, but for the "effective" files.
		set("cpuset.cpus", l.CPUs, "cpuset.cpus.effective")
		set("cpuset.mems", l.Mems, "cpuset.mems.effective")
	case controller == "cpuset":
		set("cpuset.cpus", l.CPUs, "")
		set("cpuset.mems", l.Mems, "")
	}
	return list
}

// maxSet bounds the numbers of processors and memory nodes.
const maxSet = 1 << 13

// parseSet reads a list of numbers and ranges, as "0-3,5"; two are equal if they name the same numbers.
func parseSet(list string) (set [maxSet / 64]uint64, err error) {
	for part := range strings.SplitSeq(list, ",") {
		if part == "" {
			continue
		}
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		first, err := strconv.ParseUint(from, 10, 16)
		last := first
		if err == nil && isRange {
			last, err = strconv.ParseUint(to, 10, 16)
		}
		if err != nil || last < first || last >= maxSet {
			return set, fmt.Errorf(`%q is not a list of numbers below %d, such as "0-3,5"`, list, maxSet)
		}
		for n := first; n <= last; n++ {
			set[n/64] |= 1 << (n % 64)
		}
	}
	return set, nil
}
