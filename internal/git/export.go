package git

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/reach"
	"github.com/kilnbuild/kiln/internal/remoteurl"
)

// Bounds of what one commit may bring in through its submodules: above what any project is known to have.
const (
	maxSubmodules     = 1000
	maxSubmoduleDepth = 16
)

// Options say what of a commit is wanted.
type Options struct {
	// KeepGitDir adds .git; it is without effect for a subdirectory.
	KeepGitDir bool
	// Bundle is the path of a git bundle that the commit is taken from, in place of the repository; "" for none.
	Bundle string
	// SkipSubmodules leaves their directories empty.
	SkipSubmodules bool
	// Identity is how ssh proves who the user is.
	Identity Identity
	// Log takes lines about what was done.
	Log io.Writer
	// Advice adds what git advises where a commit is checked out.
	Advice bool
	// Received, where not nil, is told how many bytes have come from a repository, submodules' among them, whose remote is given.
	Received func(remote string, bytes int64)
}

// options are those of one repository.
type options struct {
	identity Identity
	named    bool        // its server is that of the repository that the build asks for
	limit    reach.Scope // how far in its server may be
	bundle   string      // the path of that which takes its place; "" for none
	whole    bool        // with all that the commit comes from
	received func(remote string, bytes int64)
}

// export is the writing of one commit and its submodules.
type export struct {
	c        *Client
	ctx      context.Context
	o        Options
	account  string // of the repository that was asked for
	put      func(e layer.Entry, body io.Reader) error
	count    int      // of submodules
	pointers []object // of the commit that is being put
}

// Export fetches a commit and gives put the entries of its tree, or of that of the source's Subdir, below which paths then are:
// directories before what is in them. Files are 0644 or 0755, directories 0755, owned by root, with the time of the
// commit. A file's body is valid during the call.
func (c *Client) Export(
	ctx context.Context, s *remoteurl.Git, commit Commit, o Options, put func(e layer.Entry, body io.Reader) error,
) error {
	x := &export{c: c, ctx: ctx, o: o, account: s.Account(), put: put}
	return x.commit(s, commit, s.Subdir, "", 0, c.Limit.Of(ctx, s.Hostname()))
}

// Time returns when a commit was made.
func (c *Client) Time(ctx context.Context, s *remoteurl.Git, commit Commit, who Identity) (time.Time, error) {
	m, err := c.fetch(ctx, s, commit, options{identity: who, named: true, limit: c.Limit.Of(ctx, s.Hostname())})
	if err != nil {
		return time.Time{}, err
	}
	defer m.close()
	_, made, err := committed(s, commit, func(args ...string) (string, error) {
		return c.output(ctx, call{source: s, local: true, doing: "read " + short(commit) + " of", args: m.git(args...)})
	})
	return made, err
}

// Objects fetches a commit, and returns the bytes of it as git has them, and those of the annotated tag that leads to it; nil if none does.
func (c *Client) Objects(ctx context.Context, s *remoteurl.Git, commit Commit, who Identity) (object, tag []byte, err error) {
	m, err := c.fetch(ctx, s, commit, options{identity: who, named: true, limit: c.Limit.Of(ctx, s.Hostname())})
	if err != nil {
		return nil, nil, err
	}
	defer m.close()
	say := func(args ...string) (string, error) {
		return c.output(ctx, call{source: s, local: true, doing: "read " + short(commit) + " of", args: m.git(args...)})
	}
	text, err := say("cat-file", "commit", commit.ID)
	if err != nil || commit.Object == commit.ID {
		return []byte(text), nil, err
	}
	named, err := say("cat-file", "tag", commit.Object)
	return []byte(text), []byte(named), err
}

// committed returns the hash of a commit and when it was made, as git says.
func committed(s *remoteurl.Git, commit Commit, git func(args ...string) (string, error)) (id string, made time.Time, err error) {
	out, err := git("rev-parse", "--verify", "--end-of-options", commit.Object+"^{commit}")
	if err != nil {
		return "", made, err
	}
	id = strings.TrimSpace(out)
	if out, err = git("show", "-s", "--format=%ct", "--end-of-options", id); err != nil {
		return "", made, err
	}
	seconds, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err != nil {
		return "", made, fmt.Errorf("read the time of commit %s of %s: %w", id, s.Remote, err)
	}
	return id, time.Unix(seconds, 0), nil
}

// options returns what may be used for a repository. A repository that the user does not control chooses its submodules, so the
// user's own keys are used for no server but that of the repository that was asked for.
func (x *export) options(s *remoteurl.Git, limit reach.Scope) options {
	o := options{identity: x.o.Identity, named: s.Account() == x.account, limit: limit, received: x.o.Received}
	o.identity.User = o.identity.User && o.named
	return o
}

// onward returns how far in a host may be that is named by what came from another: no further than that one, unless it is the same.
// Of the same host the addresses count that were found first.
func (c *Client) onward(ctx context.Context, limit reach.Scope, from, to string) reach.Scope {
	h := c.web.Find(ctx, from)
	if strings.EqualFold(from, to) {
		return min(limit, h.High)
	}
	return min(limit, h.Low)
}

// commit puts the tree of a commit, or of its directory subdir, at the path at. The repository's server is within the limit.
func (x *export) commit(s *remoteurl.Git, commit Commit, subdir, at string, depth int, limit reach.Scope) error {
	o := x.options(s, limit)
	if depth == 0 {
		o.bundle = x.o.Bundle
	}
	m, err := x.c.fetch(x.ctx, s, commit, o)
	if err != nil {
		return err
	}
	defer m.close()
	say := func(args ...string) (string, error) {
		return x.c.output(x.ctx, call{source: s, local: true, doing: "read " + short(commit) + " of", args: m.git(args...)})
	}
	id, made, err := committed(s, commit, say)
	if err != nil {
		return err
	}
	if subdir != "" {
		// Git follows no symbolic link of the commit here.
		if kind, err := say("cat-file", "-t", id+":"+subdir); err != nil || strings.TrimSpace(kind) != "tree" {
			link, ok, err := x.around(s, m, id, subdir)
			if err != nil {
				return err
			}
			if ok {
				m.close()
				return x.submodule(s, link, strings.TrimPrefix(strings.TrimPrefix(subdir, link.path), "/"), at, depth, limit)
			}
			said := fmt.Sprintf("%q is not a directory of commit %s", subdir, id)
			return &Error{Doing: "look in", Remote: s.Remote, Said: said, Hint: "symbolic links are not followed there"}
		}
	}
	if depth == 0 {
		fmt.Fprintf(x.o.Log, "%s at commit %s\n", s.Remote, id)
		if x.o.Advice {
			fmt.Fprintf(x.o.Log, "a commit is checked out and no branch, which git calls a detached HEAD: "+
				"git switch -c NAME keeps what is committed on it\n")
		}
	} else {
		fmt.Fprintf(x.o.Log, "submodule %s: %s at commit %s\n", cmp.Or(at, "."), s.Remote, id)
	}
	if err := x.put(layer.Entry{Path: at, Type: layer.Dir, Mode: 0o755, ModTime: made}, nil); err != nil {
		return err
	}
	x.pointers = nil
	err = x.archive(s, m, id, subdir, at, made)
	if err == nil {
		err = x.objects(s, m, commit, id, x.pointers, o)
	}
	if err != nil {
		if errors.As(err, new(*Error)) {
			return err
		}
		return fmt.Errorf("read commit %s of %s: %w", id, s.Remote, err)
	}
	if x.o.KeepGitDir && depth == 0 && subdir == "" {
		if err := x.gitDir(s, m, commit, id, made); err != nil {
			return err
		}
	}
	if x.o.SkipSubmodules {
		return nil
	}
	list, err := x.modules(s, m, id, subdir)
	if err != nil {
		return err
	}
	// A submodule may be in the same repository, or have a submodule that is: nobody who waits for a mirror has another.
	m.close()
	return x.submodules(s, list, subdir, at, depth, limit)
}

// archive puts the files of a commit.
func (x *export) archive(s *remoteurl.Git, m *mirror, id, subdir, at string, made time.Time) error {
	args := m.git("archive", "--format=tar", id)
	if subdir != "" {
		args = append(args, "--", subdir)
	}
	ctx, cancel := context.WithCancel(x.ctx)
	defer cancel()
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := x.c.run(ctx, call{source: s, local: true, doing: "read", stdout: w, args: args})
		w.CloseWithError(err)
		done <- err
	}()
	err := x.entries(tar.NewReader(r), subdir, at, made)
	if err == nil {
		_, err = io.Copy(io.Discard, r) // the padding
	}
	r.CloseWithError(errStopped)
	if err != nil {
		cancel()
	}
	ran := <-done
	// What git-lfs writes there when it fails has its whole environment in it, and credentials are in that.
	if rmErr := dirtree.Remove(filepath.Join(m.path, "lfs", "logs")); err == nil {
		err = rmErr
	}
	var failed *Error
	if errors.As(ran, &failed) && (err == nil || errors.Is(err, ran)) {
		return ran
	}
	return err
}

var errStopped = errors.New("no more is wanted")

func (x *export) entries(tr *tar.Reader, subdir, at string, made time.Time) error {
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		e, ok, err := layer.FromHeader(h)
		if err != nil {
			return err
		}
		if !ok || !layer.Within(e.Path, subdir) || e.Path == subdir {
			continue
		}
		for part := range strings.SplitSeq(e.Path, "/") {
			if strings.EqualFold(part, ".git") {
				return &layer.HeaderError{Name: e.Path, Msg: "a commit cannot hold .git: whoever runs git there would run what it says"}
			}
		}
		path := e.Path
		e.Path = strings.TrimPrefix(strings.TrimPrefix(e.Path, subdir), "/")
		if at != "" {
			e.Path = at + "/" + e.Path
		}
		e.UID, e.GID, e.ModTime, e.Xattrs = 0, 0, made, nil
		body := io.Reader(tr)
		switch e.Type {
		case layer.Dir:
			e.Mode = 0o755
		case layer.File:
			if e.Mode&0o111 != 0 {
				e.Mode = 0o755
			} else {
				e.Mode = 0o644
			}
			if e.Size < maxPointer {
				data, err := io.ReadAll(tr)
				if err != nil {
					return err
				}
				if o, ok := parsePointer(data); ok {
					if len(x.pointers) == maxObjects {
						return fmt.Errorf("it has more than %d files that git-lfs keeps elsewhere", maxObjects)
					}
					o.entry, o.path = e, path
					x.pointers = append(x.pointers, o)
					continue
				}
				body = bytes.NewReader(data)
			}
		case layer.Symlink:
		default:
			return &layer.HeaderError{Name: e.Path, Msg: "a commit has files, directories and symbolic links only"}
		}
		if err := x.put(e, body); err != nil {
			return err
		}
	}
}

// module is a commit of another repository that a commit has at a path.
type module struct{ path, commit, url string }

// gitlinks keeps the submodules of what git ls-tree -z prints, which lists every file there is.
type gitlinks struct {
	partial []byte
	found   []module
}

func (g *gitlinks) Write(p []byte) (int, error) {
	n := len(p)
	for {
		i := bytes.IndexByte(p, 0)
		if i < 0 {
			g.partial = append(g.partial, p...)
			return n, nil
		}
		line := string(append(g.partial, p[:i]...))
		g.partial, p = g.partial[:0], p[i+1:]
		info, path, _ := strings.Cut(line, "\t")
		if hash, ok := strings.CutPrefix(info, "160000 commit "); ok {
			if g.found = append(g.found, module{path: path, commit: hash}); len(g.found) > maxSubmodules {
				return 0, fmt.Errorf("it has more than %d submodules", maxSubmodules)
			}
		}
	}
}

// modules returns the submodules of a commit that have an address and lie below subdir.
func (x *export) modules(s *remoteurl.Git, m *mirror, id, subdir string) ([]module, error) {
	links := &gitlinks{}
	all := m.git("ls-tree", "-r", "-z", "--full-tree", id)
	if err := x.c.run(x.ctx, call{source: s, local: true, doing: "list the submodules of", stdout: links, args: all}); err != nil {
		return nil, err
	}
	if len(links.found) == 0 {
		return nil, nil
	}
	say := func(args ...string) (string, error) {
		return x.c.output(x.ctx, call{source: s, local: true, doing: "read .gitmodules of", args: m.git(args...)})
	}
	// A commit of another repository that .gitmodules does not name is left alone by git as well.
	if listed, err := say("ls-tree", "-z", "--full-tree", id, "--", ".gitmodules"); err != nil || listed == "" {
		return nil, err
	}
	out, err := say("config", "--blob", id+":.gitmodules", "-z", "--list")
	if err != nil {
		return nil, err
	}
	urls := moduleURLs(out)
	var list []module
	for _, link := range links.found {
		var ok bool
		if link.url, ok = urls[link.path]; ok && layer.Within(link.path, subdir) && link.path != subdir {
			list = append(list, link)
		}
	}
	return list, nil
}

// around returns the submodule of a commit that a path is, or is inside of; false if there is none, or submodules are not wanted.
func (x *export) around(s *remoteurl.Git, m *mirror, id, path string) (module, bool, error) {
	if x.o.SkipSubmodules {
		return module{}, false, nil
	}
	list, err := x.modules(s, m, id, "")
	if err != nil {
		return module{}, false, err
	}
	i := slices.IndexFunc(list, func(link module) bool { return layer.Within(path, link.path) })
	if i < 0 {
		return module{}, false, nil
	}
	return list[i], true, nil
}

// submodules puts the submodules of a commit.
func (x *export) submodules(s *remoteurl.Git, list []module, subdir, at string, depth int, limit reach.Scope) error {
	for _, link := range list {
		path := strings.TrimPrefix(strings.TrimPrefix(link.path, subdir), "/")
		if at != "" {
			path = at + "/" + path
		}
		clean, inside := layer.CleanPath(path)
		if !inside || clean == "" {
			return fmt.Errorf("fetch the submodule %q of %s: its place is not in the repository", link.path, s.Remote)
		}
		if err := x.submodule(s, link, "", clean, depth, limit); err != nil {
			return err
		}
	}
	return nil
}

// submodule puts a submodule, or its directory subdir, at a path.
func (x *export) submodule(s *remoteurl.Git, link module, subdir, at string, depth int, limit reach.Scope) error {
	if x.count++; x.count > maxSubmodules || depth == maxSubmoduleDepth {
		return fmt.Errorf("fetch the submodule %s of %s: there are more than %d, or they are more than %d deep",
			link.path, s.Remote, maxSubmodules, maxSubmoduleDepth)
	}
	sub, err := s.Join(link.url)
	if err != nil {
		return fmt.Errorf("fetch the submodule %s of %s: %w", link.path, s.Remote, err)
	}
	if !remoteurl.IsHash(link.commit) {
		return fmt.Errorf("fetch the submodule %s of %s: %q is not a commit", link.path, s.Remote, link.commit)
	}
	commit := Commit{ID: link.commit, Object: link.commit}
	if err := x.commit(sub, commit, subdir, at, depth+1, x.c.onward(x.ctx, limit, s.Hostname(), sub.Hostname())); err != nil {
		return fmt.Errorf("fetch the submodule %s of %s: %w", link.path, s.Remote, err)
	}
	return nil
}

// moduleURLs returns the addresses of submodules by their paths, from what git config -z printed.
func moduleURLs(out string) map[string]string {
	paths, urls := map[string]string{}, map[string]string{}
	for item := range strings.SplitSeq(out, "\x00") {
		key, value, _ := strings.Cut(item, "\n")
		name, ok := strings.CutPrefix(key, "submodule.")
		if !ok {
			continue
		}
		if n, ok := strings.CutSuffix(name, ".path"); ok {
			paths[n] = strings.TrimSuffix(value, "/")
		} else if n, ok := strings.CutSuffix(name, ".url"); ok {
			urls[n] = value
		}
	}
	byPath := map[string]string{}
	for name, p := range paths {
		if u, ok := urls[name]; ok {
			byPath[p] = u
		}
	}
	return byPath
}

// gitDir puts a .git directory with this commit alone, and the remote's address without credentials.
func (x *export) gitDir(s *remoteurl.Git, m *mirror, commit Commit, id string, made time.Time) error {
	top, err := os.MkdirTemp(x.c.tmp, "git-")
	if err != nil {
		return err
	}
	defer dirtree.Remove(top)
	dir := filepath.Join(top, ".git")
	format := "sha1"
	if len(id) == 64 {
		format = "sha256"
	}
	in := func(args ...string) []string { return append([]string{"--git-dir=" + dir}, args...) }
	steps := [][]string{
		{"init", "--quiet", "--template=", "--object-format=" + format, "--initial-branch=main", "--", top},
		in("-c", "pack.threads=1", "fetch", "--quiet", "--depth=1", "--no-tags", "--no-write-fetch-head", "--no-auto-gc",
			"--", m.path, commit.Object),
		in("update-ref", "--no-deref", "HEAD", id),
		in("config", "remote.origin.url", s.Remote),
		in("config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*"),
		// An index that was not checked out has no times or inodes of this machine in it.
		in("read-tree", id),
	}
	if strings.HasPrefix(commit.Name, "refs/tags/") || strings.HasPrefix(commit.Name, "refs/heads/") {
		steps = append(steps, in("update-ref", commit.Name, commit.Object))
	}
	for _, args := range steps {
		if err := x.c.run(x.ctx, call{source: s, local: true, protocol: "file", doing: "make .git of", args: args}); err != nil {
			return err
		}
	}
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, name)
		if err != nil {
			return err
		}
		e := layer.Entry{Path: rel, ModTime: made, Mode: 0o644}
		switch {
		case d.IsDir():
			e.Type, e.Mode = layer.Dir, 0o755
			return x.put(e, nil)
		case !d.Type().IsRegular():
			return fmt.Errorf("make .git of %s: %s is not a file", s.Remote, rel)
		}
		if strings.HasPrefix(rel, ".git/logs/") {
			return nil // says when this build was
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		e.Type, e.Size = layer.File, info.Size()
		return x.put(e, f)
	})
}
