package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/registry/image"
	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Limits of the list of what refers to one manifest: its pages, and how often a list is written again that others write too.
const (
	maxReferrerPages = 20
	maxListTries     = 5
)

// ReferrersTag is the tag of the list of what refers to a manifest, in registries that make no such list themselves (distribution-spec,
// "Referrers Tag Schema").
func ReferrersTag(d digest.Digest) string { return d.Algorithm().String() + "-" + d.Encoded() }

// Referrers returns the manifests of the repository of ref that say that d is their subject, as its registry lists them.
// What is listed may be untrue. Errors are *Error, or those of ctx.
func (c *Client) Referrers(ctx context.Context, ref string, d digest.Digest) ([]ocispec.Descriptor, error) {
	r, h, err := c.own(ref)
	if err != nil {
		return nil, err
	}
	ep := endpoint{host: h}
	next := ep.url(r.Repository, "referrers", string(d))
	var all []ocispec.Descriptor
	for range maxReferrerPages {
		var page []ocispec.Descriptor
		page, next, err = c.referrers(ctx, ep, r, next)
		if status, ok := errors.AsType[*fetch.StatusError](err); ok && slices.Contains(noReferrers, status.Status) {
			list, err := c.referrersList(ctx, r, d)
			if err != nil {
				return nil, err
			}
			return list.Manifests, nil
		}
		if err != nil {
			return nil, c.explain("pull", r, h, err)
		}
		all = append(all, page...)
		if next == nil {
			return all, nil
		}
	}
	return nil, c.explain("pull", r, h, fetch.Invalid("more than %d pages of manifests refer to %s", maxReferrerPages, d))
}

// noReferrers are what registries without lists of referrers answer.
var noReferrers = []int{http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusBadRequest, http.StatusNotImplemented}

// referrers returns a page of a list, and where the next one is; nil if there is none.
func (c *Client) referrers(
	ctx context.Context, ep endpoint, r imagename.Name, u *url.URL,
) (page []ocispec.Descriptor, next *url.URL, err error) {
	err = c.patience.Retry(ctx, func() error {
		resp, err := c.get(ctx, ep.host, request{
			method: http.MethodGet, url: u, header: http.Header{"Accept": {ocispec.MediaTypeImageIndex}},
			scopes: []string{ep.pullScope(r.Repository)},
		})
		if err != nil {
			return err
		}
		fetch.Decode(resp)
		defer resp.Body.Close()
		data, err := readDocument(resp, ep, ocispec.Descriptor{Size: -1})
		if err != nil {
			return err
		}
		index, err := parseReferrers(data, resp.Header.Get("Content-Type"))
		if err != nil {
			return err
		}
		page = index.Manifests
		next, err = nextPage(ep, u, resp.Header.Get("Link"))
		return err
	})
	return page, next, err
}

// parseReferrers reads an index of what refers to a manifest.
func parseReferrers(data []byte, declared string) (*ocispec.Index, error) {
	doc, err := image.Parse(data, declared)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the list of referrers: %w", err)
	case doc.Index == nil:
		return nil, fetch.Invalid("the list of referrers is not an index")
	}
	return doc.Index, nil
}

// nextPage returns the address of the next page that a Link header has (RFC 8288); nil for none. It is one of the same registry.
func nextPage(ep endpoint, at *url.URL, link string) (*url.URL, error) {
	target, params, ok := strings.Cut(link, ">")
	target, isLink := strings.CutPrefix(strings.TrimSpace(target), "<")
	if !ok || !isLink || !strings.Contains(strings.ReplaceAll(params, `"`, ""), "rel=next") {
		return nil, nil
	}
	next, err := at.Parse(target)
	if err != nil || !ep.Owns(next) {
		return nil, fetch.Invalid("the next page of the list of referrers is at %q", fetch.Quote(target))
	}
	return next, nil
}

// referrersList returns the list that is kept under a tag, which may be empty.
func (c *Client) referrersList(ctx context.Context, r imagename.Name, d digest.Digest) (*ocispec.Index, error) {
	r.Tag, r.Digest = ReferrersTag(d), ""
	data, err := c.Manifest(ctx, r.String())
	if e, ok := errors.AsType[*Error](err); ok && e.Kind == NotFound {
		return &ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}, nil
	}
	if err != nil {
		return nil, err
	}
	list, err := parseReferrers(data, "")
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", r, err)
	}
	return list, nil
}

// PutReferrer puts a manifest with a subject into the repository of ref, whose blobs the registry has. If the registry makes no lists of
// what refers to the subject, the manifest is added to the one that is kept under a tag. Errors are *Error, or those of ctx.
func (c *Client) PutReferrer(ctx context.Context, ref string, m ocispec.Manifest) error {
	r, err := imagename.Parse(ref)
	if err != nil {
		return err
	}
	if m.Subject == nil {
		return fmt.Errorf("push to %s: BUG: a referrer without a subject", r)
	}
	data, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode a manifest: %w", err)
	}
	desc := ocispec.Descriptor{
		MediaType: m.MediaType, Digest: digest.FromBytes(data), Size: int64(len(data)), ArtifactType: m.ArtifactType, Annotations: m.Annotations,
	}
	header, err := c.putManifest(ctx, r, string(desc.Digest), pushManifest{desc, data})
	if err != nil || header.Get("OCI-Subject") != "" {
		return err
	}
	// Others may write the list at the same time, and the last one wins, so it is read again.
	for range maxListTries {
		list, err := c.referrersList(ctx, r, m.Subject.Digest)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(list.Manifests, func(d ocispec.Descriptor) bool { return d.Digest == desc.Digest }) {
			return nil
		}
		list.Manifests = append(list.Manifests, desc)
		text, err := json.Marshal(list)
		if err != nil {
			return fmt.Errorf("encode the list of referrers: %w", err)
		}
		at := imagename.Name{Registry: r.Registry, Repository: r.Repository, Tag: ReferrersTag(m.Subject.Digest)}
		if len(text) > cas.MaxManifest {
			return fmt.Errorf("push %s: the list of referrers has more than %d bytes", at, cas.MaxManifest)
		}
		if err := c.PutManifest(ctx, at.String(), list.MediaType, text); err != nil {
			return err
		}
	}
	list, err := c.referrersList(ctx, r, m.Subject.Digest)
	if err == nil && !slices.ContainsFunc(list.Manifests, func(d ocispec.Descriptor) bool { return d.Digest == desc.Digest }) {
		err = fmt.Errorf("push %s: its list of referrers is changed by others all the time: %s is not in it", r, desc.Digest)
	}
	return err
}
