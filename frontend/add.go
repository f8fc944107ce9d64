package frontend

import (
	"errors"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
)

// add lowers ADD.
func (b *builder) add(s *stage, c *instructions.AddCommand, lint *linter.Linter) error {

	for _, src := range c.SourcePaths {
		if isHTTP(src) {
			return unsupported("ADD from a URL")
		}
		if isGit(src) {
			return unsupported("ADD from a git repository")
		}
	}
	if c.Checksum != "" {
		return errors.New("--checksum needs one source that is a URL or a git repository")
	}
	b.lintIgnored("Add", c.SourcePaths, c.Location(), lint)
	return b.copyFiles(s, copying{
		keyword: "ADD", text: c.String(), SourcesAndDest: c.SourcesAndDest, chown: c.Chown, chmod: c.Chmod,
		link: c.Link, exclude: c.ExcludePatterns, at: c.Location(),
		unpack: c.Unpack == nil || *c.Unpack,
		from:   b.mainContext(),
	})
}
