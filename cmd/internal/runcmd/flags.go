package runcmd

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/kilnbuild/kiln/build/confine"
	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/help"
	"github.com/kilnbuild/kiln/cmd/internal/values"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/run"
	"github.com/spf13/pflag"
)

// flags are those of kiln run. They mean what they mean for docker run.
type flags struct {
	interactive, tty bool
	program          programFlags
	storage          storageFlags
	network          networkFlags
	confine          confineFlags
	platform, pull   string
	stop             stopFlags
	quiet, remove    bool
	progress         string
}

func (f *flags) add(flags *pflag.FlagSet) {
	flags.BoolVarP(&f.interactive, "interactive", "i", false, "pass standard input to the program")
	flags.BoolVarP(&f.tty, "tty", "t", false, "give the program a terminal")
	f.program.add(flags)
	f.stop.add(flags)
	help.Group(flags, "Program")
	f.storage.add(flags)
	help.Group(flags, "Files")
	f.network.add(flags)
	help.Group(flags, "Network")
	f.confine.add(flags)
	help.Group(flags, "Limits")
	flags.StringVar(&f.platform, "platform", "", "`OS/ARCH` platform of the image (default $DOCKER_DEFAULT_PLATFORM, else that of this host)")
	flags.StringVar(&f.pull, "pull", string(run.PullMissing), "`WHEN` when to fetch the image: missing, always or never")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "show no progress of fetching and unpacking the image")
	flags.BoolVar(&f.remove, "rm", true, "remove the container afterwards, which is always so")
	app.ProgressFlag(flags, &f.progress)
	help.Group(flags, "Image and progress")
	addUnsupported(flags)
}

// options returns what the flags and arguments ask for.
func (f *flags) options(args []string) (o run.Options, err error) {
	o = run.Options{Image: args[0], Terminal: f.tty}
	if !f.remove {
		return o, usagef("--rm=false: nothing of a container is kept; use docker or podman for containers that last")
	}
	if o.Program, err = f.program.read(args[1:]); err != nil {
		return o, err
	}
	if o.Volumes, err = f.storage.volumes(); err != nil {
		return o, err
	}
	o.ReadOnly = f.storage.readOnly
	if err := f.network.read(&o); err != nil {
		return o, err
	}
	if err := f.confine.read(&o); err != nil {
		return o, err
	}
	if o.Platform, err = platform(f.platform); err != nil {
		return o, err
	}
	switch o.Pull = run.Pull(f.pull); o.Pull {
	case run.PullMissing, run.PullAlways, run.PullNever:
	default:
		return o, usagef("--pull %q: use missing, always or never", f.pull)
	}
	return o, nil
}

func usagef(format string, args ...any) error { return &input.Error{Err: fmt.Errorf(format, args...)} }

// platform reads --platform, which is one.
func platform(value string) (string, error) {
	var given []string
	if value != "" {
		given = []string{value}
	}
	all, err := values.Platforms(given)
	switch {
	case err != nil || len(all) == 0:
		return "", err
	case len(all) > 1:
		return "", usagef("--platform %q: a container has one platform", value)
	}
	return all[0].String(), nil
}

// programFlags say what runs.
type programFlags struct {
	entrypoint    entrypoint
	env, envFiles []string
	dir, user     string
}

// entrypoint is the value of --entrypoint: "" is one that asks for none.
type entrypoint struct {
	value string
	given bool
}

// Set implements pflag.Value.
func (e *entrypoint) Set(value string) error {
	*e = entrypoint{value, true}
	return nil
}

// String implements pflag.Value.
func (e *entrypoint) String() string { return e.value }

// Type implements pflag.Value.
func (e *entrypoint) Type() string { return "string" }

func (f *programFlags) add(flags *pflag.FlagSet) {
	flags.Var(&f.entrypoint, "entrypoint", "`PROGRAM` run this in place of the image's ENTRYPOINT and CMD")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "`NAME[=VALUE]` environment variable; without a value, that of kiln's own environment")
	flags.StringArrayVar(&f.envFiles, "env-file", nil, "`FILE` file with an environment variable on each line")
	flags.StringVarP(&f.dir, "workdir", "w", "", "`DIR` working directory")
	flags.StringVarP(&f.user, "user", "u", "", "`USER[:GROUP]` user and group, by name or number")
}

func (f *programFlags) read(args []string) (p run.Program, err error) {
	p = run.Program{Args: args, Dir: f.dir, User: f.user}
	if f.entrypoint.given {
		p.Entrypoint = []string{}
		if f.entrypoint.value != "" {
			p.Entrypoint = []string{f.entrypoint.value}
		}
	}
	if f.dir != "" && !strings.HasPrefix(f.dir, "/") {
		return p, usagef("--workdir %q: it is not an absolute path", f.dir)
	}
	for _, name := range f.envFiles {
		more, err := readEnvFile(name)
		if err != nil {
			return p, usagef("--env-file %s: %w", name, err)
		}
		p.Env = append(p.Env, more...)
	}
	for _, v := range f.env {
		one, ok, err := variable(v)
		if err != nil {
			return p, usagef("--env %q: %w", v, err)
		}
		if ok {
			p.Env = append(p.Env, one)
		}
	}
	return p, nil
}

// storageFlags say what is mounted.
type storageFlags struct {
	binds, mounts, tmpfs []string
	readOnly             bool
}

func (f *storageFlags) add(flags *pflag.FlagSet) {
	flags.StringArrayVarP(&f.binds, "volume", "v", nil, "`[PATH:]TARGET[:ro]` mount a file or directory of this host, or a directory that is removed with the container")
	flags.StringArrayVar(&f.mounts, "mount", nil, "`MOUNT` the same: type=bind,src=PATH,dst=TARGET[,readonly], type=volume,dst=TARGET or type=tmpfs,dst=TARGET[,tmpfs-size=SIZE]")
	flags.StringArrayVar(&f.tmpfs, "tmpfs", nil, "`TARGET[:size=SIZE]` mount a file system in memory")
	flags.BoolVar(&f.readOnly, "read-only", false, "mount the root file system read-only")
}

func (f *storageFlags) volumes() (all []run.Volume, err error) {
	for _, group := range []struct {
		flag   string
		values []string
		read   func(string) (run.Volume, error)
	}{{"volume", f.binds, parseVolume}, {"mount", f.mounts, parseMount}, {"tmpfs", f.tmpfs, parseTmpfs}} {
		for _, v := range group.values {
			one, err := group.read(v)
			if err != nil {
				return nil, usagef("--%s %q: %w", group.flag, v, err)
			}
			all = append(all, one)
		}
	}
	return all, nil
}

// networkFlags say what is reached.
type networkFlags struct {
	network, hostname string
	hosts, ports      []string
	all               bool
}

func (f *networkFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.network, "network", "", "`MODE` network: default, host or none")
	flags.StringVarP(&f.hostname, "hostname", "h", "", "`NAME` host name (default "+run.DefaultHostname+")")
	flags.StringArrayVar(&f.hosts, "add-host", nil, "`HOST:IP` additional line of /etc/hosts; host-gateway is the IP of this host")
	flags.StringArrayVarP(&f.ports, "publish", "p", nil, "`[IP:][PORT:]PORT[/udp]` publish a port of the container at a port of this host; IP is 127.0.0.1 by default")
	flags.BoolVarP(&f.all, "publish-all", "P", false, "publish all ports that the image EXPOSEs, at free ports of 127.0.0.1")
	flags.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "net" {
			name = "network"
		}
		return pflag.NormalizedName(name)
	})
}

func (f *networkFlags) read(o *run.Options) (err error) {
	if f.network == "bridge" {
		f.network = ""
	}
	if o.Network, err = values.Network(f.network); err != nil {
		return err
	}
	o.Hostname, o.PublishAll = f.hostname, f.all
	if len(f.hostname) > maxHostname {
		return usagef("--hostname: it has more than %d bytes", maxHostname)
	}
	if o.ExtraHosts, err = values.ExtraHosts(f.hosts); err != nil {
		return err
	}
	for _, v := range f.ports {
		p, err := parsePort(v)
		if err != nil {
			return usagef("--publish %q: %w", v, err)
		}
		o.Ports = append(o.Ports, p)
	}
	return nil
}

// confineFlags say what the container may take.
type confineFlags struct {
	limits        confine.Limits
	cpus          string
	ulimits       []string
	shmSize       string
	cgroupParent  string
	userns        string
	noProcSandbox bool
}

func (f *confineFlags) add(flags *pflag.FlagSet) {
	f.limits = confine.Limits{}
	for _, l := range values.LimitFlags {
		if l.Name != "step-timeout" {
			flags.VarP(&values.Limit{Limits: f.limits, Name: l.Name, Kind: l.Kind}, l.Name, l.Shorthand, l.UsageOf("the container"))
		}
	}
	flags.StringVar(&f.cpus, "cpus", "", "`N` CPUs that the container may use, such as 1.5")
	flags.StringArrayVar(&f.ulimits, "ulimit", nil, "`NAME=SOFT[:HARD]` resource limit of processes, such as nofile=1024")
	flags.StringVar(&f.shmSize, "shm-size", "", "`SIZE` size of /dev/shm (default 64m)")
	flags.StringVar(&f.cgroupParent, "cgroup-parent", "", "`PATH` parent of the container's control group, such as /builds")
	flags.StringVar(&f.userns, "userns", "", "`IDS` run in a user namespace: with the IDs that /etc/subuid has for root (auto), with START:COUNT, or not (host)")
	flags.Lookup("userns").NoOptDefVal = "auto"
	flags.BoolVar(&f.noProcSandbox, "no-process-sandbox", false, "let the program see kiln's own /proc, for containers in which no other can be mounted")
}

// cpuPeriod is the period of --cpus in microseconds, the kernel's default.
const cpuPeriod = 100000

func (f *confineFlags) read(o *run.Options) (err error) {
	if err := confine.CheckUserns(f.userns); err != nil {
		return usagef("--userns %q: %w", f.userns, err)
	}
	o.Request = confine.Request{Userns: f.userns, NoProcessSandbox: f.noProcSandbox}
	if o.Limits, err = values.Limits(f.limits, nil); err != nil {
		return err
	}
	if f.cpus != "" {
		n, err := strconv.ParseFloat(f.cpus, 64)
		quota := int64(n * cpuPeriod)
		if err != nil || !(n > 0 && n < 1<<20) || quota < 1 {
			return usagef("--cpus %q: it is not a number of processors", f.cpus)
		}
		if o.Limits["cpu-quota"] != "" || o.Limits["cpu-period"] != "" {
			return usagef("--cpus: it is the same as --cpu-quota, and cannot be given with that or with --cpu-period")
		}
		o.Limits = maps.Clone(o.Limits)
		o.Limits["cpu-quota"], o.Limits["cpu-period"] = strconv.FormatInt(quota, 10), strconv.Itoa(cpuPeriod)
	}
	o.CgroupParent = f.cgroupParent
	if o.Ulimits, err = values.Ulimits(f.ulimits); err != nil {
		return err
	}
	o.ShmSize, err = values.ShmSize(f.shmSize)
	return err
}

// stopFlags say how the program is stopped.
type stopFlags struct {
	signal  string
	timeout int
}

func (f *stopFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.signal, "stop-signal", "", "`SIGNAL` what the program gets when kiln gets SIGTERM (default the image's STOPSIGNAL, else SIGTERM)")
	flags.IntVar(&f.timeout, "stop-timeout", -1, "`SECONDS` time after which it is killed then; -1 for never")
}

// unsupported is a flag of docker run that kiln run does not have.
type unsupported struct {
	name, shorthand string
	bare            bool
	nothing         []string // values that ask for nothing
	why             string
}

// Reasons for not having a flag.
const (
	engine    = "kiln run tries an image in the foreground, and is no container engine: use docker or podman for that"
	confined  = "a container is confined as a RUN is: use docker or podman to change that"
	noNetwork = "a container has the network of a RUN, or with --network the machine's or none: use docker or podman for others"
)

var unsupportedFlags = func() []unsupported {
	list := []unsupported{
		{name: "detach", shorthand: "d", bare: true, nothing: []string{"false"}, why: engine},
		{name: "restart", nothing: []string{"no"}, why: engine},
		{name: "sig-proxy", bare: true, nothing: []string{"true"}, why: "signals are always passed on to the program"},
		{name: "privileged", bare: true, nothing: []string{"false"}, why: confined},
		{name: "init", bare: true, nothing: []string{"false"}, why: engine},
		{name: "oom-kill-disable", bare: true, nothing: []string{"false"}, why: confined},
		{name: "no-healthcheck", bare: true, nothing: []string{"true", "false"}},
		{name: "disable-content-trust", bare: true, nothing: []string{"true", "false"}},
		{name: "isolation", nothing: []string{"default"}, why: confined},
		{name: "cgroupns", nothing: []string{"private"}, why: confined},
		{name: "ipc", nothing: []string{"private"}, why: confined},
		{name: "log-driver", nothing: []string{"none"}, why: engine},
		{name: "attach", shorthand: "a", why: engine},
		{name: "label", shorthand: "l", why: engine},
	}
	for why, names := range map[string]string{
		engine: "name cidfile label-file annotation detach-keys link volumes-from volume-driver storage-opt log-opt runtime health-cmd " +
			"health-interval health-retries health-timeout health-start-period health-start-interval",
		confined: "cap-add cap-drop security-opt device device-cgroup-rule device-read-bps device-read-iops device-write-bps device-write-iops gpus " +
			"blkio-weight blkio-weight-device cpu-rt-period cpu-rt-runtime kernel-memory memory-reservation memory-swappiness " +
			"oom-score-adj pid uts sysctl group-add",
		noNetwork: "dns dns-option dns-search domainname expose ip ip6 link-local-ip mac-address network-alias",
	} {
		for _, name := range strings.Fields(names) {
			list = append(list, unsupported{name: name, why: why})
		}
	}
	return list
}

// addUnsupported makes these flags known; they are not listed by --help.
func addUnsupported(flags *pflag.FlagSet) {
	list := unsupportedFlags()
	for i := range list {
		u := &list[i]
		f := flags.VarPF(u, u.name, u.shorthand, "not supported")
		f.Hidden = true
		if u.bare {
			f.NoOptDefVal = "true"
		}
	}
}

// Set implements pflag.Value.
func (u *unsupported) Set(value string) error {
	if slices.Contains(u.nothing, value) {
		return nil
	}
	return usagef("--%s is not supported: %s", u.name, u.why)
}

// String implements pflag.Value.
func (u *unsupported) String() string { return "" }

// Type implements pflag.Value.
func (u *unsupported) Type() string { return "string" }

// maxHostname is what the kernel allows, see sethostname(2).
const maxHostname = 64

// size reads a number of bytes, as "64m".
func size(value string) (int64, error) {
	n, err := units.RAMInBytes(value)
	if err == nil && n < 1 {
		err = fmt.Errorf("the size %q is not above zero", value)
	}
	return n, err
}

// variable returns a variable of the environment as --env and --env-file name it, with the value that kiln's own environment has where
// there is none; false where that has none either.
func variable(v string) (string, bool, error) {
	name, _, ok := strings.Cut(v, "=")
	if name == "" || strings.ContainsAny(name, " \t") {
		return "", false, fmt.Errorf("it is not NAME=VALUE")
	}
	if ok {
		return v, true, nil
	}
	value, ok := os.LookupEnv(name)
	return name + "=" + value, ok, nil
}
