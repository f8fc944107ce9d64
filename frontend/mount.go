package frontend

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

// mounts lowers the --mount flags of RUN and returns them, in the order in which they are to be mounted, the path of
// the first ssh agent, and the inputs of the step, to which it adds.
func (b *builder) mounts(s *stage, c *instructions.RunCommand, sources []*stage, inputs []llb.Output) (mounts []llb.Mount, agent string, with []llb.Output, err error) {
	agents := 0
	for i, m := range instructions.GetMounts(c) {
		out := llb.Mount{Type: llb.MountType(m.Type), ReadOnly: m.ReadOnly, Required: m.Required}
		switch m.Type {
		case instructions.MountTypeSecret:
			err = secretMount(&out, m)
		case instructions.MountTypeSSH:
			err = sshMount(&out, m, agents)
			agents++
		case instructions.MountTypeTmpfs:
			out.Size = m.SizeLimit
			if path.Clean("/"+m.Source) != "/" {
				err = fmt.Errorf("--mount=type=tmpfs: there is no source %q in an empty file system", m.Source)
			}
		case instructions.MountTypeCache:
			b.cacheMount(&out, m)
		}
		if err != nil {
			return nil, "", nil, err
		}
		out.Target = m.Target
		if m.Type == instructions.MountTypeSecret || m.Type == instructions.MountTypeSSH {
			out.Target = targetOf(m, agents-1)
		}
		if out.Target != "" || out.Env == "" {
			if out.Target, err = mountTarget(s, out.Target); err != nil {
				return nil, "", nil, err
			}
		}
		if m.Type == instructions.MountTypeBind || m.Type == instructions.MountTypeCache && m.From != "" {
			if sources[i] != nil && !sources[i].lowered {
				return nil, "", nil, fmt.Errorf("cannot mount from stage %q, it needs to be defined before the current stage", m.From)
			}
			input, source := b.mountSource(s, c, m, sources[i])
			inputs = append(inputs, input)
			out.Input, out.Source = len(inputs)-1, source
		}
		if m.Type == instructions.MountTypeSSH && agent == "" {
			agent = out.Target
		}
		mounts = append(mounts, out)
	}
	// As in BuildKit: a mount below another is mounted after it, wherever they stand, and at one target secrets and agents
	// come last.
	late := map[llb.MountType]int{llb.MountSecret: 1, llb.MountSSH: 2}
	slices.SortStableFunc(mounts, func(a, b llb.Mount) int {
		return cmp.Or(cmp.Compare(a.Target, b.Target), late[a.Type]-late[b.Type])
	})
	return mounts, agent, inputs, nil
}

// mountTarget returns where a mount is, absolute and cleaned. A relative one is below the working directory. Symbolic links of the
// image are followed, and what they lead to is checked, when the step runs.
func mountTarget(s *stage, target string) (string, error) {
	if !path.IsAbs(target) {
		target = path.Join(s.config.Cwd(), target)
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

// mountSource returns what a bind or cache mount shows, and the path in it.
func (b *builder) mountSource(s *stage, c *instructions.RunCommand, m *instructions.Mount, from *stage) (llb.Output, string) {
	source := path.Join("/", m.Source)
	var local llb.Output
	if from == nil {
		local = b.mainContext()
	} else if dir, ok := from.directory(); ok {
		local = dir
	} else {
		return from.root, source
	}
	// A local directory is no root file system, so what is mounted is copied, and that alone is read of it.
	dest := path.Join("/", path.Base(source))
	op := llb.File{Actions: []llb.Action{{Copy: &llb.Copy{
		Sources:    []llb.CopySource{{Input: 1, Path: escapeWildcards(source)}},
		Dest:       dest,
		Attributes: llb.Attributes{Epoch: b.epoch},
	}}}}
	text := "load " + strings.TrimPrefix(source, "/") + " for a bind mount"
	if source == "/" {
		text = "load the context for a bind mount"
	}
	v := b.graph.Add(op, b.internalMeta(s, text, c.Location()), b.scratch(), local)
	return v.Output(0), dest
}

// escapeWildcards returns a pattern that matches p alone.
func escapeWildcards(p string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(p)
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

func sshMount(out *llb.Mount, m *instructions.Mount, n int) error {
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

func (b *builder) cacheMount(out *llb.Mount, m *instructions.Mount) {
	out.CacheID = m.CacheID
	if out.CacheID == "" {
		out.CacheID = path.Clean(m.Target)
	}
	if ns := b.buildArgs["BUILDKIT_CACHE_MOUNT_NS"]; ns != "" {
		out.CacheID = ns + "/" + out.CacheID
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
