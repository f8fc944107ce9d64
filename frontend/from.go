package frontend

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/frontend/expand"
	"github.com/kilnbuild/kiln/frontend/fault"
	"github.com/kilnbuild/kiln/frontend/imageconfig"
	"github.com/kilnbuild/kiln/frontend/lint"
	"github.com/kilnbuild/kiln/frontend/source"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/parser"
)

// addStages makes the stages of the Dockerfile: FROM up to the resolving of images.
func (b *builder) addStages(stages []instructions.Stage) error {
	b.byName, b.external = map[string]*stage{}, map[string]*stage{}
	for i, src := range stages {
		s := &stage{src: src, name: src.Name, number: i}
		if err := b.addStage(s, i); err != nil {
			return b.at(err, src.Location)
		}
	}
	return nil
}

func (b *builder) addStage(s *stage, index int) error {
	if err := b.ended(); err != nil {
		return err
	}
	check := b.check.WithMergedConfigFromComments(s.src.Comments)
	base, err := b.words.Expand(s.src.BaseName, b.global)
	b.lintFromArgs(s, base.Unmatched, check)
	if err != nil {
		return err
	}
	if base.Result == "" {
		return b.suggestName(fmt.Errorf("base name (%s) should not be blank", expand.Clip(s.src.BaseName)), base.Unmatched)
	}
	if len(base.Unmatched) > 0 && b.byName[base.Result] == nil {
		if _, err := source.NormalizeRef(base.Result); err != nil {
			return b.suggestName(err, base.Unmatched)
		}
	}
	s.src.BaseName = base.Result
	if expr := s.src.Platform; expr != "" {
		if err := b.setPlatform(s, expr, check); err != nil {
			return err
		}
	}
	if s.name == "" {
		s.name = fmt.Sprintf("stage-%d", index)
	}
	// The base is looked up before the stage has its name: "FROM busybox AS busybox" is built on the image.
	s.base = b.byName[s.src.BaseName]
	b.stages = append(b.stages, s)
	if s.src.Name != "" {
		b.byName[s.src.Name] = s
		s.context, err = b.namedContext(s.src.Name, b.platformFor(s))
		if err != nil {
			return err
		}
		if s.context != nil {
			s.isContext, s.base = true, nil
		}
	}
	s.noCache = b.opts.NoCache || slices.ContainsFunc(b.opts.NoCacheFilter, func(name string) bool {
		return strings.EqualFold(name, s.src.Name)
	})
	if s.base == nil && s.src.BaseName != "scratch" {
		s.steps++
	}
	for _, c := range s.src.Commands {
		s.steps += steps(c)
	}
	return nil
}

// steps returns how many progress lines an instruction has.
func steps(c instructions.Command) int {
	switch c.(type) {
	case *instructions.AddCommand, *instructions.CopyCommand, *instructions.RunCommand, *instructions.WorkdirCommand:
		return 1
	}
	return 0
}

// setPlatform reads FROM --platform.
func (b *builder) setPlatform(s *stage, expr string, check *linter.Linter) error {
	v, err := b.words.Expand(expr, b.global)
	b.lintFromArgs(s, v.Unmatched, check)
	if err != nil {
		return fmt.Errorf("--platform: %w", err)
	}
	b.lintPlatform(s, expr, v, check)
	if v.Result == "" {
		return b.suggestName(fmt.Errorf("empty platform value from expression %s", expand.Clip(expr)), v.Unmatched)
	}
	p, err := llb.ParsePlatform(v.Result, b.opts.BuildPlatform)
	if err != nil {
		return b.suggestName(&fault.PlatformError{Expr: expand.Clip(expr), Err: err}, v.Unmatched)
	}
	s.platform = &p
	return nil
}

// suggestName adds "did you mean" to err for the first of the names that is nearly that of a global argument.
func (b *builder) suggestName(err error, names map[string]struct{}) error {
	sorted := slices.Sorted(maps.Keys(names))
	for _, name := range sorted {
		if match, ok := b.suggest.Search(name, b.global.Keys, true); ok {
			return &parser.Error{Msg: err.Error(), Hint: didYouMean(match), Err: err}
		}
	}
	if len(sorted) > 0 {
		name := expand.Clip(sorted[0])
		hint := fmt.Sprintf("%s has no value: declare it above the first FROM as ARG %s=…, which --build-arg %s=… overrides", name, name, name)
		return &parser.Error{Msg: err.Error(), Hint: hint, Err: err}
	}
	return err
}

func didYouMean(match string) string { return "did you mean " + match + "?" }

// platformFor returns the platform that the stage's image is asked for.
func (b *builder) platformFor(s *stage) llb.Platform {
	if s.platform != nil {
		return *s.platform
	}
	return b.target
}

// images resolves each image once in a build.
type images struct {
	resolver Resolver
	mu       sync.Mutex
	byKey    map[ImageRequest]*resolution
	room     chan struct{}
}

// maxResolving is how many images are looked for at once.
const maxResolving = 64

type resolution struct {
	done  chan struct{}
	image *foundImage
	err   error
}

// foundImage is an image with the configuration that all stages which begin with it fork.
type foundImage struct {
	*BaseImage
	config *imageconfig.Config
}

// resolve starts to look for an image and returns the function that waits for it.
func (m *images) resolve(b *builder, req ImageRequest) func() (*foundImage, error) {
	key := req
	key.Place, key.Text = llb.Place{}, ""
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.byKey[key]
	if !ok {
		r = &resolution{done: make(chan struct{})}
		if m.byKey == nil {
			m.byKey = map[ImageRequest]*resolution{}
			m.room = make(chan struct{}, maxResolving)
		}
		m.byKey[key] = r
		m.room <- struct{}{}
		go func() {
			defer func() { <-m.room }()
			defer close(r.done)
			var image *BaseImage
			if image, r.err = m.resolver.ResolveImage(b.ctx, req); r.err == nil {
				r.image = &foundImage{image, imageconfig.Of(&image.Config)}
			}
		}()
	}
	return func() (*foundImage, error) {
		<-r.done
		return r.image, r.err
	}
}

// checkNames checks the names of images of all stages, as BuildKit does, also of those that are not built.
func (b *builder) checkNames() error {
	for _, s := range b.stages {
		if err := b.ended(); err != nil {
			return err
		}
		if s.base != nil || s.context != nil || s.src.BaseName == "scratch" {
			continue
		}
		if _, err := source.NormalizeRef(s.src.BaseName); err != nil {
			return b.at(b.nameError(&nameError{name: s.src.BaseName, err: err}), s.src.Location)
		}
	}
	return nil
}

// resolveBases finds the base images of stages, all at a time. The error is that of the first stage that has one.
func (b *builder) resolveBases(stages []*stage) error {
	waits := make([]func() error, len(stages))
	for i, s := range stages {
		var wait func() error
		err := b.ended()
		if err == nil {
			wait, err = b.resolveBase(s)
		}
		if err != nil {
			wait = func() error { return err }
		}
		waits[i] = wait
	}
	var first error
	var failed *stage
	for i, wait := range waits {
		if err := wait(); err != nil && first == nil {
			first, failed = err, stages[i]
		}
	}
	if first == nil {
		return nil
	}
	if notFound, ok := errors.AsType[*nameError](first); ok {
		first = b.nameError(notFound)
	}
	return b.at(first, failed.src.Location)
}

// nameError is an error of an image's name, for which advice is looked for once it is known to be the first.
type nameError struct {
	name  string
	known []string // which names it may have been meant for, beside those of stages
	err   error
}

func (e *nameError) Error() string { return e.err.Error() }

func (e *nameError) Unwrap() error { return e.err }

// nameError returns the error with advice where the name is nearly that of a stage or of a well-known image.
func (b *builder) nameError(e *nameError) error {
	if match, ok := b.suggest.Search(e.name, func() []string { return append(b.stageNames(), e.known...) }, true); ok {
		// First of all: what a registry says may be long.
		msg := fmt.Sprintf("%s %v", didYouMean(match), e.err)
		if slices.Contains(b.stageNames(), match) {
			msg = fmt.Sprintf("no stage is named %s (%s), and as an image: %v", e.name, didYouMean(match), e.err)
		}
		return &parser.Error{Msg: msg, Err: e.err}
	}
	return e.err
}

// resolveBase starts to find the base of a stage that is built on no other.
func (b *builder) resolveBase(s *stage) (func() error, error) {
	nothing := func() error { return nil }
	if s.src.BaseName == "scratch" && s.context == nil {
		// Nothing is there that could have another platform: FROM --platform=… scratch is for the target.
		s.platform = &b.target
		b.setScratch(s, b.target)
		return nothing, nil
	}
	asked := s.src.BaseName
	platform := b.platformFor(s)
	req := ImageRequest{Platform: platform}
	if s.context == nil {
		ref, err := source.NormalizeRef(asked)
		if err != nil {
			return nil, &nameError{name: asked, err: err}
		}
		req.Ref = ref
		if s.context, err = b.namedContext(ref, platform); err != nil {
			return nil, err
		}
	}
	if c := s.context; c != nil {
		if c.Dir || c.Remote != nil {
			s.platform = &platform
			return nothing, b.setDirectory(s, platform)
		}
		if c.Ref == "scratch" {
			s.platform = &platform
			b.setScratch(s, platform)
			return nothing, nil
		}
		if c.Input != "" {
			s.platform = &platform
			return nothing, b.setInput(s, platform)
		}
		req.Ref, req.Layout = c.Ref, c.Layout
	}
	op, err := fetched(b, asked, llb.Image{Ref: req.Ref, Layout: req.Layout})
	if err != nil {
		return nil, err
	}
	req.Ref, req.Digest = op.Ref, op.Digest
	req.Place = llb.Place{Group: "internal", Platform: platform.String(), Platforms: max(1, len(b.opts.Platforms))}
	req.Text = "load metadata for " + shownImage(req.Ref, req.Layout)
	wait := b.images.resolve(b, req)
	return func() error {
		image, err := wait()
		if err != nil {
			return &nameError{asked, []string{"alpine", "busybox", "debian", "fedora", "golang", "node", "python", "ubuntu"}, err}
		}
		b.setImage(s, asked, req, image)
		return nil
	}, nil
}

// shownImage is how progress names an image: as a --build-context would.
func shownImage(ref, layout string) string {
	switch {
	case layout == "":
		return ref
	case strings.HasPrefix(ref, "sha256:"):
		return "oci-layout://" + layout + "@" + ref
	}
	return "oci-layout://" + layout + ":" + ref
}

// setImage makes image the base of s; asked is its name in the Dockerfile.
func (b *builder) setImage(s *stage, asked string, req ImageRequest, image *foundImage) {
	got := platformOf(image.Config)
	if s.platform == nil {
		s.platform = &b.target
	}
	s.image = &stageImage{image, llb.Image{Ref: cmp.Or(image.Ref, req.Ref), Digest: image.Digest, Layout: req.Layout}}
	s.ownPlatform = got
	s.config = image.config.Fork(b.budget, s.exported)
	if s.context == nil && len(image.Config.RootFS.DiffIDs) > 0 { // without files an image is for any platform
		lint.BasePlatform(b.check.WithMergedConfigFromComments(s.src.Comments), s.src.Location, asked, *s.platform, got)
	}
}

// addImage adds the vertex of the image that s begins with. The triggers in the image are known by now, and so is the
// number of steps.
func (b *builder) addImage(s *stage) {
	op := s.image.op
	if len(s.image.Config.RootFS.DiffIDs) == 0 {
		s.root = b.scratch()
		return
	}
	text := "FROM " + shownImage(op.Ref, op.Layout)
	if !strings.Contains(op.Ref, "@") {
		text += "@" + op.Digest
	}
	meta := llb.Meta{Text: text, Location: b.location(s.src.Location)}
	switch {
	case s.context != nil:
		meta = b.groupMeta(s, "context "+s.context.Name, text, s.src.Location)
	case !s.implicit:
		meta = b.stepMeta(s, text, b.words, (*expand.Env)(nil), s.src.Location)
	}
	s.root = b.graph.Add(op, meta).Output(0)
}

// setScratch makes s begin with nothing.
func (b *builder) setScratch(s *stage, p llb.Platform) {
	s.root = b.scratch()
	s.ownPlatform = p
	s.config = imageconfig.New(b.budget, s.exported)
}

// setDirectory makes s begin with the files of a named context.
func (b *builder) setDirectory(s *stage, p llb.Platform) error {
	local, err := b.contextOutput(s.context)
	if err != nil {
		return err
	}
	b.setScratch(s, p)
	s.dir.local = local
	s.dir.root = s.root
	if s.implicit {
		return nil
	}
	op := llb.File{Actions: []llb.Action{{Copy: &llb.Copy{Sources: []llb.CopySource{{Input: 1, Path: "/"}}, Dest: "/"}}}}
	meta := b.groupMeta(s, "context "+s.context.Name, "FROM "+s.context.Name, s.src.Location)
	meta.NoCache = s.noCache // times of files have no part in a key, and are those of the directory now
	v := b.graph.Add(op, meta, s.root, s.dir.local)
	s.root = v.Output(0)
	s.dir.root = s.root
	s.config.Commit("FROM "+s.context.Name+" # buildkit", v)
	return nil
}

// setInput makes s begin with a root file system that was made elsewhere.
func (b *builder) setInput(s *stage, p llb.Platform) error {
	in, err := b.opts.Input(s.context)
	if err != nil {
		return err
	}
	b.setScratch(s, p)
	s.root = in.Root
	if in.Config != nil {
		s.config = imageconfig.Of(in.Config).Fork(b.budget, s.exported)
		if got := platformOf(*in.Config); got.OS != "" {
			s.ownPlatform = got
		}
	}
	return nil
}

func (b *builder) scratch() llb.Output {
	return b.graph.Add(llb.Scratch{}, llb.Meta{Place: llb.Place{Group: "internal"}, Text: "scratch"}).Output(0)
}

func platformOf(image dockerspec.DockerOCIImage) llb.Platform {
	return llb.Platform{OS: image.OS, Architecture: image.Architecture, Variant: image.Variant, OSVersion: image.OSVersion}
}

// namedContext returns the context for a stage or image name, nil for none.
func (b *builder) namedContext(name string, p llb.Platform) (*source.Context, error) {
	return source.FindContext(b.opts.NamedContexts, name, p, b.opts.BuildPlatform)
}

// contextOutput returns the output that has the files of a context other than an image.
func (b *builder) contextOutput(c *source.Context) (llb.Output, error) {
	meta := func(text string) llb.Meta {
		return llb.Meta{Place: llb.Place{Project: b.opts.Project, Group: "context " + c.Name}, Text: text}
	}
	switch op := c.Remote.(type) {
	case llb.Git:
		op, err := fetched(b, c.Name, op)
		op.Advice = source.GitAdvice(b.opts.BuildArgs)
		return b.graph.Add(op, meta("load git source "+source.GitName(op)), b.scratch()).Output(0), err
	case llb.HTTP:
		op, err := fetched(b, c.Name, op)
		file := b.graph.Add(op, meta("download "+remoteurl.Shown(op.URL)), b.scratch()).Output(0)
		return b.graph.Add(source.UnpackContext(op.Filename), meta("unpack "+remoteurl.Shown(op.URL)), b.scratch(), file).Output(0), err
	}
	return b.graph.Add(b.opts.Directory(c.Name), meta("load from client")).Output(0), nil
}

// fetched returns what is fetched for op, as Options.Source says.
func fetched[T llb.Op](b *builder, written string, op T) (T, error) {
	if b.opts.Source == nil {
		return op, nil
	}
	out, err := b.opts.Source(written, op)
	if err != nil {
		return op, err
	}
	return out.(T), nil
}
