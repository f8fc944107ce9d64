package run

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/network"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/llb"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

const (
	// defaultPath is PATH where neither the image nor the user sets it, as with Docker.
	defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// defaultTerm is TERM of a program with a terminal where nobody sets it: every image with a terminfo database has it.
	defaultTerm = "TERM=xterm"
	// maxVolumes bounds the mounts of a container.
	maxVolumes = 1000
)

// exec returns the process that an image and options ask for. Nothing that an image's config says is trusted: what is invalid is an error.
func (o *Options) exec(config *dockerspec.DockerOCIImageConfig) (llb.Exec, error) {
	entrypoint, cmd := config.Entrypoint, config.Cmd
	if o.Program.Entrypoint != nil {
		entrypoint, cmd = o.Program.Entrypoint, nil
	}
	if len(o.Program.Args) > 0 {
		cmd = o.Program.Args
	}
	op := llb.Exec{
		Args: slices.Concat(entrypoint, cmd), Env: o.env(config.Env), Cwd: cmp.Or(o.Program.Dir, config.WorkingDir, "/"),
		User: cmp.Or(o.Program.User, config.User), Network: o.Network, Hostname: cmp.Or(o.Hostname, DefaultHostname), RunOptions: o.RunOptions,
	}
	if len(op.Args) == 0 {
		return op, invalid("%s has neither an ENTRYPOINT nor a CMD: name a command after it", o.Image)
	}
	if op.Args[0] == "" {
		return op, invalid("the program that is to run is %q", "")
	}
	if len(op.Cwd) >= unix.PathMax {
		return op, invalid("the working directory is longer than the 4095 bytes that Linux takes")
	}
	if !path.IsAbs(op.Cwd) {
		return op, invalid("the working directory %s is not an absolute path", quote(op.Cwd))
	}
	for _, v := range o.Volumes {
		if v.Kind == Tmpfs {
			op.Mounts = append(op.Mounts, llb.Mount{Type: llb.MountTmpfs, Target: path.Clean(v.Target), Size: v.Size})
		}
	}
	return op, nil
}

func invalid(format string, args ...any) error { return &input.Error{Err: fmt.Errorf(format, args...)} }

// quote returns a value of an image's config for an error, which is not to have megabytes.
func quote(s string) string { return termtext.List([]string{s}) }

// env returns the environment: defaults, the image's variables, and the user's, each name once where it is first and as it is last.
func (o *Options) env(image []string) []string {
	var env []string
	at := map[string]int{}
	defaults := []string{defaultPath, "HOSTNAME=" + cmp.Or(o.Hostname, DefaultHostname)}
	if o.Terminal {
		defaults = append(defaults, defaultTerm)
	}
	for _, v := range slices.Concat(defaults, image, o.Program.Env) {
		name, _, _ := strings.Cut(v, "=")
		if i, ok := at[name]; ok {
			env[i] = v
			continue
		}
		at[name] = len(env)
		env = append(env, v)
	}
	return env
}

// volumes returns what is mounted besides file systems in memory, one below another after it: the user's, and those of the image's config
// for whose target the user has nothing.
func (o *Options) volumes(config *dockerspec.DockerOCIImageConfig) ([]Volume, error) {
	var all []Volume
	taken := map[string]bool{}
	for _, v := range o.Volumes {
		v.Target = path.Clean(v.Target)
		if taken[v.Target] {
			return nil, invalid("there are two volumes at %s", v.Target)
		}
		taken[v.Target] = true
		if v.Kind != Tmpfs {
			all = append(all, v)
		}
	}
	for _, target := range slices.Sorted(maps.Keys(config.Volumes)) {
		if !path.IsAbs(target) || path.Clean(target) == "/" {
			return nil, fmt.Errorf("%s has a volume at %s, where none can be", o.Image, quote(target))
		}
		if target = path.Clean(target); !taken[target] {
			taken[target] = true
			all = append(all, Volume{Target: target})
		}
	}
	if len(taken) > maxVolumes {
		return nil, fmt.Errorf("%d volumes are more than the %d that a container can have", len(taken), maxVolumes)
	}
	slices.SortStableFunc(all, func(a, b Volume) int { return cmp.Compare(a.Target, b.Target) })
	return all, nil
}

// maxPorts bounds the ports that PublishAll publishes.
const maxPorts = 1000

// anyPort is any free port of the loopback interface.
var anyPort = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)

// ports returns the ports that are published.
func (o *Options) ports(config *dockerspec.DockerOCIImageConfig) ([]network.Port, error) {
	all := slices.Clone(o.Ports)
	if !o.PublishAll {
		return all, nil
	}
	if len(config.ExposedPorts) > maxPorts {
		return nil, fmt.Errorf("%s exposes %d ports, and --publish-all publishes %d at most", o.Image, len(config.ExposedPorts), maxPorts)
	}
	for _, exposed := range slices.Sorted(maps.Keys(config.ExposedPorts)) {
		number, protocol, ok := strings.Cut(exposed, "/")
		if !ok {
			protocol = "tcp"
		}
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil || n == 0 || protocol != "tcp" && protocol != "udp" {
			return nil, fmt.Errorf("%s exposes the port %s, which cannot be published", o.Image, quote(exposed))
		}
		all = append(all, network.Port{Protocol: protocol, Host: anyPort, Inside: uint16(n)})
	}
	return all, nil
}

// ErrHostNetwork says that ports cannot be published without a network of the container's own.
var ErrHostNetwork = errors.New("ports are published of a network of the container's own: leave out --network")

// check returns what is wrong with the options whatever the image is.
func (o *Options) check() error {
	if (len(o.Ports) > 0 || o.PublishAll) && o.Network != llb.NetworkDefault {
		return &input.Error{Err: ErrHostNetwork}
	}
	for _, v := range o.Volumes {
		if !path.IsAbs(v.Target) {
			return invalid("the volume at %q: the path in the container is not absolute", v.Target)
		}
		if path.Clean(v.Target) == "/" {
			return invalid("the volume at %q: it would cover the root file system", v.Target)
		}
	}
	return nil
}
