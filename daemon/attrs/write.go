package attrs

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/llb"
)

// Capabilities that a frontend needs for what it is asked.
const (
	capContexts    = "moby.buildkit.frontend.contexts+forward"
	capSubrequests = "moby.buildkit.frontend.subrequests"
)

// Foreign are the attributes by which buildx would ask a frontend that is an image for what the user asks kiln for. requestID is that of
// what is asked for in place of a build; "" for a build.
func Foreign(f *build.Foreign, from *contexts.Whole, requestID string) map[string]string {
	r := f.Request
	all := map[string]string{"source": f.Syntax.Image, "cmdline": f.Syntax.Command}
	set := func(name, value string) {
		if value != "" {
			all[name] = value
		}
	}
	set("context", from.Address)
	set("filename", from.Filename)
	if from.OwnDockerfile {
		set("dockerfilekey", contexts.DockerfileDir)
	}
	set("target", r.Target.Stage)
	set("platform", joined(r.Target.Platforms, llb.Platform.String))
	for _, values := range []struct {
		prefix string
		of     map[string]string
	}{{"build-arg:", r.Target.Args}, {"label:", r.Target.Labels}, {"context:", from.Named}} {
		for name, value := range values.of {
			all[values.prefix+name] = value
		}
	}
	switch {
	case r.NoCache:
		all["no-cache"] = ""
	case len(r.NoCacheFor) > 0:
		all["no-cache"] = strings.Join(r.NoCacheFor, ",")
	}
	if f.Pull {
		all["image-resolve-mode"] = "pull"
	}
	if r.Network != "" && r.Network != llb.NetworkDefault {
		all["force-network-mode"] = string(r.Network)
	}
	set("add-hosts", joined(r.ExtraHosts, func(h llb.ExtraHost) string { return h.Host + "=" + h.IP }))
	set("ulimit", joined(r.Ulimits, func(u llb.Ulimit) string { return fmt.Sprintf("%s=%d:%d", u.Name, int64(u.Soft), int64(u.Hard)) }))
	if r.ShmSize > 0 {
		all["shm-size"] = strconv.FormatInt(r.ShmSize, 10)
	}
	set("cgroup-parent", r.CgroupParent)
	var caps []string
	if len(from.Named) > 0 {
		caps = append(caps, capContexts)
	}
	if requestID != "" {
		all["requestid"] = requestID
		caps = append(caps, capSubrequests)
	}
	set("frontend.caps", strings.Join(caps, ","))
	return all
}

// joined returns values separated by commas.
func joined[T any](values []T, text func(T) string) string {
	all := make([]string, len(values))
	for i, v := range values {
		all[i] = text(v)
	}
	return strings.Join(all, ",")
}
