package confine

import (
	"fmt"
	"strconv"
	"time"

	"github.com/docker/go-units"
	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/sandbox"
)

// Limits are the values of limits of a step by their names, which are those of docker build's flags ("memory", "cpu-quota", …),
// "pids-limit" and "step-timeout", as written.
type Limits map[string]string

// stepLimits are Limits that have been read.
type stepLimits struct {
	sandbox sandbox.Limits
	timeout time.Duration
}

// CheckLimit returns an error that names the limit if it cannot be read. What it has to do with others is looked at by Confine.
func CheckLimit(name, value string) error {
	_, err := Limits{name: value}.parse()
	return err
}

// read returns the limits that go together.
func (l Limits) read() (stepLimits, error) {
	out, err := l.parse()
	if err != nil {
		return out, err
	}
	return out, out.sandbox.Check()
}

func (l Limits) parse() (out stepLimits, err error) {
	s := &out.sandbox
	for name, value := range l {
		switch name {
		case "memory":
			s.Memory, err = size(value)
		case "memory-swap":
			s.MemorySwap, err = size(value)
		case "cpu-shares":
			s.CPUShares, err = whole(value)
		case "cpu-period":
			s.CPUPeriod, err = whole(value)
		case "cpu-quota":
			s.CPUQuota, err = whole(value)
		case "cpuset-cpus":
			s.CPUs = value
		case "cpuset-mems":
			s.Mems = value
		case "pids-limit":
			if s.Pids, err = whole(value); s.Pids == 0 {
				s.Pids = -1
			}
		case "step-timeout":
			if out.timeout, err = time.ParseDuration(value); err == nil && out.timeout < 0 {
				err = fmt.Errorf("a time below zero")
			}
		default:
			err = fmt.Errorf("unknown limit: use memory, memory-swap, cpu-shares, cpu-period, cpu-quota, cpuset-cpus or cpuset-mems")
		}
		if err != nil {
			return out, fmt.Errorf("%s %q: %w", name, value, err)
		}
	}
	return out, nil
}

// size reads a number of bytes, as "512m"; -1 is for no limit.
func size(value string) (int64, error) {
	if value == "-1" {
		return -1, nil
	}
	return units.RAMInBytes(value)
}

func whole(value string) (int64, error) {
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("want a whole number")
	}
	return n, nil
}

// configured turns the settings of kiln.toml into Limits.
func configured(c config.Limits) (Limits, error) {
	l := Limits{}
	for name, value := range map[string]string{"memory": c.Memory, "memory-swap": c.MemorySwap, "cpuset-cpus": c.CpusetCpus,
		"cpuset-mems": c.CpusetMems, "step-timeout": c.StepTimeout} {
		if value != "" {
			l[name] = value
		}
	}
	for name, value := range map[string]int64{
		"pids-limit": c.Pids, "cpu-shares": c.CPUShares, "cpu-period": c.CPUPeriod, "cpu-quota": c.CPUQuota,
	} {
		if value != 0 {
			l[name] = strconv.FormatInt(value, 10)
		}
	}
	if _, err := l.read(); err != nil {
		return nil, err
	}
	return l, nil
}
