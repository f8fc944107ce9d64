package llb

import "fmt"

// RunOptions are what a build asks for each of its RUNs, beside what the instruction says. A new option is a field here, its line in
// Inputs if it decides the result, its flag in cmd/kiln, and what the executor makes of it; nothing between them names it.
type RunOptions struct {
	ExtraHosts []ExtraHost
	Ulimits    []Ulimit
	// ShmSize is the size of /dev/shm in bytes; 0 for the default, 64 MiB.
	ShmSize int64
	// CgroupParent is the control group that steps' groups are made in; "" for none.
	CgroupParent string
	// Reproducible says that what a RUN sees of the build context does not depend on the machine: see ReproducibleTime.
	Reproducible bool
}

// ReproducibleTime is the time of all files of the build contexts, and of all that is made and not copied, that a RUN of a reproducible
// build sees, in Unix seconds: the beginning of 2000. It is not SOURCE_DATE_EPOCH, since steps are cached from commit to commit.
const ReproducibleTime = 946684800

// ExtraHost is a line of /etc/hosts: RUN's --add-host. IP may be "host-gateway".
type ExtraHost struct {
	Host string
	IP   string
}

// Ulimit is a resource limit by its name without the RLIMIT_ prefix, in lower case: "nofile".
type Ulimit struct {
	Name string
	Soft uint64
	Hard uint64
}

// Inputs calls yield with the name and the value of each option that decides the result of a RUN, for those that are not the default.
// Addresses of hosts do not: they may differ between machines.
func (o RunOptions) Inputs(yield func(name, value string) bool) {
	var all [][2]string
	add := func(name, value string) { all = append(all, [2]string{name, value}) }
	for _, h := range o.ExtraHosts {
		add("host", h.Host)
	}
	for _, u := range o.Ulimits {
		add("ulimit", fmt.Sprintf("%s=%d:%d", u.Name, u.Soft, u.Hard))
	}
	if o.ShmSize != 0 {
		add("shm size", fmt.Sprint(o.ShmSize))
	}
	if o.CgroupParent != "" {
		add("cgroup parent", o.CgroupParent)
	}
	if o.Reproducible {
		add("reproducible", "true")
	}
	for _, in := range all {
		if !yield(in[0], in[1]) {
			return
		}
	}
}
