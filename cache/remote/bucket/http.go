package bucket

import (
	"net/http"

	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/reach"
)

// HTTP makes requests of a service. A server that falls silent is given up: see package fetch.
type HTTP struct {
	transports *reach.Transports
	client     *http.Client
	patience   fetch.Patience
}

// NewHTTP returns an HTTP, which follows no redirections: they would need another signature.
func NewHTTP() *HTTP {
	t := fetch.NewTransports(nil)
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &HTTP{t, &http.Client{Transport: t.Way(reach.Anywhere), CheckRedirect: stay}, fetch.Usual()}
}

// Do makes a request once, which the service answers at once. Errors are those of fetch.Patience.Do.
func (h *HTTP) Do(r *http.Request) (*http.Response, error) {
	r.Header.Set("User-Agent", fetch.UserAgent)
	return h.patience.Prompt().Do(h.client, r)
}

// Work makes a request once that gives the service work, such as copying an object. Errors are those of fetch.Patience.Do.
func (h *HTTP) Work(r *http.Request) (*http.Response, error) {
	r.Header.Set("User-Agent", fetch.UserAgent)
	return h.patience.Do(h.client, r)
}

// Patience is how long and how often is tried.
func (h *HTTP) Patience() fetch.Patience { return h.patience }

// Close closes connections that are not in use.
func (h *HTTP) Close() error {
	h.transports.CloseIdleConnections()
	return nil
}
