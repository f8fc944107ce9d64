// Package attrs reads the attributes of BuildKit's requests: what a client asks of the Dockerfile frontend, of exporters and of caches. An
// attribute that is not known is an error, and so is a value that kiln cannot do.
package attrs

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/util/grpcerrors"
	csvvalue "github.com/tonistiigi/go-csvvalue"
	"google.golang.org/grpc/codes"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/build/confine"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/internal/suggest"
	"github.com/kilnbuild/kiln/llb"
)

// Dockerfile is what a client asks of the Dockerfile frontend.
type Dockerfile struct {
	// Target, NoCache, NoCacheFor, Network and RunOptions are of the request as build knows it; its Source is not.
	build.Request
	// Context is the address of the build context; "" for a directory of the client. Subdir is the directory of it that counts.
	Context, Subdir string
	// Filename is the path of the Dockerfile in its directory.
	Filename string
	// ContextName and DockerfileName are what the client calls the directories with the context and the Dockerfile; OwnDockerfile says that
	// the latter was named, so that the Dockerfile is there even if the context is elsewhere.
	ContextName, DockerfileName string
	OwnDockerfile               bool
	// Named are the named contexts, as BuildKit writes them: "local:NAME", "input:NAME", "docker-image://REF", ….
	Named map[string]string
	// Sessions are those of other clients that have directories, and Shared are hints under which names they were sent before; both by the
	// names of directories.
	Sessions, Shared map[string]string
	// InputMetadata describes inputs, by their names.
	InputMetadata map[string]map[string][]byte
	// MultiPlatform asks for a result by platforms, whatever their number is.
	MultiPlatform bool
	// SubRequest is what is asked for in place of a build; "" for a build.
	SubRequest string
	// Pull says when registries are asked: "", "pull", "local".
	Pull string
	// Limits are those of each step.
	Limits confine.Limits
	// Attest are the attestations of the result, VCS describes the working copy that the context is, and Caches are imports.
	Attest attestation.Options
	VCS    map[string]string
	Caches []Cache
	// Syntax is the frontend that the client read from the Dockerfile; "" for none.
	Syntax string
	// Incapable is the error of a request that asks for what kiln's frontend cannot do, if the frontend that the Dockerfile names may be
	// able to; nil otherwise.
	Incapable error
}

// Cache is a cache to import or export, as a client names it.
type Cache struct {
	Type  string
	Attrs map[string]string
}

// maxAttrs bounds the attributes of a request, and maxAttr the bytes of one.
const (
	maxAttrs = 10000
	maxAttr  = 4 << 20
)

// attribute reads one attribute.
type attribute func(d *Dockerfile, value string) error

// frontendAttrs are the attributes of the Dockerfile frontend.
var frontendAttrs = map[string]attribute{
	"target":             func(d *Dockerfile, v string) error { d.Target.Stage = v; return nil },
	"filename":           func(d *Dockerfile, v string) error { d.Filename = v; return nil },
	"contextkey":         func(d *Dockerfile, v string) error { d.ContextName = v; return nil },
	"dockerfilekey":      func(d *Dockerfile, v string) error { d.DockerfileName, d.OwnDockerfile = v, true; return nil },
	"contextsubdir":      func(d *Dockerfile, v string) error { d.Subdir = v; return nil },
	"platform":           (*Dockerfile).platforms,
	"multi-platform":     (*Dockerfile).multiPlatform,
	"no-cache":           (*Dockerfile).noCache,
	"image-resolve-mode": (*Dockerfile).resolveMode,
	"add-hosts":          (*Dockerfile).addHosts,
	"shm-size":           (*Dockerfile).shmSize,
	"ulimit":             (*Dockerfile).ulimits,
	"cgroup-parent":      func(d *Dockerfile, v string) error { d.CgroupParent = v; return nil },
	"force-network-mode": (*Dockerfile).network,
	"hostname":           (*Dockerfile).hostname,
	"requestid":          func(d *Dockerfile, v string) error { d.SubRequest = v; return nil },
	"cache-from":         (*Dockerfile).cacheFrom,
	"cache-imports":      (*Dockerfile).cacheImports,
	"memory":             limit("memory"),
	"memswap":            limit("memory-swap"),
	"cpushares":          limit("cpu-shares"),
	"cpuperiod":          limit("cpu-period"),
	"cpuquota":           limit("cpu-quota"),
	"cpusetcpus":         limit("cpuset-cpus"),
	"cpusetmems":         limit("cpuset-mems"),
	// What a frontend as a process is told: which image it is, and what its command line was.
	"source":        ignored,
	"cmdline":       ignored,
	"frontend.caps": (*Dockerfile).capable,
	"context":       func(d *Dockerfile, v string) error { d.Context = v; return nil },
}

// frontendPrefixes are those attributes whose names end with a name of the client's.
var frontendPrefixes = map[string]func(d *Dockerfile, name, value string) error{
	"build-arg:":          (*Dockerfile).arg,
	"label:":              func(d *Dockerfile, name, v string) error { d.Target.Labels[name] = v; return nil },
	"context:":            func(d *Dockerfile, name, v string) error { d.Named[name] = address(v); return nil },
	"input-metadata:":     (*Dockerfile).inputMetadata,
	"attest:":             func(d *Dockerfile, name, v string) error { return d.attest(name, v) },
	"vcs:":                func(d *Dockerfile, name, v string) error { d.VCS[name] = v; return nil },
	"sharedkey:localdir:": func(d *Dockerfile, name, v string) error { d.Shared[name] = v; return nil },
	"local-sessionid:":    func(d *Dockerfile, name, v string) error { d.Sessions[name] = v; return nil },
}

func ignored(*Dockerfile, string) error { return nil }

const (
	argHostname      = "BUILDKIT_SANDBOX_HOSTNAME"
	argMultiPlatform = "BUILDKIT_MULTI_PLATFORM"
	argAttest        = "BUILDKIT_ATTEST_"
	argCheck         = "BUILDKIT_DOCKERFILE_CHECK"
)

// ReadDockerfile reads the attributes of the Dockerfile frontend. The error is an *input.Error.
func ReadDockerfile(all map[string]string) (*Dockerfile, error) {
	d := &Dockerfile{
		Filename: "Dockerfile", ContextName: "context", DockerfileName: "dockerfile",
		Named: map[string]string{}, InputMetadata: map[string]map[string][]byte{}, VCS: map[string]string{}, Limits: confine.Limits{},
		Sessions: map[string]string{}, Shared: map[string]string{},
	}
	d.Target.Args, d.Target.Labels = map[string]string{}, map[string]string{}
	d.Request.Network = llb.NetworkDefault
	if len(all) > maxAttrs {
		return nil, &input.Error{Err: fmt.Errorf("the request has %d attributes; %d are allowed", len(all), maxAttrs)}
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if err := d.set(name, all[name]); err != nil {
			return nil, &input.Error{Err: err}
		}
	}
	if name := d.ContextName; name != "context" {
		if v, ok := all[name]; ok { // the attribute with the address has the name of the context
			d.Context = v
		}
	}
	return d, nil
}

func (d *Dockerfile) set(name, value string) error {
	if len(value) > maxAttr {
		return fmt.Errorf("the attribute %s has %d bytes; %d are allowed", name, len(value), maxAttr)
	}
	if read, ok := frontendAttrs[name]; ok {
		return read(d, value)
	}
	for prefix, read := range frontendPrefixes {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			return read(d, rest, value)
		}
	}
	return fmt.Errorf("the Dockerfile frontend has no attribute %s%s", name, suggest.Hint(name, slices.Collect(maps.Keys(frontendAttrs))...))
}

func (d *Dockerfile) arg(name, value string) error {
	d.Target.Args[name] = value
	switch {
	case name == argMultiPlatform && value != "":
		return d.multiPlatform(value)
	case strings.HasPrefix(name, argAttest):
		return d.attest(strings.ToLower(strings.TrimPrefix(name, argAttest)), value)
	}
	return nil
}

func (d *Dockerfile) platforms(value string) error {
	if value == "" {
		return nil
	}
	for one := range strings.SplitSeq(value, ",") {
		p, err := llb.ParsePlatform(strings.TrimSpace(one), llb.Host())
		if err != nil {
			return fmt.Errorf("platform: %w", err)
		}
		if !slices.Contains(d.Target.Platforms, p) {
			d.Target.Platforms = append(d.Target.Platforms, p)
		}
	}
	d.MultiPlatform = d.MultiPlatform || len(d.Target.Platforms) > 1
	return nil
}

func (d *Dockerfile) multiPlatform(value string) error {
	if value == "" {
		return nil
	}
	on, err := strconv.ParseBool(value)
	if err != nil {
		return fmt.Errorf("invalid boolean value for multi-platform: %s", value)
	}
	d.MultiPlatform = on
	return nil
}

func (d *Dockerfile) noCache(value string) error {
	if d.NoCache = value == ""; !d.NoCache {
		d.NoCacheFor = strings.Split(value, ",")
	}
	return nil
}

func (d *Dockerfile) resolveMode(value string) error {
	switch value {
	case "", "default":
		d.Pull = ""
	case "pull", "local":
		d.Pull = value
	default:
		return fmt.Errorf("invalid image-resolve-mode: %s", value)
	}
	return nil
}

func (d *Dockerfile) addHosts(value string) error {
	fields, err := list(value)
	if err != nil {
		return err
	}
	for _, f := range fields {
		host, ip, ok := strings.Cut(f, "=")
		if !ok {
			return fmt.Errorf("invalid key-value pair %s", f)
		}
		if _, err := netip.ParseAddr(ip); err != nil && ip != "host-gateway" {
			return fmt.Errorf("failed to parse IP %s", ip)
		}
		d.ExtraHosts = append(d.ExtraHosts, llb.ExtraHost{Host: strings.ToLower(host), IP: ip})
	}
	return nil
}

func (d *Dockerfile) shmSize(value string) (err error) {
	if value != "" {
		d.ShmSize, err = strconv.ParseInt(value, 10, 64)
	}
	return err
}

func (d *Dockerfile) ulimits(value string) error {
	fields, err := list(value)
	if err != nil {
		return err
	}
	for _, f := range fields {
		u, err := units.ParseUlimit(f)
		if err != nil {
			return err
		}
		d.Ulimits = append(d.Ulimits, llb.Ulimit{Name: u.Name, Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	return nil
}

func (d *Dockerfile) network(value string) error {
	switch value {
	case "", "sandbox":
		d.Request.Network = llb.NetworkDefault
	case "none":
		d.Request.Network = llb.NetworkNone
	case "host":
		d.Request.Network = llb.NetworkHost
	default:
		return fmt.Errorf("invalid netmode %s", value)
	}
	return nil
}

// hostname is of all steps. The argument counts more, which may have been read before.
// capabilities are those of BuildKit's frontend, which clients ask for.
var capabilities = []string{
	"moby.buildkit.frontend.inputs", "moby.buildkit.frontend.subrequests", "moby.buildkit.frontend.contexts",
	"moby.buildkit.frontend.gitquerystring", "moby.buildkit.frontend.contexts.zstd",
}

// optionForward of a capability says that the frontend may have it that the Dockerfile names.
const optionForward = "forward"

// capable reads capabilities that the frontend must have, "a,b+option".
func (d *Dockerfile) capable(value string) error {
	for c := range strings.SplitSeq(value, ",") {
		name, options, _ := strings.Cut(c, "+")
		if name == "" || slices.Contains(capabilities, name) {
			continue
		}
		err := grpcerrors.WrapCode(errdefs.NewUnsupportedFrontendCapError(name), codes.Unimplemented)
		if !slices.Contains(strings.Split(options, "+"), optionForward) {
			return err
		}
		d.Incapable = err
	}
	return nil
}

func (d *Dockerfile) hostname(value string) error {
	if d.Target.Args[argHostname] == "" {
		d.Target.Args[argHostname] = value
	}
	return nil
}

// limit reads an attribute that is a limit of kiln's by a name.
func limit(name string) attribute {
	return func(d *Dockerfile, value string) error {
		if value == "" {
			return nil
		}
		d.Limits[name] = value
		return confine.CheckLimit(name, value)
	}
}

func (d *Dockerfile) cacheFrom(value string) error {
	for ref := range strings.SplitSeq(value, ",") {
		if ref != "" {
			d.Caches = append(d.Caches, Cache{Type: "registry", Attrs: map[string]string{"ref": ref}})
		}
	}
	return nil
}

func (d *Dockerfile) cacheImports(value string) error {
	if value == "" {
		return nil
	}
	var caches []Cache
	if err := json.Unmarshal([]byte(value), &caches); err != nil {
		return fmt.Errorf("cache-imports: %w", err)
	}
	d.Caches = append(d.Caches, caches...)
	return nil
}

func (d *Dockerfile) inputMetadata(name, value string) error {
	metadata := map[string][]byte{}
	if err := json.Unmarshal([]byte(value), &metadata); err != nil {
		return fmt.Errorf("input-metadata:%s: %w", name, err)
	}
	d.InputMetadata[name] = metadata
	return nil
}

// attest reads an attestation that is asked for.
func (d *Dockerfile) attest(kind, value string) error {
	fields, err := list(value)
	if err != nil {
		return fmt.Errorf("failed to parse %s: %w", kind, err)
	}
	values := map[string]string{}
	for _, f := range fields {
		k, v, _ := strings.Cut(f, "=")
		values[k] = v
	}
	if values["type"] == kind {
		delete(values, "type") // buildx says it again
	}
	return d.Attest.Set(kind, values)
}

// list reads a comma separated list; none for "".
func list(value string) ([]string, error) {
	if value == "" {
		return nil, nil
	}
	return csvvalue.Fields(value, nil)
}

// ReadBuild reads those attributes of a request for a build that are about the whole of it, whatever the frontend is: attestations, limits,
// and when registries are asked. The error is an *input.Error.
func ReadBuild(all map[string]string) (*Dockerfile, error) {
	mine := map[string]string{}
	for name, value := range all {
		if strings.HasPrefix(name, "attest:") || strings.HasPrefix(name, "build-arg:"+argAttest) ||
			slices.Contains([]string{"memory", "memswap", "cpushares", "cpuperiod", "cpuquota", "cpusetcpus", "cpusetmems",
				"image-resolve-mode"}, name) {
			mine[name] = value
		}
	}
	return ReadDockerfile(mine)
}

// LocalOf returns the op of a directory of the client.
func (d *Dockerfile) LocalOf(name string) llb.Local {
	return llb.Local{Name: name, Session: d.Sessions[name], Shared: d.Shared[name]}
}

// address returns a named context as kiln has it: BuildKit takes "docker-image:REF" as well as "docker-image://REF".
func address(value string) string {
	scheme, rest, ok := strings.Cut(value, ":")
	if ok && (scheme == "docker-image" || scheme == "oci-layout") && !strings.HasPrefix(rest, "//") {
		return scheme + "://" + rest
	}
	return value
}

// Remote reports whether the build context is an address, and not of the client.
func (d *Dockerfile) Remote() bool {
	return remoteurl.IsGitContext(d.Context) || remoteurl.IsHTTP(d.Context)
}
