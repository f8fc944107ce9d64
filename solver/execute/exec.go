package execute

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/network"
	"github.com/kilnbuild/kiln/internal/passwd"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/sandbox"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/snapshot/compose"
	"github.com/kilnbuild/kiln/snapshot/diff"
	"github.com/kilnbuild/kiln/snapshot/roots"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/work"
	"golang.org/x/sys/unix"
)

// ExitError is a process that did not succeed.
type ExitError struct {
	Args   []string
	Status sandbox.Status
	// FullDisk is kiln's root directory if its file system had no room left when the process ended; many programs do not
	// say why they could not write.
	FullDisk string
	// OutOfMemory says that the kernel killed processes meanwhile because memory ran out.
	OutOfMemory bool
	// Fault says what is wrong with a command that a shell could not execute, or did not find although it exists; "" if that is not known.
	Fault string
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
	return fmt.Sprintf("process %q was killed: it took longer than the %v that a step may take (--step-timeout)",
		strings.Join(e.Args, " "), e.Limit)
}

func (e *ExitError) Error() string {
	s := fmt.Sprintf("process %q did not complete successfully: %s", strings.Join(e.Args, " "), e.ended())
	if e.FullDisk != "" {
		s += fmt.Sprintf("; there is no space left on device for %s: kiln prune removes what is not used there", e.FullDisk)
	}
	if e.OneID {
		s += "; it could neither chown nor change to another user than root, as there is one id and no more"
	}
	return s
}

// Prepared is a RUN whose process can be started: its root file system is mounted, and so are its mounts.
type Prepared struct {
	// Spec is what the process is run with. It may be changed before Run, as for another program in the same surroundings.
	Spec sandbox.Spec

	job     *Job
	work    work.Exec
	root    *roots.Root
	tree    *layer.Stack      // of what is below root
	up      *snapshot.Pending // takes what is written to root
	mounts  *mounting
	network *network.Network // nil: none of its own
	users   *os.File         // a user namespace of its own; nil for none
	ids     *mount.IDMap     // of a user namespace of its own; nil for none
	foreign foreign
	started time.Time // see diff.Begin
}

// below returns the root file systems that the step writes over.
func (p *Prepared) below() []*layer.Stack {
	all := []*layer.Stack{p.tree}
	for _, o := range p.mounts.outputs {
		all = append(all, o.tree)
	}
	return all
}

// Network returns the process's own network, nil for none.
func (p *Prepared) Network() *network.Network { return p.network }

// Root returns the root file system. It stays p's.
func (p *Prepared) Root() *os.File { return p.root.File }

// Mounted returns what mount i of the Exec shows; nil for what is not there. It stays p's.
func (p *Prepared) Mounted(i int) *os.File { return p.mounts.sources[i] }

// AddFile mounts a file with a content, which everybody can read and nobody change.
func (p *Prepared) AddFile(target string, content []byte) error {
	if err := p.mounts.file(content, llb.Mount{Target: target, Mode: 0o444}); err != nil {
		return fmt.Errorf("mount a file at %s: %w", target, err)
	}
	p.Spec.Mounts = p.mounts.mounts
	return nil
}

// User looks up a user of the root file system, which is named as in llb.Exec.
func (p *Prepared) User(name string) (passwd.User, error) {
	user, err := sandbox.LookupUser(p.root.File, name)
	user.Groups = slices.Concat(user.Groups, p.mounts.groups)
	return user, err
}

// Close lets go of everything.
func (p *Prepared) Close() {
	if p.users != nil {
		p.users.Close()
	}
	if p.ids != nil {
		p.ids.Namespace.Close()
	}
	if p.network != nil {
		p.network.Release(p.Spec.Privileges.Insecure)
	}
	if p.mounts != nil {
		p.mounts.close()
	}
	if p.root != nil {
		p.root.Close()
	}
	if p.up != nil {
		p.up.Close()
	}
}

// exec runs a process and makes the layers of what it has written.
func (x *Job) exec(ctx context.Context, w work.Exec, job solver.Job) ([]solver.Made, error) {
	if err := x.mayRun(ctx); err != nil {
		return nil, err
	}
	p, err := x.Prepare(ctx, w)
	if err != nil {
		return nil, err
	}
	// One pipe for both keeps the order of what the processes write, which matters more than which of them a line came from.
	p.Spec.Stdio.Stdout, p.Spec.Stdio.Stderr = job.Stdout, job.Stdout
	if x.KeepFailed {
		return x.execKeeping(ctx, p, job)
	}
	defer p.Close()
	if err := p.Run(ctx); err != nil {
		if x.KeepLeft && isFailure(err) {
			x.keepLeft(ctx, p, err)
		}
		return nil, err
	}
	return p.Commit(ctx, job)
}

// Prepare makes everything ready that the process of an Exec needs but its output. The caller closes what is returned.
func (x *Job) Prepare(ctx context.Context, w work.Exec) (_ *Prepared, err error) {
	p := &Prepared{job: x, work: w}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if p.foreign, err = x.foreign(ctx, w.Op, w.Platform); err != nil {
		return nil, err
	}
	ids, err := x.Realise(ctx, w.In[0])
	if err != nil {
		return nil, err
	}
	if p.tree, err = x.Snapshots.Stack(ctx, ids); err != nil {
		return nil, err
	}
	top, _, err := p.tree.Lookup("")
	if err != nil {
		return nil, err
	}
	if p.up, err = x.newUpper(); err != nil {
		return nil, err
	}
	if err := p.up.SetRoot(top); err != nil {
		return nil, err
	}
	idmap, err := p.idMap()
	if err != nil {
		return nil, err
	}
	if p.root, err = x.Snapshots.Mount(ctx, ids, p.up, idmap); err != nil {
		return nil, err
	}
	if p.root.Refusal != nil {
		x.copies.Do(func() {
			x.Warning(fmt.Sprintf("overlayfs cannot be used here, so each RUN works on a copy of its root, which takes time and space: %v",
				p.root.Refusal))
		})
	}
	user, err := sandbox.LookupUser(p.root.File, w.Op.User)
	if err != nil {
		return nil, err
	}
	p.mounts = &mounting{ctx: ctx, x: x, op: w.Op, in: w.In, ids: idmap, root: p.tree, fresh: x.FreshCaches || x.FreshUncached && w.NoCache}
	if err := p.mounts.all(); err != nil {
		return nil, err
	}
	if err := p.mounts.addDevices(); err != nil {
		return nil, err
	}
	user.Groups = slices.Concat(user.Groups, p.mounts.groups)
	p.Spec = x.spec(w, p, user, idmap)
	return p, x.connect(w.Op, p)
}

// mountable returns an error if a root has more layers than can be mounted, before any of them is fetched or unpacked for it.
func mountable(r solver.Ref) error {
	distinct := map[string]bool{}
	for _, l := range r.Changes() {
		distinct[l.ID] = true
	}
	return snapshot.CheckLayers(len(distinct))
}

// idMap returns the map of ids of the step's user namespace, nil if it has the ids of kiln. All steps have the same namespace, except
// those with an emulator: what a namespace has of those, every step in it has.
func (p *Prepared) idMap() (*mount.IDMap, error) {
	if p.job.IDs == nil {
		return nil, nil
	}
	m, err := p.job.IDs()
	if err != nil || m == nil || p.foreign.emulator == nil {
		return m, err
	}
	p.ids, err = sandbox.NewIDMap(m.FirstUser, m.FirstGroup, m.Count)
	return p.ids, err
}

// newUpper begins a layer that takes what a step writes. With --security=insecure a step has kiln's privileges over file systems
// that kiln has mounted, where kiln is in a user namespace; so there what steps leave is copied. Those of root on the host have no
// bounds at all.
func (x *Job) newUpper() (*snapshot.Pending, error) {
	ns, err := userns.Current()
	if err != nil {
		return nil, err
	}
	p, err := x.Snapshots.New()
	if err == nil {
		p.Rewrite = ns.Nested && slices.Contains(x.Allow, "security.insecure")
	}
	return p, err
}

// spec returns what the sandbox is told of a step, but for its network.
func (x *Job) spec(w work.Exec, p *Prepared, user passwd.User, idmap *mount.IDMap) sandbox.Spec {
	op, m := w.Op, p.mounts
	spec := sandbox.Spec{
		Root: p.root.File, ReadOnly: op.ReadOnly, Mounts: m.mounts, Devices: m.nodes,
		Process: sandbox.Process{
			Args: op.Args, Env: override(slices.Concat(op.Env, m.env, op.Proxy), m.deviceEnv), Cwd: op.Cwd, User: user,
			Architecture: architecture(w.Platform), Emulator: p.foreign.emulator,
		},
		Network:    sandbox.Network{Hostname: op.Hostname},
		Privileges: sandbox.Privileges{Insecure: op.Security == llb.SecurityInsecure, IDs: idmap, SharedProc: x.SharedProc},
		Resources:  sandbox.Resources{Limits: limits(x.Limits, op.Limits), CgroupParent: op.CgroupParent, Pool: &x.groups, ShmSize: op.ShmSize},
	}
	for _, u := range op.Ulimits {
		spec.Process.Rlimits = append(spec.Process.Rlimits, sandbox.Rlimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	return spec
}

// connect gives a step its network.
func (x *Job) connect(op llb.Exec, p *Prepared) (err error) {
	spec := &p.Spec
	gateway := network.Gateway
	// An emulator takes a user namespace, to which the network belongs, so that the step may do there what others may.
	alone, networks := spec.Privileges.SharedProc, &x.networks
	if p.foreign.emulator != nil && spec.Privileges.IDs == nil {
		alone, networks = true, &x.emulated
	}
	switch op.Network {
	case llb.NetworkHost:
		// The step has the machine's own network, so the machine is where the step is.
		spec.Network.Mode, gateway = sandbox.NetworkHost, "127.0.0.1"
	case llb.NetworkNone:
		spec.Network.Mode = sandbox.NetworkNone
	default:
		if p.network, err = networks.Get(); err != nil {
			return err
		}
		spec.Network.Mode, spec.Network.Namespace = sandbox.NetworkJoin, p.network.Namespace()
		spec.Privileges.UserNamespace = p.network.UserNamespace()
		if spec.Network.ResolvConf, err = p.network.ResolvConf(); err != nil {
			return err
		}
	}
	if alone && spec.Privileges.UserNamespace == nil {
		if p.users, err = userNamespace(); err != nil {
			return err
		}
		spec.Privileges.UserNamespace = p.users
	}
	for _, h := range op.ExtraHosts {
		if h.IP == "host-gateway" {
			h.IP = gateway
		}
		spec.Network.Hosts = append(spec.Network.Hosts, sandbox.Host{Name: h.Host, IP: h.IP})
	}
	return nil
}

// Process runs the process to its end, and returns how it ended. What it writes cannot be committed. It can be called once, and so can Run.
func (p *Prepared) Process(ctx context.Context) (sandbox.Status, error) {
	status, err := sandbox.Run(ctx, p.Spec)
	if err != nil {
		return status, p.Explain(err)
	}
	p.job.tellPidsLimit(status.NoPidsLimit)
	return status, nil
}

// Run runs the process to its end. The error of one that did not succeed is an *ExitError or a *TimeoutError.
func (p *Prepared) Run(ctx context.Context) (err error) {
	x := p.job
	if p.started, err = diff.Begin(ctx, p.below()...); err != nil {
		return err
	}
	if x.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, x.Timeout, &TimeoutError{Args: p.Spec.Process.Args, Limit: x.Timeout})
		defer cancel()
	}
	killed := oomKills()
	status, err := p.Process(ctx)
	if err != nil {
		return err
	}
	events.From(ctx).Used(events.Resources{CPU: status.CPU, Memory: status.Memory})
	if succeeded(p.work.Op, status) {
		return nil
	}
	failed := &ExitError{Args: p.Spec.Process.Args, Status: status, OutOfMemory: oomKills() > killed, Limits: p.Spec.Resources.Limits}
	if ns, err := userns.Current(); err == nil {
		failed.OneID = ns.Single()
	}
	failed.Fault = p.commandFault(status.ExitCode)
	if full(x.Root) {
		failed.FullDisk = rootdir.Shown(x.Root)
	}
	return failed
}

// succeeded reports whether a process has ended as its step wants it to.
func succeeded(op llb.Exec, s sandbox.Status) bool {
	if len(op.ExitStatus) > 0 {
		return slices.Contains(op.ExitStatus, s.ExitCode)
	}
	return s.ExitCode == 0 && s.Signal == 0
}

// limits returns those of the build, and those of a step where they are tighter.
func limits(build sandbox.Limits, step llb.ExecLimits) sandbox.Limits {
	return build.Tightened(sandbox.Limits{
		Memory: step.Memory, MemorySwap: max(step.MemorySwap, -1), CPUShares: int64(step.CPUShares & math.MaxInt64),
		CPUQuota: step.CPUQuota, CPUPeriod: int64(step.CPUPeriod & math.MaxInt64), CPUs: step.CPUs, Mems: step.MemoryNodes,
	})
}

// Commit makes layers of what the process has written: to its root, and to the mounts that are outputs.
func (p *Prepared) Commit(ctx context.Context, job solver.Job) ([]solver.Made, error) {
	x := p.job
	var out []solver.Made
	var err error
	if p.Spec.ReadOnly {
		// What is in it are mount points.
		out, err = x.fill(ctx, func(func(layer.Entry, io.Reader) error) error { return nil })
	} else {
		var c snapshot.Committed
		if c, err = p.up.CommitChanges(ctx, p.root, p.tree, p.started); err == nil {
			x.Snapshots.SetEarlier(c.ID, layer.ID(job.LastOf(0)))
			out = made(c)
		}
	}
	if err != nil {
		return nil, err
	}
	for _, o := range p.mounts.outputs {
		if o.number == 0 {
			continue
		}
		c, err := o.up.CommitChanges(ctx, o.root, o.tree, p.started)
		if err != nil {
			return nil, err
		}
		x.Snapshots.SetEarlier(c.ID, layer.ID(job.LastOf(o.number)))
		out = append(out, solver.Made{Output: o.number, Layer: committed(c)})
	}
	return out, nil
}

// tellPidsLimit says once what holds in place of the default limit of processes: a warning where that is nothing.
func (x *Job) tellPidsLimit(e *sandbox.PidsError) {
	tell, text := x.Note, ""
	switch {
	case e == nil:
		return
	case e.Shared > 0:
		text = fmt.Sprintf("in RUN %v", e)
	default:
		tell, text = x.Warn, fmt.Sprintf("in RUN %v (--pids-limit=-1 accepts that)", e)
	}
	if tell != nil {
		x.noPidsLimit.Do(func() { tell(text) })
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

// mountOutput is a mount that becomes an output of its step, or with number 0 is kept if that fails.
type mountOutput struct {
	number int
	target string
	root   *roots.Root
	tree   *layer.Stack // of what is below
	up     *snapshot.Pending
}

// mounting collects what a step's mounts need, and lets it go.
type mounting struct {
	ctx  context.Context
	x    *Job
	op   llb.Exec
	in   []solver.Ref
	ids  *mount.IDMap // of the step; nil: kiln's
	root *layer.Stack // that the step runs in
	// fresh has cache mounts begin empty.
	fresh bool

	mounts  []sandbox.Mount
	sources []*os.File // what each of op.Mounts shows; nil for what is not mounted
	env     []string
	closers []func()
	caches  map[string]string // directories by id

	// outputs are the mounts whose writes are kept.
	outputs []mountOutput

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
	if err := m.lockCaches(); err != nil {
		return fmt.Errorf("lock the cache mounts: %w", err)
	}
	m.sources = make([]*os.File, len(m.op.Mounts))
	for i, spec := range m.op.Mounts {
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
		if n := len(m.mounts); n > 0 && m.mounts[n-1].Target == spec.Target {
			m.sources[i] = m.mounts[n-1].Source
		}
	}
	return nil
}

// tmpfs mounts an empty file system, which has the mode of the directory that it covers.
func (m *mounting) tmpfs(spec llb.Mount) error {
	mode := uint32(0o1777)
	_, e, err := compose.Resolve(m.root.Lookup, spec.Target, true) // what cannot be resolved cannot be mounted on, which says so
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

// bind mounts a path of another root file system. What is written to it, if that is allowed, goes to a layer: that of an output, or
// one that is thrown away.
func (m *mounting) bind(spec llb.Mount) error {
	if err := mountable(m.in[spec.Input]); err != nil {
		return err
	}
	ids, err := m.x.Realise(m.ctx, m.in[spec.Input])
	if err != nil {
		return err
	}
	if spec.Output > 0 && spec.ReadOnly {
		return errors.New("BUG: an output of a mount that is read-only")
	}
	var up *snapshot.Pending
	if !spec.ReadOnly {
		if up, err = m.x.newUpper(); err != nil {
			return err
		}
		m.closers = append(m.closers, func() { up.Close() })
		tree, err := m.x.Snapshots.Stack(m.ctx, ids)
		if err != nil {
			return err
		}
		top, _, err := tree.Lookup("")
		if err != nil {
			return err
		}
		if err := up.SetRoot(top); err != nil {
			return err
		}
		if spec.Output > 0 || m.x.KeepLeft {
			m.outputs = append(m.outputs, mountOutput{number: spec.Output, target: spec.Target, tree: tree, up: up})
		}
	}
	root, err := m.x.Snapshots.Mount(m.ctx, ids, up, m.ids)
	if err != nil {
		return err
	}
	m.closers = append(m.closers, func() { root.Close() })
	if n := len(m.outputs); n > 0 && m.outputs[n-1].up == up {
		m.outputs[n-1].root = root
	}
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
