package daemon

import (
	"slices"

	"github.com/kilnbuild/kiln/build/provenance"
	"github.com/kilnbuild/kiln/daemon/asked"
	"github.com/kilnbuild/kiln/daemon/llbpb"
	"github.com/kilnbuild/kiln/llb"
)

// described returns how the client asked for a result.
func (b *buildJob) described(made *result) *provenance.API {
	var by *asked.Request
	for _, r := range made.all() {
		if r.asked != nil {
			by = r.asked
			break
		}
	}
	api := asked.Describe(by, b.made.Root)
	api.Locals, api.Env, api.Define = b.provides().Received(), b.server.config.ProvenanceEnv, b.define
	addresses, layouts := asked.Named(b.graphs())
	api.Addresses, api.Layouts = append(api.Addresses, addresses...), layouts
	b.mu.Lock()
	for _, info := range b.sources {
		if len(b.sources) == 1 { // else it is not known which one it is
			api.Dockerfile = asked.Dockerfile(info)
		}
	}
	b.mu.Unlock()
	if api.Asked.Request.Frontend == frontendDockerfile {
		api.DockerfileVersion = dockerfileVersion
	}
	return api
}

// define returns the steps of a root file system as LLB.
func (b *buildJob) define(root llb.Output) (*provenance.Definition, error) {
	return asked.Define(root, b.graphs())
}

// graphs returns what definitions of the client were decoded to.
func (b *buildJob) graphs() []*llbpb.Graph {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.held.graphs)
}
