package asked

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/daemon/llbpb"
	"github.com/kilnbuild/kiln/llb"
)

// definition returns a definition that asks for an output of the op with a name.
func definition(t *testing.T, name string, index int64) *pb.Definition {
	t.Helper()
	op := &pb.Op{Inputs: []*pb.Input{{Digest: digest.FromString(name).String(), Index: index}}}
	data, err := op.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return &pb.Definition{Def: [][]byte{[]byte("another op"), data}}
}

// TestFind holds who is told which request made an input: builds of the same user, while the build that it was made for goes on, and if
// there is no doubt.
func TestFind(t *testing.T) {
	results := NewResults()
	begin := func(user string) *Build { return results.Begin(user, "", nil, nil) }
	producer, same, other := begin("a"), begin("a"), begin("b")
	def := definition(t, "x", 0)
	request := producer.Request("dockerfile.v0", map[string]string{"target": "base", "attest:provenance": "mode=max"}, nil)
	producer.Made(def, request)
	if got := same.Request("dockerfile.v0", nil, map[string]*pb.Definition{"in": def}); got.Asked.Request.Inputs["in"] != &request.Asked {
		t.Errorf("a build of the user has the inputs %v", got.Asked.Request.Inputs)
	}
	for name, got := range map[string]*Request{
		"of another user":        other.find(def),
		"that is another output": same.find(definition(t, "x", 1)),
		"that is another op":     same.find(definition(t, "y", 0)),
		"that is nothing":        same.find(nil),
		"that is no op":          same.find(&pb.Definition{Def: [][]byte{[]byte("\xff")}}),
		"that asks for nothing":  same.find(&pb.Definition{Def: [][]byte{{}}}),
	} {
		if got != nil {
			t.Errorf("an input %s was made by %v", name, got.Asked.Request)
		}
	}

	// One that provenance describes in the same way is no other one, and leaves the first as it is.
	again := same.Request("dockerfile.v0", map[string]string{"target": "base", "platform": "linux/arm64"}, nil)
	same.Made(def, again)
	if same.find(def) == nil {
		t.Error("the request is not known any more")
	}
	same.Made(def, same.Request("dockerfile.v0", map[string]string{"target": "another"}, nil))
	if got := producer.find(def); got != nil {
		t.Errorf("of two requests it was %v", got.Asked.Request)
	}
	same.Close()
	if producer.find(def) != request {
		t.Error("the request of a build that goes on is not known")
	}
	producer.Close()
	if len(results.all) > 0 {
		t.Errorf("of builds that have ended there is left %v", results.all)
	}
}

// TestMaxInputs holds that inputs of inputs, which double from one request to the next, make no description that is too large, and that it
// says so.
func TestMaxInputs(t *testing.T) {
	b := NewResults().Begin("", "", nil, nil)
	inputs := map[string]*pb.Definition{}
	for i := range 40 {
		r := b.Request("dockerfile.v0", map[string]string{"build-arg:N": strings.Repeat("x", 1000)}, inputs)
		def := definition(t, strconv.Itoa(i), 0)
		b.Made(def, r)
		inputs = map[string]*pb.Definition{"one": def, "two": def}
		data, err := json.Marshal(Describe(r, b.Root).Asked)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > 2*maxInputs {
			t.Fatalf("the description of request %d has %d bytes", i, len(data))
		}
		if whole := i < 10; r.Partial == whole {
			t.Errorf("request %d: partial is %v", i, r.Partial)
		}
	}
	one := map[string]*pb.Definition{}
	for i := range maxNested + 1 {
		r := b.Request("dockerfile.v0", nil, one)
		if r.Partial != (i == maxNested) {
			t.Errorf("request %d of a row: partial is %v", i, r.Partial)
		}
		def := definition(t, "row "+strconv.Itoa(i), 0)
		b.Made(def, r)
		one = map[string]*pb.Definition{"in": def}
	}
}

// TestDescribe holds that the client's own request is described if it was another one, and only then.
func TestDescribe(t *testing.T) {
	attrs := map[string]string{
		"context": "https://user:canary@host/r.git#v1", "filename": "F", "vcs:source": "https://user:canary@host/", "target": "x",
	}
	b := NewResults().Begin("", "dockerfile.v0", attrs, nil)
	api := Describe(b.Request("dockerfile.v0", attrs, nil), b.Root)
	a := api.Asked
	if a.Request.Root != nil || a.ConfigSource.URI != "https://xxxxx:xxxxx@host/r.git#v1" || a.ConfigSource.Path != "F" ||
		api.VCS["source"] != "https://xxxxx:xxxxx@host/" || len(a.Request.Args) != 1 || a.Request.Args["target"] != "x" {
		t.Errorf("%+v, %v", a, a.Request)
	}
	api = Describe(nil, b.Root)
	if r := api.Asked.Request; r.Frontend != "" || r.Root == nil || r.Root.Request.Root != nil || b.Root.Asked.Request.Root != nil {
		t.Errorf("without a frontend: %v", r)
	}
	if !slices.Contains(api.Addresses, attrs["context"]) {
		t.Errorf("addresses: %v", api.Addresses)
	}
}

// TestSource holds that steps are where the definitions of clients say, in a description of bounded size.
func TestSource(t *testing.T) {
	g := &llb.Graph{}
	base := g.Add(llb.Scratch{}, llb.Meta{})
	file := llb.File{Actions: []llb.Action{{Mkdir: &llb.Mkdir{Path: "/d"}}}}
	step := g.Add(file, llb.Meta{}, base.Output(0))
	graph := func(data []byte, ranges int) *llbpb.Graph {
		at := &pb.Location{Ranges: make([]*pb.Range, ranges)}
		for i := range at.Ranges {
			at.Ranges[i] = &pb.Range{Start: &pb.Position{Line: 3}, End: &pb.Position{Line: 4}}
		}
		return &llbpb.Graph{
			Ops:     map[digest.Digest]*llbpb.Op{"sha256:1": {Locations: []*pb.Location{at}, Vertices: []llb.Digest{step.Digest()}}},
			Sources: []*pb.SourceInfo{{Filename: "F", Data: data}},
		}
	}
	d, err := Define(step.Output(0), []*llbpb.Graph{graph([]byte("text"), 1), graph([]byte("another"), 1)})
	if err != nil {
		t.Fatal(err)
	}
	id := d.Vertices[step.Digest()]
	s := d.Source
	if s == nil || len(s.Infos) != 1 || string(s.Infos[0].Data) != "text" || s.Locations[id].Locations[0].Ranges[0].Start.Line != 3 {
		t.Errorf("%+v", d.Source)
	}
	for name, large := range map[string]*llbpb.Graph{"file": graph(make([]byte, maxSource+1), 1), "place": graph(nil, maxSource/perRange)} {
		d, err := Define(step.Output(0), []*llbpb.Graph{large})
		if err != nil {
			t.Fatal(err)
		}
		if data, err := json.Marshal(d.Source); err != nil || len(data) > 1000 {
			t.Errorf("a large %s: %d bytes, %v", name, len(data), err)
		}
	}
}
