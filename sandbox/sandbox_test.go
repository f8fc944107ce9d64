package sandbox

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/passwd"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

var root = passwd.User{Groups: []uint32{0}, Home: "/root"}

// image is a root file system on disk, made of busybox, to be changed by a test before it is mounted.
type image struct{ lower, upper, work string }

func newImage(t testing.TB) image {
	t.Helper()
	dir := t.TempDir()
	im := image{dir + "/lower", dir + "/upper", dir + "/work"}
	for _, d := range []string{im.upper, im.work, im.lower, im.lower + "/bin", im.lower + "/etc", im.lower + "/proc",
		im.lower + "/sys", im.lower + "/dev", im.lower + "/tmp", im.lower + "/root"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(im.lower+"/bin/busybox", busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields("sh cat ls true false id env sleep mount mknod dd echo grep wc hostname pwd touch rm ln " +
		"mkdir rmdir setsid nohup su umount stat test sed chmod tr sort df nc ip tail head unshare find mv kill") {
		if err := os.Symlink("busybox", im.lower+"/bin/"+name); err != nil {
			t.Fatal(err)
		}
	}
	im.write(t, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/sh\n")
	im.write(t, "etc/group", "root:x:0:\ndaemon:x:1:\nadm:x:4:daemon\n")
	return im
}

func (im image) write(t testing.TB, name, content string) {
	t.Helper()
	p := filepath.Join(im.lower, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// mount returns a new overlay of the image. What is in upper already stays.
func (im image) mount(t testing.TB) *os.File {
	t.Helper()
	if err := os.RemoveAll(im.work + "/work/incompat"); err != nil {
		t.Fatal(err)
	}
	f, err := mount.Overlay{Lower: []string{im.lower}, Upper: im.upper, Work: im.work, Volatile: true}.Mount()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// sh runs a script in the image and returns its output.
func (im image) sh(t testing.TB, script string, change ...func(*Spec)) (string, Status, error) {
	t.Helper()
	var out bytes.Buffer
	s := Spec{Root: im.mount(t), Args: []string{"/bin/sh", "-c", script}, Env: []string{defaultPath}, User: root,
		Stdout: &out, Stderr: &out}
	for _, c := range change {
		c(&s)
	}
	status, err := Run(context.Background(), s)
	return out.String(), status, err
}

func TestFirst(t *testing.T) {
	out, st, err := newImage(t).sh(t, "id; ls -la / /dev /proc/self/fd; mount; cat /proc/self/status; cat /proc/self/mountinfo | wc; env; pwd; cat /etc/hosts; echo $$", func(s *Spec) { s.Debug = os.Stdout })
	t.Log(out, st, err)
}
