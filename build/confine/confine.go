// Package confine says how the processes are confined that kiln runs, those of RUN and those of containers: the limits and ids that flags
// and kiln.toml ask for, and which /proc they see. It does not know what they are.
package confine

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/kilnbuild/kiln/sandbox"
)

// CheckUserns returns an error unless value is one of --userns: "auto" for the range of ids that /etc/subuid and /etc/subgid have
// for root, "START:COUNT", or "host" for no user namespace, as "" is.
func CheckUserns(value string) error {
	if value == "" || value == "auto" || value == "host" {
		return nil
	}
	_, _, err := parseRange(value)
	return err
}

func parseRange(value string) (start, count uint32, err error) {
	first, n, ok := strings.Cut(value, ":")
	a, err1 := strconv.ParseUint(first, 10, 32)
	b, err2 := strconv.ParseUint(n, 10, 32)
	if !ok || err1 != nil || err2 != nil || b == 0 || a+b > 1<<32-1 {
		return 0, 0, errors.New("want auto, host or START:COUNT, as 100000:65536")
	}
	if a == 0 {
		return 0, 0, errors.New("a range from 0 on has the machine's own root in it")
	}
	return uint32(a), uint32(b), nil
}

// Request is what the user asks for.
type Request struct {
	// Limits bound each process with its descendants; what they do not name, kiln.toml may.
	Limits Limits
	// Userns is which ids a process has, as CheckUserns takes it; "" for what kiln.toml says.
	Userns string
	// NoProcessSandbox lets a process see kiln's own /proc, for containers in which none can be mounted; kiln.toml may say so as well.
	NoProcessSandbox bool
}

// Defaults are what kiln.toml asks for.
type Defaults struct{ Request }

// Configured reads what kiln.toml says.
func Configured(cfg *config.Config) (d Defaults, err error) {
	d.Userns, d.NoProcessSandbox = cfg.Userns, cfg.NoProcessSandbox
	if err := CheckUserns(d.Userns); err != nil {
		return d, fmt.Errorf("%s: userns = %q: %w", cfg.File, d.Userns, err)
	}
	if d.Limits, err = configured(cfg.Limits); err != nil {
		return d, fmt.Errorf("%s: [limits]: %w", cfg.File, err)
	}
	return d, nil
}

// Confinement is how processes are confined.
type Confinement struct {
	// Limits bound each, and Timeout the time that it takes; 0 is no limit.
	Limits  sandbox.Limits
	Timeout time.Duration
	// IDs returns the map of ids that the user asked for; nil for none. It is made once, and Close closes it.
	IDs func() (*mount.IDMap, error)
	// SharedProc says that they see kiln's own /proc.
	SharedProc bool

	close func()
}

// Close closes the map of ids.
func (c *Confinement) Close() { c.close() }

// Confine returns how processes are confined: as the request says, and where it says nothing as kiln.toml says. Close must be called.
// Errors of what is invalid are *input.Error.
func (d Defaults) Confine(r Request) (c Confinement, err error) {
	all := Limits{}
	maps.Copy(all, d.Limits)
	maps.Copy(all, r.Limits)
	limits, err := all.read()
	if err != nil {
		return c, &input.Error{Err: err}
	}
	c.Limits, c.Timeout = limits.sandbox, limits.timeout
	if c.SharedProc, err = userns.SharedProc(r.NoProcessSandbox || d.NoProcessSandbox); err != nil {
		return c, err
	}
	c.IDs, c.close, err = idMap(cmp.Or(r.Userns, d.Userns))
	return c, err
}

// idMap returns what makes the map of ids that the user asked for, once; and what closes it.
func idMap(value string) (ids func() (*mount.IDMap, error), closeIDs func(), err error) {
	none := func() (*mount.IDMap, error) { return nil, nil }
	if value == "" || value == "host" {
		return none, func() {}, nil
	}
	ns, err := userns.Current()
	if err != nil {
		return nil, nil, err
	}
	if ns.Nested && userns.UID() != 0 {
		return none, func() {}, nil // of a kiln that an ordinary user runs all is in one
	}
	if ns.Nested {
		return nil, nil, &input.Error{Err: errors.New("--userns: kiln is in a user namespace itself")}
	}
	var user, group, count uint32
	if value == "auto" {
		user, group, count, err = userns.RootRange()
	} else {
		user, count, err = parseRange(value)
		group = user
	}
	if err != nil {
		return nil, nil, &input.Error{Err: fmt.Errorf("--userns: %w", err)}
	}
	var made *mount.IDMap
	ids = sync.OnceValues(func() (m *mount.IDMap, err error) {
		made, err = sandbox.NewIDMap(user, group, count)
		return made, err
	})
	return ids, func() {
		if made != nil {
			made.Namespace.Close()
		}
	}, nil
}
