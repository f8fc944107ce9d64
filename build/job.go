package build

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/kilnbuild/kiln/build/attesting"
	"github.com/kilnbuild/kiln/build/bases"
	"github.com/kilnbuild/kiln/build/caching"
	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/build/early"
	"github.com/kilnbuild/kiln/build/outputs"
	"github.com/kilnbuild/kiln/build/reproduce"
	"github.com/kilnbuild/kiln/build/scanning"
	"github.com/kilnbuild/kiln/build/sources"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/frontend/lint"
	"github.com/kilnbuild/kiln/history"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/internal/resolved"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/execute"
	"github.com/kilnbuild/kiln/solver/explain"
	"github.com/kilnbuild/kiln/solver/session"
	"github.com/kilnbuild/kiln/store"
	"github.com/kilnbuild/kiln/store/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// parallelism is how many steps of a job are worked on at once. Most wait for processes and disks; what is heavy on the processors
// inside kiln limits itself to their number.
const parallelism = 64

// Build builds an image and does what the options say with it; s is told what happens, from events.Build to events.Done, and may be nil.
// The error of a Dockerfile that is wrong is an *input.Error or a *parser.Error, that of a step a *solver.VertexError. The Result is never
// nil.
func (b *Builder) Build(ctx context.Context, o Options, s *events.Stream) (*Result, error) {
	j, err := b.Begin(o, s)
	if err != nil {
		return &Result{}, err
	}
	return j.Run(ctx)
}

// Job is one build. It has a session of its own: what its client provides, and who is told what happens. Any number of jobs use one Builder
// at the same time. What a command line asks for is done by Run. A server calls Do, and in there Lower for each Dockerfile, Solve and Files
// for what its client wants to see meanwhile, and Export for the result; these may be called from several goroutines, but for Export.
type Job struct {
	builder *Builder
	work    *store.Work
	options Options
	events  *events.Stream

	plans   []outputs.Plan // what is to be done with the result
	session *session.Session
	open    *contexts.Opened
	sources *sources.Sources
	bases   *bases.Bases
	steps   *steps
	store   *cas.Store
	layers  *snapshot.Job
	blobs   *exporter.Blobs
	caches  *caching.Caches
	explain explain.Explainer
	// attester makes the attestations of what is built.
	attester attesting.Attester
	// sharedProc says that RUN sees kiln's own /proc.
	sharedProc bool

	// product is what is exported, and chains are its root file systems.
	product *Product
	chains  []solver.Ref

	closers []func(context.Context) error
}

// Begin begins a build, after checking as much of the options as can be checked without reading anything: an error is an *input.Error if
// they are invalid. Run or Close must be called. s may be nil.
func (b *Builder) Begin(o Options, s *events.Stream) (_ *Job, err error) {
	work, err := b.root.Work()
	if err != nil {
		return nil, err
	}
	known := resolved.In(b.root.Dir(), work.Scratch.Path())
	b, release := b.as(&o.Client, known)
	if s == nil {
		s = events.New() // the history wants to know
	}
	j := &Job{builder: b, work: work, options: o, events: s, store: b.root.Images.Job()}
	j.sources = sources.New(sources.Config{
		Pins: o.Pins, Store: b.store, Default: b.locked, Pull: o.Cache.Pull, First: o.Cache.AskFirst,
		TextOnly: o.Call == CallTargets, Relock: o.Call == CallLock,
	})
	j.onClose(func(context.Context) error { release(); return nil })
	j.onClose(func(context.Context) error { return j.store.Release() })
	c := &j.options.Cache
	j.options.Run.Reproducible = o.Reproducible != nil && *o.Reproducible || o.Reproducible == nil && b.reproducible
	c.FreshMounts, c.Off = c.FreshMounts || j.options.Run.Reproducible, c.Off || c.Twice
	if j.options.Run.Reproducible {
		j.options.Export.Attest = o.Export.Attest.Anonymously()
	}
	o = j.options
	if err := reproduce.CheckCaches(o.Run.Reproducible, c.Twice, c.Verify, c.From, c.To); err != nil {
		return nil, err
	}
	names, err := outputs.FullNames(o.Export.Tags)
	if err != nil {
		return nil, &input.Error{Err: err}
	}
	if j.plans, err = o.Export.Plan(names, o.Run.Reproducible); err != nil {
		return nil, &input.Error{Err: err}
	}
	if !o.Later {
		if err := outputs.CheckPlatforms(j.plans, o.Target.Platforms); err != nil {
			return nil, &input.Error{Err: err}
		}
	}
	j.attester = attesting.Attester{Options: &j.options.Export.Attest, Build: j.described, Scan: j.scan, View: j.view}
	if s := o.Export.Attest.SBOM; s != nil {
		if err := scanning.Check(s); err != nil {
			return nil, err
		}
	}
	run, err := b.defaults.Confine(o.Run.Request)
	if err != nil {
		return nil, err
	}
	j.layers = work.Layers.Job()
	j.onClose(j.end)
	if j.caches, err = caching.Open(caching.Config{
		From: o.Cache.From, To: o.Cache.To, Later: o.Later, Client: b.client, Local: work.Records, Layers: j.layers, Store: j.store, Events: s,
		Root: b.root.Dir(), Tmp: work.Scratch.Path(),
	}); err != nil {
		return nil, &input.Error{Err: err}
	}
	j.onClose(func(context.Context) error { return j.caches.Close() })
	j.blobs = &exporter.Blobs{Store: j.store, Layers: j.caches}
	if j.caches.Embeds() && !slices.ContainsFunc(j.plans, outputs.Plan.IsImage) {
		s.Warn("--cache-to type=inline writes the cache into an image, and no output is one")
	}
	j.sharedProc = run.SharedProc
	j.onClose(func(context.Context) error { run.Close(); return nil })
	j.open = contexts.NewOpened(o.Client.Locals)
	j.onClose(func(context.Context) error { j.open.Close(); return nil })
	j.session = &session.Session{
		Secrets: o.Client.Secrets, Agents: o.Client.Agents, Uploads: o.Client.Uploads, Allow: o.Client.Allow,
		Elsewhere: o.Client.Credentials != nil, Locals: j.open, Warn: s.Warn, FreshCaches: o.Cache.FreshMounts, FreshUncached: o.Later,
	}
	if o.Debug {
		j.session.Note = s.Warn
	}
	j.bases = bases.New(j.store, b.client, known, j.sources.Pull(), j.sources, j.caches.Document, s)
	j.bases.Stores = o.Client.Stores
	j.onClose(func(context.Context) error { j.bases.Close(); return nil })
	j.explain = explain.Explainer{Layers: j.layers, BuildArgs: o.Target.Args, IsSecret: lint.IsSecretName}
	j.steps = b.steps(j, execute.Options{
		Images: j.bases, Blobs: j.bases, Cached: j.caches.Elsewhere(), CacheMounts: j.caches.Mounts(),
		Limit: o.Source.HostLimit(), Limits: run.Limits, Timeout: run.Timeout, IDs: run.IDs,
		KeepFailed: o.OnFailure != nil, NoDevices: o.Later, KeepLeft: o.Later,
	})
	j.onClose(j.steps.end)
	j.explain.Tree = j.steps.layer
	j.caches.Bring, j.caches.Documents, j.caches.Bases = j.steps.Bring, j.bases.Documents, j.steps.ImageLayers
	if o.Export.Attest.SBOM != nil {
		j.attester.Scanning = j.scanner()
	}
	return j, nil
}

// Import has what is solved from now on use further caches. Errors say what is wrong with all.
func (j *Job) Import(all []caching.Spec) error { return j.caches.Import(all) }

// onClose has f called by Close, before those that were given earlier.
func (j *Job) onClose(f func(context.Context) error) { j.closers = append(j.closers, f) }

// Close ends the job: no step of it runs any more, and what it held is free. When ctx ends, what steps have sent is no longer waited for.
func (j *Job) Close(ctx context.Context) error {
	var err error
	for i := len(j.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, j.closers[i](ctx))
	}
	j.closers = nil
	return err
}

// end makes room in the root directory, where that is asked for, and lets the layers of the build go, which stay until then.
func (j *Job) end(ctx context.Context) error {
	if ctx.Err() == nil && j.options.Call == CallBuild {
		if err := j.builder.root.Collect(ctx); err != nil {
			j.events.Warn("the build is over, and making room after it failed: " + err.Error())
		}
	}
	return j.layers.Close()
}

// Run does what the options ask for, tells the stream, records the build in the history, and closes the job.
func (j *Job) Run(ctx context.Context) (*Result, error) {
	r := j.options.request()
	return j.Do(ctx, &r, func(ctx context.Context, res *Result) (err error) {
		if r.Call == CallBuild {
			if err := j.Prepare(ctx, len(r.Target.Platforms)); err != nil {
				return err
			}
			j.attester.Describe(ctx, r.Source.Dir(), j.options.Export.MetadataProvenance != "")
			var end func(error) error
			ctx, end = j.ask(ctx)
			defer func() { err = end(err) }()
		}
		p, err := j.Lower(ctx, &r, res)
		if err != nil {
			p, err = j.foreign(ctx, &r, res, err)
		}
		if err != nil || r.Call != CallBuild {
			return err
		}
		return j.export(ctx, p, res)
	})
}

// Do does the work of a job, between the events that begin and end the stream; r says what the build is called there. It records the build
// in the history, and closes the job. What work finds out goes into the Result, which is never nil.
func (j *Job) Do(ctx context.Context, r *Request, work func(ctx context.Context, res *Result) error) (*Result, error) {
	o := &j.options
	begin := events.Build{
		Version: events.Version, Context: r.Source.Project(), Dockerfile: remoteurl.WithoutUser(r.Source.Dockerfile), Target: r.Target.Stage,
		Names: o.Export.Tags, Explain: o.Explain,
	}
	for _, p := range r.Target.Platforms {
		begin.Platforms = append(begin.Platforms, p.String())
	}
	end := func() {}
	if r.Call == CallBuild && !r.Unrecorded {
		begin.ID, end = record(j.work.History, o.Debug, j.events)
	}
	j.events.Emit(begin)
	j.attester.ID, j.attester.Started = begin.ID, time.Now()
	res := &Result{id: begin.ID, made: map[int]ocispec.Descriptor{}}
	if note := userns.Note(); note != "" && r.Call == CallBuild {
		j.events.Warn(note)
	}
	err := j.sources.Explain(work(ctx, res))
	res.Materials = j.sources.Materials()
	err = errors.Join(err, j.Close(ctx))
	done := events.Done{Digest: res.Digest, Image: res.ImageID, Names: res.Names, Layers: res.layers}
	done.Canceled, done.Error = events.Outcome(err)
	j.events.Emit(done)
	end()
	return res, err
}

// Prepare finds the engines that images for so many platforms go into. The error is an *input.Error.
func (j *Job) Prepare(ctx context.Context, platforms int) error {
	return outputs.FindEngines(ctx, j.plans, platforms, j.work.Scratch.Path(), j.events.Warn)
}

// ask asks registries whether they would take what is going to be pushed. Steps wait for the answer, as end does, which is called with the
// error of the build.
func (j *Job) ask(ctx context.Context) (asked context.Context, end func(error) error) {
	ctx, j.session.MayRun, end = images.AskPush(ctx, j.builder.client, outputs.Pushed(j.plans))
	return ctx, end
}

// AddOutputs adds to what is done with the result, before Export is called. The error is an *input.Error.
func (j *Job) AddOutputs(all []Output) error {
	if len(all) == 0 {
		return nil
	}
	x := j.options.Export
	x.Outputs = all
	names, err := outputs.FullNames(x.Tags)
	if err != nil {
		return &input.Error{Err: err}
	}
	plans, err := x.Plan(names, j.options.Run.Reproducible)
	if err != nil {
		return &input.Error{Err: err}
	}
	j.plans = append(slices.DeleteFunc(j.plans, func(p outputs.Plan) bool { return p.Type == OutputCacheOnly }), plans...)
	return nil
}

// Export makes the root file systems of a product, which need not have been solved, and does with the images what the job's options ask
// for. It is called once, as the last.
func (j *Job) Export(ctx context.Context, p *Product, res *Result) (err error) {
	if err := j.complete(ctx, p); err != nil {
		return err
	}
	ctx, end := j.ask(ctx)
	defer func() { err = end(err) }()
	return j.export(ctx, p, res)
}

// complete has the outputs get what the maker of a product says of it, and finds their engines. The error is an *input.Error.
func (j *Job) complete(ctx context.Context, p *Product) error {
	if err := outputs.Apply(j.plans, &p.Given); err != nil {
		return &input.Error{Err: err}
	}
	if j.attester.Given = p.Given.Attestations; p.Given.SBOM() {
		j.attester.Scanning = nil
	}
	platforms := make([]llb.Platform, len(p.Images))
	for i := range p.Images {
		platforms[i] = p.Images[i].Platform
	}
	if err := outputs.CheckPlatforms(j.plans, platforms); err != nil {
		return &input.Error{Err: err}
	}
	return j.Prepare(ctx, len(platforms))
}

func (j *Job) export(ctx context.Context, p *Product, res *Result) error {
	j.product = p
	if err := reproduce.CheckHost(j.options.Run.Reproducible, p.Images); err != nil {
		return err
	}
	if err := j.attester.CheckComplete(); err != nil {
		return err
	}
	if err := j.attester.Scanning.Resolve(ctx); err != nil {
		return err
	}
	j.caches.Declare(j.roots())
	solve := func(ctx context.Context) error { return j.solve(ctx, res) }
	return j.caches.Build(ctx, solve, func(ctx context.Context) error { return j.write(ctx, res) })
}

// roots are the root file systems of the images.
func (j *Job) roots() []llb.Output {
	roots := make([]llb.Output, len(j.product.Images))
	for i, img := range j.product.Images {
		roots[i] = img.Root
	}
	return roots
}

// solve does the steps, and makes blobs of their layers meanwhile.
func (j *Job) solve(ctx context.Context, res *Result) error {
	outputs.Date(j.plans, j.product.Epoch, j.events.Warn)
	roots := j.roots()
	demand := j.steps.pack(j.plans)
	all := j.attester.Scanning.With(roots, j.product.Images)
	j.session.Selected = llb.Selections(all)
	j.open.Need(all)
	j.steps.Ahead(roots, func(v *llb.Vertex) bool {
		_, same := j.work.Records.Last(v)
		return same || j.caches.Importing()
	})
	again := &reproduce.Steps{}
	j.events.Attach(again)
	ctx, cancel := context.WithCancel(ctx)
	j.caches.Publishing(early.InImage(roots))
	ahead := early.New(ctx, j.blobs, roots, outputs.Forms(j.plans))
	j.events.Attach(ahead)
	j.onClose(func(context.Context) error {
		j.events.Detach(ahead)
		cancel()
		ahead.Wait()
		return nil
	})
	options := j.solving()
	options.Demand, options.Parallelism, options.Verify, options.Twice = demand, parallelism, j.options.Cache.Verify, j.options.Cache.Twice
	chains, err := solver.Solve(ctx, j.attester.Way(roots, j.product.Images), options)
	j.chains = j.attester.Solved(chains)
	j.events.Detach(again)
	res.Verified, res.Twice = again.All(), options.Twice
	if err != nil {
		j.failed(ctx, res, err)
	} else if options.Twice {
		return reproduce.Same(res.Verified)
	}
	return err
}

// solving returns how the solver works for the job, one step at a time.
func (j *Job) solving() solver.Options {
	return solver.Options{
		Cache: j.caches.Solver(), Planner: j.steps.Planner, Executor: j.steps.Job, Events: j.events, Explain: j.explain, Files: j.options.Explain,
		Parallelism: 1,
	}
}

// record puts the events of a stream into the history, until end is called, under an ID. That a build cannot be recorded is no failure of
// the build.
func record(h *history.History, debug bool, s *events.Stream) (id string, end func()) {
	r := h.Begin()
	s.Attach(r)
	return r.ID(), func() {
		s.Detach(r)
		if err := r.Close(); err != nil && debug {
			s.Warn(err.Error())
		}
	}
}
