// Package git fetches commits of remote repositories and reads their trees, by the machine's git program, run so that
// neither the user's configuration nor anything in a repository decides what it does. It does not know what the trees are
// for.
//
// No working tree is ever made: what a commit holds comes as a tar out of a bare mirror, so that no hook, filter, submodule
// or symbolic link of a repository has anything to act on. Over http git connects to this process alone: see gateway.
package git

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/httpsource"
	"github.com/kilnbuild/kiln/internal/lease"
	"github.com/kilnbuild/kiln/internal/lock"
	"github.com/kilnbuild/kiln/internal/reach"
	"github.com/kilnbuild/kiln/internal/remoteurl"
)

// Client fetches repositories into mirrors. Its methods may be called from several goroutines, and several processes may
// share the mirrors.
type Client struct {
	// Limit is of the hosts of repositories that are asked for. It is set before the Client is used, or left as it is.
	Limit reach.Limit

	dir, tmp string
	secret   func(ctx context.Context, id string) ([]byte, bool, error)
	patience fetch.Patience
	web      *reach.Transports
	files    *httpsource.Client // for objects of git-lfs
}

// New returns a Client with mirrors in the directory dir, which is made when it is first needed. tmp is for what is
// unfinished. secret gives the values of secrets by id: GIT_AUTH_HEADER.HOST, GIT_AUTH_TOKEN.HOST, GIT_AUTH_HEADER and
// GIT_AUTH_TOKEN are asked for; false is for none.
func New(dir, tmp string, secret func(ctx context.Context, id string) ([]byte, bool, error)) *Client {
	none := func(context.Context, string) ([]byte, bool, error) { return nil, false, nil }
	patience := fetch.Usual()
	patience.Idle = silence // within a body too: the server reports every few seconds how many objects it has counted, in few bytes
	return &Client{
		dir: dir, tmp: tmp, secret: secret, patience: patience, web: fetch.NewTransports(nil), files: httpsource.New("", tmp, none),
	}
}

// Identity is what ssh may use to prove who the user is; the zero value is nothing.
type Identity struct {
	// Socket is that of an ssh agent that the user gave the build, for every server; "" for none.
	Socket string
	// User allows the user's own keys, and their own agent in place of Socket "". It is for the server that the user named: a
	// submodule at another one, or of another user there, goes without.
	User bool
	// KnownHosts is a file with the keys of servers, in the form of ssh's known_hosts, that takes the place of the machine's; "" for those.
	KnownHosts string
	// HeaderSecret and TokenSecret take the places of GIT_AUTH_HEADER and GIT_AUTH_TOKEN for the repository that is asked for; "" for these.
	HeaderSecret, TokenSecret string
}

// Commit is what a ref turned out to be.
type Commit struct {
	// ID is the commit's hash, Object that of what the ref names: an annotated tag, or the commit itself.
	ID, Object string
	// Name is the whole name of the ref, "refs/heads/main"; "" for a hash.
	Name string
	// Branch is the whole name of the default branch, if Name is "HEAD" and the server says which one that is.
	Branch string
}

// authorization returns the header for a repository over http; "" for none. named says that the build asks this server for a
// repository. One that only a submodule names gets no secrets that name no host, and none at all over plain http.
func (c *Client) authorization(ctx context.Context, s *remoteurl.Git, named bool, who Identity) (string, error) {
	if !web(s) {
		return "", nil
	}
	if s.User != "" {
		return basic(s.User), nil
	}
	if s.Scheme() == "http" && !named {
		return "", nil
	}
	header, token := cmp.Or(who.HeaderSecret, "GIT_AUTH_HEADER"), cmp.Or(who.TokenSecret, "GIT_AUTH_TOKEN")
	ids := []string{header + "." + s.Host(), token + "." + s.Host()}
	if named {
		ids = append(ids, header, token)
	}
	for i, id := range ids {
		value, ok, err := c.secret(ctx, id)
		if err != nil {
			return "", err
		}
		if !ok {
			continue
		}
		v := strings.TrimSpace(string(value))
		if strings.ContainsAny(v, "\r\n\x00") {
			return "", fmt.Errorf("secret %s has more than one line, and cannot be sent in a header", id)
		}
		if i%2 == 1 {
			v = basic("x-access-token:" + v)
		}
		return v, nil
	}
	return "", nil
}

// RefError is a ref that a repository does not have.
type RefError struct {
	// Ref is as it was asked for, and What calls it for people.
	Ref, What string
}

func (e *RefError) Error() string { return "there is no " + e.What }

// ChecksumError is a ref that is another commit than it has to be.
type ChecksumError struct {
	// Ref is for people to read; Got is its commit, and Want the first digits of what it has to be.
	Ref, Got, Want string
}

func (e *ChecksumError) Error() string {
	return fmt.Sprintf("%s is commit %s, and the checksum says %s", e.Ref, e.Got, e.Want)
}

// Resolve asks the repository what the source's ref is now. A whole hash is not asked for. What is not the source's checksum
// is an error.
func (c *Client) Resolve(ctx context.Context, s *remoteurl.Git, who Identity) (Commit, error) {
	if s.FetchByCommit {
		return Commit{ID: s.Checksum, Object: s.Checksum}, nil
	}
	found := Commit{ID: s.Ref, Object: s.Ref}
	if !remoteurl.IsHash(s.Ref) {
		auth, err := c.authorization(ctx, s, true, who)
		if err != nil {
			return Commit{}, err
		}
		k := call{
			source: s, doing: "list the refs of", authorization: auth, identity: who, limit: c.Limit.Of(ctx, s.Hostname()),
			args: []string{"--git-dir=" + noRepository, "ls-remote", "--symref", "--", s.Remote},
		}
		names := candidates(s.Ref)
		for _, n := range names {
			k.args = append(k.args, n, n+"^{}")
		}
		out, err := c.output(ctx, k)
		if err != nil {
			return Commit{}, err
		}
		var ok bool
		if found, ok = pick(out, names); !ok {
			what := "default branch"
			if s.Ref != "" {
				what = fmt.Sprintf("branch, tag or other ref %q", s.Ref)
			}
			none := &RefError{Ref: s.Ref, What: what}
			return Commit{}, &Error{Doing: "look in", Remote: s.Remote, Said: none.Error(), err: none}
		}
	}
	if sum := s.Checksum; !strings.HasPrefix(found.ID, sum) && !strings.HasPrefix(found.Object, sum) {
		mismatch := &ChecksumError{Ref: ref(s), Got: found.ID, Want: sum}
		return Commit{}, &Error{Doing: "check", Remote: s.Remote, Said: mismatch.Error(), err: mismatch}
	}
	return found, nil
}

// noRepository keeps git from looking for a repository in the directories above, whose configuration would count.
const noRepository = "/dev/null/none"

func ref(s *remoteurl.Git) string {
	if s.Ref == "" {
		return "the default branch"
	}
	return s.Ref
}

// candidates are the whole names that a ref may stand for, in the order that git checkout prefers.
func candidates(ref string) []string {
	if ref == "" || ref == "HEAD" {
		return []string{"HEAD"}
	}
	return []string{
		"refs/heads/" + strings.TrimPrefix(ref, "refs/heads/"),
		"refs/tags/" + strings.TrimPrefix(ref, "refs/tags/"),
		"refs/" + strings.TrimPrefix(ref, "refs/"),
	}
}

// pick finds the first of the names in what git ls-remote printed.
func pick(out string, names []string) (Commit, bool) {
	refs, branches := map[string]string{}, map[string]string{}
	for line := range strings.Lines(out) {
		hash, name, ok := strings.Cut(strings.TrimRight(line, "\n"), "\t")
		if branch, symbolic := strings.CutPrefix(hash, "ref: "); ok && symbolic && strings.HasPrefix(branch, "refs/heads/") {
			branches[name] = branch
		}
		if ok && remoteurl.IsHash(hash) {
			refs[name] = hash
		}
	}
	for _, name := range names {
		object, ok := refs[name]
		if !ok {
			continue
		}
		id := object
		if peeled, ok := refs[name+"^{}"]; ok {
			id = peeled
		}
		return Commit{ID: id, Object: object, Name: name, Branch: branches[name]}, true
	}
	return Commit{}, false
}

// mirror is a bare repository that holds the commits that were wanted of a remote one. Its lock is shared: nobody changes
// what is there, and fetching adds to it.
type mirror struct {
	path string
	lock *lock.Lock
}

func (m *mirror) close() { m.lock.Release() }

// git returns the arguments of a run of git in the mirror.
func (m *mirror) git(args ...string) []string {
	return append([]string{"--git-dir=" + m.path}, args...)
}

// fetch returns the mirror of the source's repository, with the commit in it.
func (c *Client) fetch(ctx context.Context, s *remoteurl.Git, commit Commit, o options) (*mirror, error) {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of git mirrors: %w", err)
	}
	format := "sha1"
	if len(commit.Object) == 64 {
		format = "sha256"
	}
	id := fmt.Sprintf("%x", sha256.Sum256([]byte(format+" "+s.Remote)))[:32]
	m := &mirror{path: filepath.Join(c.dir, id)}
	file := m.path + lockSuffix
	for {
		l, err := lock.Acquire(ctx, file, false)
		if err != nil {
			return nil, err
		}
		if err := c.update(ctx, s, m, commit, format, o); err != nil {
			l.Release()
			return nil, err
		}
		l.Release()
		if m.lock, err = lock.Acquire(ctx, file, true); err != nil {
			return nil, err
		}
		// Between the two, the mirror may have been pruned.
		if _, err := os.Stat(filepath.Join(m.path, "objects")); err == nil {
			lease.Used(file, nil)
			return m, nil
		}
		m.lock.Release()
	}
}

// update brings a commit into a mirror that nobody else works on.
func (c *Client) update(ctx context.Context, s *remoteurl.Git, m *mirror, commit Commit, format string, o options) error {
	// Locks of git's own are those of a process that was killed.
	stale, _ := filepath.Glob(filepath.Join(m.path, "*.lock"))
	unfinished, _ := filepath.Glob(filepath.Join(m.path, "objects", "pack", "tmp_*"))
	for _, f := range append(stale, unfinished...) {
		if err := os.Remove(f); err != nil {
			return fmt.Errorf("clear the mirror of %s: %w", s.Remote, err)
		}
	}
	_, err := os.Stat(filepath.Join(m.path, "shallow"))
	shallow := err == nil
	if c.has(ctx, s, m, commit) && (!o.whole || !shallow) {
		return nil
	}
	args := []string{"init", "--quiet", "--bare", "--template=", "--object-format=" + format, "--", m.path}
	if err := c.run(ctx, call{source: s, local: true, doing: "make a mirror of", args: args}); err != nil {
		return err
	}
	// These attributes go before those of the repository's own .gitattributes: every file comes, as it is in the commit.
	attributes := filepath.Join(m.path, "info", "attributes")
	if err := os.MkdirAll(filepath.Dir(attributes), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(attributes, []byte("* -export-ignore -export-subst\n"), 0o600); err != nil {
		return err
	}
	if o.bundle != "" {
		return c.unbundle(ctx, s, m, commit, o.bundle)
	}
	auth, err := c.authorization(ctx, s, o.named, o.identity)
	if err != nil {
		return err
	}
	k := call{source: s, doing: "fetch " + short(commit) + " from", authorization: auth, identity: o.identity, limit: o.limit}
	if o.received != nil {
		k.received = func(bytes int64) { o.received(s.Remote, bytes) }
	}
	fetch := m.git("fetch", "--progress", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--no-auto-gc")
	depth := []string{"--depth=1"}
	switch {
	case o.whole && shallow:
		depth = []string{"--unshallow"}
	case o.whole:
		depth = nil
	}
	k.args = slices.Concat(fetch, depth, []string{"--", s.Remote, commit.Object})
	err = c.retry(ctx, k)
	if refused(err) && commit.Name != "" {
		// Servers may give out only what a ref names; that it still names this commit is seen below.
		k.args = slices.Concat(fetch, depth, []string{"--", s.Remote, commit.Name})
		err = c.retry(ctx, k)
	}
	if refused(err) {
		if _, shallow := os.Stat(filepath.Join(m.path, "shallow")); shallow == nil {
			fetch = append(fetch, "--unshallow")
		}
		k.args = append(fetch[:len(fetch):len(fetch)], "--", s.Remote, "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
		err = c.retry(ctx, k)
	}
	if err != nil {
		return err
	}
	if !c.has(ctx, s, m, commit) {
		said := "there is no commit " + commit.ID + " in the repository"
		hint := "it may have been replaced just now: build again"
		if s.FetchByCommit {
			hint = "" // nobody has just asked which one it is
		}
		return &Error{Doing: "fetch from", Remote: s.Remote, Said: said, Hint: hint, Gone: true}
	}
	return nil
}

func short(c Commit) string {
	if c.Name != "" {
		return strings.TrimPrefix(strings.TrimPrefix(c.Name, "refs/heads/"), "refs/tags/")
	}
	return c.ID
}

// refused reports whether the server gives out no object that it was not asked for by the name of a ref, or has it under none.
func refused(err error) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	for _, sign := range []string{
		"not our ref", "unadvertised object", "couldn't find remote ref", "shallow capabilities", "no such remote ref",
	} {
		if strings.Contains(e.Said, sign) {
			return true
		}
	}
	return false
}

// has reports whether the mirror holds the commit: git puts what it fetched in place when it has all of it.
func (c *Client) has(ctx context.Context, s *remoteurl.Git, m *mirror, commit Commit) bool {
	if _, err := os.Stat(filepath.Join(m.path, "objects")); err != nil {
		return false
	}
	args := m.git("rev-parse", "--quiet", "--verify", "--end-of-options", commit.Object+"^{commit}")
	id, err := c.output(ctx, call{source: s, local: true, doing: "look for a commit of", args: args})
	id = strings.TrimSpace(id)
	if err != nil || id != commit.ID && commit.ID != commit.Object {
		return false
	}
	_, err = c.output(ctx, call{source: s, local: true, doing: "look for a commit of", args: m.git("cat-file", "-e", id+"^{tree}")})
	return err == nil
}
