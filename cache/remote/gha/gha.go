// Package gha keeps caches in the cache of GitHub Actions, by version 2 of its protocol.
package gha

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/cache/remote"
	"github.com/kilnbuild/kiln/cache/remote/azblob"
	"github.com/kilnbuild/kiln/cache/remote/bucket"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/fetch"
)

// version is that of all entries: entries of other versions do not exist for kiln.
const version = "6b696c6e0000000000000000000000000000000000000000000000000000c001"

const (
	// maxBundle bounds a manifest with its records, in bytes.
	maxBundle = 4<<20 + pack.MaxSize
	// maxAnswer bounds an answer of the service, in bytes.
	maxAnswer = 64 << 10
	// uploadTime is how long a writer may take from the creation of an entry for a manifest until it is there; then it gives up.
	uploadTime = 20 * time.Second
	// abandonedTime is after how long a created entry that is not there is taken for that of a writer that was killed.
	abandonedTime = 30 * time.Second
	// pollTime is how often is looked whether it is there.
	pollTime = time.Second
	// maxScope bounds a scope in bytes; a key has at most 512.
	maxScope = 200
)

// Options say how the service is asked.
type Options struct {
	// URL is the address of the service, $ACTIONS_RESULTS_URL, and Token $ACTIONS_RUNTIME_TOKEN.
	URL, Token string
	// Scope is the name of the cache.
	Scope string
	// Timeout bounds each transfer of a blob; 0 for no limit.
	Timeout time.Duration
}

// Check returns what is wrong with the options.
func (o Options) Check() error {
	u, err := url.Parse(o.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" {
		return errors.New("url_v2 is not an address")
	}
	bad := func(r rune) bool { return r <= ' ' || r == ',' || r == '#' || r == 0x7f }
	if o.Scope == "" || len(o.Scope) > maxScope || strings.IndexFunc(o.Scope, bad) >= 0 {
		return fmt.Errorf("scope=%s: a scope has 1 to %d bytes, without spaces, commas and #", o.Scope, maxScope)
	}
	return nil
}

// Cache is the cache of a repository at GitHub, as the job sees it that the token is for. Its entries are never changed, and the creation
// of one that is there is refused, so the number in the key of a manifest makes it a remote.Swapper.
type Cache struct {
	http    *bucket.HTTP
	options Options
	host    string

	abandoned time.Duration // abandonedTime, or less in tests

	mu      sync.Mutex
	numbers map[string]int64         // of manifests that were read, by tag and digest
	records map[digest.Digest][]byte // what came with a manifest, or goes with the next one
}

// Open returns a cache. It makes no request; the options must have passed Check.
func Open(o Options) (*Cache, error) {
	u, err := url.Parse(o.URL)
	if err != nil {
		return nil, errors.New("url_v2 is not an address")
	}
	return &Cache{
		http: bucket.NewHTTP(), options: o, host: u.Host, abandoned: abandonedTime,
		numbers: map[string]int64{}, records: map[digest.Digest][]byte{},
	}, nil
}

func (c *Cache) String() string { return "gha:" + c.options.Scope }

// Close closes connections that are not in use.
func (c *Cache) Close() error { return c.http.Close() }

// Error is what the service answers in place of what was asked for.
type Error struct {
	// Code is that of the protocol, such as "already_exists"; "" where there is none.
	Code string
	// Err is the status, a *fetch.StatusError.
	Err error
}

func (e *Error) Error() string {
	s := e.Err.Error()
	switch e.Code {
	case "permission_denied":
		s += "; the job's token may only read, as it is with pull requests from forks"
	case "unauthenticated":
		s += "; the token is that of a job which has ended, or wrong"
	}
	return s
}

// Unwrap returns the status.
func (e *Error) Unwrap() error { return e.Err }

// call calls a method of the service, again if that may help.
func (c *Cache) call(ctx context.Context, method string, in, out any) error {
	text, err := json.Marshal(in)
	if err != nil {
		return err
	}
	address := strings.TrimSuffix(c.options.URL, "/") + "/twirp/github.actions.results.api.v1.CacheService/" + method
	return c.http.Patience().Retry(ctx, func() error {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(text))
		if err != nil {
			return errors.New("url_v2 is not an address")
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer "+c.options.Token)
		resp, err := c.http.Do(r)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			var a struct{ Code, Msg string }
			_ = json.Unmarshal(data, &a) // the status says enough
			status := fetch.NewStatusError(resp)
			status.Text = fetch.Quote(strings.Trim(a.Code+": "+a.Msg, ": "))
			return &Error{a.Code, status}
		}
		if err := json.Unmarshal(data, out); err != nil {
			return fetch.Invalid("%s sent an answer that is not JSON: %w", c.host, err)
		}
		return nil
	})
}

// find returns the key of the newest entry whose key begins with one, and the address of its bytes. The error wraps fs.ErrNotExist if there
// is none.
func (c *Cache) find(ctx context.Context, key string) (found, address string, err error) {
	var a struct {
		OK      bool   `json:"ok"`
		Address string `json:"signed_download_url"`
		Key     string `json:"matched_key"`
	}
	err = c.call(ctx, "GetCacheEntryDownloadURL", map[string]any{"key": key, "restore_keys": []string{key}, "version": version}, &a)
	if e, ok := errors.AsType[*Error](err); ok && e.Code == "not_found" || err == nil && !a.OK {
		return "", "", &fs.PathError{Op: "find", Path: c.String(), Err: fs.ErrNotExist}
	}
	if err == nil && !strings.HasPrefix(a.Key, key) {
		err = fetch.Invalid("%s sent another entry than the requested one", c.host)
	}
	return a.Key, a.Address, err
}

// errExists says that an entry is there, or that somebody has begun to write it.
var errExists = errors.New("the entry exists")

// write makes an entry. It is there as a whole, or created without being there.
func (c *Cache) write(ctx context.Context, key string, desc ocispec.Descriptor, open func() (io.ReadCloser, error)) error {
	var a struct {
		OK      bool   `json:"ok"`
		Address string `json:"signed_upload_url"`
	}
	err := c.call(ctx, "CreateCacheEntry", map[string]any{"key": key, "version": version}, &a)
	if e, ok := errors.AsType[*Error](err); ok && e.Code == "already_exists" || err == nil && !a.OK {
		return errExists
	}
	if err != nil {
		return err
	}
	client, err := blockblob.NewClientWithNoCredential(a.Address, &blockblob.ClientOptions{ClientOptions: azcore.ClientOptions{
		Transport: c.http, Telemetry: policy.TelemetryOptions{Disabled: true}, Retry: azblob.Retries(c.http.Patience()),
	}})
	if err != nil {
		return fetch.Invalid("%s sent an invalid address for an upload", c.host)
	}
	if err := azblob.WriteBlob(ctx, client, desc, open); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return azblob.Explain(c.host+"'s storage", "", err)
	}
	var done struct {
		OK bool `json:"ok"`
	}
	size := strconv.FormatInt(desc.Size, 10)
	err = c.call(ctx, "FinalizeCacheEntryUpload", map[string]any{"key": key, "size_bytes": size, "version": version}, &done)
	if err == nil && !done.OK {
		err = fetch.Invalid("%s did not take the entry", c.host)
	}
	return err
}

// download returns the bytes at a signed address.
func (c *Cache) download(ctx context.Context, address string) *bucket.Reader {
	return bucket.NewReader(ctx, func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return nil, fetch.Invalid("%s sent an invalid address for a download", c.host)
		}
		if offset > 0 {
			r.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
		}
		resp, err := c.http.Do(r)
		if err != nil {
			return nil, err
		}
		switch {
		case resp.StatusCode == http.StatusNotFound:
			resp.Body.Close()
			return nil, &fs.PathError{Op: "download", Path: c.String(), Err: fs.ErrNotExist}
		case resp.StatusCode/100 != 2:
			return nil, fetch.NewStatusError(resp)
		case offset > 0 && !strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", offset)):
			resp.Body.Close()
			return nil, fetch.Invalid("%s sent another part than the requested one", r.URL.Host)
		}
		return resp.Body, nil
	})
}

// manifest is how the keys of the manifests of a tag begin.
func manifest(tag string) string { return "kiln#" + tag + "#" }

// newest returns the number of the newest manifest of a tag, 0 for none, and the address of its bytes.
func (c *Cache) newest(ctx context.Context, tag string) (int64, string, error) {
	key, address, err := c.find(ctx, manifest(tag))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, "", nil
	}
	if err != nil {
		return 0, "", err
	}
	n, err := strconv.ParseInt(strings.TrimPrefix(key, manifest(tag)), 10, 64)
	if err != nil || n <= 0 {
		return 0, "", fetch.Invalid("%s sent an entry without a number", c.host)
	}
	return n, address, nil
}

// Get implements remote.Repository. The records come with the manifest, so that there is one download.
func (c *Cache) Get(ctx context.Context, tag string) ([]byte, error) {
	n, address, err := c.newest(ctx, tag)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, &fs.PathError{Op: "read", Path: c.String(), Err: fs.ErrNotExist}
	}
	body := c.download(ctx, address)
	defer body.Close()
	bundle, err := io.ReadAll(io.LimitReader(body, maxBundle+1))
	if err != nil {
		return nil, err
	}
	if len(bundle) > maxBundle {
		return nil, fetch.Invalid("the manifest of %s has more than %d bytes", c, maxBundle)
	}
	data, records, _ := bytes.Cut(bundle, []byte("\n"))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.numbers[tag+" "+string(digest.FromBytes(data))] = n
	if len(records) > 0 {
		c.records[digest.FromBytes(records)] = records
	}
	return data, nil
}

// Set implements remote.Repository.
func (c *Cache) Set(ctx context.Context, tag, _ string, data []byte) error {
	for {
		n, _, err := c.newest(ctx, tag)
		if err == nil {
			err = c.put(ctx, tag, n, data)
		}
		if !errors.Is(err, remote.ErrConflict) {
			return err
		}
	}
}

// Swap implements remote.Swapper.
func (c *Cache) Swap(ctx context.Context, tag, _ string, old digest.Digest, data []byte) error {
	c.mu.Lock()
	n, ok := c.numbers[tag+" "+string(old)]
	c.mu.Unlock()
	if old != "" && !ok {
		return remote.ErrConflict // nobody has read it here
	}
	return c.put(ctx, tag, n, data)
}

// put makes the manifest that follows number n. A number that somebody has begun to write is waited for, and then left out: who writes it
// gives up before that.
func (c *Cache) put(ctx context.Context, tag string, n int64, data []byte) error {
	var m ocispec.Manifest
	_ = json.Unmarshal(data, &m) // what names no records has none
	bundle := append(bytes.Clone(data), '\n')
	if len(m.Layers) > 0 {
		c.mu.Lock()
		bundle = append(bundle, c.records[m.Layers[0].Digest]...)
		c.mu.Unlock()
	}
	desc := ocispec.Descriptor{Digest: digest.FromBytes(bundle), Size: int64(len(bundle))}
	for next := n + 1; ; next++ {
		uctx, cancel := context.WithTimeout(ctx, uploadTime)
		err := c.write(uctx, manifest(tag)+strconv.FormatInt(next, 10), desc, bucket.Bytes(bundle))
		late := uctx.Err() != nil && ctx.Err() == nil
		cancel()
		if late {
			return remote.ErrConflict // others may have left the number out
		}
		if !errors.Is(err, errExists) {
			return err
		}
		for began := time.Now(); ; {
			now, _, err := c.newest(ctx, tag)
			if err != nil {
				return err
			}
			if now > n {
				return remote.ErrConflict
			}
			if time.Since(began) > c.abandoned {
				break
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(min(pollTime, c.abandoned)):
			}
		}
	}
}

// Tags implements remote.Repository: the service lists nothing.
func (c *Cache) Tags(context.Context, string) ([]string, error) { return nil, errors.ErrUnsupported }

// Remove implements remote.Repository: GitHub removes entries that nobody has used for a week, and the oldest if there are too many.
func (c *Cache) Remove(context.Context, string, digest.Digest) error { return errors.ErrUnsupported }

func blobKey(d digest.Digest) (string, error) {
	if _, err := cas.ParseDigest(string(d)); err != nil {
		return "", err
	}
	return "kiln-blob-" + d.Encoded(), nil
}

// Open implements remote.Repository.
func (c *Cache) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	c.mu.Lock()
	records, ok := c.records[desc.Digest]
	c.mu.Unlock()
	if ok {
		return cas.VerifyReader(io.NopCloser(bytes.NewReader(records)), desc, c.String()), nil
	}
	key, err := blobKey(desc.Digest)
	if err != nil {
		return nil, err
	}
	_, address, err := c.find(ctx, key)
	if err != nil {
		return nil, err
	}
	cancel := context.CancelFunc(func() {})
	if c.options.Timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, c.options.Timeout)
	}
	body := c.download(ctx, address)
	if err := body.Begin(); err != nil {
		cancel()
		return nil, err
	}
	return cas.VerifyReader(closing{body, cancel}, desc, c.String()), nil
}

// closing ends a context when a reader is closed.
type closing struct {
	*bucket.Reader
	cancel context.CancelFunc
}

func (c closing) Close() error {
	defer c.cancel()
	return c.Reader.Close()
}

// Put implements remote.Repository. Records go with the manifest that names them. What somebody else has begun to send is sent as well,
// since that may never be there.
func (c *Cache) Put(ctx context.Context, desc ocispec.Descriptor, open func() (io.ReadCloser, error)) error {
	if desc.Digest == ocispec.DescriptorEmptyJSON.Digest {
		return nil // the config of every cache, which nobody reads
	}
	if desc.MediaType == pack.Type && desc.Size <= pack.MaxSize {
		r, err := open()
		if err != nil {
			return err
		}
		defer r.Close()
		data, err := io.ReadAll(cas.VerifyReader(r, desc, "the records"))
		if err != nil {
			return err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.records[desc.Digest] = data
		return nil
	}
	key, err := blobKey(desc.Digest)
	if err != nil {
		return err
	}
	if _, _, err := c.find(ctx, key); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if c.options.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.options.Timeout)
		defer cancel()
	}
	err = c.write(ctx, key, desc, open)
	if errors.Is(err, errExists) {
		err = c.write(ctx, key+"-"+rand.Text(), desc, open)
	}
	return err
}
