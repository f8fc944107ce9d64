package emulation

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// machine is a processor as programs name it.
type machine struct {
	// architecture is the name of the OCI image specification, and qemu what QEMU's programs for it are called after.
	architecture, qemu string
	class              elf.Class
	order              binary.ByteOrder
	elf                elf.Machine
	// flags are e_flags of a program, without which some emulators refuse it.
	flags uint32
	// exit is the text of a program that does nothing but exit_group(0) or exit(0).
	exit []byte
}

// machines are those that images exist for, and that QEMU emulates. The instructions are: 0 as the first argument, the number of the
// call, the call.
var machines = []machine{
	{"386", "i386", elf.ELFCLASS32, binary.LittleEndian, elf.EM_386, 0,
		[]byte{0x31, 0xdb, 0xb8, 1, 0, 0, 0, 0xcd, 0x80}},
	{"amd64", "x86_64", elf.ELFCLASS64, binary.LittleEndian, elf.EM_X86_64, 0,
		[]byte{0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05}},
	{"arm", "arm", elf.ELFCLASS32, binary.LittleEndian, elf.EM_ARM, 0x05000000,
		words(binary.LittleEndian, 0xe3a00000, 0xe3a07001, 0xef000000)},
	{"arm64", "aarch64", elf.ELFCLASS64, binary.LittleEndian, elf.EM_AARCH64, 0,
		words(binary.LittleEndian, 0xd2800000, 0xd2800ba8, 0xd4000001)},
	{"loong64", "loongarch64", elf.ELFCLASS64, binary.LittleEndian, elf.EM_LOONGARCH, 0x43,
		words(binary.LittleEndian, 0x00150004, 0x0381740b, 0x002b0000)},
	{"mips", "mips", elf.ELFCLASS32, binary.BigEndian, elf.EM_MIPS, 0x50001000,
		words(binary.BigEndian, 0x24040000, 0x24020fa1, 0x0000000c)},
	{"mipsle", "mipsel", elf.ELFCLASS32, binary.LittleEndian, elf.EM_MIPS, 0x50001000,
		words(binary.LittleEndian, 0x24040000, 0x24020fa1, 0x0000000c)},
	{"mips64", "mips64", elf.ELFCLASS64, binary.BigEndian, elf.EM_MIPS, 0x60000000,
		words(binary.BigEndian, 0x24040000, 0x240213c2, 0x0000000c)},
	{"mips64le", "mips64el", elf.ELFCLASS64, binary.LittleEndian, elf.EM_MIPS, 0x60000000,
		words(binary.LittleEndian, 0x24040000, 0x240213c2, 0x0000000c)},
	{"ppc64", "ppc64", elf.ELFCLASS64, binary.BigEndian, elf.EM_PPC64, 2,
		words(binary.BigEndian, 0x38600000, 0x38000001, 0x44000002)},
	{"ppc64le", "ppc64le", elf.ELFCLASS64, binary.LittleEndian, elf.EM_PPC64, 2,
		words(binary.LittleEndian, 0x38600000, 0x38000001, 0x44000002)},
	{"riscv64", "riscv64", elf.ELFCLASS64, binary.LittleEndian, elf.EM_RISCV, 0,
		words(binary.LittleEndian, 0x00000513, 0x05d00893, 0x00000073)},
	{"s390x", "s390x", elf.ELFCLASS64, binary.BigEndian, elf.EM_S390, 0,
		[]byte{0xa7, 0x29, 0, 0, 0x0a, 1}},
}

func words(order binary.AppendByteOrder, list ...uint32) (text []byte) {
	for _, w := range list {
		text = order.AppendUint32(text, w)
	}
	return text
}

// find returns the machine of an architecture, nil for one that kiln does not know.
func find(architecture string) *machine {
	i := slices.IndexFunc(machines, func(m machine) bool { return m.architecture == architecture })
	if i < 0 {
		return nil
	}
	return &machines[i]
}

// programAddress is where the one segment of a program is mapped: above what vm.mmap_min_addr keeps free, in reach of 32 bits.
const programAddress = 0x400000

// program returns an executable file for the machine that exits with status 0: see elf(5).
func (m *machine) program() []byte {
	var b bytes.Buffer
	ident := [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(m.class), m.data(), byte(elf.EV_CURRENT)}
	write := func(parts ...any) {
		for _, p := range parts {
			_ = binary.Write(&b, m.order, p) // a buffer takes everything
		}
	}
	const readable = uint32(elf.PF_R | elf.PF_X)
	if m.class == elf.ELFCLASS32 {
		const headers = 52 + 32
		size := uint32(headers + len(m.exit))
		write(elf.Header32{Ident: ident, Type: uint16(elf.ET_EXEC), Machine: uint16(m.elf), Version: uint32(elf.EV_CURRENT), Flags: m.flags,
			Entry: programAddress + headers, Phoff: 52, Ehsize: 52, Phentsize: 32, Phnum: 1},
			elf.Prog32{Type: uint32(elf.PT_LOAD), Flags: readable, Vaddr: programAddress, Paddr: programAddress,
				Filesz: size, Memsz: size, Align: 1 << 16}, m.exit)
		return b.Bytes()
	}
	const headers = 64 + 56
	size := uint64(headers + len(m.exit))
	write(elf.Header64{Ident: ident, Type: uint16(elf.ET_EXEC), Machine: uint16(m.elf), Version: uint32(elf.EV_CURRENT), Flags: m.flags,
		Entry: programAddress + headers, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1},
		elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: readable, Vaddr: programAddress, Paddr: programAddress,
			Filesz: size, Memsz: size, Align: 1 << 16}, m.exit)
	return b.Bytes()
}

func (m *machine) data() byte {
	if m.order == binary.ByteOrder(binary.BigEndian) {
		return byte(elf.ELFDATA2MSB)
	}
	return byte(elf.ELFDATA2LSB)
}

// rule registers an interpreter with binfmt_misc for all programs and libraries of the machine, whatever the system that their
// header names. The flags: the interpreter is opened now and not by each program (F), which is passed the program as a descriptor
// (O), with its own arguments from the first on (P), and has the privileges that the program's set-user-ID bit gives (C). See
// Documentation/admin-guide/binfmt-misc.rst of the Linux source.
func (m *machine) rule(interpreter string) string {
	// The header up to e_machine: of e_type, 2 and 3 differ in the last bit, which may be the first or the second byte.
	magic, mask := make([]byte, 20), make([]byte, 20)
	copy(magic, []byte{0x7f, 'E', 'L', 'F', byte(m.class), m.data(), byte(elf.EV_CURRENT)})
	for i := range 7 {
		mask[i] = 0xff
	}
	m.order.PutUint16(magic[16:], uint16(elf.ET_EXEC))
	m.order.PutUint16(mask[16:], 0xfffe)
	m.order.PutUint16(magic[18:], uint16(m.elf))
	m.order.PutUint16(mask[18:], 0xffff)
	escape := func(b []byte) string {
		var s strings.Builder
		for _, c := range b {
			fmt.Fprintf(&s, `\x%02x`, c)
		}
		return s.String()
	}
	return fmt.Sprintf(":%s:M::%s:%s:%s:POCF", m.qemu, escape(magic), escape(mask), interpreter)
}
