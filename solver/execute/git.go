package execute

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/git"
	"github.com/kilnbuild/kiln/internal/httpsource"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/internal/sshagent"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/work"
)

// Git implements plan.Sources: a ref is looked up once in a build, so that every step has the same commit.
func (x *Job) Git(ctx context.Context, op llb.Git) (git.Commit, error) {
	if op.Bundled {
		c := git.Commit{ID: op.Checksum, Object: op.Checksum}
		if op.Ref != "" && op.Ref != op.Checksum {
			// What the bundle does not say before it is there: a name without "refs/" is that of a branch, as for BuildKit.
			if c.Name = op.Ref; !strings.HasPrefix(op.Ref, "refs/") {
				c.Name = "refs/heads/" + op.Ref
			}
		}
		return c, nil
	}
	if op.FetchByCommit {
		return git.Commit{ID: op.Checksum, Object: cmp.Or(op.Object, op.Checksum), Name: op.FoundBy}, nil
	}
	s := gitSource(op)
	key := strings.Join([]string{s.Remote, s.Ref, s.Checksum, op.HeaderSecret, op.TokenSecret, op.Agent, op.KnownHosts}, " ")
	return x.commits.Do(ctx, key, func(ctx context.Context) (git.Commit, error) {
		who, giveBack, err := x.gitIdentity(ctx, op)
		if err != nil {
			return git.Commit{}, err
		}
		defer giveBack()
		return x.git.Resolve(ctx, s, who)
	})
}

// GitObjects implements lookup.Objects.
func (x *Job) GitObjects(ctx context.Context, op llb.Git, c git.Commit) (commit, tag []byte, err error) {
	who, giveBack, err := x.gitIdentity(ctx, op)
	if err != nil {
		return nil, nil, err
	}
	defer giveBack()
	return x.git.Objects(ctx, gitSource(op), c, who)
}

// gitIdentity returns how ssh proves to a repository who the user is: by the agent that the build was given as "default", and
// for a context, which the user named, by the user's own agent and keys, unless the user is elsewhere. The agent can be used until it is
// given back.
func (x *Job) gitIdentity(ctx context.Context, op llb.Git) (who git.Identity, giveBack func(), err error) {
	who.User = op.Context && !x.Elsewhere
	who.HeaderSecret, who.TokenSecret = op.HeaderSecret, op.TokenSecret
	forget := func() {}
	if op.KnownHosts != "" {
		if who.KnownHosts, err = x.knownHosts(op.KnownHosts); err != nil {
			return who, nil, err
		}
		forget = func() { os.Remove(who.KnownHosts) }
	}
	agent, err := x.Agent(ctx, cmp.Or(op.Agent, "default"))
	if err != nil && !errors.As(err, new(*sshagent.MissingError)) {
		forget()
		return who, nil, err
	}
	if agent == nil {
		return who, forget, nil
	}
	socket, err := agent.Lend(ctx, x.Tmp)
	if err != nil {
		forget()
		return who, nil, err
	}
	who.Socket = socket.Path()
	return who, func() { socket.Close(); forget() }, nil
}

// knownHosts writes a file with the keys of servers, which the caller removes.
func (x *Job) knownHosts(keys string) (string, error) {
	f, err := os.CreateTemp(x.Tmp, "known-hosts-")
	if err != nil {
		return "", err
	}
	_, err = f.WriteString(keys + "\n")
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(f.Name())
	}
	return f.Name(), err
}

func gitSource(op llb.Git) *remoteurl.Git {
	return &remoteurl.Git{
		Remote: op.Remote, User: op.User, Ref: op.Ref, Subdir: op.Subdir, Checksum: op.Checksum, FetchByCommit: op.FetchByCommit,
	}
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
			report = task.Transferring(remote, events.Moving, 0)
			byRemote[remote] = report
		}
		mu.Unlock()
		report(bytes, false)
	}
}

// bundle copies the git bundle of a root file system to a file, which the caller removes.
func (x *Job) bundle(ctx context.Context, root solver.Ref) (_ string, err error) {
	t, err := x.Tree(ctx, root)
	if err != nil {
		return "", err
	}
	e, ok, err := t.Lookup(llb.BundleFile)
	if err == nil && (!ok || e.Type != layer.File) {
		err = fmt.Errorf("there is no file %s", llb.BundleFile)
	}
	if err != nil {
		return "", err
	}
	body, err := t.Open(&e)
	if err != nil {
		return "", err
	}
	defer body.Close()
	f, err := httpsource.Save(ctx, x.Tmp, llb.BundleFile, body, "")
	if err != nil {
		return "", err
	}
	return f.Path, nil
}

// checkout makes the layer of a commit.
func (x *Job) checkout(ctx context.Context, w work.Git, job solver.Job) ([]solver.Made, error) {
	who, giveBack, err := x.gitIdentity(ctx, w.Op)
	if err != nil {
		return nil, err
	}
	defer giveBack()
	o := git.Options{
		KeepGitDir: w.Op.KeepGitDir, SkipSubmodules: w.Op.SkipSubmodules, Advice: w.Op.Advice, Identity: who, Log: job.Stderr,
		Received: receiving(ctx),
	}
	commit := git.Commit{ID: w.Commit, Name: w.Name, Object: w.Object}
	if w.Op.Bundled {
		if o.Bundle, err = x.bundle(ctx, w.Bundle); err != nil {
			return nil, err
		}
		defer os.Remove(o.Bundle)
	}
	if w.Op.AsBundle {
		return x.fill(ctx, func(put func(layer.Entry, io.Reader) error) error {
			return x.git.Bundle(ctx, gitSource(w.Op), commit, o, llb.BundleFile, func(e layer.Entry, f *os.File) error { return put(e, f) })
		})
	}
	return x.fill(ctx, func(put func(layer.Entry, io.Reader) error) error {
		return x.git.Export(ctx, gitSource(w.Op), commit, o, put)
	})
}
