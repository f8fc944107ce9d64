// Package s3 asks services that speak Amazon's S3 for objects. Requests are signed by the AWS SDK; the few that a cache needs are written
// here, since the SDK's own client of S3 compiles regular expressions whenever a program starts.
package s3

import (
	"context"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/cache/remote/bucket"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/fetch"
)

// Options say which bucket, and how it is asked.
type Options struct {
	Bucket, Region string
	// Endpoint is the address of the service; "" for Amazon's in the region.
	Endpoint string
	// PathStyle puts the bucket into the path of addresses, and not before the host.
	PathStyle bool
	// Parallel is how many parts of a large blob are sent at once; DefaultParallel for 0.
	Parallel int
	// AccessKeyID, SecretAccessKey and SessionToken are the credentials; without the first two, those of the environment.
	AccessKeyID, SecretAccessKey, SessionToken string
}

// DefaultParallel and MaxParallel are how many parts of a blob are sent at once.
const (
	DefaultParallel = 4
	MaxParallel     = 32
)

// Bucket is a bucket. It implements bucket.Objects.
type Bucket struct {
	http        *bucket.HTTP
	base        *url.URL // ends with a slash
	path        string   // of the bucket in addresses, "/BUCKET" or ""
	name        string
	region      string
	parallel    int
	credentials *aws.CredentialsCache
	signer      *v4.Signer
}

// Check returns what is wrong with the options.
func (o Options) Check() error {
	if err := checkBucket(o.Bucket); err != nil {
		return err
	}
	if o.Region == "" || strings.Trim(o.Region, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return fmt.Errorf("region=%s is no region, such as us-east-1", o.Region)
	}
	if (o.AccessKeyID == "") != (o.SecretAccessKey == "") {
		return errors.New("access_key_id and secret_access_key are given together")
	}
	if o.SessionToken != "" && o.AccessKeyID == "" {
		return errors.New("session_token goes with access_key_id and secret_access_key")
	}
	if o.Parallel < 0 || o.Parallel > MaxParallel {
		return fmt.Errorf("%d parts at once are not from 1 to %d", o.Parallel, MaxParallel)
	}
	_, err := o.address()
	return err
}

// address returns that of the service.
func (o Options) address() (*url.URL, error) {
	endpoint := o.Endpoint
	if endpoint == "" {
		endpoint = "https://s3." + o.Region + ".amazonaws.com"
		if strings.HasPrefix(o.Region, "cn-") {
			endpoint += ".cn"
		}
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("endpoint_url=%s is not an address such as https://s3.example.com", redacted(endpoint))
	}
	return u, nil
}

// Open returns a bucket. It reads no credentials and makes no request; the error says what is wrong with the options.
func Open(o Options) (*Bucket, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	base, err := o.address()
	if err != nil {
		return nil, err
	}
	if o.Parallel == 0 {
		o.Parallel = DefaultParallel
	}
	b := &Bucket{http: bucket.NewHTTP(), base: base, name: o.Bucket, region: o.Region, parallel: o.Parallel}
	_, notIP := netip.ParseAddr(base.Hostname())
	if o.PathStyle || notIP == nil || strings.Contains(o.Bucket, ".") { // a certificate has no names with further dots
		b.path = "/" + o.Bucket
	} else {
		base.Host = o.Bucket + "." + base.Host
	}
	base.Path = strings.TrimSuffix(base.Path, "/")
	b.signer = v4.NewSigner(func(s *v4.SignerOptions) { s.DisableURIPathEscaping = true })
	b.credentials = aws.NewCredentialsCache(b.provider(o))
	return b, nil
}

// redacted returns an address without the name and password that it may have.
func redacted(address string) string {
	if before, after, ok := strings.Cut(address, "@"); ok {
		scheme, _, _ := strings.Cut(before, "://")
		return scheme + "://…@" + after
	}
	return address
}

// checkBucket returns what is wrong with the name of a bucket (Amazon S3 User Guide, "General purpose bucket naming rules"; older buckets
// have capitals and underscores).
func checkBucket(name string) error {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._"
	if len(name) < 3 || len(name) > 255 || strings.Trim(name, letters) != "" ||
		strings.Trim(name, ".") != name || strings.Contains(name, "..") {
		return fmt.Errorf("bucket=%s is not the name of a bucket", name)
	}
	return nil
}

// Where names the bucket for messages, with the service if that is not Amazon's own.
func (b *Bucket) Where(key string) string {
	s := "s3://" + b.name + "/" + key
	if !strings.HasSuffix(b.base.Hostname(), ".amazonaws.com") && !strings.HasSuffix(b.base.Hostname(), ".amazonaws.com.cn") {
		s += " at " + strings.TrimPrefix(b.base.Host, b.name+".") + b.base.Path
	}
	return s
}

// Close closes connections that are not in use.
func (b *Bucket) Close() error { return b.http.Close() }

// request is one request, which may be made several times.
type request struct {
	method string
	key    string // "" for the bucket itself
	query  url.Values
	header http.Header
	open   func() (io.ReadCloser, error) // nil for no body
	size   int64                         // of the body, in bytes
	sha256 string                        // of the body, in hexadecimal digits
	work   bool                          // the service has to move bytes before it answers
}

// emptySHA256 is the digest of no bytes.
const emptySHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// escape writes a key as S3 wants it in addresses and signatures: every byte but unreserved ones and slashes is escaped.
func escape(key string) string {
	var s strings.Builder
	for i := range len(key) {
		switch c := key[i]; {
		case 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~/", c) >= 0:
			s.WriteByte(c)
		default:
			fmt.Fprintf(&s, "%%%02X", c)
		}
	}
	return s.String()
}

// once makes a request once. The body of the answer must be closed.
func (b *Bucket) once(ctx context.Context, r request) (*http.Response, error) {
	creds, err := b.credentials.Retrieve(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if errors.Is(err, ErrNoCredentials) {
			err = ErrNoCredentials // without what the SDK says of its own
		}
		return nil, fmt.Errorf("find credentials for S3: %w", err)
	}
	u := *b.base
	u.Path = b.base.Path + b.path + "/" + r.key
	u.RawPath = escape(u.Path)
	u.RawQuery = strings.ReplaceAll(r.query.Encode(), "+", "%20")
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for name, values := range r.header {
		req.Header[name] = values
	}
	sum := emptySHA256
	if r.open != nil {
		if req.Body, err = r.open(); err != nil {
			return nil, err
		}
		req.ContentLength, sum = r.size, r.sha256
		if r.size == 0 {
			req.Body.Close()
			req.Body = http.NoBody
		}
	}
	req.Header.Set("X-Amz-Content-Sha256", sum)
	if err := b.signer.SignHTTP(ctx, creds, req, sum, "s3", b.region, time.Now()); err != nil {
		return nil, fmt.Errorf("sign a request to S3: %w", err)
	}
	do := b.http.Do
	if r.work {
		do = b.http.Work
	}
	resp, err := do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, b.failure(resp, r)
	}
	return resp, nil
}

// do makes a request, again if that may help, and reads what it is answered.
func (b *Bucket) do(ctx context.Context, r request) (http.Header, []byte, error) {
	var header http.Header
	var data []byte
	err := b.http.Patience().Retry(ctx, func() error {
		resp, err := b.once(ctx, r)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		header = resp.Header
		if r.method == http.MethodHead {
			return nil
		}
		if data, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1)); err != nil {
			return err
		}
		if len(data) > maxAnswer {
			return fetch.Invalid("%s sent an answer of more than %d bytes", b.base.Host, maxAnswer)
		}
		return failureInside(resp, data)
	})
	return header, data, err
}

// maxAnswer bounds an answer in bytes that is not an object: a list of 1,000 keys of 1,024 bytes, escaped.
const maxAnswer = 8 << 20

// Stat implements bucket.Objects.
func (b *Bucket) Stat(ctx context.Context, key string) (bucket.Object, error) {
	header, _, err := b.do(ctx, request{method: http.MethodHead, key: key})
	if err != nil {
		return bucket.Object{}, err
	}
	o := bucket.Object{Key: key, ETag: header.Get("ETag")}
	if o.Size, err = strconv.ParseInt(header.Get("Content-Length"), 10, 64); err != nil {
		return o, fetch.Invalid("%s sent no length of %s", b.base.Host, key)
	}
	if o.Modified, err = http.ParseTime(header.Get("Last-Modified")); err != nil {
		return o, fetch.Invalid("%s sent no time of %s", b.base.Host, key)
	}
	return o, nil
}

// Read implements bucket.Objects.
func (b *Bucket) Read(ctx context.Context, key string, offset int64) (io.ReadCloser, error) {
	r := request{method: http.MethodGet, key: key}
	if offset > 0 {
		r.header = http.Header{"Range": {fmt.Sprintf("bytes=%d-", offset)}}
	}
	resp, err := b.once(ctx, r)
	if err != nil {
		return nil, err
	}
	rest := fmt.Sprintf("bytes %d-", offset)
	if offset > 0 && (resp.StatusCode != http.StatusPartialContent || !strings.HasPrefix(resp.Header.Get("Content-Range"), rest)) {
		resp.Body.Close()
		return nil, fetch.Invalid("%s sent another part of %s than the requested one", b.base.Host, key)
	}
	return resp.Body, nil
}

// Write implements bucket.Objects.
func (b *Bucket) Write(ctx context.Context, key string, desc ocispec.Descriptor, open func() (io.ReadCloser, error)) error {
	if desc.Size > partSize {
		return b.writeParts(ctx, key, desc, open)
	}
	_, _, err := b.do(ctx, request{
		method: http.MethodPut, key: key, size: desc.Size, sha256: desc.Digest.Encoded(), header: mediaType(desc),
		open: func() (io.ReadCloser, error) {
			r, err := open()
			if err != nil {
				return nil, err
			}
			return cas.VerifyReader(r, desc, "the blob"), nil
		},
	})
	return err
}

func mediaType(desc ocispec.Descriptor) http.Header {
	if desc.MediaType == "" {
		return nil
	}
	return http.Header{"Content-Type": {desc.MediaType}}
}

// Touch implements bucket.Objects: it copies the object onto itself, which S3 allows where something of it is replaced.
func (b *Bucket) Touch(ctx context.Context, key string) error {
	o, err := b.Stat(ctx, key)
	if err != nil {
		return err
	}
	header := http.Header{
		"X-Amz-Copy-Source":        {escape("/" + b.name + "/" + key)},
		"X-Amz-Metadata-Directive": {"REPLACE"},
		"X-Amz-Meta-Kiln-Touched":  {time.Now().UTC().Format(time.RFC3339)},
	}
	if o.Size > maxCopy {
		return b.touchParts(ctx, o)
	}
	_, _, err = b.do(ctx, request{method: http.MethodPut, key: key, header: header, work: true})
	return err
}

// maxCopy is how many bytes S3 copies in one request.
const maxCopy = 5 << 30

type listing struct {
	Contents []struct {
		Key          string
		Size         int64
		LastModified time.Time
		ETag         string
	}
	EncodingType          string
	IsTruncated           bool
	NextContinuationToken string
}

// decoded returns a key of a list, which not every service encodes.
func decoded(key, encoding string) (string, error) {
	if encoding != "url" {
		return key, nil
	}
	return url.QueryUnescape(key)
}

// maxPages bounds a list, of 1,000 keys a page.
const maxPages = 1000

// List implements bucket.Objects.
func (b *Bucket) List(ctx context.Context, prefix string, f func(bucket.Object) error) error {
	query := url.Values{"list-type": {"2"}, "prefix": {prefix}, "encoding-type": {"url"}}
	for range maxPages {
		_, data, err := b.do(ctx, request{method: http.MethodGet, query: query})
		if err != nil {
			return err
		}
		var l listing
		if err := xml.Unmarshal(data, &l); err != nil {
			return fetch.Invalid("%s sent a list that is not XML: %w", b.base.Host, err)
		}
		for _, o := range l.Contents {
			key, err := decoded(o.Key, l.EncodingType)
			if err != nil || !strings.HasPrefix(key, prefix) {
				return fetch.Invalid("%s lists %q below %q", b.base.Host, fetch.Quote(o.Key), prefix)
			}
			if err := f(bucket.Object{Key: key, Size: o.Size, Modified: o.LastModified, ETag: o.ETag}); err != nil {
				return err
			}
		}
		if !l.IsTruncated || l.NextContinuationToken == "" {
			return nil
		}
		query.Set("continuation-token", l.NextContinuationToken)
	}
	return fmt.Errorf("%s has more than %d objects", b.Where(prefix), maxPages*1000)
}

// Remove implements bucket.Objects.
func (b *Bucket) Remove(ctx context.Context, o bucket.Object) error {
	_, _, err := b.do(ctx, request{method: http.MethodDelete, key: o.Key})
	return err
}

// Error is what S3 answers in place of what was asked for.
type Error struct {
	// Code is S3's name of the error, such as "AccessDenied"; "" where it sends none.
	Code string
	// Advice says what to do about it; "" for nothing.
	Advice string
	// Err is the status, a *fetch.StatusError, or what else is wrong.
	Err error

	absent bool
}

func (e *Error) Error() string {
	if e.Advice != "" {
		return e.Err.Error() + "; " + e.Advice
	}
	return e.Err.Error()
}

// Unwrap returns the status.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether it says that an object does not exist, for fs.ErrNotExist.
func (e *Error) Is(target error) bool { return e.absent && target == fs.ErrNotExist }

// Transient implements the interface of fetch.Transient.
func (e *Error) Transient() bool {
	switch e.Code {
	case "RequestTimeout", "SlowDown", "InternalError", "OperationAborted":
		return true
	}
	status, ok := errors.AsType[*fetch.StatusError](e.Err)
	return ok && status.Transient()
}

// answer is the body of an error (Amazon S3 API Reference, "Error responses").
type answer struct {
	XMLName               xml.Name
	Code, Message, Region string
}

// maxDiagnosis bounds how much of an error is read, in bytes.
const maxDiagnosis = 16 << 10

// failure makes the error of an answer, and closes its body.
func (b *Bucket) failure(resp *http.Response, r request) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxDiagnosis)) // the status says enough
	status := fetch.NewStatusError(resp)
	var a answer
	_ = xml.Unmarshal(text, &a) // as well
	if a.Code != "" {
		status.Text = fetch.Quote(strings.Trim(a.Code+": "+a.Message, ": "))
	}
	e := &Error{Code: a.Code, Err: status}
	region := resp.Header.Get("X-Amz-Bucket-Region")
	if region == "" {
		region = a.Region
	}
	switch {
	case a.Code == "NoSuchBucket":
		e.Advice = fmt.Sprintf("create the bucket %s, or name another one with bucket=", b.name)
	case resp.StatusCode == http.StatusNotFound && r.key != "":
		e.absent = true
	case region != "" && region != b.region:
		e.Advice = fmt.Sprintf("the bucket is in another region: write region=%s", fetch.Quote(region))
	case resp.StatusCode/100 == 3:
		e.Advice = "the bucket is at another address: check region and endpoint_url"
	case resp.StatusCode == http.StatusForbidden || resp.StatusCode == http.StatusUnauthorized:
		e.Advice = "check the credentials, and that they may list the bucket, and read and write its objects"
	}
	return e
}

// failureInside returns the error that S3 sends after it has begun to answer with success, as it does for what takes long.
func failureInside(resp *http.Response, data []byte) error {
	var a answer
	if len(data) == 0 || len(data) > maxDiagnosis || xml.Unmarshal(data, &a) != nil || a.XMLName.Local != "Error" {
		return nil
	}
	return &Error{Code: a.Code, Err: fmt.Errorf("%s answered %s", resp.Request.URL.Host, fetch.Quote(a.Code+": "+a.Message))}
}

func hexOf(sum [32]byte) string { return hex.EncodeToString(sum[:]) }
