package sandbox

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/kilnbuild/kiln/sandbox/internal/calls"
)

// NewIDMap makes a user namespace in which count users and groups from 0 on are those of the machine from firstUser and
// firstGroup on. It takes privileges. Namespace is the caller's to close.
func NewIDMap(firstUser, firstGroup, count uint32) (*mount.IDMap, error) {
	m := &mount.IDMap{FirstUser: firstUser, FirstGroup: firstGroup, Count: count}
	text := func(first uint32) string { return fmt.Sprintf("0 %d %d\n", first, count) }
	err := newNamespaces(0, text(firstUser), text(firstGroup), func(pid int) (err error) {
		m.Namespace, err = os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
		return err
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// NewUserNamespace makes a user namespace in which every user and group of kiln's own is who it is there, and a network namespace
// that belongs to it, for Spec.UserNamespace. Both are the caller's to close.
func NewUserNamespace() (users, network *os.File, err error) {
	ns, err := userns.Current()
	if err != nil {
		return nil, nil, err
	}
	uids, gids := ns.Identity()
	err = newNamespaces(unix.CLONE_NEWNET, uids, gids, func(pid int) (err error) {
		if users, err = os.Open(fmt.Sprintf("/proc/%d/ns/user", pid)); err != nil {
			return err
		}
		if network, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil {
			users.Close()
		}
		return err
	})
	return users, network, err
}

// newNamespaces makes a user namespace with the two maps, in the form of user_namespaces(7), and those of flags in it, and calls
// open with a process that is in them for as long as open takes.
func newNamespaces(flags uint64, uids, gids string, open func(pid int) error) error {
	fail := func(doing string, err error) error {
		return fmt.Errorf("make a user namespace for steps: %s: %w", doing, err)
	}
	p := &calls.List{Flags: unix.CLONE_NEWUSER | flags}
	p.Add("die with kiln", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, int(unix.SIGKILL), 0, 0, 0)
	p.Add("wait to be killed", unix.SYS_PPOLL, 0, 0, 0, 0, 0)
	process, err := calls.NewProcess(p)
	if err != nil {
		return err
	}
	defer process.Close()
	pid, err := process.Start(nil)
	if err != nil {
		return fail("start a process", err)
	}
	defer func() {
		process.Kill()
		_ = process.Wait()
	}()
	for file, text := range map[string]string{"uid_map": uids, "gid_map": gids} {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", pid, file), []byte(text), 0); err != nil {
			return fail("give it ids", err)
		}
	}
	if err := open(pid); err != nil {
		return fail("open it", err)
	}
	return nil
}
