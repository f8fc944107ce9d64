// Package sshagent forwards ssh agents: it creates sockets that lead to the user's agent, or to one of kiln's own that holds keys
// from files. A process that has such a socket can list keys and have data signed, nothing else, until the socket is closed. See
// draft-ietf-sshm-ssh-agent.
package sshagent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// maxKey limits the size of a key file in bytes, as in BuildKit.
const maxKey = 100 << 10

// Agent is an agent that can be forwarded.
type Agent struct {
	// connect returns a connection to the agent.
	connect func(ctx context.Context) (io.ReadWriteCloser, error)

	socket string      // of the user's agent; "" for any other
	keys   agent.Agent // what one of kiln's own holds
}

// Via returns an agent that is reached by connections that connect makes. They end when ctx of connect does, or when they are closed.
func Via(connect func(ctx context.Context) (io.ReadWriteCloser, error)) *Agent {
	return &Agent{connect: connect}
}

// MissingError is an agent that a step requires, and that the client did not give.
type MissingError struct {
	ID string
	// Reason is what the client says of it; "" for nothing.
	Reason string
}

func (e *MissingError) Error() string {
	if e.Reason != "" {
		return fmt.Sprintf("ssh agent %q is required, and the client does not forward it: %s", e.ID, e.Reason)
	}
	return fmt.Sprintf("ssh agent %q is required, and the build was not given it: use --ssh %s, --ssh %s=SOCKET or --ssh %s=KEYFILE",
		e.ID, e.ID, e.ID, e.ID)
}

// Set are agents by id.
type Set map[string]*Agent

// Agent implements session.Agents.
func (s Set) Agent(_ context.Context, id string) (*Agent, error) { return s[id], nil }

// Open returns the agent whose socket is at the one path, or an agent that holds the private keys in the files at paths.
func Open(paths ...string) (*Agent, error) {
	a := &Agent{}
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		switch kind := info.Mode().Type(); {
		case kind == os.ModeSocket && len(paths) == 1:
			return &Agent{socket: path}, nil
		case kind == os.ModeSocket:
			return nil, fmt.Errorf("%s is the socket of an agent and cannot be combined with other files", path)
		case kind != 0:
			return nil, fmt.Errorf("%s is neither the socket of an agent nor a key file", path)
		}
		if a.keys == nil {
			a.keys = agent.NewKeyring()
		}
		if err := a.addKey(path, info.Size()); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// connectTimeout bounds the attempt to reach an agent that has too much to do.
const connectTimeout = 10 * time.Second

// Check returns an error if the agent is a socket at which nobody listens: that of an agent that has ended stays.
func (a *Agent) Check() error {
	if a.socket == "" {
		return nil
	}
	c, err := net.DialTimeout("unix", a.socket, connectTimeout)
	if err != nil {
		return err
	}
	return c.Close()
}

func (a *Agent) addKey(path string, size int64) error {
	if size > maxKey {
		return fmt.Errorf("%s is not a private key: it has %d bytes", path, size)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	key, err := ssh.ParseRawPrivateKey(text)
	if locked := (*ssh.PassphraseMissingError)(nil); errors.As(err, &locked) {
		return fmt.Errorf("the key %s has a passphrase: give it to an agent with ssh-add, and that agent to the build", path)
	}
	if err == nil {
		err = a.keys.Add(agent.AddedKey{PrivateKey: key, Comment: path})
	}
	if err != nil {
		return fmt.Errorf("read the private key %s: %w", path, err)
	}
	return nil
}

// dial returns a connection to the agent.
func (a *Agent) dial(ctx context.Context) (io.ReadWriteCloser, error) {
	if a.connect != nil {
		return a.connect(ctx)
	}
	if a.keys == nil {
		var d net.Dialer
		return d.DialContext(ctx, "unix", a.socket)
	}
	client, server := net.Pipe()
	go func() {
		defer server.Close()
		_ = agent.ServeAgent(a.keys, server) // it ends with the connection
	}()
	return client, nil
}

// Name is the name of a socket in its directory.
const Name = "agent"

// Socket is a socket that leads to an agent.
type Socket struct {
	// Dir is the directory, made for it, that the socket is in; opened with O_PATH.
	Dir *os.File

	name     string
	listener net.Listener
	cancel   context.CancelFunc
	serving  sync.WaitGroup // of the listener and of each connection
}

// Lend creates a socket in a new directory below tmp. It works until it is closed or ctx is done.
func (a *Agent) Lend(ctx context.Context, tmp string) (s *Socket, err error) {
	s = &Socket{}
	if s.name, err = os.MkdirTemp(tmp, "ssh-"); err != nil {
		return nil, err
	}
	if s.Dir, err = os.Open(s.name); err != nil {
		os.RemoveAll(s.name)
		return nil, err
	}
	if s.listener, err = net.Listen("unix", s.Path()); err != nil {
		s.Dir.Close()
		os.RemoveAll(s.name)
		return nil, err
	}
	ctx, s.cancel = context.WithCancel(ctx)
	s.serving.Go(func() { a.serve(ctx, s) })
	return s, nil
}

// Path returns a path of the socket that processes of the same user can use, with the same working directory if it is relative. The
// name of a socket has at most 107 bytes, and that of the directory may be longer.
func (s *Socket) Path() string {
	if !filepath.IsAbs(s.name) {
		return filepath.Join(s.name, Name)
	}
	return fmt.Sprintf("/proc/%d/fd/%d/%s", os.Getpid(), s.Dir.Fd(), Name)
}

// Close ends all connections and removes the socket and its directory.
func (s *Socket) Close() {
	s.cancel()
	s.listener.Close()
	s.serving.Wait()
	s.Dir.Close()
	os.RemoveAll(s.name)
}

// serve gives each connection of the socket one of its own to the agent, until the listener is closed or ctx is done.
func (a *Agent) serve(ctx context.Context, s *Socket) {
	for {
		client, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.serving.Go(func() {
			defer client.Close()
			agent, err := a.dial(ctx)
			if err != nil {
				return
			}
			defer agent.Close()
			stop := context.AfterFunc(ctx, func() {
				client.Close()
				agent.Close()
			})
			defer stop()
			for forward(client, agent) == nil {
			}
		})
	}
}

// Messages of the agent protocol.
const (
	agentFailure           = 5
	agentRequestIdentities = 11
	agentSignRequest       = 13
	// maxMessage limits the size of a message in bytes, as in OpenSSH.
	maxMessage = 256 << 10
)

// forward passes one request on, and its answer back. Requests other than listing keys and signing are refused and do not reach the
// agent.
func forward(client, agent io.ReadWriter) error {
	request, err := readMessage(client)
	if err != nil {
		return err
	}
	answer := []byte{0, 0, 0, 1, agentFailure}
	if kind := request[4]; kind == agentRequestIdentities || kind == agentSignRequest {
		if _, err := agent.Write(request); err != nil {
			return err
		}
		if answer, err = readMessage(agent); err != nil {
			return err
		}
	}
	_, err = client.Write(answer)
	return err
}

// readMessage reads a message with its length, which is at least one byte.
func readMessage(r io.Reader) ([]byte, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head)
	if n == 0 || n > maxMessage {
		return nil, fmt.Errorf("an ssh agent message of %d bytes", n)
	}
	message := append(head, make([]byte, n)...)
	_, err := io.ReadFull(r, message[4:])
	return message, err
}
