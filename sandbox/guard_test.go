package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestGivenDevice is a device that a step gets besides: it is the only further one that it can open.
func TestGivenDevice(t *testing.T) {
	im := newImage(t)
	// A device that no machine has, which is not there for those who may open it.
	node := filepath.Join(t.TempDir(), "node")
	if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(10, 3))); err != nil {
		t.Fatal(err)
	}
	give := func(s *Spec) { s.Devices = []Mount{{Source: cloned(t, node, false), Target: "/given"}} }
	im.expect(t, `mknod /other c 10 4; for f in /given /other; do dd if=$f count=0 2>&1 | grep -o "No such device\|not permitted"; done`,
		"No such device\nnot permitted\n", give)
}

// TestDevicesOfImages has a step with every set of privileges open nodes that are in its image and in a directory that is mounted: but for
// root's own privileges on the machine none is opened, also after the step has mounted what it can anew.
func TestDevicesOfImages(t *testing.T) {
	const open = `[ $(id -u) != 0 ] || { mount -o remount,bind,dev /; mount -o remount,bind,dev /data; } 2> /dev/null
		for f in /node /data/node; do dd if=$f count=0 2>&1 | grep -o "No such device\|not permitted\|ermission denied"; done`
	for _, c := range confinements {
		t.Run(c.name, func(t *testing.T) {
			im := newImage(t)
			data := t.TempDir()
			// A device that no machine has, which is not there for those who may open it.
			for _, name := range []string{im.lower + "/node", data + "/node"} {
				if err := errors.Join(unix.Mknod(name, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 3))), os.Chmod(name, 0o666)); err != nil {
					t.Fatal(err)
				}
			}
			if c.ids {
				im = im.asUsers(t)
			}
			out, st, err := im.sh(t, open, c.spec, with(Mount{Source: cloned(t, data, false), Target: "/data"}))
			if reached := strings.Contains(out, "No such device"); err != nil || reached != (c.insecure && !c.ids) || strings.Count(out, "\n") != 2 {
				t.Errorf("%+v, %v\n%s", st, err, out)
			}
		})
	}
}
