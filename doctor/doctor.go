// Package doctor tries what builds need of the machine, and says what to change.
package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	units "github.com/docker/go-units"
	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/network"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/kilnbuild/kiln/registry/auth"
	"github.com/kilnbuild/kiln/sandbox"
	"github.com/kilnbuild/kiln/sandbox/emulation"
	"github.com/kilnbuild/kiln/store"
	"golang.org/x/sys/unix"
)

// Diagnosis is what Examine has to say of one thing.
type Diagnosis struct {
	// What is the thing: "overlayfs".
	What string
	// Text says how it is, or what is wrong and what to do about it.
	Text string
	// Severity says what it means for builds.
	Severity Severity
}

// Severity is what a Diagnosis means for builds.
type Severity int

const (
	// Fine is a thing that is as it should be.
	Fine Severity = iota
	// Lacking is something that only some builds need, or that makes them slower.
	Lacking
	// Fatal is something without which no build runs.
	Fatal
)

// examination is one thing to look at. It returns how it is.
type examination struct {
	what string
	look func(p *patient, ctx context.Context) (string, Severity)
}

// Surroundings examines what needs neither a root directory nor root.
func Surroundings(cfgErr error) []Diagnosis {
	all := []Diagnosis{{What: "kernel", Text: kernel()}}
	f := Diagnosis{What: "configuration", Text: config.Describe()}
	if cfgErr != nil {
		f.Text, f.Severity = cfgErr.Error(), Fatal
	}
	return append(all, f)
}

// patient is what is examined.
type patient struct {
	root *store.Root
	// sharedProc is --no-process-sandbox as kiln.toml has it.
	sharedProc bool
	// registries are the settings of kiln.toml.
	registries config.Registries
}

// Examine tries what builds in a root directory need of the machine, and calls say for each thing.
func Examine(ctx context.Context, root *store.Root, cfg *config.Config, say func(Diagnosis)) error {
	p := &patient{root: root, sharedProc: cfg.NoProcessSandbox, registries: cfg.Registries}
	for _, e := range []examination{
		{"user", (*patient).lookUser},
		{"root directory", (*patient).lookRoot},
		{"overlayfs", (*patient).lookOverlay},
		{"capabilities of files", (*patient).lookCapabilities},
		{"a step's sandbox", (*patient).lookSandbox},
		{"a step's network", (*patient).lookNetwork},
		{"a step's limits", (*patient).lookLimits},
		{"device nodes", (*patient).lookDeviceNodes},
		{"other platforms", (*patient).lookPlatforms},
		{"git", (*patient).lookGit},
		{"credentials", (*patient).lookCredentials},
	} {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		text, severity := e.look(p, ctx)
		say(Diagnosis{What: e.what, Text: text, Severity: severity})
	}
	return nil
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err.Error()
	}
	return "Linux " + unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Machine[:])
}

func (p *patient) lookUser(context.Context) (string, Severity) {
	ns, err := userns.Current()
	switch {
	case err != nil:
		return err.Error(), Fatal
	case userns.Note() != "":
		return userns.Note(), Lacking
	case !ns.Nested:
		return "root", Fine
	case userns.UID() == 0:
		return "root of a user namespace", Fine
	}
	return fmt.Sprintf("uid %d, in a user namespace with a range of ids", userns.UID()), Fine
}

// scarce is how much space on the disk is little.
const scarce = 1 << 30

func (p *patient) lookRoot(context.Context) (string, Severity) {
	if _, err := p.root.Work(); err != nil {
		return err.Error(), Fatal
	}
	var st unix.Statfs_t
	if err := unix.Statfs(p.root.Dir(), &st); err != nil {
		return fmt.Sprintf("statfs %s: %v", p.root.Name(), err), Fatal
	}
	free := int64(st.Bavail) * st.Bsize
	text := fmt.Sprintf("%s, with %s free", p.root.Name(), units.HumanSize(float64(free)))
	if st.Files > 0 {
		text += fmt.Sprintf(" and %d inodes", st.Ffree)
	}
	if free < scarce || st.Files > 0 && st.Ffree < 10000 {
		return text + "; that is little: kiln prune removes what is not used, and --root names another directory", Lacking
	}
	return text, Fine
}

func (p *patient) lookOverlay(context.Context) (string, Severity) {
	w, err := p.root.Work()
	if err != nil {
		return err.Error(), Fatal
	}
	if err := w.Layers.TryOverlay(); err != nil {
		return fmt.Sprintf("each RUN works on a copy of its root, which takes time and space, since %v; "+
			"--root can name a directory on ext4, XFS, Btrfs or tmpfs", err), Lacking
	}
	if !mount.AppendsLayers() {
		return "works, by one string of options: the kernel is older than 6.8", Fine
	}
	return "works", Fine
}

func (p *patient) lookCapabilities(context.Context) (string, Severity) {
	w, err := p.root.Work()
	if err != nil {
		return err.Error(), Fatal
	}
	name := filepath.Join(w.Scratch.Path(), "capabilities")
	if err := os.WriteFile(name, nil, 0o700); err != nil {
		return err.Error(), Fatal
	}
	defer os.Remove(name)
	// struct vfs_cap_data of revision 2 with CAP_NET_BIND_SERVICE, see capabilities(7).
	capability := []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	if err := unix.Setxattr(name, "security.capability", capability, 0); err != nil {
		return fmt.Sprintf("the file system of %s does not hold them (%v), so setcap fails in a RUN, "+
			"and layers with such files cannot be unpacked", p.root.Name(), err), Lacking
	}
	return "are kept", Fine
}

// step runs a program that does not exist in an empty root: if that is what is wrong, all else is right.
func (p *patient) step(ctx context.Context, s sandbox.Spec) error {
	w, err := p.root.Work()
	if err != nil {
		return err
	}
	layers := w.Layers.Job()
	defer layers.Close()
	upper, err := layers.New()
	if err != nil {
		return err
	}
	defer upper.Close()
	root, err := layers.Mount(ctx, nil, upper, nil)
	if err != nil {
		return err
	}
	defer root.Close()
	s.Root, s.Process.Args = root.File, []string{"/no such program"}
	if s.Privileges.SharedProc, err = userns.SharedProc(p.sharedProc); err != nil {
		return err
	}
	if s.Privileges.SharedProc {
		users, network, err := sandbox.NewUserNamespace()
		if err != nil {
			return err
		}
		defer users.Close()
		defer network.Close()
		s.Privileges.UserNamespace = users
	}
	_, err = sandbox.Run(ctx, s)
	if _, ok := errors.AsType[*sandbox.ExecError](err); ok {
		return nil
	}
	return err
}

func (p *patient) lookSandbox(ctx context.Context) (string, Severity) {
	if err := p.step(ctx, sandbox.Spec{Network: sandbox.Network{Mode: sandbox.NetworkNone}}); err != nil {
		return err.Error(), Fatal
	}
	return "works", Fine
}

func (p *patient) lookNetwork(context.Context) (string, Severity) {
	way, err := network.Probe()
	if err != nil {
		return fmt.Sprintf("%v; without one only RUN --network=none and --network=host work", err), Fatal
	}
	return "works, by " + way, Fine
}

func (p *patient) lookLimits(ctx context.Context) (string, Severity) {
	var can, cannot []string
	for _, l := range []struct {
		what string
		sandbox.Limits
	}{
		{"memory", sandbox.Limits{Memory: 1 << 30}},
		{"processes", sandbox.Limits{Pids: 1000}},
		{"processor time", sandbox.Limits{CPUQuota: 50000}},
		{"processors", sandbox.Limits{CPUs: "0"}},
	} {
		spec := sandbox.Spec{Network: sandbox.Network{Mode: sandbox.NetworkNone}, Resources: sandbox.Resources{Limits: l.Limits}}
		if err := p.step(ctx, spec); err != nil {
			why := err
			if e, ok := errors.AsType[*sandbox.LimitError](err); ok {
				why = e.Err
			}
			cannot = append(cannot, fmt.Sprintf("%s not (%v)", l.what, why))
			if l.Pids > 0 {
				cannot[len(cannot)-1] += withoutPids()
			}
			continue
		}
		can = append(can, l.what)
	}
	if len(cannot) == 0 {
		return strings.Join(can, ", "), Fine
	}
	return strings.Join(append(can, cannot...), ", "), Lacking
}

// withoutPids says what holds where no control group limits the processes of a step.
func withoutPids() string {
	e, err := sandbox.NoPidsLimit()
	switch {
	case err != nil || e == nil:
		return ""
	case e.Shared > 0:
		return fmt.Sprintf(": instead each user id may have %d in all steps together", e.Shared)
	}
	return ": a RUN may have any number of them"
}

func (p *patient) lookDeviceNodes(context.Context) (string, Severity) {
	if err := sandbox.DeviceNodes(); err != nil {
		return fmt.Sprintf("a RUN that makes some cannot open them, as debootstrap does with that of /dev/null: %v", err), Lacking
	}
	return "those that a RUN makes of /dev/null and the like can be opened", Fine
}

func (p *patient) lookPlatforms(ctx context.Context) (string, Severity) {
	shared, err := userns.SharedProc(p.sharedProc)
	if err != nil {
		return err.Error(), Fatal
	}
	machine := emulation.Machine{SharedProc: shared}
	var native, emulated []string
	var missing error
	for _, arch := range emulation.Architectures() {
		way, err := machine.Find(ctx, arch)
		switch {
		case arch == runtime.GOARCH:
		case err != nil:
			if arch == "amd64" || arch == "arm64" {
				missing = err
			}
		case way.Native:
			native = append(native, "linux/"+arch)
		default:
			emulated = append(emulated, "linux/"+arch)
		}
	}
	var text []string
	if len(native) > 0 {
		text = append(text, strings.Join(native, ", ")+" by the kernel")
	}
	if len(emulated) > 0 {
		text = append(text, strings.Join(emulated, ", ")+" by emulators that kiln gives to each RUN")
	}
	if missing != nil {
		return strings.Join(append(text, missing.Error()), "; "), Lacking
	}
	return strings.Join(text, "; "), Fine
}

func (p *patient) lookGit(ctx context.Context) (string, Severity) {
	out, err := exec.CommandContext(ctx, "git", "--version").Output()
	if err != nil {
		return fmt.Sprintf("contexts, ADD and Dockerfiles from git need the program git: %v", err), Lacking
	}
	return strings.TrimPrefix(strings.TrimSpace(string(out)), "git version "), Fine
}

func (p *patient) lookCredentials(context.Context) (string, Severity) {
	path, missing, err := auth.Check(p.registries)
	switch {
	case err != nil:
		return err.Error(), Lacking
	case len(missing) > 0:
		return fmt.Sprintf("%s names programs that are not in $PATH: %s", cmp.Or(path, "kiln.toml"), strings.Join(missing, ", ")), Lacking
	case path == "":
		return "there are none: kiln login makes them", Fine
	}
	return path, Fine
}
