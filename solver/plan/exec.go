package plan

import (
	"context"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot/compose"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/files"
	"github.com/kilnbuild/kiln/solver/work"
)

// exec plans RUN. The predefined proxy variables, the values of secrets, agents and the contents and names of caches are not part
// of the key.
func (p *Planner) exec(ctx context.Context, op llb.Exec, meta llb.Meta, in []solver.Ref) (solver.Plan, error) {
	inputs := append(common(op), contentInput("root", in[0].Content()), solver.Input{Name: "platform", Value: meta.Platform})
	add := func(name, value string) { inputs = append(inputs, solver.Input{Name: name, Value: value}) }
	for _, a := range op.Args {
		add("arg", a)
	}
	for _, e := range op.Env {
		add("env", e)
	}
	add("cwd", op.Cwd)
	add("user", op.User)
	add("network", string(op.Network))
	add("security", string(op.Security))
	add("hostname", op.Hostname)
	for name, value := range op.RunOptions.Inputs {
		add(name, value)
	}
	for _, d := range op.Devices {
		add("device", fmt.Sprintf("%q,required=%t", d.Name, d.Required))
	}
	if op.ReadOnly {
		add("read-only", "true")
	}
	for _, s := range op.ExitStatus {
		add("exit status", strconv.Itoa(s))
	}
	// A missing or forbidden device is an error even if the step is cached.
	if err := p.Sources.Devices(op); err != nil {
		return solver.Plan{}, err
	}
	for _, m := range op.Mounts {
		what := fmt.Sprintf("type=%s,target=%q,ro=%t", m.Type, m.Target, m.ReadOnly)
		switch m.Type {
		case llb.MountBind, llb.MountCache:
			what += fmt.Sprintf(",source=%q", m.Source)
			if m.Input > 0 {
				d, err := p.mountContent(ctx, in[m.Input], m)
				if err != nil {
					return solver.Plan{}, err
				}
				what += ",content=" + d.String()
			}
			if m.Output > 0 {
				what += fmt.Sprintf(",output=%d", m.Output)
			}
		case llb.MountSecret, llb.MountSSH:
			what += fmt.Sprintf(",id=%q,env=%q", m.ID, m.Env)
		case llb.MountTmpfs:
			what += fmt.Sprintf(",size=%d", m.Size)
		}
		if m.Type != llb.MountBind && m.Type != llb.MountTmpfs {
			what += fmt.Sprintf(",mode=%o,owner=%d:%d", m.Mode, m.UID, m.GID)
		}
		add("mount", what)
	}
	w := work.Exec{
		Op: op, Proxy: op.Proxy, Shell: op.Shell, Limits: op.Limits, NoCache: meta.NoCache, Platform: meta.Platform, In: in,
	}
	return solver.Plan{Inputs: inputs, Work: w}, nil
}

// mountContent returns the digest of a mount's contents. If changes to the mount are kept, it covers the whole root.
func (p *Planner) mountContent(ctx context.Context, r solver.Ref, m llb.Mount) (solver.Content, error) {
	if m.Output > 0 {
		return r.Content(), nil
	}
	return p.pathContent(ctx, r, m.Source)
}

// pathContent returns the digest of the contents of a path of a root file system, following symbolic links.
func (p *Planner) pathContent(ctx context.Context, r solver.Ref, name string) (solver.Content, error) {
	if path.Clean("/"+name) == "/" {
		return r.Content(), nil
	}
	root, err := p.view(ctx, r)
	if err != nil {
		return solver.Content{}, err
	}
	tree := files.Until(ctx, root)
	physical, e, err := compose.Resolve(tree.Lookup, name, true)
	if err != nil {
		return solver.Content{}, err
	}
	if e == nil {
		return solver.Content{}, files.NotFound(tree, name, physical)
	}
	var list []*layer.Entry
	var walk func(e layer.Entry) error
	walk = func(e layer.Entry) error {
		dir := e.Path
		e.Path, e.LinkID, e.Opaque, e.Implied = strings.TrimPrefix(e.Path[len(physical):], "/"), "", false, false
		list = append(list, &e)
		if e.Type != layer.Dir {
			return nil
		}
		below, err := tree.List(dir)
		for i := 0; err == nil && i < len(below); i++ {
			err = walk(below[i])
		}
		return err
	}
	if err := walk(*e); err != nil {
		return solver.Content{}, err
	}
	return solver.Content(layer.Identify(func(yield func(*layer.Entry) bool) {
		for _, e := range list {
			if !yield(e) {
				return
			}
		}
	}).Content), nil
}
