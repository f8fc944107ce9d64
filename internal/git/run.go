package git

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/internal/userns"
)

// How often and how long git is tried. They are what kiln gives a registry, as far as git can be told.
const (
	maxTries   = 4
	firstPause = 300 * time.Millisecond
	maxPause   = 5 * time.Second
	// lowSpeedTime, in seconds, is how long a server may send less than lowSpeedLimit bytes a second over http.
	lowSpeedTime  = 28
	lowSpeedLimit = 1 << 10
	// silence is how long git may say nothing at all: it reports its progress several times a second, but a server may
	// count the objects of a large repository for minutes before its first word.
	silence = 5 * time.Minute
	// connectTimeout, in seconds, is for ssh; git knows none for http.
	connectTimeout = 10
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
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s %s: %s", e.Doing, e.Remote, e.Said)
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// transient reports whether trying again may help.
func (e *Error) transient() bool {
	said := strings.ToLower(e.Said)
	for _, sign := range []string{
		"could not resolve host", "temporary failure", "connection", "timed out", "timeout", "early eof", "hung up",
		"returned error: 5", "returned error: 429", "rpc failed", "unexpected disconnect", "said nothing",
	} {
		if strings.Contains(said, sign) {
			return !strings.Contains(said, "permission denied") && !strings.Contains(said, "host key verification")
		}
	}
	return false
}

// hint returns advice for what git said of a call.
func hint(said string, k call) string {
	s, authorized := k.source, k.authorization != ""
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
		return "the server takes none of the ssh keys that the build may use: without --ssh, keys are used only for the server of a context that the command line names"
	case has("permission denied (", "permission denied, "):
		return "the server takes none of the ssh keys that the build may use"
	case has("ssh: not found", "cannot run ssh", "unable to fork"):
		return "install the package openssh-client"
	case has("unable to update url base from redirection", "redirect") && authorized:
		return "credentials are not sent to where the server redirects: use the address that it redirects to"
	case has("terminal prompts disabled", "could not read username", "authentication failed", "returned error: 401", "returned error: 403"):
		return "if the repository is private, give --secret id=GIT_AUTH_TOKEN." + s.Host() + ",env=VARIABLE"
	case has("transport 'http' not allowed") && s.Scheme() == "https":
		return "the server redirects from https to plain http, which is refused"
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
	// protocol is the only one that git may use; "" for the source's.
	protocol string
	stdout   io.Writer
	args     []string
}

// environment returns everything that git and what it starts have for an environment: nothing of the user's but where
// programs are, proxies and trusted certificates. Credentials are here and not among the arguments, which everybody on the
// machine can read.
func (c *Client) environment(k call) []string {
	env := []string{
		"LC_ALL=C", "HOME=" + os.DevNull, "XDG_CONFIG_HOME=" + os.DevNull,
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + os.DevNull, "GIT_CONFIG_SYSTEM=" + os.DevNull, "GIT_ATTR_NOSYSTEM=1",
		"GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=", "SSH_ASKPASS=", "SSH_ASKPASS_REQUIRE=never",
		"GIT_LITERAL_PATHSPECS=1", "GIT_OPTIONAL_LOCKS=0", "GIT_ALLOW_PROTOCOL=" + k.protocol,
	}
	for _, name := range []string{
		"PATH", "http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY",
		"SSL_CERT_FILE", "SSL_CERT_DIR",
	} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
			if name == "SSL_CERT_FILE" {
				env = append(env, "GIT_SSL_CAINFO="+v)
			}
		}
	}
	ssh := fmt.Sprintf("ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=yes -o UpdateHostKeys=no -o ClearAllForwardings=yes "+
		"-o ConnectTimeout=%d -o ServerAliveInterval=10 -o ServerAliveCountMax=3", connectTimeout)
	agent := k.identity.Socket
	if agent == "" && k.identity.User {
		agent = os.Getenv("SSH_AUTH_SOCK")
	}
	if agent != "" {
		env = append(env, "SSH_AUTH_SOCK="+agent)
	}
	if !k.identity.User {
		ssh += " -o IdentityFile=none"
		if agent == "" {
			ssh += " -o IdentityAgent=none -o IdentitiesOnly=yes"
		}
	}
	env = append(env, "GIT_SSH_COMMAND="+ssh, "GIT_SSH_VARIANT=ssh")
	if k.authorization != "" {
		u, err := url.Parse(k.source.Remote)
		if err == nil {
			env = append(env, "GIT_CONFIG_COUNT=2",
				"GIT_CONFIG_KEY_0=http."+u.Scheme+"://"+u.Host+"/.extraHeader", "GIT_CONFIG_VALUE_0=Authorization: "+k.authorization,
				"GIT_CONFIG_KEY_1=http.followRedirects", "GIT_CONFIG_VALUE_1=false")
		}
	}
	return env
}

// settings hold for every run: nothing that a repository holds is run, and nothing runs on in the background.
var settings = []string{
	"-c", "core.hooksPath=" + os.DevNull, "-c", "core.fsmonitor=false", "-c", "core.askPass=", "-c", "credential.helper=",
	"-c", "gc.auto=0", "-c", "maintenance.auto=false", "-c", "protocol.file.allow=never", "-c", "protocol.ext.allow=never",
	"-c", "transfer.bundleURI=false", "-c", "submodule.recurse=false", "-c", "tar.umask=0022", "-c", "advice.detachedHead=false",
	"-c", fmt.Sprintf("http.lowSpeedLimit=%d", lowSpeedLimit), "-c", fmt.Sprintf("http.lowSpeedTime=%d", lowSpeedTime),
}

// run runs git once.
func (c *Client) run(ctx context.Context, k call) error {
	git, err := exec.LookPath("git")
	if err != nil {
		return &MissingError{k.source.Remote}
	}
	if k.protocol == "" {
		// A redirection that leads to another protocol, as from https down to http, is refused.
		k.protocol = k.source.Scheme()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	said := &tail{timer: time.AfterFunc(silence, func() { cancel(errSilent) })}
	defer said.timer.Stop()
	args := settings
	if k.protocol == "file" {
		args = append(args[:len(args):len(args)], "-c", "protocol.file.allow=always")
	}
	if c.lfs() {
		args = append(args[:len(args):len(args)], "-c", "filter.lfs.process=git-lfs filter-process", "-c", "filter.lfs.required=true",
			"-c", "remote.origin.url="+k.source.Remote)
	}
	cmd := exec.CommandContext(ctx, git, append(args[:len(args):len(args)], k.args...)...)
	cmd.Dir = c.tmp
	cmd.Env = c.environment(k)
	cmd.Stdout, cmd.Stderr = k.stdout, said
	cmd.SysProcAttr = userns.AsCaller(&syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL})
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	// The signal of Pdeathsig comes when the thread ends that started git.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err = cmd.Run(); err == nil {
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
		return fmt.Errorf("%s %s: run git: %w", k.doing, k.source.Remote, err)
	}
	text := said.line()
	if text == "" {
		text = err.Error()
	}
	return &Error{Doing: k.doing, Remote: k.source.Remote, Said: text, Hint: hint(text, k)}
}

var errSilent = errors.New("git said nothing")

// retry runs git until it succeeds or trying again is pointless.
func (c *Client) retry(ctx context.Context, k call) error {
	for try := 1; ; try++ {
		if b, ok := k.stdout.(*answer); ok {
			b.Reset()
		}
		err := c.run(ctx, k)
		var failed *Error
		if !errors.As(err, &failed) || !failed.transient() || try == maxTries {
			return err
		}
		pause := min(c.pause<<(try-1), maxPause)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause/2 + rand.N(pause/2+1)):
		}
	}
}

// output returns what git prints.
func (c *Client) output(ctx context.Context, k call) (string, error) {
	b := &answer{}
	k.stdout = b
	if k.local {
		err := c.run(ctx, k)
		return b.String(), err
	}
	err := c.retry(ctx, k)
	return b.String(), err
}

// answer keeps what git prints, and fails when that is too much.
type answer struct{ bytes.Buffer }

func (a *answer) Write(p []byte) (int, error) {
	if a.Len()+len(p) > maxOutput {
		return 0, fmt.Errorf("git's answer is longer than %d MiB", maxOutput>>20)
	}
	return a.Buffer.Write(p)
}

// tail keeps the end of what git complains, and puts off the timer whenever there is something.
type tail struct {
	timer *time.Timer
	text  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.timer.Reset(silence)
	t.text = append(t.text, p...)
	if len(t.text) > maxDiagnosis {
		t.text = append(t.text[:0], t.text[len(t.text)-maxDiagnosis:]...)
	}
	return len(p), nil
}

// boilerplate is what git says after every failure of ssh.
var boilerplate = []string{"fatal: Could not read from remote repository.", "Please make sure you have the correct access rights", "and the repository exists."}

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
