package registry

import (
	"errors"
	"fmt"
	"net/http"
	"syscall"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/reach"
	"github.com/kilnbuild/kiln/registry/auth"
	"github.com/kilnbuild/kiln/registry/image"
)

// Kind is the kind of an Error.
type Kind string

// The kinds of failure.
const (
	// NotFound: the registry has no such repository, tag or blob, or does not say because access is denied.
	NotFound Kind = "not found"
	// Unauthorized: there are no credentials, wrong ones, or ones without the right.
	Unauthorized Kind = "unauthorized"
	// Credentials: the credentials could not be read, or must not be sent where the registry asks for them.
	Credentials Kind = "credentials"
	// RateLimited: the registry answered 429 until kiln gave up.
	RateLimited Kind = "rate limited"
	// TLS: a secure connection could not be set up.
	TLS Kind = "tls"
	// Unreachable: no connection, or the server fell silent.
	Unreachable Kind = "unreachable"
	// Invalid: what the registry sent is wrong: another digest, no manifest, too large.
	Invalid Kind = "invalid"
	// Refused: any other status that is not a success.
	Refused Kind = "refused"
)

// Error is a failure to pull from a registry or to push to it.
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
	// Status is the HTTP status of the answer; 0 without an answer.
	Status int
	// Advice says what to do about it; "" without advice.
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

// Down reports that the registry did not answer, or answered that it cannot do so now. It has not said anything of the image.
func (e *Error) Down() bool {
	return e.Kind == Unreachable || e.Kind == RateLimited || e.Status >= http.StatusInternalServerError
}

// explain makes the *Error of what went wrong with ref at a registry's host.
func (c *Client) explain(op string, ref imagename.Name, h *host, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*Error](err); ok {
		return err
	}
	if _, ok := errors.AsType[*image.PlatformError](err); ok {
		return err
	}
	e := &Error{Op: op, Ref: ref.String(), Registry: h.addr, Repository: ref.Repository, Err: err}
	status, isStatus := errors.AsType[*fetch.StatusError](err)
	realm, isRealm := errors.AsType[*auth.RealmError](err)
	_, isCredentials := errors.AsType[*auth.CredentialsError](err)
	_, isInvalid := errors.AsType[*fetch.InvalidError](err)
	_, isMismatch := errors.AsType[*cas.MismatchError](err)
	refused, isRefused := errors.AsType[*reach.Error](err)
	transport, isTransport := errors.AsType[*fetch.ConnectionError](err)
	switch {
	case isStatus:
		e.Status = status.Status
		c.explainStatus(e, h, status)
	case isRealm:
		e.Kind = Credentials
		e.Advice = fmt.Sprintf("if you trust that server, add realms = [%q] to [registry.%q] in kiln.toml", realm.Realm, h.name)
	case isRefused:
		e.Kind = Invalid
		e.Advice = fmt.Sprintf("if it is right, add [registry.%q] to kiln.toml", refused.Host)
	case isCredentials:
		e.Kind = Credentials
	case isInvalid || isMismatch:
		e.Kind = Invalid
	case fetch.IsTLS(err):
		e.Kind = TLS
		e.Advice = tlsAdvice(h, err)
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

func (c *Client) explainStatus(e *Error, h *host, status *fetch.StatusError) {
	switch status.Status {
	case http.StatusNotFound:
		e.Kind = NotFound
		e.Err = fmt.Errorf("access is denied or it does not exist (%w)", status)
	case http.StatusUnauthorized, http.StatusForbidden:
		e.Kind = Unauthorized
		login := "kiln login"
		if h.name != config.DockerHub {
			login += " " + h.name
		}
		if e.Op == "pull" {
			e.Err = fmt.Errorf("access is denied or it does not exist (%w)", status)
		}
		e.Advice = fmt.Sprintf("%s; run %s", c.creds.Describe(h.name), login)
	case http.StatusTooManyRequests:
		e.Kind = RateLimited
		e.Advice = "log in for a higher limit, use a mirror, or try again later"
	case http.StatusRequestEntityTooLarge:
		e.Kind = Refused
		e.Advice = "the registry or a proxy before it limits the size of requests: have that limit raised, or make the layers smaller"
	default:
		e.Kind = Refused
	}
}

func tlsAdvice(h *host, err error) string {
	switch {
	case errors.Is(err, http.ErrSchemeMismatch), errors.Is(err, fetch.ErrPlainHTTP):
		return fmt.Sprintf("if the registry is meant to speak plain http, give --insecure-registry %s, or put http = true under [registry.%q] in kiln.toml", h.name, h.name)
	case fetch.IsAlert(err):
		const pair = `keypair = [{ key = "FILE", cert = "FILE" }]`
		return fmt.Sprintf("if it wants a client certificate, name one with %s under [registry.%q] in kiln.toml", pair, h.name)
	default:
		return fmt.Sprintf("name the authority that signed its certificate with --registry-ca %s=FILE, or with ca = [\"FILE\"] under [registry.%q] in kiln.toml",
			h.name, h.name)
	}
}
