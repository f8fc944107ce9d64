package git

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/remoteurl"
)

// unbundle brings a commit into a mirror from a bundle, which is whatever somebody made: git verifies the objects that it brings, and its
// refs go nowhere.
func (c *Client) unbundle(ctx context.Context, s *remoteurl.Git, m *mirror, commit Commit, bundle string) error {
	k := call{source: s, local: true, protocol: "file", doing: "read the bundle of"}
	k.args = []string{"--git-dir=" + noRepository, "ls-remote", "--", bundle}
	out, err := c.output(ctx, k)
	if err != nil {
		return err
	}
	if s.Ref != "" && !remoteurl.IsHash(s.Ref) {
		found, ok := pick(out, candidates(s.Ref))
		if !ok {
			none := &RefError{Ref: s.Ref, What: fmt.Sprintf("branch, tag or other ref %q", s.Ref)}
			return &Error{Doing: "look in the bundle of", Remote: s.Remote, Said: none.Error(), err: none}
		}
		// A bundle says what a tag names, and not the commit behind it.
		if found.Object != commit.Object && !strings.HasPrefix(found.Name, "refs/tags/") {
			mismatch := &ChecksumError{Ref: ref(s), Got: found.ID, Want: commit.Object}
			return &Error{Doing: "check the bundle of", Remote: s.Remote, Said: mismatch.Error(), err: mismatch}
		}
	}
	var names strings.Builder
	for line := range strings.Lines(out) {
		if _, name, ok := strings.Cut(line, "\t"); ok && (strings.HasPrefix(name, "refs/") || name == "HEAD\n") {
			names.WriteString(name)
		}
	}
	k.stdin = strings.NewReader(names.String())
	k.args = m.git("-c", "fetch.fsckObjects=true", "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules",
		"--no-auto-gc", "--stdin", "--", bundle)
	if err := c.run(ctx, k); err != nil {
		return err
	}
	if !c.has(ctx, s, m, commit) {
		return &Error{Doing: "read the bundle of", Remote: s.Remote, Said: fmt.Sprintf("commit %s not found in bundle", commit.ID)}
	}
	return nil
}

// defaultBranch is the ref of a bundle whose commit was found by none.
const defaultBranch = "refs/heads/main"

// Bundle fetches a commit with all that it comes from, and gives put a file with a bundle of it, mode 0644 and owned by root, with the time
// of the commit. The bundle has one ref: that by which the commit was found.
func (c *Client) Bundle(
	ctx context.Context, s *remoteurl.Git, commit Commit, o Options, name string, put func(e layer.Entry, body *os.File) error,
) (err error) {
	in := options{identity: o.Identity, named: true, limit: c.Limit.Of(ctx, s.Hostname()), received: o.Received, bundle: o.Bundle, whole: true}
	m, err := c.fetch(ctx, s, commit, in)
	if err != nil {
		return err
	}
	defer m.close()
	id, made, err := committed(s, commit, func(args ...string) (string, error) {
		return c.output(ctx, call{source: s, local: true, doing: "read " + short(commit) + " of", args: m.git(args...)})
	})
	if err != nil {
		return err
	}
	top, err := os.MkdirTemp(c.tmp, "git-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dirtree.Remove(top)) }()
	format := "sha1"
	if len(id) == 64 {
		format = "sha256"
	}
	target := commit.Name
	if !strings.HasPrefix(target, "refs/heads/") && !strings.HasPrefix(target, "refs/tags/") {
		target = defaultBranch
	}
	repository, file := filepath.Join(top, "repository"), filepath.Join(top, "bundle")
	git := func(args ...string) []string { return append([]string{"--git-dir=" + repository}, args...) }
	for _, args := range [][]string{
		{"init", "--quiet", "--bare", "--template=", "--object-format=" + format, "--", repository},
		git("-c", "pack.threads=1", "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-gc", "--", m.path, commit.Object),
		git("update-ref", "--", target, commit.Object),
		git("-c", "pack.threads=1", "bundle", "create", "--quiet", file, target),
	} {
		if err := c.run(ctx, call{source: s, local: true, protocol: "file", doing: "make a bundle of", args: args}); err != nil {
			return err
		}
	}
	body, err := os.Open(file)
	if err != nil {
		return err
	}
	defer body.Close()
	info, err := body.Stat()
	if err != nil {
		return err
	}
	return put(layer.Entry{Path: name, Type: layer.File, Mode: 0o644, Size: info.Size(), ModTime: made}, body)
}
