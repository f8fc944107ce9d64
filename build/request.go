package build

import (
	"context"
	"strconv"

	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/build/outputs"
	"github.com/kilnbuild/kiln/build/provenance"
	"github.com/kilnbuild/kiln/build/sources"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/frontend"
	"github.com/kilnbuild/kiln/frontend/lint"
	"github.com/kilnbuild/kiln/frontend/source"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
)

// Request asks for what a Dockerfile describes. A job may have several.
type Request struct {
	Source contexts.Source
	Target Target
	Call   Call
	// Unrecorded keeps the build out of the history.
	Unrecorded bool
	// NoCache makes every step run, and NoCacheFor those of the stages that it names.
	NoCache    bool
	NoCacheFor []string
	// Network is that of steps whose RUN names none, and RunOptions go into the graph as they are.
	Network llb.Network
	llb.RunOptions
	source.Elsewhere
	// VCS describes the working copy that the context is, if the client knows: "source", "revision".
	VCS map[string]string
}

// request returns what the options say of a Dockerfile.
func (o *Options) request() Request {
	return Request{
		Source: o.Source, Target: o.Target, Call: o.Call, NoCache: o.Cache.Off, NoCacheFor: o.Cache.OffFor,
		Network: o.Run.Network, RunOptions: o.Run.RunOptions,
	}
}

// Product is what a job exports: what a Dockerfile was lowered to, or images from elsewhere.
type Product struct {
	frontend.Result
	// Given is what its maker says of it besides.
	Given outputs.Given
	// Request is what the images were made for; nil for images that no Dockerfile describes.
	Request *Request
	// Dockerfile is the text, and Name what errors call it.
	Dockerfile []byte
	Name       string
	// API says how a client of BuildKit's API asked for it; nil if none did.
	API *provenance.API
}

// loader returns what brings in the contexts of a request.
func (j *Job) loader(r *Request) *contexts.Loader {
	open, session := j.open.Begin()
	keep, _ := strconv.ParseBool(r.Target.Args["BUILDKIT_CONTEXT_KEEP_GIT_DIR"]) // what is no boolean is false, as for BuildKit
	lock := j.sources.LockRule()
	if r.Source.Given != nil && !j.options.Later {
		lock = contexts.NoLock // it has been read with the Dockerfile of the user
	}
	return &contexts.Loader{
		Source: r.Source, Steps: j.steps, Root: j.builder.root.Dir(), Tmp: j.work.Scratch.Path(), KeepGitDir: keep,
		GitAdvice: source.GitAdvice(r.Target.Args), Warn: j.events.Warn, Open: open, Session: session, Reading: readingContext,
		Admit: j.sources.Admit, Lock: lock, Canonical: j.options.Run.Reproducible,
	}
}

// Lower makes the graph of a Dockerfile, or describes it, as the request says. The Result gets what is found out, also where there is an
// error; the Product is nil then, or if nothing is to be built.
func (j *Job) Lower(ctx context.Context, r *Request, res *Result) (*Product, error) {
	loader := j.loader(r)
	if err := loader.Load(ctx); err != nil {
		return nil, err
	}
	res.Dockerfile, res.DockerfileName = loader.Open.Dockerfile, loader.Open.Name
	var err error
	if loader.Lock != contexts.NoLock {
		err = j.sources.ReadLock(loader.Open.Lock)
	}
	if err != nil {
		return nil, err
	}
	switch r.Call {
	case CallOutline:
		res.Outline, err = frontend.DescribeTarget(ctx, res.Dockerfile, j.lowering(r, loader), j.bases)
		return nil, err
	case CallTargets:
		res.Targets, err = frontend.ListTargets(ctx, res.Dockerfile, j.lowering(r, loader))
		return nil, err
	}
	p := &Product{Request: r, Dockerfile: res.Dockerfile, Name: res.DockerfileName}
	lowered, err := frontend.Build(ctx, res.Dockerfile, j.lowering(r, loader), j.bases)
	if lowered != nil {
		p.Result = *lowered
		j.warned(r, p, res)
	}
	if err == nil && r.Call == CallLock {
		res.Lock, err = j.sources.Relocked(ctx, j.steps.Sources, j.events)
	}
	if err != nil || r.Call != CallBuild {
		return nil, err
	}
	return p, nil
}

// Doing does work of the job that is no step, and shows it in a group, "internal", as the text says.
func (j *Job) Doing(ctx context.Context, group, text string, work func(context.Context) error) error {
	task := j.events.Task(llb.Place{Group: group}, text)
	err := work(events.With(ctx, task))
	task.Done(err)
	return err
}

// lowering returns how a Dockerfile is lowered.
func (j *Job) lowering(r *Request, loader *contexts.Loader) frontend.Options {
	o := &j.options
	f := frontend.Options{
		Filename: loader.Open.Name, Project: r.Source.Project(), Target: r.Target.Stage, BuildArgs: r.Target.Args, Labels: r.Target.Labels,
		Platforms: r.Target.Platforms, BuildPlatform: llb.Host(),
		NoCache: r.NoCache, NoCacheFilter: r.NoCacheFor, NamedContexts: r.Source.Named,
		Elsewhere: r.Elsewhere,
		Network:   r.Network, RunOptions: r.RunOptions,
		Allow: o.Client.Allow, Ignore: loader.Open.Ignore, Source: j.sources.Source,
		AllStages: r.Call == CallCheck || r.Call == CallLock,
	}
	if !r.Source.Local() && loader.Session != "" {
		f.Elsewhere.Local = func(name string) llb.Local {
			if name == contexts.Main {
				return llb.Local{Name: name, Session: loader.Session}
			}
			return r.Directory(name)
		}
	}
	if r.Call == CallLock { // nothing runs
		f.Allow = []string{"network.host", "security.insecure", "device"}
	} else {
		f.NoInsecure = j.NoInsecure()
	}
	if r.Call == CallBuild {
		// Nothing is fetched to look at a Dockerfile.
		f.SourceTime = loader.SourceTime
		if o.Run.Reproducible {
			f.CommitTime = loader.CommitTime
		}
	}
	return f
}

// warned reports the warnings of a Dockerfile.
func (j *Job) warned(r *Request, p *Product, res *Result) {
	known := j.known(r, p)
	for _, w := range p.Warnings {
		j.events.Emit(events.Warning{Rule: w.Rule, Text: events.Text(w.Msg), Detail: w.Description, URL: w.URL, Location: w.Location})
		res.Warnings = append(res.Warnings, Warning{
			Rule: w.Rule, Message: w.Msg, Description: w.Description, URL: w.URL, Location: w.Location, Advice: lint.IsAdvice(w.Rule),
			Known: known[ruleAndText{w.Rule, events.Text(w.Msg)}],
		})
	}
}

// ruleAndText is what makes a warning the same as that of another build, wherever in the Dockerfile it is.
type ruleAndText struct{ rule, text string }

// known returns the warnings of the last build of the Dockerfile, unless there is nothing to compare them with.
func (j *Job) known(r *Request, p *Product) map[ruleAndText]bool {
	if r.Call != CallBuild || len(p.Warnings) == 0 {
		return nil
	}
	known := map[ruleAndText]bool{}
	for _, w := range j.work.History.LastWarnings(r.Source.Project(), remoteurl.WithoutUser(r.Source.Dockerfile)) {
		known[ruleAndText{w.Rule, w.Text}] = true
	}
	return known
}

// Solve makes root file systems, whatever becomes of them.
func (j *Job) Solve(ctx context.Context, roots ...llb.Output) ([]solver.Ref, error) {
	o := j.solving()
	o.Parallelism = parallelism
	j.open.Need(roots)
	return solver.Solve(ctx, roots, o)
}

// Sources returns what says which sources the build may use.
func (j *Job) Sources() *sources.Sources { return j.sources }

// NoInsecure returns why no step may be privileged, whatever is allowed; "" if it may.
func (j *Job) NoInsecure() string {
	if j.sharedProc {
		return "with --no-process-sandbox a privileged step could change the processes of kiln and of other steps"
	}
	return ""
}

// Files returns the files of a root file system, which are there until the job ends.
func (j *Job) Files(ctx context.Context, r solver.Ref) (layer.Tree, error) {
	return j.steps.Files(ctx, r)
}
