package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"crypto/sha256"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/frontend"
	"github.com/kilnbuild/kiln/frontend/lint"
	"github.com/kilnbuild/kiln/frontend/source"
	"github.com/kilnbuild/kiln/history"
	"github.com/kilnbuild/kiln/internal/ignore"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/localdir"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/execute"
	"github.com/kilnbuild/kiln/solver/explain"
	"github.com/kilnbuild/kiln/solver/session"
	"github.com/kilnbuild/kiln/store"
	"github.com/kilnbuild/kiln/store/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Result is what a build made.
type Result struct {
	// ImageID is the digest of the image's config, or for several platforms that of the index; "" where no image was made.
	ImageID string
	// Digest is that of the manifest or index.
	Digest string
	desc   ocispec.Descriptor
	// Names are the image's names in full.
	Names []string
	// Dockerfile is the text that was built, and DockerfileName what errors call it; empty where the build did not get that far.
	Dockerfile     []byte
	DockerfileName string
	// Warnings are the findings of the checks. A build that failed has those that were found before.
	Warnings []Warning
	// Verified are the steps that ran again for Options.VerifyCache.
	Verified []Verified
	// Outline and Targets are what Options.Describe asked for.
	Outline *Outline
	Targets *TargetList
}

// Verified is a cached step that ran again.
type Verified struct {
	// Step is its progress line.
	Step string
	// Again is what came of it.
	Again events.Again
}

// maxDockerfile bounds a Dockerfile, and maxIgnore a .dockerignore, in bytes: far above any that a person or a generator
// has reason to write.
const (
	maxDockerfile = 16 << 20
	maxIgnore     = 16 << 20
)

// parallelism is how many steps are worked on at once. Most wait for processes and disks; what is heavy on the processors
// inside kiln limits itself to their number.
const parallelism = 64

// Build builds an image and does what o.Outputs says with it; s is told what happens, from events.Build to events.Done. The error of a
// Dockerfile that is wrong is an *input.Error or a *parser.Error, that of a step a *solver.VertexError. The Result is never nil.
func (b *Builder) Build(ctx context.Context, o Options, s *events.Stream) (*Result, error) {
	work, err := b.root.Work()
	if err != nil {
		return &Result{}, err
	}
	begin := events.Build{
		Version: events.Version, Context: projectOf(o), Dockerfile: remoteurl.WithoutUser(o.Dockerfile), Target: o.Target, Names: o.Tags, Explain: o.Explain,
	}
	for _, p := range o.Platforms {
		begin.Platforms = append(begin.Platforms, p.String())
	}
	if s == nil {
		s = events.New() // the history wants to know
	}
	end := func() {}
	if !o.Check && o.Describe == "" {
		begin.ID, end = record(work.History, o, s)
	}
	s.Emit(begin)
	res, err := b.build(ctx, work, o, s)
	done := events.Done{Digest: res.Digest, Image: res.ImageID, Names: res.Names}
	done.Canceled, done.Error = events.Outcome(err)
	s.Emit(done)
	end()
	return res, err
}

func (b *Builder) build(ctx context.Context, work *store.Work, o Options, s *events.Stream) (res *Result, err error) {
	res = &Result{}
	if note := userns.Note(); note != "" && !o.Check && o.Describe == "" {
		s.Warn(note)
	}
	limits, err := b.stepLimits(o)
	if err != nil {
		return res, &input.Error{Err: err}
	}
	ids, closeIDs, err := b.idMap(o)
	if err != nil {
		return res, err
	}
	defer closeIDs()
	sharedProc, err := userns.SharedProc(o.NoProcessSandbox || b.noProcessSandbox)
	if err != nil {
		return res, err
	}
	names, err := fullNames(o.Tags)
	if err != nil {
		return res, &input.Error{Err: err}
	}
	plans, err := b.outputs(o, names)
	if err != nil {
		return res, &input.Error{Err: err}
	}
	locals := &localDirs{trees: map[string]layer.Tree{}, warn: s.Warn}
	defer locals.close()
	bases := newBases(b, o.Pull, s)
	defer bases.Close()
	var note func(string)
	if o.Debug {
		note = s.Warn
	}
	job := &session.Session{Secrets: secrets(o.Secrets), Agents: o.Agents, Local: locals.trees, Allow: o.Allow, Warn: s.Warn, Note: note,
		FreshCaches: o.FreshCaches}
	steps := b.steps(work, sharedProc, job, execute.Options{
		Images: bases, Limit: hostLimit(o), Limits: limits.sandbox, Timeout: limits.timeout, IDs: ids,
	})
	whole := ctx // ctx becomes one that ends with this function
	defer func() { err = errors.Join(err, steps.end(whole)) }()
	project := projectOf(o)
	why := explain.Explainer{Layers: work.Layers, BuildArgs: o.BuildArgs, IsSecret: lint.IsSecretName}
	r := &remote{work: work, steps: steps, events: s, explain: why, files: o.Explain, project: project}
	res.Dockerfile, res.DockerfileName, err = b.contexts(ctx, work, o, r, locals)
	if err != nil {
		return res, err
	}
	options := frontend.Options{
		Filename: res.DockerfileName, Project: project, Target: o.Target, BuildArgs: o.BuildArgs, Labels: o.Labels, Platforms: o.Platforms, BuildPlatform: llb.Host(),
		NoCache: o.NoCache, NoCacheFilter: o.NoCacheFilter, NamedContexts: o.BuildContexts, Network: o.Network, ExtraHosts: o.ExtraHosts,
		Ulimits: o.Ulimits, ShmSize: o.ShmSize, CgroupParent: o.CgroupParent, Allow: o.Allow, Ignore: locals.ignore, AllStages: o.Check,
	}
	if sharedProc {
		options.NoInsecure = "with --no-process-sandbox a privileged step could change the processes of kiln and of other steps"
	}
	if !o.Check && o.Describe == "" {
		// Nothing is fetched to look at a Dockerfile.
		options.SourceTime = r.sourceTime(o)
	}
	switch o.Describe {
	case "outline":
		res.Outline, err = frontend.DescribeTarget(ctx, res.Dockerfile, options, bases)
		return res, err
	case "targets":
		res.Targets, err = frontend.ListTargets(ctx, res.Dockerfile, options)
		return res, err
	}
	if !o.Check {
		var pushed []string
		for _, plan := range plans {
			if plan.Type == OutputRegistry {
				pushed = append(pushed, plan.names...)
			}
		}
		var end func(error) error
		ctx, job.MayRun, end = images.AskPush(ctx, b.client, pushed)
		defer func() { err = end(err) }()
	}
	lowered, err := frontend.Build(ctx, res.Dockerfile, options, bases)
	if lowered != nil {
		for _, w := range lowered.Warnings {
			s.Emit(events.Warning{Rule: w.Rule, Text: events.Text(w.Msg), Detail: w.Description, URL: w.URL, Location: w.Location})
			res.Warnings = append(res.Warnings, Warning{Rule: w.Rule, Message: w.Msg, Description: w.Description, URL: w.URL, Location: w.Location, Advice: lint.IsAdvice(w.Rule)})
		}
	}
	if err != nil || o.Check {
		return res, err
	}
	rewriteTimes(plans, lowered.Epoch, s.Warn)
	roots := make([]llb.Output, len(lowered.Images))
	for i, img := range lowered.Images {
		roots[i] = img.Root
	}
	ctx, cancel := context.WithCancel(ctx)
	blobs := b.root.Blobs()
	demand := steps.pack(blobs, plans)
	job.Selected = llb.Selections(roots)
	early := newEarly(ctx, blobs, roots, plans)
	defer early.wait()
	defer cancel()
	again := &verified{names: map[llb.Digest]string{}}
	s.Attach(early)
	defer s.Detach(early)
	s.Attach(again)
	outputs, err := solver.Solve(ctx, roots, solver.Options{
		Cache: work.Records, Planner: steps.Planner, Executor: steps.Job, Demand: demand, Events: s, Explain: why, Files: o.Explain, Parallelism: parallelism, Verify: o.VerifyCache,
	})
	s.Detach(again)
	res.Verified = again.steps
	if err != nil {
		return res, err
	}
	fin := &finished{builder: b, work: work, blobs: blobs, bases: bases, steps: steps, lowered: lowered, chains: outputs, names: names, events: s}
	return res, fin.export(ctx, o, plans, res)
}

// projectOf returns what tells the steps of one build context from those of another with a Dockerfile of the same name: the directory, or
// the address without credentials.
func projectOf(o Options) string {
	if !isDir(o.ContextDir) {
		address, _, _ := strings.Cut(remoteurl.WithoutUser(o.ContextDir), "#") // a branch or commit makes no other project
		return address
	}
	if abs, err := filepath.Abs(o.ContextDir); err == nil {
		return abs
	}
	return o.ContextDir
}

// fullNames returns image names in full: "app" is "docker.io/library/app:latest".
func fullNames(tags []string) ([]string, error) {
	var names []string
	for _, t := range tags {
		ref, err := imagename.Parse(t)
		if err != nil {
			return nil, err
		}
		names = append(names, ref.String())
	}
	return names, nil
}

// shownName is how errors name the Dockerfile: as it is in the context, or as it was given.
func shownName(path, contextDir string) string {
	if rel, err := filepath.Rel(contextDir, path); err == nil && filepath.IsLocal(rel) {
		return rel
	}
	return rootdir.Shown(path)
}

// readFile reads a regular file of the client of at most limit bytes.
func readFile(path string, limit int64) ([]byte, error) {
	// Opening a fifo would wait for somebody to write to it.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return readRegular(f, path, limit)
}

// readContextFile is readFile for a Dockerfile or an ignore file. One in the directory dir, the context, is not followed out of
// it: a context may come from somebody who would like to see in an error what else there is.
func readContextFile(dir, path string, limit int64) ([]byte, error) {
	rel, err := relative(dir, path)
	if err != nil || !filepath.IsLocal(rel) {
		return readFile(path, limit)
	}
	root, err := rootfs.Open(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.OpenFile(rel, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		if _, outside := os.Stat(path); outside == nil {
			err = fmt.Errorf("%s is a symbolic link that leads out of the context, and is not followed there", path)
		}
		return nil, err
	}
	return readRegular(f, path, limit)
}

func relative(dir, path string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", err
	}
	return filepath.Rel(dir, path)
}

// readRegular reads f, which is called path, and closes it.
func readRegular(f *os.File, path string, limit int64) ([]byte, error) {
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: path, Err: errors.New("is not a regular file")}
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is larger than the %d MiB that are allowed", path, limit>>20)
	}
	return data, err
}

// localDirs are the contexts of a build: directories of the client, and what took the place of the build context.
type localDirs struct {
	trees  map[string]layer.Tree
	dirs   []*localdir.Dir
	ignore *ignore.Matcher // of the build context
	warn   func(text string)
}

func (l *localDirs) close() {
	for _, d := range l.dirs {
		// What the cache of digests loses is read again by the next build.
		d.Close()
	}
}

// contexts opens the build context and the named contexts that are directories, and returns the Dockerfile and its name.
func (b *Builder) contexts(ctx context.Context, work *store.Work, o Options, r *remote, out *localDirs) (dockerfile []byte, name string, err error) {
	if isDir(o.ContextDir) {
		dockerfile, name, err = b.contextDir(ctx, work, o, r, out)
	} else {
		dockerfile, name, err = b.contextElsewhere(ctx, o, r, out)
	}
	if err != nil {
		return nil, "", err
	}
	for name, value := range o.BuildContexts {
		if !source.IsDirContext(value) {
			continue
		}
		m, err := readIgnore(ctx, value, filepath.Join(value, ".dockerignore"))
		if err == nil {
			err = b.openDir(ctx, work, out, name, value, m)
		}
		if err != nil {
			return nil, "", &input.Error{Err: fmt.Errorf("named context %q: %w", name, err)}
		}
	}
	return dockerfile, name, nil
}

// openDir adds a directory of the client, which ends with ctx.
func (b *Builder) openDir(ctx context.Context, work *store.Work, out *localDirs, name, dir string, m *ignore.Matcher) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	id := fmt.Sprintf("%x", sha256.Sum256([]byte(abs)))
	d, err := localdir.Open(ctx, abs, m, filepath.Join(rootdir.Path(b.root.Dir(), rootdir.Context), id[:32]), work.Scratch.Path())
	if err != nil {
		return fmt.Errorf("open the build context: %w", err)
	}
	d.Warn(out.warn)
	if err := d.HideRoot(b.root.Dir()); err != nil {
		return errors.Join(err, d.Close())
	}
	out.trees[name], out.dirs = d, append(out.dirs, d)
	return nil
}

// contextDir opens a build context that is a directory, whose Dockerfile may come from anywhere.
func (b *Builder) contextDir(ctx context.Context, work *store.Work, o Options, r *remote, out *localDirs) (dockerfile []byte, name string, err error) {
	ignored := []string{filepath.Join(o.ContextDir, ".dockerignore")}
	if elsewhere(o.Dockerfile) {
		dockerfile, name, err = r.dockerfile(ctx, o)
	} else {
		var path string
		if path, err = o.DockerfilePath(); err != nil {
			return nil, "", err
		}
		ignored = append([]string{path + ".dockerignore"}, ignored...)
		name = shownName(path, o.ContextDir)
		if dockerfile, err = readContextFile(o.ContextDir, path, maxDockerfile); err != nil {
			err = &input.Error{Err: fmt.Errorf("read the Dockerfile: %w", err)}
		}
	}
	if err != nil {
		return nil, "", err
	}
	if out.ignore, err = readIgnore(ctx, o.ContextDir, ignored...); err == nil {
		err = b.openDir(ctx, work, out, "context", o.ContextDir, out.ignore)
	}
	if err != nil {
		return nil, "", &input.Error{Err: err}
	}
	return dockerfile, name, nil
}

// contextElsewhere brings in a build context that is no directory. Its .dockerignore, if it has one, is a file as any other.
func (b *Builder) contextElsewhere(ctx context.Context, o Options, r *remote, out *localDirs) (dockerfile []byte, name string, err error) {
	if o.ContextDir == stdin && o.Dockerfile == stdin {
		return nil, "", &input.Error{Err: errors.New("standard input cannot be both the build context and the Dockerfile")}
	}
	tree, bare, err := r.source(ctx, o)
	if err != nil {
		return nil, "", err
	}
	out.trees["context"] = tree
	switch {
	case elsewhere(o.Dockerfile):
		return r.dockerfile(ctx, o)
	case bare != nil:
		return bare, "Dockerfile", nil
	}
	return dockerfileIn(tree, o.Dockerfile, remoteurl.WithoutUser(o.ContextDir))
}

// readIgnore reads the first of these ignore files of the context dir that exists; nil for none.
func readIgnore(ctx context.Context, dir string, paths ...string) (*ignore.Matcher, error) {
	for _, path := range paths {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		data, err := readContextFile(dir, path, maxIgnore)
		if err != nil {
			return nil, fmt.Errorf("read the ignore file: %w", err)
		}
		m, err := ignore.Parse(ctx, bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if m != nil {
			m.File = filepath.Base(path)
		}
		return m, nil
	}
	return nil, nil
}

// secrets gives the values of --secret.
type secrets []Secret

// maxSecret bounds a secret, in bytes, as BuildKit does.
const maxSecret = 500 << 10

// Secret implements session.Secrets.
func (s secrets) Secret(id string) ([]byte, bool, error) {
	for _, secret := range s {
		if secret.ID != id {
			continue
		}
		if secret.Env != "" {
			v, ok := os.LookupEnv(secret.Env)
			return []byte(v), ok, nil
		}
		data, err := readFile(secret.Src, maxSecret)
		if err != nil {
			return nil, false, fmt.Errorf("read secret %q: %w", id, err)
		}
		return data, true, nil
	}
	return nil, false, nil
}

// record puts the events of a stream into the history, until end is called, under an ID. That a build cannot be recorded is no failure of
// the build.
func record(h *history.History, o Options, s *events.Stream) (id string, end func()) {
	r := h.Begin()
	s.Attach(r)
	return r.ID(), func() {
		s.Detach(r)
		if err := r.Close(); err != nil && o.Debug {
			s.Warn(err.Error())
		}
	}
}
