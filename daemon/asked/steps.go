package asked

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/attestation/slsa"
	"github.com/kilnbuild/kiln/build/provenance"
	"github.com/kilnbuild/kiln/daemon/llbpb"
	"github.com/kilnbuild/kiln/llb"
)

// Define returns the steps of a root file system as LLB. Graphs are those that clients have sent definitions of: they say where in which
// files steps come from.
func Define(root llb.Output, graphs []*llbpb.Graph) (*provenance.Definition, error) {
	def, vertices, err := llbpb.EncodeVertices(root)
	if err != nil {
		return nil, err
	}
	d := &provenance.Definition{Vertices: map[llb.Digest]string{}}
	if d.Ops, d.Digests, err = ops(def); err != nil {
		return nil, err
	}
	for v, op := range vertices {
		if id, ok := d.Digests[op.String()]; ok {
			d.Vertices[v] = id
		}
	}
	sources := &sources{steps: d.Vertices}
	for _, g := range graphs {
		sources.add(g)
	}
	d.Source = sources.source
	return d, nil
}

// ops returns the ops of a definition as steps, with their IDs by their digests.
func ops(def *pb.Definition) (all []slsa.Op, ids map[string]string, err error) {
	ids = map[string]string{}
	for i, data := range def.GetDef() {
		op := &pb.Op{}
		if err := op.Unmarshal(data); err != nil {
			return nil, nil, fmt.Errorf("read an op: %w", err)
		}
		id := "step" + strconv.Itoa(i)
		step := slsa.Op{ID: id}
		for _, in := range op.Inputs {
			step.Inputs = append(step.Inputs, ids[in.Digest]+":"+strconv.FormatInt(in.Index, 10))
		}
		op.Inputs = nil
		if step.Op, err = json.Marshal(op); err != nil {
			return nil, nil, fmt.Errorf("encode an op: %w", err)
		}
		all = append(all, step)
		ids[digest.FromBytes(data).String()] = id
	}
	return all, ids, nil
}

// Dockerfile returns the steps that make the directory with a Dockerfile, of which a client may have sent the definition; nil for none.
func Dockerfile(info *pb.SourceInfo) *provenance.Definition {
	all, ids, err := ops(info.GetDefinition())
	if err != nil || len(all) == 0 {
		return nil
	}
	return &provenance.Definition{Ops: all, Digests: ids}
}

// maxSource bounds the files that steps come from, and where in them that is, in bytes. What is beyond is left out.
const (
	maxSource = 16 << 20
	perRange  = 64
)

// sources are the files that the steps of one root file system come from, as far as clients say so.
type sources struct {
	steps  map[llb.Digest]string
	source *slsa.Source // nil if there are none
	size   int
}

// add adds where the steps of a graph come from that are not known yet.
func (s *sources) add(g *llbpb.Graph) {
	index := map[int32]int{} // of the graph's files among those of all
	for _, name := range slices.Sorted(maps.Keys(g.Ops)) {
		op := g.Ops[name]
		for _, v := range op.Vertices {
			id := s.steps[v]
			if id == "" || s.known(id) {
				continue
			}
			var all slsa.Locations
			for _, at := range op.Locations {
				i, ok := index[at.SourceIndex]
				if !ok {
					i = s.file(g.Sources[at.SourceIndex])
					index[at.SourceIndex] = i
				}
				if i >= 0 && s.room(perRange*(1+len(at.Ranges))) {
					all.Locations = append(all.Locations, slsa.Location{SourceIndex: i, Ranges: ranges(at)})
				}
			}
			if len(all.Locations) > 0 {
				s.source.Locations[id] = all
			}
		}
	}
}

// room reports whether there is room for so many bytes more, which are taken.
func (s *sources) room(size int) bool {
	if size > maxSource-s.size {
		return false
	}
	s.size += size
	return true
}

func (s *sources) known(id string) bool {
	if s.source == nil {
		return false
	}
	_, ok := s.source.Locations[id]
	return ok
}

// file returns the index of a file, which is added; -1 if there is no room for it.
func (s *sources) file(info *pb.SourceInfo) int {
	if s.source == nil {
		s.source = &slsa.Source{Locations: map[string]slsa.Locations{}}
	}
	name, language, data := info.GetFilename(), info.GetLanguage(), info.GetData()
	for i, known := range s.source.Infos {
		if known.Filename == name && known.Language == language && bytes.Equal(known.Data, data) {
			return i
		}
	}
	if !s.room(len(name) + len(language) + len(data)) {
		return -1
	}
	file := slsa.SourceInfo{Filename: name, Language: language, Data: data}
	if s.room(info.GetDefinition().SizeVT()) {
		if d := Dockerfile(info); d != nil {
			file.Definition, file.DigestMapping = d.Ops, d.Digests
		}
	}
	s.source.Infos = append(s.source.Infos, file)
	return len(s.source.Infos) - 1
}

func ranges(at *pb.Location) []slsa.Range {
	all := make([]slsa.Range, 0, len(at.Ranges))
	for _, r := range at.Ranges {
		all = append(all, slsa.Range{
			Start: slsa.Position{Line: int(r.GetStart().GetLine())}, End: slsa.Position{Line: int(r.GetEnd().GetLine())},
		})
	}
	return all
}

// layoutScheme begins the identifiers of sources that are images of OCI layouts.
const layoutScheme = "oci-layout://"

// Named returns of the sources in definitions of a client what the graph has not: addresses of repositories with credentials, and what
// images of OCI layouts are called, by their digests.
func Named(graphs []*llbpb.Graph) (repositories []string, layouts map[string]string) {
	layouts = map[string]string{}
	for _, g := range graphs {
		for _, s := range g.Named {
			full, _, _ := strings.Cut(s.Attrs[pb.AttrFullRemoteURL], "#")
			if _, ref, ok := strings.Cut(s.Identifier, "#"); ok && full != "" {
				full += "#" + ref
			}
			if full != "" && provenance.Redacted(full) != full {
				repositories = append(repositories, full)
			}
			if name, ok := strings.CutPrefix(s.Identifier, layoutScheme); ok {
				name, digest, _ := strings.Cut(name, "@")
				layouts[digest] = name
			}
		}
	}
	return repositories, layouts
}
