package frontend

import (
	"path"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"

	"github.com/kilnbuild/kiln/llb"
)

// workdir lowers WORKDIR.
func (b *builder) workdir(s *stage, c *instructions.WorkdirCommand, lint *linter.Linter) {
	// Only the first one of the Dockerfile counts: what is relative to that is as sure as that is.
	if !s.workdirSet && !path.IsAbs(c.Path) {
		lint.Run(&linter.RuleWorkdirRelativePath, c.Location(), linter.RuleWorkdirRelativePath.Format(c.Path))
	}
	s.workdirSet = true
	s.config.WorkingDir = joinWorkdir(s.config.WorkingDir, c.Path)
	created := "WORKDIR " + s.config.WorkingDir
	if s.cwd() == "/" {
		s.commit(created, nil)
		return
	}
	dir := llb.Mkdir{Path: s.cwd(), Attributes: llb.Attributes{Chown: s.config.User, Epoch: b.epoch}}
	v := b.graph.Add(llb.File{Actions: []llb.Action{{Mkdir: &dir}}}, b.stepMeta(s, c.String(), b.lex, s.env, c.Location()), s.root)
	s.root = v.Output(0)
	s.commit(created, v)
}

// joinWorkdir returns the working directory after WORKDIR dir. An absolute one stays as it is written.
func joinWorkdir(current, dir string) string {
	current = path.Join("/", current)
	switch {
	case dir == "":
		return current
	case path.IsAbs(dir):
		return dir
	default:
		return path.Join(current, dir)
	}
}
