package sandbox

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/sandbox/internal/calls"
)

// mount returns a mount of the program alone. It is read-only: a process reaches the file of each process by its /proc/PID/exe, and without
// that could write to the machine's own, as root to whom it belongs.
func (e *Emulator) mount() (*os.File, error) {
	f, err := mount.Clone(e.Program, false)
	if err != nil {
		return nil, err
	}
	if err := mount.SetAttr(f, mount.ReadOnly|mount.NoSuid|mount.NoDev, false); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// What the calls are named that a kernel without binfmt_misc in user namespaces refuses.
const (
	openBinfmt = "open binfmt_misc"
	makeBinfmt = "make binfmt_misc"
)

// planEmulator registers the emulator in the user namespace that the process is in, while the supplies are attached: the kernel opens
// the interpreter of the rule then, in the working directory. It returns the call that mounts binfmt_misc, nil without an emulator. What
// is registered there goes with that mount.
func (r *run) planEmulator(l *calls.List, p parts) *calls.Call {
	e := r.spec.Process.Emulator
	if e == nil {
		return nil
	}
	l.Add("attach the emulator", unix.SYS_MOVE_MOUNT, fd(p.emulator), "", fd(r.supply.fs), e.Name, moveFromFd)
	m := r.planMount(l, "binfmt_misc", "binfmt_misc", standard)
	register := l.Add("open register of binfmt_misc", unix.SYS_OPENAT, m, "register", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	l.Add("enter the supplies", unix.SYS_FCHDIR, fd(r.supply.fs))
	l.Add("register the emulator", unix.SYS_WRITE, register, []byte(e.Rule), len(e.Rule))
	return m
}
