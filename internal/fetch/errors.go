package fetch

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/kilnbuild/kiln/internal/reach"
	"github.com/kilnbuild/kiln/internal/termtext"
)

// ErrStalled is the end of a request whose server sent nothing, or next to nothing, for too long.
var ErrStalled = errors.New("the server fell silent")

// ErrPlainHTTP is a step from https down to http.
var ErrPlainHTTP = errors.New("plain http is refused after https")

// ConnectionError is a connection that could not be made, or broke.
type ConnectionError struct {
	// Host is the "host[:port]" that was asked.
	Host string
	// Doing is "ask" or "read from".
	Doing string
	Err   error
}

func (e *ConnectionError) Error() string { return fmt.Sprintf("%s %s: %v", e.Doing, e.Host, e.Err) }
func (e *ConnectionError) Unwrap() error { return e.Err }

// RedirectError is a redirection that is not followed.
type RedirectError struct{ Err error }

func (e *RedirectError) Error() string { return e.Err.Error() }
func (e *RedirectError) Unwrap() error { return e.Err }

// Transient implements the interface of Transient.
func (e *RedirectError) Transient() bool { return false }

// maxDiagnosis bounds how much of an answer's body is read to find out what is wrong, in bytes.
const maxDiagnosis = 16 << 10

// maxQuote bounds how much of a server's words an error repeats, in bytes.
const maxQuote = 300

// StatusError is an answer whose status is not the wanted one.
type StatusError struct {
	// Host is the "host[:port]" that answered.
	Host   string
	Status int
	// Text is what a registry says in the body (distribution-spec, "Error Codes"); "" for nothing.
	Text string

	retryAfter time.Duration // what the server asks for, or -1
}

// NewStatusError returns the error of an answer, and closes its body.
func NewStatusError(resp *http.Response) *StatusError {
	defer resp.Body.Close()
	e := &StatusError{Host: resp.Request.URL.Host, Status: resp.StatusCode, retryAfter: retryAfter(resp.Header.Get("Retry-After"))}
	Decode(resp)
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxDiagnosis))
	if err != nil {
		return e // the status says enough
	}
	var body struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(data, &body) == nil && len(body.Errors) > 0 {
		first := body.Errors[0]
		e.Text = Quote(strings.Trim(first.Code+": "+first.Message, ": "))
	}
	return e
}

func (e *StatusError) Error() string {
	s := fmt.Sprintf("%s answered %d %s", e.Host, e.Status, http.StatusText(e.Status))
	if e.Text != "" {
		s += ": " + e.Text
	}
	return s
}

// Transient implements the interface of Transient.
func (e *StatusError) Transient() bool {
	return slices.Contains([]int{http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout}, e.Status)
}

// Quote makes a server's words fit for a line of a terminal.
func Quote(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > maxQuote {
		s = strings.ToValidUTF8(s[:maxQuote], "") + "…"
	}
	return s
}

// retryAfter reads the header's seconds or date (RFC 9110, 10.2.3); -1 means that there is none.
func retryAfter(value string) time.Duration {
	if n, err := strconv.Atoi(value); err == nil && n >= 0 {
		return time.Duration(min(n, int(maxRetryAfter/time.Second))) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return min(max(time.Until(at), 0), maxRetryAfter)
	}
	return -1
}

// InvalidError is a document that is not what it must be.
type InvalidError struct{ Err error }

// maxInvalid bounds what an error says of a document, whose parts may have any length, in bytes.
const maxInvalid = 2 << 10

func (e *InvalidError) Error() string { return termtext.Clip(e.Err.Error(), maxInvalid) }
func (e *InvalidError) Unwrap() error { return e.Err }

// Invalid returns an *InvalidError with a text as fmt.Errorf makes it.
func Invalid(format string, args ...any) error { return &InvalidError{fmt.Errorf(format, args...)} }

// IsNotTLS reports whether err is that a server answered in another language than TLS: with HTTP, or with the bare text that some
// servers of HTTP send for what they do not understand.
func IsNotTLS(err error) bool {
	_, ok := errors.AsType[tls.RecordHeaderError](err)
	return ok || errors.Is(err, http.ErrSchemeMismatch)
}

// IsAlert reports whether err is that the server refused to set up TLS, as when it wants a client certificate.
func IsAlert(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error" // as crypto/tls has it
}

// IsTLS reports whether err comes from setting up TLS.
func IsTLS(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return true
	}
	return IsAlert(err) || IsNotTLS(err) || errors.Is(err, ErrPlainHTTP)
}

// Transient reports whether the same request may succeed when it is made again. An error with a method Transient decides itself; of the
// others only a *ConnectionError can be: what this machine fails at is not tried again.
func Transient(err error) bool {
	if t, ok := errors.AsType[interface {
		error
		Transient() bool
	}](err); ok {
		return t.Transient()
	}
	if !errors.As(err, new(*ConnectionError)) {
		return false
	}
	if errors.As(err, new(*reach.Error)) || IsTLS(err) || errors.Is(err, syscall.ECONNREFUSED) {
		return false // nobody listens, or not to us: that does not change in seconds
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return dns.IsTimeout || dns.IsTemporary
	}
	return true
}
