package frontend

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"
	"unicode"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"

	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/llb"
)

// add lowers ADD.
func (b *builder) add(s *stage, c *instructions.AddCommand, lint *linter.Linter) error {
	var local []string
	gits := 0
	for _, src := range c.SourcePaths {
		switch {
		case isGit(src):
			gits++
		case !isHTTP(src):
			local = append(local, src)
		}
	}
	if c.Checksum != "" && (len(c.SourcePaths) != 1 || len(local) > 0) {
		return errors.New("--checksum needs one source that is a URL or a git repository")
	}
	if c.KeepGitDir != nil && *c.KeepGitDir && gits == 0 {
		return errors.New("--keep-git-dir needs a source that is a git repository")
	}
	b.lintIgnored("Add", local, c.Location(), lint)
	return b.copyFiles(s, copying{
		keyword: "ADD", text: c.String(), SourcesAndDest: c.SourcesAndDest, chown: c.Chown, chmod: c.Chmod,
		link: c.Link, exclude: c.ExcludePatterns, at: c.Location(),
		unpack: c.Unpack == nil || *c.Unpack,
		from:   b.mainContext(),
		remote: func(src string) (llb.Output, llb.CopySource, error) {
			switch {
			case isGit(src):
				return b.addGit(s, c, src)
			case isHTTP(src):
				return b.addHTTP(s, c, src)
			}
			return llb.Output{}, llb.CopySource{}, nil
		},
	})
}

// addHTTP returns the root with a file from a URL, and what ADD takes of it. It is unpacked only if that is asked for.
func (b *builder) addHTTP(s *stage, c *instructions.AddCommand, src string) (llb.Output, llb.CopySource, error) {
	op, err := httpSource(c, src)
	if err != nil {
		return llb.Output{}, llb.CopySource{}, err
	}
	v := b.graph.Add(op, b.internalMeta(s, "download "+remoteurl.Shown(op.URL), c.Location()), b.scratch())
	return v.Output(0), llb.CopySource{Path: escapeWildcards("/" + op.Filename), Unpack: c.Unpack != nil && *c.Unpack}, nil
}

// httpSource returns the op that fetches a file from a URL.
func httpSource(c *instructions.AddCommand, src string) (llb.HTTP, error) {
	if c.Checksum != "" && !digestPattern().MatchString(c.Checksum) {
		return llb.HTTP{}, fmt.Errorf("--checksum=%s: it has to be sha256:, sha384: or sha512: and the digits of that digest", c.Checksum)
	}
	op, err := httpOp(src, urlFilename(src))
	op.Checksum = c.Checksum
	return op, err
}

func httpOp(address, filename string) (llb.HTTP, error) {
	r, err := remoteurl.ParseHTTP(address)
	if err != nil {
		return llb.HTTP{}, err
	}
	return llb.HTTP{URL: r.URL, User: r.User, Filename: filename}, nil
}

// unnamed is the name of a file whose URL has none, or one that no file can have.
const unnamed = "__unnamed__"

// urlFilename returns the last element of a URL's path.
func urlFilename(src string) string {
	u, err := url.Parse(src)
	if err != nil {
		return unnamed
	}
	name := path.Base(u.Path)
	if name == "." || name == ".." || name == "/" || strings.ContainsFunc(name, unicode.IsControl) {
		return unnamed
	}
	return name
}

// addGit returns the tree of a repository, and what ADD takes of it: everything.
func (b *builder) addGit(s *stage, c *instructions.AddCommand, src string) (llb.Output, llb.CopySource, error) {
	op, err := gitSource(c, src)
	if err != nil {
		return llb.Output{}, llb.CopySource{}, err
	}
	v := b.graph.Add(op, b.internalMeta(s, "load git source "+gitName(op), c.Location()), b.scratch())
	return v.Output(0), llb.CopySource{Path: "/"}, nil
}

// gitSource returns the op that fetches a repository.
func gitSource(c *instructions.AddCommand, src string) (llb.Git, error) {
	source, err := remoteurl.ParseGit(src)
	if err == nil && c.Checksum != "" {
		err = source.SetChecksum(c.Checksum)
	}
	if err == nil && c.KeepGitDir != nil {
		if source.KeepGitDir != nil && *source.KeepGitDir != *c.KeepGitDir {
			err = fmt.Errorf("--keep-git-dir=%t contradicts keep-git-dir=%t in the address", *c.KeepGitDir, *source.KeepGitDir)
		}
		source.KeepGitDir = c.KeepGitDir
	}
	if err != nil {
		return llb.Git{}, err
	}
	return gitOp(source), nil
}

func gitOp(s *remoteurl.Git) llb.Git {
	return llb.Git{
		Remote: s.Remote, User: s.User, Ref: s.Ref, Subdir: s.Subdir, Checksum: s.Checksum, FetchByCommit: s.FetchByCommit,
		KeepGitDir: s.KeepGitDir != nil && *s.KeepGitDir, SkipSubmodules: s.Submodules != nil && !*s.Submodules,
	}
}

// gitName is how progress names a source: "https://host/r.git#v1:dir".
func gitName(op llb.Git) string {
	name := op.Remote
	if op.Ref != "" || op.Subdir != "" {
		name += "#" + op.Ref
	}
	if op.Subdir != "" {
		name += ":" + op.Subdir
	}
	return name
}
