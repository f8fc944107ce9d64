package calls

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/mount"
)

// The launcher is the program that executes the program of a step. Between clone3(2) and an execve(2) a process shares the
// memory of kiln: its /proc/self/exe is kiln's file, and its descriptors are kiln's. A path of the image that the kernel
// resolved there could lead through them to the host, see CVE-2019-5736 and CVE-2024-21626. So such a process resolves no path of the
// image. It executes the launcher instead, which has
//
//   - memory of its own, a page of text and the plan of the step's last system calls, in which there is nothing of kiln's nor of
//     another step's;
//   - no descriptor but the three that the step's program is to have;
//   - a file, its /proc/self/exe, on a read-only file system that is attached nowhere: nobody can write to it or change its mode.
//
// It is statically linked and does nothing but its plan, which comes from kiln as the memory that descriptor 3 stands for. So it
// is harmless if the image makes a step execute it again: there is no descriptor 3, and it exits with status 127.

// launcherArena is the address at which the launcher finds its plan, and launcherAddress that of its own file. Nothing else is
// mapped there: the kernel places the stack and the vDSO of a program at the other end of its memory.
const (
	launcherArena   = 0x10000000
	launcherAddress = 0x400000
)

// Descriptors of a process that is about to execute the launcher.
const (
	launcherPlanFd = 3 // closed by the launcher's first call
	launcherExecFd = 4 // closed by the kernel
)

// launcherBounds are where the launcher's text begins and ends in kiln's own.
var launcherBounds [2]unsafe.Pointer

// launcherFile returns the launcher, open for execveat(2), on a read-only file system of its own.
var launcherFile = sync.OnceValues(func() (*os.File, error) {
	f, err := newLauncher(launcherELF())
	if err != nil {
		return nil, fmt.Errorf("make the launcher of the sandbox: %w", err)
	}
	return f, nil
})

func newLauncher(image []byte) (*os.File, error) {
	fs, err := mount.New("tmpfs", mount.NoSuid|mount.NoDev, mount.Option{Name: "mode", Value: "755"},
		mount.Option{Name: "size", Value: "64k"})
	if err != nil {
		return nil, err
	}
	defer fs.Close()
	const name = "launcher"
	if err := writeFile(int(fs.Fd()), name, image, 0o555); err != nil {
		return nil, err
	}
	if err := mount.SetAttr(fs, mount.ReadOnly, false); err != nil {
		return nil, err
	}
	return above(unix.Openat(int(fs.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0))
}

// above moves a descriptor above those that the launcher is started with, so that making those does not replace it.
func above(fd int, err error) (*os.File, error) {
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	moved, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, launcherExecFd+1)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(moved), "launcher"), nil
}

// machines are those that have a launcher, by GOARCH.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// launcherELF is an executable file with one segment, the launcher's text, and no more: see elf(5).
func launcherELF() []byte {
	text := unsafe.Slice((*byte)(launcherBounds[0]), uintptr(launcherBounds[1])-uintptr(launcherBounds[0]))
	const headers = 64 + 2*56
	size := uint64(headers + len(text))
	var b bytes.Buffer
	for _, part := range []any{
		elf.Header64{
			Ident:   [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
			Type:    uint16(elf.ET_EXEC),
			Machine: uint16(machines[runtime.GOARCH]), Version: uint32(elf.EV_CURRENT),
			Entry: launcherAddress + headers, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 2,
		},
		elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: launcherAddress, Paddr: launcherAddress,
			Filesz: size, Memsz: size, Align: 1 << 16},
		// Without it the kernel takes the stack, and for some architectures all memory, for executable.
		elf.Prog64{Type: uint32(elf.PT_GNU_STACK), Flags: uint32(elf.PF_R | elf.PF_W)},
		text,
	} {
		_ = binary.Write(&b, binary.LittleEndian, part) // a buffer takes everything
	}
	return b.Bytes()
}

// newLauncherArena returns an arena of n bytes that the launcher can map, and the descriptor that stands for it.
func newLauncherArena(n uintptr) (*arena, *os.File, error) {
	fd, err := unix.MemfdCreate("plan", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("plan", unix.MFD_CLOEXEC)
	}
	f, err := above(fd, err)
	if err != nil {
		return nil, nil, fmt.Errorf("make memory for the launcher of the sandbox: %w", err)
	}
	if err = unix.Ftruncate(int(f.Fd()), int64(n)); err == nil {
		var mem []byte
		if mem, err = unix.Mmap(int(f.Fd()), 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
			return &arena{mem: mem, base: launcherArena}, f, nil
		}
	}
	f.Close()
	return nil, nil, fmt.Errorf("make memory for the launcher of the sandbox: %w", err)
}
