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
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/reach"
	"github.com/kilnbuild/kiln/registry/auth"
	"github.com/opencontainers/go-digest"
)

// hubHost is the host behind docker.io.
const hubHost = "registry-1.docker.io"

// abandonTimeout is how long a registry may take to forget an upload.
const abandonTimeout = 2 * time.Second

// parallel is how many blobs go side by side: what fills a fast line without tripping registries' limits.
const parallel = 5

// Client talks to registries. Its methods may be called from several goroutines at once; tokens and connections are kept
// from one call to the next.
type Client struct {
	settings config.Registries
	creds    *auth.Keychain
	patience fetch.Patience
	certs    string // certsDir, or another in tests

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
		creds:     auth.NewKeychain(),
		patience:  fetch.Usual(),
		certs:     certsDir,
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
	auth   *auth.Authorizer

	mu     sync.Mutex
	scheme string
	// mayFall says that the scheme is https and becomes http if that is what the server speaks: a loopback registry. Fell
	// says that it did.
	mayFall, fell bool
	// whole says that the host takes blobs only as a whole.
	whole bool
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
	set, _, err := c.settingsOf(name)
	if err != nil {
		return nil, err
	}
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
		h.mayFall = reach.IsLoopback(h.addr)
	}
	h.by(fetch.NewTransports(t).Way(reach.Anywhere))
	h.auth = auth.New(h, c.creds)
	c.hosts[name] = h
	return h, nil
}

// by sets how the host is asked.
func (h *host) by(w *reach.Way) {
	h.way, h.http = w, &http.Client{Transport: w, CheckRedirect: stay}
}

// stay keeps net/http from following redirections: see Client.follow.
func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func tlsConfig(set config.Registry) (*tls.Config, error) {
	t := &tls.Config{InsecureSkipVerify: set.Insecure}
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
	u := &url.URL{Scheme: ep.Scheme(), Host: ep.addr, Path: "/v2/" + ep.repository(repository) + "/" + kind + "/" + what}
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

// Name implements auth.Server.
func (h *host) Name() string { return h.name }

// Addr implements auth.Server.
func (h *host) Addr() string { return h.addr }

// Realms implements auth.Server.
func (h *host) Realms() []string { return h.client.settings[h.name].Realms }

// Ask implements auth.Server: another address than one of the host itself is asked as a stranger's. Redirections are not followed.
func (h *host) Ask(r *http.Request) (*http.Response, error) {
	at := h
	if !h.Owns(r.URL) {
		var err error
		if at, err = h.stranger(r.URL, h.way.Scope(r.Context())); err != nil {
			return nil, err
		}
	}
	r.Header.Set("User-Agent", fetch.UserAgent)
	return h.client.patience.Do(at.http, r)
}

// Scheme implements auth.Server.
func (h *host) Scheme() string {
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

// broken reports whether a TLS handshake failed because the server closed the connection or said nothing, as some servers of plain http
// do when they receive one.
func broken(handshake error) bool {
	timeout, ok := errors.AsType[net.Error](handshake)
	return errors.Is(handshake, io.EOF) || errors.Is(handshake, syscall.ECONNRESET) || ok && timeout.Timeout()
}

// watchHandshakes returns a context for requests to the host, and what tells whether a handshake in one of them broke.
func watchHandshakes(ctx context.Context) (context.Context, func() bool) {
	broke := &atomic.Bool{}
	trace := &httptrace.ClientTrace{TLSHandshakeDone: func(_ tls.ConnectionState, err error) {
		if broken(err) {
			broke.Store(true)
		}
	}}
	return httptrace.WithClientTrace(ctx, trace), broke.Load
}

// takesWhole reports whether the host was found to take blobs only as a whole, takeWhole notes that it does.
func (h *host) takesWhole() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.whole
}

func (h *host) takeWhole() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.whole = true
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

// Owns tells whether an address is on this host: the same scheme, name and port.
func (h *host) Owns(u *url.URL) bool {
	return u.Scheme == h.Scheme() && portOf(u) == portOf(&url.URL{Scheme: u.Scheme, Host: h.addr}) &&
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
		return nil, fetch.Invalid("%s sent the address %q, which is none", from.Host, fetch.Quote(location))
	}
	if u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" {
		return nil, fetch.Invalid("%s sent an address that is not http or https", from.Host)
	}
	if from.Scheme == "https" && u.Scheme == "http" {
		if from.Host != h.addr || u.Hostname() != from.Hostname() {
			return nil, fmt.Errorf("%s sends to %s: %w", from.Host, u.Host, fetch.ErrPlainHTTP)
		}
		u.Scheme = "https"
		if u.Port() == "80" {
			u.Host = u.Hostname()
		}
	}
	u.User = nil
	return u, nil
}

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
}

// maxChallenges is how often one request is made with other credentials because the server asked for them: at first
// without any, then with a token that may have just ended, then with a new one.
const maxChallenges = 3

// do makes a request, with the host's credentials where the address is the host's own, and returns the answer whatever its
// status. Redirections are not followed.
func (h *host) do(ctx context.Context, r request) (*http.Response, error) {
	for challenge := 0; ; challenge++ {
		u := h.settle(r.url)
		own := h.Owns(u)
		var authorization string
		if own {
			var err error
			if authorization, err = h.auth.Header(ctx, r.scopes); err != nil {
				return nil, err
			}
		}
		watched, broke := watchHandshakes(ctx)
		resp, err := h.client.send(watched, h.http, r, u, authorization)
		// Not own: another request may have found that out between settle and Owns.
		if err != nil && u.Scheme == "https" && u.Host == h.addr && ctx.Err() == nil && (fetch.IsNotTLS(err) || broke()) && h.fall() {
			continue // it is plain http now
		}
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusUnauthorized || !own || challenge == maxChallenges {
			return resp, nil
		}
		retry, err := h.auth.Renew(ctx, resp.Header, r.scopes, authorization)
		if err != nil {
			resp.Body.Close()
			return nil, err
		}
		if !retry {
			return resp, nil
		}
		fetch.Drain(resp)
	}
}

// send makes one request.
func (c *Client) send(ctx context.Context, hc *http.Client, r request, u *url.URL, authorization string) (*http.Response, error) {
	req := (&http.Request{Method: r.method, URL: u, Host: u.Host, Header: http.Header{}}).WithContext(ctx)
	for name, values := range r.header {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", fetch.UserAgent)
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	if r.open != nil {
		body, err := r.open()
		if err != nil {
			return nil, err
		}
		req.Body, req.ContentLength = body, r.length
		if r.length == 0 {
			req.Body = http.NoBody
			body.Close()
		}
	}
	return c.patience.Do(hc, req)
}

// get makes a request for reading and follows redirections. Credentials go along only as long as every address was the
// host's own. The answer's status is 200, or 206 when the request had a Range; every other one is an error.
func (c *Client) get(ctx context.Context, h *host, r request) (*http.Response, error) {
	at, own := h, true
	for range fetch.MaxRedirects {
		resp, err := at.do(ctx, r)
		if err != nil {
			return nil, err
		}
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
			location := resp.Header.Get("Location")
			next, err := h.locate(resp.Request.URL, location)
			fetch.Drain(resp)
			if err != nil {
				return nil, err
			}
			if own = own && h.Owns(next); !own {
				if at, err = h.stranger(next, at.way.Scope(ctx)); err != nil {
					return nil, err
				}
				r.scopes = nil
			}
			r.url = next
		case http.StatusOK, http.StatusPartialContent:
			return resp, nil
		default:
			return nil, fetch.NewStatusError(resp)
		}
	}
	return nil, fetch.Invalid("%s redirects more than %d times", h.addr, fetch.MaxRedirects)
}

// stranger returns the host of an address that this host has sent kiln to. It is asked without any credentials, client certificates
// included: of its settings only those of trust count. Another port of the same host has the settings of this one unless it has its own. It
// is within the limit, unless kiln.toml names it: then it may be anywhere.
func (h *host) stranger(u *url.URL, limit reach.Scope) (*host, error) {
	set, named, err := h.client.settingsOf(u.Host)
	if err != nil {
		return nil, err
	}
	if named || slices.Contains(h.Realms(), u.Host) {
		limit = reach.Anywhere
	}
	if !named && len(set.CA) == 0 && strings.EqualFold(u.Hostname(), (&url.URL{Host: h.addr}).Hostname()) {
		if set, _, err = h.client.settingsOf(h.name); err != nil {
			return nil, err
		}
	}
	set.KeyPairs = nil
	transports, err := h.client.transports(u.Host, set)
	if err != nil {
		return nil, err
	}
	s := &host{client: h.client, name: u.Host, addr: u.Host, scheme: u.Scheme}
	s.by(transports.Way(limit))
	s.auth = auth.New(s, nil)
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
	c.strangers[addr] = fetch.NewTransports(t)
	return c.strangers[addr], nil
}
