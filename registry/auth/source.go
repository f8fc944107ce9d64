package auth

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/config"
)

// Source gives the credentials of somebody who is not the user of this process, such as a client of a daemon. Registries are given by their
// addresses, "host[:port]". It is safe for concurrent use.
type Source interface {
	// Password returns the user name and password for a registry. A password without a user name is a refresh token of OAuth 2. There are
	// no credentials if both are empty.
	Password(ctx context.Context, addr string) (user, password string, err error)
	// Token returns a token that the source has fetched by itself from the token server of a registry, and how long it lives; false if it
	// leaves that to kiln.
	Token(ctx context.Context, r TokenRequest) (value string, life time.Duration, ok bool, err error)
}

// TokenRequest asks for a token. See "Token Authentication Specification" of distribution.
type TokenRequest struct {
	// Addr is the registry, and Realm the address of its token server.
	Addr, Realm string
	Service     string
	Scopes      []string
}

// From returns a Keychain with the credentials of a source.
func From(s Source) *Keychain {
	return &Keychain{source: s, known: map[string]found{}}
}

// sourceAddr returns the address of a registry by its name in image names.
func sourceAddr(registry string) string {
	if registry == config.DockerHub {
		return hubAddr
	}
	return registry
}

// hubAddr is the host behind docker.io.
const hubAddr = "registry-1.docker.io"

// fromSource looks up the credentials of a registry at the source.
func (k *Keychain) fromSource(ctx context.Context, registry string) (credential, error) {
	user, password, err := k.source.Password(ctx, sourceAddr(registry))
	switch {
	case err != nil:
		return credential{}, err
	case user == "" && password != "":
		return credential{identityToken: password}, nil
	case user != "" || password != "":
		return credential{username: user, password: password}, nil
	}
	return credential{}, nil
}

// describeSource is Describe for a Keychain with a source.
func (k *Keychain) describeSource(registry string, asked bool, f found) string {
	switch {
	case !asked:
		return "the client was not asked for credentials"
	case f.credential == credential{}:
		return fmt.Sprintf("the client has no credentials for %s", registry)
	}
	return "the credentials are those of the client"
}

// sourceToken asks the source of the credentials for a token. It is asked only for a token server that a password may be sent to, since it
// does so without asking.
func (a *Authorizer) sourceToken(ctx context.Context, ch challenge, scopes []string) (string, time.Duration, bool, error) {
	if a.creds == nil || a.creds.source == nil {
		return "", 0, false, nil
	}
	u, err := a.realm(ch.params["realm"], true)
	if err != nil {
		return "", 0, false, nil // what kiln does by itself says what is wrong, if anything is
	}
	value, life, ok, err := a.creds.source.Token(ctx, TokenRequest{
		Addr: a.host.Addr(), Realm: u.String(), Service: ch.params["service"], Scopes: scopes,
	})
	switch {
	case err != nil:
		return "", 0, false, &CredentialsError{a.host.Name(), err}
	case !ok:
		return "", 0, false, nil
	case !isToken(value):
		return "", 0, false, &CredentialsError{a.host.Name(), fmt.Errorf("the client sent no token")}
	}
	return value, min(max(life, minLifetime), maxLifetime), true, nil
}

// maxLifetime bounds how long a token is used that a source has fetched.
const maxLifetime = 24 * time.Hour

// isToken reports whether a string can be the token of a header.
func isToken(s string) bool {
	return s != "" && len(s) <= maxToken && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}
