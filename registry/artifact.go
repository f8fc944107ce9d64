package registry

import (
	"context"
	"encoding/json"
	"errors"
	"github.com/kilnbuild/kiln/internal/cas"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/imagename"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// What is not an image is read from the registry itself, never from a mirror, which may have what was there earlier.

// Manifest returns the manifest that ref names, whatever its media type. Errors are *Error, or those of ctx.
func (c *Client) Manifest(ctx context.Context, ref string) ([]byte, error) {
	r, h, err := c.own(ref)
	if err != nil {
		return nil, err
	}
	var data []byte
	err = c.patience.Retry(ctx, func() error {
		ep := endpoint{host: h}
		resp, err := c.get(ctx, h, request{
			method: http.MethodGet,
			url:    ep.url(r.Repository, "manifests", identifier(r)),
			header: http.Header{"Accept": {ocispec.MediaTypeImageManifest + ", " + ocispec.MediaTypeImageIndex + ", " + dockerManifestTypes}},
			scopes: []string{ep.pullScope(r.Repository)},
		})
		if err != nil {
			return err
		}
		fetch.Decode(resp)
		defer resp.Body.Close()
		data, err = readDocument(resp, ep, ocispec.Descriptor{Digest: r.Digest, Size: -1})
		return err
	})
	return data, c.explain("pull", r, h, err)
}

const dockerManifestTypes = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json"

// PutManifest puts a manifest, whose blobs the registry has, under the tag of ref. Errors are *Error, or those of ctx.
func (c *Client) PutManifest(ctx context.Context, ref, mediaType string, data []byte) error {
	r, err := imagename.Parse(ref)
	if err != nil {
		return err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return c.pushManifest(ctx, r, identifier(r), pushManifest{desc, data})
}

// PutBlob sends a blob to the repository of ref, unless it is there. With absent, which says that it hardly is, that is not asked first:
// it saves a round trip. open may be called several times. Errors are *Error, or those of ctx or open.
func (c *Client) PutBlob(ctx context.Context, ref string, desc ocispec.Descriptor, absent bool, open func() (io.ReadCloser, error)) error {
	r, err := imagename.Parse(ref)
	if err != nil {
		return err
	}
	return c.pushBlob(ctx, openBlob(open), r, desc, absent, PushOptions{Progress: silent{}})
}

// openBlob is a Blobs with one blob.
type openBlob func() (io.ReadCloser, error)

func (o openBlob) Open(ocispec.Descriptor) (io.ReadCloser, error) { return o() }

// The limits of a list of tags: how many pages of how many.
const (
	maxTagPages = 20
	tagPage     = 500
)

// Tags returns the tags of the repository of ref that begin with prefix. A registry that does not list tags has none. Errors are *Error, or
// those of ctx.
func (c *Client) Tags(ctx context.Context, ref, prefix string) ([]string, error) {
	r, h, err := c.own(ref)
	if err != nil {
		return nil, err
	}
	ep := endpoint{host: h}
	var found []string
	// Tags come in lexical order, so the list begins just before the prefix (distribution-spec, "Listing Tags").
	last := prefix[:max(0, len(prefix)-1)]
	for range maxTagPages {
		page, more, err := c.tagPage(ctx, ep, r, last)
		if status, ok := errors.AsType[*fetch.StatusError](err); ok && (status.Status == http.StatusNotFound || status.Status == http.StatusMethodNotAllowed) {
			return found, nil
		}
		if err != nil {
			return nil, c.explain("pull", r, h, err)
		}
		for _, tag := range page {
			if strings.HasPrefix(tag, prefix) {
				found = append(found, tag)
			}
			last = tag
		}
		if !more || len(page) == 0 || last > prefix && !strings.HasPrefix(last, prefix) {
			break
		}
	}
	return found, nil
}

func (c *Client) tagPage(ctx context.Context, ep endpoint, r imagename.Name, last string) (page []string, more bool, err error) {
	u := ep.url(r.Repository, "tags", "list")
	query := url.Values{"n": {strconv.Itoa(tagPage)}}
	if last != "" {
		query.Set("last", last)
	}
	u.RawQuery = query.Encode()
	err = c.patience.Retry(ctx, func() error {
		resp, err := c.get(ctx, ep.host, request{method: http.MethodGet, url: u, scopes: []string{ep.pullScope(r.Repository)}})
		if err != nil {
			return err
		}
		fetch.Decode(resp)
		defer resp.Body.Close()
		var body struct{ Tags []string }
		if err := json.NewDecoder(io.LimitReader(resp.Body, maxTagList)).Decode(&body); err != nil {
			return fetch.Invalid("the list of tags: %w", err)
		}
		page, more = body.Tags, resp.Header.Get("Link") != ""
		return nil
	})
	return page, more, err
}

// maxTagList bounds one page of tags, in bytes.
const maxTagList = 1 << 20

// RemoveManifest removes a manifest of the repository of ref, with all its tags. Not every registry allows it. Errors are *Error, or those
// of ctx.
func (c *Client) RemoveManifest(ctx context.Context, ref string, d digest.Digest) error {
	r, h, err := c.own(ref)
	if err != nil {
		return err
	}
	ep := endpoint{host: h}
	err = c.patience.Retry(ctx, func() error {
		resp, err := h.do(ctx, request{
			method: http.MethodDelete,
			url:    ep.url(r.Repository, "manifests", string(d)),
			scopes: []string{"repository:" + r.Repository + ":delete"},
		})
		if err != nil {
			return err
		}
		if !succeeded(resp) {
			return fetch.NewStatusError(resp)
		}
		fetch.Drain(resp)
		return nil
	})
	return c.explain("push", r, h, err)
}

// own returns the host of a reference's registry.
func (c *Client) own(ref string) (imagename.Name, *host, error) {
	r, err := imagename.Parse(ref)
	if err != nil {
		return r, nil, err
	}
	h, err := c.host(r.Registry)
	return r, h, err
}

// FindBlob returns the descriptor of a blob of the repository of ref, without a media type. See Client.Resolve for mirrors and short names.
// Errors are *Error, or those of ctx.
func (c *Client) FindBlob(ctx context.Context, ref string, d digest.Digest) (ocispec.Descriptor, error) {
	r, err := imagename.Parse(ref)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if _, err := cas.ParseDigest(string(d)); err != nil {
		return ocispec.Descriptor{}, err
	}
	endpoints, err := c.endpoints(r.Registry)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var all failures
	for _, ep := range endpoints {
		size := int64(-1)
		err := c.patience.Retry(ctx, func() error {
			resp, err := c.get(ctx, ep.host, request{
				method: http.MethodHead, url: ep.url(r.Repository, "blobs", string(d)), scopes: []string{ep.pullScope(r.Repository)},
			})
			if err != nil {
				return err
			}
			resp.Body.Close()
			if size = resp.ContentLength; size < 0 {
				return fetch.Invalid("%s does not say how large blob %s is", ep.addr, d)
			}
			return nil
		})
		if err == nil {
			return ocispec.Descriptor{Digest: d, Size: size}, nil
		}
		if ctx.Err() != nil {
			return ocispec.Descriptor{}, context.Cause(ctx)
		}
		all = append(all, failure{ep, err})
	}
	return ocispec.Descriptor{}, c.explainAll("pull", r, all)
}
