package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/thread"
)

// Port is a port of the host that leads to one of a namespace.
type Port struct {
	// Protocol is "tcp" or "udp".
	Protocol string
	// Host is where kiln listens, with port 0 for any that is free.
	Host netip.AddrPort
	// Inside is the port in the namespace, at the address that other hosts would have for it: what listens on the namespace's loopback
	// interface alone is not reached.
	Inside uint16
}

func (p Port) String() string { return fmt.Sprintf("%s:%d/%s", p.Host, p.Inside, p.Protocol) }

// PortError says that a port cannot be published.
type PortError struct {
	Port Port
	Err  error
}

func (e *PortError) Error() string {
	s := fmt.Sprintf("listen at %s/%s: %v", e.Port.Host, e.Port.Protocol, e.Err)
	if errors.Is(e.Err, unix.EACCES) {
		s += "; the sysctl net.ipv4.ip_unprivileged_port_start says from which port on an ordinary user may listen"
	}
	return s
}

// Unwrap returns Err.
func (e *PortError) Unwrap() error { return e.Err }

// Published are ports that lead to a namespace.
type Published struct {
	// Ports are those that were asked for, with the port of the host in place of 0.
	Ports []Port

	inside  *insider
	sockets *limit
	closers []io.Closer // listeners

	mu     sync.Mutex
	open   map[io.Closer]bool // connections
	closed bool
	all    sync.WaitGroup
	// sending is what passes on what processes of the namespace send.
	sending sync.WaitGroup
}

// Publish has ports of the host lead to those of the namespace, until Close of what it returns, which comes before Release. A process in
// the namespace sees connections and datagrams come from its own address. Errors are *PortError, or say that the namespace cannot be
// entered.
func (n *Network) Publish(ports []Port) (_ *Published, err error) {
	p := &Published{sockets: &n.pool.sockets, open: map[io.Closer]bool{}}
	if p.inside, err = newInsider(n.file); err != nil {
		return nil, err
	}
	for _, port := range ports {
		if err := p.listen(port); err != nil {
			p.Close(context.Background())
			if op, ok := errors.AsType[*os.SyscallError](err); ok {
				err = op.Err
			}
			return nil, &PortError{port, err}
		}
	}
	return p, nil
}

// listen publishes one port.
func (p *Published) listen(port Port) error {
	family := "4"
	if port.Host.Addr().Is6() {
		family = "6"
	}
	if port.Protocol == "udp" {
		l, err := net.ListenUDP("udp"+family, net.UDPAddrFromAddrPort(port.Host))
		if err != nil {
			return err
		}
		port.Host = netip.AddrPortFrom(port.Host.Addr(), l.LocalAddr().(*net.UDPAddr).AddrPort().Port())
		p.Ports, p.closers = append(p.Ports, port), append(p.closers, l)
		p.all.Go(func() { p.datagrams(l, port.Inside) })
		return nil
	}
	l, err := net.ListenTCP("tcp"+family, net.TCPAddrFromAddrPort(port.Host))
	if err != nil {
		return err
	}
	port.Host = netip.AddrPortFrom(port.Host.Addr(), l.Addr().(*net.TCPAddr).AddrPort().Port())
	p.Ports, p.closers = append(p.Ports, port), append(p.closers, l)
	p.sending.Add(1)
	p.all.Go(func() {
		defer p.sending.Done()
		p.accept(l, port.Inside)
	})
	return nil
}

// Close listens no more, and ends all connections. It is called when no process is in the namespace any more. What those have sent is
// passed on first, unless that takes more than some seconds or ctx ends. A second Close does nothing.
func (p *Published) Close(ctx context.Context) {
	for _, l := range p.closers {
		l.Close()
	}
	timeout := time.NewTimer(lingering)
	defer timeout.Stop()
	select {
	case <-finished(&p.sending):
	case <-timeout.C:
	case <-ctx.Done():
	}
	p.mu.Lock()
	p.closed = true
	for c := range p.open {
		c.Close()
	}
	p.mu.Unlock()
	p.all.Wait()
	p.inside.close()
}

// hold has Close close c; false after that.
func (p *Published) hold(c io.Closer) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.open[c] = true
	}
	return !p.closed
}

func (p *Published) drop(c io.Closer) {
	p.mu.Lock()
	delete(p.open, c)
	p.mu.Unlock()
	c.Close()
}

// pause is how long nothing is taken from the host after it had no room for more.
const pause = 100 * time.Millisecond

// accept passes connections on, maxConnections at a time. Those beyond wait in the queue of the listener.
func (p *Published) accept(l *net.TCPListener, inside uint16) {
	room := make(chan struct{}, maxConnections)
	for {
		room <- struct{}{}
		c, err := l.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			time.Sleep(pause)
			<-room
			continue
		case !p.sockets.take():
			_ = c.SetLinger(0)
			c.Close()
			<-room
			continue
		}
		sent := p.count()
		p.all.Go(func() {
			defer func() { <-room }()
			defer p.sockets.give()
			defer sent()
			p.connection(c, inside, sent)
		})
	}
}

// count counts a connection in sending, until the returned function is called, perhaps more than once.
func (p *Published) count() (sent func()) {
	p.sending.Add(1)
	return sync.OnceFunc(p.sending.Done)
}

// connection passes a connection on, and calls sent when that is done with what the namespace sends. Where nothing listens there it is
// reset.
func (p *Published) connection(outer *net.TCPConn, port uint16, sent func()) {
	if !p.hold(outer) {
		outer.Close()
		return
	}
	defer p.drop(outer)
	c, err := p.inside.dial("tcp", port)
	if err != nil {
		_ = outer.SetLinger(0)
		return
	}
	inner := c.(*net.TCPConn)
	if !p.hold(inner) {
		inner.Close()
		return
	}
	defer p.drop(inner)
	received := make(chan struct{})
	go func() {
		defer close(received)
		passOn(inner, outer)
	}()
	passOn(outer, inner)
	sent()
	<-received
}

// passOn copies to the end of from. If one of both is reset, so is the other.
func passOn(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil || to.CloseWrite() != nil {
		_ = to.SetLinger(0)
		to.Close()
		from.Close()
	}
}

// datagrams passes datagrams on. Each sender has a socket in the namespace, so that it gets the answers to what it sent.
func (p *Published) datagrams(l *net.UDPConn, port uint16) {
	var mu sync.Mutex
	senders := map[netip.AddrPort]net.Conn{}
	buf := make([]byte, mtu)
	for {
		n, from, err := l.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(pause)
			continue
		}
		mu.Lock()
		c, many := senders[from], len(senders) >= maxFlows
		mu.Unlock()
		if c == nil {
			if many || !p.sockets.take() {
				continue
			}
			if c, err = p.inside.dial("udp", port); err != nil || !p.hold(c) {
				if err == nil {
					c.Close()
				}
				p.sockets.give()
				continue
			}
			mu.Lock()
			senders[from] = c
			mu.Unlock()
			p.all.Go(func() {
				answers(l, c, from)
				mu.Lock()
				delete(senders, from)
				mu.Unlock()
				p.drop(c)
				p.sockets.give()
			})
		}
		_ = c.SetReadDeadline(time.Now().Add(idle))
		if _, err := c.Write(buf[:n]); errors.Is(err, unix.ECONNREFUSED) {
			_, _ = c.Write(buf[:n]) // that was the answer to an earlier one
		}
	}
}

// answers passes on what is sent back to a sender, until nothing is sent for some time.
func answers(l *net.UDPConn, c net.Conn, to netip.AddrPort) {
	buf := datagrams.Get().(*[mtu]byte)
	defer datagrams.Put(buf)
	for {
		n, err := c.Read(buf[:])
		if errors.Is(err, unix.ECONNREFUSED) {
			continue // nothing listens yet
		}
		if err != nil {
			return
		}
		_ = c.SetReadDeadline(time.Now().Add(idle))
		_, _ = l.WriteToUDPAddrPort(buf[:n], to)
	}
}

// insider opens sockets in a namespace, on a thread of its own.
type insider struct {
	once     sync.Once
	requests chan func()
	ended    chan struct{}
}

func newInsider(namespace *os.File) (*insider, error) {
	i := &insider{requests: make(chan func()), ended: make(chan struct{})}
	entered := make(chan error)
	go func() {
		defer close(i.ended)
		thread.Do(func() {
			err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET)
			entered <- err
			if err != nil {
				return
			}
			for f := range i.requests {
				f()
			}
		})
	}()
	if err := <-entered; err != nil {
		<-i.ended
		return nil, fmt.Errorf("enter the network of the process: %w", err)
	}
	return i, nil
}

func (i *insider) close() {
	i.once.Do(func() { close(i.requests) })
	<-i.ended
}

// dial connects to a port of the namespace. A socket belongs to the namespace of the thread that opens it, wherever it is used then.
func (i *insider) dial(protocol string, port uint16) (net.Conn, error) {
	kind := unix.SOCK_STREAM
	if protocol == "udp" {
		kind = unix.SOCK_DGRAM
	}
	fd, err := -1, error(nil)
	done := make(chan struct{})
	i.requests <- func() {
		fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		close(done)
	}
	<-done
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// To one's own address there is no way to be waited for: the namespace answers at once, unless the queue of what listens is full.
	err = unix.Connect(fd, &unix.SockaddrInet4{Addr: address4.Addr().As4(), Port: int(port)})
	f := os.NewFile(uintptr(fd), protocol)
	defer f.Close()
	if errors.Is(err, unix.EINPROGRESS) {
		err = connected(f)
	}
	if err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	return net.FileConn(f)
}

// connectTime is how long a process may leave the queue of what it listens with full.
const connectTime = 10 * time.Second

// connected waits until a socket is connected, and returns why it is not.
func connected(f *os.File) error {
	if err := f.SetWriteDeadline(time.Now().Add(connectTime)); err != nil {
		return err
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Write(func(fd uintptr) bool {
		if _, err := unix.Getpeername(int(fd)); err == nil {
			return true
		}
		errno, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && errno != 0 {
			err = unix.Errno(errno)
		}
		failed = err
		return failed != nil
	})
	return errors.Join(err, failed)
}
