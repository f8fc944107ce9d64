package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// devicesController is the kernel's name of what says which devices the processes of a control group may open, by whatever node. In
// version 1 it is a controller with rules; in version 2 a BPF program that is attached to the group.
const devicesController = "devices"

// Device is a device that the processes of a run may open.
type Device struct {
	Kind         byte // 'c' or 'b'
	Major, Minor uint32
	// Any stands for every minor number.
	Any bool
}

// CanGuard returns why a run cannot have a device controller; nil if it can.
func CanGuard(rules []Device) error {
	all, err := machine()
	if err != nil {
		return err
	}
	c := &Groups{}
	err = c.guard(all, rules, Limits{})
	return errors.Join(err, c.Remove())
}

// guard lets the processes of the run open the devices of the rules and no others, and make nodes of any, as Docker does. See
// Documentation/admin-guide/cgroup-v1/devices.rst of the Linux source, and "Device controller" in cgroup-v2.rst. After an error they
// may open what kiln may.
func (c *Groups) guard(all []*hierarchy, rules []Device, l Limits) error {
	i := slices.IndexFunc(all, func(h *hierarchy) bool { return slices.Contains(h.controllers, devicesController) })
	if i < 0 {
		i = slices.IndexFunc(all, func(h *hierarchy) bool { return h.unified })
	}
	if i < 0 {
		return errNoController
	}
	h := all[i]
	had := c.in(h) != nil
	g, err := c.group(h, devicesController, l)
	if err != nil {
		return err
	}
	if h.unified {
		return attachDevices(g.dir, rules)
	}
	if err := g.allowDevices(rules); err != nil {
		// With a part of the rules nothing could be opened any more.
		c.groups = slices.DeleteFunc(c.groups, func(other *group) bool { return other == g })
		err = errors.Join(err, g.remove())
		if had {
			err = errors.Join(err, c.add(h, filepath.Dir(g.path), false))
		}
		return err
	}
	return nil
}

// allowDevices sets the rules of a group of version 1. A new one has those of the group above.
func (g *group) allowDevices(rules []Device) error {
	if err := g.write("devices.deny", "a"); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(g.path, "devices.allow"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := []string{"c *:* m", "b *:* m"}
	for _, r := range rules {
		minor := "*"
		if !r.Any {
			minor = fmt.Sprint(r.Minor)
		}
		lines = append(lines, fmt.Sprintf("%c %d:%s rw", r.Kind, r.Major, minor))
	}
	for _, line := range lines {
		if _, err := f.WriteString(line); err != nil { // a rule is a write
			return fmt.Errorf("allow device %s: %w", line, err)
		}
	}
	return nil
}

// Of linux/bpf.h.
const (
	bpfDeviceMknod = 1 // in the upper half of access_type
	bpfDeviceBlock = 1 // in the lower half
	bpfDeviceChar  = 2

	bpfLoadWord = unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W
	bpfAnd      = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	bpfShift    = unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K
	bpfCopy     = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_X
	bpfSet      = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K
	bpfUnless   = unix.BPF_JMP | unix.BPF_JNE | unix.BPF_K
	bpfExit     = unix.BPF_JMP | unix.BPF_EXIT
)

// bpfInstruction is struct bpf_insn: the registers are four bits each, the destination in the lower ones.
type bpfInstruction struct {
	code      byte
	registers byte
	offset    int16
	value     int32
}

// deviceProgram returns the rules as a program of the type BPF_PROG_TYPE_CGROUP_DEVICE, which is given a struct bpf_cgroup_dev_ctx
// and returns 1 for what is allowed.
func deviceProgram(rules []Device) []bpfInstruction {
	const context, kind, access, major, minor, result = 1, 2, 3, 4, 5, 0
	p := []bpfInstruction{
		{code: bpfLoadWord, registers: kind | context<<4},
		{code: bpfCopy, registers: access | kind<<4},
		{code: bpfShift, registers: access, value: 16},
		{code: bpfAnd, registers: kind, value: 0xffff},
		{code: bpfLoadWord, registers: major | context<<4, offset: 4},
		{code: bpfLoadWord, registers: minor | context<<4, offset: 8},
	}
	type condition struct {
		register byte
		value    uint32
	}
	allow := func(conditions ...condition) {
		for i, c := range conditions {
			// To behind the two instructions that return.
			p = append(p, bpfInstruction{code: bpfUnless, registers: c.register, offset: int16(len(conditions) - i + 1), value: int32(c.value)})
		}
		p = append(p, bpfInstruction{code: bpfSet, registers: result, value: 1}, bpfInstruction{code: bpfExit})
	}
	allow(condition{access, bpfDeviceMknod})
	for _, r := range rules {
		of := condition{kind, bpfDeviceChar}
		if r.Kind == 'b' {
			of.value = bpfDeviceBlock
		}
		if r.Any {
			allow(of, condition{major, r.Major})
		} else {
			allow(of, condition{major, r.Major}, condition{minor, r.Minor})
		}
	}
	return append(p, bpfInstruction{code: bpfSet, registers: result}, bpfInstruction{code: bpfExit})
}

// attachDevices sets the rules of a group of version 2: see bpf(2). They hold besides those of the groups above.
func attachDevices(group *os.File, rules []Device) error {
	var text []byte
	for _, in := range deviceProgram(rules) {
		text = append(text, in.code, in.registers)
		text = binary.NativeEndian.AppendUint16(text, uint16(in.offset))
		text = binary.NativeEndian.AppendUint32(text, uint32(in.value))
	}
	license := []byte("Apache-2.0\x00")
	load := struct {
		kind, count   uint32
		text, license uint64
		_             [64]byte // further fields, all zero
	}{
		unix.BPF_PROG_TYPE_CGROUP_DEVICE, uint32(len(text) / 8),
		uint64(uintptr(unsafe.Pointer(&text[0]))), uint64(uintptr(unsafe.Pointer(&license[0]))),
		[64]byte{},
	}
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&text[0])
	pin.Pin(&license[0])
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&load), unsafe.Sizeof(load))
	if err != nil {
		return fmt.Errorf("load the rules for devices: %w", err)
	}
	defer unix.Close(fd)
	attach := struct{ target, program, kind, flags uint32 }{uint32(group.Fd()), uint32(fd), unix.BPF_CGROUP_DEVICE, unix.BPF_F_ALLOW_MULTI}
	if _, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attach), unsafe.Sizeof(attach)); err != nil {
		return fmt.Errorf("set the rules for devices: %w", err)
	}
	return nil
}

func bpf(command uintptr, attributes unsafe.Pointer, size uintptr) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(attributes), size)
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}
