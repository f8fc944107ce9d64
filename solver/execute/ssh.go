package execute

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/internal/sshagent"
	"github.com/kilnbuild/kiln/llb"
)

// agent mounts a socket of kiln's own, behind which is an ssh agent: the step can list keys and have things signed, and
// nothing else, and it can do so until it ends.
func (m *mounting) agent(spec llb.Mount) error {
	agent, err := m.x.Agent(m.ctx, spec.ID)
	if agent == nil && err == nil {
		err = &sshagent.MissingError{ID: spec.ID}
	}
	if errors.As(err, new(*sshagent.MissingError)) && !spec.Required {
		return nil
	}
	if err != nil {
		return err
	}
	socket, err := agent.Lend(context.WithoutCancel(m.ctx), m.x.Tmp) // until it is closed
	if err != nil {
		return err
	}
	m.closers = append(m.closers, socket.Close)
	f, err := rootfs.At(socket.Dir).OpenFile(sshagent.Name, unix.O_PATH, 0)
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
	return m.belowMapped(socket.Dir, llb.Mount{Source: "/" + sshagent.Name, Target: spec.Target})
}
