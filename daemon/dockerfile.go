package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/solver/pb"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/daemon/attrs"
	"github.com/kilnbuild/kiln/daemon/subrequest"
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
func (b *buildJob) dockerfile(ctx context.Context, all map[string]string) (*result, error) {
	d, err := attrs.ReadDockerfile(all)
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
	r := &d.Request
	if r.Source, err = b.contexts(ctx, d); err != nil {
		return nil, err
	}
	r.VCS = d.VCS
	res := &build.Result{}
	p, err := b.job.Lower(ctx, r, res)
	info := b.read(res.DockerfileName, res.Dockerfile)
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

// maxIgnore bounds an ignore file in bytes.
const maxIgnore = 16 << 20

// contexts returns where a Dockerfile and its contexts are, once the Dockerfile was read from the client.
func (b *buildJob) contexts(ctx context.Context, d *attrs.Dockerfile) (s contexts.Source, err error) {
	remote := d.Remote()
	if remote {
		s.Context = d.Context
	}
	if remote && !d.OwnDockerfile {
		if d.Filename != defaultDockerfile {
			s.Dockerfile = d.Filename
		}
	} else if s.Given, err = b.given(ctx, d, remote); err != nil {
		return s, err
	}
	s.Named = map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(d.Named)) {
		value := d.Named[name]
		local, ok := strings.CutPrefix(value, "local:")
		if s.Named[name] = value; !ok {
			continue
		}
		tree, _, err := b.directory(ctx, local)
		if err != nil {
			return s, err
		}
		if s.Given == nil {
			s.Given = &contexts.Given{Trees: map[string]layer.Tree{}}
		}
		s.Given.Trees[name] = tree
	}
	return s, nil
}

// defaultDockerfile is the name of a Dockerfile that nobody named.
const defaultDockerfile = "Dockerfile"

// given reads the Dockerfile from the client, and opens the build context there unless it is elsewhere.
func (b *buildJob) given(ctx context.Context, d *attrs.Dockerfile, remote bool) (*contexts.Given, error) {
	names := []string{d.Filename}
	if dir, name := path.Split(d.Filename); name == defaultDockerfile {
		names = append(names, dir+strings.ToLower(name))
	}
	tree, err := b.client.Open(ctx, llb.Local{Name: d.DockerfileName, Follow: append(slices.Clone(names), d.Filename+ignoreFile)})
	if err != nil {
		return nil, err
	}
	g := &contexts.Given{Name: d.Filename, Project: d.ContextName, Trees: map[string]layer.Tree{}}
	found := false
	for _, name := range names {
		if g.Text, found, err = contexts.ReadTree(tree, name, contexts.MaxDockerfile); found || err != nil {
			break
		}
	}
	if err == nil && !found {
		err = &fs.PathError{Op: "open", Path: d.Filename, Err: fs.ErrNotExist}
	}
	if err != nil {
		return nil, &input.Error{Err: fmt.Errorf("failed to read dockerfile: %w", err)}
	}
	if remote {
		return g, nil
	}
	if g.Ignore, err = readIgnore(ctx, tree, d.Filename+ignoreFile); err != nil {
		return nil, err
	}
	if g.Ignore != nil {
		g.Trees["context"], err = b.client.Open(ctx, llb.Local{Name: d.ContextName, Exclude: g.Ignore.Patterns()})
	} else {
		g.Trees["context"], g.Ignore, err = b.directory(ctx, d.ContextName)
	}
	return g, err
}

// directory opens a directory of the client with what its ignore file leaves.
func (b *buildJob) directory(ctx context.Context, name string) (layer.Tree, *ignore.Matcher, error) {
	tree, err := b.client.Open(ctx, llb.Local{Name: name, Follow: []string{ignoreFile}})
	if err != nil {
		return nil, nil, err
	}
	m, err := readIgnore(ctx, tree, ignoreFile)
	if err != nil {
		return nil, nil, err
	}
	tree, err = b.client.Open(ctx, llb.Local{Name: name, Exclude: m.Patterns()})
	return tree, m, err
}

// readIgnore reads an ignore file; nil if there is none, or it excludes nothing.
func readIgnore(ctx context.Context, tree layer.Tree, name string) (*ignore.Matcher, error) {
	data, found, err := contexts.ReadTree(tree, name, maxIgnore)
	if err != nil || !found {
		return nil, err
	}
	m, err := ignore.Parse(ctx, bytes.NewReader(data))
	if err != nil {
		return nil, &input.Error{Err: fmt.Errorf("failed parsing %s: %w", name, err)}
	}
	if m != nil {
		m.File = path.Base(name)
	}
	return m, nil
}
