package sandbox

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/kilnbuild/kiln/sandbox/internal/cgroup"
)

// DefaultPids is how many processes and threads a run may have if Limits does not say.
const DefaultPids = cgroup.DefaultPids

// Limits bound what a process and its descendants take together, by control groups. A limit that cannot be applied is a *LimitError of Run.
type Limits = cgroup.Limits

// LimitError is a limit that cannot be applied.
type LimitError = cgroup.LimitError

// Pool keeps the control groups of runs that are over for later ones. It serves runs without a CgroupParent, Limits and Devices.
type Pool = cgroup.Pool

// Sweep removes the control groups that dead kilns left where this one would make its own. What cannot be removed is left to the
// next kiln.
func Sweep() { cgroup.Sweep() }

// A PidsError says that a run had no control group for the default limit of processes.
type PidsError struct {
	// Shared is how many processes and threads there could be all the same, by RLIMIT_NPROC: for each user of a namespace in all runs of
	// this kiln at the same time, and kiln's own are among root's. 0 is no limit.
	Shared int64
	// Err is why there was no control group.
	Err error
}

func (e *PidsError) Error() string {
	what := "any number of processes and threads is possible"
	if e.Shared > 0 {
		what = fmt.Sprintf("each user id may have %d processes and threads in all steps together", e.Shared)
	}
	return fmt.Sprintf("%s, since kiln can have no control group: %v", what, e.Err)
}

// Unwrap returns the cause.
func (e *PidsError) Unwrap() error { return e.Err }

// NoPidsLimit returns what Status.NoPidsLimit will be for runs that Limits say nothing of.
func NoPidsLimit() (*PidsError, error) {
	ns, err := userns.Current()
	if err != nil {
		return nil, err
	}
	c, err := cgroup.New(cgroup.Request{})
	if err != nil {
		return nil, err
	}
	r := &run{cgroups: c, ns: ns}
	err = errors.Join(r.limitTasks(), c.Remove())
	return r.noPidsLimit(), err
}

// errNoNodes is of a process in a user namespace, for which the kernel makes no device nodes.
var errNoNodes = errors.New("in a user namespace the kernel makes none")

// DeviceNodes returns why a process cannot open the nodes that it makes of devices that it has anyway, as debootstrap does; nil if it
// can.
func DeviceNodes() error {
	ns, err := userns.Current()
	if err != nil {
		return err
	}
	if ns.Nested {
		return errNoNodes
	}
	rules, err := deviceRules(nil)
	if err != nil {
		return err
	}
	return cgroup.CanGuard(rules)
}

// pool returns the pool that the groups of the run come from; nil if they are made for it alone.
func (s *Spec) pool() *Pool {
	if s.Resources.CgroupParent != "" || s.Resources.Limits != (Limits{}) || len(s.Devices) > 0 || s.managesGroups() {
		return nil
	}
	return s.Resources.Pool
}

// managesGroups reports whether the process may make control groups, and move processes to them: it has all privileges on the machine.
func (s *Spec) managesGroups() bool { return s.Privileges.Insecure && s.Privileges.IDs == nil }

// enterGroups gives the run its control groups, or what takes the place of one that it cannot have.
func (r *run) enterGroups() (err error) {
	request := cgroup.Request{Parent: r.spec.Resources.CgroupParent, Limits: r.spec.Resources.Limits, All: r.privileged()}
	if r.guards() {
		if request.Devices, err = deviceRules(r.spec.Devices); err != nil {
			return err
		}
	}
	if pool := r.spec.pool(); pool != nil {
		r.cgroups, err = pool.Get(request)
	} else {
		r.cgroups, err = cgroup.New(request)
	}
	if err != nil {
		return err
	}
	if r.spec.Privileges.Insecure && r.guards() && !r.cgroups.Guarded() {
		return errUnguarded
	}
	return r.limitTasks()
}

// leaveGroups is called when no process of the run is alive.
func (r *run) leaveGroups() error {
	if r.cgroups == nil {
		return nil
	}
	if pool := r.spec.pool(); pool != nil {
		pool.Put(r.cgroups)
		return nil
	}
	return r.cgroups.Remove()
}

// limitTasks sets RLIMIT_NPROC where there is no control group. Since Linux 5.14 the kernel counts for it the processes and threads of a
// user in a user namespace. In the initial one that is everything that the user runs, so it cannot limit a step.
func (r *run) limitTasks() error {
	if r.cgroups.Unlimited() == nil || !r.ns.Nested && r.spec.Privileges.IDs == nil || slices.ContainsFunc(r.spec.Process.Rlimits, isNproc) {
		return nil
	}
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NPROC, &own); err != nil {
		return fmt.Errorf("get limit nproc: %w", err)
	}
	limit := Rlimit{Name: "nproc", Soft: min(own.Cur, DefaultPids), Hard: min(own.Max, DefaultPids)}
	r.spec.Process.Rlimits = append(slices.Clone(r.spec.Process.Rlimits), limit)
	return nil
}

func isNproc(l Rlimit) bool { return l.Name == "nproc" }

// noPidsLimit returns why no control group limits the number of processes, and what does.
func (r *run) noPidsLimit() *PidsError {
	if r.cgroups.Unlimited() == nil {
		return nil
	}
	e := &PidsError{Err: r.cgroups.Unlimited()}
	// The machine's root is never held to it.
	if r.spec.Privileges.IDs == nil && r.ns.MayBeRoot() {
		return e
	}
	if i := slices.IndexFunc(r.spec.Process.Rlimits, isNproc); i >= 0 && r.spec.Process.Rlimits[i].Hard < math.MaxInt64 {
		e.Shared = int64(r.spec.Process.Rlimits[i].Hard)
	}
	return e
}

// deviceRules are the devices that every process may open, and those of nodes.
func deviceRules(nodes []Mount) ([]cgroup.Device, error) {
	// What /dev/ptmx and the nodes in /dev/pts are.
	rules := []cgroup.Device{{Kind: 'c', Major: 5, Minor: 2}, {Kind: 'c', Major: 136, Any: true}}
	for _, d := range devices {
		rules = append(rules, cgroup.Device{Kind: 'c', Major: d.major, Minor: d.minor})
	}
	for _, n := range nodes {
		var st unix.Stat_t
		if err := unix.Fstat(int(n.Source.Fd()), &st); err != nil {
			return nil, fmt.Errorf("mount at %s: %w", n.Target, err)
		}
		kind := byte('c')
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			kind = 'b'
		}
		rules = append(rules, cgroup.Device{Kind: kind, Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev)})
	}
	return rules, nil
}

// privileged reports whether the process is to have the privileges of kiln itself, on the machine: all devices with them.
func (r *run) privileged() bool {
	return r.spec.Privileges.Insecure && r.spec.Privileges.IDs == nil && !r.ns.Nested
}

// guards reports whether a device controller is to say which devices the process may open. Where kiln is in a user namespace itself the
// kernel lets nobody open a device by a node of a file system that kiln has mounted. A process with privileges in a user namespace of its
// own could take away the option nodev of a mount, so there only a controller keeps it from the nodes that an image or an archive has.
func (r *run) guards() bool {
	return !r.ns.Nested && r.spec.Privileges.Insecure == (r.spec.Privileges.IDs != nil)
}

// errUnguarded is of a step whose privileges would reach every device of the machine.
var errUnguarded = errors.New("run with privileges in a user namespace: it takes a device controller, without which the step could " +
	"open every device of the machine by a node in its image: run kiln where it may make control groups, " +
	"or leave out --userns or --security=insecure")
