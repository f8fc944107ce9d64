package reach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"
)

// lookupTimeout bounds the search for the addresses of a name that only a proxy may know.
const lookupTimeout = 5 * time.Second

// Error is an address that a server may not send kiln to. Asking again does not help.
type Error struct {
	// Host is the host that was asked for, "host[:port]", Addr what it leads to; the zero Addr if it is not the name of a host.
	Host string
	Addr netip.Addr
}

func (e *Error) Error() string {
	if !e.Addr.IsValid() {
		return fmt.Sprintf("a server sends kiln to %q, which is not the name of a host", e.Host)
	}
	s := e.Host
	if (&url.URL{Host: s}).Hostname() != e.Addr.String() {
		s += " at " + e.Addr.String()
	}
	return fmt.Sprintf("%s is %s, and a server outside of that network may not send kiln there", s, Of(e.Addr))
}

// Limit says how far in a host, by its name or address, may be that is named by what the user did not write; nil is for anywhere.
type Limit func(ctx context.Context, host string) Scope

// Of returns the limit of a host.
func (l Limit) Of(ctx context.Context, host string) Scope {
	if l == nil {
		return Anywhere
	}
	return l(ctx, host)
}

// Transports makes http connections that lead no further in than a limit. It is safe for concurrent use.
type Transports struct {
	base   *http.Transport
	dialer net.Dialer

	mu      sync.Mutex
	direct  map[Scope]*http.Transport // by limit, so that none uses another's connections
	proxied *http.Transport
	hosts   map[string]*Host
}

// NewTransports returns Transports that are like base, but connect as dialer does. A request for which base.Proxy names a proxy
// goes there; where the proxy is does not matter, since the user chose it.
func NewTransports(base *http.Transport, dialer net.Dialer) *Transports {
	return &Transports{base: base, dialer: dialer, direct: map[Scope]*http.Transport{}, hosts: map[string]*Host{}}
}

// CloseIdleConnections closes connections that are not in use.
func (t *Transports) CloseIdleConnections() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, d := range t.direct {
		d.CloseIdleConnections()
	}
	if t.proxied != nil {
		t.proxied.CloseIdleConnections()
	}
}

// transport returns the transport for a limit, or the one for requests by a proxy.
func (t *Transports) transport(limit Scope, proxied bool) *http.Transport {
	t.mu.Lock()
	defer t.mu.Unlock()
	if proxied {
		if t.proxied == nil {
			t.proxied = t.base.Clone()
			t.proxied.DialContext = t.dialer.DialContext
		}
		return t.proxied
	}
	d := t.direct[limit]
	if d == nil {
		d = t.base.Clone()
		d.Proxy = nil
		dialer := t.dialer
		dialer.Control = func(_, address string, _ syscall.RawConn) error { return check(address, limit) }
		d.DialContext = dialer.DialContext
		t.direct[limit] = d
	}
	return d
}

// check returns an *Error if a connection to an address, with a port, leads further in than the limit.
func check(address string, limit Scope) error {
	if limit == Anywhere {
		return nil
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", address, err)
	}
	if Of(at.Addr()) > limit {
		return &Error{at.Addr().String(), at.Addr().Unmap()}
	}
	return nil
}

// Way is how one server is asked, and those that it sends the client on to. It is an http.RoundTripper, and safe for concurrent
// use.
//
// The first request of a http.Client, and every request that has no Response, leads anywhere within the limit. A redirection, whose
// request has one, leads no further in than any server was that answered on this way before.
type Way struct {
	t     *Transports
	limit Scope

	mu    sync.Mutex
	scope Scope           // of the outermost address that answered
	names map[string]bool // of hosts that a proxy asked, whose addresses are not known yet
}

// Way returns a way that leads within the limit: Anywhere for a host that the user named.
func (t *Transports) Way(limit Scope) *Way {
	return &Way{t: t, limit: limit, scope: Anywhere, names: map[string]bool{}}
}

// Scope returns how far in the servers of this way can be that it is sent on to.
func (w *Way) Scope(ctx context.Context) Scope {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name := range w.names {
		w.scope = min(w.scope, w.t.host(name).find(ctx).Low)
	}
	clear(w.names)
	return min(w.scope, w.limit)
}

// RoundTrip implements http.RoundTripper. Its error is an *Error if the request leads further in than it may.
func (w *Way) RoundTrip(r *http.Request) (*http.Response, error) {
	limit := w.limit
	if r.Response != nil {
		limit = w.Scope(r.Context())
	}
	var proxy *url.URL
	var err error
	if w.t.base.Proxy != nil {
		if proxy, err = w.t.base.Proxy(r); err != nil {
			return nil, fail(r, err)
		}
	}
	if proxy != nil {
		return w.byProxy(r, limit)
	}
	trace := &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) {
		if at, err := netip.ParseAddrPort(c.Conn.RemoteAddr().String()); err == nil {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.scope = min(w.scope, Of(at.Addr()))
		}
	}}
	resp, err := w.t.transport(limit, false).RoundTrip(r.WithContext(httptrace.WithClientTrace(r.Context(), trace)))
	if refused, ok := errors.AsType[*Error](err); ok {
		return nil, &Error{r.URL.Host, refused.Addr}
	}
	return resp, err
}

// byProxy makes a request by a proxy, which connects to whatever it is told to. So the name's addresses are looked at here. A name
// that this machine does not know is the proxy's matter.
func (w *Way) byProxy(r *http.Request, limit Scope) (*http.Response, error) {
	name := r.URL.Hostname()
	if limit < Anywhere {
		h := w.t.host(name).find(r.Context())
		if errors.As(h.err, new(*Error)) || h.High > limit {
			return nil, fail(r, &Error{r.URL.Host, h.inner})
		}
	}
	w.mu.Lock()
	w.names[name] = true
	w.mu.Unlock()
	return w.t.transport(limit, true).RoundTrip(r)
}

// fail closes the body of a request that is not made, as a RoundTripper has to.
func fail(r *http.Request, err error) error {
	if r.Body != nil {
		r.Body.Close()
	}
	return err
}

// host returns what is known of a host, which is looked up once.
func (t *Transports) host(name string) *Host {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.hosts[name]
	if h == nil {
		h = &Host{name: name}
		t.hosts[name] = h
	}
	return h
}

// Host is where a host is.
type Host struct {
	// Low and High are the scopes of its outermost and innermost address; both are Internet if none is known.
	Low, High Scope

	name  string
	mu    sync.Mutex
	known bool
	addrs []netip.Addr
	inner netip.Addr
	err   error // an *Error if it is not a name
}

// Find looks up a host by its name or address, without a port. What it has found once stays.
func (t *Transports) Find(ctx context.Context, name string) *Host { return t.host(name).find(ctx) }

func (h *Host) find(ctx context.Context) *Host {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.known {
		return h
	}
	h.addrs, h.err = lookup(ctx, h.name)
	h.known = ctx.Err() == nil
	for i, a := range h.addrs {
		s := Of(a)
		if i == 0 || s < h.Low {
			h.Low = s
		}
		if i == 0 || s > h.High {
			h.High, h.inner = s, a
		}
	}
	return h
}

// Addr returns an address of the host that leads no further in than the limit. The error is an *Error if there are only others.
func (h *Host) Addr(limit Scope) (netip.Addr, error) {
	if h.err != nil {
		return netip.Addr{}, h.err
	}
	for _, a := range h.addrs {
		if Of(a) <= limit {
			return a, nil
		}
	}
	return netip.Addr{}, &Error{h.name, h.inner}
}

// lookup returns the addresses of a host. Names that programs read in different ways, as "0x7f.1", are errors.
func lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	plain := strings.TrimSuffix(name, ".")
	if a, err := netip.ParseAddr(plain); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	last := plain[strings.LastIndexByte(plain, '.')+1:]
	strange := strings.ContainsFunc(plain, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '%' })
	if strange || last == "" || last[0] >= '0' && last[0] <= '9' {
		return nil, &Error{Host: name}
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	list, err := net.DefaultResolver.LookupNetIP(ctx, "ip", plain)
	if err != nil {
		return nil, err
	}
	for i := range list {
		list[i] = list[i].Unmap()
	}
	return list, nil
}
