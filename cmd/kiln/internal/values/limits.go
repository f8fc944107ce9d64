package values

import (
	"maps"
	"strings"

	"github.com/kilnbuild/kiln/build"
)

// LimitFlags are the flags that limit a step.
var LimitFlags = []struct{ Name, Shorthand, Kind, Usage string }{
	{"memory", "m", "bytes", "`SIZE` memory limit of each RUN, such as 2g"},
	{"memory-swap", "", "bytes", "`SIZE` limit of memory and swap together, such as 4g; -1 for unlimited swap (default twice --memory)"},
	{"cpu-shares", "c", "int", "`N` relative CPU weight of each RUN; processes without one have 1024"},
	{"cpu-period", "", "int", "`N` period of --cpu-quota in microseconds (default 100000)"},
	{"cpu-quota", "", "int", "`N` CPU time of each RUN per period, in microseconds"},
	{"cpuset-cpus", "", "string", "`LIST` CPUs that each RUN may use, such as 0-3,5"},
	{"cpuset-mems", "", "string", "`LIST` memory nodes that each RUN may use, such as 0-3,5"},
	{"pids-limit", "", "int", "`N` limit of processes and threads of each RUN; -1 for unlimited (default 4096)"},
	{"step-timeout", "", "duration", "`TIME` time limit of each RUN, such as 10m"},
}

// Limit is the value of one of the LimitFlags.
type Limit struct {
	Limits     build.Limits
	Name, Kind string
}

// Set implements pflag.Value.
func (f *Limit) Set(value string) error {
	f.Limits[f.Name] = value
	return nil
}

// String implements pflag.Value.
func (f *Limit) String() string { return "" }

// Type implements pflag.Value.
func (f *Limit) Type() string { return f.Kind }

// Limits checks the limits, those of --resource included.
func Limits(flags build.Limits, resources []string) (build.Limits, error) {
	all := maps.Clone(flags)
	maps.DeleteFunc(all, func(_, value string) bool { return value == "" })
	for _, r := range resources {
		name, value, ok := strings.Cut(r, "=")
		if !ok || name == "pids-limit" || name == "step-timeout" {
			return nil, usagef("--resource %q: want KEY=VALUE, as memory=2g", r)
		}
		all[name] = value
	}
	for name, value := range all {
		// One by one: what two of them have to do with each other may depend on kiln.toml.
		if err := build.CheckLimit(name, value); err != nil {
			return nil, usagef("--%w", err)
		}
	}
	return all, nil
}
