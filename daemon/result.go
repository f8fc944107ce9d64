package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/build/imaging"
	"github.com/kilnbuild/kiln/daemon/asked"
	"github.com/kilnbuild/kiln/daemon/attrs"
	"github.com/kilnbuild/kiln/daemon/llbpb"
	"github.com/kilnbuild/kiln/daemon/returned"
	"github.com/kilnbuild/kiln/frontend"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
)

// Keys of the metadata of results, as BuildKit's frontends write them.
const (
	keyEpoch = "source.date.epoch"
	keyNames = "image.name"
	// prefixReturned begins the keys of what the client is told of the result.
	prefixReturned = "frontend."
)

// ref is a root file system that a client knows by an ID. It is solved when it is first needed.
type ref struct {
	id   string
	root llb.Output
	// image is what a Dockerfile describes, product what it is one of, and config is its configuration as the client has it; all are nil for
	// what comes from elsewhere.
	image   *frontend.Image
	product *build.Product
	config  []byte

	// asked is what the frontend was asked that made it; nil for what no frontend has made.
	asked *asked.Request

	mu    sync.Mutex
	done  bool
	chain solver.Ref
}

// solve makes the root file system.
func (r *ref) solve(ctx context.Context, j *build.Job) (solver.Ref, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done {
		return r.chain, nil
	}
	chains, err := j.Solve(ctx, r.root)
	if err != nil {
		return solver.Ref{}, err
	}
	r.chain, r.done = chains[0], true
	return r.chain, nil
}

// files returns the files of the root file system.
func (r *ref) files(ctx context.Context, j *build.Job) (layer.Tree, error) {
	chain, err := r.solve(ctx, j)
	if err != nil {
		return nil, err
	}
	return j.Files(ctx, chain)
}

// result is what a frontend returns: root file systems, and what is known of them.
type result struct {
	// single is one root file system; nil where there are several, by names, or none.
	single   *ref
	refs     map[string]*ref
	metadata map[string][]byte
	// attested are attestations, by the names of refs, or of the one platform.
	attested map[string][]attested
}

// lowered returns the result of a Dockerfile. byPlatform makes it one by platforms, even if there is only one.
func (b *buildJob) lowered(p *build.Product, byPlatform bool) (*result, error) {
	res := &result{metadata: map[string][]byte{}}
	if byPlatform {
		res.refs = map[string]*ref{}
	}
	var all returned.Index
	for i := range p.Images {
		img := &p.Images[i]
		config, err := json.Marshal(imaging.ConfigOf(img))
		if err != nil {
			return nil, fmt.Errorf("encode the configuration of the image: %w", err)
		}
		r := b.add(&ref{root: img.Root, image: img, product: p, config: config})
		id := img.Platform.String()
		all.Platforms = append(all.Platforms, returned.Platform{ID: id, Platform: ocispec.Platform{
			OS: img.Platform.OS, Architecture: img.Platform.Architecture, Variant: img.Platform.Variant, OSVersion: img.Platform.OSVersion,
		}})
		if byPlatform {
			res.refs[id], res.metadata[returned.KeyConfig+"/"+id] = r, config
		} else {
			res.single, res.metadata[returned.KeyConfig] = r, config
		}
	}
	if p.Epoch != nil {
		res.metadata[keyEpoch] = strconv.AppendInt(nil, *p.Epoch, 10)
	}
	var err error
	res.metadata[returned.KeyPlatforms], err = json.Marshal(all)
	return res, err
}

// add gives a ref an ID, by which the client knows it until the build ends.
func (b *buildJob) add(r *ref) *ref {
	r.id = newID()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held.refs[r.id] = r
	return r
}

// ref returns a ref by its ID; nil for "".
func (b *buildJob) ref(id string) (*ref, error) {
	if id == "" {
		return nil, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	r, ok := b.held.refs[id]
	if !ok {
		return nil, status.Errorf(codes.NotFound, "no such ref: %s", id)
	}
	return r, nil
}

// attested is an attestation of an image of a result, which is in files of a ref.
type attested struct {
	returned.Attestation
	ref *ref
}

// attested reads the attestations of a result, by the names of its refs.
func (b *buildJob) attested(all map[string]*gateway.Attestations) (map[string][]attested, error) {
	out, n := map[string][]attested{}, 0
	for name, list := range all {
		if n += len(list.GetAttestation()); n > returned.MaxAttestations {
			return nil, full("attestations", returned.MaxAttestations)
		}
		for _, a := range list.GetAttestation() {
			if err := returned.Check(a); err != nil {
				return nil, status.Errorf(codes.InvalidArgument, "attestation %q of %q: %v", a.GetPath(), name, err)
			}
			r, err := b.ref(a.Ref.Id)
			if err != nil {
				return nil, err
			}
			files := func(ctx context.Context) (layer.Tree, error) { return r.files(ctx, b.job) }
			out[name] = append(out[name], attested{returned.Attestation{Attestation: a, Files: files}, r})
		}
	}
	return out, nil
}

// product returns what is exported of a result.
func (b *buildJob) product(res *result) (*build.Product, error) {
	p := &build.Product{}
	if res == nil {
		return p, nil
	}
	if v, ok := res.metadata[keyEpoch]; ok {
		epoch, err := strconv.ParseInt(string(v), 10, 64)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "invalid %s %q in the result", keyEpoch, v)
		}
		p.Epoch = &epoch
	}
	known, err := returned.Platforms(res.metadata)
	if err != nil {
		return nil, err
	}
	p.Given.Names = string(res.metadata[keyNames])
	if p.Given.Annotations, err = attrs.Annotations(res.metadata); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "annotations of the result: %v", err)
	}
	if res.single != nil || res.refs == nil && (res.metadata[returned.KeyConfig] != nil || len(known) > 0) {
		var of *ocispec.Platform
		if len(known) == 1 {
			of = &known[0].Platform
		}
		if err := res.add(p, res.single, "", of); err != nil {
			return nil, err
		}
		name := p.Images[0].Platform.String()
		if len(known) == 1 {
			name = known[0].ID
		}
		return p, b.attest(p, res, []string{name})
	}
	p.Given.ByPlatform = len(res.refs) > 0
	names := slices.Sorted(maps.Keys(res.refs))
	if len(known) > 0 {
		if names, err = returned.IDs(known, len(res.refs)); err != nil {
			return nil, err
		}
		p.Given.IDs = names
	}
	for i, name := range names {
		r, ok := res.refs[name]
		switch {
		case ok || len(res.refs) == 0: // an empty root file system
		case len(res.refs) == 1: // it need not have the name of the platform
			for _, r = range res.refs {
			}
		default:
			return nil, status.Errorf(codes.InvalidArgument, "failed to find ref for ID %s", name)
		}
		var of *ocispec.Platform
		if len(known) > 0 {
			of = &known[i].Platform
		}
		if err := res.add(p, r, name, of); err != nil {
			return nil, err
		}
	}
	return p, b.attest(p, res, names)
}

// attest adds to a product the attestations of its images, which have these names in the result.
func (b *buildJob) attest(p *build.Product, res *result, names []string) error {
	for name := range res.attested {
		if !slices.Contains(names, name) {
			return status.Errorf(codes.InvalidArgument, "the result has attestations of %q, and no such platform", name)
		}
	}
	for _, name := range names {
		var of []attestation.Given
		for _, a := range res.attested[name] {
			of = append(of, a.Given())
		}
		p.Given.Attestations = append(p.Given.Attestations, of)
	}
	return nil
}

// add adds an image to a product, by its name in the result. A ref that is nil is an empty root file system.
func (res *result) add(p *build.Product, r *ref, name string, of *ocispec.Platform) error {
	config, err := returned.RawConfig(res.metadata, name)
	if err != nil {
		return err
	}
	if r != nil && r.image != nil && (config == nil || bytes.Equal(config, r.config)) {
		p.Images = append(p.Images, *r.image)
		p.Request, p.Dockerfile, p.Name = r.product.Request, r.product.Dockerfile, r.product.Name
		return nil
	}
	c, base, err := returned.Config(res.metadata, name, of)
	if err != nil {
		return err
	}
	root := scratch()
	if r != nil {
		root = r.root
	}
	p.Images = append(p.Images, imaging.ImageOf(root, c, base))
	return nil
}

// pb returns a result as BuildKit's API has it.
func (b *buildJob) pb(res *result) (*gateway.Result, error) {
	out := &gateway.Result{Metadata: res.metadata}
	for name, list := range res.attested {
		if out.Attestations == nil {
			out.Attestations = map[string]*gateway.Attestations{}
		}
		out.Attestations[name] = &gateway.Attestations{}
		for _, a := range list {
			in, err := b.refPB(a.ref)
			if err != nil {
				return nil, err
			}
			out.Attestations[name].Attestation = append(out.Attestations[name].Attestation, a.Of(in))
		}
	}
	if res.refs == nil {
		single, err := b.refPB(res.single)
		out.Result = &gateway.Result_Ref{Ref: single}
		return out, err
	}
	all := map[string]*gateway.Ref{}
	for name, r := range res.refs {
		var err error
		if all[name], err = b.refPB(r); err != nil {
			return nil, err
		}
	}
	out.Result = &gateway.Result_Refs{Refs: &gateway.RefMap{Refs: all}}
	return out, nil
}

// refPB returns a ref with its definition, which a client can build on.
func (b *buildJob) refPB(r *ref) (*gateway.Ref, error) {
	if r == nil {
		return &gateway.Ref{}, nil
	}
	def, err := llbpb.EncodeFor(r.root, b.request.Session)
	if err != nil {
		return nil, err
	}
	if r.asked != nil {
		b.made.Made(def, r.asked)
	}
	return &gateway.Ref{Id: r.id, Def: def}, nil
}
