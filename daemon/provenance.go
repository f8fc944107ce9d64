package daemon

import (
	"slices"

	"github.com/kilnbuild/kiln/build/provenance"
	"github.com/kilnbuild/kiln/daemon/asked"
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
	api.Locals, api.Env, api.Define = b.client.Received(), b.server.config.ProvenanceEnv, b.define
	if api.Asked.Request.Frontend == frontendDockerfile {
		api.DockerfileVersion = dockerfileVersion
	}
	return api
}

// define returns the steps of a root file system as LLB.
func (b *buildJob) define(root llb.Output) (*provenance.Definition, error) {
	b.mu.Lock()
	graphs := slices.Clone(b.held.graphs)
	b.mu.Unlock()
	return asked.Define(root, graphs)
}
