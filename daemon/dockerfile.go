package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/daemon/apierr"
	"github.com/kilnbuild/kiln/daemon/asked"
	"github.com/kilnbuild/kiln/daemon/attrs"
	"github.com/kilnbuild/kiln/daemon/client"
	"github.com/kilnbuild/kiln/daemon/llbpb"
	"github.com/kilnbuild/kiln/daemon/policies"
	"github.com/kilnbuild/kiln/daemon/returned"
	"github.com/kilnbuild/kiln/daemon/subrequest"
	"github.com/kilnbuild/kiln/daemon/trees"
	"github.com/kilnbuild/kiln/frontend/source"
	"github.com/kilnbuild/kiln/internal/ignore"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/parser"
)

// calls are the requests for a Dockerfile, by their IDs.
var calls = map[string]build.Call{
	"": build.CallBuild, subrequest.IDOutline: build.CallOutline, subrequest.IDTargets: build.CallTargets, subrequest.IDLint: build.CallCheck,
}

// dockerfile has kiln's own frontend make a result of a Dockerfile.
func (b *buildJob) dockerfile(ctx context.Context, by *asked.Request, inputs map[string]*pb.Definition) (*result, error) {
	d, err := attrs.ReadDockerfile(by.Attrs)
	if err != nil {
		return nil, err
	}
	if d.SubRequest == subrequest.IDDescribe {
		metadata, err := subrequest.Describe()
		return &result{metadata: metadata}, err
	}
	var known bool
	if d.Call, known = calls[d.SubRequest]; !known {
		return nil, subrequest.Unsupported(d.SubRequest)
	}
	if err := b.importing(d.Caches); err != nil {
		return nil, err
	}
	r := &d.Request
	if err := b.inputs(ctx, d, inputs); err != nil {
		return nil, err
	}
	if err := b.contexts(ctx, d); err != nil {
		return nil, err
	}
	r.VCS = d.VCS
	res := &build.Result{}
	p, err := b.job.Lower(ctx, r, res)
	info := b.read(res.DockerfileName, res.Dockerfile, &pb.Definition{})
	if other, ok := errors.AsType[*source.SyntaxError](err); ok && by.Attrs[attrCommand] == "" {
		forwarded := map[string]string{}
		maps.Copy(forwarded, by.Attrs)
		forwarded[attrSource], forwarded[attrCommand] = other.Image, other.Command
		out, failed := b.frontend(ctx, by.As(frontendGateway, forwarded), inputs)
		return out, atDirective(failed, err)
	}
	if d.Incapable != nil {
		return nil, d.Incapable
	}
	switch {
	case r.Call == build.CallCheck:
		return linted(info, res, err)
	case err != nil:
		return nil, err
	}
	out := &result{}
	switch r.Call {
	case build.CallOutline:
		out.metadata, err = subrequest.Outline(res.Outline)
	case build.CallTargets:
		out.metadata, err = subrequest.Targets(res.Targets)
	default:
		return b.lowered(p, d.MultiPlatform)
	}
	return out, err
}

// atDirective returns the error of a frontend that a line of the Dockerfile asks for, which by is about: with that line, unless it has
// lines of its own.
func atDirective(err, by error) error {
	line, ok := errors.AsType[*parser.Error](by)
	if err == nil || !ok || len(errdefs.Sources(err)) > 0 {
		return err
	}
	return &parser.Error{File: line.File, Line: line.Line, EndLine: line.EndLine, Msg: apierr.Text(err), Err: err}
}

// linted returns what the checks found in a Dockerfile; failed is why it cannot be built.
func linted(dockerfile *pb.SourceInfo, res *build.Result, failed error) (*result, error) {
	if errors.Is(failed, context.Canceled) {
		return nil, failed
	}
	var found []subrequest.Warning
	for _, w := range res.Warnings {
		if !w.Advice {
			found = append(found, subrequest.Warning{Rule: w.Rule, Description: w.Description, URL: w.URL, Detail: w.Message, Location: w.Location})
		}
	}
	at := llb.Location{}
	if e, ok := errors.AsType[*parser.Error](failed); ok {
		at = llb.Location{File: e.File, StartLine: e.Line, EndLine: e.EndLine}
	}
	metadata, err := subrequest.Lint(dockerfile, found, failed, at)
	return &result{metadata: metadata}, err
}

// The ends of the names of ignore files.
const ignoreFile = ".dockerignore"

// contexts says where the contexts of a Dockerfile are, once that was read from the client. Nothing else is opened yet.
func (b *buildJob) contexts(ctx context.Context, d *attrs.Dockerfile) error {
	s := &d.Source
	locals := map[string]llb.Local{contextLocal: d.LocalOf(d.ContextName)}
	d.Local = func(name string) llb.Local { return locals[name] }
	remote := d.Remote()
	s.Subdir = d.Subdir
	switch {
	case client.IsUpload(d.Context):
		upload, _, err := b.provides().Upload(ctx, d.Context)
		if err != nil {
			return err
		}
		context.AfterFunc(ctx, func() { upload.Close() })
		s.Context, s.Stdin = contexts.Stdin, upload
	case remote:
		s.Context = d.Context
	}
	if remote && !d.OwnDockerfile {
		if d.Filename != defaultDockerfile {
			s.Dockerfile = d.Filename
		}
	} else {
		given, ignores, err := b.given(ctx, d)
		if err != nil {
			return err
		}
		s.Given = given
		if !remote && d.Elsewhere.Context == nil && !ignores {
			if s.Given.Ignore, err = b.ignored(ctx, internal, locals[contextLocal]); err != nil {
				return err
			}
		}
		main := locals[contextLocal]
		main.Exclude = s.Given.Ignore.Patterns()
		locals[contextLocal] = main
	}
	s.Named = map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(d.Named)) {
		value, err := policies.Converted(b.policy, d.Named[name])
		if err != nil {
			return err
		}
		s.Named[name] = value
		dir, ok := strings.CutPrefix(value, "local:")
		if !ok {
			continue
		}
		local := d.LocalOf(dir)
		m, err := b.ignored(ctx, "context "+name, local)
		if err != nil {
			return err
		}
		local.Exclude = m.Patterns()
		locals[name] = local
	}
	return nil
}

// inputs decodes what a client gives to the Dockerfile: named contexts, and in the places of the build context and of the directory with
// the Dockerfile.
func (b *buildJob) inputs(ctx context.Context, d *attrs.Dockerfile, all map[string]*pb.Definition) error {
	d.Elsewhere.Inputs = map[string]source.Input{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		in := source.Input{Root: scratch()}
		var err error
		empty := len(all[name].GetDef()) == 0
		if empty && (name == contextLocal || name == d.DockerfileName) {
			return status.Errorf(codes.InvalidArgument, "input %s: invalid nil input definition to definition op", name)
		}
		if !empty {
			if in.Root, err = b.decode(ctx, all[name], b.asking()); err != nil {
				return fmt.Errorf("input %s: %w", name, err)
			}
		}
		if config := d.InputMetadata[name][returned.KeyConfig]; config != nil {
			in.Config = &dockerspec.DockerOCIImage{}
			if err := json.Unmarshal(config, in.Config); err != nil {
				return fmt.Errorf("failed to parse image config for %s: %w", name, err)
			}
		}
		d.Elsewhere.Inputs[name] = in
	}
	if in, ok := d.Elsewhere.Inputs[contextLocal]; ok && !d.Remote() {
		d.Elsewhere.Context = &in.Root
	}
	return nil
}

// contextLocal is the name of the build context as kiln's frontend calls it.
const contextLocal = "context"

// defaultDockerfile is the name of a Dockerfile that nobody named.
const defaultDockerfile = "Dockerfile"

// given reads the Dockerfile, and an ignore file beside it, from the client; ignores says that there is one, which counts in place of that
// of the context even if it excludes nothing.
func (b *buildJob) given(ctx context.Context, d *attrs.Dockerfile) (g *contexts.Given, ignores bool, err error) {
	names := []string{d.Filename}
	if dir, name := path.Split(d.Filename); name == defaultDockerfile {
		names = append(names, dir+strings.ToLower(name))
	}
	var files layer.Tree
	from := &pb.Definition{}
	if in, ok := d.Elsewhere.Inputs[d.DockerfileName]; ok && !d.OwnDockerfile {
		files, err = b.files(ctx, in.Root)
	} else {
		local := d.LocalOf(d.DockerfileName)
		local.Follow, local.Unlike = append(slices.Clone(names), d.Filename+ignoreFile), true
		if from, err = llbpb.Encode((&llb.Graph{}).Add(local, llb.Meta{}).Output(0)); err == nil {
			files, err = b.load(ctx, internal, "load build definition from "+d.Filename, local)
		}
	}
	if err != nil {
		return nil, false, err
	}
	g = &contexts.Given{Name: d.Filename, Project: d.ContextName}
	found := false
	for _, name := range names {
		if g.Text, found, err = contexts.ReadTree(files, name, contexts.MaxDockerfile); found || err != nil {
			break
		}
	}
	if err == nil && !found {
		err = &fs.PathError{Op: "open", Path: d.Filename, Err: fs.ErrNotExist}
	}
	if err != nil {
		return nil, false, &input.Error{Err: fmt.Errorf("failed to read dockerfile: %w", err)}
	}
	b.read(g.Name, g.Text, from)
	g.Ignore, found, err = trees.Ignore(ctx, files, d.Filename+ignoreFile)
	return g, found, err
}

// ignored reads the ignore file of a directory of the client; nil if it has none. That there is no such directory, or that nothing can be
// had of it, is found out when something is wanted of it.
func (b *buildJob) ignored(ctx context.Context, group string, local llb.Local) (*ignore.Matcher, error) {
	local.Follow, local.Unlike = []string{ignoreFile}, true
	files, err := b.load(ctx, group, "load "+ignoreFile, local)
	if err != nil {
		return nil, ctx.Err()
	}
	m, _, err := trees.Ignore(ctx, files, ignoreFile)
	return m, err
}

// internal is the group of what is shown of a build besides its steps.
const internal = "internal"

// load opens a directory of the client before there is a graph. The text says what for.
func (b *buildJob) load(ctx context.Context, group, text string, local llb.Local) (tree layer.Tree, err error) {
	err = b.job.Doing(ctx, group, text, func(ctx context.Context) error {
		tree, err = b.provides().Open(ctx, local)
		return err
	})
	return tree, err
}
