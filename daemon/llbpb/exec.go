package llbpb

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/solver/pb"

	"github.com/kilnbuild/kiln/llb"
)

// defaultPath is the PATH of a process whose environment has none.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// execDecoder reads one exec op.
type execDecoder struct {
	*decoder
	o      *op
	given  []llb.Output // the inputs of the op
	inputs []llb.Output // those of the vertex
	direct bool         // whether the inputs of the vertex are those of the op, as far as there are any
	exec   llb.Exec
	// written is how many mounts besides the root are outputs of the vertex.
	written int
	// outputs are, for each output of the op, the number of the vertex's; or passed, what is passed on as it is.
	outputs map[int64]int
	passed  map[int64]llb.Output
}

func (d *decoder) exec(o *op, e *pb.ExecOp, inputs []llb.Output) error {
	x := &execDecoder{decoder: d, o: o, given: inputs, outputs: map[int64]int{}, passed: map[int64]llb.Output{}}
	m := e.GetMeta()
	if len(m.GetArgs()) == 0 {
		return errors.New("it has no arguments")
	}
	if err := x.confinement(e); err != nil {
		return err
	}
	meta := d.metaOf(o)
	var err error
	if meta.Platform, err = o.platform(); err != nil {
		return err
	}
	meta.Platform = cmp.Or(meta.Platform, d.options.Host.String())
	x.process(m, meta.Platform)
	if err := x.mounts(e); err != nil {
		return err
	}
	v := d.add(o, x.exec, meta, x.inputs...)
	outputs := make([]llb.Output, len(x.outputs)+len(x.passed))
	for i := range outputs {
		if n, ok := x.outputs[int64(i)]; ok {
			outputs[i] = v.Output(n)
		} else if outputs[i], ok = x.passed[int64(i)]; !ok {
			return fmt.Errorf("it has %d outputs, and none with index %d", len(outputs), i)
		}
	}
	return o.made(outputs...)
}

// confinement reads the network and the privileges of the process.
func (x *execDecoder) confinement(e *pb.ExecOp) error {
	var ok bool
	if x.exec.Network, ok = networks[e.GetNetwork()]; !ok {
		return fmt.Errorf("its network mode %d is not known", e.GetNetwork())
	}
	if x.exec.Security, ok = securities[e.GetSecurity()]; !ok {
		return fmt.Errorf("invalid security mode %d", e.GetSecurity())
	}
	return x.options.allowed(x.exec)
}

// allowed returns an error if a process needs what the client is not allowed.
func (o Options) allowed(e llb.Exec) error {
	if e.Network == llb.NetworkHost && !slices.Contains(o.Allow, "network.host") {
		return &EntitlementError{Entitlement: "network.host"}
	}
	if e.Security != llb.SecurityInsecure {
		return nil
	}
	if !slices.Contains(o.Allow, "security.insecure") {
		return &EntitlementError{Entitlement: "security.insecure"}
	}
	if o.NoInsecure != "" {
		return &EntitlementError{Entitlement: "security.insecure", Why: o.NoInsecure}
	}
	return nil
}

var (
	networks = map[pb.NetMode]llb.Network{
		pb.NetMode_UNSET: llb.NetworkDefault, pb.NetMode_HOST: llb.NetworkHost, pb.NetMode_NONE: llb.NetworkNone,
	}
	securities = map[pb.SecurityMode]llb.Security{
		pb.SecurityMode_SANDBOX: llb.SecuritySandbox, pb.SecurityMode_INSECURE: llb.SecurityInsecure,
	}
	sharings = map[pb.CacheSharingOpt]llb.Sharing{
		pb.CacheSharingOpt_SHARED: llb.SharingShared, pb.CacheSharingOpt_PRIVATE: llb.SharingPrivate,
		pb.CacheSharingOpt_LOCKED: llb.SharingLocked,
	}
)

// process reads what the process is given.
func (x *execDecoder) process(m *pb.Meta, platform string) {
	e := &x.exec
	e.Args, e.Env, e.Cwd, e.User, e.Hostname = m.GetArgs(), m.GetEnv(), cmp.Or(m.GetCwd(), "/"), m.GetUser(), m.GetHostname()
	e.CgroupParent = m.GetCgroupParent()
	if !strings.HasPrefix(platform, "windows") && !slices.ContainsFunc(e.Env, func(v string) bool { return strings.HasPrefix(v, "PATH=") }) {
		e.Env = append(slices.Clone(e.Env), defaultPath)
	}
	for _, h := range m.GetExtraHosts() {
		e.ExtraHosts = append(e.ExtraHosts, llb.ExtraHost{Host: h.GetHost(), IP: h.GetIP()})
	}
	for _, u := range m.GetUlimit() {
		e.Ulimits = append(e.Ulimits, llb.Ulimit{Name: u.GetName(), Soft: uint64(u.GetSoft()), Hard: uint64(u.GetHard())})
	}
	for _, s := range m.GetValidExitCodes() {
		e.ExitStatus = append(e.ExitStatus, int(s))
	}
	if p := m.GetProxyEnv(); p != nil {
		for _, v := range [][2]string{
			{"HTTP_PROXY", p.HttpProxy}, {"HTTPS_PROXY", p.HttpsProxy}, {"FTP_PROXY", p.FtpProxy}, {"NO_PROXY", p.NoProxy},
			{"ALL_PROXY", p.AllProxy},
		} {
			if v[1] != "" {
				e.Proxy = append(e.Proxy, v[0]+"="+v[1], strings.ToLower(v[0])+"="+v[1])
			}
		}
	}
	if r := x.o.meta.GetLinuxResources(); r != nil {
		e.Limits = llb.ExecLimits{
			Memory: r.Memory, MemorySwap: r.MemorySwap, CPUShares: r.CpuShares, CPUQuota: r.CpuQuota, CPUPeriod: r.CpuPeriod,
			CPUs: r.CpusetCpus, MemoryNodes: r.CpusetMems,
		}
	}
}

// mounts reads the mounts, the root's among them, and the secrets in the environment.
func (x *execDecoder) mounts(e *pb.ExecOp) error {
	var root *pb.Mount
	for _, m := range e.Mounts {
		if m.GetDest() != pb.RootMount {
			continue
		}
		if root != nil {
			return errors.New("it has two mounts at /")
		}
		root = m
	}
	if root == nil {
		return errors.New("it has no mount at /")
	}
	if err := x.root(root); err != nil {
		return fmt.Errorf("mount at /: %w", err)
	}
	for _, s := range e.Secretenv {
		if s.GetID() == "" || s.GetName() == "" {
			return errors.New("a secret in its environment has no id or no name")
		}
		x.exec.Mounts = append(x.exec.Mounts, llb.Mount{Type: llb.MountSecret, ID: s.ID, Env: s.Name, Required: !s.Optional, Mode: 0o400})
	}
	for _, m := range e.Mounts {
		if m == root {
			continue
		}
		if err := x.mount(m); err != nil {
			return fmt.Errorf("mount at %q: %w", clip(m.GetDest()), err)
		}
	}
	for _, d := range e.CdiDevices {
		if d.GetName() == "" {
			return errors.New("one of its devices has no name")
		}
		x.exec.Devices = append(x.exec.Devices, llb.Device{Name: d.Name, Required: !d.Optional})
	}
	orderMounts(x.exec.Mounts)
	return checkExec(x.exec, len(x.inputs))
}

// orderMounts puts mounts into the order in which they are to be mounted, as those of a RUN.
func orderMounts(mounts []llb.Mount) {
	late := map[llb.MountType]int{llb.MountSecret: 1, llb.MountSSH: 2}
	slices.SortStableFunc(mounts, func(a, b llb.Mount) int {
		return cmp.Or(cmp.Compare(a.Target, b.Target), late[a.Type]-late[b.Type])
	})
}

// root reads the mount that is the root.
func (x *execDecoder) root(m *pb.Mount) error {
	if m.MountType != pb.MountType_BIND {
		return fmt.Errorf("its type is %s", m.MountType)
	}
	if path.Clean("/"+m.Selector) != "/" {
		return &UnsupportedError{"a part of an input as the root"}
	}
	in := int(m.Input)
	switch {
	case m.Input == int64(pb.Empty):
		x.inputs = append([]llb.Output{x.scratch()}, x.given...)
	case m.Input < 0 || m.Input >= int64(len(x.given)):
		return fmt.Errorf("it has no input %d", m.Input)
	case in == 0:
		x.inputs, x.direct = slices.Clone(x.given), true
		x.inputs[0] = x.asRoot(x.o, x.inputs[0])
	default:
		x.inputs = append([]llb.Output{x.asRoot(x.o, x.given[in])}, x.given...)
	}
	for i := 1; i < len(x.inputs); i++ {
		x.inputs[i] = x.asRoot(x.o, x.inputs[i])
	}
	x.exec.ReadOnly = m.Readonly
	return x.output(m, 0)
}

// output notes that a mount becomes an output of the op, with this number of the vertex.
func (x *execDecoder) output(m *pb.Mount, number int) error {
	if m.Output == int64(pb.SkipOutput) {
		return nil
	}
	if err := x.free(m.Output); err != nil {
		return err
	}
	x.outputs[m.Output] = number
	return nil
}

// free returns an error if an output of the op cannot be that of a mount.
func (x *execDecoder) free(output int64) error {
	_, made := x.outputs[output]
	_, passed := x.passed[output]
	if output < 0 || output > math.MaxInt32 || made || passed {
		return fmt.Errorf("it cannot be output %d", output)
	}
	return nil
}

// input returns the number of a mount's input among those of the vertex.
func (x *execDecoder) input(m *pb.Mount) (int, error) {
	switch {
	case m.Input == int64(pb.Empty):
		x.inputs = append(x.inputs, x.scratch())
		return len(x.inputs) - 1, nil
	case m.Input < 0 || m.Input >= int64(len(x.given)):
		return 0, fmt.Errorf("it has no input %d", m.Input)
	case !x.direct:
		return int(m.Input) + 1, nil
	case m.Input == 0: // 0 is the root, and no mount
		x.inputs = append(x.inputs, x.inputs[0])
		return len(x.inputs) - 1, nil
	}
	return int(m.Input), nil
}

// Target returns where a mount of a process with a working directory is: an absolute path.
func Target(cwd string, m *pb.Mount) string {
	if path.IsAbs(m.GetDest()) {
		return path.Clean(m.GetDest())
	}
	return path.Join("/", cwd, m.GetDest())
}

// mount reads any other mount.
func (x *execDecoder) mount(m *pb.Mount) (err error) {
	out := llb.Mount{Target: Target(x.exec.Cwd, m), ReadOnly: m.Readonly}
	switch m.MountType {
	case pb.MountType_BIND:
		err = x.bind(&out, m)
	case pb.MountType_CACHE:
		err = x.cache(&out, m)
	case pb.MountType_TMPFS:
		out.Type, out.Size = llb.MountTmpfs, m.TmpfsOpt.GetSize()
	case pb.MountType_SECRET:
		s := m.SecretOpt
		if s == nil {
			return errors.New("it names no secret")
		}
		out.Type, out.ID, out.Required, out.Mode, out.UID, out.GID = llb.MountSecret, s.ID, !s.Optional, s.Mode, int(s.Uid), int(s.Gid)
		out.ReadOnly = false
	case pb.MountType_SSH:
		s := m.SSHOpt
		if s == nil {
			return errors.New("it names no agent")
		}
		out.Type, out.ID, out.Required, out.Mode, out.UID, out.GID = llb.MountSSH, cmp.Or(s.ID, "default"), !s.Optional, s.Mode, int(s.Uid),
			int(s.Gid)
		out.ReadOnly = false
	default:
		return fmt.Errorf("its type %d is not known", m.MountType)
	}
	if err != nil {
		return err
	}
	x.exec.Mounts = append(x.exec.Mounts, out)
	return nil
}

func (x *execDecoder) bind(out *llb.Mount, m *pb.Mount) (err error) {
	out.Type, out.Source = llb.MountBind, path.Join("/", m.Selector)
	if out.Input, err = x.input(m); err != nil || m.Output == int64(pb.SkipOutput) {
		return err
	}
	if m.Readonly && m.Input != int64(pb.Empty) {
		if err := x.free(m.Output); err != nil {
			return err
		}
		x.passed[m.Output] = x.given[m.Input]
		return nil
	}
	out.ReadOnly = false
	x.written++
	out.Output = x.written
	return x.output(m, out.Output)
}

func (x *execDecoder) cache(out *llb.Mount, m *pb.Mount) (err error) {
	c := m.CacheOpt
	if c == nil {
		return errors.New("it names no cache")
	}
	var ok bool
	if out.Sharing, ok = sharings[c.Sharing]; !ok {
		return fmt.Errorf("its sharing mode %d is not known", c.Sharing)
	}
	// BuildKit puts the namespace and a slash before the id that a Dockerfile gives.
	out.Type, out.CacheID = llb.MountCache, strings.TrimPrefix(cmp.Or(c.ID, "/"+out.Target), "/")
	out.Mode, out.Source = 0o755, path.Join("/", m.Selector)
	if m.Input == int64(pb.Empty) {
		if m.Output != int64(pb.SkipOutput) {
			return errors.New("a cache that starts from nothing cannot be an output")
		}
		return nil
	}
	if m.Output != int64(pb.SkipOutput) && m.Input >= 0 && m.Input < int64(len(x.given)) {
		if err := x.free(m.Output); err != nil {
			return err
		}
		x.passed[m.Output] = x.given[m.Input]
	}
	if out.Input, err = x.input(m); err != nil {
		return err
	}
	if dir, rest, ok := freshDirectory(x.inputs[out.Input], out.Source); ok {
		out.Input, out.Source = 0, rest
		out.Mode, out.UID, out.GID = dir.mode, dir.uid, dir.gid
	}
	return nil
}

// directory is a directory that is empty.
type directory struct {
	mode     uint32
	uid, gid int
}

// freshDirectory reports whether an output is nothing but one directory, which source is or leads below: so front ends say how a cache
// begins. rest is the path below it.
func freshDirectory(o llb.Output, source string) (dir directory, rest string, ok bool) {
	op, isFile := o.Vertex.Op().(llb.File)
	if !isFile || len(op.Actions) != 1 || op.Actions[0].Mkdir == nil || o.Vertex.Inputs()[0].Vertex.Op() != llb.Op(llb.Scratch{}) {
		return dir, "", false
	}
	m := op.Actions[0].Mkdir
	rest, ok = strings.CutPrefix(source, m.Path)
	if !ok || rest != "" && rest[0] != '/' || path.Dir(m.Path) != "/" || m.Epoch != nil {
		return dir, "", false
	}
	user, group, both := strings.Cut(cmp.Or(m.Chown, "0"), ":")
	if !both {
		group = user
	}
	mode, modeErr := strconv.ParseUint(cmp.Or(m.Chmod, "0755"), 8, 12)
	uid, userErr := strconv.ParseUint(user, 10, 31)
	gid, groupErr := strconv.ParseUint(group, 10, 31)
	dir = directory{uint32(mode), int(uid), int(gid)}
	return dir, path.Join("/", rest), errors.Join(modeErr, userErr, groupErr) == nil
}

// checkExec returns what is wrong with an exec op that has so many inputs. All that is said elsewhere of Exec holds if nothing is.
func checkExec(e llb.Exec, inputs int) error {
	if len(e.Args) == 0 {
		return errors.New("it has no arguments")
	}
	if !path.IsAbs(e.Cwd) {
		return fmt.Errorf("its working directory %q is not absolute", clip(e.Cwd))
	}
	texts := slices.Concat(e.Args, e.Env, []string{e.Cwd, e.User, e.Hostname, e.CgroupParent})
	for _, h := range e.ExtraHosts {
		if net.ParseIP(h.IP) == nil && h.IP != "host-gateway" {
			return fmt.Errorf("the host %q has no address, but %q", clip(h.Host), clip(h.IP))
		}
		if h.Host == "" || strings.ContainsAny(h.Host, " \t\r\n#\x00") {
			return fmt.Errorf("%q is not the name of a host", clip(h.Host))
		}
	}
	if e.ShmSize < 0 {
		return fmt.Errorf("its shared memory has the size %d", e.ShmSize)
	}
	outputs := map[int]bool{}
	for _, m := range e.Mounts {
		if m.Input < 0 || m.Input >= max(inputs, 1) {
			return fmt.Errorf("the mount at %q has no input %d", clip(m.Target), m.Input)
		}
		inEnv := m.Type == llb.MountSecret && m.Env != ""
		if err := checkTarget(m.Target); err != nil && (m.Target != "" || !inEnv) {
			return err
		}
		if strings.Contains(m.Env, "=") {
			return fmt.Errorf("%q is not the name of a variable", clip(m.Env))
		}
		if m.Size < 0 {
			return fmt.Errorf("the mount at %q has the size %d", clip(m.Target), m.Size)
		}
		// What is above is no id that a file can have.
		if uint64(m.UID) >= math.MaxUint32 || uint64(m.GID) >= math.MaxUint32 {
			return fmt.Errorf("the mount at %q is owned by %d:%d", clip(m.Target), m.UID, m.GID)
		}
		if err := checkMount(m); err != nil {
			return fmt.Errorf("the mount at %q %w", clip(m.Target), err)
		}
		if m.Output > 0 {
			if outputs[m.Output] {
				return fmt.Errorf("two mounts are output %d", m.Output)
			}
			outputs[m.Output] = true
		}
		texts = append(texts, m.Target, m.Source, m.CacheID, m.ID, m.Env)
	}
	for n := range len(outputs) {
		if !outputs[n+1] {
			return fmt.Errorf("no mount is output %d", n+1)
		}
	}
	if slices.ContainsFunc(texts, func(s string) bool { return strings.IndexByte(s, 0) >= 0 }) {
		return errors.New("a text of it has a zero byte")
	}
	return nil
}

// checkMount returns an error if a mount has what its type cannot have.
func checkMount(m llb.Mount) error {
	if m.Output < 0 || m.Output > 0 && (m.Type != llb.MountBind || m.ReadOnly) {
		return errors.New("cannot be an output")
	}
	switch m.Type {
	case llb.MountBind:
		if m.Input == 0 {
			return errors.New("shows no input")
		}
	case llb.MountCache:
		if m.CacheID == "" || m.Sharing != llb.SharingShared && m.Sharing != llb.SharingPrivate && m.Sharing != llb.SharingLocked {
			return errors.New("is of no cache")
		}
	case llb.MountSecret, llb.MountSSH:
		if m.ID == "" {
			return errors.New("has no id")
		}
	case llb.MountTmpfs:
	default:
		return fmt.Errorf("is of the type %q", m.Type)
	}
	if m.Input > 0 && m.Type != llb.MountBind && m.Type != llb.MountCache {
		return errors.New("has an input")
	}
	return nil
}

// checkTarget returns an error for what nothing can be mounted at.
func checkTarget(target string) error {
	if !path.IsAbs(target) || path.Clean(target) != target || target == "/" {
		return fmt.Errorf("nothing can be mounted at %q", clip(target))
	}
	for _, dir := range []string{"/proc", "/sys"} {
		if target == dir || strings.HasPrefix(target, dir+"/") {
			return fmt.Errorf("nothing can be mounted at %q: a step has a %s of its own", clip(target), dir)
		}
	}
	return nil
}
