// Package cgroup makes the control groups of a step and sets their limits, in version 1 and version 2. See cgroups(7), and
// Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst of the Linux source. It knows nothing of what runs in them.
package cgroup

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/userns"
)

// groupPrefix begins the names of the groups that kiln makes; 16 digits follow. Whoever made one holds a lock on it (flock(2)) for as
// long as it lives, so that one whose lock is free is known to be left by a kiln that died.
const groupPrefix = "kiln-"

// Request says what groups a run needs.
type Request struct {
	// Parent is a group, as a path from the top of each hierarchy, in which the run gets one of its own in each. It is made where it is
	// missing. "" is kiln's own group or the one above, for Limits alone.
	Parent string
	// Limits are set, or New fails.
	Limits Limits
	// Devices are the only ones that the processes of the run may open, if Groups.Guarded says so. nil leaves them those of kiln.
	Devices []Device
	// All asks for a group in each hierarchy of version 1 in which kiln may make one, for processes that manage control groups.
	All bool
}

// Groups are the control groups of one run, at most one in each hierarchy of the machine.
type Groups struct {
	groups []*group
	made   []string // what this process has made above the groups, in that order
	// unlimited says why the default limit of processes is not applied; nil if it is.
	unlimited  error
	asked      bool // whether the request had a Parent, Limits or All
	all        bool // whether it had All
	guarded    bool
	forDevices bool // whether the request had Devices
	// earlier is what was counted until Killed was called last: for runs before this one.
	earlier counts
}

// counts are how many processes were killed because memory was short, and how many were not started because there were too many.
type counts struct{ memory, pids int64 }

// Guarded reports whether a device controller lets the processes open the Devices of the request alone.
func (c *Groups) Guarded() bool { return c.guarded }

// Unlimited returns why no limit on the number of processes is applied although Limits.Pids is 0; nil if one is.
func (c *Groups) Unlimited() error { return c.unlimited }

// Pool keeps the groups of runs that are over for later ones: to make and remove them takes longer than a short process runs. It serves
// runs without a Parent and Limits, whose Devices are either nil or the same. The zero value is an empty pool. It is safe for concurrent
// use.
type Pool struct {
	mu   sync.Mutex
	idle map[bool][]*Groups // by whether Devices were given
}

// Close removes the groups of the pool. No run may use it any more.
func (p *Pool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var failed error
	for _, list := range p.idle {
		for _, c := range list {
			failed = errors.Join(failed, c.Remove())
		}
	}
	p.idle = nil
	return failed
}

// Get returns groups of the pool, or new ones.
func (p *Pool) Get(r Request) (*Groups, error) {
	p.mu.Lock()
	list := p.idle[r.Devices != nil]
	if n := len(list); n > 0 {
		p.idle[r.Devices != nil] = list[:n-1]
		p.mu.Unlock()
		return list[n-1], nil
	}
	p.mu.Unlock()
	c, err := New(r)
	if err == nil {
		c.forDevices = r.Devices != nil
	}
	return c, err
}

// Put takes groups from Get back, when nothing of the run is alive. Processes whose groups the kernel has not let go of yet do not affect
// later runs.
func (p *Pool) Put(c *Groups) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.idle == nil {
		p.idle = map[bool][]*Groups{}
	}
	p.idle[c.forDevices] = append(p.idle[c.forDevices], c)
}

// group is a control group that kiln made.
type group struct {
	hierarchy *hierarchy
	path      string   // where it is in the file system
	dir       *os.File // open on it, with the lock
	threaded  bool     // of version 2, below a group with processes
	uses      []string // the controllers of its limits
}

// hierarchy is a mounted tree of control groups.
type hierarchy struct {
	// mount is where it is mounted, and own kiln's own group in there; "" if that lies outside of what is mounted.
	mount, own string
	// unified says that it is one of version 2.
	unified bool
	// controllers are those of version 1.
	controllers []string
}

// New makes the groups of a run. A limit that cannot be applied is a *LimitError; only the default limit of processes and Devices may be
// left out, which Unlimited and Guarded say.
func New(r Request) (_ *Groups, err error) {
	all, err := machine()
	if err != nil {
		return nil, err
	}
	c := &Groups{asked: r.All || r.Parent != "" || r.Limits != Limits{}, all: r.All}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Remove())
		}
	}()
	if err := c.below(all, r.Parent); err != nil {
		return nil, fmt.Errorf("make a control group in %s: %w", r.Parent, err)
	}
	l := r.Limits
	for _, controller := range l.controllers() {
		if err := c.limit(all, controller, l); err != nil {
			return nil, &LimitError{Controller: controller, Err: err}
		}
	}
	if l.Pids == 0 {
		l.Pids = DefaultPids
		c.unlimited = c.limit(all, "pids", l)
	}
	if r.Devices != nil {
		c.guarded = c.guard(all, r.Devices, r.Limits) == nil
	}
	if r.All {
		c.fill(all)
	}
	return c, nil
}

// fill makes a group in each hierarchy of version 1 in which the run has none, if kiln may.
func (c *Groups) fill(all []*hierarchy) {
	for _, h := range all {
		if h.unified || h.own == "" || c.in(h) != nil {
			continue
		}
		n := len(c.groups)
		if err := c.add(h, h.own, false); err != nil && len(c.groups) > n {
			_ = c.groups[n].remove()
			c.groups = c.groups[:n]
		}
	}
}

// below makes a group in each hierarchy below the group parent; "" makes none.
func (c *Groups) below(all []*hierarchy, parent string) error {
	if parent == "" {
		return nil
	}
	if len(all) == 0 {
		return errors.New("no control groups are mounted on this machine")
	}
	parents.mu.Lock()
	defer parents.mu.Unlock()
	for _, h := range all {
		dir, err := c.descend(h, parent)
		if err == nil {
			err = c.add(h, dir, false)
		}
		// Another kiln may remove the parent that it has made before there is another group in it.
		for n := 0; gone(err) && n < maxParents; n++ {
			if dir, err = c.descend(h, parent); err == nil {
				err = c.add(h, dir, false)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// gone reports whether an error is of a group that was removed: ENODEV is of files of one that were open by then.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }

// maxParents is how often the parent of a group is made again because somebody has removed it.
const maxParents = 100

// limit sets the limits of one controller, and sees that they are set.
func (c *Groups) limit(all []*hierarchy, controller string, l Limits) error {
	i := slices.IndexFunc(all, func(h *hierarchy) bool { return h.has(controller) })
	if i < 0 {
		return errNoController
	}
	g, err := c.group(all[i], controller, l)
	if err != nil {
		return err
	}
	if err := g.enable(controller); err != nil {
		return err
	}
	for _, s := range l.settings(controller, g.hierarchy.unified) {
		if err := g.set(s); err != nil {
			return err
		}
	}
	return nil
}

// group returns the run's group in a hierarchy, which is made for a controller if there is none yet.
func (c *Groups) group(h *hierarchy, controller string, l Limits) (*group, error) {
	if g := c.in(h); g != nil {
		return g, nil
	}
	dir, threaded, err := h.place(controller, l)
	if err == nil {
		err = c.add(h, dir, threaded)
	}
	return c.in(h), err
}

func (c *Groups) in(h *hierarchy) *group {
	for _, g := range c.groups {
		if g.hierarchy == h {
			return g
		}
	}
	return nil
}

// machine returns the hierarchies of this machine.
var machine = sync.OnceValues(func() ([]*hierarchy, error) {
	return hierarchies("/proc/self/mountinfo", "/proc/self/cgroup")
})

// hierarchies returns the mounted trees of control groups, but for those without a controller that only name processes.
func hierarchies(mountinfo, cgroup string) ([]*hierarchy, error) {
	data, err := os.ReadFile(mountinfo)
	if err != nil {
		return nil, fmt.Errorf("find the control groups: %w", err)
	}
	own, err := os.ReadFile(cgroup)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("find kiln's own control group: %w", err)
	}
	groups := map[string]string{} // by controller; "" is version 2
	for line := range strings.Lines(string(own)) {
		if f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3); len(f) == 3 {
			for controller := range strings.SplitSeq(f[1], ",") {
				groups[controller] = f[2]
			}
		}
	}
	var out []*hierarchy
	for line := range strings.Lines(string(data)) {
		mounted, fs, ok := strings.Cut(line, " - ")
		fields, what := strings.Fields(mounted), strings.Fields(fs)
		if !ok || len(fields) < 5 || len(what) < 3 {
			continue
		}
		h := &hierarchy{mount: fields[4], unified: what[0] == "cgroup2"}
		in, known := groups[""]
		switch {
		case h.unified:
		case what[0] == "cgroup" && !strings.Contains(","+what[2], ",name="):
			// The options of the mount are those of its super block, as rw, and the controllers.
			for _, o := range strings.Split(what[2], ",") {
				if g, ok := groups[o]; ok && o != "" {
					h.controllers = append(h.controllers, o)
					in, known = g, true
				}
			}
		default:
			continue
		}
		top := strings.TrimSuffix(fields[3], "/")
		if below, ok := strings.CutPrefix(in, top); known && ok && (below == "" || below[0] == '/') && !strings.Contains(in, "/..") {
			h.own = filepath.Join(h.mount, below)
		}
		out = append(out, h)
	}
	return out, nil
}

// has reports whether the hierarchy has a controller.
func (h *hierarchy) has(controller string) bool {
	if !h.unified {
		return slices.Contains(h.controllers, controller)
	}
	return slices.Contains(words(filepath.Join(h.mount, "cgroup.controllers")), controller)
}

// words returns what a file lists; nothing if it cannot be read.
func words(file string) []string {
	data, _ := os.ReadFile(file)
	return strings.Fields(string(data))
}

// The controllers of version 2 that can be used below a group that has processes of its own, in a "threaded" group; that of devices
// is none of them there, but a program: see guard.
var threadedControllers = []string{"cpu", "cpuset", "pids", devicesController}

// place returns the group in which kiln makes one for a run, when the user names none.
//
// In version 1 it is kiln's own. In version 2 a group with processes in it, as kiln's own is, can have no group below it that
// a domain controller such as memory counts, except at the very top. So where only other controllers are wanted a threaded
// group is made. Else the group is made beside kiln's own, if that has no limits which the step would so escape.
func (h *hierarchy) place(controller string, l Limits) (dir string, threaded bool, err error) {
	if h.own == "" {
		return "", false, errors.New("kiln's own control group is not below " + h.mount)
	}
	if !h.unified {
		return h.own, false, nil
	}
	if _, err := os.Stat(filepath.Join(h.own, "cgroup.type")); errors.Is(err, fs.ErrNotExist) {
		return h.own, false, nil // the top
	}
	domain := slices.ContainsFunc(append(l.controllers(), controller), func(s string) bool { return !slices.Contains(threadedControllers, s) })
	if !domain {
		return h.own, true, nil
	}
	own := []string{"memory.max", "memory.high", "memory.swap.max", "cpu.max", "cpuset.cpus"}
	if l.Pids < 0 { // else the step has a limit too
		own = append(own, "pids.max")
	}
	for _, file := range own {
		if w := words(filepath.Join(h.own, file)); len(w) > 0 && w[0] != "max" {
			return "", false, &placeError{h, fmt.Errorf("kiln's own control group %s has processes, "+
				"and a limit (%s) that a group beside it would escape", h.own, file)}
		}
	}
	if h.own == h.mount {
		return "", false, &placeError{h, fmt.Errorf("kiln's own control group %s has processes, and what is above it is out of reach", h.own)}
	}
	return filepath.Dir(h.own), false, nil
}

// placeError is a group below which none can be made.
type placeError struct {
	hierarchy *hierarchy
	err       error
}

func (e *placeError) Error() string {
	advice := `name another with --cgroup-parent, or run kiln by "systemd-run --scope --slice=kiln"`
	switch {
	case userns.UID() != 0 && e.hierarchy.unified:
		advice = `run kiln by "systemd-run --user --scope -p Delegate=yes"`
	case userns.UID() != 0:
		advice = "in control groups of version 1 it takes root to do that, or a group that root has given to the user"
	}
	return e.err.Error() + ": " + advice
}

// Unwrap returns the cause.
func (e *placeError) Unwrap() error { return e.err }

// parents are the groups above those of runs that this process has made. The last run that has a group in one removes it.
var parents madeParents

type madeParents struct {
	mu   sync.Mutex // held while a group is made in one of them
	dirs map[string]bool
}

// make makes a group if it is missing, and reports whether this process has made it. mu is held.
func (p *madeParents) make(dir string) (ours bool, err error) {
	err = os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return p.dirs[dir], nil
	}
	if err != nil {
		return false, err
	}
	if p.dirs == nil {
		p.dirs = map[string]bool{}
	}
	p.dirs[dir] = true
	return true, nil
}

// remove removes a group that make has made, unless somebody uses it.
func (p *madeParents) remove(dir string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch err := unix.Rmdir(dir); err {
	case nil:
		delete(p.dirs, dir)
		return nil
	case unix.EBUSY, unix.ENOENT:
		return nil
	default:
		return fmt.Errorf("remove control group %s: %w", dir, err)
	}
}

// descend makes what is missing of parent, a path from the top of a hierarchy, and returns where it is.
func (c *Groups) descend(h *hierarchy, parent string) (string, error) {
	dir := h.mount
	for name := range strings.SplitSeq(strings.Trim(path.Clean("/"+parent), "/"), "/") {
		above := dir
		dir = filepath.Join(dir, name)
		ours, err := parents.make(dir)
		if err != nil {
			return "", err
		}
		if ours {
			c.made = append(c.made, dir)
		}
		if err := h.inheritSets(above, dir); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// inheritSets gives a group of cpuset (version 1) the processors and memory of the one above: it begins with none, and takes
// no process until it has some.
func (h *hierarchy) inheritSets(from, to string) error {
	if h.unified {
		return nil
	}
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(to, name))
		if errors.Is(err, fs.ErrNotExist) || err == nil && len(bytes.TrimSpace(have)) > 0 {
			continue
		}
		value, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, name), value, 0); err != nil {
			return err
		}
	}
	return nil
}

// add makes a group in the group at dir.
func (c *Groups) add(h *hierarchy, dir string, threaded bool) error {
	sweep(dir)
	unlock, err := lockGroup(dir)
	if err != nil {
		return err
	}
	defer unlock()
	var id [8]byte
	rand.Read(id[:])
	g := &group{hierarchy: h, path: filepath.Join(dir, groupPrefix+hex.EncodeToString(id[:])), threaded: threaded}
	if err := os.Mkdir(g.path, 0o755); err != nil {
		return &placeError{h, fmt.Errorf("make a control group in %s: %w", dir, errors.Unwrap(err))}
	}
	c.groups = append(c.groups, g)
	if g.dir, err = os.Open(g.path); err != nil {
		return fmt.Errorf("open the control group: %w", err)
	}
	if err := unix.Flock(int(g.dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lock control group %s: %w", g.path, err)
	}
	if threaded {
		if err := g.write("cgroup.type", "threaded"); err != nil {
			return err
		}
	}
	return h.inheritSets(dir, g.path)
}

// lockTime bounds the wait of lockGroup; no kiln needs the lock for so long.
const lockTime = 5 * time.Second

// lockGroup waits until no other kiln makes or removes groups in the one at dir.
func lockGroup(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open control group: %w", err)
	}
	// Whoever can read the directory can hold the lock for as long as they like.
	for end := time.Now().Add(lockTime); ; time.Sleep(time.Millisecond) {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EWOULDBLOCK && err != unix.EINTR || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock control group %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}

var swept sync.Map // groups that sweep has looked at

// sweep removes the groups in the one at dir whose kiln is dead, once in a process's life. What cannot be removed is left to
// the next kiln.
func sweep(dir string) {
	if _, done := swept.LoadOrStore(dir, true); !done {
		removeDead(dir)
	}
}

// Sweep removes the control groups that dead kilns left where this one would make its own. What cannot be removed is left to the
// next kiln.
func Sweep() {
	all, err := machine()
	if err != nil {
		return
	}
	for _, h := range all {
		if h.own == "" {
			continue
		}
		removeDead(h.own)
		if h.unified && h.own != h.mount {
			removeDead(filepath.Dir(h.own))
		}
	}
}

// removeDead removes the groups in the one at dir whose kiln is dead.
func removeDead(dir string) {
	left := kilnGroups(dir)
	if len(left) == 0 {
		return
	}
	unlock, err := lockGroup(dir)
	if err != nil {
		return
	}
	defer unlock()
	for _, p := range left {
		f, err := os.Open(p)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = removeGroup(p)
		}
		f.Close()
	}
}

// kilnGroups returns the groups in the one at dir that kilns made.
func kilnGroups(dir string) []string {
	found, _ := filepath.Glob(filepath.Join(dir, groupPrefix+strings.Repeat("[0-9a-f]", 16))) // the pattern is well-formed
	return found
}

// enable switches a controller on for the group, in all groups above where it is not yet: version 2 only.
func (g *group) enable(controller string) error {
	if !g.hierarchy.unified {
		return nil
	}
	g.uses = append(g.uses, controller)
	above := filepath.Dir(g.path)
	var chain []string
	for dir := above; ; dir = filepath.Dir(dir) {
		if slices.Contains(words(filepath.Join(dir, "cgroup.subtree_control")), controller) {
			break
		}
		chain = append(chain, dir)
		if dir == g.hierarchy.mount {
			break
		}
	}
	for _, dir := range slices.Backward(chain) {
		err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0)
		switch {
		case errors.Is(err, unix.EBUSY):
			return &placeError{g.hierarchy, fmt.Errorf("control group %s has processes of its own", dir)}
		case errors.Is(err, unix.ENOENT):
			return fmt.Errorf("the controller is not there for control group %s", dir)
		case err != nil:
			return fmt.Errorf("switch the controller on: %w", err)
		}
	}
	return nil
}

// set sets a limit, and sees that it is set.
func (g *group) set(s setting) error {
	file := filepath.Join(g.path, s.file)
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		if s.optional {
			return nil
		}
		return fmt.Errorf("this kernel has no %s", s.file)
	}
	if err := g.write(s.file, s.value); err != nil {
		return err
	}
	read := s.file
	if s.read != "" {
		read = s.read
	}
	got, err := os.ReadFile(filepath.Join(g.path, read))
	if err != nil {
		return fmt.Errorf("read the limit back: %w", err)
	}
	if is := strings.TrimSpace(string(got)); !s.same(is) {
		return fmt.Errorf("%s was to be %s, and the kernel made it %q", s.file, s.value, is)
	}
	return nil
}

func (g *group) write(file, value string) error {
	err := os.WriteFile(filepath.Join(g.path, file), []byte(value), 0)
	if err != nil {
		return fmt.Errorf("set %s to %s: %w", file, value, errors.Unwrap(err))
	}
	return nil
}

// Join returns what a process needs to be in the groups: files that it writes 0 to, of version 1, and the group that it is
// made in, of version 2, which may be nil.
func (c *Groups) Join() (procs []*os.File, into *os.File, err error) {
	for _, g := range c.groups {
		if g.hierarchy.unified {
			into = g.dir
			continue
		}
		// The process has one thread. For a thread that moves itself the kernel need not wait until no process of the machine is about
		// to fork, as it does for "cgroup.procs", which takes milliseconds.
		f, err := os.OpenFile(filepath.Join(g.path, "tasks"), os.O_WRONLY, 0)
		if err != nil {
			for _, f := range procs {
				f.Close()
			}
			return nil, nil, fmt.Errorf("open the control group: %w", err)
		}
		procs = append(procs, f)
	}
	return procs, into, nil
}

// Shown returns the hierarchies of version 1 in which the run has a group, by the controllers that name them in mount(2): none if nothing
// was asked for, as then there is nothing that a program would size itself by; and that of devices, which says nothing to it, is left out
// unless it manages groups.
func (c *Groups) Shown() (list [][]string) {
	if !c.asked {
		return nil
	}
	for _, g := range c.groups {
		if h := g.hierarchy; !h.unified && (c.all || !slices.Contains(h.controllers, devicesController)) {
			list = append(list, h.controllers)
		}
	}
	return list
}

// counts returns what the kernel has counted for the groups.
func (c *Groups) counts() (n counts) {
	for _, g := range c.groups {
		if g.hierarchy.unified {
			n.memory += g.count("memory.events", "oom_kill")
		} else {
			n.memory += g.count("memory.oom_control", "oom_kill")
		}
		n.pids += g.count("pids.events", "max")
	}
	return n
}

// Killed returns how many processes of this run were killed because memory was short, and how many were not started because there were
// too many. What it has returned once is not counted again.
func (c *Groups) Killed() (memory, pids int64) {
	n, was := c.counts(), c.earlier
	c.earlier = n
	return n.memory - was.memory, n.pids - was.pids
}

// count returns a number of a file with a name and a number in each line; 0 if it is not there.
func (g *group) count(file, name string) (n int64) {
	data, _ := os.ReadFile(filepath.Join(g.path, file))
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			_, _ = fmt.Sscan(rest, &n)
		}
	}
	return n
}

// Remove removes the groups that were made, when their processes have ended; parents that others use by now stay.
func (c *Groups) Remove() error {
	var failed error
	for _, g := range c.groups {
		failed = errors.Join(failed, g.remove())
	}
	for _, dir := range slices.Backward(c.made) {
		failed = errors.Join(failed, parents.remove(dir))
	}
	return failed
}

func (g *group) remove() error {
	if err := removeGroup(g.path); err != nil {
		return err
	}
	if g.dir != nil {
		g.dir.Close()
	}
	if !g.threaded || len(g.uses) == 0 {
		return nil
	}
	// A controller that stays on keeps the group above from having other groups than threaded ones.
	above := filepath.Dir(g.path)
	unlock, err := lockGroup(above)
	if err != nil {
		return err
	}
	defer unlock()
	if len(kilnGroups(above)) > 0 {
		return nil
	}
	err = os.WriteFile(filepath.Join(above, "cgroup.subtree_control"), []byte("-"+strings.Join(g.uses, " -")), 0)
	if err != nil && !errors.Is(err, unix.EBUSY) { // somebody else uses it by now
		return fmt.Errorf("switch a controller off: %w", err)
	}
	return nil
}

// removeGroup removes a group whose processes are dead or dying, and the groups that they have made in it.
func removeGroup(dir string) error {
	err := unix.Rmdir(dir)
	if err == unix.EBUSY {
		entries, _ := os.ReadDir(dir) // what it does not list keeps the group from being removed
		for _, e := range entries {
			if e.IsDir() {
				if err := removeGroup(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
		err = unix.Rmdir(dir)
	}
	// The kernel lets go of a process's group a moment after the process is gone.
	for wait := time.Millisecond / 4; err == unix.EBUSY && wait < time.Second; wait *= 2 {
		time.Sleep(wait)
		err = unix.Rmdir(dir)
	}
	if err != nil && err != unix.ENOENT {
		return fmt.Errorf("remove control group %s: %w", dir, err)
	}
	return nil
}
