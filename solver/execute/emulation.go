package execute

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"

	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/sandbox"
	"github.com/kilnbuild/kiln/sandbox/emulation"
	"github.com/kilnbuild/kiln/solver"
)

// errInsecure is of a RUN that would have privileges over the machine, if its emulator did not put it into a user namespace.
var errInsecure = errors.New("--security=insecure has no privileges over the machine with an emulator that only the step has: " +
	"register one for the whole machine, as Debian's packages qemu-user-static and binfmt-support do")

// emulator returns what executes the programs of a RUN for a platform, "os/arch[/variant]"; nil if that is the kernel.
func (x *Executor) emulator(ctx context.Context, op llb.Exec, platform string) (*sandbox.Emulator, error) {
	way, err := x.machine.Find(ctx, architecture(platform))
	if err == nil && way.Emulator != nil && op.Security == llb.SecurityInsecure {
		err = errInsecure
	}
	if err != nil {
		return nil, fmt.Errorf("RUN for %s: %w", platform, err)
	}
	return way.Emulator, nil
}

// Ahead tells of what is about to be solved, before that begins. Where a RUN that is ahead cannot run on this machine, the first RUN that
// is not cached fails, with the error of that one. maybe reports whether a vertex may be cached: such a one fails only if it is not.
func (x *Job) Ahead(roots []llb.Output, maybe func(*llb.Vertex) bool) {
	x.ahead = func(ctx context.Context) error {
		var first *solver.VertexError
		failed := map[string]error{}
		for v := range llb.Vertices(roots) {
			op, ok := v.Op().(llb.Exec)
			arch := architecture(v.Meta().Platform)
			// An image may be for another platform than the one that was asked for, and what is made of files for any.
			if !ok || arch == runtime.GOARCH || arch != x.ofImage(v) || !v.Meta().NoCache && maybe(v) {
				continue
			}
			name := v.Meta().Platform + string(op.Security)
			err, known := failed[name]
			if !known {
				_, err = x.emulator(ctx, op, v.Meta().Platform)
				failed[name] = err
			}
			if err != nil && (first == nil || v.Meta().Location.StartLine < first.Vertex.Meta().Location.StartLine) {
				first = &solver.VertexError{Vertex: v, Err: err}
			}
		}
		if first != nil {
			return first
		}
		return nil
	}
}

// ofImage returns the architecture of the image that the root of a RUN began with; "" if that was none.
func (x *Job) ofImage(v *llb.Vertex) string {
	for len(v.Inputs()) > 0 {
		v = v.Inputs()[0].Vertex
	}
	if op, ok := v.Op().(llb.Image); ok {
		return x.Images.Architecture(op)
	}
	return ""
}

// mayRun returns an error if no RUN of the job may begin.
func (x *Job) mayRun(ctx context.Context) error {
	if x.ahead != nil {
		_, err := x.looked.Do(ctx, struct{}{}, func(ctx context.Context) (struct{}, error) { return struct{}{}, x.ahead(ctx) })
		if err != nil {
			return err
		}
	}
	if x.MayRun != nil {
		return x.MayRun(ctx)
	}
	return nil
}

// foreign is what Prepare decides about a RUN that may be for another processor.
type foreign struct {
	emulator *sandbox.Emulator
	// err is why there is none, if programs of the platform cannot be executed: those of the step may be others.
	err error
}

func (x *Job) foreign(ctx context.Context, op llb.Exec, platform string) (f foreign, err error) {
	f.emulator, f.err = x.emulator(ctx, op, platform)
	if _, ok := errors.AsType[*emulation.MissingError](f.err); !ok {
		return f, f.err
	}
	return f, nil
}

// architecture returns the processor of "os/arch[/variant]".
func architecture(platform string) string {
	_, rest, _ := strings.Cut(platform, "/")
	arch, _, _ := strings.Cut(rest, "/")
	return arch
}
