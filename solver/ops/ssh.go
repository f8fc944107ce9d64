package ops

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/llb"
)

// agent mounts a socket of kiln's own, behind which is the user's ssh agent: the step can list keys and have things signed,
// and nothing else, and it can do so until it ends. See draft-ietf-sshm-ssh-agent.
func (m *mounting) agent(spec llb.Mount) error {
	socket, ok := m.r.Agents[spec.ID]
	if !ok {
		if spec.Required {
			return fmt.Errorf("ssh agent %q is required, and the build was not given it: use --ssh %s, or --ssh %s=SOCKET", spec.ID, spec.ID, spec.ID)
		}
		return nil
	}
	name, err := os.MkdirTemp(m.r.Tmp, "ssh-")
	if err != nil {
		return err
	}
	m.closers = append(m.closers, func() { os.RemoveAll(name) })
	dir, err := os.OpenFile(name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	// The name of a socket has at most 107 bytes, and that of the directory may be longer.
	l, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/agent", dir.Fd()))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(m.ctx)
	m.closers = append(m.closers, func() { cancel(); l.Close() })
	f, err := rootfs.At(dir).OpenFile("agent", unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	path := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	if err := os.Chown(path, spec.UID, spec.GID); err != nil {
		return err
	}
	if err := unix.Chmod(path, spec.Mode&0o7777); err != nil {
		return err
	}
	go serveAgent(ctx, l, socket)
	return m.below(dir, llb.Mount{Source: "/agent", Target: spec.Target})
}

// serveAgent gives each connection of l one of its own to the agent's socket, until l is closed or ctx is done.
func serveAgent(ctx context.Context, l net.Listener, socket string) {
	for {
		client, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer client.Close()
			var d net.Dialer
			agent, err := d.DialContext(ctx, "unix", socket)
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
		}()
	}
}

// Messages of the agent protocol.
const (
	agentFailure           = 5
	agentRequestIdentities = 11
	agentSignRequest       = 13
	// maxAgentMessage bounds a message in bytes, as OpenSSH does.
	maxAgentMessage = 256 << 10
)

// forward passes one request on, and its answer back. What is neither a list of keys nor a signature is refused, without the
// agent hearing of it.
func forward(client, agent io.ReadWriter) error {
	request, err := agentMessage(client)
	if err != nil {
		return err
	}
	answer := []byte{0, 0, 0, 1, agentFailure}
	if kind := request[4]; kind == agentRequestIdentities || kind == agentSignRequest {
		if _, err := agent.Write(request); err != nil {
			return err
		}
		if answer, err = agentMessage(agent); err != nil {
			return err
		}
	}
	_, err = client.Write(answer)
	return err
}

// agentMessage reads a message with its length, which is at least one byte.
func agentMessage(r io.Reader) ([]byte, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head)
	if n == 0 || n > maxAgentMessage {
		return nil, fmt.Errorf("an ssh agent message of %d bytes", n)
	}
	message := append(head, make([]byte, n)...)
	_, err := io.ReadFull(r, message[4:])
	return message, err
}
