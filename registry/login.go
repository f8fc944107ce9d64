package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/registry/auth"
)

// LoginError says that a registry did not accept a user's password.
type LoginError struct {
	Registry, User string
	// Err is what the registry, or its token server, answered.
	Err error
}

func (e *LoginError) Error() string {
	return fmt.Sprintf("log in to %s: the user name %q or its password is wrong (%v)", e.Registry, e.User, e.Err)
}

func (e *LoginError) Unwrap() error { return e.Err }

// CheckLogin asks a registry, given by its name in image names, whether it accepts a user's password. See distribution-spec, "Endpoints",
// end-1. The error is a *LoginError if it does not. A registry that does not ask for credentials there accepts any.
func (c *Client) CheckLogin(ctx context.Context, registry, user, password string) error {
	asking := New(c.settings)
	asking.creds, asking.certs, asking.patience = auth.With(registry, user, password), c.certs, c.patience
	h, err := asking.host(registry)
	if err != nil {
		return err
	}
	var resp *http.Response
	err = asking.patience.Retry(ctx, func() (err error) {
		resp, err = h.do(ctx, request{method: http.MethodGet, url: &url.URL{Scheme: h.Scheme(), Host: h.addr, Path: "/v2/"}})
		return err
	})
	if err == nil && succeeded(resp) {
		fetch.Drain(resp)
		return nil
	}
	if err == nil {
		err = fetch.NewStatusError(resp)
	}
	status, ok := errors.AsType[*fetch.StatusError](err)
	switch {
	case ok && (status.Status == http.StatusUnauthorized || status.Status == http.StatusForbidden):
		return &LoginError{registry, user, err}
	case ok && status.Status == http.StatusNotFound:
		return fmt.Errorf("log in to %s: it is not a registry that speaks the distribution protocol: %w", registry, err)
	}
	err = asking.explain("log in to", imagename.Name{Registry: registry}, h, err)
	if e, ok := errors.AsType[*Error](err); ok {
		e.Ref = registry
	}
	return err
}
