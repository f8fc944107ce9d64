package sandbox

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/mount"
)

// NewIDMap makes a user namespace in which count users and groups from 0 on are those of the machine from firstUser and
// firstGroup on. It takes privileges. Namespace is the caller's to close.
func NewIDMap(firstUser, firstGroup, count uint32) (*mount.IDMap, error) {
	m := &mount.IDMap{FirstUser: firstUser, FirstGroup: firstGroup, Count: count}
	fail := func(doing string, err error) (*mount.IDMap, error) {
		return nil, fmt.Errorf("make a user namespace for steps: %s: %w", doing, err)
	}
	// A process is needed for as long as it takes to open its namespace.
	p := &plan{flags: unix.CLONE_NEWUSER}
	p.add("die with kiln", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, int(unix.SIGKILL), 0, 0, 0)
	p.add("wait to be killed", unix.SYS_PPOLL, 0, 0, 0, 0, 0)
	a, err := newArena(p.size() + 4096)
	if err != nil {
		return nil, err
	}
	defer a.free()
	p.assemble(a)
	pidfdAt := a.alloc(wordSize)
	p.clone.flags |= unix.CLONE_PIDFD
	p.clone.pidfd = uint64(a.address(pidfdAt))
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pid := int(start(p.clone))
	if pid < 0 {
		return fail("start a process", unix.Errno(-pid))
	}
	pidfd := os.NewFile(uintptr(*(*int32)(a.pointer(pidfdAt))), "process")
	defer pidfd.Close()
	defer func() {
		_ = unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, 0)
		_ = wait(pidfd)
	}()
	for file, first := range map[string]uint32{"uid_map": firstUser, "gid_map": firstGroup} {
		text := fmt.Sprintf("0 %d %d\n", first, count)
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", pid, file), []byte(text), 0); err != nil {
			return fail("give it ids", err)
		}
	}
	if m.Namespace, err = os.Open(fmt.Sprintf("/proc/%d/ns/user", pid)); err != nil {
		return fail("open it", err)
	}
	return m, nil
}
