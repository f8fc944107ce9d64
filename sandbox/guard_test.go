package sandbox

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDeviceGuards holds both forms of the rules, that of version 1 and that of version 2, against the same commands, as far as the
// machine has both.
func TestDeviceGuards(t *testing.T) {
	all, err := machine()
	if err != nil {
		t.Fatal(err)
	}
	rules, err := deviceRules(nil)
	if err != nil {
		t.Fatal(err)
	}
	rules = append(rules, deviceRule{kind: 'c', major: 10, minor: 229})
	found := 0
	for _, h := range all {
		if !h.unified && !slices.Contains(h.controllers, devicesController) {
			continue
		}
		found++
		c := &cgroups{}
		t.Cleanup(func() { c.remove() })
		if err := c.guard([]*hierarchy{h}, rules, Limits{}); err != nil {
			t.Fatalf("%s: %v", h.mount, err)
		}
		// EPERM is the guard's; ENXIO and ENODEV are of devices that are not there.
		cmd := exec.Command("sh", "-c", `cd "$1"; for d in "c 1 3" "c 1 5" "c 5 2" "c 136 0" "c 10 229" "c 1 11" "c 1 1" "c 5 1" "b 7 0" "b 1 3" "c 10 3"; do
			rm -f node; mknod node $d; dd if=node count=0 2>&1 | grep -q "Operation not permitted" && echo "$d"; done; :`, "sh", t.TempDir())
		procs, into, err := c.join()
		if err != nil {
			t.Fatal(err)
		}
		if into != nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(into.Fd())}
		}
		for _, f := range procs {
			cmd.Args[2] = "echo 0 >&3; exec 3>&-; " + cmd.Args[2]
			cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		}
		out, err := cmd.CombinedOutput()
		if want := "c 1 11\nc 1 1\nc 5 1\nb 7 0\nb 1 3\nc 10 3\n"; err != nil || string(out) != want {
			t.Errorf("%s: %v, refused are\n%swant\n%s", h.mount, err, out, want)
		}
		for _, f := range procs {
			f.Close()
		}
	}
	if found == 0 {
		t.Error("the machine has no control groups that guard devices")
	}
}

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
			out, st, err := im.sh(t, open, c.spec, with(Mount{cloned(t, data, false), "/data"}))
			if reached := strings.Contains(out, "No such device"); err != nil || reached != (c.insecure && !c.ids) || strings.Count(out, "\n") != 2 {
				t.Errorf("%+v, %v\n%s", st, err, out)
			}
		})
	}
}
