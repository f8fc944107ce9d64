// Package run runs the program of an image in kiln's sandbox, to try it: in the foreground, over a root file system whose changes go with
// it. It turns an image's config and options into a step like that of a RUN, which solver/execute prepares, and adds what a step has not:
// directories of the host, ports, and a terminal. It does not know builds.
package run

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/kilnbuild/kiln/build/confine"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/network"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/sandbox"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/execute"
	"github.com/kilnbuild/kiln/solver/session"
	"github.com/kilnbuild/kiln/solver/work"
	"github.com/kilnbuild/kiln/store"
	"github.com/kilnbuild/kiln/store/images"
)

// Runner runs images of a root directory.
type Runner struct {
	root     *store.Root
	images   *images.Images
	defaults confine.Defaults
}

// New returns a Runner for the images of a root directory.
func New(root *store.Root, set *images.Images, cfg *config.Config) (*Runner, error) {
	defaults, err := confine.Configured(cfg)
	return &Runner{root, set, defaults}, err
}

// Container is an image whose program can be started: its root file system is mounted, its ports are published.
type Container struct {
	// Platform is that of the image.
	Platform llb.Platform
	// Ports are those that were published, with the port of the host that was free where Options left that open.
	Ports []network.Port
	// StopSignal is the signal that the image wants to be stopped by, as STOPSIGNAL of a Dockerfile has it; "" for none.
	StopSignal string

	layers   *snapshot.Job
	job      *execute.Job
	prepared *execute.Prepared
	unpacked func(error) // ends the report of what is unpacked; nil for nothing
	closers  []func() error
}

// onClose has f called by Close, before those that were given earlier.
func (c *Container) onClose(f func() error) { c.closers = append(c.closers, f) }

// Prepare makes a container, of which only the program has not been started. What is fetched and unpacked for it is told to s, which may be
// nil. Close must be called. Errors are *input.Error if the options are invalid, or do not fit the image.
func (r *Runner) Prepare(ctx context.Context, o Options, s *events.Stream) (c *Container, err error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	c = &Container{}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
			c = nil
		}
	}()
	held := r.root.Images.Job() // its blobs are not pruned meanwhile
	c.onClose(held.Release)
	found, err := find(ctx, r.images.Job(held), &o, s)
	if err != nil {
		return c, err
	}
	img := &source{held, found}
	if err := img.check(o.Image); err != nil {
		return c, err
	}
	p := found.Config.Platform
	c.Platform = llb.Platform{OS: "linux", Architecture: p.Architecture, Variant: p.Variant}
	c.StopSignal = found.Config.Config.StopSignal
	op, err := o.exec(&found.Config.Config)
	if err != nil {
		return c, err
	}
	volumes, err := o.volumes(&found.Config.Config)
	if err != nil {
		return c, err
	}
	ports, err := o.ports(&found.Config.Config)
	if err != nil {
		return c, err
	}
	if err := r.begin(ctx, c, &o, img); err != nil {
		return c, err
	}
	if err := c.prepare(ctx, op, img, o.Image, s); err != nil {
		return c, err
	}
	c.prepared.Spec.ReadOnly = o.ReadOnly
	if err := c.addVolumes(volumes); err != nil {
		return c, err
	}
	return c, c.publish(ctx, ports)
}

// begin makes what prepares steps, for this one alone.
func (r *Runner) begin(ctx context.Context, c *Container, o *Options, img *source) error {
	parts, err := r.root.Work()
	if err != nil {
		return err
	}
	confined, err := r.defaults.Confine(o.Request)
	if err != nil {
		return err
	}
	c.onClose(func() error { confined.Close(); return nil })
	c.layers = parts.Layers.Job()
	c.onClose(c.layers.Close)
	x := execute.New(execute.Config{SharedProc: confined.SharedProc, Root: r.root.Dir(), Tmp: parts.Scratch.Path()})
	c.onClose(func() error { return x.Close(ctx) })
	options := execute.Options{Images: img, Snapshots: c.layers, Limits: confined.Limits, IDs: confined.IDs}
	c.job = x.Job(&session.Session{Warn: o.Warn}, options)
	c.onClose(c.job.Close)
	return nil
}

// prepare makes the container's root file system and network.
func (c *Container) prepare(ctx context.Context, op llb.Exec, img *source, name string, s *events.Stream) error {
	root, err := c.root(ctx, llb.Image{Ref: name, Digest: img.Digest.String()}, img, s)
	if err == nil {
		c.prepared, err = c.job.Prepare(ctx, work.Exec{Op: op, Platform: c.Platform.String(), In: []solver.Ref{root}})
	}
	if c.unpacked != nil {
		c.unpacked(err)
	}
	if err == nil {
		c.onClose(func() error { c.prepared.Close(); return nil })
	}
	return err
}

// publish publishes ports of the container.
func (c *Container) publish(ctx context.Context, ports []network.Port) error {
	if len(ports) == 0 {
		return nil
	}
	published, err := c.prepared.Network().Publish(ports)
	if err != nil {
		return err
	}
	c.onClose(func() error { published.Close(ctx); return nil })
	c.Ports = published.Ports
	return nil
}

// Run runs the program to its end, and returns how it ended. It can be called once. Signals are sent to the program, and may be nil. Errors
// are those of sandbox.Run: a *sandbox.ExecError if the program could not be executed, for which the status has the exit status.
func (c *Container) Run(ctx context.Context, stdio sandbox.Stdio, signals <-chan syscall.Signal) (sandbox.Status, error) {
	c.prepared.Spec.Stdio, c.prepared.Spec.Process.Signals = stdio, signals
	status, err := c.prepared.Process(ctx)
	if err != nil {
		return status, fmt.Errorf("run the container: %w", err)
	}
	return status, nil
}

// Close lets go of everything, and removes what the program wrote.
func (c *Container) Close() error {
	var err error
	for _, f := range slices.Backward(c.closers) {
		err = errors.Join(err, f())
	}
	c.closers = nil
	return err
}
