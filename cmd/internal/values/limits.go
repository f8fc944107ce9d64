package values

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/build/confine"
	"github.com/kilnbuild/kiln/internal/suggest"
	csvvalue "github.com/tonistiigi/go-csvvalue"
)

// LimitFlag is a flag that limits what a process takes.
type LimitFlag struct {
	Name, Shorthand, Kind string
	usage                 string // with %s for what is limited
}

// UsageOf returns the help text of the flag of a command that limits what is named so: "each RUN".
func (f LimitFlag) UsageOf(what string) string { return strings.ReplaceAll(f.usage, "%s", what) }

// LimitFlags are the flags that limit a step or a container.
var LimitFlags = []LimitFlag{
	{"memory", "m", "bytes", "`SIZE` memory limit of %s, such as 2g"},
	{"memory-swap", "", "bytes", "`SIZE` limit of memory and swap together, such as 4g; -1 for unlimited swap (default twice --memory)"},
	{"cpu-shares", "c", "int", "`N` relative CPU weight of %s; processes without one have 1024"},
	{"cpu-period", "", "int", "`N` period of --cpu-quota in microseconds (default 100000)"},
	{"cpu-quota", "", "int", "`N` CPU time of %s per period, in microseconds"},
	{"cpuset-cpus", "", "string", "`LIST` CPUs that %s may use, such as 0-3,5"},
	{"cpuset-mems", "", "string", "`LIST` memory nodes that %s may use, such as 0-3,5"},
	{"pids-limit", "", "int", "`N` limit of processes and threads of %s; -1 for unlimited (default 4096)"},
	{"step-timeout", "", "duration", "`TIME` time limit of %s, such as 10m"},
}

// Limit is the value of one of the LimitFlags.
type Limit struct {
	Limits     confine.Limits
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
func Limits(flags confine.Limits, resources []string) (confine.Limits, error) {
	all := maps.Clone(flags)
	maps.DeleteFunc(all, func(_, value string) bool { return value == "" })
	// One by one: what two of them have to do with each other may depend on kiln.toml.
	for name, value := range all {
		if err := confine.CheckLimit(name, value); err != nil {
			return nil, usagef("--%w", err)
		}
	}
	for _, r := range resources {
		given, err := resource(r)
		if err != nil {
			return nil, usagef("--resource %q: %w", r, err)
		}
		for name, value := range given {
			if err := confine.CheckLimit(name, value); err != nil {
				return nil, usagef("--resource %q: %w", r, err)
			}
			all[name] = value
		}
	}
	return all, nil
}

// Resources are the keys of --resource, which are buildx's.
var Resources = []string{"memory", "memory-swap", "cpu-shares", "cpu-period", "cpu-quota", "cpuset-cpus", "cpuset-mems"}

// resource reads one --resource: KEY=VALUE,…. A part without = belongs to the list before it, as in cpuset-cpus=0-3,5.
func resource(value string) (map[string]string, error) {
	fields, err := csvvalue.Fields(value, nil)
	if err != nil {
		return nil, fmt.Errorf("it is not a comma separated list: %w", err)
	}
	limits, last := map[string]string{}, ""
	for _, field := range fields {
		name, v, ok := strings.Cut(strings.TrimSpace(field), "=")
		switch {
		case !ok && strings.HasPrefix(last, "cpuset-"):
			limits[last] += "," + field
			continue
		case !ok:
			return nil, fmt.Errorf("%q is not KEY=VALUE, as memory=2g", field)
		case !slices.Contains(Resources, name):
			hint := ""
			if meant := suggest.Nearest(name, Resources...); meant != "" {
				hint = fmt.Sprintf(" (did you mean %s?)", meant)
			}
			return nil, fmt.Errorf("unknown key %q%s: use %s", name, hint, strings.Join(Resources, ", "))
		case v == "":
			return nil, fmt.Errorf("%s has no value", name)
		}
		limits[name], last = v, name
	}
	return limits, nil
}
