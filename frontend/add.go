package frontend

import (
	"errors"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"

	"github.com/kilnbuild/kiln/frontend/lint"
	"github.com/kilnbuild/kiln/frontend/source"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/llb"
)

// add lowers ADD.
func (b *builder) add(s *stage, c *instructions.AddCommand, check *linter.Linter) error {
	var local []string
	gits := 0
	for _, src := range c.SourcePaths {
		switch {
		case remoteurl.IsGit(src):
			gits++
		case !remoteurl.IsHTTP(src):
			local = append(local, src)
		}
	}
	if c.Checksum != "" && (len(c.SourcePaths) != 1 || len(local) > 0) {
		return errors.New("--checksum needs one source that is a URL or a git repository")
	}
	if c.KeepGitDir != nil && *c.KeepGitDir && gits == 0 {
		return errors.New("--keep-git-dir needs a source that is a git repository")
	}
	lint.Ignored(check, b.opts.Ignore, "Add", local, c.Location())
	cp := copying{
		keyword: "ADD", text: c.String(), SourcesAndDest: c.SourcesAndDest, chown: c.Chown, chmod: c.Chmod,
		link: c.Link, exclude: c.ExcludePatterns, at: c.Location(),
	}
	for _, src := range c.SourcePaths {
		source, err := b.addSource(s, c, src)
		if err != nil {
			return err
		}
		cp.sources = append(cp.sources, source)
	}
	return b.copyFiles(s, cp)
}

// addSource returns what a source of ADD is in, and what is taken of it.
func (b *builder) addSource(s *stage, c *instructions.AddCommand, src string) (copySource, error) {
	switch {
	case remoteurl.IsGit(src):
		return b.addGit(s, c, src)
	case remoteurl.IsHTTP(src):
		return b.addHTTP(s, c, src)
	}
	path, err := s.sourcePath(src, false)
	return copySource{b.mainContext(), llb.CopySource{Path: path, Unpack: c.Unpack == nil || *c.Unpack}}, err
}

// addHTTP returns the root with a file from a URL, and what ADD takes of it. It is unpacked only if that is asked for.
func (b *builder) addHTTP(s *stage, c *instructions.AddCommand, src string) (copySource, error) {
	op, err := source.HTTP(src, c.Checksum)
	if err == nil {
		op, err = fetched(b, src, op)
	}
	if err != nil {
		return copySource{}, err
	}
	v := b.graph.Add(op, b.internalMeta(s, "download "+remoteurl.Shown(op.URL), c.Location()), b.scratch())
	return copySource{v.Output(0), llb.CopySource{Path: escapeWildcards("/" + op.Filename), Unpack: c.Unpack != nil && *c.Unpack}}, nil
}

// addGit returns the tree of a repository, and what ADD takes of it: everything.
func (b *builder) addGit(s *stage, c *instructions.AddCommand, src string) (copySource, error) {
	op, err := source.Git(src, c.Checksum, c.KeepGitDir)
	if err == nil {
		op, err = fetched(b, src, op)
	}
	if err != nil {
		return copySource{}, err
	}
	op.Advice = source.GitAdvice(b.opts.BuildArgs)
	v := b.graph.Add(op, b.internalMeta(s, "load git source "+source.GitName(op), c.Location()), b.scratch())
	return copySource{v.Output(0), llb.CopySource{Path: "/"}}, nil
}
