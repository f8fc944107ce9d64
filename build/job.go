package build

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/kilnbuild/kiln/build/attesting"
	"github.com/kilnbuild/kiln/build/bases"
	"github.com/kilnbuild/kiln/build/caching"
	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/build/early"
	"github.com/kilnbuild/kiln/build/reproduce"
	"github.com/kilnbuild/kiln/build/scanning"
	"github.com/kilnbuild/kiln/build/sources"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/frontend"
	"github.com/kilnbuild/kiln/frontend/lint"
	"github.com/kilnbuild/kiln/history"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/layer"
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
// at the same time.
type Job struct {
	builder *Builder
	work    *store.Work
	options Options
	events  *events.Stream

	plans   []output // what is to be done with the result
	session *session.Session
	loader  *contexts.Loader
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

	lowered *frontend.Result
	chains  []solver.Ref // of lowered.Images

	closers []func(context.Context) error
}

// Begin begins a build, after checking as much of the options as can be checked without reading anything: an error is an *input.Error if
// they are invalid. Run or Close must be called. s may be nil.
func (b *Builder) Begin(o Options, s *events.Stream) (_ *Job, err error) {
	b, release := b.as(&o.Client)
	work, err := b.root.Work()
	if err != nil {
		return nil, err
	}
	if s == nil {
		s = events.New() // the history wants to know
	}
	j := &Job{builder: b, work: work, options: o, events: s, store: b.root.Images.Job()}
	j.sources = sources.New(sources.Config{
		Pins: o.Pins, Store: b.store, Default: b.locked, Pull: o.Cache.Pull, TextOnly: o.Call == CallTargets, Relock: o.Call == CallLock,
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
	names, err := fullNames(o.Export.Tags)
	if err != nil {
		return nil, &input.Error{Err: err}
	}
	if j.plans, err = o.Export.plan(names, o.Target.Platforms, o.Run.Reproducible); err != nil {
		return nil, &input.Error{Err: err}
	}
	j.attester = attesting.Attester{Options: &j.options.Export.Attest, Build: j.described, Scan: j.scan}
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
		From: o.Cache.From, To: o.Cache.To, Client: b.client, Local: work.Records, Layers: j.layers, Store: j.store, Events: s,
		Root: b.root.Dir(), Tmp: work.Scratch.Path(),
	}); err != nil {
		return nil, &input.Error{Err: err}
	}
	j.onClose(func(context.Context) error { return j.caches.Close() })
	j.blobs = &exporter.Blobs{Store: j.store, Layers: j.caches}
	if j.caches.Embeds() && !slices.ContainsFunc(j.plans, output.image) {
		s.Warn("--cache-to type=inline writes the cache into an image, and no output is one")
	}
	j.sharedProc = run.SharedProc
	j.onClose(func(context.Context) error { run.Close(); return nil })
	open := &contexts.Contexts{Trees: map[string]layer.Tree{}}
	j.onClose(func(context.Context) error { open.Close(); return nil })
	j.session = &session.Session{
		Secrets: o.Client.Secrets, Agents: o.Client.Agents, Allow: o.Client.Allow,
		Locals: session.Trees(open.Trees), Warn: s.Warn, FreshCaches: o.Cache.FreshMounts,
	}
	if o.Debug {
		j.session.Note = s.Warn
	}
	j.bases = bases.New(j.store, b.client, resolved.In(b.root.Dir(), work.Scratch.Path()), j.sources.Pull(), j.sources, s)
	j.onClose(func(context.Context) error { j.bases.Close(); return nil })
	j.explain = explain.Explainer{Layers: j.layers, BuildArgs: o.Target.Args, IsSecret: lint.IsSecretName}
	j.steps = b.steps(j, execute.Options{
		Images: j.bases, Cached: j.caches.Elsewhere(), CacheMounts: j.caches.Mounts(),
		Limit: o.Source.HostLimit(), Limits: run.Limits, Timeout: run.Timeout, IDs: run.IDs,
		KeepFailed: o.OnFailure != nil,
	})
	j.onClose(j.steps.end)
	j.explain.Tree = j.steps.layer
	j.caches.Bring = j.steps.Bring
	if o.Export.Attest.SBOM != nil {
		j.attester.Scanning = j.scanner()
	}
	keep, _ := strconv.ParseBool(o.Target.Args["BUILDKIT_CONTEXT_KEEP_GIT_DIR"]) // what is no boolean is false, as for BuildKit
	j.loader = &contexts.Loader{
		Source: o.Source, Steps: j.steps, Root: b.root.Dir(), Tmp: work.Scratch.Path(), KeepGitDir: keep, Warn: s.Warn, Open: open,
		Reading: readingContext, Admit: j.sources.Admit, Lock: j.sources.LockRule(),
		Canonical: o.Run.Reproducible,
	}
	return j, nil
}

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
	o := &j.options
	begin := events.Build{
		Version: events.Version, Context: o.Source.Project(), Dockerfile: remoteurl.WithoutUser(o.Source.Dockerfile), Target: o.Target.Stage,
		Names: o.Export.Tags, Explain: o.Explain,
	}
	for _, p := range o.Target.Platforms {
		begin.Platforms = append(begin.Platforms, p.String())
	}
	end := func() {}
	if o.Call == CallBuild {
		begin.ID, end = record(j.work.History, o.Debug, j.events)
	}
	j.events.Emit(begin)
	j.attester.ID, j.attester.Started = begin.ID, time.Now()
	res := &Result{id: begin.ID}
	err := j.sources.Explain(j.run(ctx, res))
	res.Materials = j.sources.Materials()
	err = errors.Join(err, j.Close(ctx))
	done := events.Done{Digest: res.Digest, Image: res.ImageID, Names: res.Names, Layers: res.layers}
	done.Canceled, done.Error = events.Outcome(err)
	j.events.Emit(done)
	end()
	return res, err
}

func (j *Job) run(ctx context.Context, res *Result) (err error) {
	if note := userns.Note(); note != "" && j.options.Call == CallBuild {
		j.events.Warn(note)
	}
	if j.options.Call == CallBuild {
		if err := j.prepare(ctx); err != nil {
			return err
		}
		j.attester.Describe(ctx, j.options.Source.Dir(), j.options.Export.MetadataProvenance != "")
	}
	if err := j.loader.Load(ctx); err != nil {
		return err
	}
	res.Dockerfile, res.DockerfileName = j.loader.Open.Dockerfile, j.loader.Open.Name
	if err := j.sources.ReadLock(j.loader.Open.Lock); err != nil {
		return err
	}
	switch j.options.Call {
	case CallOutline:
		res.Outline, err = frontend.DescribeTarget(ctx, res.Dockerfile, j.lowering(), j.bases)
		return err
	case CallTargets:
		res.Targets, err = frontend.ListTargets(ctx, res.Dockerfile, j.lowering())
		return err
	case CallCheck:
		return j.lower(ctx, res)
	case CallLock:
		if err = j.lower(ctx, res); err == nil {
			res.Lock, err = j.sources.Relocked(ctx, j.steps.Sources, j.events)
		}
		return err
	}
	ctx, mayRun, end := images.AskPush(ctx, j.builder.client, pushed(j.plans))
	j.session.MayRun = mayRun
	defer func() { err = end(err) }()
	if err := j.lower(ctx, res); err != nil {
		return err
	}
	if err := reproduce.CheckHost(j.options.Run.Reproducible, j.lowered.Images); err != nil {
		return err
	}
	if err := j.attester.CheckComplete(); err != nil {
		return err
	}
	if err := j.attester.Scanning.Resolve(ctx); err != nil {
		return err
	}
	j.caches.Declare(j.roots())
	return j.caches.Build(ctx, func(ctx context.Context) error { return j.solve(ctx, res) }, func(ctx context.Context) error { return j.export(ctx, res) })
}

// lowering returns how the Dockerfile is lowered.
func (j *Job) lowering() frontend.Options {
	o := &j.options
	f := frontend.Options{
		Filename: j.loader.Open.Name, Project: o.Source.Project(), Target: o.Target.Stage, BuildArgs: o.Target.Args, Labels: o.Target.Labels,
		Platforms: o.Target.Platforms, BuildPlatform: llb.Host(),
		NoCache: o.Cache.Off, NoCacheFilter: o.Cache.OffFor, NamedContexts: o.Source.Named,
		Network: o.Run.Network, RunOptions: o.Run.RunOptions,
		Allow: o.Client.Allow, Ignore: j.loader.Open.Ignore, Source: j.sources.Source,
		AllStages: o.Call == CallCheck || o.Call == CallLock && o.Target.Stage == "",
	}
	if o.Call == CallLock { // nothing runs
		f.Allow = []string{"network.host", "security.insecure", "device"}
	} else if j.sharedProc {
		f.NoInsecure = "with --no-process-sandbox a privileged step could change the processes of kiln and of other steps"
	}
	if o.Call == CallBuild {
		// Nothing is fetched to look at a Dockerfile.
		f.SourceTime = j.loader.SourceTime
		if o.Run.Reproducible {
			f.CommitTime = j.loader.CommitTime
		}
	}
	return f
}

// lower makes the graph.
func (j *Job) lower(ctx context.Context, res *Result) (err error) {
	j.lowered, err = frontend.Build(ctx, res.Dockerfile, j.lowering(), j.bases)
	if j.lowered == nil {
		return err
	}
	known := j.known()
	for _, w := range j.lowered.Warnings {
		j.events.Emit(events.Warning{Rule: w.Rule, Text: events.Text(w.Msg), Detail: w.Description, URL: w.URL, Location: w.Location})
		res.Warnings = append(res.Warnings, Warning{
			Rule: w.Rule, Message: w.Msg, Description: w.Description, URL: w.URL, Location: w.Location, Advice: lint.IsAdvice(w.Rule),
			Known: known[ruleAndText{w.Rule, events.Text(w.Msg)}],
		})
	}
	return err
}

// ruleAndText is what makes a warning the same as that of another build, wherever in the Dockerfile it is.
type ruleAndText struct{ rule, text string }

// known returns the warnings of the last build of the Dockerfile, unless there is nothing to compare them with.
func (j *Job) known() map[ruleAndText]bool {
	if j.options.Call != CallBuild || len(j.lowered.Warnings) == 0 {
		return nil
	}
	known := map[ruleAndText]bool{}
	for _, w := range j.work.History.LastWarnings(j.options.Source.Project(), remoteurl.WithoutUser(j.options.Source.Dockerfile)) {
		known[ruleAndText{w.Rule, w.Text}] = true
	}
	return known
}

// roots are the root file systems of the images.
func (j *Job) roots() []llb.Output {
	roots := make([]llb.Output, len(j.lowered.Images))
	for i, img := range j.lowered.Images {
		roots[i] = img.Root
	}
	return roots
}

// solve does the steps, and makes blobs of their layers meanwhile.
func (j *Job) solve(ctx context.Context, res *Result) error {
	date(j.plans, j.lowered.Epoch, j.events.Warn)
	roots := j.roots()
	demand := j.steps.pack(j.plans)
	j.session.Selected = llb.Selections(j.attester.Scanning.With(roots, j.lowered.Images))
	j.steps.Ahead(roots, func(v *llb.Vertex) bool {
		_, same := j.work.Records.Last(v)
		return same || j.caches.Importing()
	})
	again := &reproduce.Steps{}
	j.events.Attach(again)
	ctx, cancel := context.WithCancel(ctx)
	j.caches.Publishing(early.InImage(roots))
	ahead := early.New(ctx, j.blobs, roots, forms(j.plans))
	j.events.Attach(ahead)
	j.onClose(func(context.Context) error {
		j.events.Detach(ahead)
		cancel()
		ahead.Wait()
		return nil
	})
	options := j.solving()
	options.Demand, options.Parallelism, options.Verify, options.Twice = demand, parallelism, j.options.Cache.Verify, j.options.Cache.Twice
	var err error
	j.chains, err = solver.Solve(ctx, roots, options)
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
