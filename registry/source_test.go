package registry

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/registry/auth"
	"github.com/kilnbuild/kiln/registry/registrytest"
)

// sourceOf is an auth.Source with one password, or with what it says of tokens.
type sourceOf struct {
	user, password string
	token          func(r auth.TokenRequest) (string, bool, error)
}

func (s sourceOf) Password(context.Context, string) (user, password string, err error) {
	return s.user, s.password, nil
}

func (s sourceOf) Token(_ context.Context, r auth.TokenRequest) (string, time.Duration, bool, error) {
	if s.token == nil {
		return "", 0, false, nil
	}
	value, ok, err := s.token(r)
	return value, time.Minute, ok, err
}

// A client with the credentials of a source has no others, and no tokens of the client that it comes from.
func TestWithCredentials(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	desc := makeImage(t, from, amd64, 1000)
	front := guarded(t, reg.Host, 1<<30, nil)
	useDockerConfig(t, auths(front.host))
	mine := quick(nil)
	ref := front.host + "/app"
	if err := mine.Push(t.Context(), from, ref, desc, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		source sourceOf
		err    string
	}{
		{name: "its password", source: sourceOf{user: "user", password: canary}},
		{name: "another password", source: sourceOf{user: "user", password: "other"}, err: "the credentials are those of the client"},
		{name: "none", err: "the client has no credentials"},
		{name: "a token of its own", source: sourceOf{token: func(r auth.TokenRequest) (string, bool, error) {
			if r.Addr != front.host || r.Realm != "http://"+front.host+"/token" || r.Service != "test" || len(r.Scopes) == 0 {
				return "", false, fmt.Errorf("asked for %+v", r)
			}
			req, err := http.NewRequest(http.MethodGet, r.Realm, nil)
			if err != nil {
				return "", false, err
			}
			req.SetBasicAuth("user", canary)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return "", false, err
			}
			defer resp.Body.Close()
			var token string
			_, err = fmt.Fscanf(resp.Body, `{"token":%q,`, &token)
			return token, true, err
		}}},
		{name: "no token", source: sourceOf{token: func(auth.TokenRequest) (string, bool, error) { return "a\nb", true, nil }},
			err: "sent no token"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := mine.WithCredentials(tc.source, nil)
			defer c.Close()
			_, err := Pull(t.Context(), c, ref, amd64, newStore(t))
			if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("got %v, want an error with %q", err, tc.err)
			}
		})
	}
}

// A source is not asked for a token where a password must not be sent.
func TestSourceEvilRealm(t *testing.T) {
	evil := newListener(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"token":"x"}`) }))
	front := newFault(t, "", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token"`, evil.host()))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	source := sourceOf{user: "user", password: canary, token: func(auth.TokenRequest) (string, bool, error) {
		t.Error("the source was asked")
		return "", false, nil
	}}
	c := quick(nil).WithCredentials(source, nil)
	defer c.Close()
	if _, err := Pull(t.Context(), c, front.host+"/app", amd64, newStore(t)); err == nil {
		t.Error("no error")
	}
	evil.checkNoSecrets(t)
}
