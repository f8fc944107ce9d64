// Package registry resolves, pulls and pushes images: from registries that speak the OCI distribution protocol, through
// their mirrors, and from OCI layouts in directories. Every byte is verified against its digest and size while it streams.
// It does not know what is in a layer, and of builds nothing.
//
// Credentials go to the registry that they are for, and to the token servers that realm allows, and nowhere else: requests
// to any other host, as where a blob is redirected to, are made without them.
package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/reach"
	"github.com/opencontainers/go-digest"
)

// hubHost is the host behind docker.io.
const hubHost = "registry-1.docker.io"

// userAgent is what kiln calls itself.
const userAgent = "kiln"

// How often and how long things are tried.
const (
	// maxTries is how often a request is made until it succeeds. Bytes that arrive begin the count again.
	maxTries = 5
	// maxStalls is how many of the tries may end because the server fell silent: two, so that one that stays silent is
	// given up within a minute.
	maxStalls = 2
	// idleTimeout is how long a server may send less than minProgress bytes.
	idleTimeout = 28 * time.Second
	// minProgress, in bytes, is what counts as sending something, so that a byte a second is not taken for work.
	minProgress = 16 << 10
	// commitTimeout is how long a registry may take to answer when it has an upload whole: it hashes and moves it then.
	commitTimeout = 5 * time.Minute
	// abandonTimeout is how long a registry may take to forget an upload.
	abandonTimeout = 2 * time.Second
	// firstPause is how long to wait before the second try, and it doubles from there, up to maxPause.
	firstPause = 200 * time.Millisecond
	maxPause   = 5 * time.Second
	// maxRetryAfter is how long to wait at most when the server asks for more with Retry-After.
	maxRetryAfter = 20 * time.Second
	// connectTimeout bounds a connection's making, and the TLS handshake's.
	connectTimeout = 10 * time.Second
	// maxRedirects is how many redirections are followed for one request: what browsers do.
	maxRedirects = 10
	// maxHeader bounds the header of an answer in bytes.
	maxHeader = 64 << 10
)

// parallel is how many blobs go side by side: what fills a fast line without tripping registries' limits.
const parallel = 5

// Client talks to registries. Its methods may be called from several goroutines at once; tokens and connections are kept
// from one call to the next.
type Client struct {
	settings config.Registries
	creds    *keychain
	idle     time.Duration // idleTimeout, or less in tests
	pause    time.Duration // firstPause, or less in tests

	mu    sync.Mutex
	hosts map[string]*host
	// strangers are the transports for hosts that others send us to.
	strangers map[string]*reach.Transports
	// last is the host that answered for a registry last, by the registry's name: it is asked first.
	last map[string]string
	// bad are the hosts that sent a blob with other content than its digest says.
	bad map[badBlob]bool
}

type badBlob struct {
	host   string
	digest digest.Digest
}

// New returns a Client with the settings of kiln.toml. It reads no file and makes no connection until it is used; what
// Docker's configuration holds of credentials is read when a registry first asks for some.
func New(settings config.Registries) *Client {
	return &Client{
		settings:  settings,
		creds:     newKeychain(),
		idle:      idleTimeout,
		pause:     firstPause,
		hosts:     map[string]*host{},
		strangers: map[string]*reach.Transports{},
		last:      map[string]string{},
		bad:       map[badBlob]bool{},
	}
}

// host is one server that is talked to.
type host struct {
	client *Client
	name   string // as in kiln.toml: "docker.io", "mirror.corp:5000"
	addr   string // "host[:port]" in addresses
	way    *reach.Way
	http   *http.Client // by way
	auth   *authorizer

	mu     sync.Mutex
	scheme string
	// mayFall says that the scheme is https and becomes http if that is what the server speaks: a loopback registry. Fell
	// says that it did.
	mayFall, fell bool
}

// endpoint is where a registry's images are: at the registry itself or at a mirror of it.
type endpoint struct {
	*host
	prefix string // goes before the repository: "proxy/" for the mirror "harbor.corp/proxy"
	mirror string // the name of the registry whose mirror it is, else ""
}

// host returns the host called name with its settings.
func (c *Client) host(name string) (*host, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.hosts[name]; h != nil {
		return h, nil
	}
	set := c.settings[name]
	t, err := tlsConfig(set)
	if err != nil {
		return nil, fmt.Errorf("use the settings of registry %s: %w", name, err)
	}
	h := &host{client: c, name: name, addr: name, scheme: "https"}
	if name == config.DockerHub {
		h.addr = hubHost
	}
	if set.HTTP {
		h.scheme = "http"
	} else {
		h.mayFall = loopback(h.addr)
	}
	h.by(newTransports(t).Way(reach.Anywhere))
	h.auth = newAuthorizer(h, c.creds)
	c.hosts[name] = h
	return h, nil
}

// by sets how the host is asked.
func (h *host) by(w *reach.Way) {
	h.way, h.http = w, &http.Client{Transport: w, CheckRedirect: stay}
}

// stay keeps net/http from following redirections: see Client.follow.
func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func newTransports(t *tls.Config) *reach.Transports {
	return reach.NewTransports(&http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		TLSClientConfig:        t,
		TLSHandshakeTimeout:    connectTimeout,
		MaxIdleConnsPerHost:    parallel + 1,
		IdleConnTimeout:        90 * time.Second, // what net/http's own default is
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true, // digests are of the bytes as they are sent
		ForceAttemptHTTP2:      true,
	}, net.Dialer{Timeout: connectTimeout, KeepAlive: 30 * time.Second})
}

func tlsConfig(set config.Registry) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: set.Insecure}
	if len(set.CA) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			return nil, err
		}
		for _, file := range set.CA {
			pem, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			if !pool.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("%s holds no certificate in PEM form", file)
			}
		}
		t.RootCAs = pool
	}
	for _, pair := range set.KeyPairs {
		cert, err := tls.LoadX509KeyPair(pair.Cert, pair.Key)
		if err != nil {
			return nil, err
		}
		t.Certificates = append(t.Certificates, cert)
	}
	return t, nil
}

// loopback tells whether "host[:port]" is this machine, as far as the name says.
func loopback(addr string) bool {
	name := (&url.URL{Host: addr}).Hostname()
	if name == "localhost" {
		return true
	}
	ip := net.ParseIP(name)
	return ip != nil && ip.IsLoopback()
}

// endpoints returns where to ask for a registry's images, the one that answered last first, else the mirrors in their
// order and the registry itself in the end.
func (c *Client) endpoints(registry string) ([]endpoint, error) {
	var list []endpoint
	for _, m := range c.settings[registry].Mirrors {
		name, prefix, _ := strings.Cut(m, "/")
		h, err := c.host(name)
		if err != nil {
			return nil, err
		}
		if prefix = strings.Trim(prefix, "/"); prefix != "" {
			prefix += "/"
		}
		list = append(list, endpoint{host: h, prefix: prefix, mirror: registry})
	}
	h, err := c.host(registry)
	if err != nil {
		return nil, err
	}
	list = append(list, endpoint{host: h})
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, ep := range list {
		if ep.name == c.last[registry] {
			list[0], list[i] = list[i], list[0]
			break
		}
	}
	return list, nil
}

// answered notes that a host has answered for a registry.
func (c *Client) answered(registry string, ep endpoint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last[registry] = ep.name
}

// url returns the address of something in a repository: kind is "manifests", "blobs" or "blobs/uploads".
func (ep endpoint) url(repository, kind, what string) *url.URL {
	u := &url.URL{Scheme: ep.currentScheme(), Host: ep.addr, Path: "/v2/" + ep.repository(repository) + "/" + kind + "/" + what}
	if ep.mirror != "" {
		u.RawQuery = url.Values{"ns": {ep.mirror}}.Encode() // tells a proxy of several registries which is meant
	}
	return u
}

func (ep endpoint) repository(name string) string { return ep.prefix + name }

// pullScope returns the right that reading a repository needs; see "Token Scope Documentation" of distribution.
func (ep endpoint) pullScope(repository string) string {
	return "repository:" + ep.repository(repository) + ":pull"
}

func (h *host) currentScheme() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.scheme
}

// fall goes over to plain http if that is allowed, and tells whether the request should be made again.
func (h *host) fall() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mayFall {
		h.scheme, h.mayFall, h.fell = "http", false, true
	}
	return h.fell
}

// settle returns the address with the scheme that the host turned out to speak after the address was made.
func (h *host) settle(u *url.URL) *url.URL {
	h.mu.Lock()
	defer h.mu.Unlock()
	settled := *u
	if h.fell && u.Host == h.addr {
		settled.Scheme = h.scheme
	}
	return &settled
}

// owns tells whether an address is on this host: the same scheme, name and port.
func (h *host) owns(u *url.URL) bool {
	return u.Scheme == h.currentScheme() && portOf(u) == portOf(&url.URL{Scheme: u.Scheme, Host: h.addr}) &&
		strings.EqualFold(u.Hostname(), (&url.URL{Host: h.addr}).Hostname())
}

func portOf(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	if u.Scheme == "http" {
		return "80"
	}
	return "443"
}

// locate resolves a Location that the host sent. One on the host itself that says http although https was spoken, as
// registries behind a proxy send it, is taken to mean https; any other step from https to http is an error.
func (h *host) locate(from *url.URL, location string) (*url.URL, error) {
	u, err := from.Parse(location)
	if err != nil || location == "" {
		return nil, invalid("%s sent the address %q, which is none", from.Host, quote(location))
	}
	if u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" {
		return nil, invalid("%s sent an address that is not http or https", from.Host)
	}
	if from.Scheme == "https" && u.Scheme == "http" {
		if from.Host != h.addr || u.Hostname() != from.Hostname() {
			return nil, fmt.Errorf("%s sends to %s: %w", from.Host, u.Host, errPlainHTTP)
		}
		u.Scheme = "https"
		if u.Port() == "80" {
			u.Host = u.Hostname()
		}
	}
	u.User = nil
	return u, nil
}

// errPlainHTTP is a step from https down to http.
var errPlainHTTP = errors.New("plain http is refused after https")

// request is a request that can be made again.
type request struct {
	method string
	url    *url.URL
	header http.Header
	// open opens the body and length is its size in bytes; nil is none.
	open   func() (io.ReadCloser, error)
	length int64
	// scopes are the rights it needs.
	scopes []string
	// wait is how long the server may take to answer; 0 is the client's idle time.
	wait time.Duration
}

// maxChallenges is how often one request is made with other credentials because the server asked for them: at first
// without any, then with a token that may have just ended, then with a new one.
const maxChallenges = 3

// do makes a request, with the host's credentials where the address is the host's own, and returns the answer whatever its
// status. Redirections are not followed. The answer's body fails with errStalled when the server falls silent.
func (h *host) do(ctx context.Context, r request) (*http.Response, error) {
	for challenge := 0; ; challenge++ {
		u := h.settle(r.url)
		own := h.owns(u)
		var authorization string
		if own {
			var err error
			if authorization, err = h.auth.header(ctx, r.scopes); err != nil {
				return nil, err
			}
		}
		resp, err := h.client.send(ctx, h.http, r, u, authorization)
		// Not own: another request may have found that out between settle and owns.
		if u.Scheme == "https" && u.Host == h.addr && isNoTLS(err) && h.fall() {
			continue // it is plain http now
		}
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusUnauthorized || !own || challenge == maxChallenges {
			return resp, nil
		}
		retry, err := h.auth.renew(ctx, resp.Header, r.scopes, authorization)
		if err != nil {
			resp.Body.Close()
			return nil, err
		}
		if !retry {
			return resp, nil
		}
		drain(resp)
	}
}

// drain ends an answer so that its connection can be used again.
func drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, maxDiagnosis) // what cannot be read costs a connection only
	resp.Body.Close()
}

// send makes one request and watches that the server goes on.
func (c *Client) send(ctx context.Context, hc *http.Client, r request, u *url.URL, authorization string) (*http.Response, error) {
	wait := r.wait
	if wait == 0 {
		wait = c.idle
	}
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(wait, func() { cancel(errStalled) })
	fail := func(err error) (*http.Response, error) {
		timer.Stop()
		if cause := context.Cause(ctx); cause != nil {
			err = cause
			if errors.Is(cause, errStalled) {
				err = fmt.Errorf("ask %s: %w", u.Host, cause)
			}
		}
		cancel(nil)
		return nil, err
	}
	req := (&http.Request{Method: r.method, URL: u, Host: u.Host, Header: http.Header{}}).WithContext(ctx)
	for name, values := range r.header {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", userAgent)
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	var body *sentBody
	if r.open != nil {
		rc, err := r.open()
		if err != nil {
			return fail(err)
		}
		body = &sentBody{ReadCloser: rc, timer: timer, wait: wait}
		req.Body, req.ContentLength = body, r.length
		if r.length == 0 {
			req.Body = http.NoBody
			rc.Close()
		}
	}
	resp, err := hc.Do(req)
	timer.Stop()
	if body != nil {
		if own := body.answered(); own != nil { // our own source's, not the network's
			if err == nil {
				resp.Body.Close()
			}
			return fail(own)
		}
	}
	if err != nil {
		return fail(&transportError{withoutURL(u.Host, err)})
	}
	resp.Body = &receivedBody{body: resp.Body, ctx: ctx, cancel: cancel, idle: c.idle, host: u.Host}
	return resp, nil
}

// sentBody is a request's body. The timer runs while the transport is not reading it: then it waits for the server.
type sentBody struct {
	io.ReadCloser
	timer *time.Timer
	wait  time.Duration

	mu   sync.Mutex
	err  error // of the source
	done bool  // the answer is there, though the transport may still read
}

func (b *sentBody) Read(p []byte) (int, error) {
	b.timer.Stop()
	n, err := b.ReadCloser.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.done {
		b.timer.Reset(b.wait)
	}
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

// answered ends the timer's use and returns the error that ended the reading of the source, if one did.
func (b *sentBody) answered() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done = true
	b.timer.Stop()
	return b.err
}

// receivedBody is an answer's body. Only the time spent waiting for the server counts, not what its reader takes to go on.
type receivedBody struct {
	body   io.ReadCloser
	ctx    context.Context // of the request: it holds the cause of its end
	cancel context.CancelCauseFunc
	idle   time.Duration
	host   string
	spent  time.Duration // waited since the last minProgress bytes
	got    int           // arrived in that time
}

func (b *receivedBody) Read(p []byte) (int, error) {
	timer := time.AfterFunc(b.idle-b.spent, func() { b.cancel(errStalled) })
	start := time.Now()
	n, err := b.body.Read(p)
	timer.Stop()
	b.spent += time.Since(start)
	if b.got += n; b.got >= minProgress {
		b.spent, b.got = 0, 0
	}
	if err != nil && err != io.EOF {
		if cause := context.Cause(b.ctx); cause != nil {
			err = cause
		}
		if b.ctx.Err() == nil || errors.Is(err, errStalled) {
			err = &transportError{fmt.Errorf("read from %s: %w", b.host, err)}
		}
	}
	return n, err
}

func (b *receivedBody) Close() error {
	err := b.body.Close()
	b.cancel(nil)
	return err
}

// get makes a request for reading and follows redirections. Credentials go along only as long as every address was the
// host's own. The answer's status is 200, or 206 when the request had a Range; every other one is an error.
func (c *Client) get(ctx context.Context, h *host, r request) (*http.Response, error) {
	at, own := h, true
	for range maxRedirects {
		resp, err := at.do(ctx, r)
		if err != nil {
			return nil, err
		}
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
			location := resp.Header.Get("Location")
			next, err := h.locate(resp.Request.URL, location)
			drain(resp)
			if err != nil {
				return nil, err
			}
			if own = own && h.owns(next); !own {
				if at, err = h.stranger(next, at.way.Scope(ctx)); err != nil {
					return nil, err
				}
				r.scopes = nil
			}
			r.url = next
		case http.StatusOK, http.StatusPartialContent:
			return resp, nil
		default:
			return nil, newStatusError(resp)
		}
	}
	return nil, invalid("%s redirects more than %d times", h.addr, maxRedirects)
}

// stranger returns the host of an address that this host has sent us to. It is asked without credentials, whatever kiln has
// for it, client certificates among them; of its settings only those of trust count. Another port of the same host has the
// settings of this one unless it has its own. It is within the limit, unless kiln.toml names it: then it may be anywhere.
func (h *host) stranger(u *url.URL, limit reach.Scope) (*host, error) {
	set, ok := h.client.settings[u.Host]
	if ok || slices.Contains(h.client.settings[h.name].Realms, u.Host) {
		limit = reach.Anywhere
	}
	if !ok && strings.EqualFold(u.Hostname(), (&url.URL{Host: h.addr}).Hostname()) {
		set = h.client.settings[h.name]
	}
	set.KeyPairs = nil
	transports, err := h.client.transports(u.Host, set)
	if err != nil {
		return nil, err
	}
	s := &host{client: h.client, name: u.Host, addr: u.Host, scheme: u.Scheme}
	s.by(transports.Way(limit))
	s.auth = newAuthorizer(s, nil)
	return s, nil
}

// transports returns the transports for strangers at an address, the same for all that need no settings.
func (c *Client) transports(addr string, set config.Registry) (*reach.Transports, error) {
	if !set.Insecure && len(set.CA) == 0 {
		addr = ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.strangers[addr]; t != nil {
		return t, nil
	}
	t, err := tlsConfig(set)
	if err != nil {
		return nil, fmt.Errorf("use the settings of registry %s: %w", addr, err)
	}
	c.strangers[addr] = newTransports(t)
	return c.strangers[addr], nil
}

// tries counts how often something was tried.
type tries struct {
	client *Client
	failed int
	stalls int
}

// progress begins the count again.
func (t *tries) progress() { t.failed, t.stalls = 0, 0 }

// again waits as long as is due after the failure err and returns nil, or returns err when trying again is pointless.
func (t *tries) again(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	t.failed++
	if errors.Is(err, errStalled) {
		t.stalls++
	}
	if !transient(err) || t.failed >= maxTries || t.stalls >= maxStalls {
		return err
	}
	pause := min(t.client.pause<<(t.failed-1), maxPause)
	pause = pause/2 + rand.N(pause/2+1) // apart, where many wait for one server
	if s, ok := errors.AsType[*statusError](err); ok && s.retryAfter >= 0 {
		pause = min(s.retryAfter, maxRetryAfter)
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(pause):
		return nil
	}
}

// retry calls f until it succeeds or trying again is pointless.
func (c *Client) retry(ctx context.Context, f func() error) error {
	t := tries{client: c}
	for {
		err := f()
		if err == nil {
			return nil
		}
		if err := t.again(ctx, err); err != nil {
			return err
		}
	}
}
