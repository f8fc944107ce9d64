package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
)

// Credentials returns what a server on a socket in the file system is given, so that User knows whose process a client is. The kernel
// tells: the client is not asked.
func Credentials() credentials.TransportCredentials { return socketCredentials{} }

// process is the client at the other end of a socket. It implements credentials.AuthInfo.
type process struct {
	credentials.CommonAuthInfo
	uid uint32
}

// AuthType implements credentials.AuthInfo.
func (process) AuthType() string { return "socket" }

// socketCredentials implements credentials.TransportCredentials, for servers.
type socketCredentials struct{}

// ServerHandshake implements credentials.TransportCredentials.
func (socketCredentials) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	socket, ok := c.(syscall.Conn)
	if !ok {
		return nil, nil, fmt.Errorf("a connection of type %T has no socket", c)
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	var peer *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) { peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return nil, nil, err
	}
	if failed != nil {
		return nil, nil, fmt.Errorf("ask for the user of the client: %w", failed)
	}
	return c, process{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, peer.Uid}, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (socketCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.ErrUnsupported
}

// Info implements credentials.TransportCredentials.
func (socketCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "socket"}
}

// Clone implements credentials.TransportCredentials.
func (s socketCredentials) Clone() credentials.TransportCredentials { return s }

// OverrideServerName implements credentials.TransportCredentials.
func (socketCredentials) OverrideServerName(string) error { return errors.ErrUnsupported }
