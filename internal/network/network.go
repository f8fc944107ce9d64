// Package network gives processes network namespaces from which they reach what the host reaches, through a TCP/IP stack in
// kiln's own process. It does not know what the processes are, nor how they enter a namespace.
//
// A namespace has one interface besides the loopback interface, and its packets go to kiln: what a process sends to an
// address, kiln sends to it from the host with sockets as any program has. So nothing is configured on the host. The host's loopback
// interface is out of reach.
package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Gateway is the address by which a process reaches the host, at the host's own address on its network.
const Gateway = "10.0.2.2"

// Pool makes networks, and gives those of which no trace of use is left out again. The zero value is an empty pool.
type Pool struct {
	// Make makes a user namespace and a network namespace that belongs to it. If it is nil, network namespaces belong to kiln's
	// own user namespace. It is set before the first Get.
	Make func() (users, network *os.File, err error)

	mu      sync.Mutex
	free    []*Network
	closing sync.WaitGroup
	stopped chan struct{} // made by the first Get; closed when Close no longer waits for what processes sent
	sockets limit         // of all networks
}

// Network is a network namespace and what connects it with the host's network.
type Network struct {
	*namespace
	pool    *Pool
	emptied chan struct{} // closed when every packet has been received that was sent before Release
	ended   chan struct{} // closed when no more packets are received
	relay   *relay        // made for the first packet
}

// UnavailableError says that a network namespace cannot be made on this machine.
type UnavailableError struct{ Err error }

func (e *UnavailableError) Error() string {
	return fmt.Sprintf("make a network for the step: %v; "+
		"--network=none needs none, and --network=host --allow network.host uses that of the machine", e.Err)
}

// Unwrap returns Err.
func (e *UnavailableError) Unwrap() error { return e.Err }

// Get returns a network that nobody has used or is using. Errors are *UnavailableError.
func (p *Pool) Get() (*Network, error) {
	p.mu.Lock()
	if p.stopped == nil {
		p.stopped = make(chan struct{})
	}
	if last := len(p.free) - 1; last >= 0 {
		n := p.free[last]
		p.free = p.free[:last]
		p.mu.Unlock()
		return n, nil
	}
	p.mu.Unlock()
	var users, made *os.File
	if p.Make != nil {
		var err error
		if users, made, err = p.Make(); err != nil {
			return nil, &UnavailableError{err}
		}
		defer made.Close()
	}
	ns, err := newNamespace(made, hasIPv6())
	if err != nil {
		users.Close() // nil is fine
		return nil, &UnavailableError{err}
	}
	ns.users = users
	n := &Network{namespace: ns, pool: p, emptied: make(chan struct{}), ended: make(chan struct{})}
	go n.receive()
	return n, nil
}

// Close ends all networks that have been released, and is called once. What their processes sent is on its way when it returns,
// unless that takes more than some seconds or ctx ends. Whatever processes did, it returns soon after that.
func (p *Pool) Close(ctx context.Context) {
	p.mu.Lock()
	free, stopped := p.free, p.stopped
	p.free = nil
	p.mu.Unlock()
	if stopped == nil { // there has been no network
		return
	}
	for _, n := range free {
		p.closing.Go(n.end)
	}
	done := finished(&p.closing)
	timeout := time.NewTimer(lingering)
	defer timeout.Stop()
	select {
	case <-done:
		return
	case <-timeout.C:
	case <-ctx.Done():
	}
	close(stopped)
	select {
	case <-done:
	case <-time.After(ending):
	}
}

// ending is how long the end of what no longer has anything to do may take. It takes milliseconds; the time is for mistakes, so
// that no process can keep kiln from ending. Tests change it.
var ending = 5 * time.Second

// finished returns a channel that is closed when w has come to its end.
func finished(w *sync.WaitGroup) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		w.Wait()
		close(done)
	}()
	return done
}

// Namespace returns the descriptor of the network namespace, for setns(2). It stays the network's.
func (n *Network) Namespace() *os.File { return n.file }

// UserNamespace returns the user namespace that the network namespace belongs to, if Pool.Make made one, else nil. It stays the
// network's, and nobody else has it at the same time.
func (n *Network) UserNamespace() *os.File { return n.users }

// Release gives the network up when no process is in its namespace any more. privileged says that one was that may have
// configured the namespace.
func (n *Network) Release(privileged bool) {
	if !privileged && n.pristine() {
		n.pool.mu.Lock()
		n.pool.free = append(n.pool.free, n)
		n.pool.mu.Unlock()
		return
	}
	n.pool.closing.Go(func() {
		n.drain()
		n.end()
	})
}

// lingering is how long a connection whose process is gone may take to pass on what the process has sent. Tests change it.
var lingering = 5 * time.Second

// drain waits until what the processes have sent is on its way, but not longer than the time lingering or until Pool.Close stops that.
func (n *Network) drain() {
	timeout := time.NewTimer(lingering)
	defer timeout.Stop()
	_ = n.link.SetReadDeadline(time.Unix(1, 0))
	select {
	case <-n.emptied:
	case <-n.ended:
	case <-timeout.C:
		return
	case <-n.pool.stopped:
		return
	}
	if n.relay == nil {
		return
	}
	select {
	case <-n.relay.tcp.sent():
	case <-timeout.C:
	case <-n.pool.stopped:
	}
}

// end closes everything.
func (n *Network) end() {
	n.link.Close()
	<-n.ended
	if n.relay != nil {
		n.relay.close()
	}
	n.close()
}

// receive reads packets until the link is closed.
func (n *Network) receive() {
	defer close(n.ended)
	raw, err := n.link.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, n.frame+mtu)
	emptied := false
	for {
		k, err := n.link.Read(buf)
		switch {
		case err == nil:
			n.packet(buf[:k])
		case errors.Is(err, os.ErrDeadlineExceeded) && !emptied:
			emptied = true
			_ = raw.Control(func(fd uintptr) {
				for {
					k, err := unix.Read(int(fd), buf)
					if err != nil {
						return
					}
					n.packet(buf[:k])
				}
			})
			_ = n.link.SetReadDeadline(time.Time{})
			close(n.emptied)
		case errors.Is(err, unix.ENETDOWN): // and may be up again
		default:
			return
		}
	}
}

// packet takes a packet that a process sent.
func (n *Network) packet(frame []byte) {
	if len(frame) <= n.frame {
		return
	}
	if n.relay == nil {
		n.relay = newRelay(n.namespace, &n.pool.sockets)
	}
	n.relay.packet(frame[n.frame:])
}

// Probe makes a network namespace and lets it go. It returns by what way packets reach kiln: "tun" is a tun device, "veth" a
// pair of interfaces, which needs no device file. The error says why neither can be made.
func Probe() (way string, err error) {
	n, err := newNamespace(nil, hasIPv6())
	if err != nil {
		return "", err
	}
	defer n.close()
	return n.way, nil
}

// limit bounds how many sockets of the host are open.
type limit struct{ used atomic.Int64 }

var maxSockets = sync.OnceValue(func() int64 {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil {
		return 256
	}
	return int64(min(l.Cur/2, 1<<14))
})

func (l *limit) take() bool {
	if l.used.Add(1) <= maxSockets() {
		return true
	}
	l.used.Add(-1)
	return false
}

func (l *limit) give() { l.used.Add(-1) }

// dialer connects from the host. The processes' own settings decide when a silent connection is given up.
var dialer = net.Dialer{KeepAlive: -1}
