package ops

import (
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/network"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/sandbox"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/solver"
	"golang.org/x/sys/unix"
)

// ExitError is a process that did not succeed.
type ExitError struct {
	Args   []string
	Status sandbox.Status
	// FullDisk is kiln's root directory if its file system had no room left when the process ended; many programs do not
	// say why they could not write.
	FullDisk string
	// OutOfMemory says that the kernel killed processes for want of memory meanwhile.
	OutOfMemory bool
	// OneID says that the process could not change to another user, nor give files to one.
	OneID bool
	// Limits are what the process was held to.
	Limits sandbox.Limits
}

// TimeoutError is a step that was ended since it took too long.
type TimeoutError struct {
	Args  []string
	Limit time.Duration
}

func (e *TimeoutError) Error() string {
	return fmt.Sprintf("process %q was killed: it took longer than the %v that a step may take (--step-timeout)", strings.Join(e.Args, " "), e.Limit)
}

func (e *ExitError) Error() string {
	s := fmt.Sprintf("process %q did not complete successfully: %s", strings.Join(e.Args, " "), e.ended())
	if e.FullDisk != "" {
		s += fmt.Sprintf("; there is no space left on device for %s", e.FullDisk)
	}
	if e.OneID {
		s += "; it could neither chown nor change to another user than root, as there is one id and no more"
	}
	return s
}

// planExec plans RUN. The predefined proxy variables, the values of secrets, agents and the contents and names of caches
// are no part of the key.
func (r *Runner) planExec(ctx context.Context, v *llb.Vertex, op llb.Exec, in []*solver.Chain) (solver.Step, error) {
	inputs := append(common(v), contentInput("root", in[0].Content()), solver.Input{Name: "platform", Value: v.Meta().Platform})
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
	for _, h := range op.ExtraHosts {
		add("host", h.Host)
	}
	for _, u := range op.Ulimits {
		add("ulimit", fmt.Sprintf("%s=%d:%d", u.Name, u.Soft, u.Hard))
	}
	if op.ShmSize != 0 {
		add("shm size", fmt.Sprint(op.ShmSize))
	}
	if op.CgroupParent != "" {
		add("cgroup parent", op.CgroupParent)
	}
	for _, d := range op.Devices {
		add("device", fmt.Sprintf("%q,required=%t", d.Name, d.Required))
	}
	// A device that is missing or not allowed is an error where the step is cached as well.
	if _, err := r.devices(op); err != nil {
		return solver.Step{}, err
	}
	for _, m := range op.Mounts {
		what := fmt.Sprintf("type=%s,target=%q,ro=%t", m.Type, m.Target, m.ReadOnly)
		switch m.Type {
		case llb.MountBind, llb.MountCache:
			what += fmt.Sprintf(",source=%q", m.Source)
			if m.Input > 0 {
				d, err := r.pathContent(ctx, in[m.Input], m.Source)
				if err != nil {
					return solver.Step{}, err
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
	return solver.Step{
		Inputs: inputs,
		Run: func(ctx context.Context, job solver.Job) (solver.Layer, error) {
			return r.exec(ctx, v, op, in, job)
		},
	}, nil
}

// pathContent returns the digest of what is at a path of a root file system, links followed.
func (r *Runner) pathContent(ctx context.Context, c *solver.Chain, name string) (solver.Content, error) {
	if path.Clean("/"+name) == "/" {
		return c.Content(), nil
	}
	root, err := r.rootTree(ctx, c)
	if err != nil {
		return solver.Content{}, err
	}
	tree := endingTree{root, ctx}
	physical, e, err := snapshot.Resolve(tree.Lookup, name, true)
	if err != nil {
		return solver.Content{}, err
	}
	if e == nil {
		return solver.Content{}, notFound(tree, name, physical)
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

func (r *Runner) exec(ctx context.Context, v *llb.Vertex, op llb.Exec, in []*solver.Chain, job solver.Job) (l solver.Layer, err error) {
	if r.MayRun != nil {
		if err := r.MayRun(ctx); err != nil {
			return l, err
		}
	}
	ids, err := r.Realise(ctx, in[0])
	if err != nil {
		return l, err
	}
	tree, err := r.Snapshots.Tree(ids)
	if err != nil {
		return l, err
	}
	top, _, err := tree.Lookup("")
	if err != nil {
		return l, err
	}
	p, err := r.Snapshots.New()
	if err != nil {
		return l, err
	}
	defer p.Close()
	if err := p.SetRoot(top); err != nil {
		return l, err
	}
	idmap, err := r.IDs()
	if err != nil {
		return l, err
	}
	root, err := r.Snapshots.Mount(ctx, ids, p, idmap)
	if err != nil {
		return l, err
	}
	defer root.Close()
	if root.Refusal != nil && r.Warn != nil {
		r.copies.Do(func() {
			r.Warn(fmt.Sprintf("overlayfs cannot be used here, so each RUN works on a copy of its root, which takes time and space: %v", root.Refusal))
		})
	}
	user, err := sandbox.LookupUser(root.File, op.User)
	if err != nil {
		return l, err
	}
	m := &mounting{ctx: ctx, r: r, op: op, in: in, ids: idmap, root: tree}
	defer m.close()
	if err := m.all(); err != nil {
		return l, err
	}
	if err := m.addDevices(); err != nil {
		return l, err
	}
	user.Groups = slices.Concat(user.Groups, m.groups)
	spec := sandbox.Spec{
		Root: root.File, Args: op.Args, Env: override(slices.Concat(op.Env, m.env, op.Proxy), m.deviceEnv), Cwd: op.Cwd, User: user,
		Mounts: m.mounts, Devices: m.nodes, Hostname: op.Hostname, ShmSize: op.ShmSize, CgroupParent: op.CgroupParent, Limits: r.Limits,
		Insecure: op.Security == llb.SecurityInsecure, IDs: idmap, SharedProc: r.SharedProc, Pool: &r.groups,
		Stdout: job.Stdout, Stderr: job.Stderr,
	}
	// "os/arch[/variant]"
	if platform := strings.Split(v.Meta().Platform, "/"); len(platform) > 1 {
		spec.Architecture = platform[1]
	}
	gateway := network.Gateway
	switch op.Network {
	case llb.NetworkHost:
		// The step has the machine's own network, so the machine is where the step is.
		spec.Network, gateway = sandbox.NetworkHost, "127.0.0.1"
	case llb.NetworkNone:
		spec.Network = sandbox.NetworkNone
	default:
		n, err := r.networks.Get()
		if err != nil {
			return l, err
		}
		defer n.Release(spec.Insecure)
		spec.Network, spec.NetworkNamespace, spec.UserNamespace = sandbox.NetworkJoin, n.Namespace(), n.UserNamespace()
		if spec.ResolvConf, err = n.ResolvConf(); err != nil {
			return l, err
		}
	}
	if spec.SharedProc && spec.UserNamespace == nil {
		users, err := userNamespace()
		if err != nil {
			return l, err
		}
		defer users.Close()
		spec.UserNamespace = users
	}
	for _, h := range op.ExtraHosts {
		if h.IP == "host-gateway" {
			h.IP = gateway
		}
		spec.ExtraHosts = append(spec.ExtraHosts, sandbox.Host{Name: h.Host, IP: h.IP})
	}
	for _, u := range op.Ulimits {
		spec.Rlimits = append(spec.Rlimits, sandbox.Rlimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	if r.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, r.Timeout, &TimeoutError{Args: op.Args, Limit: r.Timeout})
		defer cancel()
	}
	started, killed := time.Now(), oomKills()
	status, err := sandbox.Run(ctx, spec)
	if err != nil {
		return l, explain(err, v.Meta().Platform)
	}
	events.From(ctx).Used(events.Resources{CPU: status.CPU, Memory: status.Memory})
	r.tellPidsLimit(status.NoPidsLimit)
	if status.ExitCode != 0 || status.Signal != 0 {
		failed := &ExitError{Args: op.Args, Status: status, OutOfMemory: oomKills() > killed, Limits: r.Limits}
		if ns, err := userns.Current(); err == nil {
			failed.OneID = ns.Single()
		}
		if full(r.Root) {
			failed.FullDisk = r.Root
		}
		return l, failed
	}
	// What was written has to be in the upper directory before it is read there.
	if err := root.Close(); err != nil {
		return l, err
	}
	c, err := p.CommitChanges(ctx, tree, started)
	r.Snapshots.SetEarlier(c.ID, job.Last.ID)
	return committed(c), err
}

// tellPidsLimit says once what holds in place of the default limit of processes: a warning where that is nothing.
func (r *Runner) tellPidsLimit(e *sandbox.PidsError) {
	tell, text := r.Note, ""
	switch {
	case e == nil:
		return
	case e.Shared > 0:
		text = fmt.Sprintf("in RUN %v", e)
	default:
		tell, text = r.Warn, fmt.Sprintf("in RUN %v (--pids-limit=-1 accepts that)", e)
	}
	if tell != nil {
		r.noPidsLimit.Do(func() { tell(text) })
	}
}

// userNamespace makes a user namespace for a step without a network of its own.
func userNamespace() (*os.File, error) {
	users, network, err := sandbox.NewUserNamespace()
	if err != nil {
		return nil, err
	}
	return users, network.Close()
}

// full reports whether next to nothing can be written to a file system any more.
func full(dir string) bool {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return false
	}
	return st.Bavail < (1<<20)/uint64(st.Bsize) || st.Files > 0 && st.Ffree == 0
}

// mounting collects what a step's mounts need, and lets it go.
type mounting struct {
	ctx  context.Context
	r    *Runner
	op   llb.Exec
	in   []*solver.Chain
	ids  *mount.IDMap   // of the step; nil: kiln's
	root *snapshot.Tree // that the step runs in

	mounts  []sandbox.Mount
	env     []string
	closers []func()

	// What devices add.
	nodes     []sandbox.Mount
	deviceEnv []string
	groups    []uint32
}

func (m *mounting) close() {
	for _, f := range slices.Backward(m.closers) {
		f()
	}
}

// add adds a mount, which takes the place of an earlier one at the same target, as with BuildKit: they may not fit on one another.
func (m *mounting) add(f *os.File, target string) {
	m.closers = append(m.closers, func() { f.Close() })
	m.mounts = slices.DeleteFunc(m.mounts, func(other sandbox.Mount) bool { return other.Target == target })
	m.mounts = append(m.mounts, sandbox.Mount{Source: f, Target: target})
}

func (m *mounting) all() error {
	ns, err := userns.Current()
	if err != nil {
		return err
	}
	for _, spec := range m.op.Mounts {
		if err := ns.Check(uint32(spec.UID), uint32(spec.GID)); err != nil {
			return fmt.Errorf("mount %s at %s: %w", spec.Type, spec.Target, err)
		}
		switch spec.Type {
		case llb.MountBind:
			err = m.bind(spec)
		case llb.MountCache:
			err = m.cache(spec)
		case llb.MountTmpfs:
			err = m.tmpfs(spec)
		case llb.MountSecret:
			err = m.secret(spec)
		case llb.MountSSH:
			err = m.agent(spec)
		default:
			err = fmt.Errorf("BUG: no mount type %q", spec.Type)
		}
		if err != nil {
			return fmt.Errorf("mount %s at %s: %w", spec.Type, spec.Target, err)
		}
	}
	return nil
}

// tmpfs mounts an empty file system, which has the mode of the directory that it covers.
func (m *mounting) tmpfs(spec llb.Mount) error {
	mode := uint32(0o1777)
	_, e, err := snapshot.Resolve(m.root.Lookup, spec.Target, true) // what cannot be resolved cannot be mounted on, which says so
	if err == nil && e != nil && e.Type == layer.Dir {
		mode = e.Mode
	}
	f, err := mount.Tmpfs(spec.Size, mode, 0, 0)
	if err != nil {
		return err
	}
	if !spec.ReadOnly {
		m.add(f, spec.Target)
		return m.mapIDs(f)
	}
	defer f.Close()
	spec.Source = "/"
	return m.belowMapped(f, spec)
}

// bind mounts a path of another root file system. What is written to it, if that is allowed, goes to a layer that is
// thrown away.
func (m *mounting) bind(spec llb.Mount) error {
	ids, err := m.r.Realise(m.ctx, m.in[spec.Input])
	if err != nil {
		return err
	}
	var up *snapshot.Pending
	if !spec.ReadOnly {
		if up, err = m.r.Snapshots.New(); err != nil {
			return err
		}
		m.closers = append(m.closers, func() { up.Close() })
	}
	root, err := m.r.Snapshots.Mount(m.ctx, ids, up, m.ids)
	if err != nil {
		return err
	}
	m.closers = append(m.closers, func() { root.Close() })
	_, err = m.below(root.File, spec)
	return err
}

// mapIDs maps the ids of a file system for the step.
func (m *mounting) mapIDs(f *os.File) error {
	if m.ids == nil {
		return nil
	}
	return mount.MapIDs(f, m.ids)
}
