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
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/daemon/asked"
	"github.com/kilnbuild/kiln/daemon/llbpb"
	"github.com/kilnbuild/kiln/frontend"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
)

// Keys of the metadata of results, as BuildKit's frontends write them.
const (
	keyConfig    = "containerimage.config"
	keyPlatforms = "refs.platforms"
	keyEpoch     = "source.date.epoch"
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
}

// platforms are the platforms of the refs of a result, as its metadata have them.
type platforms struct {
	Platforms []platform
}

type platform struct {
	ID       string
	Platform ocispec.Platform
}

// lowered returns the result of a Dockerfile. byPlatform makes it one by platforms, even if there is only one.
func (b *buildJob) lowered(p *build.Product, byPlatform bool) (*result, error) {
	res := &result{metadata: map[string][]byte{}}
	if byPlatform {
		res.refs = map[string]*ref{}
	}
	var all platforms
	for i := range p.Images {
		img := &p.Images[i]
		config, err := json.Marshal(build.ConfigOf(img))
		if err != nil {
			return nil, fmt.Errorf("encode the configuration of the image: %w", err)
		}
		r := b.add(&ref{root: img.Root, image: img, product: p, config: config})
		id := img.Platform.String()
		all.Platforms = append(all.Platforms, platform{ID: id, Platform: ocispec.Platform{
			OS: img.Platform.OS, Architecture: img.Platform.Architecture, Variant: img.Platform.Variant, OSVersion: img.Platform.OSVersion,
		}})
		if byPlatform {
			res.refs[id], res.metadata[keyConfig+"/"+id] = r, config
		} else {
			res.single, res.metadata[keyConfig] = r, config
		}
	}
	if p.Epoch != nil {
		res.metadata[keyEpoch] = strconv.AppendInt(nil, *p.Epoch, 10)
	}
	var err error
	res.metadata[keyPlatforms], err = json.Marshal(all)
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

// maxRepeated is how many platforms of a result may be repeated.
const maxRepeated = 16

// product returns what is exported of a result.
func (res *result) product() (*build.Product, error) {
	if res == nil {
		return &build.Product{}, nil
	}
	p := &build.Product{}
	if v, ok := res.metadata[keyEpoch]; ok {
		epoch, err := strconv.ParseInt(string(v), 10, 64)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "invalid %s %q in the result", keyEpoch, v)
		}
		p.Epoch = &epoch
	}
	var known platforms
	if v, ok := res.metadata[keyPlatforms]; ok {
		if err := json.Unmarshal(v, &known); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "failed to parse platforms passed to exporter: %v", err)
		}
	}
	if res.single != nil || res.refs == nil && (res.metadata[keyConfig] != nil || len(known.Platforms) > 0) {
		var of *ocispec.Platform
		if len(known.Platforms) == 1 {
			of = &known.Platforms[0].Platform
		}
		return p, add(p, res.single, res.metadata[keyConfig], of)
	}
	p.ByPlatform = len(res.refs) > 0
	names := slices.Sorted(maps.Keys(res.refs))
	if len(known.Platforms) > 0 {
		names = nil
		for _, k := range known.Platforms {
			names = append(names, k.ID)
		}
		if len(names) > len(res.refs)+maxRepeated { // a client may name a platform twice
			return nil, status.Errorf(codes.InvalidArgument, "the result has %d platforms, and %d refs", len(names), len(res.refs))
		}
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
		config := res.metadata[keyConfig+"/"+name]
		if config == nil && len(names) == 1 {
			config = res.metadata[keyConfig]
		}
		var of *ocispec.Platform
		if len(known.Platforms) > 0 {
			of = &known.Platforms[i].Platform
		}
		if err := add(p, r, config, of); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// add adds an image to a product. A ref that is nil is an empty root file system.
func add(p *build.Product, r *ref, config []byte, of *ocispec.Platform) error {
	if r != nil && r.image != nil && (config == nil || bytes.Equal(config, r.config)) {
		p.Images = append(p.Images, *r.image)
		p.Request, p.Dockerfile, p.Name = r.product.Request, r.product.Dockerfile, r.product.Name
		return nil
	}
	var c dockerspec.DockerOCIImage
	if config != nil {
		if err := json.Unmarshal(config, &c); err != nil {
			return status.Errorf(codes.InvalidArgument, "invalid image config: %v", err)
		}
	}
	switch {
	case of != nil:
		c.Platform = *of
	case c.OS == "":
		host := llb.Host()
		c.Platform = ocispec.Platform{OS: host.OS, Architecture: host.Architecture, Variant: host.Variant}
	}
	var root llb.Output
	if r != nil {
		root = r.root
	} else {
		root = scratch()
	}
	p.Images = append(p.Images, build.ImageOf(root, &c))
	return nil
}

// pb returns a result as BuildKit's API has it.
func (b *buildJob) pb(res *result) (*gateway.Result, error) {
	out := &gateway.Result{Metadata: res.metadata}
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
