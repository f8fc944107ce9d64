package torture

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/kilntest"
	"golang.org/x/sys/unix"
)

// quiet is a project in whose steps a call that fails makes a step fail, so that a wrong image can only be kiln's fault.
func quiet(t *testing.T, root string) *project {
	files := map[string]string{"Dockerfile": `FROM base AS one
WORKDIR /work
COPY tree /work/tree
FROM base
COPY --from=one /work /work
RUN mkdir /made
COPY --chown=user tree/1 /last/
`}
	for i := range 12 {
		files[fmt.Sprintf("tree/%d/file%d", i%3, i)] = strings.Repeat(fmt.Sprint(i), 1000*i)
	}
	return newProject(t, root, files)
}

// failures are calls of kiln's, and the errors that they can have. strace counts them for each thread.
var failures = []struct{ calls, errno string }{
	{"mkdir,mkdirat", "ENOSPC"}, {"mkdir,mkdirat", "EIO"}, {"mkdir,mkdirat", "EMFILE"},
	{"rename,renameat,renameat2", "ENOSPC"}, {"rename,renameat,renameat2", "EIO"},
	{"link,linkat", "ENOSPC"}, {"link,linkat", "EMLINK"}, {"symlink,symlinkat", "ENOSPC"},
	{"openat", "EMFILE"}, {"openat", "ENOSPC"}, {"openat", "EINTR"}, {"openat2", "ENFILE"}, {"openat2", "EAGAIN"},
	{"fchown,fchownat", "EIO"}, {"fchmod,fchmodat", "EIO"}, {"utimensat", "EIO"},
	{"unlinkat", "EIO"}, {"unlink", "EIO"},
	{"fsync,syncfs", "EIO"}, {"ftruncate", "ENOSPC"}, {"pwrite64", "EIO"}, {"pread64", "EIO"}, {"getdents64", "EIO"},
	{"flock", "ENOLCK"}, {"flock", "EINTR"}, {"copy_file_range", "EIO"},
	{"fsopen,fsconfig,fsmount", "ENOMEM"}, {"open_tree,move_mount,mount_setattr", "ENOMEM"}, {"clone3", "EAGAIN"},
}

// TestFailingCalls has the n-th call of one kind fail, or kiln be killed in it. What comes of it is the right image or an
// error, and the build after that makes the right one, with nothing left over.
func TestFailingCalls(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatalf("%v: install strace", err)
	}
	rnd := random(t)
	ref := quiet(t, filepath.Join(t.TempDir(), "root"))
	want := treeDigest(t, ref.build())
	n := rounds(t, 14)
	failed, hit := 0, 0
	for i := range n {
		f := failures[rnd.IntN(len(failures))]
		inject := fmt.Sprintf("%s:error=%s:when=%d", f.calls, f.errno, 1+rnd.IntN(12))
		killed := i%3 == 2
		if killed {
			inject = fmt.Sprintf("%s:signal=KILL:when=%d", f.calls, 1+rnd.IntN(12))
		}
		p := quiet(t, filepath.Join(t.TempDir(), "root"))
		out := filepath.Join(t.TempDir(), "out.tar")
		cmd := p.kiln("-t", "app", "-o", "type=image", "-o", "type=tar,dest="+out)
		cmd.Args = append([]string{"strace", "-f", "-qqq", "-o", os.DevNull, "-e", "trace=" + f.calls, "-e", "inject=" + inject, kilnPath}, cmd.Args[1:]...)
		cmd.Path = strace
		var log bytes.Buffer
		cmd.Stdout, cmd.Stderr = &log, &log
		hung := false
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(kilntest.Hang, func() { hung = true; cmd.Process.Kill() })
		err := cmd.Wait()
		timer.Stop()
		if err != nil {
			hit++
		}
		switch {
		case hung:
			t.Errorf("%s: kiln hangs\n%s", inject, log.String())
		case err == nil:
			tarball, err := os.ReadFile(out)
			if err != nil || treeDigest(t, tarball) != want {
				t.Errorf("%s: kiln makes another image, %v\n%s", inject, err, log.String())
			}
		case !killed:
			failed++
			if code := cmd.ProcessState.ExitCode(); code != 1 && code != 2 && code != 125 || !strings.Contains(log.String(), "kiln: ") {
				t.Errorf("%s: exit status %d\n%s", inject, code, log.String())
			}
			checkLog(t, log.String())
		}
		tarball, text, err := p.try("-t", "app")
		if err != nil || treeDigest(t, tarball) != want {
			t.Errorf("%s: the build after it: %v\n%s", inject, err, text)
		}
		p.clean()
		if t.Failed() {
			t.Fatalf("%s: kiln said\n%s", inject, log.String())
		}
	}
	if hit == 0 {
		t.Errorf("none of %d rounds came to a call that was to fail", n)
	}
	t.Logf("%d rounds, %d of them ended in an error", n, failed)
}

// TestFewInodes builds where no more files can be made, though there is space.
func TestFewInodes(t *testing.T) {
	dir := t.TempDir()
	image, mnt := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	sh(t, "truncate", "-s", "40M", image)
	sh(t, "mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", "-N", "256", image)
	sh(t, "mount", "-o", "loop", image, mnt)
	t.Cleanup(func() { unix.Unmount(mnt, unix.MNT_DETACH) })
	files := map[string]string{"Dockerfile": "FROM base\nCOPY many /many\nRUN true\n"}
	for i := range 1500 {
		files[fmt.Sprint("many/", i)] = "x"
	}
	p := newProject(t, filepath.Join(mnt, "root"), files)
	out, err := p.kiln("-t", "big").CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 || !bytes.Contains(out, []byte("no space left on device")) {
		t.Errorf("%v\n%s", err, out)
	}
	p.clean()
	small := newProject(t, p.root, map[string]string{"Dockerfile": "FROM scratch\nCOPY a /\n", "a": "a"})
	small.build()
	small.clean()
}

// TestOddMachine builds on machines that are set up in unusual ways.
func TestOddMachine(t *testing.T) {
	want := treeDigest(t, quiet(t, filepath.Join(t.TempDir(), "root")).build())
	in := func(p *project, script string) *exec.Cmd {
		cmd := p.kiln("-t", "app", "-o", "type=image", "-o", "type=tar,dest=-")
		cmd.Args = append([]string{"sh", "-ec", script + `; exec "$0" "$@"`, kilnPath}, cmd.Args[1:]...)
		cmd.Path = "/bin/sh"
		return cmd
	}
	for _, c := range []struct{ name, script string }{
		{"256 files open at once", "ulimit -n 256"},
		{"a umask of 000", "umask 000"},
		{"a umask of 077", "umask 077"},
		{"no environment", "unset HOME PATH USER"},
		{"no TMPDIR", "TMPDIR=/nowhere; export TMPDIR"},
		{"standard input is closed", "exec <&-"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := quiet(t, filepath.Join(t.TempDir(), "root"))
			out, log, err := runBounded(t, in(p, c.script))
			if err != nil || treeDigest(t, out) != want {
				t.Errorf("%v\n%s", err, log)
			}
			p.clean()
			// Whatever the umask, others can change nothing of the root, and cannot enter it.
			err = filepath.WalkDir(p.root, func(path string, e os.DirEntry, err error) error {
				if err != nil {
					return err
				}
				info, err := e.Info()
				if err == nil && strings.HasPrefix(path, filepath.Join(p.root, "layers")) && strings.Contains(path, "/fs/") {
					return nil // the image's own
				}
				if err == nil && info.Mode()&os.ModeSymlink == 0 && info.Mode().Perm()&0o022 != 0 {
					t.Errorf("%s has mode %v", path, info.Mode())
				}
				return err
			})
			if info, statErr := os.Stat(p.root); err != nil || statErr != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("the root: %v, %v, %v", info, err, statErr)
			}
		})
	}

	t.Run("64 files open at once", func(t *testing.T) {
		p := quiet(t, filepath.Join(t.TempDir(), "root"))
		out, log, err := runBounded(t, in(p, "ulimit -n 64"))
		if err == nil && treeDigest(t, out) != want || err != nil && !strings.Contains(log, "too many open files") {
			t.Errorf("%v\n%s", err, log)
		}
		p.clean()
		if out := p.build(); treeDigest(t, out) != want {
			t.Error("the build after it makes another image")
		}
	})

	t.Run("a root that is read-only", func(t *testing.T) {
		p := quiet(t, filepath.Join(t.TempDir(), "root"))
		p.build("-t", "app")
		cmd := p.kiln("-t", "app")
		cmd.Args = append([]string{"unshare", "--mount", "sh", "-ec", `mount --bind "$ROOT" "$ROOT"; mount -o remount,ro,bind "$ROOT"; exec "$0" "$@"`, kilnPath}, cmd.Args[1:]...)
		cmd.Env = append(cmd.Env, "ROOT="+p.root)
		cmd.Path, _ = exec.LookPath("unshare")
		log, err := cmd.CombinedOutput()
		if err == nil || !bytes.Contains(log, []byte("read-only file system")) || !bytes.Contains(log, []byte(p.root)) {
			t.Errorf("%v\n%s", err, log)
		}
		p.build("-t", "app")
	})

	t.Run("a root of somebody else", func(t *testing.T) {
		p := quiet(t, filepath.Join(t.TempDir(), "root"))
		p.build("-t", "app")
		if err := os.Chown(p.root, 1234, 1234); err != nil {
			t.Fatal(err)
		}
		log, err := p.kiln("-t", "app").CombinedOutput()
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 125 || !bytes.Contains(log, []byte("1234")) {
			t.Errorf("%v\n%s", err, log)
		}
	})

	t.Run("a root that a group may write to", func(t *testing.T) {
		p := quiet(t, filepath.Join(t.TempDir(), "root"))
		p.build("-t", "app")
		if err := os.Chmod(p.root, 0o770); err != nil {
			t.Fatal(err)
		}
		log, err := p.kiln("-t", "app").CombinedOutput()
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 125 || !bytes.Contains(log, []byte("chmod")) {
			t.Errorf("%v\n%s", err, log)
		}
	})

	t.Run("times of long ago and to come", func(t *testing.T) {
		p := quiet(t, filepath.Join(t.TempDir(), "root"))
		for i, year := range []int{1902, 2200} {
			when := time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)
			if err := os.Chtimes(filepath.Join(p.dir, "tree", fmt.Sprint(i), fmt.Sprint("file", i)), when, when); err != nil {
				t.Fatal(err)
			}
		}
		first := p.build()
		if treeDigest(t, first) != want || !bytes.Equal(p.build(), first) {
			t.Error("another image")
		}
	})
}
