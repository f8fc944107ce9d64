package torture

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/kilntest"
	"golang.org/x/sys/unix"
)

// shutdownNoFlush is the flag of ext4's and XFS's ioctl for a file system that stops at once, with nothing of its journal written:
// what the disk has then is what it has after a power cut.
const shutdownNoFlush = 2

const shutdown = 0x8004587d // _IOR('X', 125, __u32): EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN

// otherBoot makes cmd see another boot id than this machine's, as after the power has come back.
func otherBoot(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	id := filepath.Join(t.TempDir(), "boot_id")
	if err := os.WriteFile(id, []byte("00000000-0000-4000-8000-000000000000\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Args = append([]string{"unshare", "--mount", "sh", "-ec", `mount --bind "$0" /proc/sys/kernel/random/boot_id; exec "$@"`, id, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = unshare
}

// A disk is a file system that has its power cut.
type disk struct {
	mkfs, mount []string // arguments before the device
	// fsck is what a machine runs before it mounts the file system again; nil for nothing.
	fsck []string
}

// Those that lose different things: a file system with a journal loses bytes of files, one without also the order of what it was told.
var disks = []disk{
	{mkfs: []string{"mkfs.ext4", "-q"}, mount: []string{"-o", "loop,commit=1"}},
	{mkfs: []string{"mkfs.ext4", "-q", "-O", "^has_journal"}, mount: []string{"-o", "loop"}, fsck: []string{"e2fsck", "-fy"}},
	{mkfs: []string{"mkfs.ext4", "-q"}, mount: []string{"-o", "loop,commit=1000"}},
	{mkfs: []string{"mkfs.xfs", "-q"}, mount: []string{"-o", "loop"}},
}

// syncSome syncs a share of the files and directories below root.
func syncSome(t *testing.T, rnd *rand.Rand, root string, share float64) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() && !e.IsDir() || rnd.Float64() >= share {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Sync()
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestPowerCut cuts the power of the disk at a random moment: while a build runs, or after it has said that it is done.
// The build after that must make what an undisturbed one makes, and not trust what only looks whole.
func TestPowerCut(t *testing.T) {
	rnd := random(t)
	p := newProject(t, filepath.Join(t.TempDir(), "root"), fiveStepFiles())
	started := time.Now()
	want := treeDigest(t, p.build("--build-arg", "ROUND=0"))
	full := time.Since(started)

	n := rounds(t, 16)
	during := 0
	for i := range n {
		dir := t.TempDir()
		file, mnt := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
		if err := os.Mkdir(mnt, 0o755); err != nil {
			t.Fatal(err)
		}
		disk := disks[rnd.IntN(len(disks))]
		sh(t, "truncate", "-s", "320M", file)
		sh(t, append(slices.Clone(disk.mkfs), file)...)
		mount := func() { sh(t, append(append([]string{"mount"}, disk.mount...), file, mnt)...) }
		mount()
		mounted := true
		t.Cleanup(func() {
			if mounted {
				unix.Unmount(mnt, unix.MNT_DETACH)
			}
		})
		p.root = filepath.Join(mnt, "root")

		cmd := p.kiln("--build-arg", "ROUND=0", "-t", "app", "-o", "type=image")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		if i%2 == 0 {
			during++
			select {
			case err := <-done:
				done <- err
			case <-time.After(time.Duration(rnd.Int64N(int64(2 * full)))):
			}
		} else {
			err := <-done
			if err != nil {
				t.Fatalf("round %d: the build before the cut: %v", i, err)
			}
			done <- nil
			// Nothing, or a part, or nearly all of what was made is on disk by then, and the names of much more.
			syncSome(t, rnd, p.root, []float64{0, 0.01, 0.5, 0.99}[i/2%4])
		}
		d, err := os.Open(mnt)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.IoctlSetPointerInt(int(d.Fd()), shutdown, shutdownNoFlush); err != nil {
			t.Fatal(err)
		}
		d.Close()
		<-done // kiln itself survives the disk, and fails
		for deadline := time.Now().Add(kilntest.Hang); ; time.Sleep(5 * time.Millisecond) {
			err := unix.Unmount(mnt, 0)
			if err == nil {
				break
			}
			if time.Now().After(deadline) { // processes of steps may still have been dying
				t.Fatalf("round %d: unmount: %v", i, err)
			}
		}
		// Whoever was making a mount namespace just then has it still, and it is not the disk as it was that would be mounted again.
		for deadline := time.Now().Add(kilntest.Hang); ; time.Sleep(5 * time.Millisecond) {
			out, err := exec.Command("losetup", "-j", file).Output()
			if err != nil {
				t.Fatal(err)
			}
			if len(out) == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("round %d: the disk is in use: %s", i, out)
			}
		}
		if disk.fsck != nil {
			// Its status says that there was something to mend; what cannot be mended, mount says.
			_ = exec.Command(disk.fsck[0], append(slices.Clone(disk.fsck[1:]), file)...).Run()
		}
		mount()

		out := filepath.Join(dir, "out.tar")
		again := p.kiln("--build-arg", "ROUND=0", "-t", "app", "-o", "type=image", "-o", "type=tar,dest="+out)
		otherBoot(t, again)
		if log, err := again.CombinedOutput(); err != nil {
			t.Errorf("round %d: the build after the cut: %v\n%s", i, err, log)
		} else {
			tarball, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			if treeDigest(t, tarball) != want {
				t.Errorf("round %d: the build after the cut makes another image\n%s", i, log)
			}
			checkStore(t, p, "app")
		}
		p.clean()
		sh(t, "umount", mnt)
		mounted = false
		os.Remove(file)
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%d power cuts, %d of them while kiln was at work", n, during)
}
