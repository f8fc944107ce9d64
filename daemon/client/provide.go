package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/kilnbuild/kiln/internal/sshagent"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/registry/auth"
	sessionauth "github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/session/sshforward"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	// maxSecret bounds a secret in bytes, as in BuildKit.
	maxSecret = 500 << 10
	// maxCredential bounds a user name, a password and a token in bytes.
	maxCredential = 256 << 10
	// maxReason bounds what a client says of an agent that it does not forward.
	maxReason = 1000
	// authTimeout bounds a question for credentials, which may make the client ask its user.
	authTimeout = time.Minute
)

// lacks reports whether an error says that the client does not provide something at all.
func lacks(err error) bool { return grpcerrors.Code(err) == codes.Unimplemented }

// failed returns the error of a request to the client: what ended the session or the build says more than that of the connection.
func failed(calling context.Context, err error) error {
	if calling.Err() != nil {
		return context.Cause(calling)
	}
	return err
}

// Secret implements session.Secrets.
func (c *Client) Secret(ctx context.Context, id string) (data []byte, ok bool, err error) {
	if data, ok, err = c.secret(ctx, id); ok || err != nil {
		return data, ok, err
	}
	err = c.ask(ctx, func(other *Client) (bool, error) {
		var err error
		data, ok, err = other.secret(ctx, id)
		return ok, err
	})
	return data, ok, err
}

// secret returns a secret of the client's own session.
func (c *Client) secret(ctx context.Context, id string) ([]byte, bool, error) {
	if c.id == "" {
		return nil, false, nil
	}
	calling, caller, err := c.call(ctx)
	if err != nil {
		return nil, false, err
	}
	data, err := secrets.GetSecret(calling, caller, id)
	switch {
	case errors.Is(err, secrets.ErrNotFound):
		return nil, false, nil
	case err != nil:
		return nil, false, fmt.Errorf("get the secret %q of the client: %w", id, failed(calling, err))
	case len(data) > maxSecret:
		return nil, false, fmt.Errorf("get the secret %q of the client: it is larger than the %s that are allowed", id, termtext.Size(maxSecret))
	}
	return data, true, nil
}

// Agent implements session.Agents.
func (c *Client) Agent(ctx context.Context, id string) (a *sshagent.Agent, err error) {
	if a, err = c.agent(ctx, id); a != nil || err != nil {
		return a, err
	}
	err = c.ask(ctx, func(other *Client) (bool, error) {
		var err error
		a, err = other.agent(ctx, id)
		return a != nil, err
	})
	return a, err
}

// agent returns an agent of the client's own session.
func (c *Client) agent(ctx context.Context, id string) (*sshagent.Agent, error) {
	if c.id == "" {
		return nil, nil
	}
	return c.agents.Do(ctx, id, func(ctx context.Context) (*sshagent.Agent, error) {
		calling, caller, err := c.call(ctx)
		if err != nil {
			return nil, err
		}
		_, err = sshforward.NewSSHClient(caller.Conn()).CheckAgent(calling, &sshforward.CheckAgentRequest{ID: id})
		switch {
		case err == nil:
			return sshagent.Via(func(ctx context.Context) (io.ReadWriteCloser, error) { return c.connect(ctx, id) }), nil
		case calling.Err() != nil:
			return nil, context.Cause(calling)
		case grpcerrors.Code(err) == codes.Unavailable:
			return nil, fmt.Errorf("reach the ssh agent %q of the client: %w", id, err)
		}
		if lacks(err) {
			return nil, nil // it forwards none at all
		}
		// It knows no such agent, for which it has no code.
		return nil, &sshagent.MissingError{ID: id, Reason: fmt.Sprintf("%.*s", maxReason, status.Convert(err).Message())}
	})
}

// connect returns a connection to an ssh agent of the client.
func (c *Client) connect(ctx context.Context, id string) (io.ReadWriteCloser, error) {
	calling, caller, err := c.call(ctx)
	if err != nil {
		return nil, err
	}
	calling, cancel := context.WithCancel(metadata.AppendToOutgoingContext(calling, sshforward.KeySSHID, id))
	s, err := sshforward.NewSSHClient(caller.Conn()).ForwardAgent(calling)
	if err != nil {
		cancel()
		return nil, err
	}
	return &connection{stream: s, cancel: cancel}, nil
}

// connection is a stream of bytes.
type connection struct {
	stream interface {
		Send(*sshforward.BytesMessage) error
		Recv() (*sshforward.BytesMessage, error)
	}
	cancel context.CancelFunc
	rest   []byte // received, and not read yet
}

// Read implements io.Reader.
func (c *connection) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		m, err := c.stream.Recv()
		if err != nil {
			return 0, err
		}
		c.rest = m.Data
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// Write implements io.Writer.
func (c *connection) Write(p []byte) (int, error) {
	if err := c.stream.Send(&sshforward.BytesMessage{Data: p}); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close implements io.Closer.
func (c *connection) Close() error {
	c.cancel()
	return nil
}

// asking calls f with a context for a question about credentials. It is false if the client answers none.
func (c *Client) asking(ctx context.Context, f func(context.Context, sessionauth.AuthClient) error) (bool, error) {
	if c.id == "" {
		return false, nil
	}
	calling, caller, err := c.call(ctx)
	if err != nil {
		return false, err
	}
	calling, cancel := context.WithTimeout(calling, authTimeout)
	defer cancel()
	switch err := f(calling, sessionauth.NewAuthClient(caller.Conn())); {
	case lacks(err):
		return false, nil
	case err != nil:
		return false, failed(calling, err)
	}
	return true, nil
}

var errLong = fmt.Errorf("the client sent credentials that are longer than the %s that are allowed", termtext.Size(maxCredential))

// Password implements auth.Source.
func (c *Client) Password(ctx context.Context, addr string) (user, password string, err error) {
	_, err = c.asking(ctx, func(ctx context.Context, client sessionauth.AuthClient) error {
		answer, err := client.Credentials(ctx, &sessionauth.CredentialsRequest{Host: addr})
		if err != nil {
			return err
		}
		if user, password = answer.Username, answer.Secret; len(user) > maxCredential || len(password) > maxCredential {
			return errLong
		}
		return nil
	})
	return user, password, err
}

// Token implements auth.Source: the client fetches tokens by itself unless it says that it has no authority for them.
func (c *Client) Token(ctx context.Context, r auth.TokenRequest) (value string, life time.Duration, ok bool, err error) {
	ok, err = c.asking(ctx, func(ctx context.Context, client sessionauth.AuthClient) error {
		// What is signed with the key shows that two sessions are of the same user. Nothing is shared between sessions, so it is of no use.
		_, err := client.GetTokenAuthority(ctx, &sessionauth.GetTokenAuthorityRequest{Host: r.Addr, Salt: make([]byte, saltSize)})
		return err
	})
	if grpcerrors.Code(err) == codes.Unavailable && ctx.Err() == nil {
		return "", 0, false, nil
	}
	if err != nil || !ok {
		return "", 0, false, err
	}
	ok, err = c.asking(ctx, func(ctx context.Context, client sessionauth.AuthClient) error {
		answer, err := client.FetchToken(ctx, &sessionauth.FetchTokenRequest{
			ClientID: "buildkit-client", Host: r.Addr, Realm: r.Realm, Service: r.Service, Scopes: r.Scopes,
		})
		if err != nil {
			return err
		}
		if len(answer.Token) > maxCredential {
			return errLong
		}
		value, life = answer.Token, time.Duration(min(max(answer.ExpiresIn, 0), maxExpiry))*time.Second
		return nil
	})
	return value, life, ok, err
}

const (
	saltSize  = 32
	maxExpiry = 24 * 60 * 60 // seconds
)
