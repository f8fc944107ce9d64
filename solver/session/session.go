// Package session is what the client of one build has: contexts, secrets and agents, and who is told what. It goes with a build and is
// never part of a step's work.
package session

import (
	"context"
	"fmt"
	"io"

	"github.com/kilnbuild/kiln/internal/httpsource"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/sshagent"
	"github.com/kilnbuild/kiln/llb"
	"github.com/opencontainers/go-digest"
)

// Secrets gives the values of secrets.
type Secrets interface {
	// Secret returns a secret's value; false if the build was given none of that id.
	Secret(ctx context.Context, id string) ([]byte, bool, error)
}

// Agents gives ssh agents.
type Agents interface {
	// Agent returns an agent that can be used until the build ends; nil if the build was given none of that id. The error is a
	// *sshagent.MissingError if there is more to say of that.
	Agent(ctx context.Context, id string) (*sshagent.Agent, error)
}

// Uploads gives files that a client uploads.
type Uploads interface {
	// Upload returns what the client uploads under an address; false if the address is none of that kind. The caller closes it.
	Upload(ctx context.Context, address string) (io.ReadCloser, bool, error)
}

// Locals gives the trees of llb.Local: directories of the client, or what took the place of one. It is safe for concurrent use.
type Locals interface {
	// Open returns the tree of a Local. It is asked when the Local is first planned, and later; for equal ops of one build it returns the
	// same tree.
	Open(ctx context.Context, op llb.Local) (layer.Tree, error)
}

// Trees are Locals that are open, by their names.
type Trees map[string]layer.Tree

// Open implements Locals.
func (t Trees) Open(_ context.Context, op llb.Local) (layer.Tree, error) {
	if tree := t[op.Name]; tree != nil {
		return tree, nil
	}
	return nil, fmt.Errorf("BUG: no local directory %q", op.Name)
}

// Session belongs to one build. The zero Session has nothing.
type Session struct {
	// Locals has the directories of the client; nil for none.
	Locals Locals
	// Selected are the paths and wildcards that the steps of the build select of each of them: see llb.Selections.
	Selected map[string][]string
	// Secrets may be nil.
	Secrets Secrets
	// Agents may be nil.
	Agents Agents
	// Uploads may be nil.
	Uploads Uploads
	// Allow are the entitlements of the build.
	Allow []string
	// Elsewhere says that the client is not the user of this process, whose keys and agent are not for it.
	Elsewhere bool
	// FreshCaches has cache mounts begin empty: each is emptied before the first step of the build uses it.
	FreshCaches bool
	// FreshUncached does so with those of the steps that must not be cached.
	FreshUncached bool
	// MayRun, where not nil, waits until steps may run; its error, or ctx's, is that of a step.
	MayRun func(ctx context.Context) error
	// Warn shows people what they should know, and Note takes what need not concern them; both may be nil.
	Warn func(text string)
	Note func(text string)
}

// OpenLocal returns the tree of a Local.
func (s *Session) OpenLocal(ctx context.Context, op llb.Local) (layer.Tree, error) {
	if s.Locals == nil {
		return nil, fmt.Errorf("the build was given no directories, and it needs %q", op.Name)
	}
	return s.Locals.Open(ctx, op)
}

// SelectedOf returns what the steps of the build select of a Local; nil if that is not known.
func (s *Session) SelectedOf(op llb.Local) []string {
	if op.Filtered() {
		return nil
	}
	return s.Selected[op.Name]
}

// Secret returns a secret's value; false if the build was given none of that id.
func (s *Session) Secret(ctx context.Context, id string) ([]byte, bool, error) {
	if s.Secrets == nil {
		return nil, false, nil
	}
	return s.Secrets.Secret(ctx, id)
}

// Agent returns an ssh agent; nil if the build was given none of that id, or a *sshagent.MissingError if there is more to say of that.
func (s *Session) Agent(ctx context.Context, id string) (*sshagent.Agent, error) {
	if s.Agents == nil {
		return nil, nil
	}
	return s.Agents.Agent(ctx, id)
}

// Uploaded returns a file that the client uploads in place of one of a server, in the directory tmp; nil if the address is that of a
// server.
func (s *Session) Uploaded(ctx context.Context, tmp string, op llb.HTTP) (*httpsource.File, error) {
	if s.Uploads == nil {
		return nil, nil
	}
	body, ok, err := s.Uploads.Upload(ctx, op.URL)
	if !ok || err != nil {
		return nil, err
	}
	defer body.Close()
	return httpsource.Save(ctx, tmp, op.URL, body, digest.Digest(op.Checksum))
}

// Warning calls Warn, unless that is nil.
func (s *Session) Warning(text string) {
	if s.Warn != nil {
		s.Warn(text)
	}
}
