package frontend

import (
	"fmt"
	"path"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/kilnbuild/kiln/frontend/mounts"
	"github.com/kilnbuild/kiln/llb"
)

// mounts lowers the --mount flags of RUN and returns them, in the order in which they are to be mounted, the path of
// the first ssh agent, and the inputs of the step, to which it adds.
func (b *builder) mounts(
	s *stage, c *instructions.RunCommand, sources []*stage, inputs []llb.Output,
) (out []llb.Mount, agent string, with []llb.Output, err error) {
	reader := &mounts.Reader{Cwd: s.config.Cwd(), CacheNamespace: b.buildArgs["BUILDKIT_CACHE_MOUNT_NS"]}
	for i, m := range instructions.GetMounts(c) {
		mount, err := reader.Read(m)
		if err != nil {
			return nil, "", nil, err
		}
		if m.Type == instructions.MountTypeBind || m.Type == instructions.MountTypeCache && m.From != "" {
			if sources[i] != nil && !sources[i].lowered && sources[i] != s {
				return nil, "", nil, fmt.Errorf("cannot mount from stage %q, it needs to be defined before the current stage", m.From)
			}
			input, source := b.mountSource(s, c, m, sources[i])
			inputs = append(inputs, input)
			mount.Input, mount.Source = len(inputs)-1, source
		}
		out = append(out, mount)
	}
	mounts.Order(out)
	return out, reader.Agent, inputs, nil
}

// mountSource returns what a bind or cache mount shows, and the path in it.
func (b *builder) mountSource(s *stage, c *instructions.RunCommand, m *instructions.Mount, from *stage) (llb.Output, string) {
	source := path.Join("/", m.Source)
	var local llb.Output
	if from == nil {
		local = b.mainContext()
	} else if dir, ok := from.directory(); ok {
		local = dir
	} else {
		return from.root, source
	}
	// A step cannot mount a directory of the client, so what it mounts is copied; nothing else of the directory is read.
	dest := path.Join("/", path.Base(source))
	op := llb.File{Actions: []llb.Action{{Copy: &llb.Copy{
		Sources:    []llb.CopySource{{Input: 1, Path: escapeWildcards(source)}},
		Dest:       dest,
		Attributes: llb.Attributes{Epoch: b.madeAt()},
	}}}}
	text := "load " + strings.TrimPrefix(source, "/") + " for a bind mount"
	if source == "/" {
		text = "load the context for a bind mount"
	}
	v := b.graph.Add(op, b.internalMeta(s, text, c.Location()), b.scratch(), local)
	return v.Output(0), dest
}

// escapeWildcards returns a pattern that matches p alone.
func escapeWildcards(p string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(p)
}
