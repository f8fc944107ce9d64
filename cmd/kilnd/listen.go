package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/kilnbuild/kiln/daemon/client"
	"github.com/kilnbuild/kiln/internal/input"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
)

// listening says where a daemon listens.
type listening struct {
	addresses     []string
	group         string
	cert, key, ca string
}

// listener is one socket.
type listener struct {
	net.Listener
	address     string
	credentials credentials.TransportCredentials
}

// listeners are all of them.
type listeners struct{ all []listener }

func (l *listeners) close() {
	for _, one := range l.all {
		one.Close()
	}
}

// listen opens the sockets.
func listen(s *listening) (*listeners, error) {
	l := &listeners{}
	for _, a := range s.addresses {
		if err := l.add(s, a); err != nil {
			l.close()
			return nil, fmt.Errorf("listen on %s: %w", a, err)
		}
	}
	return l, nil
}

func (l *listeners) add(s *listening, address string) error {
	scheme, rest, ok := strings.Cut(address, "://")
	if !ok {
		return &input.Error{Err: errors.New("an address is unix://PATH, tcp://HOST:PORT or fd://")}
	}
	switch scheme {
	case "unix":
		n, err := unixSocket(rest, s.group)
		if err == nil {
			l.all = append(l.all, listener{n, address, client.Credentials()})
		}
		return err
	case "tcp":
		c, err := s.mutualTLS()
		if err != nil {
			return err
		}
		n, err := net.Listen("tcp", rest)
		if err == nil {
			l.all = append(l.all, listener{n, address, c})
		}
		return err
	case "fd":
		return l.inherited(address)
	}
	return &input.Error{Err: fmt.Errorf("%s:// is not supported: use unix://, tcp:// or fd://", scheme)}
}

// mutualTLS returns what a connection by TCP needs: whoever can reach the port could do anything with the daemon, so clients need a
// certificate.
func (s *listening) mutualTLS() (credentials.TransportCredentials, error) {
	if s.cert == "" || s.key == "" || s.ca == "" {
		return nil, &input.Error{Err: errors.New("tcp:// needs --tlscert, --tlskey and --tlscacert, " +
			"so that only clients with a certificate are served")}
	}
	cert, err := tls.LoadX509KeyPair(s.cert, s.key)
	if err != nil {
		return nil, &input.Error{Err: err}
	}
	data, err := os.ReadFile(s.ca)
	if err != nil {
		return nil, &input.Error{Err: err}
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, &input.Error{Err: fmt.Errorf("%s has no certificate in PEM", s.ca)}
	}
	config := &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2"},
	}
	return anyProtocol{credentials.NewTLS(config), config}, nil
}

// anyProtocol are credentials for clients that name no protocol in the handshake (ALPN) as well. gRPC's own refuse those, of which buildx
// is one.
type anyProtocol struct {
	credentials.TransportCredentials
	config *tls.Config
}

// ServerHandshake implements credentials.TransportCredentials. gRPC has set a deadline on the connection.
func (a anyProtocol) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn := tls.Server(raw, a.config)
	if err := conn.Handshake(); err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn, credentials.TLSInfo{
		State: conn.ConnectionState(), CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}

// unixSocket listens on a socket in the file system, which only its owner may use, or also a group. One that is left of a daemon that was
// killed is replaced.
func unixSocket(path, group string) (net.Listener, error) {
	gid := -1
	if group != "" {
		var err error
		if gid, err = groupID(group); err != nil {
			return nil, &input.Error{Err: err}
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, err
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, errors.New("another daemon listens there")
	} else if info, statErr := os.Lstat(path); statErr == nil {
		if info.Mode()&fs.ModeSocket == 0 {
			return nil, errors.New("there is a file that is no socket")
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	was := syscall.Umask(0o177)
	l, err := net.Listen("unix", path)
	syscall.Umask(was)
	if err != nil || gid < 0 {
		return l, err
	}
	err = os.Lchown(path, -1, gid)
	if err == nil {
		err = os.Chmod(path, 0o660)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func groupID(name string) (int, error) {
	if n, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(n), nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(g.Gid)
}

// firstFD is the first socket that systemd passes on: sd_listen_fds(3).
const firstFD = 3

// inherited takes the sockets that systemd passes on. One that is reached by TCP needs certificates as any other.
func (l *listeners) inherited(address string) error {
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if pid := os.Getenv("LISTEN_PID"); err != nil || n < 1 || pid != strconv.Itoa(os.Getpid()) {
		return &input.Error{Err: errors.New("no socket was passed on: LISTEN_FDS and LISTEN_PID say so")}
	}
	for fd := firstFD; fd < firstFD+n; fd++ {
		unix.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), address)
		one, err := net.FileListener(f)
		f.Close()
		if err != nil {
			return err
		}
		if name := one.Addr().String(); one.Addr().Network() != "unix" || !filepath.IsAbs(name) {
			one.Close()
			return &input.Error{Err: errors.New("only sockets in the file system can be passed on: TCP needs certificates, which tcp:// has, " +
				"and every user may connect to an abstract socket")}
		}
		l.all = append(l.all, listener{one, address, client.Credentials()})
	}
	return nil
}
