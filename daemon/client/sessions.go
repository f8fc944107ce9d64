package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"

	"github.com/moby/buildkit/session"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Sessions are the sessions of a daemon, with the users that opened them. It is safe for concurrent use.
type Sessions struct {
	manager *session.Manager

	mu   sync.Mutex
	open map[string]opened // by session
}

// opened is a session that is open.
type opened struct {
	user  string
	ended context.Context
}

// NewSessions returns Sessions without any.
func NewSessions() (*Sessions, error) {
	m, err := session.NewManager()
	return &Sessions{manager: m, open: map[string]opened{}}, err
}

// headerID is the name of the header with the id that a client gives its session.
const headerID = "X-Docker-Expose-Session-Uuid"

// maxID bounds an id of a session in bytes.
const maxID = 256

// Serve serves a session on a connection until that, or ctx, ends. The id that the header gives it must be that of no other session:
// whoever opens one gets nothing that is meant for another.
func (s *Sessions) Serve(ctx context.Context, conn net.Conn, header map[string][]string, user string) error {
	id := ""
	for name, values := range header {
		if http.CanonicalHeaderKey(name) == headerID && len(values) > 0 {
			id = values[0]
		}
	}
	if id == "" || len(id) > maxID {
		return errors.New("the session has no valid id")
	}
	s.mu.Lock()
	if _, ok := s.open[id]; ok {
		s.mu.Unlock()
		return fmt.Errorf("session %s exists already", id)
	}
	ended, end := context.WithCancel(context.Background())
	s.open[id] = opened{user, ended}
	s.mu.Unlock()
	defer func() {
		end()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open, id)
	}()
	return s.manager.HandleConn(ctx, conn, header)
}

// get returns the session with an id once it is there, and a context that ends when it does. That of another user is as good as none.
// The context is not Caller.Context, of which each keeps some memory until the session ends: a session may outlive any number of builds.
func (s *Sessions) get(ctx context.Context, id, user string) (session.Caller, context.Context, error) {
	caller, err := s.manager.Get(ctx, id, false)
	if err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	open, ok := s.open[id]
	if !ok || open.user != user {
		return nil, nil, fmt.Errorf("no active session for %s", id)
	}
	return caller, open.ended, nil
}

// User returns who made a request of gRPC, as far as the connection tells: the subject of the certificate with its other names, which it
// may have in place of a subject; or the process's user on a socket with Credentials. It is "" where there is neither.
func User(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	switch info := p.AuthInfo.(type) {
	case credentials.TLSInfo:
		if len(info.State.PeerCertificates) > 0 {
			c := info.State.PeerCertificates[0]
			return fmt.Sprintf("certificate %s %q %q %v %v", c.Subject, c.DNSNames, c.EmailAddresses, c.IPAddresses, c.URIs)
		}
	case process:
		return fmt.Sprintf("uid %d", info.uid)
	}
	return ""
}
