package sandbox

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroups are the control groups of one run: one in each hierarchy of the machine, cgroups(7), version 1 or 2.
type cgroups struct {
	leaves []string
	made   []string // what was made on the way to them, in that order
}

// newCgroups makes a group of its own for a run below parent, a path from the top of each hierarchy, in which the missing
// groups are made too. The error names what the machine does not allow.
func newCgroups(parent string) (*cgroups, error) {
	roots, err := hierarchies("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	if len(roots) == 0 {
		return nil, errors.New("no control groups are mounted on this machine")
	}
	var id [8]byte
	rand.Read(id[:])
	leaf := path.Join("/", parent, "kiln-"+hex.EncodeToString(id[:]))
	c := &cgroups{}
	for _, root := range roots {
		if err := c.make(root, leaf); err != nil {
			return nil, errors.Join(err, c.remove())
		}
		c.leaves = append(c.leaves, filepath.Join(root, leaf))
	}
	return c, nil
}

// hierarchies returns where control groups are mounted, but for those without a controller that only name processes.
func hierarchies(mountinfo string) ([]string, error) {
	data, err := os.ReadFile(mountinfo)
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(data)) {
		mounted, fs, ok := strings.Cut(line, " - ")
		fields, what := strings.Fields(mounted), strings.Fields(fs)
		if !ok || len(fields) < 5 || len(what) < 3 {
			continue
		}
		if what[0] == "cgroup2" || what[0] == "cgroup" && !strings.Contains(","+what[2], ",name=") {
			out = append(out, fields[4])
		}
	}
	return out, nil
}

// make makes the group below root, and its parents.
func (c *cgroups) make(root, group string) error {
	dir := root
	for _, name := range strings.Split(strings.Trim(group, "/"), "/") {
		above := dir
		dir = filepath.Join(dir, name)
		err := os.Mkdir(dir, 0o755)
		if err == nil {
			c.made = append(c.made, dir)
		} else if !errors.Is(err, fs.ErrExist) {
			return err
		}
		// A group of cpuset (version 1) begins with no processor and no memory, and takes no process until it has.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if err := inherit(above, dir, file); err != nil {
				return err
			}
		}
	}
	return nil
}

func inherit(from, to, file string) error {
	have, err := os.ReadFile(filepath.Join(to, file))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(bytes.TrimSpace(have)) > 0 {
		return nil
	}
	value, err := os.ReadFile(filepath.Join(from, file))
	if err != nil || len(bytes.TrimSpace(value)) == 0 {
		return err // in version 2 an empty file means what is above
	}
	return os.WriteFile(filepath.Join(to, file), value, 0)
}

// procs opens the files that a process writes 0 to, to join the groups.
func (c *cgroups) procs() ([]*os.File, error) {
	var out []*os.File
	for _, dir := range c.leaves {
		f, err := os.OpenFile(filepath.Join(dir, "cgroup.procs"), os.O_WRONLY, 0)
		if err != nil {
			for _, f := range out {
				f.Close()
			}
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

// remove removes the groups that were made, when their processes have ended; parents that others use by now stay.
func (c *cgroups) remove() error {
	var failed error
	for i := len(c.made) - 1; i >= 0; i-- {
		dir := c.made[i]
		err := unix.Rmdir(dir)
		// The kernel lets go of a process's group a moment after the process is gone.
		for try := 0; err == unix.EBUSY && path.Base(dir) == path.Base(c.made[len(c.made)-1]) && try < 100; try++ {
			time.Sleep(10 * time.Millisecond)
			err = unix.Rmdir(dir)
		}
		if err != nil && err != unix.EBUSY && err != unix.ENOENT {
			failed = errors.Join(failed, fmt.Errorf("remove control group %s: %w", dir, err))
		}
	}
	return failed
}
