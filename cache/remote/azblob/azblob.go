// Package azblob asks Azure Blob Storage for objects.
package azblob

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/cache/remote/bucket"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/fetch"
)

// Options say which container, and how it is asked.
type Options struct {
	// AccountURL is the address of the storage account, "https://ACCOUNT.blob.core.windows.net".
	AccountURL string
	// AccountName is the name of the account; "" for what AccountURL says.
	AccountName string
	Container   string
	// Key is the account's key in base64; without it, the identity of the environment is used.
	Key string
}

// account returns the address of the account, and its name.
func (o Options) account() (u *url.URL, name string, err error) {
	u, err = url.Parse(o.AccountURL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		// The address may have a signature that opens the account.
		return nil, "", errors.New("account_url is not an address such as https://ACCOUNT.blob.core.windows.net, without a query")
	}
	u.Path = strings.TrimSuffix(u.Path, "/")
	if _, err := netip.ParseAddr(u.Hostname()); err == nil || u.Hostname() == "localhost" { // an emulator has it in the path
		name, _, _ = strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	} else {
		name, _, _ = strings.Cut(u.Hostname(), ".")
	}
	if name = cmp.Or(o.AccountName, name); name == "" {
		return nil, "", errors.New("account_url names no storage account")
	}
	return u, name, nil
}

// Check returns what is wrong with the options.
func (o Options) Check() error {
	u, _, err := o.account()
	if err != nil {
		return err
	}
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789-"
	if len(o.Container) < 3 || len(o.Container) > 63 || strings.Trim(o.Container, letters) != "" {
		return fmt.Errorf("container=%s is not the name of a container", o.Container)
	}
	if _, err := base64.StdEncoding.DecodeString(o.Key); err != nil {
		return errors.New("secret_access_key is not base64, as the keys of storage accounts are")
	}
	if o.Key == "" && !isAzure(u) {
		return fmt.Errorf("type=azblob needs secret_access_key=… for %s: the identity of the environment is shown only to Azure's own servers",
			u.Host)
	}
	return nil
}

// Container is a container. It implements bucket.Objects.
type Container struct {
	http   *bucket.HTTP
	client *container.Client
	host   string
	name   string
}

const (
	// partSize is how many bytes a block of a blob has. A blob with no more is sent in one request.
	partSize = 16 << 20
	// parallel is how many blocks are sent at once.
	parallel = 4
	// maxBlocks is how many blocks Azure takes.
	maxBlocks = 50_000
	// maxRetries is how often a request is made again, and maxRetryDelay how long that may take to begin.
	maxRetries    = 4
	maxRetryDelay = 5 * time.Second
)

// Open returns a container. It makes no request; the error says what is wrong with the options.
func Open(o Options) (*Container, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	u, name, err := o.account()
	if err != nil {
		return nil, err
	}
	c := &Container{http: bucket.NewHTTP(), host: u.Host, name: o.Container}
	if u.Path != "" {
		c.host += u.Path
	}
	options := &container.ClientOptions{ClientOptions: azcore.ClientOptions{
		Transport: transport{c.http},
		Telemetry: policy.TelemetryOptions{Disabled: true},
		Retry:     Retries(c.http.Patience()),
	}}
	address := u.JoinPath(o.Container).String()
	if o.Key == "" {
		c.client, err = container.NewClient(address, &identity{http: c.http}, options)
		return c, err
	}
	key, err := container.NewSharedKeyCredential(name, o.Key)
	if err != nil {
		return nil, errors.New("secret_access_key is not the key of a storage account")
	}
	c.client, err = container.NewClientWithSharedKeyCredential(address, key, options)
	return c, err
}

// Retries returns how the SDK makes requests again.
func Retries(p fetch.Patience) policy.RetryOptions {
	return policy.RetryOptions{MaxRetries: maxRetries, RetryDelay: p.Pause, MaxRetryDelay: maxRetryDelay, ShouldRetry: again}
}

// transport is what the SDK makes requests with.
type transport struct{ http *bucket.HTTP }

func (t transport) Do(r *http.Request) (*http.Response, error) { return t.http.Do(r) }

// again reports whether a request is made again. A server that fell silent once is given up.
func again(resp *http.Response, err error) bool {
	if err != nil {
		return fetch.Transient(err) && !errors.Is(err, fetch.ErrStalled)
	}
	return (&fetch.StatusError{Status: resp.StatusCode}).Transient()
}

// Where names the container for messages.
func (c *Container) Where(key string) string { return c.host + "/" + c.name + "/" + key }

// Close closes connections that are not in use.
func (c *Container) Close() error { return c.http.Close() }

// Stat implements bucket.Objects.
func (c *Container) Stat(ctx context.Context, key string) (bucket.Object, error) {
	p, err := c.client.NewBlobClient(key).GetProperties(ctx, nil)
	if err != nil {
		return bucket.Object{}, c.failure(ctx, err)
	}
	return object(key, p.ContentLength, p.LastModified, p.ETag), nil
}

func object(key string, size *int64, modified *time.Time, tag *azcore.ETag) bucket.Object {
	o := bucket.Object{Key: key}
	if size != nil {
		o.Size = *size
	}
	if modified != nil {
		o.Modified = *modified
	}
	if tag != nil {
		o.ETag = string(*tag)
	}
	return o
}

// Read implements bucket.Objects.
func (c *Container) Read(ctx context.Context, key string, offset int64) (io.ReadCloser, error) {
	resp, err := c.client.NewBlobClient(key).DownloadStream(ctx, &blob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: offset}})
	if err != nil {
		return nil, c.failure(ctx, err)
	}
	if offset > 0 && (resp.ContentRange == nil || !strings.HasPrefix(*resp.ContentRange, fmt.Sprintf("bytes %d-", offset))) {
		resp.Body.Close()
		return nil, fetch.Invalid("%s sent another part of %s than the requested one", c.host, key)
	}
	return resp.Body, nil
}

// Write implements bucket.Objects. Blocks that are not committed are no blob, and Azure removes them after a week.
func (c *Container) Write(ctx context.Context, key string, desc ocispec.Descriptor, open func() (io.ReadCloser, error)) error {
	return c.failure(ctx, WriteBlob(ctx, c.client.NewBlockBlobClient(key), desc, open))
}

// WriteBlob sends a blob in blocks, or in one request if it is small. It is there as a whole or not at all, and only with the bytes of
// desc.
func WriteBlob(ctx context.Context, client *blockblob.Client, desc ocispec.Descriptor, open func() (io.ReadCloser, error)) error {
	if desc.Size > partSize*maxBlocks {
		return fmt.Errorf("a layer has %d bytes, and the limit of a cache in Azure's storage is %d", desc.Size, int64(partSize*maxBlocks))
	}
	source, err := open()
	if err != nil {
		return err
	}
	defer source.Close()
	verified := cas.VerifyReader(source, desc, "the blob")
	headers := &blob.HTTPHeaders{}
	if desc.MediaType != "" {
		headers.BlobContentType = &desc.MediaType
	}
	if desc.Size > partSize {
		o := &blockblob.UploadStreamOptions{BlockSize: partSize, Concurrency: parallel, HTTPHeaders: headers}
		_, err := client.UploadStream(ctx, verified, o)
		return err
	}
	data, err := io.ReadAll(verified)
	if err != nil {
		return err
	}
	_, err = client.Upload(ctx, streaming.NopCloser(bytes.NewReader(data)), &blockblob.UploadOptions{HTTPHeaders: headers})
	return err
}

// Touch implements bucket.Objects: setting metadata is a change.
func (c *Container) Touch(ctx context.Context, key string) error {
	now := time.Now().UTC().Format(time.RFC3339)
	_, err := c.client.NewBlobClient(key).SetMetadata(ctx, map[string]*string{"kiln_touched": &now}, nil)
	return c.failure(ctx, err)
}

// maxPages bounds a list, of 5,000 names a page.
const maxPages = 200

// List implements bucket.Objects.
func (c *Container) List(ctx context.Context, prefix string, f func(bucket.Object) error) error {
	pager := c.client.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: &prefix})
	for range maxPages {
		if !pager.More() {
			return nil
		}
		page, err := pager.NextPage(ctx)
		if err != nil {
			return c.failure(ctx, err)
		}
		if page.Segment == nil {
			return fetch.Invalid("%s sent no list", c.host)
		}
		for _, item := range page.Segment.BlobItems {
			if item == nil || item.Name == nil || item.Properties == nil || !strings.HasPrefix(*item.Name, prefix) {
				return fetch.Invalid("%s lists what was not asked for below %q", c.host, prefix)
			}
			p := item.Properties
			if err := f(object(*item.Name, p.ContentLength, p.LastModified, p.ETag)); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("%s has more than %d objects", c.Where(prefix), maxPages*5000)
}

// Remove implements bucket.Objects. What has changed stays.
func (c *Container) Remove(ctx context.Context, o bucket.Object) error {
	tag := azcore.ETag(o.ETag)
	_, err := c.client.NewBlobClient(o.Key).Delete(ctx, &blob.DeleteOptions{
		AccessConditions: &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfMatch: &tag}},
	})
	if r, ok := errors.AsType[*azcore.ResponseError](err); ok && r.StatusCode == http.StatusPreconditionFailed {
		return nil
	}
	return c.failure(ctx, err)
}

// Clean implements bucket.Objects. Azure itself removes blocks that were never committed.
func (c *Container) Clean(context.Context, string, time.Time) error { return nil }

// Error is what Azure answers in place of what was asked for.
type Error struct {
	// Host is the server, and Status that of its answer.
	Host   string
	Status int
	// Code is Azure's name of the error, such as "AuthenticationFailed"; "" where it sends none.
	Code string
	// Advice says what to do about it; "" for nothing.
	Advice string
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s answered %d %s", e.Host, e.Status, http.StatusText(e.Status))
	if e.Code != "" {
		s += ": " + e.Code
	}
	if e.Advice != "" {
		s += "; " + e.Advice
	}
	return s
}

// Is reports whether it says that an object does not exist, for fs.ErrNotExist.
func (e *Error) Is(target error) bool {
	return target == fs.ErrNotExist && e.Status == http.StatusNotFound && (e.Code == "" || e.Code == "BlobNotFound")
}

// Transient implements the interface of fetch.Transient: the SDK has tried again.
func (e *Error) Transient() bool { return false }

// failure makes the error of a request; nil of nil.
func (c *Container) failure(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return Explain(c.host, fmt.Sprintf("create the container %s, or name another one with container=", c.name), err)
}

// Explain makes an *Error of an answer to the SDK, and leaves others; absent is the advice for a container that does not exist.
func Explain(host, absent string, err error) error {
	r, ok := errors.AsType[*azcore.ResponseError](err)
	if !ok {
		return err
	}
	e := &Error{Host: host, Status: r.StatusCode, Code: fetch.Quote(r.ErrorCode)}
	switch {
	case r.ErrorCode == "ContainerNotFound":
		e.Advice = absent
	case r.StatusCode == http.StatusUnauthorized || r.StatusCode == http.StatusForbidden:
		e.Advice = "check the credentials, and that they may list, read and write the container's blobs"
	}
	return e
}
