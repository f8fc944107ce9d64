package main

import (
	"archive/tar"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// testUID is a user that the machine does not know.
const testUID = 54321

// asUser is kiln as that user. What the machine knows of users is replaced for it alone.
const asUser = `#!/bin/sh
exec unshare --mount sh -c '
    mount --bind %[1]s/passwd /etc/passwd && mount --bind %[1]s/${IDS:-range} /etc/subuid && mount --bind %[1]s/${IDS:-range} /etc/subgid &&
    exec setpriv --reuid %[2]d --regid %[2]d --clear-groups %[1]s/bin/kiln "$@"' kiln "$@"
`

// TestBuildsAsUser runs stories as an ordinary user with ranges of ids: those of TestBuilds that are not about what root alone
// has, and those of testdata/user. With IDS=none in the environment the user has no range.
//
//	$ROOTKILN    kiln as root
//	special.tar  files of all kinds that a layer can have
//	large.tar    a file that belongs to user 70000
func TestBuildsAsUser(t *testing.T) {
	shared := t.TempDir()
	if err := os.Chmod(filepath.Dir(shared), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"passwd": fmt.Sprintf("root:x:0:0:root:/root:/bin/sh\nbuilder:x:%[1]d:%[1]d::/:/bin/sh\n", testUID),
		// By name and by number, and somebody else's between them: 65536 ids in all.
		"range": fmt.Sprintf("builder:200000:1000\nother:400000:65536\n%d:300000:64535\n", testUID),
		"none":  "other:400000:65536\n",
	} {
		if err := os.WriteFile(filepath.Join(shared, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin", "user"} {
		if err := os.Mkdir(filepath.Join(shared, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program, err := exec.LookPath("kiln")
	if err != nil {
		t.Fatal(err)
	}
	// Where the program is, the user may not look.
	if err := os.Link(program, filepath.Join(shared, "bin", "kiln")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(shared, "user", "kiln"), fmt.Appendf(nil, asUser, shared, testUID), 0o755); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("testdata/user/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cache", "check", "committed", "deep", "emulation", "explain", "failed", "forged", "history", "left", "mounts", "passed", "prune", "run", "signals", "verify"} {
		files = append(files, "testdata/builds/"+name+".txtar")
	}
	stories(t, testscript.Params{Files: files, WorkdirRoot: t.TempDir()}, func(env *testscript.Env) error {
		env.Setenv("ROOTKILN", program)
		env.Setenv("PATH", filepath.Join(shared, "user")+":"+env.Getenv("PATH"))
		if err := special(filepath.Join(env.WorkDir, "special.tar")); err != nil {
			return err
		}
		if err := archive(filepath.Join(env.WorkDir, "large.tar"), tar.Header{Name: "of/large", Uid: 70000}); err != nil {
			return err
		}
		return filepath.WalkDir(env.WorkDir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(path, testUID, testUID)
		})
	})
}

// special writes a tar of all kinds of files.
func special(name string) error {
	xattr := func(name, value string) map[string]string { return map[string]string{"SCHILY.xattr." + name: value} }
	const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_net_bind_service+ep
	return archive(name,
		// The first RUN would make these.
		tar.Header{Name: "dev/", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "proc/", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "sys/", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "all/", Typeflag: tar.TypeDir, Mode: 0o3775, Uid: 7, Gid: 8},
		tar.Header{Name: "all/setuid", Mode: 0o4755, Uid: 65535, Gid: 65534},
		tar.Header{Name: "all/capable", Mode: 0o755, PAXRecords: xattr("security.capability", capability)},
		tar.Header{Name: "all/capable2", Mode: 0o755, Uid: 33, PAXRecords: xattr("security.capability", capability)},
		tar.Header{Name: "all/attr", Mode: 0o600, Uid: 12, PAXRecords: xattr("user.some", "value")},
		tar.Header{Name: "all/smuggled", Mode: 0o600, PAXRecords: xattr("user.overlay.opaque", "y")},
		tar.Header{Name: "all/hard", Typeflag: tar.TypeLink, Linkname: "all/setuid"},
		tar.Header{Name: "all/soft", Typeflag: tar.TypeSymlink, Linkname: "setuid", Uid: 5, Gid: 6},
		tar.Header{Name: "all/pipe", Typeflag: tar.TypeFifo, Mode: 0o620, Uid: 9, Gid: 9},
		tar.Header{Name: "all/null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3},
		tar.Header{Name: "all/disk", Typeflag: tar.TypeBlock, Mode: 0o660, Devmajor: 7, Devminor: 300, Gid: 6},
		tar.Header{Name: "all/hidden/", Typeflag: tar.TypeDir, Mode: 0o700, Uid: 3},
		tar.Header{Name: "all/hidden/below", Mode: 0o400, Uid: 3},
		tar.Header{Name: "all/closed/", Typeflag: tar.TypeDir, Mode: 0o000, Uid: 4},
		tar.Header{Name: "all/closed/file", Mode: 0o000, Uid: 4},
	)
}

// archive writes a tar of files that hold their own names.
func archive(name string, headers ...tar.Header) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	for _, h := range headers {
		h.ModTime, h.Format = time.Unix(1000000000, 0), tar.FormatPAX
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(h.Name))
		}
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte(h.Name)); err != nil {
				return err
			}
		}
	}
	return w.Close()
}
