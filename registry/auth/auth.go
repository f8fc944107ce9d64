// Package auth answers the challenges of registries, with tokens and with the credentials of Docker's configuration. It sends credentials
// only to the registry that they are for, and to the token servers that Authorizer.realm allows.
package auth

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/reach"
)

// maxToken bounds a token server's answer in bytes; tokens have a few thousand.
const maxToken = 256 << 10

// minLifetime is how long a token lives when its server does not say: see "Token Authentication Specification" of
// distribution, "expires_in".
const minLifetime = time.Minute

// tokenServers are the hosts that registries whose token servers have other names are known to use.
var tokenServers = map[string]string{
	config.DockerHub:      "auth.docker.io",
	"registry.gitlab.com": "gitlab.com",
}

// Server is the server that requests are for.
type Server interface {
	// Name is its name in image names and in kiln.toml: "docker.io".
	Name() string
	// Addr is its "host[:port]" in addresses.
	Addr() string
	// Scheme is "https", or "http" if it speaks that.
	Scheme() string
	// Realms are the "host[:port]" of token servers that kiln.toml trusts with its password.
	Realms() []string
	// Owns reports whether an address is on this server.
	Owns(*url.URL) bool
	// Ask makes a request, without following redirections. An address that is not the server's own gets nothing of what the server
	// does, and is no further in than the server may send kiln.
	Ask(*http.Request) (*http.Response, error)
}

// RealmError says that a registry wants the credentials sent where they must not go.
type RealmError struct{ Registry, Realm, Why string }

func (e *RealmError) Error() string {
	return fmt.Sprintf("%s wants its password sent to %s, %s", e.Registry, e.Realm, e.Why)
}

// CredentialsError says that the credentials of a registry could not be read.
type CredentialsError struct {
	Registry string
	Err      error
}

func (e *CredentialsError) Error() string {
	return fmt.Sprintf("get credentials for %s: %v", e.Registry, e.Err)
}

func (e *CredentialsError) Unwrap() error { return e.Err }

// Authorizer gets one host's requests the authorization that the host asks for.
type Authorizer struct {
	host  Server
	creds *Keychain // nil for requests without credentials

	// turn is held by who reads or changes what follows, also while a token is fetched, so that it is fetched once.
	turn   chan struct{}
	basic  string     // the header of Basic authentication, once that was asked for
	bearer *challenge // what was asked for last
	tokens map[string]token
}

type token struct {
	header string
	ends   time.Time
}

// New returns an Authorizer for a server. With nil for creds it asks for no credentials.
func New(h Server, creds *Keychain) *Authorizer {
	return &Authorizer{host: h, creds: creds, turn: make(chan struct{}, 1), tokens: map[string]token{}}
}

func (a *Authorizer) lock(ctx context.Context) error {
	select {
	case a.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (a *Authorizer) unlock() { <-a.turn }

// Header returns the Authorization header for a request that needs the scopes, or "" as long as the host has not asked.
func (a *Authorizer) Header(ctx context.Context, scopes []string) (string, error) {
	if err := a.lock(ctx); err != nil {
		return "", err
	}
	defer a.unlock()
	if a.basic != "" {
		return a.basic, nil
	}
	if a.bearer == nil {
		return "", nil
	}
	return a.token(ctx, *a.bearer, scopes)
}

// Renew answers a 401 to a request that had the header used, and reports whether the request is worth making again.
func (a *Authorizer) Renew(ctx context.Context, header http.Header, scopes []string, used string) (bool, error) {
	if err := a.lock(ctx); err != nil {
		return false, err
	}
	defer a.unlock()
	// Bearer is preferred: it works without credentials, and exposes them less.
	bearer, basic := offered(parseChallenges(header.Values("WWW-Authenticate")))
	var failed error
	if bearer != nil {
		if failed = a.useBearer(ctx, bearer, scopes, used); failed == nil || fetch.Transient(failed) {
			return failed == nil, failed
		}
	}
	if !basic {
		return false, failed
	}
	cred, err := a.credential(ctx)
	if failed != nil && (err != nil || cred.password == "") {
		return false, failed
	}
	if err != nil || cred.password == "" {
		return false, err
	}
	a.basic = basicHeader(cred)
	return a.basic != used, nil
}

// offered returns which of the two known schemes a server offers, in any order.
func offered(list []challenge) (bearer *challenge, basic bool) {
	for _, ch := range list {
		switch {
		case ch.scheme == "bearer" && bearer == nil:
			bearer = &ch
		case ch.scheme == "basic":
			basic = true
		}
	}
	return bearer, basic
}

// useBearer gets a new token for the scopes if the one that was used is still the current one.
func (a *Authorizer) useBearer(ctx context.Context, ch *challenge, scopes []string, used string) error {
	maps.DeleteFunc(a.tokens, func(_ string, t token) bool { return t.header == used })
	if _, err := a.token(ctx, *ch, scopes); err != nil {
		return err
	}
	a.bearer, a.basic = ch, ""
	return nil
}

func basicHeader(cred credential) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(cred.username+":"+cred.password))
}

func (a *Authorizer) credential(ctx context.Context) (credential, error) {
	if a.creds == nil {
		return credential{}, nil
	}
	cred, err := a.creds.Lookup(ctx, a.host.Name())
	if err != nil {
		return credential{}, &CredentialsError{a.host.Name(), err}
	}
	return cred, nil
}

// token returns the header with a token for the scopes. It fetches one if the current one has expired.
func (a *Authorizer) token(ctx context.Context, ch challenge, scopes []string) (string, error) {
	key := strings.Join(scopes, " ")
	if t, ok := a.tokens[key]; ok && time.Now().Before(t.ends) {
		return t.header, nil
	}
	for other, t := range a.tokens {
		if time.Now().Before(t.ends) && covers(strings.Split(other, " "), scopes) {
			return t.header, nil
		}
	}
	if asked := ch.params["scope"]; asked != "" && !slices.Contains(scopes, asked) {
		scopes = append(slices.Clone(scopes), asked)
	}
	value, life, ok, err := a.sourceToken(ctx, ch, scopes)
	if err != nil {
		return "", err
	}
	if !ok {
		cred, err := a.credential(ctx)
		if err != nil {
			return "", err
		}
		if cred.registryToken != "" {
			return "Bearer " + cred.registryToken, nil
		}
		if value, life, err = a.fetch(ctx, ch, scopes, cred); err != nil {
			return "", err
		}
	}
	// The server's clock may differ: the lifetime is counted from now, less a tenth for the way.
	t := token{header: "Bearer " + value, ends: time.Now().Add(life * 9 / 10)}
	a.tokens[key] = t
	return t.header, nil
}

// covers reports whether a token that was asked for with the scopes have is good for all that are needed: one for pushing is for pulling
// as well. A server may have granted less than it was asked for; then it refuses the token, and Renew asks for a new one.
func covers(have, need []string) bool {
	for _, n := range need {
		resource, actions, _ := cutLast(n, ":")
		if !slices.ContainsFunc(have, func(h string) bool {
			r, all, _ := cutLast(h, ":")
			return r == resource && !slices.ContainsFunc(strings.Split(actions, ","), func(action string) bool {
				return !slices.Contains(strings.Split(all, ","), action)
			})
		}) {
			return false
		}
	}
	return true
}

// cutLast is strings.Cut at the last sep.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// fetch gets a token from the server that the challenge names. See "Token Authentication Specification" and "Oauth2 Token
// Authentication" of distribution.
func (a *Authorizer) fetch(ctx context.Context, ch challenge, scopes []string, cred credential) (string, time.Duration, error) {
	u, err := a.realm(ch.params["realm"], cred != credential{})
	if err != nil {
		return "", 0, err
	}
	form := url.Values{"scope": scopes}
	if service := ch.params["service"]; service != "" {
		form.Set("service", service)
	}
	r := (&http.Request{Method: http.MethodGet, URL: u, Host: u.Host, Header: http.Header{}}).WithContext(ctx)
	if cred.identityToken != "" {
		form.Set("scope", strings.Join(scopes, " "))
		form.Set("grant_type", "refresh_token")
		form.Set("refresh_token", cred.identityToken)
		form.Set("client_id", fetch.UserAgent)
		body := form.Encode()
		r.Method = http.MethodPost
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.ContentLength = int64(len(body))
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(body)), nil }
	} else {
		query := u.Query()
		for name, values := range form {
			query[name] = values
		}
		if cred.password != "" {
			query.Set("account", cred.username)
			r.Header.Set("Authorization", basicHeader(cred))
		}
		u.RawQuery = query.Encode()
	}
	resp, err := a.askRealm(r, cred != credential{})
	if err != nil {
		return "", 0, err
	}
	fetch.Decode(resp)
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxToken))
	if err != nil {
		return "", 0, err
	}
	var answer struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return "", 0, fetch.Invalid("%s sent no token: %w", u.Host, errors.New(fetch.Quote(err.Error())))
	}
	value := answer.Token
	if value == "" {
		value = answer.AccessToken
	}
	if !isToken(value) {
		return "", 0, fetch.Invalid("%s sent no token", u.Host)
	}
	life := minLifetime
	if answer.ExpiresIn > 0 && answer.ExpiresIn < 1<<30 {
		life = time.Duration(answer.ExpiresIn) * time.Second
	}
	return value, life, nil
}

// askRealm makes the request for a token. Where the server redirects it to, it goes if that may be asked as the server was.
func (a *Authorizer) askRealm(r *http.Request, secret bool) (*http.Response, error) {
	first := r.URL.Host
	for range fetch.MaxRedirects + 1 {
		r.Host = r.URL.Host
		if r.GetBody != nil {
			var err error
			if r.Body, err = r.GetBody(); err != nil {
				return nil, err
			}
		}
		resp, err := a.host.Ask(r)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusOK {
			return resp, nil
		}
		location := resp.Header.Get("Location")
		if location == "" || !repeats(resp.StatusCode, r.Method) {
			return nil, fetch.NewStatusError(resp)
		}
		resp.Body.Close()
		to, err := r.URL.Parse(location)
		if err != nil {
			return nil, fetch.Invalid("%s sent a Location that is no address", r.URL.Host)
		}
		next, err := a.realm(to.String(), secret)
		if err != nil {
			return nil, err
		}
		if r.URL.Scheme == "https" && next.Scheme == "http" {
			return nil, &RealmError{a.host.Name(), next.Host, "over plain http"}
		}
		r = r.Clone(r.Context())
		r.URL = next
	}
	return nil, fetch.Invalid("%s redirects more than %d times", first, fetch.MaxRedirects)
}

// repeats reports whether a status asks for the same request at another address (RFC 9110, 15.4).
func repeats(status int, method string) bool {
	switch status {
	case http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther:
		return method == http.MethodGet
	}
	return false
}

// realm returns the address of a token server if it may be asked, with the host's credentials or without. A password goes
// to the registry itself, to another port of its host over https, and to the token servers that are known or that kiln.toml
// names; never over plain http unless the registry speaks that too.
func (a *Authorizer) realm(address string, secret bool) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil || u.Hostname() == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http" {
		return nil, fetch.Invalid("%s sent an invalid address %q of a token server", a.host.Addr(), fetch.Quote(address))
	}
	u.Fragment = ""
	scheme := a.host.Scheme()
	if u.Scheme == "http" && scheme != "http" {
		return nil, &RealmError{a.host.Name(), u.Host, "over plain http"}
	}
	if !secret || a.host.Owns(u) {
		return u, nil
	}
	if slices.Contains(a.host.Realms(), u.Host) {
		return u, nil
	}
	if u.Scheme == "https" {
		if u.Host == tokenServers[a.host.Name()] {
			return u, nil
		}
		if !reach.IsLoopback(u.Host) && strings.EqualFold(u.Hostname(), (&url.URL{Host: a.host.Addr()}).Hostname()) {
			return u, nil // on loopback the next port may be another user's
		}
	}
	return nil, &RealmError{a.host.Name(), u.Host, "which is another host"}
}

// challenge is a way to authenticate that a server offers (RFC 9110, 11.3).
type challenge struct {
	scheme string // in lower case
	params map[string]string
}

// parseChallenges reads the values of WWW-Authenticate headers. What is malformed ends a value's reading.
func parseChallenges(values []string) []challenge {
	var list []challenge
	for _, s := range values {
		for {
			s = strings.TrimLeft(s, " \t,")
			word, rest := cutToken(s)
			if word == "" {
				break
			}
			after := strings.TrimLeft(rest, " \t")
			if !strings.HasPrefix(after, "=") {
				list = append(list, challenge{scheme: strings.ToLower(word), params: map[string]string{}})
				s = rest
				continue
			}
			value, rest, ok := cutValue(strings.TrimLeft(after[1:], " \t"))
			if !ok || len(list) == 0 {
				break
			}
			if last := list[len(list)-1]; last.params[strings.ToLower(word)] == "" {
				last.params[strings.ToLower(word)] = value
			}
			s = rest
		}
	}
	return list
}

// cutToken takes a token (RFC 9110, 5.6.2) off s.
func cutToken(s string) (token, rest string) {
	i := strings.IndexFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`()<>@,;:\"/[]?={}`, r)
	})
	if i < 0 {
		i = len(s)
	}
	return s[:i], s[i:]
}

// cutValue takes a token or a quoted string (RFC 9110, 5.6.4) off s.
func cutValue(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		value, rest = cutToken(s)
		return value, rest, value != ""
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			if i++; i == len(s) {
				return "", "", false
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}
