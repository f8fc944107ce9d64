package network

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// maxConnections is how many connections a namespace has at once. A request beyond it is not answered until there is room.
	maxConnections = 512
	// window is the size of each buffer of a connection. The way to the process is short, and a few packets fill it.
	window = 512 << 10
	// piece is how much of a connection is passed on at a time.
	piece = 64 << 10

	// wide is how many sockets there are with a window and pieces of these sizes. Those beyond have narrow ones, so that
	// many connections to peers that do not read take little memory.
	wide         = 32
	narrowWindow = 32 << 10
	narrowPiece  = 8 << 10
)

// connections are the TCP connections of a namespace. Each ends here and has one of the host as its other half.
type connections struct {
	stack     *stack.Stack
	ns        *namespace
	sockets   *limit
	hidden    func(netip.Addr) bool // see loopbackAddresses
	forwarder *tcp.Forwarder
	ctx       context.Context // ends with close
	cancel    context.CancelFunc

	mu      sync.Mutex
	pending map[stack.TransportEndpointID][]byte // the quotes of requests that the forwarder has not completed
	open    map[*connection]bool
	closing bool
	sending sync.WaitGroup // what passes on what processes send
	all     sync.WaitGroup
}

// connection is a connection of a process and the one of the host that belongs to it.
type connection struct {
	process  *gonet.TCPConn
	endpoint tcpip.Endpoint // of process
	host     *net.TCPConn
	piece    int         // how much is passed on at a time
	sent     atomic.Bool // the process has ended its half, and it has been passed on
}

func newConnections(s *stack.Stack, ns *namespace, sockets *limit, hidden func(netip.Addr) bool) *connections {
	buffers := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: window, Max: window}
	sendBuffers := tcpip.TCPSendBufferSizeRangeOption(buffers)
	sack := tcpip.TCPSACKEnabled(true)
	// Between these two ends nothing arrives late.
	timeWait := tcpip.TCPTimeWaitTimeoutOption(time.Second)
	for _, o := range []tcpip.SettableTransportProtocolOption{&buffers, &sendBuffers, &sack, &timeWait} {
		must(s.SetTransportProtocolOption(tcp.ProtocolNumber, o))
	}
	c := &connections{stack: s, ns: ns, sockets: sockets, hidden: hidden,
		pending: map[stack.TransportEndpointID][]byte{}, open: map[*connection]bool{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.forwarder = tcp.NewForwarder(s, window, maxConnections, c.connect)
	return c
}

// segment takes a segment that belongs to no connection. The forwarder drops a request whose id it has in flight without calling
// connect, and does not say so. Every such id is in pending, so what is counted here is a call of connect.
func (c *connections) segment(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	if header.TCP(pkt.TransportHeader().Slice()).Flags()&(header.TCPFlagSyn|header.TCPFlagAck) != header.TCPFlagSyn {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.pending[id]; ok || c.closing || len(c.pending)+len(c.open) >= maxConnections || !c.sockets.take() {
		return true
	}
	if !c.forwarder.HandlePacket(id, pkt) {
		c.sockets.give()
		return false
	}
	c.pending[id] = quote(pkt)
	c.all.Add(1)
	return true
}

// connect answers a request for a connection, and passes on what both sides send until they end it.
func (c *connections) connect(r *tcp.ForwarderRequest) {
	defer c.all.Done()
	defer c.sockets.give()
	id := r.ID()
	conn, err := c.establish(r, id)
	c.complete(r, id, conn, err)
	if err != nil {
		return
	}
	received := make(chan struct{})
	go func() {
		defer close(received)
		conn.receive()
	}()
	conn.send()
	c.sending.Done()
	<-received
	conn.host.Close()
	conn.process.Close()
	c.mu.Lock()
	delete(c.open, conn)
	c.mu.Unlock()
}

// complete answers a request for which there is a connection, or else an error. The id leaves pending and the forwarder at once:
// a request between the two would be counted and never handled.
func (c *connections) complete(r *tcp.ForwarderRequest, id stack.TransportEndpointID, conn *connection, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.open[conn] = true
	}
	// A request that timed out is not answered either.
	refused := errors.Is(err, unix.ECONNREFUSED)
	if err != nil && !refused {
		c.ns.refuse(c.pending[id], err)
	}
	r.Complete(refused)
	delete(c.pending, id)
}

// establish connects to the target, and then lets the process's connection be. What it returns is counted in sending.
func (c *connections) establish(r *tcp.ForwarderRequest, id stack.TransportEndpointID) (*connection, error) {
	to, err := target(addrPort(id.LocalAddress, id.LocalPort), c.hidden)
	if err != nil {
		return nil, err
	}
	host, err := dialer.DialContext(c.ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	closing := c.closing
	if !closing {
		c.sending.Add(1)
	}
	c.mu.Unlock()
	if closing {
		host.Close()
		return nil, net.ErrClosed
	}
	var queue waiter.Queue
	ep, terr := r.CreateEndpoint(&queue)
	if terr != nil {
		// The process has reset the connection already. Its target must not take that for an end.
		c.sending.Done()
		_ = host.(*net.TCPConn).SetLinger(0)
		host.Close()
		return nil, errors.New(terr.String())
	}
	conn := &connection{process: gonet.NewTCPConn(&queue, ep), endpoint: ep, host: host.(*net.TCPConn), piece: piece}
	if c.sockets.used.Load() > wide {
		conn.piece = narrowPiece
		ep.SocketOptions().SetReceiveBufferSize(narrowWindow, true)
		ep.SocketOptions().SetSendBufferSize(narrowWindow, true)
	}
	return conn, nil
}

// send passes on what the process sends.
func (c *connection) send() {
	if !transfer(c.host, c.process, c.piece) || c.host.CloseWrite() != nil {
		c.reset()
		return
	}
	c.sent.Store(true)
}

// receive passes on what the process is sent.
func (c *connection) receive() {
	if !transfer(c.process, c.host, c.piece) || c.process.CloseWrite() != nil {
		c.reset()
	}
}

// reset ends both connections at once, as one of them has been.
func (c *connection) reset() {
	c.endpoint.Abort()
	// Once the process has ended its half what it has sent must not be lost.
	if !c.sent.Load() {
		_ = c.host.SetLinger(0)
	}
	c.host.Close()
}

// transfer copies until the end of from, so much at a time, and reports whether it came to that.
func transfer(to io.Writer, from io.Reader, piece int) bool {
	buf := make([]byte, piece)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return false
			}
		}
		if err != nil {
			return err == io.EOF
		}
	}
}

// sent returns a channel that is closed when what processes have sent has been passed on. There are no new connections: a
// request that has not been answered is that of no process any more.
func (c *connections) sent() <-chan struct{} {
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	return finished(&c.sending)
}

// close ends all connections. It returns when that is done, or after the time ending.
func (c *connections) close() {
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	c.cancel()
	done := finished(&c.all)
	timeout := time.NewTimer(ending)
	defer timeout.Stop()
	for {
		// A connection that is just being made is not in open yet, and may not be in the stack.
		c.mu.Lock()
		for conn := range c.open {
			conn.reset()
		}
		c.mu.Unlock()
		for _, e := range c.stack.RegisteredEndpoints() {
			e.Abort()
		}
		select {
		case <-done:
			return
		case <-timeout.C:
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}
