// Package values reads the values of flags of kiln build. Errors are *input.Error, and name the flag and the value.
package values

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/sshagent"
	"github.com/kilnbuild/kiln/internal/suggest"
	"github.com/kilnbuild/kiln/llb"
	csvvalue "github.com/tonistiigi/go-csvvalue"
)

// OutputKeys are the keys of an output besides type, dest and annotation. Some are only for outputs of some types.
var OutputKeys = []string{
	"compression", "compression-level", "name", "rewrite-timestamp", "oci-mediatypes", "tar", "set-id", "devices", "push", "push-by-digest",
	"name-canonical", "unpack", "store", "oci-artifact", "attestation-prefix",
}

// Frontend is what --allow has besides entitlements: frontends that are images.
const Frontend = "frontend"

// What flags of build take. There are more platforms, and Entitlements are also for single devices.
var (
	OutputTypes    = []string{"image", "registry", "docker", "containers-storage", "oci", "local", "tar", "cacheonly"}
	Networks       = []string{"default", "host", "none"}
	Entitlements   = []string{"network.host", "security.insecure", "device"}
	Calls          = []string{"build", "check", "outline", "targets"}
	KnownPlatforms = []string{
		"linux/amd64", "linux/arm64", "linux/arm/v7", "linux/arm/v6", "linux/386", "linux/ppc64le", "linux/riscv64", "linux/s390x",
		"linux/loong64", "local",
	}
)

func usagef(format string, args ...any) error { return &input.Error{Err: fmt.Errorf(format, args...)} }

// Outputs reads --output: "type=oci,dest=x,…", a directory, or "-" for a tar on standard output; push and load
// are those flags, which stand for an output of their type where there is none.
func Outputs(values []string, push, load bool) ([]build.Output, error) {
	var outputs []build.Output
	for _, v := range values {
		o, err := output(v)
		if err != nil {
			return nil, err
		}
		outputs = append(outputs, o)
	}
	if push {
		pushed := false
		for i := range outputs {
			if outputs[i].Type == build.OutputImage {
				outputs[i].Type = build.OutputRegistry
			}
			pushed = pushed || outputs[i].Type == build.OutputRegistry
		}
		if !pushed {
			outputs = append(outputs, build.Output{Type: build.OutputRegistry, Attrs: map[string]string{}})
		}
	}
	if load && !slices.ContainsFunc(outputs, func(o build.Output) bool { return o.Type == build.OutputDocker && o.Dest == "" }) {
		outputs = append(outputs, build.Output{Type: build.OutputDocker, Attrs: map[string]string{}})
	}
	n := 0
	for _, o := range outputs {
		if OnStdout(o) {
			n++
		}
	}
	if n > 1 {
		return nil, usagef("--output: only one output can go to standard output; give the others a dest=")
	}
	return outputs, nil
}

func output(value string) (build.Output, error) {
	bad := func(format string, args ...any) (build.Output, error) {
		return build.Output{}, usagef("--output %q: %w", value, fmt.Errorf(format, args...))
	}
	o := build.Output{Attrs: map[string]string{}}
	if value == "" {
		return bad("it is empty")
	}
	fields, err := csvvalue.Fields(value, nil)
	if err != nil {
		return bad("it is not a comma separated list: %w", err)
	}
	if len(fields) == 1 && fields[0] == value && !strings.HasPrefix(value, "type=") {
		if value == "-" {
			return build.Output{Type: build.OutputTar, Dest: "-", Attrs: o.Attrs}, nil
		}
		return build.Output{Type: build.OutputLocal, Dest: value, Attrs: o.Attrs}, nil
	}
	kind := ""
	for _, field := range fields {
		key, v, ok := strings.Cut(field, "=")
		if !ok {
			return bad("%q is not key=value", field)
		}
		switch key = strings.ToLower(strings.TrimSpace(key)); key {
		case "type":
			kind = v
		case "dest":
			o.Dest = v
		default:
			if !slices.Contains(OutputKeys, key) && suggest.Nearest(key, OutputKeys...) != "" {
				return bad("unknown key %q%s", key, suggest.Hint(key, OutputKeys...))
			}
			o.Attrs[key] = v
		}
	}
	switch o.Type = build.OutputType(kind); o.Type {
	case build.OutputImage:
		if v, ok := o.Attrs["push"]; ok {
			push, err := strconv.ParseBool(v)
			if err != nil {
				return bad("push is true or false, not %q", v)
			}
			delete(o.Attrs, "push")
			if push {
				o.Type = build.OutputRegistry
			}
		}
		fallthrough
	case build.OutputRegistry, build.OutputCacheOnly, build.OutputStorage:
		if o.Dest != "" {
			return bad("type=%s has no dest", kind)
		}
	case build.OutputOCI, build.OutputTar:
		if o.Dest == "" {
			o.Dest = "-"
		}
	case build.OutputLocal:
		if o.Dest == "" || o.Dest == "-" {
			return bad("type=local needs dest=DIRECTORY")
		}
	case build.OutputDocker:
	case "":
		return bad("type= is missing")
	default:
		return bad("unknown type %q: use image, registry, docker, containers-storage, oci, local, tar or cacheonly%s", kind, suggest.Hint(kind, OutputTypes...))
	}
	return o, nil
}

// Platforms reads --platform, any number of lists; with none $DOCKER_DEFAULT_PLATFORM, and with neither the result is
// empty.
func Platforms(values []string) ([]llb.Platform, error) {
	from := "--platform"
	if len(values) == 0 {
		if v := os.Getenv("DOCKER_DEFAULT_PLATFORM"); v != "" {
			from, values = "DOCKER_DEFAULT_PLATFORM", []string{v}
		}
	}
	host := llb.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}.Normalize()
	var platforms []llb.Platform
	for _, v := range values {
		for one := range strings.SplitSeq(v, ",") {
			p := host
			if one = strings.TrimSpace(one); one != "local" {
				var err error
				if p, err = llb.ParsePlatform(one, host); err != nil {
					return nil, usagef("%s: %w%s", from, err, suggest.Hint(one, KnownPlatforms...))
				}
			}
			if !slices.Contains(platforms, p) {
				platforms = append(platforms, p)
			}
		}
	}
	return platforms, nil
}

// BuildArgs reads --build-arg NAME=VALUE; NAME alone takes the variable's value from the environment, and is left out
// where there is none.
func BuildArgs(values []string) (map[string]string, error) {
	args := map[string]string{}
	for _, v := range values {
		name, value, ok := strings.Cut(v, "=")
		if name == "" {
			return nil, usagef("--build-arg %q: it is not NAME=VALUE", v)
		}
		if !ok {
			if value, ok = os.LookupEnv(name); !ok {
				continue
			}
		}
		args[name] = value
	}
	// Like buildx: the variable of the environment goes for the argument.
	const epoch = "SOURCE_DATE_EPOCH"
	if v := os.Getenv(epoch); v != "" {
		if _, ok := args[epoch]; !ok {
			args[epoch] = v
		}
	}
	return args, nil
}

// AddProxies adds proxies, whose names are in upper case, to build arguments, in upper and lower case as docker build does. One that is an
// argument already, in whatever case, stays.
func AddProxies(args, proxies map[string]string) {
	for name, value := range proxies {
		given := func(arg string) bool { return strings.EqualFold(arg, name) }
		if !slices.ContainsFunc(slices.Collect(maps.Keys(args)), given) {
			args[name], args[strings.ToLower(name)] = value, value
		}
	}
}

// Labels reads --label KEY=VALUE; KEY alone is an empty label.
func Labels(values []string) (map[string]string, error) {
	labels := map[string]string{}
	for _, v := range values {
		key, value, _ := strings.Cut(v, "=")
		if key == "" {
			return nil, usagef("--label %q: it is not KEY=VALUE", v)
		}
		labels[key] = value
	}
	return labels, nil
}

// BuildContexts reads --build-context NAME=VALUE.
func BuildContexts(values []string) (map[string]string, error) {
	named := map[string]string{}
	for _, v := range values {
		name, value, _ := strings.Cut(v, "=")
		if name == "" || value == "" {
			return nil, usagef("--build-context %q: it is not NAME=VALUE", v)
		}
		if strings.HasPrefix(value, "docker-image://") || strings.HasPrefix(value, "oci-layout://") {
			named[name] = value
			continue
		}
		if strings.HasPrefix(value, "target:") || strings.HasPrefix(value, "input:") || value == "-" {
			return nil, usagef("--build-context %s: a context like %q is not supported yet; there are directories, http, https and git addresses, docker-image:// and oci-layout://", name, value)
		}
		isDir, err := contexts.Check(value)
		if err == nil && isDir {
			err = CheckDir(value)
		}
		if err != nil {
			return nil, usagef("--build-context %s: %w", name, err)
		}
		named[name] = value
	}
	return named, nil
}

// CheckDir returns an error unless path is a directory.
func CheckDir(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory", path)
	}
	return nil
}

// Network reads --network.
func Network(value string) (llb.Network, error) {
	switch n := llb.Network(value); n {
	case "":
		return llb.NetworkDefault, nil
	case llb.NetworkDefault, llb.NetworkHost, llb.NetworkNone:
		return n, nil
	}
	return "", usagef("--network %q: use default, host or none%s", value, suggest.Hint(value, Networks...))
}

// ExtraHosts reads --add-host HOST:IP or HOST=IP. The address may be in brackets, or host-gateway.
func ExtraHosts(values []string) ([]llb.ExtraHost, error) {
	var hosts []llb.ExtraHost
	for _, v := range values {
		host, ip, ok := strings.Cut(v, "=")
		if !ok {
			host, ip, ok = strings.Cut(v, ":")
		}
		if !ok || host == "" || strings.ContainsAny(host, " \t\r\n") {
			return nil, usagef("--add-host %q: it is not HOST:IP", v)
		}
		if ip != "host-gateway" {
			if strings.HasPrefix(ip, "[") && strings.HasSuffix(ip, "]") {
				ip = ip[1 : len(ip)-1]
			}
			addr, err := netip.ParseAddr(ip)
			if err != nil || addr.Zone() != "" {
				return nil, usagef("--add-host %q: %q is not an IP address", v, ip)
			}
		}
		hosts = append(hosts, llb.ExtraHost{Host: host, IP: ip})
	}
	return hosts, nil
}

// Ulimits reads --ulimit NAME=SOFT[:HARD]; -1 is no limit. The last of a name counts.
func Ulimits(values []string) ([]llb.Ulimit, error) {
	var limits []llb.Ulimit
	for _, v := range values {
		u, err := units.ParseUlimit(v)
		if err != nil {
			return nil, usagef("--ulimit %q: %w", v, err)
		}
		if u.Soft < -1 || u.Hard < -1 {
			return nil, usagef("--ulimit %q: a limit is a number, or -1 for none", v)
		}
		limits = slices.DeleteFunc(limits, func(o llb.Ulimit) bool { return o.Name == u.Name })
		// -1 as an unsigned number is the kernel's RLIM_INFINITY.
		limits = append(limits, llb.Ulimit{Name: u.Name, Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	return limits, nil
}

// ShmSize reads --shm-size, as "64m" or "1.5g", and returns bytes; 0 for the default.
func ShmSize(value string) (int64, error) {
	if value == "" {
		return 0, nil
	}
	n, err := units.RAMInBytes(value)
	if err != nil {
		return 0, usagef("--shm-size %q: %w", value, err)
	}
	return n, nil
}

// Secrets reads --secret id=ID[,src=FILE|,env=VARIABLE][,type=file|env]. With neither src nor env the secret is the
// environment variable named as the id, or if there is none, the file.
func Secrets(values []string) ([]build.Secret, error) {
	var secrets []build.Secret
	for _, value := range values {
		s, err := secret(value)
		if err != nil {
			return nil, usagef("--secret %q: %w", value, err)
		}
		if slices.ContainsFunc(secrets, func(o build.Secret) bool { return o.ID == s.ID }) {
			return nil, usagef("--secret %q: there are two secrets with id %q", value, s.ID)
		}
		secrets = append(secrets, s)
	}
	return secrets, nil
}

func secret(value string) (build.Secret, error) {
	fields, err := csvvalue.Fields(value, nil)
	if err != nil {
		return build.Secret{}, fmt.Errorf("it is not a comma separated list: %w", err)
	}
	var s build.Secret
	kind := ""
	for _, field := range fields {
		key, v, ok := strings.Cut(field, "=")
		if !ok {
			return s, fmt.Errorf("%q is not key=value", field)
		}
		switch strings.ToLower(key) {
		case "id":
			s.ID = v
		case "src", "source":
			s.Src = v
		case "env":
			s.Env = v
		case "type":
			kind = v
		default:
			return s, fmt.Errorf("unknown key %q: use id, src, env or type%s", key, suggest.Hint(key, "id", "src", "env", "type"))
		}
	}
	if s.ID == "" {
		return s, fmt.Errorf("id= is missing")
	}
	switch kind {
	case "env":
		if s.Env == "" {
			s.Env, s.Src = s.Src, ""
		}
		if s.Env == "" {
			s.Env = s.ID
		}
	case "file":
		if s.Src == "" && s.Env == "" {
			s.Src = s.ID
		}
	case "":
		if s.Src == "" && s.Env == "" {
			if _, ok := os.LookupEnv(s.ID); ok {
				s.Env = s.ID
			} else {
				s.Src = s.ID
			}
		}
	default:
		return s, fmt.Errorf("unknown type %q: use file or env%s", kind, suggest.Hint(kind, "file", "env"))
	}
	if s.Src != "" && s.Env != "" || kind == "file" && s.Env != "" {
		return s, fmt.Errorf("it is a file or an environment variable, and not both")
	}
	return s, nil
}

// Agents reads --ssh ID[=SOCKET|KEYFILE[,KEYFILE…]] and returns agents by id. An ID alone is the agent of SSH_AUTH_SOCK.
func Agents(values []string) (sshagent.Set, error) {
	agents := sshagent.Set{}
	for _, v := range values {
		id, from, ok := strings.Cut(v, "=")
		if !ok {
			if from = os.Getenv("SSH_AUTH_SOCK"); from == "" {
				return nil, usagef("--ssh %q: SSH_AUTH_SOCK is not set, so there is no agent", v)
			}
		}
		if id == "" {
			return nil, usagef("--ssh %q: it is not ID[=SOCKET|KEYFILE]", v)
		}
		if _, ok := agents[id]; ok {
			return nil, usagef("--ssh %q: there are two agents with id %q", v, id)
		}
		agent, err := sshagent.Open(strings.Split(from, ",")...)
		if err == nil {
			err = agent.Check()
		}
		if err != nil {
			return nil, usagef("--ssh %q: %w", v, err)
		}
		agents[id] = agent
	}
	return agents, nil
}

// Allow reads --allow: entitlements, and whether frontends may be run that are images.
func Allow(values []string) (allow []string, frontends bool, err error) {
	for _, v := range values {
		name, device := strings.CutPrefix(v, "device=")
		switch {
		case v == Frontend:
			frontends = true
		case v == "network.host", v == "security.insecure", v == "device", device && name != "":
			if !slices.Contains(allow, v) {
				allow = append(allow, v)
			}
		default:
			return nil, false, usagef("--allow %q is not supported; there are network.host, security.insecure, device, device=NAME and frontend%s",
				v, suggest.Hint(v, append(Entitlements, Frontend)...))
		}
	}
	return allow, frontends, nil
}

// Lists returns the elements of comma separated lists without empty ones.
func Lists(values []string) []string {
	var all []string
	for _, v := range values {
		for one := range strings.SplitSeq(v, ",") {
			if one = strings.TrimSpace(one); one != "" {
				all = append(all, one)
			}
		}
	}
	return all
}

// NoCache is the value of --no-cache: a boolean, or "mounts", which is true and more.
type NoCache struct{ Steps, Mounts bool }

// Set implements pflag.Value.
func (f *NoCache) Set(value string) error {
	if value == "mounts" {
		*f = NoCache{Steps: true, Mounts: true}
		return nil
	}
	steps, err := strconv.ParseBool(value)
	if err != nil {
		return fmt.Errorf("%q is neither a boolean nor mounts", value)
	}
	*f = NoCache{Steps: steps}
	return nil
}

// String implements pflag.Value.
func (f *NoCache) String() string {
	if f.Mounts {
		return "mounts"
	}
	return strconv.FormatBool(f.Steps)
}

// Type implements pflag.Value.
func (f *NoCache) Type() string { return "bool|mounts" }

// OnStdout reports whether an output goes to standard output.
func OnStdout(o build.Output) bool { return o.Dest == "-" }
