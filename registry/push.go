package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/reach"
	"github.com/kilnbuild/kiln/registry/image"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Blobs is the source of what Push sends, such as a *cas.Store. Open may be called concurrently, and several times for one blob. It may
// create the blob, for example by compressing a layer, and is called only for blobs that the registry lacks.
type Blobs interface {
	// Open returns a reader of desc's bytes, which fails if they do not match desc.
	Open(desc ocispec.Descriptor) (io.ReadCloser, error)
}

// PushOptions are options of Push. The zero value is valid.
type PushOptions struct {
	// MountFrom is the repository that a blob came from, by digest, such as "docker.io/library/debian" for those of a base image. If the
	// target registry is the same, or is a mirror of it, the blob is mounted instead of sent.
	MountFrom map[digest.Digest]string
	// Progress is told how the push goes on; nil is for nobody.
	Progress PushProgress
}

// PushProgress is told how a push goes on, from several goroutines.
type PushProgress interface {
	// Queued reports a blob that is to be pushed.
	Queued(desc ocispec.Descriptor)
	// Sent reports the number of a blob's bytes that the registry has. The number may decrease after a failure.
	Sent(desc ocispec.Descriptor, done int64)
	// Exists reports a blob that the registry has without an upload.
	Exists(desc ocispec.Descriptor)
}

// silent is a PushProgress that tells nobody.
type silent struct{}

func (silent) Queued(ocispec.Descriptor)      {}
func (silent) Sent(ocispec.Descriptor, int64) {}
func (silent) Exists(ocispec.Descriptor)      {}

// Push sends the image or index desc and everything that it refers to to the registry of ref, and tags it last. Blobs that the registry has
// are not sent; the others are sent concurrently. Blobs are not asked for if CheckPush found the same image under the name. Errors are *Error,
// or those of ctx or blobs.
func (c *Client) Push(ctx context.Context, blobs Blobs, ref string, desc ocispec.Descriptor, o PushOptions) error {
	r, err := imagename.Parse(ref)
	if err != nil {
		return err
	}
	if r.Digest != "" && r.Digest != desc.Digest {
		return fmt.Errorf("push %s: the image's digest is %s", r, desc.Digest)
	}
	p := &pushPlan{blobs: blobs, levels: map[digest.Digest]int{}}
	if _, err := p.add(desc, 0); err != nil {
		return fmt.Errorf("push %s: %w", r, err)
	}
	if o.Progress == nil {
		o.Progress = silent{}
	}
	for _, b := range p.leaves {
		o.Progress.Queued(b)
	}
	root := len(p.manifests) - 1
	top := p.manifests[root][0]
	id := r.Tag
	if id == "" {
		id = string(r.Digest)
	}
	// The registry had everything that the manifest refers to, and most verify that once more when it is put. Whatever is wrong, the rest
	// shows it.
	if c.takeNamed(ctx, r) == desc.Digest {
		if _, err := c.tryManifest(ctx, r, id, top); err == nil {
			for _, b := range p.leaves {
				o.Progress.Exists(b)
			}
			return nil
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(blobsAtOnce)
	for _, b := range p.leaves {
		g.Go(func() error { return c.pushBlob(gctx, blobs, r, b, false, o) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, level := range p.manifests[:root] {
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(blobsAtOnce)
		for _, m := range level {
			g.Go(func() error { return c.pushManifest(gctx, r, string(m.desc.Digest), m) })
		}
		if err := g.Wait(); err != nil {
			return err
		}
	}
	return c.pushManifest(ctx, r, id, top)
}

// naming is a question for what a name stands for in its registry.
type naming struct {
	answered chan struct{} // is closed when there is an answer
	digest   digest.Digest // of an image or index; "" for none
}

// findNamed asks which image or index ref names in its registry, if there is one, for takeNamed.
func (c *Client) findNamed(ctx context.Context, h *host, ref imagename.Name, n *naming) {
	defer close(n.answered)
	ep := endpoint{host: h}
	resp, err := c.get(ctx, h, request{
		method: http.MethodHead,
		url:    ep.url(ref.Repository, "manifests", identifier(ref)),
		header: http.Header{"Accept": {image.Accept}},
		scopes: []string{pushScope(ref.Repository)},
	})
	if err != nil {
		return
	}
	resp.Body.Close()
	n.digest = digest.Digest(resp.Header.Get("Docker-Content-Digest"))
}

// takeNamed returns what findNamed found, once, or "". It waits for an answer that is to come: when a build is that short, asking for each
// blob would take longer.
func (c *Client) takeNamed(ctx context.Context, ref imagename.Name) digest.Digest {
	c.mu.Lock()
	n := c.named[ref]
	delete(c.named, ref)
	c.mu.Unlock()
	if n == nil {
		return ""
	}
	select {
	case <-n.answered:
		return n.digest
	case <-ctx.Done():
		return ""
	}
}

// CheckPush reports whether the registry of ref would accept a push: it starts an upload and abandons it. The error is an *Error of kind
// Unauthorized, Credentials, TLS or Unreachable, or nil: no other failure means that a push would fail. It also finds out which image ref
// names now, for the next Push to it.
func (c *Client) CheckPush(ctx context.Context, ref string) error {
	r, err := imagename.Parse(ref)
	if err != nil {
		return err
	}
	h, err := c.host(r.Registry)
	if err != nil {
		return nil // the push says it
	}
	n := &naming{answered: make(chan struct{})}
	c.mu.Lock()
	c.named[r] = n
	c.mu.Unlock()
	var named sync.WaitGroup
	named.Go(func() { c.findNamed(ctx, h, r, n) })
	defer named.Wait()
	u := &upload{client: c, ep: endpoint{host: h}, ref: r, progress: func(int64) {}, limit: reach.Anywhere}
	err = c.patience.Retry(ctx, func() error {
		_, err := u.begin(ctx)
		return err
	})
	if e, ok := errors.AsType[*Error](c.explain("push", r, h, err)); ok && slices.Contains([]Kind{Unauthorized, Credentials, TLS, Unreachable}, e.Kind) {
		return e
	}
	if u.location != nil {
		// Also when the build has ended meanwhile. What cannot be taken back the registry forgets in time.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTimeout)
		defer cancel()
		if resp, err := u.do(ctx, request{method: http.MethodDelete, url: u.location}); err == nil {
			fetch.Drain(resp)
		}
	}
	return nil
}

// pushPlan is what has to be sent.
type pushPlan struct {
	blobs     Blobs
	leaves    []ocispec.Descriptor  // configs and layers
	manifests [][]pushManifest      // by level: each refers to those of lower levels alone
	levels    map[digest.Digest]int // of everything that was added; -1 for leaves
}

type pushManifest struct {
	desc ocispec.Descriptor
	data []byte
}

// add adds a manifest and what it refers to, and returns its level.
func (p *pushPlan) add(desc ocispec.Descriptor, depth int) (int, error) {
	if level, ok := p.levels[desc.Digest]; ok {
		return level, nil
	}
	if depth > image.MaxDepth {
		return 0, fetch.Invalid("its indexes lie more than %d deep", image.MaxDepth)
	}
	if _, err := cas.ParseDigest(string(desc.Digest)); err != nil {
		return 0, err
	}
	rc, err := p.blobs.Open(desc)
	if err != nil {
		return 0, err
	}
	data, err := cas.ReadAll(rc, desc, 0)
	rc.Close()
	if err != nil {
		return 0, err
	}
	doc, err := image.Parse(data, desc.MediaType)
	if err != nil {
		return 0, err
	}
	desc.MediaType = doc.MediaType
	level := 0
	if doc.Index != nil {
		for _, d := range doc.Index.Manifests {
			below, err := p.add(d, depth+1)
			if err != nil {
				return 0, err
			}
			level = max(level, below+1)
		}
	} else {
		for _, d := range append([]ocispec.Descriptor{doc.Manifest.Config}, doc.Manifest.Layers...) {
			if _, ok := p.levels[d.Digest]; !ok && !foreign(d) {
				p.levels[d.Digest] = -1
				p.leaves = append(p.leaves, d)
			}
		}
	}
	p.levels[desc.Digest] = level
	for len(p.manifests) <= level {
		p.manifests = append(p.manifests, nil)
	}
	p.manifests[level] = append(p.manifests[level], pushManifest{desc, data})
	return level, nil
}

// foreign reports whether a layer is not pushed because its licence forbids that: it stays at its URLs.
func foreign(d ocispec.Descriptor) bool {
	return len(d.URLs) > 0 && (strings.Contains(d.MediaType, ".nondistributable.") || strings.Contains(d.MediaType, ".foreign."))
}

// pushManifest puts a manifest under a tag or its digest (distribution-spec, "Pushing Manifests").
func (c *Client) pushManifest(ctx context.Context, ref imagename.Name, id string, m pushManifest) error {
	_, err := c.putManifest(ctx, ref, id, m)
	return err
}

// putManifest is pushManifest, and returns the header of the answer.
func (c *Client) putManifest(ctx context.Context, ref imagename.Name, id string, m pushManifest) (header http.Header, err error) {
	h, err := c.host(ref.Registry)
	if err != nil {
		return nil, err
	}
	err = c.patience.Retry(ctx, func() error {
		header, err = c.tryManifest(ctx, ref, id, m)
		return err
	})
	return header, c.explain("push", ref, h, err)
}

func (c *Client) tryManifest(ctx context.Context, ref imagename.Name, id string, m pushManifest) (http.Header, error) {
	h, err := c.host(ref.Registry)
	if err != nil {
		return nil, err
	}
	ep := endpoint{host: h}
	resp, err := h.do(ctx, request{
		method: http.MethodPut,
		url:    ep.url(ref.Repository, "manifests", id),
		header: http.Header{"Content-Type": {m.desc.MediaType}},
		open:   func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(string(m.data))), nil },
		length: int64(len(m.data)),
		scopes: []string{pushScope(ref.Repository)},
	})
	if err != nil {
		return nil, err
	}
	if !succeeded(resp) {
		status := fetch.NewStatusError(resp)
		if confused(status) {
			return nil, &lostUpload{status}
		}
		return nil, status
	}
	fetch.Drain(resp)
	if got := resp.Header.Get("Docker-Content-Digest"); got != "" && got != string(m.desc.Digest) {
		return nil, fetch.Invalid("%s stored the manifest as %s instead of %s", h.addr, fetch.Quote(got), m.desc.Digest)
	}
	return resp.Header, nil
}

// succeeded reports whether the status of an answer is in the class of successes. The specification has one status for each request, but
// registries send others of the class.
func succeeded(resp *http.Response) bool { return resp.StatusCode/100 == 2 }

func pushScope(repository string) string { return "repository:" + repository + ":pull,push" }

// sentBlob is a blob on its way to a repository.
type sentBlob struct {
	registry, repository string
	digest               digest.Digest
}

// pushBlob sends a blob unless it is there; absent says that it is not. Of several who send the same, such as an image and a cache, one
// does, and the others wait for it.
func (c *Client) pushBlob(ctx context.Context, blobs Blobs, ref imagename.Name, desc ocispec.Descriptor, absent bool, o PushOptions) error {
	for {
		var own atomic.Bool
		_, err := c.uploads.Do(ctx, sentBlob{ref.Registry, ref.Repository, desc.Digest}, func(ctx context.Context) (struct{}, error) {
			own.Store(true)
			return struct{}{}, c.upload(ctx, blobs, ref, desc, absent, o)
		})
		if own.Load() || ctx.Err() != nil {
			return err
		}
		if err == nil {
			o.Progress.Exists(desc)
			return nil
		}
	}
}

func (c *Client) upload(ctx context.Context, blobs Blobs, ref imagename.Name, desc ocispec.Descriptor, absent bool, o PushOptions) error {
	h, err := c.host(ref.Registry)
	if err != nil {
		return err
	}
	u := &upload{
		client: c, ep: endpoint{host: h}, ref: ref, desc: desc, blobs: blobs, tries: fetch.Tries{Patience: c.patience},
		progress: func(n int64) { o.Progress.Sent(desc, n) }, limit: reach.Anywhere, absent: absent,
	}
	if from, err := imagename.Parse(o.MountFrom[desc.Digest]); err == nil {
		u.from = c.mountable(from, ref)
	}
	for {
		err := u.run(ctx)
		switch {
		case err == nil && u.there:
			o.Progress.Exists(desc)
			return nil
		case err == nil:
			u.progress(desc.Size)
			return nil
		}
		if err := u.tries.Again(ctx, err); err != nil {
			return c.explain("push", ref, h, err)
		}
	}
}

// The limits of what is sent to one registry at a time. Whether blobs are there is asked for all at once, and small blobs are sent all at
// once, so the latency of a push does not grow with the number of layers. Of blobs of weighty bytes and more five fill any line, and more
// of them would only make a failure cost more.
const (
	blobsAtOnce = 128
	weighty     = 16 << 20
	bytesAtOnce = parallel * weighty
)

// room waits until the registry is sent so little else that this blob's turn has come. The function that it returns ends the turn.
func (u *upload) room(ctx context.Context) (leave func(), err error) {
	weight := min(max(u.desc.Size, 1), weighty)
	if err := u.ep.sending.Acquire(ctx, weight); err != nil {
		return nil, context.Cause(ctx)
	}
	return func() { u.ep.sending.Release(weight) }, nil
}

// mountable returns the repository of to's registry from which blobs of the image from can be mounted: the image's own, or its name in a
// mirror. It is "" if they cannot be mounted.
func (c *Client) mountable(from, to imagename.Name) string {
	all, err := c.endpoints(from.Registry)
	if err != nil {
		return ""
	}
	for _, ep := range all {
		if repository := ep.repository(from.Repository); ep.name == to.Registry && repository != to.Repository {
			return repository
		}
	}
	return ""
}

// upload sends a blob to a registry (distribution-spec, "Pushing a blob in chunks"). Each try continues where the previous one ended.
type upload struct {
	client   *Client
	ep       endpoint
	ref      imagename.Name
	desc     ocispec.Descriptor
	blobs    Blobs
	from     string // the repository to mount it from, or ""
	tries    fetch.Tries
	progress func(int64)

	location *url.URL // of the session; nil without one
	offset   int64    // what the registry has of the blob
	there    bool     // the registry has the blob without an upload
	absent   bool     // it is not worth a question whether the registry has it

	limit reach.Scope // of servers that the session is moved to
}

// lostUpload means that the registry has lost the session. The next try starts a new one.
type lostUpload struct{ err error }

func (e *lostUpload) Error() string { return e.err.Error() }
func (e *lostUpload) Unwrap() error { return e.err }

// Transient implements the interface of fetch.Transient.
func (e *lostUpload) Transient() bool { return true }

func (u *upload) run(ctx context.Context) error {
	// Also after a failure: the registry may have had it all, and only its answer got lost.
	if !u.absent {
		there, err := u.exists(ctx)
		if there || err != nil {
			u.there = there && u.location == nil
			return err
		}
	}
	u.absent = false
	resumed := u.location != nil
	if !resumed && u.from != "" { // a mount takes no room
		mounted, err := u.begin(ctx)
		if mounted || err != nil {
			u.there = mounted
			return err
		}
	}
	err := u.transfer(ctx, resumed)
	if errors.Is(err, errNoPatch) {
		return u.run(ctx) // as a whole now
	}
	return err
}

// transfer sends the blob, or what the registry lacks of it if a session of an earlier try is resumed.
func (u *upload) transfer(ctx context.Context, resumed bool) error {
	leave, err := u.room(ctx)
	if err != nil {
		return err
	}
	defer leave()
	whole := u.desc.Size <= maxWhole || u.ep.takesWhole()
	if resumed && whole {
		u.location = nil
	} else if resumed {
		if err := u.status(ctx); err != nil {
			return err
		}
	}
	if u.location == nil {
		if _, err := u.begin(ctx); err != nil {
			return err
		}
	}
	if whole {
		return u.commit(ctx, u.opener(ctx), u.desc.Size)
	}
	for u.offset < u.desc.Size {
		if err := u.send(ctx); err != nil {
			return err
		}
	}
	return u.commit(ctx, func() (io.ReadCloser, error) { return http.NoBody, nil }, 0)
}

// maxWhole is the size in bytes up to which a blob is sent with the request that completes its upload: that saves a request, and little
// has to be sent again after a failure.
const maxWhole = 256 << 10

func (u *upload) exists(ctx context.Context) (bool, error) {
	resp, err := u.client.get(ctx, u.ep.host, request{
		method: http.MethodHead,
		url:    u.ep.url(u.ref.Repository, "blobs", string(u.desc.Digest)),
		scopes: []string{pushScope(u.ref.Repository)},
	})
	if err == nil {
		resp.Body.Close()
		return resp.ContentLength < 0 || resp.ContentLength == u.desc.Size, nil
	}
	if _, ok := errors.AsType[*fetch.StatusError](err); ok && !fetch.Transient(err) {
		return false, nil // whatever is wrong, the upload's own answer says it better
	}
	return false, err
}

// do makes a request of the session, with credentials only if the session is on the registry's own host.
func (u *upload) do(ctx context.Context, r request) (*http.Response, error) {
	at := u.ep.host
	r.url = at.settle(r.url)
	if !at.Owns(r.url) {
		var err error
		if at, err = u.ep.stranger(r.url, min(u.limit, at.way.Scope(ctx))); err != nil {
			return nil, err
		}
		defer func() { u.limit = at.way.Scope(ctx) }()
	} else if r.scopes == nil {
		r.scopes = []string{pushScope(u.ref.Repository)}
	}
	return at.do(ctx, r)
}

// begin starts a session, or mounts the blob from another repository.
func (u *upload) begin(ctx context.Context) (mounted bool, err error) {
	target := u.ep.url(u.ref.Repository, "blobs/uploads", "")
	scopes := []string{pushScope(u.ref.Repository)}
	if u.from != "" {
		target.RawQuery = url.Values{"mount": {string(u.desc.Digest)}, "from": {u.from}}.Encode()
		scopes = append(scopes, u.ep.pullScope(u.from))
	}
	none := func() (io.ReadCloser, error) { return http.NoBody, nil }
	resp, err := u.do(ctx, request{method: http.MethodPost, url: target, open: none, scopes: scopes})
	if err == nil && !succeeded(resp) {
		err = fetch.NewStatusError(resp)
	}
	if u.from != "" && err != nil && !fetch.Transient(err) && ctx.Err() == nil {
		u.from = "" // whatever was wrong with the mount, sending needs less
		return u.begin(ctx)
	}
	if err != nil {
		return false, err
	}
	fetch.Drain(resp)
	if resp.StatusCode == http.StatusCreated && u.from != "" {
		return true, nil
	}
	u.from = "" // once is enough
	u.offset = 0
	u.progress(0)
	return false, u.moved(resp, true)
}

// moved records the location of the session.
func (u *upload) moved(resp *http.Response, must bool) error {
	location := resp.Header.Get("Location")
	if location == "" && !must {
		return nil
	}
	next, err := u.ep.locate(resp.Request.URL, location)
	if err != nil {
		return err
	}
	u.location = next
	return nil
}

// status asks how much of the blob the registry has.
func (u *upload) status(ctx context.Context) error {
	resp, err := u.do(ctx, request{method: http.MethodGet, url: u.location})
	if err != nil {
		return err
	}
	if !succeeded(resp) {
		if err := fetch.NewStatusError(resp); fetch.Transient(err) {
			return err
		}
		u.location = nil // gone, or never to be asked: begin again
		return nil
	}
	fetch.Drain(resp)
	has, ok := uploaded(resp)
	if !ok || has > u.desc.Size {
		u.location = nil
		return nil
	}
	if has-u.offset >= fetch.MinProgress {
		u.tries.Progress()
	}
	u.offset = has
	u.progress(has)
	return u.moved(resp, false)
}

// uploaded returns the number of bytes that the Range of an answer, "0-N", says the registry has.
func uploaded(resp *http.Response) (int64, bool) {
	value := strings.TrimPrefix(resp.Header.Get("Range"), "bytes=")
	begin, end, ok := strings.Cut(value, "-")
	n, err := strconv.ParseInt(end, 10, 64)
	if !ok || begin != "0" || err != nil || n < 0 {
		return 0, false
	}
	if n == 0 {
		return 0, true // "0-0" is an empty upload, as registries say it; a byte that they have comes once more then
	}
	return n + 1, true
}

// send sends the rest of the blob.
func (u *upload) send(ctx context.Context) error {
	header := http.Header{"Content-Type": {"application/octet-stream"}}
	begin := u.offset
	if begin > 0 {
		header.Set("Content-Range", fmt.Sprintf("%d-%d", begin, u.desc.Size-1))
	}
	r := request{method: http.MethodPatch, url: u.location, header: header, open: u.opener(ctx), length: u.desc.Size - begin, work: true}
	resp, err := u.do(ctx, r)
	if err != nil {
		return err
	}
	if !succeeded(resp) {
		return u.refusedPatch(begin, fetch.NewStatusError(resp))
	}
	fetch.Drain(resp)
	has, ok := uploaded(resp)
	switch {
	case !ok || has == u.desc.Size || u.desc.Size == 1:
		u.offset = u.desc.Size
	case has > begin && has < u.desc.Size:
		u.offset = has // it took a part
	default:
		u.location = nil
		return &lostUpload{fetch.Invalid("%s says that it has %d of %d bytes sent", u.ep.addr, has, u.desc.Size)}
	}
	u.progress(u.offset)
	return u.moved(resp, false)
}

// errNoPatch means that the registry takes blobs only as a whole.
var errNoPatch = errors.New("the registry does not take parts of a blob")

// refusedPatch is refused for PATCH. Some registries lack it, and answer with various statuses. All have to accept a blob in one PUT
// (distribution-spec, "Pushing a blob monolithically"), so that is tried next unless the status has another meaning.
func (u *upload) refusedPatch(begin int64, err *fetch.StatusError) error {
	other := []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusConflict, http.StatusRequestedRangeNotSatisfiable}
	if begin > 0 || err.Transient() || slices.Contains(other, err.Status) {
		return u.refused(err)
	}
	u.ep.takeWhole()
	return errNoPatch
}

// confused reports whether a registry says that a digest is wrong. What is sent has been compared with it, so the registry is mistaken:
// Docker's is, for a moment, where others push the same blob at the same time.
func confused(err *fetch.StatusError) bool { return strings.HasPrefix(err.Text, "DIGEST_INVALID") }

// refused ends the session if the registry has lost it or disagrees about the offset or the digest.
func (u *upload) refused(err *fetch.StatusError) error {
	if confused(err) || slices.Contains([]int{http.StatusNotFound, http.StatusConflict, http.StatusRequestedRangeNotSatisfiable}, err.Status) {
		u.location = nil
		return &lostUpload{err}
	}
	return err
}

// opener returns what opens the blob at the offset, to be read until ctx ends.
func (u *upload) opener(ctx context.Context) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) {
		blob, err := u.blobs.Open(u.desc)
		if err != nil {
			return nil, err
		}
		rc := ctxio.ReadCloser(ctx, blob)
		if _, err := io.CopyN(io.Discard, rc, u.offset); err != nil {
			rc.Close()
			return nil, err
		}
		return &countedBody{ReadCloser: rc, done: u.offset, progress: u.progress}, nil
	}
}

type countedBody struct {
	io.ReadCloser
	done     int64
	progress func(int64)
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.done += int64(n)
	b.progress(b.done)
	return n, err
}

// commit sends the last length bytes, read from what open returns, and completes the upload with its digest, which the registry verifies.
func (u *upload) commit(ctx context.Context, open func() (io.ReadCloser, error), length int64) error {
	target := *u.location
	if target.RawQuery != "" {
		target.RawQuery += "&" // the rest stays as it is: it may be signed
	}
	target.RawQuery += url.Values{"digest": {string(u.desc.Digest)}}.Encode()
	header := http.Header{"Content-Type": {"application/octet-stream"}}
	resp, err := u.do(ctx, request{method: http.MethodPut, url: &target, header: header, open: open, length: length, work: true})
	if err != nil {
		return err
	}
	if !succeeded(resp) {
		return u.refused(fetch.NewStatusError(resp))
	}
	fetch.Drain(resp)
	if got := resp.Header.Get("Docker-Content-Digest"); got != "" && got != string(u.desc.Digest) {
		return fetch.Invalid("%s stored the blob as %s instead of %s", u.ep.addr, fetch.Quote(got), u.desc.Digest)
	}
	return nil
}
