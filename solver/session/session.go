// Package session is what the client of one build has: contexts, secrets and agents, and who is told what. It goes with a build and is
// never part of a step's work.
package session

import (
	"context"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/sshagent"
)

// Secrets gives the values of secrets.
type Secrets interface {
	// Secret returns a secret's value; false if the build was given none of that id.
	Secret(ctx context.Context, id string) ([]byte, bool, error)
}

// Agents gives ssh agents.
type Agents interface {
	// Agent returns an agent that can be used until the build ends; nil if the build was given none of that id.
	Agent(ctx context.Context, id string) (*sshagent.Agent, error)
}

// Session belongs to one build. The zero Session has nothing.
type Session struct {
	// Local are the trees of llb.Local by their names: directories of the client, or what took the place of one.
	Local map[string]layer.Tree
	// Selected are the paths and wildcards that the steps of the build select of each of them: see frontend.Selections.
	Selected map[string][]string
	// Secrets may be nil.
	Secrets Secrets
	// Agents may be nil.
	Agents Agents
	// Allow are the entitlements of the build.
	Allow []string
	// FreshCaches has cache mounts begin empty: each is emptied before the first step of the build uses it.
	FreshCaches bool
	// MayRun, where not nil, waits until steps may run; its error, or ctx's, is that of a step.
	MayRun func(ctx context.Context) error
	// Warn shows people what they should know, and Note takes what need not concern them; both may be nil.
	Warn func(text string)
	Note func(text string)
}

// Secret returns a secret's value; false if the build was given none of that id.
func (s *Session) Secret(ctx context.Context, id string) ([]byte, bool, error) {
	if s.Secrets == nil {
		return nil, false, nil
	}
	return s.Secrets.Secret(ctx, id)
}

// Agent returns an ssh agent; nil if the build was given none of that id.
func (s *Session) Agent(ctx context.Context, id string) (*sshagent.Agent, error) {
	if s.Agents == nil {
		return nil, nil
	}
	return s.Agents.Agent(ctx, id)
}

// Warning calls Warn, unless that is nil.
func (s *Session) Warning(text string) {
	if s.Warn != nil {
		s.Warn(text)
	}
}
