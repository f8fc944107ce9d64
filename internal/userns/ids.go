package userns

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// IDs are the IDs that a new user namespace gets.
type IDs struct {
	uid, gid int // the caller's own, which become 0
	// users and groups become 1 and up; empty if the caller has no range.
	users, groups []span
	// whole says that the caller may give the namespace all of its own IDs.
	whole bool
	// Missing says why there is no range and what to do about it; "" if there is one.
	Missing string
}

// span is n IDs from first on.
type span struct{ first, n uint32 }

// Files with the IDs that users may delegate; see subuid(5), subgid(5).
const (
	subuidFile = "/etc/subuid"
	subgidFile = "/etc/subgid"
)

// Find returns the IDs available to the caller.
func Find() (*IDs, error) {
	ids := &IDs{uid: os.Geteuid(), gid: os.Getegid()}
	if ids.uid == 0 {
		ids.whole = true
		return ids, nil
	}
	names := []string{strconv.Itoa(ids.uid)}
	if u, err := user.LookupId(names[0]); err == nil {
		names = append(names, u.Username)
	} else if name := os.Getenv("USER"); name != "" {
		// Users of a directory service are not in /etc/passwd. newuidmap checks it.
		names = append(names, name)
	}
	for _, file := range []struct {
		name string
		to   *[]span
		own  int
	}{{subuidFile, &ids.users, ids.uid}, {subgidFile, &ids.groups, ids.gid}} {
		list, err := ranges(file.name, names)
		if err != nil {
			return nil, &Error{Doing: "look for a range of ids", Err: err}
		}
		if *file.to = without(list, uint32(file.own)); len(*file.to) == 0 {
			name := names[len(names)-1]
			ids.none(fmt.Sprintf("%s has no range for user %s, "+
				"and root gives one by usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s",
				file.name, name, name))
			return ids, nil
		}
	}
	for _, program := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(program); err != nil {
			ids.none("the program " + program + " is not installed; it is in the package uidmap or shadow-utils")
			break
		}
	}
	return ids, nil
}

// none sets the reason why there are only the caller's own IDs.
func (ids *IDs) none(why string) {
	ids.users, ids.groups, ids.whole, ids.Missing = nil, nil, false, why
}

// RootRange returns the range of IDs that the host's root may delegate: the first of /etc/subuid and of /etc/subgid for
// "root" or "0", and how many both have.
func RootRange() (firstUser, firstGroup, count uint32, err error) {
	var first [2]span
	for i, file := range []string{subuidFile, subgidFile} {
		list, err := ranges(file, []string{"root", "0"})
		if err != nil {
			return 0, 0, 0, fmt.Errorf("look for a range of ids: %w", err)
		}
		if len(list) == 0 {
			return 0, 0, 0, fmt.Errorf("%s has no range of ids for root: "+
				"run usermod --add-subuids 100000-165535 --add-subgids 100000-165535 root, or name a range, as --userns=100000:65536", file)
		}
		first[i] = list[0]
	}
	return first[0].first, first[1].first, min(first[0].n, first[1].n), nil
}

// Single reports whether the namespace will have only one user and one group.
func (ids *IDs) Single() bool { return !ids.whole && len(ids.users) == 0 }

// ranges returns the ranges that a file gives to any of the names, in its order.
func ranges(file string, names []string) ([]span, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var list []span
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		field := strings.Split(strings.TrimSpace(lines.Text()), ":")
		if len(field) != 3 || !slices.Contains(names, field[0]) {
			continue
		}
		first, err1 := strconv.ParseUint(field[1], 10, 32)
		n, err2 := strconv.ParseUint(field[2], 10, 32)
		if err1 != nil || err2 != nil || n == 0 || first+n > 1<<32-1 {
			continue // as newuidmap does
		}
		list = append(list, span{uint32(first), uint32(n)})
	}
	return list, lines.Err()
}

// without returns the ranges without overlaps and without one ID: the kernel accepts no ID twice.
func without(list []span, own uint32) []span {
	var out []span
	for _, s := range list {
		clash := own >= s.first && own-s.first < s.n
		for _, o := range out {
			clash = clash || s.first < o.first+o.n && o.first < s.first+s.n
		}
		if !clash {
			out = append(out, s)
		}
	}
	return out
}

// maxExtents is how many lines a map may have, see user_namespaces(7).
const maxExtents = 340

// extents are the lines of a map.
func extents(own int, list []span) (out []extent) {
	out = append(out, extent{0, uint32(own), 1})
	at := uint32(1)
	for _, s := range list[:min(len(list), maxExtents-1)] {
		if s.n = min(s.n, 1<<32-2-at); s.n == 0 {
			break
		}
		out = append(out, extent{at, s.first, s.n})
		at += s.n
	}
	return out
}

// write sets the IDs of a process's namespace.
func (ids *IDs) write(pid int) error {
	if ids.whole {
		return writeWhole(pid)
	}
	if ids.Single() {
		return ids.writeSingle(pid)
	}
	for _, m := range []struct {
		program, capability string
		list                []extent
	}{{"newuidmap", "cap_setuid", extents(ids.uid, ids.users)}, {"newgidmap", "cap_setgid", extents(ids.gid, ids.groups)}} {
		args := []string{strconv.Itoa(pid)}
		for _, e := range m.list {
			args = append(args, fmt.Sprint(e.inside), fmt.Sprint(e.outside), fmt.Sprint(e.n))
		}
		if out, err := exec.Command(m.program, args...).CombinedOutput(); err != nil {
			said, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
			if strings.HasSuffix(said, "Operation not permitted") && isSetuid(m.program) {
				// Its effective user is then not the one that the namespace belongs to, and without CAP_SYS_ADMIN only that one may.
				said += fmt.Sprintf("; in a container it takes a capability of the file in place of the set-user-ID bit: "+
					"chmod u-s $(which %s) && setcap %s=ep $(which %s)",
					m.program, m.capability, m.program)
			}
			return &mapError{"run " + m.program, said, err}
		}
	}
	return nil
}

func isSetuid(program string) bool {
	path, err := exec.LookPath(program)
	if err != nil {
		return false
	}
	info, err := os.Stat(path)
	return err == nil && info.Mode()&os.ModeSetuid != 0
}

// mapError reports a range that could not be set.
type mapError struct {
	doing, said string
	err         error
}

func (e *mapError) Error() string {
	if e.said != "" {
		return fmt.Sprintf("%s: %s", e.doing, e.said)
	}
	return fmt.Sprintf("%s: %v", e.doing, e.err)
}

// Unwrap returns the cause.
func (e *mapError) Unwrap() error { return e.err }

// writeSingle maps the caller's own IDs to 0. It needs no privilege if processes cannot change their groups: see
// user_namespaces(7), "setgroups".
func (ids *IDs) writeSingle(pid int) error {
	return writeMaps(pid, fmt.Sprintf("0 %d 1", ids.uid), fmt.Sprintf("0 %d 1", ids.gid), true)
}

// writeWhole maps all IDs of the caller's own namespace to themselves. It needs CAP_SETUID and CAP_SETGID there.
func writeWhole(pid int) error {
	var lines [2]string
	for i, name := range []string{"/proc/self/uid_map", "/proc/self/gid_map"} {
		list, err := readMap(name)
		if err != nil {
			return &mapError{"read the caller's ids", "", err}
		}
		for _, e := range list {
			lines[i] += fmt.Sprintf("%d %d %d\n", e.inside, e.inside, e.n)
		}
	}
	if err := writeMaps(pid, lines[0], lines[1], false); err != nil {
		return &mapError{"pass on all ids", "", err}
	}
	return nil
}

func writeMaps(pid int, users, groups string, deny bool) error {
	write := func(name, text string) error {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/%s", pid, name), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			_, err = unix.Write(fd, []byte(text))
			unix.Close(fd)
		}
		if err != nil {
			return powerless(fmt.Errorf("write %s: %w", name, err))
		}
		return nil
	}
	if deny {
		if err := write("setgroups", "deny"); err != nil {
			return err
		}
	}
	if err := write("uid_map", users); err != nil {
		return err
	}
	return write("gid_map", groups)
}
