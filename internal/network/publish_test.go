package network

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// published publishes a free port of the loopback interface for a port of the namespace, and returns its address.
func published(t testing.TB, n *Network, protocol string, inside uint16) (*Published, string) {
	t.Helper()
	p, err := n.Publish([]Port{{protocol, netip.MustParseAddrPort("127.0.0.1:0"), inside}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(context.Background()) })
	return p, p.Ports[0].Host.String()
}

// listen listens in the namespace.
func listen(t testing.TB, n *Network, address string) *net.TCPListener {
	t.Helper()
	var l net.Listener
	var err error
	inside(t, n, func() { l, err = net.Listen("tcp", address) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

func TestPublish(t *testing.T) {
	n := newNetwork(t)
	_, at := published(t, n, "tcp", 80)
	// Nothing listens yet, or only where other hosts would not reach it.
	listen(t, n, "127.0.0.1:80")
	if c, err := net.Dial("tcp", at); err == nil {
		if _, err = c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("nothing listens: %v", err)
		}
		c.Close()
	}
	l := listen(t, n, "10.0.2.100:80")
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				all, err := io.ReadAll(c) // the client ends its half first
				if err == nil {
					_, _ = c.Write(all)
				}
			}()
		}
	}()
	data := make([]byte, 1_000_000)
	_, _ = rand.Read(data)
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			c, err := net.Dial("tcp", at)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(hang))
			go func() {
				_, _ = c.Write(data)
				_ = c.(*net.TCPConn).CloseWrite()
			}()
			if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes came back, %v", len(got), err)
			}
		})
	}
	all.Wait()
}

// What a process sent before it ended is passed on, and Close waits for nobody who does not read it.
func TestPublishEnd(t *testing.T) {
	old := lingering
	lingering = 100 * time.Millisecond
	t.Cleanup(func() { lingering = old })
	n := newNetwork(t)
	p, at := published(t, n, "tcp", 80)
	l := listen(t, n, ":80")
	reads, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer reads.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, "last words")
	c.Close()
	idle, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	if c, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p.Close(context.Background())
	if got, err := io.ReadAll(reads); string(got) != "last words" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := net.Dial("tcp", at); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after the end: %v", err)
	}
}

func TestPublishUDP(t *testing.T) {
	n := newNetwork(t)
	_, at := published(t, n, "udp", 53)
	var server net.PacketConn
	var err error
	inside(t, n, func() { server, err = net.ListenPacket("udp", ":53") })
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		buf := make([]byte, mtu)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(buf[:n], from)
		}
	}()
	for _, text := range []string{"one", "two"} {
		c, err := net.Dial("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(hang))
		for range 3 {
			_, _ = io.WriteString(c, text)
			buf := make([]byte, 100)
			if n, err := c.Read(buf); string(buf[:n]) != text || err != nil {
				t.Errorf("%q, %v", buf[:n], err)
			}
		}
	}
}

func TestPublishErrors(t *testing.T) {
	n := newNetwork(t)
	_, at := published(t, n, "tcp", 80)
	_, err := n.Publish([]Port{{"udp", netip.MustParseAddrPort("[::1]:0"), 1}, {"tcp", netip.MustParseAddrPort(at), 80}})
	taken, ok := errors.AsType[*PortError](err)
	if !ok || !errors.Is(err, unix.EADDRINUSE) || taken.Error() != "listen at "+at+"/tcp: address already in use" {
		t.Errorf("a port that is taken: %v", err)
	}
	if _, err := n.Publish([]Port{{"tcp", netip.MustParseAddrPort("192.0.2.1:0"), 1}}); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("an address of another host: %v", err)
	}
}
