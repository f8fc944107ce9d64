package httpsource

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kilnbuild/kiln/internal/reach"
)

// StatusError is an answer that is not the file.
type StatusError struct {
	Host   string
	Status int

	retryAfter time.Duration // -1 where the server said nothing
}

func (e *StatusError) Error() string {
	s := fmt.Sprintf("%s answers %d %s", e.Host, e.Status, http.StatusText(e.Status))
	switch e.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		name := (&url.URL{Host: e.Host}).Hostname()
		s += fmt.Sprintf(" (if the file is private, give --secret id=HTTP_AUTH_TOKEN_%s,env=VARIABLE or HTTP_AUTH_HEADER_%s)", name, name)
	case http.StatusNotFound, http.StatusGone:
		s += " (check the address)"
	}
	return s
}

var (
	errStalled   = errors.New("the server has fallen silent")
	errPlainHTTP = errors.New("plain http is refused after https")
)

// authorization returns the header for the request's own host; "" for none.
func (c *Client) authorization(r Request) (string, error) {
	if r.User != "" {
		user := r.User
		if !strings.Contains(user, ":") {
			user += ":"
		}
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user)), nil
	}
	u, err := url.Parse(r.URL)
	if err != nil {
		return "", errors.New("the address is not a URL")
	}
	for _, prefix := range []string{"HTTP_AUTH_HEADER_", "HTTP_AUTH_TOKEN_"} {
		value, ok, err := c.secret(prefix + u.Hostname())
		if err != nil {
			return "", err
		}
		if !ok {
			continue
		}
		v := strings.TrimSpace(string(value))
		if strings.ContainsAny(v, "\r\n\x00") {
			return "", fmt.Errorf("secret %s%s has more than one line, and cannot be sent in a header", prefix, u.Hostname())
		}
		if prefix == "HTTP_AUTH_TOKEN_" {
			v = "Bearer " + v
		}
		return v, nil
	}
	return "", nil
}

// run tries until the file is there.
func (d *download) run(ctx context.Context) error {
	way := d.request.Way
	if way == nil {
		t := transports()
		defer t.CloseIdleConnections()
		u, err := url.Parse(d.request.URL)
		if err != nil {
			return errors.New("the address is not a URL")
		}
		way = t.Way(d.c.Limit.Of(ctx, u.Hostname()))
	}
	client := &http.Client{Transport: way, CheckRedirect: d.redirect}
	d.hashes()
	for failed, stalls := 0, 0; ; {
		resumed, err := d.try(ctx, client)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if resumed {
			failed, stalls = 0, 0
		}
		failed++
		if errors.Is(err, errStalled) {
			stalls++
		}
		if !transient(err) || failed >= maxTries || stalls >= maxStalls {
			return err
		}
		pause := min(d.c.pause<<(failed-1), maxPause)
		pause = pause/2 + rand.N(pause/2+1)
		var status *StatusError
		if errors.As(err, &status) && status.retryAfter >= 0 {
			pause = min(status.retryAfter, maxRetryAfter)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// redirect says where the client may be sent. What is for the first host goes to no other.
func (d *download) redirect(next *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("%s redirects more than %d times", via[0].URL.Host, maxRedirects)
	}
	last := via[len(via)-1].URL
	if next.URL.Scheme != "http" && next.URL.Scheme != "https" {
		return fmt.Errorf("%s redirects to what is not http or https", last.Host)
	}
	if last.Scheme == "https" && next.URL.Scheme == "http" {
		return fmt.Errorf("%s redirects to %s: %w", last.Host, next.URL.Host, errPlainHTTP)
	}
	next.URL.User = nil
	next.Header.Del("Referer")
	for _, r := range append(via[1:len(via):len(via)], next) {
		if r.URL.Scheme != via[0].URL.Scheme || !strings.EqualFold(r.URL.Host, via[0].URL.Host) {
			next.Header.Del("Authorization")
			for name := range d.request.Header {
				next.Header.Del(name)
			}
		}
	}
	return nil
}

// transports returns what the file of one download is fetched by.
func transports() *reach.Transports {
	return reach.NewTransports(&http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    connectTimeout,
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true, // a file is what the server has, and digests are of that
		ForceAttemptHTTP2:      true,
	}, net.Dialer{Timeout: connectTimeout, KeepAlive: 30 * time.Second})
}

// try makes one request, and reads its answer into the file. resumed says that bytes came after those of an earlier one.
func (d *download) try(ctx context.Context, client *http.Client) (resumed bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(d.c.idle, func() { cancel(errStalled) })
	defer timer.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.request.URL, nil)
	if err != nil {
		return false, errors.New("the address is not a URL")
	}
	maps.Copy(req.Header, d.request.Header)
	req.Header.Set("User-Agent", "kiln")
	req.Header.Set("Accept-Encoding", "identity")
	if d.authorization != "" {
		req.Header.Set("Authorization", d.authorization)
	}
	switch {
	case d.size > 0 && d.validator != "":
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", d.size))
		req.Header.Set("If-Range", d.validator)
	case d.old != nil:
		if d.old.ETag != "" {
			req.Header.Set("If-None-Match", d.old.ETag)
		} else if d.old.Settled {
			req.Header.Set("If-Modified-Since", d.old.LastModified)
		}
	}
	resp, err := client.Do(req)
	if err != nil {
		return false, failure(ctx, err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusNotModified:
		if d.old == nil || req.Header.Get("Range") != "" {
			return false, fmt.Errorf("%s answers 304 to a request without condition", resp.Request.URL.Host)
		}
		d.unchanged = true
		return false, nil
	case http.StatusOK:
		etag := resp.Header.Get("ETag")
		if d.old != nil && etag != "" && etag == d.old.ETag && !strings.HasPrefix(etag, "W/") {
			d.unchanged = true // a server that does not look at conditions
			return false, nil
		}
		if err := d.begin(resp); err != nil {
			return false, err
		}
	case http.StatusPartialContent:
		if req.Header.Get("Range") == "" || !strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", d.size)) {
			return false, fmt.Errorf("%s answers with another part than it was asked for", resp.Request.URL.Host)
		}
		resumed = true
	default:
		return false, &StatusError{Host: resp.Request.URL.Host, Status: resp.StatusCode, retryAfter: retryAfter(resp.Header.Get("Retry-After"))}
	}
	n := d.size
	err = d.read(resp.Body, timer)
	if err != nil {
		err = failure(ctx, err)
	}
	return resumed && d.size > n, err
}

// begin starts over with an answer that has the whole file.
func (d *download) begin(resp *http.Response) error {
	if _, err := d.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := d.file.Truncate(0); err != nil {
		return err
	}
	d.hashes()
	d.total = max(0, resp.ContentLength)
	d.etag, d.modified, d.validator, d.settled = resp.Header.Get("ETag"), "", "", false
	if t, err := http.ParseTime(resp.Header.Get("Last-Modified")); err == nil {
		d.modified = t.UTC().Format(http.TimeFormat)
		answered, err := http.ParseTime(resp.Header.Get("Date"))
		d.settled = err == nil && answered.Sub(t) >= settled
	}
	if d.etag != "" && !strings.HasPrefix(d.etag, "W/") && resp.Header.Get("Accept-Ranges") != "none" {
		d.validator = d.etag
	}
	return nil
}

// read appends the body to the file.
func (d *download) read(body io.Reader, timer *time.Timer) error {
	buf := make([]byte, 128<<10)
	since := 0
	for {
		n, err := body.Read(buf)
		if since += n; since >= minProgress {
			timer.Reset(d.c.idle)
			since = 0
		}
		if n > 0 {
			if limit := d.request.MaxSize; limit > 0 && d.size+int64(n) > limit {
				return fmt.Errorf("the file is larger than the %d bytes that are announced", limit)
			}
			if d.size+int64(n) > d.c.limit {
				return fmt.Errorf("the file is larger than the %d GiB that are allowed", MaxSize>>30)
			}
			if _, err := d.file.Write(buf[:n]); err != nil {
				return &localError{err}
			}
			d.sum.Write(buf[:n])
			if d.other != nil {
				d.other.Write(buf[:n])
			}
			d.size += int64(n)
			if d.request.Received != nil {
				d.request.Received(d.size, d.total)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// localError is a failure of this machine.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

// failure returns err without the address that net/http puts before it, which may hold a signature.
func failure(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// transient reports whether trying again may help.
func transient(err error) bool {
	var status *StatusError
	if errors.As(err, &status) {
		switch status.Status {
		case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
			http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true
		}
		return false
	}
	if errors.As(err, new(*localError)) || errors.As(err, new(*reach.Error)) || errors.As(err, new(*tls.CertificateVerificationError)) ||
		errors.Is(err, errPlainHTTP) || errors.Is(err, syscall.ECONNREFUSED) {
		return false
	}
	if errors.Is(err, errStalled) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return true
	}
	if dns := (*net.DNSError)(nil); errors.As(err, &dns) {
		return dns.IsTimeout || dns.IsTemporary
	}
	var network net.Error
	return errors.As(err, &network)
}

// retryAfter reads the header, in seconds or as a date; -1 for none.
func retryAfter(v string) time.Duration {
	if n, err := strconv.Atoi(v); err == nil && n >= 0 {
		return time.Duration(min(n, int(maxRetryAfter/time.Second))) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(t))
	}
	return -1
}
