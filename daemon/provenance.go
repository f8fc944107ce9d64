package daemon

import (
	"github.com/moby/buildkit/solver/pb"

	"github.com/kilnbuild/kiln/attestation/slsa"
	"github.com/kilnbuild/kiln/build/provenance"
	"github.com/kilnbuild/kiln/daemon/asked"
	"github.com/kilnbuild/kiln/llb"
)

// described returns how the client asked for a result.
func (b *buildJob) described(made *result) *provenance.API {
	req := b.request
	by := &asked.Request{}
	for _, r := range made.all() {
		if r.asked != nil {
			by = r.asked
			break
		}
	}
	room := asked.MaxInputs
	shown := by.Describe(&room)
	first := asked.Request{Frontend: req.Frontend, Attrs: req.FrontendAttrs, Inputs: b.server.builds.madeBy(b.user, req.FrontendInputs)}
	if root := first.Describe(&room); !asked.Equal(shown, root) {
		shown.Request.Root = root
	}
	api := &provenance.API{
		Asked: *shown, Context: by.Context(), Locals: b.client.Received(), VCS: by.VCS(), Env: b.server.config.ProvenanceEnv,
		Define: b.define,
	}
	if by.Frontend == frontendDockerfile {
		api.DockerfileVersion = dockerfileVersion
	}
	return api
}

// define returns the steps of a root file system as LLB.
func (b *buildJob) define(root llb.Output) (*provenance.Definition, error) {
	d, err := asked.Define(root)
	if err == nil {
		d.Source = b.sourceOf(d.Vertices)
	}
	return d, err
}

// sourceOf returns the files that the client says steps come from, and where in them, by the IDs of the steps; nil if it does not say. What
// is too large is left out, as in errors.
func (b *buildJob) sourceOf(steps map[llb.Digest]string) *slsa.Source {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &slsa.Source{Locations: map[string]slsa.Locations{}}
	known := map[string]int{} // numbers in s.Infos by what is in them
	for _, g := range b.held.graphs {
		for vertex, id := range steps {
			if _, ok := s.Locations[id]; ok {
				continue
			}
			for _, d := range g.Digests[vertex] {
				if op := g.Ops[d]; op != nil && len(op.Locations) > 0 {
					s.Locations[id] = placesOf(s, known, op.Locations, g.Sources)
					break
				}
			}
		}
	}
	if len(s.Infos) == 0 {
		return nil
	}
	return s
}

// placesOf returns where an op comes from, and adds the files to those of s.
func placesOf(s *slsa.Source, known map[string]int, at []*pb.Location, sources []*pb.SourceInfo) (all slsa.Locations) {
	for _, q := range quotes(at, sources) {
		key := q.Info.GetFilename() + "\x00" + q.Info.GetLanguage() + "\x00" + string(q.Info.GetData())
		i, ok := known[key]
		if !ok {
			i = len(s.Infos)
			known[key] = i
			s.Infos = append(s.Infos, slsa.SourceInfo{Filename: q.Info.GetFilename(), Language: q.Info.GetLanguage(), Data: q.Info.GetData()})
		}
		l := slsa.Location{SourceIndex: i}
		for _, r := range q.Ranges {
			l.Ranges = append(l.Ranges, slsa.Range{
				Start: slsa.Position{Line: int(r.GetStart().GetLine())}, End: slsa.Position{Line: int(r.GetEnd().GetLine())},
			})
		}
		all.Locations = append(all.Locations, l)
	}
	return all
}
