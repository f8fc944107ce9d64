package registry

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestDown holds which answers say nothing of an image, so that one that was used before may be used again.
func TestDown(t *testing.T) {
	for status, want := range map[int]bool{
		http.StatusUnauthorized: false, http.StatusForbidden: false, http.StatusNotFound: false, http.StatusBadRequest: false,
		http.StatusTooManyRequests: true, http.StatusInternalServerError: true, http.StatusBadGateway: true, http.StatusServiceUnavailable: true,
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
		host := strings.TrimPrefix(srv.URL, "http://")
		_, err := quick(nil).Resolve(t.Context(), host+"/app", amd64, newStore(t))
		if e, ok := errors.AsType[*Error](err); !ok || e.Down() != want {
			t.Errorf("status %d: %v is down: %v, want %v", status, err, ok && e.Down(), want)
		}
		srv.Close()
		_, err = quick(nil).Resolve(t.Context(), host+"/app", amd64, newStore(t))
		if e, ok := errors.AsType[*Error](err); !ok || !e.Down() {
			t.Errorf("nobody listens: %v is not down", err)
		}
	}
}
