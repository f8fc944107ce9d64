package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// adoptOrphans makes this process the parent of whatever its descendants leave: daemons that a test binary which panicked has started.
func adoptOrphans() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the parent of orphaned processes: %w", err)
	}
	return nil
}

// killChildren kills all children of this process, and those that it becomes the parent of by that, until there are none.
func killChildren() {
	for {
		lists, _ := filepath.Glob("/proc/self/task/*/children")
		for _, list := range lists {
			data, err := os.ReadFile(list)
			if err != nil {
				continue // the thread has ended
			}
			for _, field := range bytes.Fields(data) {
				if pid, err := strconv.Atoi(string(field)); err == nil {
					unix.Kill(pid, unix.SIGKILL)
				}
			}
		}
		if _, err := unix.Wait4(-1, nil, 0, nil); err == unix.ECHILD {
			return
		}
	}
}

// remove removes the directory of a run, and returns the mounts that were left below it.
func (e environment) remove() (mounts []string, err error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[4], e.tmp+"/") {
			mounts = append(mounts, fields[4])
		}
	}
	for i := len(mounts) - 1; i >= 0; i-- {
		if err := unix.Unmount(mounts[i], unix.MNT_DETACH); err != nil {
			return nil, fmt.Errorf("unmount %s: %w", mounts[i], err)
		}
	}
	return mounts, os.RemoveAll(e.tmp)
}
