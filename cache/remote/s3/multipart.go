package s3

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/kilnbuild/kiln/cache/remote/bucket"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/fetch"
)

const (
	// partSize is how many bytes a part of a blob has. A blob with no more is sent in one request.
	partSize = 16 << 20
	// maxParts is how many parts S3 takes.
	maxParts = 10_000
	// abortTimeout is how long S3 may take to forget an upload that has failed.
	abortTimeout = 5 * time.Second
)

// part is one of an upload, as it is completed.
type part struct {
	PartNumber int
	ETag       string
}

// writeParts sends a blob in parts, which are held in memory while they are sent. An upload that fails is aborted.
func (b *Bucket) writeParts(ctx context.Context, key string, desc ocispec.Descriptor, open func() (io.ReadCloser, error)) error {
	if desc.Size > partSize*maxParts {
		return fmt.Errorf("a layer has %d bytes, and the limit of a cache in S3 is %d", desc.Size, int64(partSize*maxParts))
	}
	source, err := open()
	if err != nil {
		return err
	}
	defer source.Close()
	return b.inParts(ctx, key, mediaType(desc), func(ctx context.Context, send func(int, request)) error {
		return sendParts(ctx, cas.VerifyReader(source, desc, "the blob"), send)
	})
}

// inParts begins an upload, calls parts, which calls send for each part, and waits there while too many are on their way, and completes the
// upload.
func (b *Bucket) inParts(
	ctx context.Context, key string, header http.Header, parts func(context.Context, func(int, request)) error,
) (err error) {
	_, data, err := b.do(ctx, request{method: http.MethodPost, key: key, query: url.Values{"uploads": {""}}, header: header})
	if err != nil {
		return err
	}
	var begun struct{ UploadId string }
	if xml.Unmarshal(data, &begun) != nil || begun.UploadId == "" {
		return fetch.Invalid("%s began an upload and sent no UploadId", b.base.Host)
	}
	query := url.Values{"uploadId": {begun.UploadId}}
	defer func() {
		if err != nil {
			b.abort(ctx, key, begun.UploadId)
		}
	}()
	all, err := b.sent(ctx, key, begun.UploadId, parts)
	if err != nil {
		return err
	}
	text, err := xml.Marshal(struct {
		XMLName xml.Name `xml:"CompleteMultipartUpload"`
		Part    []part
	}{Part: all})
	if err != nil {
		return err
	}
	_, _, err = b.do(ctx, request{
		method: http.MethodPost, key: key, query: query, work: true,
		open: bucket.Bytes(text), size: int64(len(text)), sha256: hexOf(sha256.Sum256(text)),
	})
	return err
}

// sent sends the parts of an upload, and returns them in order.
func (b *Bucket) sent(ctx context.Context, key, upload string, parts func(context.Context, func(int, request)) error) ([]part, error) {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(b.parallel)
	sent := make(chan part, maxParts)
	err := parts(gctx, func(number int, r request) {
		g.Go(func() error {
			r.method, r.key = http.MethodPut, key
			r.query = url.Values{"uploadId": {upload}, "partNumber": {strconv.Itoa(number)}}
			header, data, err := b.do(gctx, r)
			if err != nil {
				return err
			}
			p := part{number, header.Get("ETag")}
			if r.open == nil { // of a copy
				if err := xml.Unmarshal(data, &p); err != nil {
					return fetch.Invalid("%s copied a part and sent no ETag", b.base.Host)
				}
			}
			sent <- p
			return nil
		})
	})
	if failed := g.Wait(); failed != nil {
		err = failed
	}
	close(sent)
	if err != nil {
		return nil, err
	}
	var all []part
	for p := range sent {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b part) int { return cmp.Compare(a.PartNumber, b.PartNumber) })
	return all, nil
}

// sendParts reads source to its end, which checks it, and sends it. A part is read when there is room to send it.
func sendParts(ctx context.Context, source io.Reader, send func(int, request)) error {
	for number := 1; ctx.Err() == nil; number++ {
		buf := make([]byte, partSize)
		n, err := io.ReadFull(source, buf)
		if err == io.EOF {
			return nil
		}
		if err != nil && err != io.ErrUnexpectedEOF {
			return err
		}
		buf = buf[:n]
		send(number, request{open: bucket.Bytes(buf), size: int64(n), sha256: hexOf(sha256.Sum256(buf))})
		if err == io.ErrUnexpectedEOF {
			return nil
		}
	}
	return context.Cause(ctx)
}

// touchParts copies an object onto itself in parts.
func (b *Bucket) touchParts(ctx context.Context, o bucket.Object) error {
	return b.inParts(ctx, o.Key, nil, func(_ context.Context, send func(int, request)) error {
		number := 1
		for at := int64(0); at < o.Size; at += maxCopy {
			send(number, request{work: true, header: http.Header{
				"X-Amz-Copy-Source":       {escape("/" + b.name + "/" + o.Key)},
				"X-Amz-Copy-Source-Range": {fmt.Sprintf("bytes=%d-%d", at, min(at+maxCopy, o.Size)-1)},
			}})
			number++
		}
		return nil
	})
}

// abort makes S3 forget an upload, also where ctx has ended.
func (b *Bucket) abort(ctx context.Context, key, upload string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
	defer cancel()
	_, _, _ = b.do(ctx, request{method: http.MethodDelete, key: key, query: url.Values{"uploadId": {upload}}}) // Clean removes what is left
}

// Clean implements bucket.Objects: it aborts the uploads of writers that were killed.
func (b *Bucket) Clean(ctx context.Context, prefix string, before time.Time) error {
	query := url.Values{"uploads": {""}, "prefix": {prefix}, "encoding-type": {"url"}}
	for range maxPages {
		_, data, err := b.do(ctx, request{method: http.MethodGet, query: query})
		if err != nil {
			return err
		}
		var l struct {
			Upload []struct {
				Key, UploadId string
				Initiated     time.Time
			}
			EncodingType                      string
			IsTruncated                       bool
			NextKeyMarker, NextUploadIdMarker string
		}
		if err := xml.Unmarshal(data, &l); err != nil {
			return fetch.Invalid("%s sent a list of uploads that is not XML: %w", b.base.Host, err)
		}
		for _, u := range l.Upload {
			key, err := decoded(u.Key, l.EncodingType)
			if err != nil || !u.Initiated.Before(before) {
				continue
			}
			_, _, err = b.do(ctx, request{method: http.MethodDelete, key: key, query: url.Values{"uploadId": {u.UploadId}}})
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if !l.IsTruncated || l.NextUploadIdMarker == "" {
			return nil
		}
		query.Set("key-marker", l.NextKeyMarker)
		query.Set("upload-id-marker", l.NextUploadIdMarker)
	}
	return nil
}
