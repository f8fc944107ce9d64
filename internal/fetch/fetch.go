// Package fetch is kiln's one HTTP transport: how connections are made, how long a server may be silent, what is tried again and when,
// and where a redirection may lead. It does not know what is asked for. Credentials are its callers' matter: it neither adds them nor
// passes them on. Where a server may send kiln is package reach's, whose Transports every request goes through.
package fetch

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/reach"
)

// How often and how long things are tried.
const (
	// MaxTries is how often a request is made until it succeeds. Progress begins the count again.
	MaxTries = 5
	// MaxStalls is how many of the tries may end because the server fell silent.
	MaxStalls = 2
	// firstByte is how long a server may take until the first byte of an answer's body: a cache fetches a layer from elsewhere
	// before it answers, and a registry hashes and moves an upload.
	firstByte = 5 * time.Minute
	// prompt is how long it may take for what takes no such work, so that a server that never answers is given up within a minute.
	prompt = 28 * time.Second
	// idle is how long a server may then send, or take, less than MinProgress bytes.
	idle = 28 * time.Second
	// MinProgress, in bytes, is what counts as progress, so that a byte a second does not.
	MinProgress = 16 << 10
	// firstPause is how long to wait before the second try. It doubles from there, up to maxPause.
	firstPause = 200 * time.Millisecond
	maxPause   = 5 * time.Second
	// maxRetryAfter bounds what a server may ask for with Retry-After.
	maxRetryAfter = 20 * time.Second
	// ConnectTimeout bounds making a connection, and the TLS handshake.
	ConnectTimeout = 10 * time.Second
	// MaxRedirects is how many redirections of one request are followed: what browsers do.
	MaxRedirects = 10
	// maxHeader bounds the header of an answer in bytes.
	maxHeader = 64 << 10
	// maxIdleConns is how many connections to one host are kept for later: a push asks for about as many blobs side by side, and a host that
	// does not speak HTTP/2 answers one request on each connection.
	maxIdleConns = 128
	// A peer that does not even acknowledge probes for keepAliveIdle + keepAliveCount × keepAliveInterval, or a ping of HTTP/2 for
	// twice pingTimeout, is dead, not slow.
	keepAliveIdle     = 15 * time.Second
	keepAliveInterval = 5 * time.Second
	keepAliveCount    = 3
	pingTimeout       = 15 * time.Second
)

// UserAgent is what kiln calls itself. A program that speaks for another one sets it before its first request.
var UserAgent = "kiln"

// Patience is how long servers are waited for. There are two limits of silence, since a server that has yet to fetch or to store what it
// is asked for is slow, and one that stops in the middle of a body is not.
type Patience struct {
	// FirstByte bounds the time from a request, once its body is sent, to the first byte of the answer's body.
	FirstByte time.Duration
	// Answer is what FirstByte is for requests that a server can answer at once.
	Answer time.Duration
	// Idle bounds the time in which MinProgress bytes of a body are sent or received after that.
	Idle time.Duration
	// Pause is how long to wait before the second try; it doubles for each further one.
	Pause time.Duration
}

// usual is what Usual returns.
var usual = Patience{FirstByte: firstByte, Answer: prompt, Idle: idle, Pause: firstPause}

// Usual returns what holds outside of tests.
func Usual() Patience { return usual }

// SetUsual makes Usual return another patience. It is for tests of a whole program, which call it before anything is fetched.
func SetUsual(p Patience) { usual = p }

// Prompt returns the patience for a request that a server can answer at once: for a manifest, a token, the existence of a blob.
func (p Patience) Prompt() Patience {
	p.FirstByte = p.Answer
	return p
}

// NewTransports returns what connections are made by. t is the TLS configuration; nil is for the usual one. Bodies are
// not decompressed: digests are of the bytes as they are sent. See Decode.
func NewTransports(t *tls.Config) *reach.Transports {
	if t == nil {
		t = &tls.Config{}
	}
	t.MinVersion = tls.VersionTLS12
	return reach.NewTransports(&http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		TLSClientConfig:        t,
		TLSHandshakeTimeout:    ConnectTimeout,
		MaxIdleConnsPerHost:    maxIdleConns,
		IdleConnTimeout:        90 * time.Second, // net/http's own default
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true,
		ForceAttemptHTTP2:      true,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingTimeout, PingTimeout: pingTimeout},
	}, net.Dialer{
		Timeout:         ConnectTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount},
	})
}

// Socket returns a transport for a server that listens at a Unix socket of this machine, whatever host the address of a request names.
func Socket(path string) http.RoundTripper {
	dialer := net.Dialer{Timeout: ConnectTimeout}
	return &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return dialer.DialContext(ctx, "unix", path) },
		MaxIdleConnsPerHost:    maxIdleConns,
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true,
	}
}

// Do makes a request once and watches that the server goes on. The body of the answer is watched too, and fails with ErrStalled if the
// server falls silent; closing it ends the request. Errors are a *ConnectionError, the cause of the context's end, or that of reading
// the request's own body.
func (p Patience) Do(c *http.Client, r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	began := time.Now()
	timer := time.AfterFunc(p.FirstByte, func() { cancel(ErrStalled) })
	host := r.URL.Host
	r = r.WithContext(ctx)
	var sent *sentBody
	if r.Body != nil && r.Body != http.NoBody {
		sent = &sentBody{ReadCloser: r.Body, timer: timer, patience: p}
		r.Body = sent
	}
	resp, err := c.Do(r)
	timer.Stop()
	if sent != nil {
		if own := sent.answered(); own != nil {
			if err == nil {
				resp.Body.Close()
			}
			cancel(nil)
			return nil, own
		}
		began = sent.ended()
	}
	if err != nil {
		err = p.failure(ctx, host, err)
		cancel(nil)
		return nil, err
	}
	resp.Body = &receivedBody{
		ReadCloser: resp.Body, ctx: ctx, cancel: cancel, host: resp.Request.URL.Host,
		limit: p.FirstByte, idle: p.Idle, spent: time.Since(began),
	}
	return resp, nil
}

// failure returns the error of a request that got no answer. The address that net/http puts before it is left out: that of a redirection
// may hold a signature which opens the file to whoever reads the log.
func (p Patience) failure(ctx context.Context, host string, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, ErrStalled) {
		err = cause
	} else if cause != nil {
		return cause
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return &ConnectionError{Host: host, Doing: "ask", Err: err}
}

// CheckRedirect is the part of http.Client.CheckRedirect that is the same for all: redirections lead to http or https, never from https
// down to http, and not for ever. What is in next.Header for the first host only is the caller's to remove: see SameOrigin.
func CheckRedirect(next *http.Request, via []*http.Request) error {
	last := via[len(via)-1].URL
	switch {
	case len(via) > MaxRedirects:
		return &RedirectError{fmt.Errorf("%s redirects more than %d times", via[0].URL.Host, MaxRedirects)}
	case next.URL.Scheme != "http" && next.URL.Scheme != "https":
		return &RedirectError{fmt.Errorf("%s redirects to an address that is not http or https", last.Host)}
	case last.Scheme == "https" && next.URL.Scheme == "http":
		return &RedirectError{fmt.Errorf("%s redirects to %s: %w", last.Host, next.URL.Host, ErrPlainHTTP)}
	}
	next.URL.User = nil
	next.Header.Del("Referer")
	return nil
}

// SameOrigin reports whether two addresses are of the same scheme, host and port as they are written.
func SameOrigin(a, b *url.URL) bool { return a.Scheme == b.Scheme && strings.EqualFold(a.Host, b.Host) }
