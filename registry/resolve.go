package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/registry/image"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Resolve finds the image that ref names, at the mirrors of its registry in their order, or at the registry: the first that answers
// decides. Short names are completed as by Docker. An image with a digest that is in the store is not requested again, and of one with a
// tag only the digest is, unless the client is WithCredentials of somebody to whom it was not shown. See image.Source.
func (c *Client) Resolve(ctx context.Context, ref string, platform ocispec.Platform, store *cas.Store) (*image.Image, error) {
	return c.ResolveKnown(ctx, ref, platform, store, nil)
}

// Known returns the bytes of a manifest, index or config with a digest, or nil. Whether they have it is verified by whoever asks.
type Known func(ctx context.Context, d digest.Digest) []byte

// ResolveKnown is Resolve, and requests no document that known returns; it may be nil.
func (c *Client) ResolveKnown(
	ctx context.Context, ref string, platform ocispec.Platform, store *cas.Store, known Known,
) (*image.Image, error) {
	r, err := imagename.Parse(ref)
	if err == nil && r.Digest != "" {
		_, err = cas.ParseDigest(string(r.Digest))
	}
	if err != nil {
		return nil, err
	}
	src := &remote{client: c, ref: r, store: store, known: known}
	named, err := src.target(ctx)
	if err != nil {
		return nil, err
	}
	img, err := image.Resolve(ctx, src, named, platform, store)
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
	known  Known // nil for nobody
	from   *host // the last that answered
}

// stored returns the document with a digest and a size if the store has it, and it may be used; else nil.
func (s *remote) stored(desc ocispec.Descriptor) []byte {
	if !s.store.Has(desc) {
		return nil
	}
	if shown := s.client.shown; shown != nil && !shown.Has(s.ref.Name(), desc.Digest) {
		return nil
	}
	data, err := s.store.ReadAll(desc, 0)
	if err != nil {
		return nil // it is fetched, then
	}
	return data
}

// got notes that the registry has sent a document, which has been verified.
func (s *remote) got(d digest.Digest) error {
	if s.client.shown == nil {
		return nil
	}
	if err := s.client.shown.Add(s.ref.Name(), d); err != nil {
		return fmt.Errorf("note that %s was sent: %w", d, err)
	}
	return nil
}

// local returns the document with a digest, and a size unless that is -1, if the store has it or somebody knows it; else nil.
func (s *remote) local(ctx context.Context, desc ocispec.Descriptor) []byte {
	stored := desc
	if stored.Size < 0 {
		stored.Size, _ = s.store.Stat(desc.Digest) // nothing is stored where that fails
	}
	if data := s.stored(stored); data != nil {
		return data
	}
	if s.known == nil {
		return nil
	}
	data := s.known(ctx, desc.Digest)
	if data == nil || digest.FromBytes(data) != desc.Digest || desc.Size >= 0 && int64(len(data)) != desc.Size {
		return nil
	}
	return data
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
func (s *remote) target(ctx context.Context) (image.Named, error) {
	if d := s.ref.Digest; d != "" {
		if data := s.local(ctx, ocispec.Descriptor{Digest: d, Size: -1}); data != nil {
			if _, err := image.Parse(data, ""); err == nil {
				return image.Named{Ref: s.ref.String(), Target: ocispec.Descriptor{Digest: d, Size: int64(len(data))}, Data: data}, nil
			}
		}
	}
	data, declared, err := s.get(ctx, identifier(s.ref), ocispec.Descriptor{Digest: s.ref.Digest, Size: -1})
	if err != nil {
		return image.Named{}, err
	}
	target := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	return image.Named{Ref: s.ref.String(), Target: target, Data: data, Declared: declared}, nil
}

func (s *remote) Document(ctx context.Context, desc ocispec.Descriptor) ([]byte, string, error) {
	if data := s.local(ctx, desc); data != nil {
		return data, desc.MediaType, nil
	}
	data, declared, err := s.get(ctx, string(desc.Digest), desc)
	if err == nil && declared != "" && image.MediaType(declared) != desc.MediaType {
		return nil, "", fetch.Invalid("manifest %s is listed as %q, and sent as %q", desc.Digest, desc.MediaType, fetch.Quote(declared))
	}
	return data, desc.MediaType, err
}

func (s *remote) Blob(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if data := s.local(ctx, desc); data != nil {
		return data, nil
	}
	data, err := image.ReadBlob(ctx, s.client, s.ref.String(), desc)
	if err == nil {
		err = s.got(desc.Digest)
	}
	return data, err
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
			return data, declared, s.got(digest.FromBytes(data))
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
		r := request{
			url:    ep.url(s.ref.Repository, "manifests", id),
			header: http.Header{"Accept": {image.Accept}},
			scopes: []string{ep.pullScope(s.ref.Repository)},
		}
		if head {
			r.method = http.MethodHead
			resp, err := s.client.get(ctx, ep.host, r)
			status, isStatus := errors.AsType[*fetch.StatusError](err)
			switch {
			case err == nil:
				resp.Body.Close()
				if data, declared = s.described(resp); data != nil {
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

// described returns the document that an answer to HEAD describes, if it is in the store and may be used, and its media type.
func (s *remote) described(resp *http.Response) ([]byte, string) {
	d, err := cas.ParseDigest(resp.Header.Get("Docker-Content-Digest"))
	if err != nil {
		return nil, ""
	}
	size, err := strconv.ParseInt(resp.Header.Get("Content-Length"), 10, 64)
	if err != nil || size < 0 {
		return nil, ""
	}
	return s.stored(ocispec.Descriptor{Digest: d, Size: size}), resp.Header.Get("Content-Type")
}

// readDocument reads a manifest from an answer and verifies it: against want's digest, or without one that of the answer's header, and
// against want's size unless that is -1.
func readDocument(resp *http.Response, ep endpoint, want ocispec.Descriptor) ([]byte, error) {
	limit := int64(cas.MaxManifest)
	if want.Size > limit || resp.ContentLength > limit {
		return nil, image.ErrTooLarge
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, image.ErrTooLarge
	}
	if want.Digest == "" {
		if named := resp.Header.Get("Docker-Content-Digest"); named != "" {
			if want.Digest, err = cas.ParseDigest(named); err != nil {
				return nil, fetch.Invalid("%w", err)
			}
		}
	}
	got := digest.FromBytes(data)
	if want.Digest != "" && got != want.Digest || want.Size >= 0 && int64(len(data)) != want.Size {
		return nil, &cas.MismatchError{Where: ep.addr, Digest: want.Digest, Size: want.Size, GotDigest: got, GotSize: int64(len(data))}
	}
	return data, nil
}
