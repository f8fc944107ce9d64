package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// at is a path inside a detached mount.
func at(f *os.File, name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), name) }

func layer(t *testing.T, dir string, files ...string) string {
	t.Helper()
	for _, f := range files {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(f)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), []byte(dir), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func must(t *testing.T) func(f *os.File, err error) *os.File {
	return func(f *os.File, err error) *os.File {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
}

// ways calls a test for each way in which overlays are mounted: by the options of this kernel, and by those of older ones.
func ways(t *testing.T, test func(t *testing.T, mount func(Overlay) (*os.File, error))) {
	t.Run("now", func(t *testing.T) { test(t, Overlay.Mount) })
	t.Run("string", func(t *testing.T) { test(t, Overlay.mountString) })
}

func TestOverlay(t *testing.T) { ways(t, testOverlay) }

func testOverlay(t *testing.T, mount func(Overlay) (*os.File, error)) {
	tmp := t.TempDir()
	// Names that mean something in an option string, and one that is longer than an option may be.
	low := layer(t, filepath.Join(tmp, `a:b,c\d `), "one", "both", "dir/x")
	top := layer(t, filepath.Join(tmp, strings.Repeat("long/", 80)), "two", "both")
	o := Overlay{Lower: []string{top, low}, Upper: layer(t, tmp+"/upper"), Work: layer(t, tmp+"/work"), Volatile: true}
	f := must(t)(mount(o))
	if b, err := os.ReadFile(at(f, "both")); err != nil || string(b) != top {
		t.Errorf("both is %q, %v", b, err)
	}
	if _, err := os.Stat(at(f, "one")); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(at(f, "new"), nil, 0o600); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(tmp + "/upper/new"); err != nil {
		t.Error(err)
	}
	if err := unix.Rename(at(f, "dir"), at(f, "moved")); !errors.Is(err, unix.EXDEV) {
		t.Errorf("rename of a lower directory: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), tmp) {
		t.Errorf("the host sees the mount: %v", err)
	}
}

// Nobody can write to an overlay without an upper directory, whatever becomes of the flags of its mount.
func TestReadOnlyOverlays(t *testing.T) {
	tmp := t.TempDir()
	f := must(t)(Overlay{Lower: []string{layer(t, tmp+"/a", "a"), layer(t, tmp+"/b", "b")}}.Mount())
	if _, err := os.Stat(at(f, "a")); err != nil {
		t.Error(err)
	}
	err := unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "x"} {
		if err := os.WriteFile(at(f, name), nil, 0o644); !errors.Is(err, unix.EROFS) {
			t.Errorf("write to %s: %v", name, err)
		}
	}
}

// A mount is never one of the directories themselves.
func TestNoOverlayOfOneDirectory(t *testing.T) {
	dir, work := layer(t, t.TempDir()+"/a", "a"), t.TempDir()
	for _, o := range []Overlay{{}, {Lower: []string{dir}}, {Upper: dir, Work: work}, {Lower: []string{dir}, Upper: dir}} {
		if f, err := o.Mount(); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%+v: %v, %v", o, f, err)
		}
	}
}

func TestBind(t *testing.T) {
	dir := layer(t, t.TempDir()+"/a", "a")
	f := must(t)(Bind(dir, 0, nil))
	if err := os.WriteFile(at(f, "x"), nil, 0o644); err != nil {
		t.Error(err)
	}
	f = must(t)(Bind(dir, ReadOnly, nil))
	if err := os.WriteFile(at(f, "y"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Error(err)
	}
}

// What is sealed does not change, also for those who have a file or directory of it open.
func TestSeal(t *testing.T) {
	tmp := t.TempDir()
	o := Overlay{Lower: []string{layer(t, tmp+"/a", "a", "gone", "dir/b")}, Upper: layer(t, tmp+"/upper"), Work: layer(t, tmp+"/work"), Volatile: true}
	f := must(t)(o.Mount())
	if err := errors.Join(os.Remove(at(f, "gone")), os.RemoveAll(at(f, "dir")), os.Mkdir(at(f, "dir"), 0o755)); err != nil {
		t.Fatal(err)
	}
	dir := must(t)(os.Open(at(f, "dir")))
	file := must(t)(os.OpenFile(at(f, "a"), os.O_RDWR, 0))
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Seal(cancelled, f); !errors.Is(err, context.Canceled) {
		t.Errorf("with a file that is open for writing: %v", err)
	}
	if err := Seal(t.Context(), f); !errors.Is(err, ErrInUse) {
		t.Errorf("with a file that is open for writing: %v", err)
	}
	file.Close()
	if err := Seal(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	if fd, err := unix.Openat(int(dir.Fd()), "x", unix.O_CREAT|unix.O_WRONLY, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("a file is made in a directory that was open: %d, %v", fd, err)
	}
	if _, err := os.OpenFile(at(f, "a"), os.O_RDWR, 0); !errors.Is(err, unix.EROFS) {
		t.Error(err)
	}
}

func TestManyLowers(t *testing.T) { ways(t, testManyLowers) }

func testManyLowers(t *testing.T, mount func(Overlay) (*os.File, error)) {
	tmp := t.TempDir()
	var lower []string
	for i := range MaxLower + 1 {
		lower = append(lower, layer(t, fmt.Sprintf("%s/%d", tmp, i)))
	}
	layer(t, lower[0], "first")
	layer(t, lower[MaxLower-1], "last")
	f := must(t)(mount(Overlay{Lower: lower[:MaxLower]}))
	for _, name := range []string{"first", "last"} {
		if _, err := os.Stat(at(f, name)); err != nil {
			t.Error(err)
		}
	}
	var many *TooManyError
	if _, err := (Overlay{Lower: lower}).Mount(); !errors.As(err, &many) || many.Lowers != MaxLower+1 {
		t.Error(err)
	}
}

func TestErrors(t *testing.T) {
	tmp := t.TempDir()
	dir := layer(t, tmp+"/a", "file")
	var e *Error
	if _, err := (Overlay{Lower: []string{dir, tmp + "/none"}}).Mount(); !errors.As(err, &e) || !errors.Is(err, unix.ENOENT) {
		t.Error(err)
	}
	if _, err := (Overlay{Lower: []string{dir, dir + "/file"}}).Mount(); !errors.Is(err, unix.ENOTDIR) {
		t.Error(err)
	}
	if _, err := New("tmpfs", 0, Option{"nonsense", "1"}); !errors.As(err, &e) || len(e.Messages) == 0 ||
		!strings.Contains(err.Error(), "nonsense") {
		t.Error(err)
	}
	if _, err := New("nosuchfs", 0); !errors.As(err, &e) || !errors.Is(err, unix.ENODEV) {
		t.Error(err)
	}
}

// An overlay that the kernel mounts read-only, since there is no room for what it needs, is an error that says so.
func TestFullOverlay(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "nr_inodes=4"); err != nil { // the root, and the three below
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, 0) })
	o := Overlay{Lower: []string{layer(t, dir+"/lower"), t.TempDir()}, Upper: layer(t, dir+"/upper"), Work: layer(t, dir+"/work")}
	if f, err := o.Mount(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Mount = %v, %v, want that no space is left", f, err)
	}
}

func TestTmpfs(t *testing.T) {
	f := must(t)(Tmpfs(1<<20, 0o1777, 3, 4))
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if st.Mode&0o7777 != 0o1777 || st.Uid != 3 || st.Gid != 4 {
		t.Errorf("%o %d %d", st.Mode, st.Uid, st.Gid)
	}
	if err := os.WriteFile(at(f, "big"), make([]byte, 2<<20), 0o644); !errors.Is(err, unix.ENOSPC) {
		t.Error(err)
	}
	if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Error("not close-on-exec")
	}
}

func TestCloneAndAttributes(t *testing.T) {
	dir := layer(t, t.TempDir(), "a", "sub/b")
	f := must(t)(os.Open(dir + "/sub"))
	m := must(t)(Clone(f, true))
	if err := os.WriteFile(at(m, "c"), nil, 0o644); err != nil {
		t.Error(err)
	}
	if err := SetAttr(m, ReadOnly|NoDev|NoExec|NoSuid, true); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at(m, "d"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Error(err)
	}
	if err := os.WriteFile(dir+"/sub/d", nil, 0o644); err != nil {
		t.Error("the original is read-only too:", err)
	}
	file := must(t)(os.Open(dir + "/a"))
	must(t)(Clone(file, false))
}

// What is in a detached mount can be mounted elsewhere, also by kernels that clone only what is attached.
func TestBelow(t *testing.T) {
	defer func(f bool) { forced = f }(forced)
	for _, forced = range []bool{false, true} {
		tmp := t.TempDir()
		o := Overlay{Lower: []string{layer(t, tmp+"/low", "dir/a")}, Upper: layer(t, tmp+"/up"), Work: layer(t, tmp+"/work")}
		root := must(t)(o.Mount())
		dir := must(t)(os.Open(at(root, "dir")))
		m := must(t)(Below(root, dir, true))
		if err := os.WriteFile(at(m, "b"), nil, 0o644); err != nil {
			t.Error(err)
		}
		for _, name := range []string{at(root, "dir/a"), at(root, "dir/b"), at(m, "a"), tmp + "/up/dir/b"} {
			if _, err := os.Stat(name); err != nil {
				t.Errorf("old kernel %t: %v", forced, err)
			}
		}
		// A directory of the host needs no detour.
		host := must(t)(os.Open(tmp))
		within := must(t)(os.Open(tmp + "/low"))
		must(t)(Below(host, within, true))
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil || strings.Contains(string(mounts), tmp) {
			t.Errorf("the host sees the mount: %v", err)
		}
	}
}

// A process that is being started has the files of all others open for a moment, also one in a mount that is made read-only.
func TestBusyForAMoment(t *testing.T) {
	f := must(t)(Tmpfs(0, 0o755, 0, 0))
	file, err := os.Create(at(f, "file"))
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(20*time.Millisecond, func() { file.Close() })
	if err := SetAttr(f, ReadOnly, false); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(at(f, "other"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Error(err)
	}
}

// What is mounted detached can be mounted twice, a directory and a file, in the way of older kernels as well.
func TestAllBelow(t *testing.T) {
	for _, old := range []bool{false, true} {
		was := forced
		forced = old
		fs, err := Tmpfs(0, 0o755, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Openat(int(fs.Fd()), "file", unix.O_CREAT|unix.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		file := os.NewFile(uintptr(fd), "file")
		both, err := AllBelow(fs, true, fs, file)
		if err != nil {
			t.Fatalf("old %v: a directory: %v", old, err)
		}
		files, err := AllBelow(both[1], true, both[1], both[1])
		if err != nil {
			t.Fatalf("old %v: a file: %v", old, err)
		}
		for _, f := range append(files, append(both, fs, file)...) {
			f.Close()
		}
		forced = was
	}
}
