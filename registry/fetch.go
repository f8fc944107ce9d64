package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/imagename"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Fetch opens a blob of the repository of ref. The reader returns io.EOF only if the bytes match desc. It reads at most desc.Size+1 bytes,
// and ignores desc.URLs and desc.Data. After a broken connection it continues where it was, at another mirror if necessary. Errors are
// *Error, or those of ctx.
//
// If a host sent other content, which is only known at the end, the next Fetch of the blob asks another host.
func (c *Client) Fetch(ctx context.Context, ref string, desc ocispec.Descriptor) (io.ReadCloser, error) {
	r, err := imagename.Parse(ref)
	if err != nil {
		return nil, err
	}
	if _, err := cas.ParseDigest(string(desc.Digest)); err != nil {
		return nil, err
	}
	if desc.Size < 0 {
		return nil, fmt.Errorf("fetch blob %s: its size is %d", desc.Digest, desc.Size)
	}
	all, err := c.endpoints(r.Registry)
	if err != nil {
		return nil, err
	}
	b := &blobReader{ctx: ctx, client: c, ref: r, desc: desc, endpoints: c.withoutBad(all, desc), tries: fetch.Tries{Patience: c.patience}}
	if err := b.connect(); err != nil {
		return nil, err
	}
	return &verifiedBlob{cas.VerifyReader(b, desc, "pull "+r.Name()), b}, nil
}

// withoutBad leaves out the endpoints that sent something else for the blob, or none when all did: then they are asked anew.
func (c *Client) withoutBad(all []endpoint, desc ocispec.Descriptor) []endpoint {
	c.mu.Lock()
	defer c.mu.Unlock()
	var good []endpoint
	for _, ep := range all {
		if !c.bad[badBlob{ep.name, desc.Digest}] {
			good = append(good, ep)
		}
	}
	if len(good) > 0 {
		return good
	}
	for _, ep := range all {
		delete(c.bad, badBlob{ep.name, desc.Digest})
	}
	return all
}

// verifiedBlob records which host sent other content.
type verifiedBlob struct {
	io.ReadCloser
	blob *blobReader
}

func (v *verifiedBlob) Read(p []byte) (int, error) {
	n, err := v.ReadCloser.Read(p)
	if _, ok := errors.AsType[*cas.MismatchError](err); ok {
		b := v.blob
		b.client.mu.Lock()
		for _, ep := range b.used {
			b.client.bad[badBlob{ep.name, b.desc.Digest}] = true
		}
		b.client.mu.Unlock()
		err = b.client.explain("pull", b.ref, b.endpoints[b.at].host, err)
	}
	return n, err
}

// blobReader reads a blob's bytes from one endpoint after another until it has all.
type blobReader struct {
	ctx       context.Context
	client    *Client
	ref       imagename.Name
	desc      ocispec.Descriptor
	endpoints []endpoint
	at        int // the endpoint that is being asked
	tries     fetch.Tries
	failures  failures
	used      []endpoint // those that bytes came from
	body      io.ReadCloser
	offset    int64 // of the next byte
	since     int   // bytes since the last progress that counted
	noRange   bool  // the endpoint cannot begin in the middle
}

func (b *blobReader) Read(p []byte) (int, error) {
	for {
		if b.body == nil {
			if err := b.connect(); err != nil {
				return 0, err
			}
		}
		n, err := b.body.Read(p)
		b.offset += int64(n)
		if b.since += n; b.since >= fetch.MinProgress {
			b.since = 0
			b.tries.Progress()
		}
		if n > 0 {
			return n, nil // the error comes again
		}
		if err == nil {
			continue
		}
		if b.offset >= b.desc.Size {
			return 0, io.EOF // how the connection ends is no matter now
		}
		if err == io.EOF {
			err = b.broken(fmt.Errorf("%w after %d of %d bytes", io.ErrUnexpectedEOF, b.offset, b.desc.Size))
		}
		b.body.Close()
		b.body = nil
		if err := b.failed(err); err != nil {
			return 0, err
		}
	}
}

func (b *blobReader) Close() error {
	if b.body == nil {
		return nil
	}
	return b.body.Close()
}

// connect opens the body at the offset.
func (b *blobReader) connect() error {
	for {
		err := b.request(b.endpoints[b.at])
		if err == nil {
			b.used = append(b.used, b.endpoints[b.at])
			return nil
		}
		if err := b.failed(err); err != nil {
			return err
		}
	}
}

// failed decides after err how to go on: it returns nil to try again, here or at the next endpoint.
func (b *blobReader) failed(err error) error {
	err = b.tries.Again(b.ctx, err)
	if err == nil {
		return nil
	}
	if b.ctx.Err() != nil {
		return err
	}
	b.failures = append(b.failures, failure{b.endpoints[b.at], err})
	if b.at+1 == len(b.endpoints) {
		return b.client.explainAll("pull", b.ref, b.failures)
	}
	b.at++
	b.tries, b.noRange = fetch.Tries{Patience: b.client.patience}, false
	return nil
}

func (b *blobReader) request(ep endpoint) error {
	r := request{
		method: http.MethodGet,
		url:    ep.url(b.ref.Repository, "blobs", string(b.desc.Digest)),
		scopes: []string{ep.pullScope(b.ref.Repository)},
		work:   true,
	}
	ranged := b.offset > 0 && !b.noRange
	if ranged {
		r.header = http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", b.offset, b.desc.Size-1)}}
	}
	resp, err := b.client.get(b.ctx, ep.host, r)
	if s, ok := errors.AsType[*fetch.StatusError](err); ok && s.Status == http.StatusRequestedRangeNotSatisfiable && ranged {
		b.noRange = true
		return b.broken(errors.New("it sends no part of the blob"))
	}
	if err != nil {
		return err
	}
	if fetch.Encoded(resp) && resp.ContentLength != b.desc.Size {
		fetch.Decode(resp)
		b.noRange = true // a part would be one of the compressed bytes
	}
	begins := int64(0)
	if resp.StatusCode == http.StatusPartialContent {
		if !strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", b.offset)) {
			resp.Body.Close()
			b.noRange = true
			return b.broken(errors.New("it sent another part of the blob than the requested one"))
		}
		begins = b.offset
	}
	if begins < b.offset { // the server knows no ranges: what is known already comes once more
		if _, err := io.CopyN(io.Discard, resp.Body, b.offset); err != nil {
			resp.Body.Close()
			return b.broken(err)
		}
	}
	b.body = resp.Body
	return nil
}

// broken returns the error of an answer of the current endpoint that cannot be used, but another may.
func (b *blobReader) broken(err error) error {
	return &fetch.ConnectionError{Host: b.endpoints[b.at].addr, Doing: "read from", Err: err}
}

// failure is what went wrong at one endpoint.
type failure struct {
	endpoint endpoint
	err      error
}

type failures []failure

// explainAll makes one error of what went wrong at each endpoint: the registry's own, with the mirrors' in words.
func (c *Client) explainAll(op string, ref imagename.Name, all failures) error {
	main := len(all) - 1
	for i, f := range all {
		if f.endpoint.mirror == "" {
			main = i
		}
	}
	err := c.explain(op, ref, all[main].endpoint.host, all[main].err)
	for i, f := range all {
		if i != main {
			err = fmt.Errorf("%w (mirror %s: %w)", err, f.endpoint.name, f.err)
		}
	}
	return err
}
