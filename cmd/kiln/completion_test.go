package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/cmd/internal/cli"
	"github.com/kilnbuild/kiln/internal/kilntest"
	"github.com/kilnbuild/kiln/internal/lock"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestCompletedFlags shows that it is said of every flag with a value what shells offer for it.
func TestCompletedFlags(t *testing.T) {
	for cmd := range commands(newRoot(append([]string{cobra.ShellCompRequestCmd}, cli.Groups...)...)) {
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if _, ok := cmd.GetFlagCompletionFunc(f.Name); !ok && f.Value.Type() != "bool" && !f.Hidden {
				t.Errorf("%s --%s: nothing is said in cmd/internal/complete of what is offered for its value", cmd.CommandPath(), f.Name)
			}
		})
	}
}

// completions are what is typed before the tab key, and what the command line becomes.
var completions = []struct{ typed, want string }{
	{"kiln expl", "kiln explain "},
	{"kiln image his", "kiln image history "},
	{"kiln help imaget", "kiln help imagetools "},
	{"kiln build --no-proc", "kiln build --no-process-sandbox "},
	{"kiln build --progress pl", "kiln build --progress plain "},
	{"kiln build --network=ho", "kiln build --network=host "},
	{"kiln build -o type=reg", "kiln build -o type=registry "},
	{"kiln build -o type=oci,rew", "kiln build -o type=oci,rewrite-timestamp="},
	{"kiln build -o type=oci,compression=z", "kiln build -o type=oci,compression=zstd "},
	{"kiln build --platform linux/amd64,linux/ris", "kiln build --platform linux/amd64,linux/riscv64 "},
	{"kiln build --target rel", "kiln build --target release "},
	{"kiln build -f other/Containerfile --target el", "kiln build -f other/Containerfile --target elsewhere "},
	{"kiln build --build-arg VER", "kiln build --build-arg VERSION="},
	{"kiln build --secret id=tok", "kiln build --secret id=token "},
	{"kiln build oth", "kiln build other/"},
	{"kiln build -f oth", "kiln build -f other/"},
	{"kiln build --file=oth", "kiln build --file=other/"},
	{"kiln build -o type=oci,dest=oth", "kiln build -o type=oci,dest=other/"},
	{"kiln build -f 'other/Containerfile' --target el", "kiln build -f 'other/Containerfile' --target elsewhere "},
	{"kiln build --build-arg X=$(touch pwned) --target rel", "kiln build --build-arg X=$(touch pwned) --target release "},
	{"kiln --root ~/root rmi ap", "kiln --root ~/root rmi app:v2 "},
	{"kiln rmi example.co", "kiln rmi example.com:5000/app:v1 "},
	{"kiln history ap", "kiln history app:v2 "},
	{"kiln cp app:v2:/et", "kiln cp app:v2:/etc/"},
	{"kiln cp app:v2:/etc/os", "kiln cp app:v2:/etc/os-release "},
	{"kiln login reg", "kiln login registry.example:5000 "},
	{"kiln compose build we", "kiln compose build web "},
	{"kiln compose -f other/stack.yaml build wo", "kiln compose -f other/stack.yaml build worker "},
}

// completionFiles are the files that completions are about.
var completionFiles = map[string]string{
	"Dockerfile": "ARG VERSION=1\nFROM scratch AS base\nCOPY evil /etc/\nCOPY os-release /etc/\nFROM base AS release\n" +
		"RUN --mount=type=secret,id=token true\nFROM base\n",
	"other/Containerfile":               "FROM scratch AS elsewhere\nCOPY x /\n",
	"other/stack.yaml":                  "services: {worker: {build: .}}\n",
	"compose.yaml":                      "services: {web: {build: .}, db: {image: postgres}}\n",
	"os-release":                        "",
	"evil/x$(touch pwned)`touch pwned`": "",
	"evil/y\x1b[2J":                     "",
	"docker/config.json":                `{"auths": {"registry.example:5000": {}}}`,
}

// TestShells shows that shells complete command lines, while the list of images is locked, and without a change of the root directory.
func TestShells(t *testing.T) {
	dir := t.TempDir()
	for name, text := range completionFiles {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root := filepath.Join(dir, "root")
	env := []string{"KILN_ROOT=" + root, "KILN_CONFIG=/dev/null", "DOCKER_CONFIG=" + filepath.Join(dir, "docker"), "TERM=xterm", "HOME=" + dir,
		"XDG_CONFIG_HOME=" + dir, "XDG_DATA_HOME=" + dir, "XDG_DATA_DIRS=" + dir, "LC_ALL=C.UTF-8"}
	in := func(cmd *exec.Cmd) *exec.Cmd {
		cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
		return cmd
	}
	for _, tags := range [][]string{{"-t", "example.com:5000/app:v1"}, {"-t", "app:v2"}} {
		if out, err := in(exec.Command("kiln", append(append([]string{"build"}, tags...), ".")...)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	before := listing(t, root)
	held, err := lock.Acquire(t.Context(), filepath.Join(rootdir.Path(root, rootdir.Locks), rootdir.IndexLock), false)
	if err != nil {
		t.Fatal(err)
	}

	t.Run("fish", func(t *testing.T) {
		for _, c := range completions {
			cmd := in(exec.Command("fish", "--private", "-c", "kiln completion fish | source; complete -C $argv[1]", c.typed))
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s: install Debian's package fish", err, out)
			}
			// fish prints what the last word becomes, with a description.
			words := strings.Fields(c.want)
			got, _, _ := strings.Cut(strings.TrimSuffix(string(out), "\n"), "\t")
			if got != words[len(words)-1] {
				t.Errorf("%q: %q, want %q", c.typed, out, words[len(words)-1])
			}
		}
	})
	t.Run("bash", func(t *testing.T) {
		inShell(t, dir, env, "bash --noprofile --rcfile rc", "PS1='> '\n. <(kiln completion bash)\n", `outline +\(arguments, secrets`)
	})
	t.Run("zsh", func(t *testing.T) {
		inShell(t, dir, env, "ZDOTDIR=$PWD/zsh zsh",
			"PROMPT='> '\nfpath=(~/zsh $fpath)\nautoload -U compinit\ncompinit -u\n", `outline +-- arguments, secrets`)
	})

	// What a file is called is not run, and not shown if a terminal would obey it.
	out, err := in(exec.Command("kiln", cobra.ShellCompRequestCmd, "cp", "app:v2:/etc/")).Output()
	if want := "app:v2:/etc/os-release\napp:v2:/etc/x$(touch pwned)`touch pwned`\n:4\n"; err != nil || string(out) != want {
		t.Errorf("%v: got %q, want %q", err, out, want)
	}
	if _, err := os.Stat(filepath.Join(dir, "pwned")); err == nil {
		t.Error("the name of a file was run")
	}
	if err := held.Release(); err != nil {
		t.Fatal(err)
	}
	if after := listing(t, root); after != before {
		t.Errorf("the root directory has changed from\n%s\nto\n%s", before, after)
	}
	cmd := in(exec.Command("kiln", cobra.ShellCompRequestCmd, "rmi", ""))
	cmd.Env = append(cmd.Env, "KILN_ROOT="+filepath.Join(dir, "none"))
	if out, err := cmd.Output(); err != nil || string(out) != ":4\n" {
		t.Errorf("without a root directory: %q, %v", out, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "none")); err == nil {
		t.Error("the root directory was created")
	}
}

// inShell types what completions have into an interactive shell, which reads rc first. A list of offers has a line that matches described.
func inShell(t *testing.T, dir string, env []string, shell, rc, described string) {
	if err := os.WriteFile(filepath.Join(dir, "rc"), []byte(rc), 0o644); err != nil {
		t.Fatal(err)
	}
	zdot := filepath.Join(dir, "zsh")
	if err := os.MkdirAll(zdot, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(zdot, ".zshrc"), []byte(rc), 0o644); err != nil {
		t.Fatal(err)
	}
	script, err := exec.Command("kiln", "completion", "zsh").Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(zdot, "_kiln"), script, 0o644); err != nil {
		t.Fatal(err)
	}
	p := newPane(t, 200, 24, "cd "+dir+" && "+shell, env...)
	p.shows(`(?m)^> *$`)
	evil := struct{ typed, want string }{"kiln cp app:v2:/etc/x", `kiln cp app:v2:/etc/x\$\(touch\ pwned\)\` + "`touch\\ pwned\\` "}
	for _, c := range append(slices.Clone(completions), evil) {
		p.run("send-keys", "-l", c.typed)
		p.shows(`> ` + regexp.QuoteMeta(c.typed))
		p.run("send-keys", "Tab")
		// The cursor shows whether there is a space at the end.
		p.run("send-keys", "-l", "@")
		p.shows(`> ` + regexp.QuoteMeta(c.want) + "@")
		p.run("send-keys", "C-u")
		p.run("send-keys", "C-l")
		p.shows(`(?m)\A> *$`)
	}
	p.run("send-keys", "-l", "kiln build --call ")
	p.run("send-keys", "Tab", "Tab")
	p.shows(described)
}

// shows waits until the screen shows a pattern.
func (p *pane) shows(pattern string) {
	p.t.Helper()
	want := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(kilntest.Hang); ; time.Sleep(20 * time.Millisecond) {
		if p.last = p.run("capture-pane", "-p"); want.MatchString(p.last) {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("the screen does not show %q:\n%s", pattern, p.last)
		}
	}
}

// listing returns the names and times of everything in a directory.
func listing(t *testing.T, dir string) string {
	t.Helper()
	out, err := exec.Command("find", dir, "-printf", "%P %T@ %C@\n").Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
