package build

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

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

// run is how RUN of a job runs.
type run struct {
	limits stepLimits
	// ids returns the map of ids that the user asked for; nil for none. It is made once.
	ids   func() (*mount.IDMap, error)
	close func()
	// sharedProc says that RUN sees kiln's own /proc.
	sharedProc bool
}

// run returns how RUN of a job runs: as the options say, and where they say nothing as kiln.toml says. Its close must be called.
func (b *Builder) run(o *Run) (r run, err error) {
	if r.limits, err = b.stepLimits(o); err != nil {
		return r, &input.Error{Err: err}
	}
	if r.sharedProc, err = userns.SharedProc(o.NoProcessSandbox || b.noProcessSandbox); err != nil {
		return r, err
	}
	r.ids, r.close, err = b.idMap(o)
	return r, err
}

// idMap returns what makes the map of ids that the user asked for, once; and what closes it.
func (b *Builder) idMap(o *Run) (ids func() (*mount.IDMap, error), closeIDs func(), err error) {
	value := o.Userns
	if value == "" {
		value = b.userns
	}
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
