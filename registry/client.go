// Package registry resolves, pulls and pushes images from and to registries that speak the OCI distribution protocol, and their mirrors.
// Every byte is verified against its digest and size while it streams. The package does not look into layers, and does not know what a
// build is.
//
// Credentials are sent only to the registry that they are for, and to the token servers that package auth allows. Requests to all other
// hosts, such as the one that a blob is redirected to, carry none.
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
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/once"
	"github.com/kilnbuild/kiln/internal/reach"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/registry/auth"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"
)

// hubHost is the host behind docker.io.
const hubHost = "registry-1.docker.io"

// abandonTimeout is how long a registry may take to forget an upload.
const abandonTimeout = 2 * time.Second

// parallel is how many large blobs are transferred at once: enough for a fast line, and within the limits of registries.
const parallel = 5

// Client is a client of registries. It is safe for concurrent use, and reuses tokens and connections.
type Client struct {
	settings config.Registries
	creds    *auth.Keychain
	// shown decides which documents of a store count; nil for all. See WithCredentials.
	shown    Shown
	patience fetch.Patience
	certs    string // certsDir, or another in tests
	uploads  once.Group[sentBlob, struct{}]

	mu    sync.Mutex
	hosts map[string]*host
	// direct are the transports for hosts.
	direct []*reach.Transports
	// strangers are the transports for hosts that a registry sends kiln to.
	strangers map[string]*reach.Transports
	// last is the host that answered for a registry last, by the registry's name: it is asked first.
	last map[string]string
	// bad are the hosts that sent a blob with other content than its digest says.
	bad map[badBlob]bool
	// named are CheckPush's questions for what names stand for, until Push is called.
	named map[imagename.Name]*naming
}

type badBlob struct {
	host   string
	digest digest.Digest
}

// New returns a Client with the settings of kiln.toml. It reads files and makes connections only when it is used, and Docker's
// configuration only when a registry asks for credentials.
func New(settings config.Registries) *Client {
	return &Client{
		settings:  settings,
		creds:     auth.NewKeychain(settings),
		patience:  fetch.Usual(),
		certs:     certsDir,
		hosts:     map[string]*host{},
		strangers: map[string]*reach.Transports{},
		last:      map[string]string{},
		bad:       map[badBlob]bool{},
		named:     map[imagename.Name]*naming{},
	}
}

// Shown are the manifests, indexes and configs that registries have shown to somebody. It is safe for concurrent use.
type Shown interface {
	// Has reports whether the document with a digest was had from a repository, "registry/repository".
	Has(repository string, d digest.Digest) bool
	// Add notes that it was.
	Add(repository string, d digest.Digest) error
}

// WithCredentials returns a Client with the settings of c, but with the credentials of a source alone, and without any token or connection
// of c. A document that is in a store counts for it only if shown has it: otherwise whoever knows a digest could have what others were
// shown with their credentials. With nil all do. The Client is closed when it is no longer used.
func (c *Client) WithCredentials(s auth.Source, shown Shown) *Client {
	other := New(c.settings)
	other.patience, other.certs, other.creds, other.shown = c.patience, c.certs, auth.From(s), shown
	return other
}

// Close closes the connections that nothing is using. Others close by themselves after a while.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.direct {
		t.CloseIdleConnections()
	}
	for _, t := range c.strangers {
		t.CloseIdleConnections()
	}
}

// Insecure returns a Client for which the certificate of a registry does not count, and which speaks plain HTTP if the registry does not
// speak HTTPS. It has the credentials of c, but no connections or tokens of it.
func (c *Client) Insecure(registry string) *Client {
	other := New(c.settings.Insecure(registry))
	other.creds, other.patience, other.certs, other.shown = c.creds, c.patience, c.certs, c.shown
	return other
}

// host is a server.
type host struct {
	client *Client
	name   string // as in kiln.toml: "docker.io", "mirror.corp:5000"
	addr   string // "host[:port]" in addresses
	way    *reach.Way
	http   *http.Client // by way
	auth   *auth.Authorizer
	// sending is held by what is being sent, by size: see upload.room.
	sending *semaphore.Weighted

	mu     sync.Mutex
	scheme string
	// mayFall means that the scheme is https and becomes http if the server speaks that, as registries on loopback may; fell that it
	// did.
	mayFall, fell bool
	// whole means that the host takes blobs only as a whole.
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
	t, err := c.tlsConfig(set)
	if err != nil {
		return nil, fmt.Errorf("use the settings of registry %s: %w", name, err)
	}
	h := &host{client: c, name: name, addr: name, scheme: "https", sending: semaphore.NewWeighted(bytesAtOnce)}
	if name == config.DockerHub {
		h.addr = hubHost
	}
	if set.HTTP {
		h.scheme = "http"
	} else {
		h.mayFall = set.Fallback || reach.IsLoopback(h.addr)
	}
	transports := fetch.NewTransports(t)
	c.direct = append(c.direct, transports)
	h.by(transports.Way(reach.Anywhere))
	h.auth = auth.New(h, c.creds)
	c.hosts[name] = h
	return h, nil
}

// by sets the way by which the host is asked.
func (h *host) by(w *reach.Way) {
	h.way, h.http = w, &http.Client{Transport: w, CheckRedirect: stay}
}

// stay keeps net/http from following redirections: see Client.get.
func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func (c *Client) tlsConfig(set config.Registry) (*tls.Config, error) {
	t := &tls.Config{InsecureSkipVerify: set.Insecure}
	if ca := slices.Concat(c.settings[config.Every].CA, set.CA); len(ca) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			return nil, err
		}
		for _, file := range ca {
			pem, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			if !pool.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("%s has no certificate in PEM form", rootdir.Shown(file))
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

// endpoints returns where to ask for a registry's images: the mirrors in their order, then the registry itself, but first of all the one
// that answered last.
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

// pullScope returns the scope for reading a repository; see "Token Scope Documentation" of distribution.
func (ep endpoint) pullScope(repository string) string {
	return "repository:" + ep.repository(repository) + ":pull"
}

// Name implements auth.Server.
func (h *host) Name() string { return h.name }

// Addr implements auth.Server.
func (h *host) Addr() string { return h.addr }

// Realms implements auth.Server.
func (h *host) Realms() []string { return h.client.settings[h.name].Realms }

// Ask implements auth.Server. An address that is not the host's own is asked as that of a stranger.
func (h *host) Ask(r *http.Request) (*http.Response, error) {
	at := h
	if !h.Owns(r.URL) {
		var err error
		if at, err = h.stranger(r.URL, h.way.Scope(r.Context())); err != nil {
			return nil, err
		}
	}
	r.Header.Set("User-Agent", fetch.UserAgent)
	return h.client.patience.Prompt().Do(at.http, r)
}

// Scheme implements auth.Server.
func (h *host) Scheme() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.scheme
}

// fall switches to plain http if that is allowed, and reports whether to make the request again.
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

// closed reports whether nobody listens where https is by default, while http may be spoken where that is by default.
func (h *host) closed(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) && (&url.URL{Host: h.addr}).Port() == ""
}

// watchHandshakes returns a context for requests to the host, and a function that reports whether a handshake of one of them broke.
func watchHandshakes(ctx context.Context) (context.Context, func() bool) {
	broke := &atomic.Bool{}
	trace := &httptrace.ClientTrace{TLSHandshakeDone: func(_ tls.ConnectionState, err error) {
		if broken(err) {
			broke.Store(true)
		}
	}}
	return httptrace.WithClientTrace(ctx, trace), broke.Load
}

// takesWhole reports whether the host takes blobs only as a whole.
func (h *host) takesWhole() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.whole
}

// takeWhole records that the host takes blobs only as a whole.
func (h *host) takeWhole() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.whole = true
}

// settle returns the address with the scheme that the host speaks, in case that was found out after the address was made.
func (h *host) settle(u *url.URL) *url.URL {
	h.mu.Lock()
	defer h.mu.Unlock()
	settled := *u
	if h.fell && u.Host == h.addr {
		settled.Scheme = h.scheme
	}
	return &settled
}

// Owns reports whether an address is on this host: the same scheme, name and port.
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

// locate resolves a Location that the host sent. Registries behind a proxy may send http for their own address although they speak https:
// that is corrected. Any other step from https to http is an error.
func (h *host) locate(from *url.URL, location string) (*url.URL, error) {
	u, err := from.Parse(location)
	if err != nil || location == "" {
		return nil, fetch.Invalid("%s sent an invalid Location %q", from.Host, fetch.Quote(location))
	}
	if u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" {
		return nil, fetch.Invalid("%s sent a Location that is not http or https", from.Host)
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
	// open opens the body, of length bytes; nil for a request without a body.
	open   func() (io.ReadCloser, error)
	length int64
	// scopes are those of the token that it needs.
	scopes []string
	// work says that the registry may have to fetch, hash or store a blob before it answers.
	work bool
}

// maxChallenges bounds how often one request is repeated with other credentials: it is made without any first, then with a token that may
// have just expired, then with a new one.
const maxChallenges = 3

// do makes a request and returns the answer whatever its status. Credentials are sent only if the address is the host's own. Redirections
// are not followed.
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
		if err != nil && u.Scheme == "https" && u.Host == h.addr && ctx.Err() == nil && (fetch.IsNotTLS(err) || broke() || h.closed(err)) && h.fall() {
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
	patience := c.patience
	if !r.work {
		patience = patience.Prompt()
	}
	return patience.Do(hc, req)
}

// get makes a request for reading and follows redirections. Credentials are sent only while every address so far was the host's own. The
// status of the answer is 200, or 206 if the request had a Range; any other is an error.
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

// transports returns the transports for strangers at an address. Those without settings share one.
func (c *Client) transports(addr string, set config.Registry) (*reach.Transports, error) {
	if !set.Insecure && len(set.CA) == 0 {
		addr = ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.strangers[addr]; t != nil {
		return t, nil
	}
	t, err := c.tlsConfig(set)
	if err != nil {
		return nil, fmt.Errorf("use the settings of registry %s: %w", addr, err)
	}
	c.strangers[addr] = fetch.NewTransports(t)
	return c.strangers[addr], nil
}
