package git

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/reach"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/userns"
)

const (
	// silence is how long git may say nothing at all: it reports its progress several times a second, but a server may
	// count the objects of a large repository for minutes before its first word.
	silence = 5 * time.Minute
)

const (
	// maxOutput bounds what is kept of git's answers, in bytes: a server may list any number of refs.
	maxOutput = 4 << 20
	// maxDiagnosis bounds what is kept of what git complains, in bytes: its end says what went wrong.
	maxDiagnosis = 4 << 10
)

// MissingError says that the machine has no git.
type MissingError struct{ Remote string }

func (e *MissingError) Error() string {
	return fmt.Sprintf("fetch %s: git is not installed: install the package git", e.Remote)
}

// Error is a failure of git about a repository.
type Error struct {
	// Doing says what was being done, Remote to what, without credentials.
	Doing, Remote string
	// Said is the end of what git printed, on one line.
	Said string
	// Hint says what to do; "" where nobody knows.
	Hint string
	// Gone says that the repository was asked, and has not got the commit.
	Gone bool

	err error // of kiln's own connection; nil where git or ssh made it
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s %s: %s", e.Doing, e.Remote, e.Said)
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

func (e *Error) Unwrap() error { return e.err }

// Transient implements the interface of fetch.Transient.
func (e *Error) Transient() bool {
	if e.err != nil {
		return fetch.Transient(e.err)
	}
	said := strings.ToLower(e.Said)
	for _, sign := range []string{
		"could not resolve host", "temporary failure", "connection", "timed out", "timeout", "early eof", "hung up",
		"unexpected disconnect", "said nothing",
	} {
		if strings.Contains(said, sign) {
			return !strings.Contains(said, "permission denied") && !strings.Contains(said, "host key verification")
		}
	}
	return false
}

// hint returns advice for what git said of a call.
func hint(said string, k call) string {
	said = strings.ToLower(said)
	has := func(signs ...string) bool {
		for _, sign := range signs {
			if strings.Contains(said, sign) {
				return true
			}
		}
		return false
	}
	switch {
	case has("host key verification failed", "no ed25519 host key is known", "host key is known"):
		return "the server's key is not in ~/.ssh/known_hosts: check it and add it, for example with ssh-keyscan"
	case has("permission denied (", "permission denied, ") && k.identity == Identity{}:
		return "the server takes none of the ssh keys that the build may use: " +
			"without --ssh, keys are used only for the server of a context that the command line names"
	case has("permission denied (", "permission denied, "):
		return "the server takes none of the ssh keys that the build may use"
	case has("ssh: not found", "cannot run ssh", "unable to fork"):
		return "install the package openssh-client"
	case has("answered 401", "answered 403"):
		return "if the repository is private, give --secret id=GIT_AUTH_TOKEN." + k.source.Host() + ",env=VARIABLE"
	case has("failed to verify certificate"):
		return "the file that $SSL_CERT_FILE names holds the authorities that are trusted"
	case has("may not send kiln there"):
		return "if it is right, use that address itself"
	case has("not found", "does not exist", "not exported"):
		return "check the address"
	}
	return ""
}

// call is one run of git.
type call struct {
	source *remoteurl.Git
	// doing is for the error: "list the refs of".
	doing string
	// authorization is the value of the header of that name, for http; "" for none.
	authorization string
	// local is for git that works on a mirror alone.
	local    bool
	identity Identity
	// limit is how far in the source's server may be.
	limit reach.Scope
	// pin is the address of the source's host, where it has to be that one.
	pin string
	// protocol is the only one that git may use; "" for the source's, and for none where the call is local.
	protocol string
	// index is the path of git's index, and objects that of the directory of its objects; "" for the repository's.
	index   string
	objects string
	stdin   io.Reader
	stdout  io.Writer
	args    []string
	// received, where not nil, is told how many bytes have come, as git reports it.
	received func(bytes int64)
}

// environment returns everything that git and what it starts have for an environment: nothing of the user's but where
// programs are.
func (c *Client) environment(k call) []string {
	env := []string{
		"LC_ALL=C", "HOME=" + os.DevNull, "XDG_CONFIG_HOME=" + os.DevNull,
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + os.DevNull, "GIT_CONFIG_SYSTEM=" + os.DevNull, "GIT_ATTR_NOSYSTEM=1",
		"GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=", "SSH_ASKPASS=", "SSH_ASKPASS_REQUIRE=never",
		"GIT_LITERAL_PATHSPECS=1", "GIT_OPTIONAL_LOCKS=0", "GIT_ALLOW_PROTOCOL=" + k.protocol,
	}
	if path, ok := os.LookupEnv("PATH"); ok {
		env = append(env, "PATH="+path)
	}
	if k.index != "" {
		env = append(env, "GIT_INDEX_FILE="+k.index)
	}
	if k.objects != "" {
		env = append(env, "GIT_OBJECT_DIRECTORY="+k.objects)
	}
	if k.local {
		env = append(env, "GIT_NO_LAZY_FETCH=1")
	}
	ssh := "ssh"
	for _, a := range c.sshOptions(k) {
		ssh += " '" + a + "'" // git gives it to a shell
	}
	if k.pin != "" {
		env = append(env, "GIT_OVERRIDE_VIRTUAL_HOST="+k.source.Host()) // for git://
	}
	if agent := k.identity.agent(); agent != "" {
		env = append(env, "SSH_AUTH_SOCK="+agent)
	}
	return append(env, "GIT_SSH_COMMAND="+ssh, "GIT_SSH_VARIANT=ssh")
}

// agent returns the socket of the ssh agent; "" for none.
func (i Identity) agent() string {
	if i.Socket == "" && i.User {
		return os.Getenv("SSH_AUTH_SOCK")
	}
	return i.Socket
}

// sshOptions returns the options of ssh for a call: the user's configuration has no part in it.
func (c *Client) sshOptions(k call) []string {
	o := []string{"-F", "none"}
	for _, v := range []string{
		"BatchMode=yes", "StrictHostKeyChecking=yes", "UpdateHostKeys=no", "ClearAllForwardings=yes",
		fmt.Sprintf("ConnectTimeout=%d", fetch.ConnectTimeout/time.Second), "ServerAliveInterval=10", "ServerAliveCountMax=3",
	} {
		o = append(o, "-o", v)
	}
	if k.identity.KnownHosts != "" {
		o = append(o, "-o", "UserKnownHostsFile="+k.identity.KnownHosts, "-o", "GlobalKnownHostsFile=none")
	}
	if !k.identity.User {
		o = append(o, "-o", "IdentityFile=none")
		if k.identity.agent() == "" {
			o = append(o, "-o", "IdentityAgent=none", "-o", "IdentitiesOnly=yes")
		}
	}
	if k.pin != "" {
		// The key is still that of the name.
		known := k.source.Hostname()
		if port := k.source.Port(); port != "" && port != "22" {
			known = "[" + known + "]:" + port
		}
		o = append(o, "-o", "HostName="+k.pin, "-o", "HostKeyAlias="+known)
	}
	return o
}

// settings hold for every run: nothing that a repository holds is run, and nothing runs on in the background.
var settings = []string{
	"-c", "core.hooksPath=" + os.DevNull, "-c", "core.fsmonitor=false", "-c", "core.askPass=", "-c", "credential.helper=",
	"-c", "gc.auto=0", "-c", "maintenance.auto=false", "-c", "protocol.file.allow=never", "-c", "protocol.ext.allow=never",
	"-c", "transfer.bundleURI=false", "-c", "http.followRedirects=false",
	"-c", "http.proxy=", "-c", "http.emptyAuth=false", "-c", "submodule.recurse=false",
	"-c", "tar.umask=0022", "-c", "advice.detachedHead=false",
}

// run runs git once.
func (c *Client) run(ctx context.Context, k call) error {
	git, err := exec.LookPath("git")
	if err != nil {
		return &MissingError{k.source.Remote}
	}
	args := slices.Clone(settings)
	if k.protocol == "file" {
		args = append(args, "-c", "protocol.file.allow=always")
	}
	if k.local {
		return c.execute(ctx, k, git, append(args, k.args...), c.environment(k))
	}
	if !web(k.source) {
		k.protocol = k.source.Scheme()
		if err := c.pin(ctx, &k); err != nil {
			return err
		}
		return c.execute(ctx, k, git, append(args, k.args...), c.environment(k))
	}
	via, err := serve(ctx, k.source, k.authorization, c.web.Way(k.limit), c.patience)
	if err != nil {
		return fmt.Errorf("%s %s: %w", k.doing, k.source.Remote, err)
	}
	defer via.close()
	k.protocol = "http"
	args = append(args, replaced(k.args, k.source.Remote, via.address)...)
	err = c.execute(ctx, k, git, args, append(c.environment(k), via.environment()...))
	if failed, ok := errors.AsType[*Error](err); ok {
		failed.Said = strings.ReplaceAll(failed.Said, via.address, k.source.Remote)
		if err := via.failed(); err != nil {
			failed.Said, failed.err = err.Error(), err
		}
		failed.Hint = hint(failed.Said, k)
	}
	return err
}

// pin has a call go to an address of the source's host that is within the limit, so that its name cannot lead elsewhere.
func (c *Client) pin(ctx context.Context, k *call) error {
	if k.limit == reach.Anywhere {
		return nil
	}
	name := k.source.Hostname()
	a, err := c.web.Find(ctx, name).Addr(k.limit)
	if err == nil && strings.Trim(name+k.source.Port(), hostChars) != "" {
		err = fmt.Errorf("%q is not the name of a host", name)
	}
	if err != nil {
		e := &Error{Doing: k.doing, Remote: k.source.Remote, Said: err.Error(), err: &fetch.ConnectionError{Host: name, Doing: "find", Err: err}}
		e.Hint = hint(e.Said, *k)
		return e
	}
	k.pin = a.String()
	if k.source.Scheme() == "git" {
		k.args = replaced(k.args, k.source.Remote, k.source.WithHost(k.pin))
	}
	return nil
}

// hostChars are what names and addresses of hosts consist of.
const hostChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._:"

// ssh has the server of the source run a command.
func (c *Client) ssh(ctx context.Context, k call, command ...string) error {
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		return &Error{Doing: k.doing, Remote: k.source.Remote, Said: "ssh is not installed", Hint: "install the package openssh-client"}
	}
	if err := c.pin(ctx, &k); err != nil {
		return err
	}
	args := c.sshOptions(k)
	if port := k.source.Port(); port != "" {
		args = append(args, "-p", port)
	}
	if user := k.source.SSHUser(); user != "" {
		args = append(args, "-l", user)
	}
	// The server gives it to a shell.
	for i, a := range command {
		if strings.Trim(a, hostChars+"/~@+,=") != "" {
			command[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return c.execute(ctx, k, ssh, append(args, "--", k.source.Hostname(), strings.Join(command, " ")), c.environment(k))
}

// execute runs a program that fetches, or that reads what was fetched.
func (c *Client) execute(ctx context.Context, k call, program string, args, env []string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	said := &tail{timer: time.AfterFunc(silence, func() { cancel(errSilent) }), received: k.received}
	defer said.timer.Stop()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = k.stdin, k.stdout, said
	cmd.SysProcAttr = userns.AsCaller(&syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL})
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := rootdir.Run(cmd)
	if err == nil {
		return nil
	}
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, errSilent):
		return &Error{Doing: k.doing, Remote: k.source.Remote, Said: fmt.Sprintf("git said nothing for %s", silence)}
	case cause != nil:
		return cause
	}
	if exit := new(exec.ExitError); !errors.As(err, &exit) {
		return fmt.Errorf("%s %s: run %s: %w", k.doing, k.source.Remote, filepath.Base(program), err)
	}
	text := said.line()
	if text == "" {
		text = err.Error()
	}
	return &Error{Doing: k.doing, Remote: k.source.Remote, Said: text, Hint: hint(text, k)}
}

// web reports whether a repository is fetched over http.
func web(s *remoteurl.Git) bool { return s.Scheme() == "http" || s.Scheme() == "https" }

// replaced returns arguments with one in place of another.
func replaced(args []string, old, by string) []string {
	args = slices.Clone(args)
	for i, a := range args {
		if a == old {
			args[i] = by
		}
	}
	return args
}

var errSilent = errors.New("git said nothing")

// retry runs git until it succeeds or trying again is pointless.
func (c *Client) retry(ctx context.Context, k call) error {
	return c.patience.Retry(ctx, func() error {
		if b, ok := k.stdout.(*answer); ok {
			b.text = nil
		}
		return c.run(ctx, k)
	})
}

// output returns what git prints.
func (c *Client) output(ctx context.Context, k call) (string, error) {
	b := &answer{}
	k.stdout = b
	if k.local {
		err := c.run(ctx, k)
		return string(b.text), err
	}
	err := c.retry(ctx, k)
	return string(b.text), err
}

// answer keeps what git prints, and fails when that is too much. It has no other method to write with, which could pass over that.
type answer struct{ text []byte }

func (a *answer) Write(p []byte) (int, error) {
	if len(a.text)+len(p) > maxOutput {
		return 0, fmt.Errorf("git's answer is longer than %d MiB", maxOutput>>20)
	}
	a.text = append(a.text, p...)
	return len(p), nil
}

// tail keeps the end of what git complains, and puts off the timer whenever there is something.
type tail struct {
	timer    *time.Timer
	received func(bytes int64)
	text     []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.timer.Reset(silence)
	if n, ok := received(p); ok && t.received != nil {
		t.received(n)
	}
	t.text = append(t.text, p...)
	if len(t.text) > maxDiagnosis {
		t.text = append(t.text[:0], t.text[len(t.text)-maxDiagnosis:]...)
	}
	return len(p), nil
}

// receiving is git's progress of a transfer: "Receiving objects:  45% (45/100), 1.20 MiB | 2.00 MiB/s".
var receiving = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`Receiving objects: [^,\r\n]*, ([0-9.]+) (bytes|KiB|MiB|GiB)`)
})

// received returns how many bytes the last line of progress in p says have come; false if there is none.
func received(p []byte) (int64, bool) {
	all := receiving().FindAllSubmatch(p, -1)
	if len(all) == 0 {
		return 0, false
	}
	last := all[len(all)-1]
	n, err := strconv.ParseFloat(string(last[1]), 64)
	if err != nil {
		return 0, false
	}
	unit := map[string]float64{"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}[string(last[2])]
	return int64(n * unit), true
}

// boilerplate is what git says after every failure of ssh.
var boilerplate = []string{
	"fatal: Could not read from remote repository.", "Please make sure you have the correct access rights", "and the repository exists.",
}

// line returns it as one line without what is progress.
func (t *tail) line() string {
	var out []string
	for l := range strings.Lines(string(t.text)) {
		l = strings.TrimSpace(l[strings.LastIndexByte(strings.TrimRight(l, "\r\n"), '\r')+1:])
		if l == "" || strings.HasSuffix(l, "%") || strings.Contains(l, "% (") || slices.Contains(boilerplate, l) {
			continue
		}
		l = strings.TrimPrefix(strings.TrimPrefix(l, "fatal: "), "error: ")
		out = append(out, l)
	}
	const most = 4 // lines: git says the cause first and its consequences after it
	if len(out) > most {
		out = out[len(out)-most:]
	}
	return strings.Join(out, "; ")
}

// basic returns the value of an Authorization header for "user:password".
func basic(userinfo string) string {
	if !strings.Contains(userinfo, ":") {
		userinfo += ":"
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(userinfo))
}
