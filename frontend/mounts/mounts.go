// Package mounts reads the --mount flags of RUN. What they show of other stages and contexts it does not know.
package mounts

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/kilnbuild/kiln/llb"
)

// Reader reads the flags of one RUN, in their order.
type Reader struct {
	// Cwd is the working directory, absolute and cleaned.
	Cwd string
	// CacheNamespace is put before the ids of caches; "" for none.
	CacheNamespace string
	// Agent is the path of the first ssh agent that was read; "" for none.
	Agent string
	// agents is how many were read.
	agents int
}

// Read returns a mount but for its input.
func (r *Reader) Read(m *instructions.Mount) (out llb.Mount, err error) {
	out = llb.Mount{Type: llb.MountType(m.Type), ReadOnly: m.ReadOnly, Required: m.Required, Target: m.Target}
	switch m.Type {
	case instructions.MountTypeSecret:
		out.Target = targetOf(m, 0)
		err = secretMount(&out, m)
	case instructions.MountTypeSSH:
		out.Target = targetOf(m, r.agents)
		err = sshMount(&out, m)
		r.agents++
	case instructions.MountTypeTmpfs:
		out.Size = m.SizeLimit
		if path.Clean("/"+m.Source) != "/" {
			err = fmt.Errorf("--mount=type=tmpfs: the source %q does not exist in an empty file system", m.Source)
		}
	case instructions.MountTypeCache:
		r.cacheMount(&out, m)
	}
	if err == nil && (out.Target != "" || out.Env == "") {
		out.Target, err = r.place(out.Target)
	}
	if m.Type == instructions.MountTypeSSH && r.Agent == "" {
		r.Agent = out.Target
	}
	return out, err
}

// Order puts mounts into the order in which they are to be mounted, which is BuildKit's: one below another comes after it, wherever they
// stand, and at one target secrets and agents come last.
func Order(mounts []llb.Mount) {
	late := map[llb.MountType]int{llb.MountSecret: 1, llb.MountSSH: 2}
	slices.SortStableFunc(mounts, func(a, b llb.Mount) int {
		return cmp.Or(cmp.Compare(a.Target, b.Target), late[a.Type]-late[b.Type])
	})
}

// ID returns the id of a secret or an ssh agent; "" for other mounts, and for what Read refuses.
func ID(m *instructions.Mount) string {
	var mount llb.Mount
	switch m.Type {
	case instructions.MountTypeSecret:
		if secretMount(&mount, m) != nil {
			return ""
		}
	case instructions.MountTypeSSH:
		if sshMount(&mount, m) != nil {
			return ""
		}
	}
	return mount.ID
}

// place returns where a mount is, absolute and cleaned. A relative one is below the working directory. Symbolic links of the
// image are followed, and what they lead to is checked, when the step runs.
func (r *Reader) place(target string) (string, error) {
	given := target
	if !path.IsAbs(target) {
		target = path.Join(r.Cwd, target)
	}
	if path.Clean(target) == "/" && given == "" {
		return "", errors.New("the mount has no target (target=/path)")
	}
	if target = path.Clean(target); target == "/" {
		return "", fmt.Errorf("invalid mount target %q", target)
	}
	for _, dir := range []string{"/proc", "/sys"} {
		if target == dir || strings.HasPrefix(target, dir+"/") {
			return "", fmt.Errorf("invalid mount target %q: a step has a %s of its own, and nothing else can be mounted there", target, dir)
		}
	}
	return target, nil
}

func secretMount(out *llb.Mount, m *instructions.Mount) error {
	out.ID = m.CacheID
	if m.Source != "" {
		out.ID = m.Source
	}
	if out.ID == "" {
		if m.Target == "" {
			return errors.New("a secret mount needs an id or a target")
		}
		out.ID = path.Base(m.Target)
	}
	if m.Env != nil {
		out.Env = *m.Env
		if out.Env == "" {
			out.Env = out.ID
		}
	}
	setOwner(out, m, 0o400)
	return nil
}

func sshMount(out *llb.Mount, m *instructions.Mount) error {
	if m.Source != "" {
		return errors.New("an ssh mount has no source")
	}
	out.ID = m.CacheID
	if out.ID == "" {
		out.ID = "default"
	}
	setOwner(out, m, 0o600)
	return nil
}

// targetOf returns the path of a secret or of the n-th ssh agent; "" for a secret that is in the environment alone.
func targetOf(m *instructions.Mount, n int) string {
	switch {
	case m.Target != "":
		return m.Target
	case m.Type == instructions.MountTypeSSH:
		return fmt.Sprintf("/run/buildkit/ssh_agent.%d", n)
	case m.Env != nil:
		return ""
	case m.Source != "":
		return "/run/secrets/" + path.Base(m.Source)
	default:
		return "/run/secrets/" + path.Base(m.CacheID)
	}
}

func (r *Reader) cacheMount(out *llb.Mount, m *instructions.Mount) {
	out.CacheID = m.CacheID
	if out.CacheID == "" {
		out.CacheID = path.Clean(m.Target)
	}
	if r.CacheNamespace != "" {
		out.CacheID = r.CacheNamespace + "/" + out.CacheID
	}
	out.Sharing = llb.Sharing(m.CacheSharing)
	if out.Sharing == "" {
		out.Sharing = llb.SharingShared
	}
	out.Source = path.Join("/", m.Source)
	setOwner(out, m, 0o755)
}

// setOwner sets owner and mode, the mode to a default where there is none.
func setOwner(out *llb.Mount, m *instructions.Mount, mode uint32) {
	out.Mode = mode
	if m.Mode != nil {
		out.Mode = uint32(*m.Mode)
	}
	if m.UID != nil {
		out.UID = int(*m.UID)
	}
	if m.GID != nil {
		out.GID = int(*m.GID)
	}
}
