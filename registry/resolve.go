package registry

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Source is where images come from: a *Client or a *Layout.
type Source interface {
	// Resolve finds the image that ref names for a platform and puts its manifest and config, and the indexes that led
	// there, into the store. The errors are *PlatformError when there is none for the platform, *Error from a registry.
	Resolve(ctx context.Context, ref string, platform ocispec.Platform, store *cas.Store) (*Image, error)
	// Fetch opens one blob of the image that ref names. The reader ends with io.EOF only if the bytes are desc's.
	Fetch(ctx context.Context, ref string, desc ocispec.Descriptor) (io.ReadCloser, error)
}

// Image is an image that was found, for one platform.
type Image struct {
	// Ref is its name in full.
	Ref string
	// Target is what the name stands for: the image's manifest or an index.
	Target ocispec.Descriptor
	// Desc is the image's manifest, with the platform that an index gives for it.
	Desc ocispec.Descriptor
	// Manifest is the manifest; that of a Docker image has Docker's media types.
	Manifest ocispec.Manifest
	// Config is the image's config as it is: it may have fields of Docker's that OCI's do not know.
	Config []byte
	// DiffIDs are the digests of the layers' uncompressed content, one for each of Manifest.Layers.
	DiffIDs []digest.Digest
	// Platform is what the config says that the image is for.
	Platform ocispec.Platform
	// PlatformMatches tells whether that runs on the platform asked for. It can be false only where the name stands for a
	// single image, which is then used all the same, as Docker does.
	PlatformMatches bool
}

// Resolve finds the image that ref names, short names being completed as Docker does, at the mirrors of its registry, in
// order, or at the registry. The first to answer decides. An image that was asked for by digest and is in the store is not
// asked for again, and one by tag only for its digest. See Source.
func (c *Client) Resolve(ctx context.Context, ref string, platform ocispec.Platform, store *cas.Store) (*Image, error) {
	r, err := imagename.Parse(ref)
	if err == nil && r.Digest != "" {
		_, err = cas.ParseDigest(string(r.Digest))
	}
	if err != nil {
		return nil, err
	}
	src := &remote{client: c, ref: r, store: store}
	target, data, declared, err := src.target(ctx)
	if err != nil {
		return nil, err
	}
	img, err := resolve(ctx, src, r.String(), target, data, declared, platform, store)
	if err != nil {
		return nil, src.explain(err)
	}
	return img, nil
}

// remote is a repository as a source of documents.
type remote struct {
	client *Client
	ref    imagename.Name
	store  *cas.Store
	from   *host // the last that answered
}

func (s *remote) explain(err error) error {
	if s.from == nil {
		return err
	}
	return s.client.explain("pull", s.ref, s.from, err)
}

// identifier returns what names the manifest in an address.
func identifier(n imagename.Name) string {
	if n.Digest != "" {
		return string(n.Digest)
	}
	return n.Tag
}

// target gets the document that the reference names.
func (s *remote) target(ctx context.Context) (ocispec.Descriptor, []byte, string, error) {
	if d := s.ref.Digest; d != "" {
		if size, err := s.store.Stat(d); err == nil {
			desc := ocispec.Descriptor{Digest: d, Size: size}
			if data, err := s.store.ReadAll(desc, 0); err == nil {
				if _, err := parseDocument(data, ""); err == nil {
					return desc, data, "", nil
				}
			}
		}
	}
	data, declared, err := s.get(ctx, identifier(s.ref), ocispec.Descriptor{Digest: s.ref.Digest, Size: -1})
	if err != nil {
		return ocispec.Descriptor{}, nil, "", err
	}
	return ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}, data, declared, nil
}

func (s *remote) document(ctx context.Context, desc ocispec.Descriptor) ([]byte, string, error) {
	if s.store.Has(desc) {
		if data, err := s.store.ReadAll(desc, 0); err == nil {
			return data, desc.MediaType, nil
		}
	}
	data, declared, err := s.get(ctx, string(desc.Digest), desc)
	if err == nil && declared != "" && mediaTypeOf(declared) != desc.MediaType {
		return nil, "", invalid("manifest %s is %q where it is listed and %q where it is", desc.Digest, desc.MediaType, fetch.Quote(declared))
	}
	return data, desc.MediaType, err
}

func (s *remote) blob(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	return readBlob(ctx, s.client, s.ref.String(), desc)
}

// readBlob returns the bytes of a small blob. A source that sends other content is asked once more, since a Client then goes
// to another host.
func readBlob(ctx context.Context, src Source, ref string, desc ocispec.Descriptor) ([]byte, error) {
	for last := false; ; last = true {
		rc, err := src.Fetch(ctx, ref, desc)
		if err != nil {
			return nil, err
		}
		data, err := cas.ReadAll(rc, desc, 0)
		rc.Close()
		if _, ok := errors.AsType[*cas.MismatchError](err); !ok || last {
			return data, err
		}
	}
}

// get gets a manifest or index, with the Content-Type that it came with, from the first endpoint that has it.
func (s *remote) get(ctx context.Context, id string, want ocispec.Descriptor) ([]byte, string, error) {
	endpoints, err := s.client.endpoints(s.ref.Registry)
	if err != nil {
		return nil, "", err
	}
	var all failures
	for _, ep := range endpoints {
		data, declared, err := s.getFrom(ctx, ep, id, want)
		if err == nil {
			s.client.answered(s.ref.Registry, ep)
			s.from = ep.host
			return data, declared, nil
		}
		if ctx.Err() != nil {
			return nil, "", context.Cause(ctx)
		}
		all = append(all, failure{ep, err})
	}
	return nil, "", s.client.explainAll("pull", s.ref, all)
}

func (s *remote) getFrom(ctx context.Context, ep endpoint, id string, want ocispec.Descriptor) (data []byte, declared string, err error) {
	head := want.Digest == "" && !s.store.Empty() // for a tag it may be enough to learn the digest
	err = s.client.patience.Retry(ctx, func() error {
		r := request{url: ep.url(s.ref.Repository, "manifests", id), header: http.Header{"Accept": {accept}}, scopes: []string{ep.pullScope(s.ref.Repository)}}
		if head {
			r.method = http.MethodHead
			resp, err := s.client.get(ctx, ep.host, r)
			status, isStatus := errors.AsType[*fetch.StatusError](err)
			switch {
			case err == nil:
				resp.Body.Close()
				if data, declared = s.stored(resp); data != nil {
					return nil
				}
			case !isStatus:
				return err
			case status.Status == http.StatusNotFound || status.Status == http.StatusUnauthorized || status.Status == http.StatusForbidden:
				// The answer to GET says why.
			case fetch.Transient(err):
				return err
			}
			head = false
		}
		r.method = http.MethodGet
		resp, err := s.client.get(ctx, ep.host, r)
		if err != nil {
			return err
		}
		fetch.Decode(resp)
		defer resp.Body.Close()
		declared = resp.Header.Get("Content-Type")
		data, err = readDocument(resp, ep, want)
		return err
	})
	return data, declared, err
}

// stored returns the document that the answer to HEAD speaks of, if it is in the store, and its media type.
func (s *remote) stored(resp *http.Response) ([]byte, string) {
	d, err := cas.ParseDigest(resp.Header.Get("Docker-Content-Digest"))
	if err != nil {
		return nil, ""
	}
	size, err := strconv.ParseInt(resp.Header.Get("Content-Length"), 10, 64)
	if err != nil || size < 0 {
		return nil, ""
	}
	desc := ocispec.Descriptor{Digest: d, Size: size}
	if !s.store.Has(desc) {
		return nil, ""
	}
	data, err := s.store.ReadAll(desc, 0)
	if err != nil {
		return nil, "" // it is fetched, then
	}
	return data, resp.Header.Get("Content-Type")
}

// readDocument reads an answer's manifest and verifies it: against want's digest, or else the one that the answer's header
// names, and want's size if that is not -1.
func readDocument(resp *http.Response, ep endpoint, want ocispec.Descriptor) ([]byte, error) {
	limit := int64(cas.MaxManifest)
	if want.Size > limit || resp.ContentLength > limit {
		return nil, errTooLarge
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, errTooLarge
	}
	if want.Digest == "" {
		if named := resp.Header.Get("Docker-Content-Digest"); named != "" {
			if want.Digest, err = cas.ParseDigest(named); err != nil {
				return nil, invalid("%w", err)
			}
		}
	}
	got := digest.FromBytes(data)
	if want.Digest != "" && got != want.Digest || want.Size >= 0 && int64(len(data)) != want.Size {
		return nil, &cas.MismatchError{Where: ep.addr, Digest: want.Digest, Size: want.Size, GotDigest: got, GotSize: int64(len(data))}
	}
	return data, nil
}

// documents is what resolve reads from.
type documents interface {
	// document returns the bytes of a manifest or index, verified, and the media type that is declared for it.
	document(ctx context.Context, desc ocispec.Descriptor) ([]byte, string, error)
	// blob returns the bytes of a config, verified.
	blob(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)
}

// resolver goes from a name's document to the image for one platform.
type resolver struct {
	src    documents
	ref    string
	want   ocispec.Platform
	store  *cas.Store
	probes int // manifests fetched to find out what they are for
}

func resolve(ctx context.Context, src documents, ref string, target ocispec.Descriptor, data []byte, declared string, want ocispec.Platform, store *cas.Store) (*Image, error) {
	r := &resolver{src: src, ref: ref, want: want, store: store}
	img, err := r.descend(ctx, target, data, declared, 0)
	if err != nil {
		return nil, err
	}
	doc, err := parseDocument(data, declared)
	if err != nil {
		return nil, err
	}
	target.MediaType = doc.mediaType
	img.Target = target
	return img, nil
}

// load gets the document of an entry and goes on in it.
func (r *resolver) load(ctx context.Context, desc ocispec.Descriptor, depth int) (*Image, error) {
	if depth > maxDepth {
		return nil, invalid("its indexes lie more than %d deep", maxDepth)
	}
	data, declared, err := r.src.document(ctx, desc)
	if err != nil {
		return nil, err
	}
	return r.descend(ctx, desc, data, declared, depth)
}

func (r *resolver) descend(ctx context.Context, desc ocispec.Descriptor, data []byte, declared string, depth int) (*Image, error) {
	doc, err := parseDocument(data, declared)
	if err != nil {
		return nil, err
	}
	desc.MediaType = doc.mediaType
	if _, err := r.store.Put(desc.MediaType, data); err != nil {
		return nil, err
	}
	if doc.manifest != nil {
		return r.image(ctx, desc, doc.manifest)
	}
	fitting, unsaid := choose(doc.index.Manifests, r.want)
	if len(fitting) > 0 {
		// If the one that fits is broken that is an error: another would be another image.
		return r.load(ctx, fitting[0], depth+1)
	}
	have := describePlatforms(doc.index.Manifests)
	for _, d := range unsaid {
		if r.probes++; r.probes > maxProbes {
			break
		}
		img, err := r.load(ctx, d, depth+1)
		if other, ok := errors.AsType[*PlatformError](err); ok {
			have = append(have, other.Have...)
			continue
		}
		if err != nil {
			return nil, err
		}
		if img.PlatformMatches {
			return img, nil
		}
		have = append(have, platformName(img.Platform))
	}
	return nil, &PlatformError{Ref: r.ref, Want: platformName(r.want), Have: have}
}

// image reads the config of a manifest and checks that both tell the same.
func (r *resolver) image(ctx context.Context, desc ocispec.Descriptor, m *ocispec.Manifest) (*Image, error) {
	if t := m.Config.MediaType; t != ocispec.MediaTypeImageConfig && t != MediaTypeDockerConfig {
		return nil, invalid("it is no container image: its config is %q", fetch.Quote(t))
	}
	data, err := r.src.blob(ctx, m.Config)
	if err != nil {
		return nil, err
	}
	var config struct {
		ocispec.Platform
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(data, &config); err != nil {
		return nil, invalid("read image config: %w", err)
	}
	img := &Image{Ref: r.ref, Desc: desc, Manifest: *m, Config: data, Platform: config.Platform}
	if n := len(config.RootFS.DiffIDs); n != len(m.Layers) {
		return nil, invalid("read image config: it has %d layers and the manifest %d", n, len(m.Layers))
	}
	for _, s := range config.RootFS.DiffIDs {
		d, err := cas.ParseDigest(s)
		if err != nil {
			return nil, invalid("read image config: %w", err)
		}
		img.DiffIDs = append(img.DiffIDs, d)
	}
	p := config.Platform
	said := desc.Platform != nil && desc.Platform.OS != "" && desc.Platform.Architecture != ""
	if said && p.OS != "" && p.Architecture != "" {
		if a, b := normal(*desc.Platform), normal(p); a.OS != b.OS || a.Architecture != b.Architecture {
			return nil, invalid("manifest %s is for %s where it is listed, and its config says %s", desc.Digest, platformName(*desc.Platform), platformName(p))
		}
	}
	// An index has decided already. A config that says nothing has nothing against it.
	img.PlatformMatches = said || p.OS == "" && p.Architecture == "" || fit(r.want, p) > 0
	if _, err := r.store.Put(m.Config.MediaType, data); err != nil {
		return nil, err
	}
	return img, nil
}
