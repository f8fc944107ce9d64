package roots

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"golang.org/x/sys/unix"
)

// maxDevices is how many devices a root may have in a user namespace, each of which is open while a step runs.
const maxDevices = 1024

// TooManyDevicesError says that a root has more than maxDevices devices.
type TooManyDevicesError struct{}

func (e *TooManyDevicesError) Error() string {
	return fmt.Sprintf(
		"the root file system has more than the %d devices that a RUN of an ordinary user can have: build it as root",
		maxDevices)
}

// heldDevice is a device of a root, with the file that stands for it.
type heldDevice struct {
	file  *os.File
	entry layer.Entry
}

// fileID is what a file is known by while it is open.
type fileID struct{ dev, ino uint64 }

// holdDevices opens what stands for the devices of the root, which is made of the layers of tree.
func (r *Root) holdDevices(tree *layer.Stack) error {
	for e := range tree.Visible(func(m *layer.Manifest) bool { return m.Devices }) {
		if e.Type != layer.Char && e.Type != layer.Block {
			continue
		}
		if len(r.devices) == maxDevices {
			return &TooManyDevicesError{}
		}
		f, err := rootfs.At(r.File).OpenNoSymlinks(e.Path, unix.O_PATH|unix.O_NOFOLLOW, 0)
		if err != nil {
			return fmt.Errorf("open what stands for the device /%s: %w", e.Path, err)
		}
		r.devices = append(r.devices, heldDevice{f, e})
	}
	return nil
}

// ForgetRemoved closes the devices that the step has removed: the file system cannot be sealed as long as they are open. One that was given
// another name by link(2) and removed under its own is no device any more.
func (r *Root) ForgetRemoved() {
	r.devices = slices.DeleteFunc(r.devices, func(d heldDevice) bool {
		name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", d.file.Fd()))
		removed := err != nil || strings.HasSuffix(name, " (deleted)") // proc_pid_fd(5)
		if removed {
			d.file.Close()
		}
		return removed
	})
}

// Device returns the device that stands at a path of the root, after the step.
func (r *Root) Device(path string) (layer.Entry, bool, error) {
	if len(r.devices) == 0 {
		return layer.Entry{}, false, nil
	}
	if r.byID == nil {
		r.byID = map[fileID]layer.Entry{}
		for _, d := range r.devices {
			id, err := idOf(int(d.file.Fd()), "")
			if err != nil {
				return layer.Entry{}, false, err
			}
			r.byID[id] = d.entry
		}
	}
	id, err := idOf(int(r.File.Fd()), path)
	e, ok := r.byID[id]
	return e, ok && err == nil, err
}

func idOf(dir int, path string) (fileID, error) {
	var st unix.Stat_t
	err := unix.Fstatat(dir, path, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH)
	return fileID{st.Dev, st.Ino}, err
}
