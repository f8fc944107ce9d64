package ops

import (
	"context"
	"io"
	"strconv"
	"sync"

	"github.com/kilnbuild/kiln/events"
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
func (r *Runner) gitCommit(ctx context.Context, s *remoteurl.Git, who git.Identity) (git.Commit, error) {
	key := s.Remote + " " + s.Ref + " " + s.Checksum + " " + strconv.FormatBool(s.FetchByCommit)
	r.mu.Lock()
	found := r.commits[key]
	if found == nil {
		found = &resolving{}
		r.commits[key] = found
	}
	r.mu.Unlock()
	found.once.Do(func() { found.commit, found.err = r.git.Resolve(ctx, s, who) })
	return found.commit, found.err
}

// gitIdentity returns how ssh proves to a repository who the user is: by the agent that the build was given as "default", and
// for a context, which the user named, by the user's own agent and keys. The agent can be used until it is given back.
func (r *Runner) gitIdentity(ctx context.Context, op llb.Git) (who git.Identity, giveBack func(), err error) {
	who.User = op.Context
	agent := r.Agents["default"]
	if agent == nil {
		return who, func() {}, nil
	}
	socket, err := agent.Lend(ctx, r.Tmp)
	if err != nil {
		return who, nil, err
	}
	who.Socket = socket.Path()
	return who, socket.Close, nil
}

func gitSource(op llb.Git) *remoteurl.Git {
	return &remoteurl.Git{Remote: op.Remote, User: op.User, Ref: op.Ref, Subdir: op.Subdir, Checksum: op.Checksum, FetchByCommit: op.FetchByCommit}
}

// receiving returns what reports to the step how much has come from each repository.
func receiving(ctx context.Context) func(remote string, bytes int64) {
	task := events.From(ctx)
	var mu sync.Mutex
	byRemote := map[string]func(current int64, done bool){}
	return func(remote string, bytes int64) {
		mu.Lock()
		report := byRemote[remote]
		if report == nil {
			report = task.Transferring(remote, 0)
			byRemote[remote] = report
		}
		mu.Unlock()
		report(bytes, false)
	}
}

// planGit plans the fetching of a commit. The key is the commit, and what is taken of it; where it comes from has no part in
// it, but for a .git directory, which says so.
func (r *Runner) planGit(ctx context.Context, v *llb.Vertex, op llb.Git) (solver.Step, error) {
	s := gitSource(op)
	who, giveBack, err := r.gitIdentity(ctx, op)
	if err != nil {
		return solver.Step{}, err
	}
	defer giveBack()
	commit, err := r.gitCommit(ctx, s, who)
	if err != nil {
		return solver.Step{}, err
	}
	inputs := append(common(v),
		solver.Input{Name: "commit", Value: commit.ID}, solver.Input{Name: "directory", Value: op.Subdir},
		solver.Input{Name: "submodules", Value: strconv.FormatBool(!op.SkipSubmodules)}, solver.Input{Name: "lfs", Value: "true"})
	if op.KeepGitDir {
		inputs = append(inputs, solver.Input{Name: "git dir of", Value: op.Remote}, solver.Input{Name: "ref", Value: commit.Name}, solver.Input{Name: "object", Value: commit.Object})
	}
	return solver.Step{
		Inputs: inputs,
		Run: func(ctx context.Context, job solver.Job) (solver.Layer, error) {
			who, giveBack, err := r.gitIdentity(ctx, op)
			if err != nil {
				return solver.Layer{}, err
			}
			defer giveBack()
			o := git.Options{KeepGitDir: op.KeepGitDir, SkipSubmodules: op.SkipSubmodules, Identity: who, Log: job.Stderr, Received: receiving(ctx)}
			return r.fill(ctx, func(put func(layer.Entry, io.Reader) error) error { return r.git.Export(ctx, s, commit, o, put) })
		},
	}, nil
}
