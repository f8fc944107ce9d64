package frontend

import (
	"cmp"
	"fmt"
	"path"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"

	"github.com/kilnbuild/kiln/frontend/expand"
	"github.com/kilnbuild/kiln/llb"
)

// workdir lowers WORKDIR.
func (b *builder) workdir(s *stage, c *instructions.WorkdirCommand, check *linter.Linter) error {
	// Only the first one of the Dockerfile counts: what is relative to that is as sure as that is.
	if !s.checks.workdirSet && !s.isAbs(c.Path) {
		check.Run(&linter.RuleWorkdirRelativePath, c.Location(), linter.RuleWorkdirRelativePath.Format(c.Path))
	}
	s.checks.workdirSet = true
	dir, err := s.joinWorkdir(s.config.WorkingDir(), c.Path)
	if err != nil {
		return err
	}
	if len(dir) > maxPath {
		return fmt.Errorf("the working directory %q is longer than the %d bytes that Linux takes", expand.Clip(dir), maxPath)
	}
	s.config.SetWorkingDir(dir)
	if err := b.budget.Spend(len(s.config.User())); err != nil {
		return err
	}
	cwd, err := s.cwd()
	if err != nil {
		return err
	}
	if s.isWindows() {
		dir = cwd
	}
	created := "WORKDIR " + dir
	if dir == "/" { // as it is written: "//" makes a layer, if an empty one
		s.config.Commit(created, nil)
		return nil
	}
	mkdir := llb.Mkdir{Path: cwd, Attributes: llb.Attributes{Chown: s.config.User(), Epoch: b.madeAt()}}
	v := b.graph.Add(llb.File{Actions: []llb.Action{{Mkdir: &mkdir}}}, b.stepMeta(s, c.String(), b.words, s.env, c.Location()), s.root)
	s.root = v.Output(0)
	s.config.Commit(created, v)
	return nil
}

// maxPath is how long a path can be: PATH_MAX of limits.h without the byte that ends it.
const maxPath = 4095

// joinWorkdir returns the working directory after WORKDIR dir. An absolute one stays as it is written. current is absolute or "".
func joinWorkdir(current, dir string) string {
	switch {
	case dir == "":
		return cmp.Or(current, "/")
	case path.IsAbs(dir):
		return dir
	default:
		return path.Join("/", current, dir)
	}
}
