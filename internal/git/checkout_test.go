package git

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/kilntest"
	"github.com/kilnbuild/kiln/internal/remoteurl"
)

// checkout makes a repository with one commit, and returns its directory and a function that runs git there.
func checkout(t *testing.T, options ...string) (dir string, git func(args ...string) string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "tree")
	git = func(args ...string) string {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "protocol.file.allow=always"}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_COMMITTER_DATE=2026-01-02T03:04:05Z")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	git(append([]string{"init", "-q", "-b", "main"}, options...)...)
	git("commit", "-q", "--allow-empty", "-m", "one")
	return dir, git
}

const made = 1767323045

// TestCheckout: of every kind of checkout the commit, its time and its origin are known.
func TestCheckout(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T) (at, revision string){
		"branch": func(t *testing.T) (string, string) { d, git := checkout(t); return d, git("rev-parse", "HEAD") },
		"sha256": func(t *testing.T) (string, string) {
			d, git := checkout(t, "--object-format=sha256")
			return d, git("rev-parse", "HEAD")
		},
		"packed": func(t *testing.T) (string, string) {
			d, git := checkout(t)
			git("pack-refs", "--all")
			git("gc", "-q")
			return d, git("rev-parse", "HEAD")
		},
		"detached": func(t *testing.T) (string, string) {
			d, git := checkout(t)
			git("checkout", "-q", "--detach")
			return d, git("rev-parse", "HEAD")
		},
		"subdirectory": func(t *testing.T) (string, string) {
			d, git := checkout(t)
			return d + "/a/b", git("rev-parse", "HEAD")
		},
		"linked working tree": func(t *testing.T) (string, string) {
			d, git := checkout(t)
			git("worktree", "add", "-q", d+"-linked")
			return d + "-linked", git("rev-parse", "HEAD")
		},
		"submodule": func(t *testing.T) (string, string) {
			d, git := checkout(t)
			other, _ := checkout(t)
			git("submodule", "--quiet", "add", other, "sub")
			git("-C", "sub", "remote", "set-url", "origin", "https://example.org/x.git")
			return d + "/sub", git("-C", "sub", "rev-parse", "HEAD")
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, want := prepare(t)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if name != "submodule" {
				cmd := exec.Command("git", "-C", dir, "remote", "add", "origin", "https://user:secret@example.org/x.git")
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatal(string(out))
				}
			}
			if got := DescribeCheckout(t.Context(), dir); got != (Checkout{want, "https://example.org/x.git"}) {
				t.Errorf("%+v, want the revision %s", got, want)
			}
			if at, err := HeadTime(t.Context(), dir, "ctx"); err != nil || at.Unix() != made {
				t.Errorf("%v, %v", at, err)
			}
		})
	}
}

// TestNoCheckout: what is no checkout, or has no commit, is said.
func TestNoCheckout(t *testing.T) {
	empty := t.TempDir()
	if out, err := exec.Command("git", "init", "-q", empty).CombinedOutput(); err != nil {
		t.Fatal(string(out))
	}
	for dir, want := range map[string]string{t.TempDir(): "ctx is not in a git repository", empty: "the repository of ctx has no commit"} {
		if _, err := HeadTime(t.Context(), dir, "ctx"); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
		if got := DescribeCheckout(t.Context(), dir); got != (Checkout{}) {
			t.Errorf("%+v", got)
		}
	}
}

// TestHostileCheckout: whatever a repository says, no program of its choice runs, nothing is read of other repositories, and no answer is
// waited for in vain.
func TestHostileCheckout(t *testing.T) {
	victim, victimGit := checkout(t)
	victimGit("remote", "add", "origin", "https://example.org/private.git")
	write := func(t *testing.T, name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	replace := func(t *testing.T, name string, by func(name string) error) {
		t.Helper()
		if err := os.RemoveAll(name); err != nil {
			t.Fatal(err)
		}
		if err := by(name); err != nil {
			t.Fatal(err)
		}
	}
	fifo := func(name string) error { return unix.Mkfifo(name, 0o644) }
	for name, attack := range map[string]func(t *testing.T, dir, ran string){
		"an alias that fetches": func(t *testing.T, dir, ran string) {
			write(t, dir+"/.git/config", "[extensions]\npartialClone = origin\n[core]\nrepositoryformatversion = 1\n[remote \"origin\"]\npromisor = true\nurl = none::x\n"+
				"[alias]\nremote-none = \"!touch "+ran+"\"\ncat-file = \"!touch "+ran+"\"\n")
			write(t, dir+"/.git/refs/heads/main", strings.Repeat("1", 40))
		},
		"a monitor, a pager and hooks": func(t *testing.T, dir, ran string) {
			write(t, dir+"/.git/config", "[core]\nfsmonitor = touch "+ran+"\npager = touch "+ran+"\nsshCommand = touch "+ran+"\nhooksPath = "+dir+"\n")
		},
		"another repository": func(t *testing.T, dir, _ string) {
			replace(t, dir+"/.git", func(name string) error { return os.WriteFile(name, []byte("gitdir: "+victim+"/.git\n"), 0o644) })
		},
		"a link to another repository": func(t *testing.T, dir, _ string) {
			replace(t, dir+"/.git", func(name string) error { return os.Symlink(victim+"/.git", name) })
		},
		"an include": func(t *testing.T, dir, _ string) {
			write(t, dir+"/.git/config", "[include]\npath = "+victim+"/.git/config\n")
		},
		"a configuration elsewhere": func(t *testing.T, dir, _ string) {
			replace(t, dir+"/.git/config", func(name string) error { return os.Symlink(victim+"/.git/config", name) })
		},
		"a pipe for HEAD":          func(t *testing.T, dir, _ string) { replace(t, dir+"/.git/HEAD", fifo) },
		"a pipe for configuration": func(t *testing.T, dir, _ string) { replace(t, dir+"/.git/config", fifo) },
		"a pipe for .git":          func(t *testing.T, dir, _ string) { replace(t, dir+"/.git", fifo) },
		"refs in a circle":         func(t *testing.T, dir, _ string) { write(t, dir+"/.git/refs/heads/main", "ref: refs/heads/main\n") },
		"a ref elsewhere":          func(t *testing.T, dir, _ string) { write(t, dir+"/.git/HEAD", "ref: refs/../../../../etc/passwd\n") },
	} {
		t.Run(name, func(t *testing.T) {
			dir, _ := checkout(t)
			ran := filepath.Join(t.TempDir(), "ran")
			attack(t, dir, ran)
			ctx, cancel := context.WithTimeout(t.Context(), kilntest.Hang)
			defer cancel()
			got := DescribeCheckout(ctx, dir)
			if got.Origin != "" || got.Revision != "" && got.Revision == victimGit("rev-parse", "HEAD") && strings.Contains(name, "another") {
				t.Errorf("%+v", got)
			}
			_, _ = HeadTime(ctx, dir, "ctx")
			if _, err := os.Stat(ran); err == nil {
				t.Error("the repository has had a program run")
			}
			if ctx.Err() != nil {
				t.Error("it was waited for in vain")
			}
		})
	}
}

// TestLongAnswer: no more than the limit is kept of what git prints.
func TestLongAnswer(t *testing.T) {
	dir, git := checkout(t)
	message := filepath.Join(t.TempDir(), "message")
	if err := os.WriteFile(message, []byte(strings.Repeat("a long line\n", 1<<19)), 0o644); err != nil {
		t.Fatal(err)
	}
	git("commit", "-q", "--allow-empty", "-F", message)
	if _, err := HeadTime(t.Context(), dir, "ctx"); err == nil || !strings.Contains(err.Error(), "at most 4194304 are read") {
		t.Errorf("%v", err)
	}
	c := &Client{}
	_, err := c.output(t.Context(), call{source: &remoteurl.Git{Remote: dir}, local: true, doing: "read", args: []string{"-C", dir, "-c", "safe.directory=*", "cat-file", "commit", "HEAD"}})
	if err == nil {
		t.Error("a long answer is no error")
	}
}

func TestPublic(t *testing.T) {
	for address, want := range map[string]string{
		"https://example.org/a/b.git": "https://example.org/a/b.git", "https://u:p@example.org:8443/a": "https://example.org:8443/a",
		"https://example.org/a?private_token=s": "https://example.org/a", "https://u:SEC/RET@example.org/x": "", "http://example.org/a#x": "http://example.org/a",
		"ssh://git@example.org/a.git": "ssh://example.org/a.git", "git://example.org/a": "git://example.org/a",
		"git@example.org:a/b.git": "example.org:a/b.git", "user:secret@example.org:a": "example.org:a", "example.org:a": "example.org:a",
		"/home/a/b": "", "../b": "", "file:///home/a": "", "C:\\Users\\a": "", "": "", "ext::sh -c x": "", "none::x": "",
	} {
		if got := public(address); got != want {
			t.Errorf("%q gives %q, want %q", address, got, want)
		}
	}
}
