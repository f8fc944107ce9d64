package registry

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/reach"
	"github.com/kilnbuild/kiln/internal/termtext"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Kind is what sort of failure an Error is.
type Kind string

// The kinds of failure.
const (
	// NotFound: the registry has no such repository, tag or blob, or does not say because access is denied.
	NotFound Kind = "not found"
	// Unauthorized: there are no credentials, wrong ones, or ones without the right.
	Unauthorized Kind = "unauthorized"
	// Credentials: the credentials could not be got, or must not be sent where the registry wants them.
	Credentials Kind = "credentials"
	// RateLimited: the registry answered 429 until kiln gave up.
	RateLimited Kind = "rate limited"
	// TLS: the connection is not secure in the way it must be.
	TLS Kind = "tls"
	// Unreachable: no connection, or the server fell silent.
	Unreachable Kind = "unreachable"
	// Invalid: what the registry sent is wrong: another digest, no manifest, too large.
	Invalid Kind = "invalid"
	// Refused: any other answer that is no success.
	Refused Kind = "refused"
)

// Error is a failure to get something from a registry or to bring it there.
type Error struct {
	// Op is what was being done, "pull" or "push".
	Op string
	// Ref is the image's full name.
	Ref string
	// Registry is the host that was asked: the registry or a mirror.
	Registry string
	// Repository is the image's name in the registry.
	Repository string
	Kind       Kind
	// Status is the HTTP status of the answer, 0 where there was none.
	Status int
	// Advice says what to do about it, or "".
	Advice string
	// Err is what happened.
	Err error
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s %s: %v", e.Op, e.Ref, e.Err)
	if e.Advice != "" {
		s += "; " + e.Advice
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// PlatformError says that an image does not exist for a platform.
type PlatformError struct {
	// Ref is the image's name.
	Ref string
	// Want is the platform asked for, Have those that exist, as "os/arch[/variant]".
	Want string
	Have []string
}

func (e *PlatformError) Error() string {
	if len(e.Have) == 0 {
		return fmt.Sprintf("%s has no image for any platform", e.Ref)
	}
	return fmt.Sprintf("%s has no image for %s; it has %s", e.Ref, e.Want, termtext.List(e.Have))
}

// maxDiagnosis bounds how much of an answer's body is read to find out what is wrong, in bytes.
const maxDiagnosis = 16 << 10

// maxQuote bounds how much of a server's words an error repeats, in bytes.
const maxQuote = 300

// statusError is an answer that is no success.
type statusError struct {
	host       string
	status     int
	text       string        // the server's words
	retryAfter time.Duration // what the server asks for, or -1
}

func (e *statusError) Error() string {
	s := fmt.Sprintf("%s answered %d %s", e.host, e.status, http.StatusText(e.status))
	if e.text != "" {
		s += ": " + e.text
	}
	return s
}

// newStatusError reads the diagnosis from the body (distribution-spec, spec.md, "Error Codes") and closes it.
func newStatusError(resp *http.Response) *statusError {
	defer resp.Body.Close()
	e := &statusError{host: resp.Request.URL.Host, status: resp.StatusCode, retryAfter: retryAfter(resp.Header.Get("Retry-After"))}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxDiagnosis))
	if err != nil {
		return e // the status says enough
	}
	var body struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(data, &body) == nil && len(body.Errors) > 0 {
		first := body.Errors[0]
		e.text = quote(strings.Trim(first.Code+": "+first.Message, ": "))
	}
	return e
}

// quote makes a server's words fit for a line of a terminal.
func quote(s string) string {
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

// retryAfter reads the header's seconds or date (RFC 9110, 10.2.3); -1 means there is none.
func retryAfter(value string) time.Duration {
	if value == "" {
		return -1
	}
	if n, err := strconv.Atoi(value); err == nil && n >= 0 {
		return time.Duration(min(n, int(maxRetryAfter/time.Second))) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(time.Until(at), 0)
	}
	return -1
}

// errStalled is the end of a request whose server sent nothing, or next to nothing, for too long.
var errStalled = errors.New("the server fell silent")

// errTooLarge is a document over its limit.
var errTooLarge = invalid("a manifest or index of more than %d bytes is not read", cas.MaxManifest)

// realmError says that a registry wants the credentials sent where they must not go.
type realmError struct{ registry, realm, why string }

func (e *realmError) Error() string {
	return fmt.Sprintf("%s wants its password sent to %s, %s", e.registry, e.realm, e.why)
}

// credentialsError says that the credentials of a registry could not be read.
type credentialsError struct {
	registry string
	err      error
}

func (e *credentialsError) Error() string {
	return fmt.Sprintf("get credentials for %s: %v", e.registry, e.err)
}

func (e *credentialsError) Unwrap() error { return e.err }

// invalidError is a document that is not what it must be.
type invalidError struct{ err error }

// maxInvalid bounds what an error says of a document, whose parts may have any length, in bytes.
const maxInvalid = 2 << 10

func (e *invalidError) Error() string { return termtext.Clip(e.err.Error(), maxInvalid) }
func (e *invalidError) Unwrap() error { return e.err }

func invalid(format string, args ...any) error { return &invalidError{fmt.Errorf(format, args...)} }

// withoutURL takes the address out of an error of net/http: that of a redirection may hold a signature that opens the blob
// to whoever reads the log.
func withoutURL(host string, err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return fmt.Errorf("ask %s: %w", host, e.Err)
	}
	return err
}

// isNoTLS tells whether err is that the server has answered in another language than TLS: with HTTP, or with the bare text that
// some servers of HTTP have for what they do not understand.
func isNoTLS(err error) bool {
	_, ok := errors.AsType[tls.RecordHeaderError](err)
	return ok || errors.Is(err, http.ErrSchemeMismatch)
}

// isTLS tells whether err comes from setting up TLS.
func isTLS(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return true
	}
	if _, ok := errors.AsType[tls.AlertError](err); ok {
		return true
	}
	return isNoTLS(err) || errors.Is(err, errPlainHTTP)
}

// transient tells whether the same request may succeed when it is made again.
func transient(err error) bool {
	if _, ok := errors.AsType[*lostUpload](err); ok {
		return true
	}
	if s, ok := errors.AsType[*statusError](err); ok {
		return slices.Contains([]int{http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
			http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout}, s.status)
	}
	if errors.Is(err, errStalled) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return true
	}
	if errors.As(err, new(*reach.Error)) {
		return false
	}
	if isTLS(err) || errors.Is(err, syscall.ECONNREFUSED) {
		return false // nobody listens, or not to us: that does not mend itself in seconds
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return dns.IsTimeout || dns.IsTemporary
	}
	_, ok := errors.AsType[*transportError](err)
	return ok
}

// transportError is a connection that could not be made or broke.
type transportError struct{ err error }

func (e *transportError) Error() string { return e.err.Error() }
func (e *transportError) Unwrap() error { return e.err }

// explain makes the *Error of what went wrong with ref at a registry's host.
func (c *Client) explain(op string, ref Reference, h *host, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*Error](err); ok {
		return err
	}
	if _, ok := errors.AsType[*PlatformError](err); ok {
		return err
	}
	e := &Error{Op: op, Ref: ref.String(), Registry: h.addr, Repository: ref.Repository, Err: err}
	status, isStatus := errors.AsType[*statusError](err)
	realm, isRealm := errors.AsType[*realmError](err)
	_, isCredentials := errors.AsType[*credentialsError](err)
	_, isInvalid := errors.AsType[*invalidError](err)
	_, isMismatch := errors.AsType[*cas.MismatchError](err)
	refused, isRefused := errors.AsType[*reach.Error](err)
	transport, isTransport := errors.AsType[*transportError](err)
	switch {
	case isStatus:
		e.Status = status.status
		c.explainStatus(e, h, status)
	case isRealm:
		e.Kind = Credentials
		e.Advice = fmt.Sprintf("if you trust that server, add realms = [%q] to [registry.%q] in kiln.toml", realm.realm, h.name)
	case isRefused:
		e.Kind = Invalid
		e.Advice = fmt.Sprintf("if it is right, add [registry.%q] to kiln.toml", refused.Host)
	case isCredentials:
		e.Kind = Credentials
	case isInvalid || isMismatch:
		e.Kind = Invalid
	case isTLS(err):
		e.Kind = TLS
		e.Advice = tlsAdvice(h, err)
	case errors.Is(err, errStalled):
		e.Kind = Unreachable
	case isTransport:
		e.Kind = Unreachable
		if errors.Is(transport, syscall.ECONNREFUSED) {
			e.Advice = "is the registry running, and the name right?"
		}
	default:
		return fmt.Errorf("%s %s: %w", op, ref, err) // the local disk, a cancelled context
	}
	return e
}

func (c *Client) explainStatus(e *Error, h *host, status *statusError) {
	switch status.status {
	case http.StatusNotFound:
		e.Kind = NotFound
		e.Err = fmt.Errorf("access is denied or it does not exist (%w)", status)
	case http.StatusUnauthorized, http.StatusForbidden:
		e.Kind = Unauthorized
		login := "docker login"
		if h.name != config.DockerHub {
			login += " " + h.name
		}
		if e.Op == "pull" {
			e.Err = fmt.Errorf("access is denied or it does not exist (%w)", status)
		}
		e.Advice = fmt.Sprintf("%s; run %s", c.creds.describe(h.name), login)
	case http.StatusTooManyRequests:
		e.Kind = RateLimited
		e.Advice = "log in for a higher limit, use a mirror, or try again later"
	default:
		e.Kind = Refused
	}
}

func tlsAdvice(h *host, err error) string {
	switch {
	case errors.Is(err, http.ErrSchemeMismatch), errors.Is(err, errPlainHTTP):
		return fmt.Sprintf("if the registry is meant to speak plain http, put http = true under [registry.%q] in kiln.toml", h.name)
	default:
		return fmt.Sprintf("name the authority that signed its certificate with ca = [\"FILE\"] under [registry.%q] in kiln.toml", h.name)
	}
}

// describePlatforms returns the names of platforms, each once.
func describePlatforms(descs []ocispec.Descriptor) []string {
	var names []string
	seen := map[string]bool{}
	for _, d := range descs {
		if d.Platform == nil || unknown(*d.Platform) {
			continue
		}
		if name := platformName(*d.Platform); !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	return names
}
