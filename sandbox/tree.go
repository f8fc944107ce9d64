package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/mount"
)

// tree is the file tree as the process will see it, while its mounts are not attached yet: names are resolved across the
// planned mounts, by descriptor and one component at a time, so that no link in any of them leads outside. What is missing
// is made, and remembered to be removed when the process has ended.
type tree struct {
	root *os.File
	// ids says as whose what is missing is made: 0 of the map; nil: kiln's own.
	ids *mount.IDMap
	// keep says that what is made stays.
	keep bool
	// covers are the planned mounts by the path of their mount point.
	covers map[string]cover
	stubs  []stub
	times  map[string]*dirTimes
	order  []string // the keys of times
}

// cover is a planned mount.
type cover struct {
	// dir is the root directory of what is mounted, nil where the process itself makes the mount.
	dir *os.File
	// shared says that others may use it too.
	shared bool
}

// stub is a mount point that was made.
type stub struct {
	dir  *os.File
	path string // of dir, the key in tree.times
	name string
	made unix.Stat_t
}

// dirTimes is when a directory was changed last before and after stubs were made in it.
type dirTimes struct {
	dir           *os.File
	before, after unix.Timespec
}

type kind uint32

const (
	directory kind = unix.S_IFDIR
	file      kind = unix.S_IFREG
)

func (k kind) String() string {
	switch k {
	case directory:
		return "directory"
	case file:
		return "file"
	case unix.S_IFLNK:
		return "symbolic link"
	case unix.S_IFCHR, unix.S_IFBLK:
		return "device"
	case unix.S_IFIFO:
		return "named pipe"
	}
	return "socket"
}

// how says how mountPoint treats a path.
type how struct {
	// want is what the mount point has to be, and is made as.
	want kind
	// strict refuses symbolic links.
	strict bool
	// keep leaves what was made where it is afterwards, where it belongs to uid and gid.
	keep     bool
	uid, gid uint32
}

// maxLinks is how many symbolic links are followed in a path, as in the kernel.
const maxLinks = 40

// mountPoint opens the place that name leads to (O_PATH) and returns its path without links. Missing directories on the way
// are made, and the last component too.
func (t *tree) mountPoint(name string, h how) (*os.File, string, error) {
	type step struct {
		path   string
		f      *os.File
		shared bool
	}
	steps := []step{{"/", t.root, false}}
	var opened []*os.File
	defer func() {
		for _, f := range opened {
			f.Close()
		}
	}()
	todo := strings.Split(name, "/")
	links := 0
	for len(todo) > 0 {
		base := todo[0]
		todo = todo[1:]
		cur := steps[len(steps)-1]
		switch base {
		case "", ".":
			continue
		case "..":
			if len(steps) > 1 {
				steps = steps[:len(steps)-1]
			}
			continue
		}
		dir := cur.f
		if c, ok := t.covers[cur.path]; ok {
			cur.shared = c.shared
			if dir = c.dir; dir == nil {
				return nil, "", fmt.Errorf("%s is inside the step's own %s", name, cur.path)
			}
		}
		last := !slices.ContainsFunc(todo, func(s string) bool { return s != "" && s != "." })
		f, err := openPath(dir, base)
		if errors.Is(err, unix.ENOENT) {
			want := directory
			if last {
				want = h.want
			}
			stub := h
			stub.keep = h.keep || cur.shared || t.keep
			f, err = t.makeStub(dir, cur.path, base, want, stub)
		}
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", path.Join(cur.path, base), err)
		}
		opened = append(opened, f)
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return nil, "", fmt.Errorf("stat %s: %w", name, err)
		}
		got := kind(st.Mode & unix.S_IFMT)
		if got == unix.S_IFLNK {
			if links++; links > maxLinks {
				return nil, "", fmt.Errorf("%s: %w", name, unix.ELOOP)
			}
			if h.strict {
				return nil, "", fmt.Errorf("%s is a symbolic link in the image", path.Join(cur.path, base))
			}
			target, err := readlink(f)
			if err != nil {
				return nil, "", fmt.Errorf("read link %s: %w", name, err)
			}
			if strings.HasPrefix(target, "/") {
				steps = steps[:1]
			}
			todo = append(strings.Split(target, "/"), todo...)
			continue
		}
		if !last && got != directory {
			return nil, "", fmt.Errorf("%s is a %s in the image", path.Join(cur.path, base), got)
		}
		steps = append(steps, step{path.Join(cur.path, base), f, cur.shared})
	}
	end := steps[len(steps)-1]
	if len(steps) == 1 {
		return nil, "", fmt.Errorf("%s is the root directory", name)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(end.f.Fd()), &st); err != nil {
		return nil, "", fmt.Errorf("stat %s: %w", name, err)
	}
	if got := kind(st.Mode & unix.S_IFMT); (got == directory) != (h.want == directory) {
		return nil, "", fmt.Errorf("%s is a %s in the image", end.path, got)
	}
	opened = slices.DeleteFunc(opened, func(f *os.File) bool { return f == end.f })
	return end.f, end.path, nil
}

// mountTarget is mountPoint for a mount that is not the sandbox's own. It refuses /proc and /sys, whatever spelling or link leads
// to them: programs, and the masks of what a step may not see there, rely on the kernel's file systems being what is at those paths.
// What lies inside them is refused by mountPoint.
func (t *tree) mountTarget(name string, want kind) (*os.File, string, error) {
	f, at, err := t.mountPoint(name, how{want: want})
	if err == nil && (at == "/proc" || at == "/sys") {
		f.Close()
		return nil, "", fmt.Errorf("it would cover the step's own %s", at)
	}
	return f, at, err
}

func openPath(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func readlink(f *os.File) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.Fd()), "", buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// makeStub makes a directory or an empty file, and opens it. It belongs to root unless h says otherwise.
func (t *tree) makeStub(dir *os.File, dirPath, name string, want kind, h how) (*os.File, error) {
	times := t.times[dirPath]
	if times == nil && !h.keep {
		own, err := openPath(dir, ".")
		if err != nil {
			return nil, err
		}
		times = &dirTimes{dir: own}
		if t.times == nil {
			t.times = map[string]*dirTimes{}
		}
		t.times[dirPath] = times
		t.order = append(t.order, dirPath)
		if times.before, err = modified(own); err != nil {
			return nil, err
		}
	}
	fd := int(dir.Fd())
	mode := uint32(0o755)
	if want != directory {
		mode = 0o644
	}
	err := t.ids.AsRoot(func() error {
		if want == directory {
			return unix.Mkdirat(fd, name, mode)
		}
		made, err := unix.Openat(fd, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		if err == nil {
			unix.Close(made)
		}
		return err
	})
	// Another step may be making the same directory in a cache mount that both use.
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make mount point: %w", err)
	}
	made := err == nil
	f, err := openPath(dir, name)
	if err != nil {
		return nil, err
	}
	if !made {
		return f, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, err
	}
	if kind(st.Mode&unix.S_IFMT) == want && st.Mode&0o777 != mode { // by kiln's umask
		if err := unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), mode); err != nil {
			f.Close()
			return nil, err
		}
		st.Mode = st.Mode&^0o777 | mode
	}
	if h.keep {
		if h.uid != 0 || h.gid != 0 {
			if err := t.chown(f, h.uid, h.gid); err != nil {
				f.Close()
				return nil, fmt.Errorf("give it to user %d, group %d: %w", h.uid, h.gid, err)
			}
		}
		if times != nil {
			times.before, err = modified(times.dir)
		}
		return f, err
	}
	t.stubs = append(t.stubs, stub{dir: times.dir, path: dirPath, name: name, made: st})
	return f, nil
}

// chown gives what was made to ids of the step.
func (t *tree) chown(f *os.File, uid, gid uint32) error {
	if m := t.ids; m != nil {
		uid, gid = m.FirstUser+uid, m.FirstGroup+gid
	}
	return t.ids.AsRoot(func() error { return unix.Fchownat(int(f.Fd()), "", int(uid), int(gid), unix.AT_EMPTY_PATH) })
}

func modified(f *os.File) (unix.Timespec, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return st.Mtim, err
}

// ready is called when all mount points are made and the process has not started.
func (t *tree) ready() error {
	for _, p := range t.order {
		var err error
		if t.times[p].after, err = modified(t.times[p].dir); err != nil {
			return fmt.Errorf("stat %s: %w", p, err)
		}
	}
	return nil
}

// clean removes the stubs that are as they were made, and gives the directories that they were in their modification times
// back. A directory in which the process changed something has the time of that change.
func (t *tree) clean() error {
	var errs []error
	restore := map[string]unix.Timespec{}
	for _, p := range t.order {
		now, err := modified(t.times[p].dir)
		if err != nil {
			errs = append(errs, fmt.Errorf("stat %s: %w", p, err))
			continue
		}
		if restore[p] = now; now == t.times[p].after {
			restore[p] = t.times[p].before
		}
	}
	for _, s := range slices.Backward(t.stubs) {
		if err := s.remove(); err != nil {
			errs = append(errs, fmt.Errorf("remove mount point %s: %w", path.Join(s.path, s.name), err))
		}
	}
	for p, mtime := range restore {
		dir := t.times[p].dir
		times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, mtime}
		if err := unix.UtimesNanoAt(int(dir.Fd()), "", times, unix.AT_EMPTY_PATH); err != nil {
			errs = append(errs, fmt.Errorf("set times of %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

func (s stub) remove() error {
	var st unix.Stat_t
	err := unix.Fstatat(int(s.dir.Fd()), s.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	flags := 0
	if st.Dev != s.made.Dev || st.Ino != s.made.Ino || st.Mode != s.made.Mode || st.Uid != s.made.Uid || st.Gid != s.made.Gid {
		return nil
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		flags = unix.AT_REMOVEDIR
	} else if st.Size != 0 {
		return nil
	}
	err = unix.Unlinkat(int(s.dir.Fd()), s.name, flags)
	// EBUSY: it is also a mount point of another step that shares the cache mount.
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}

func (t *tree) close() {
	for _, d := range t.times {
		d.dir.Close()
	}
}

// cover notes that something is mounted at a path; dir is its root directory, nil if the process makes the mount.
func (t *tree) cover(at string, dir *os.File, shared bool) {
	if t.covers == nil {
		t.covers = map[string]cover{}
	}
	for p := range t.covers {
		if strings.HasPrefix(p, at+"/") {
			delete(t.covers, p)
		}
	}
	t.covers[at] = cover{dir, shared}
}
