package ops

import (
	"context"
	"io"
	"strconv"
	"sync"

	"github.com/kilnbuild/kiln/internal/git"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
)

// resolving is the looking up of one ref, which everybody in this build waits for.
type resolving struct {
	once   sync.Once
	commit git.Commit
	err    error
}

// gitCommit returns what a ref is in this build: it is looked up once, so that every step has the same commit.
func (r *Runner) gitCommit(ctx context.Context, s *remoteurl.Git, agent bool) (git.Commit, error) {
	key := s.Remote + " " + s.Ref + " " + s.Checksum + " " + strconv.FormatBool(s.FetchByCommit)
	r.mu.Lock()
	found := r.commits[key]
	if found == nil {
		found = &resolving{}
		r.commits[key] = found
	}
	r.mu.Unlock()
	found.once.Do(func() { found.commit, found.err = r.git.Resolve(ctx, s, agent) })
	return found.commit, found.err
}

// planGit plans the fetching of a commit. The key is the commit, and what is taken of it; where it comes from has no part in
// it, but for a .git directory, which says so.
func (r *Runner) planGit(ctx context.Context, v *llb.Vertex, op llb.Git) (solver.Step, error) {
	s := &remoteurl.Git{Remote: op.Remote, User: op.User, Ref: op.Ref, Subdir: op.Subdir, Checksum: op.Checksum, FetchByCommit: op.FetchByCommit}
	commit, err := r.gitCommit(ctx, s, op.Context)
	if err != nil {
		return solver.Step{}, err
	}
	inputs := append(common(v),
		solver.Input{Name: "commit", Value: commit.ID}, solver.Input{Name: "directory", Value: op.Subdir},
		solver.Input{Name: "submodules", Value: strconv.FormatBool(!op.SkipSubmodules)}, solver.Input{Name: "lfs", Value: strconv.FormatBool(r.git.LFS())})
	if op.KeepGitDir {
		inputs = append(inputs, solver.Input{Name: "git dir of", Value: op.Remote}, solver.Input{Name: "ref", Value: commit.Name}, solver.Input{Name: "object", Value: commit.Object})
	}
	return solver.Step{
		Inputs: inputs,
		Run: func(ctx context.Context, job solver.Job) (solver.Layer, error) {
			o := git.Options{KeepGitDir: op.KeepGitDir, SkipSubmodules: op.SkipSubmodules, Agent: op.Context, Log: job.Stderr}
			return r.fill(func(put func(layer.Entry, io.Reader) error) error { return r.git.Export(ctx, s, commit, o, put) })
		},
	}, nil
}
