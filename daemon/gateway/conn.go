package gateway

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// conn is the connection to a frontend: its standard output is read, and its standard input written. It has no deadlines: what never
// answers is ended as a whole.
type conn struct {
	*io.PipeReader
	write  *os.File
	closed chan struct{}
	once   sync.Once
}

// newConn returns a connection, and the other ends of it.
func newConn() (c *conn, stdin *os.File, stdout *io.PipeWriter, err error) {
	stdin, write, err := os.Pipe()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	read, stdout := io.Pipe()
	return &conn{PipeReader: read, write: write, closed: make(chan struct{})}, stdin, stdout, nil
}

func (c *conn) Write(p []byte) (int, error) { return c.write.Write(p) }

func (c *conn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.PipeReader.Close()
		c.write.Close()
	})
	return nil
}

type address struct{}

func (address) Network() string { return "pipe" }
func (address) String() string  { return "frontend" }

func (c *conn) LocalAddr() net.Addr              { return address{} }
func (c *conn) RemoteAddr() net.Addr             { return address{} }
func (c *conn) SetDeadline(time.Time) error      { return nil }
func (c *conn) SetReadDeadline(time.Time) error  { return nil }
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

// listener accepts one connection, and ends with it.
type listener struct {
	conn   net.Conn
	closed <-chan struct{}
	once   sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	var first net.Conn
	l.once.Do(func() { first = l.conn })
	if first != nil {
		return first, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *listener) Close() error   { return nil }
func (l *listener) Addr() net.Addr { return address{} }

// activity is when a frontend made its last request, and how many are being worked on.
type activity struct {
	mu      sync.Mutex
	now     int
	last    time.Time
	changed chan struct{}
}

func newActivity() *activity { return &activity{last: time.Now(), changed: make(chan struct{}, 1)} }

// add counts a request that begins, or with -1 ends.
func (a *activity) add(n int) {
	a.mu.Lock()
	a.now += n
	a.last = time.Now()
	a.mu.Unlock()
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// silent returns for how long nothing has been done; 0 while something is.
func (a *activity) silent() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.now > 0 {
		return 0
	}
	return time.Since(a.last)
}

// isHealth reports whether a method says nothing of what a frontend does.
func isHealth(method string) bool { return strings.HasPrefix(method, "/grpc.health.") }

func (a *activity) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if !isHealth(info.FullMethod) {
		a.add(1)
		defer a.add(-1)
	}
	return handler(ctx, req)
}

func (a *activity) stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if !isHealth(info.FullMethod) {
		a.add(1)
		defer a.add(-1)
	}
	return handler(srv, s)
}

// watch returns an error when a frontend is to be ended, and nil when it has ended.
func (a *activity) watch(ctx context.Context, returned, closed <-chan struct{}) error {
	timer := time.NewTimer(maxSilent)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-returned:
			return exits(ctx)
		case <-closed:
			return exits(ctx)
		case <-a.changed:
		case <-timer.C:
		}
		silent := a.silent()
		if silent >= maxSilent {
			return &SilentError{After: maxSilent}
		}
		timer.Reset(maxSilent - silent)
	}
}

// exits waits for the end of a frontend that has nothing to do any more.
func exits(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(maxExit):
		return &SilentError{After: maxExit, Returned: true}
	}
}
