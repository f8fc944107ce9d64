package frontend

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	moby "github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/kilnbuild/kiln/frontend/lint"
	"github.com/kilnbuild/kiln/internal/chmod"
	"github.com/kilnbuild/kiln/internal/ignore"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/llb"
)

// copying is what COPY and ADD have in common.
type copying struct {
	// keyword is "COPY" or "ADD", text the whole instruction.
	keyword, text string
	instructions.SourcesAndDest
	chown, chmod  string
	link, parents bool
	exclude       []string
	at            []moby.Range
	// sources are what the SourcePaths stand for.
	sources []copySource
}

// copySource is a source with what it is in.
type copySource struct {
	from llb.Output
	llb.CopySource
}

// copy lowers COPY.
func (b *builder) copy(s *stage, c *instructions.CopyCommand, sources []*stage, check *linter.Linter) error {
	for _, src := range c.SourcePaths {
		if remoteurl.IsHTTP(src) {
			return errors.New("source can't be a URL for COPY")
		}
		if remoteurl.IsGit(src) {
			return errors.New("source can't be a git ref for COPY")
		}
	}
	from, err := b.copiedFrom(s, c, sources)
	if err != nil {
		return err
	}
	if len(sources) == 0 {
		lint.Ignored(check, b.opts.Ignore, "Copy", c.SourcePaths, c.Location())
	}
	cp := copying{
		keyword: "COPY", text: c.String(), SourcesAndDest: c.SourcesAndDest, chown: c.Chown, chmod: c.Chmod,
		link: c.Link, parents: c.Parents, exclude: c.ExcludePatterns, at: c.Location(),
	}
	for _, src := range c.SourcePaths {
		path, err := s.sourcePath(src, c.Parents)
		if err != nil {
			return err
		}
		cp.sources = append(cp.sources, copySource{from, llb.CopySource{Path: path}})
	}
	return b.copyFiles(s, cp)
}

// copiedFrom returns what the sources of COPY are in.
func (b *builder) copiedFrom(s *stage, c *instructions.CopyCommand, sources []*stage) (llb.Output, error) {
	if len(sources) == 0 {
		return b.mainContext(), nil
	}
	from := sources[0]
	if !from.lowered && from != s { // a trigger may copy within the stage that it runs in
		return llb.Output{}, fmt.Errorf("cannot copy from stage %q, it needs to be defined before current stage %q", c.From, s.name)
	}
	if dir, ok := from.directory(); ok {
		return dir, nil
	}
	return from.root, nil
}

// mainContext is the build context.
func (b *builder) mainContext() llb.Output {
	if b.opts.Context != nil {
		return *b.opts.Context
	}
	return b.graph.Add(b.opts.Directory("context"), llb.Meta{Place: llb.Place{Group: "internal"}, Text: "load build context"}).Output(0)
}

// check refuses flags that are wrong.
func (cp *copying) check(ctx context.Context) error {
	if err := chmod.Check(cp.chmod); err != nil {
		return err
	}
	if cp.linked() && chownByName(cp.chown) {
		return fmt.Errorf("--chown=%s: names of users and groups cannot be used with --link, use numeric uid[:gid] instead", cp.chown)
	}
	if _, err := ignore.New(ctx, cp.exclude); err != nil {
		return fmt.Errorf("--exclude: %w", err)
	}
	for _, f := range cp.SourceContents {
		if err := checkFileName(f.Path); err != nil {
			return err
		}
	}
	return nil
}

// linked reports whether the files become a layer that does not depend on what it lies on. As in BuildKit, --link has no effect beside
// --chmod.
func (cp *copying) linked() bool { return cp.link && cp.chmod == "" }

// createdBy is the entry of the history.
func (cp *copying) createdBy() string {
	var created strings.Builder
	created.WriteString(cp.keyword)
	if cp.parents {
		created.WriteString(" --parents")
	}
	if cp.chown != "" {
		created.WriteString(" --chown=" + cp.chown)
	}
	if cp.chmod != "" {
		created.WriteString(" --chmod=" + cp.chmod)
	}
	for _, src := range cp.SourcePaths {
		created.WriteString(" " + remoteurl.WithoutUser(src))
	}
	for _, f := range cp.SourceContents {
		created.WriteString(" <<" + f.Path)
	}
	created.WriteString(" " + cp.DestPath + " # buildkit")
	return created.String()
}

// op returns the op that copies into dest over root, and its inputs.
func (cp *copying) op(root llb.Output, dest string, epoch *int64) (op llb.File, inputs []llb.Output) {
	attributes := llb.Attributes{Chown: cp.chown, Chmod: cp.chmod, Epoch: epoch}
	inputs = []llb.Output{root}
	var files *llb.Copy
	number := map[llb.Output]int{} // of inputs that are sources
	for i, src := range cp.sources {
		if src.Input = number[src.from]; src.Input == 0 {
			src.Input = len(inputs)
			number[src.from] = src.Input
			inputs = append(inputs, src.from)
		}
		// --chmod also applies to a directory that a repository becomes, as in BuildKit.
		if asDir := remoteurl.IsGit(cp.SourcePaths[i]); files == nil || files.AsDir != asDir {
			files = &llb.Copy{Dest: dest, Attributes: attributes, Exclude: cp.exclude, Parents: cp.parents, Link: cp.linked(), AsDir: asDir}
			op.Actions = append(op.Actions, llb.Action{Copy: files})
		}
		files.Sources = append(files.Sources, src.CopySource)
	}
	for _, f := range cp.SourceContents {
		file := llb.Mkfile{Path: dest, Name: f.Path, Link: cp.linked(), Content: []byte(f.Data), Attributes: attributes}
		op.Actions = append(op.Actions, llb.Action{Mkfile: &file})
	}
	return op, inputs
}

// copyFiles adds the vertices of COPY and ADD.
func (b *builder) copyFiles(s *stage, cp copying) error {
	if err := cp.check(b.ctx); err != nil {
		return err
	}
	dest, err := s.copyDest(cp.DestPath)
	if err != nil {
		return err
	}
	root := s.root
	if cp.linked() {
		root = b.scratch()
	}
	op, inputs := cp.op(root, dest, b.madeAt())
	meta := b.stepMeta(s, cp.text, b.words, s.env, cp.at)
	meta.Text = withoutUsers(meta.Text, cp.SourcePaths)
	meta.NoCache = s.noCache
	v := b.graph.Add(op, meta, inputs...)
	if cp.linked() {
		meta.NoCache = false
		meta.Text = "LINK " + meta.Text
		v = b.graph.Add(llb.Merge{}, meta, s.root, v.Output(0))
	}
	s.root = v.Output(0)
	s.config.Commit(cp.createdBy(), v)
	return nil
}

// withoutUsers returns a text in which sources stand, without the users and passwords of those that are URLs.
func withoutUsers(text string, sources []string) string {
	var pairs []string
	for _, src := range sources {
		if shown := remoteurl.WithoutUser(src); shown != src {
			pairs = append(pairs, src, shown)
		}
	}
	if len(pairs) == 0 {
		return text
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

// copyDest returns an absolute destination; a slash at its end says that it is a directory. With BuildKit ".." at its end says nothing.
func (s *stage) copyDest(dest string) (string, error) {
	cwd, err := s.cwd()
	if err == nil {
		dest, err = s.pathIn(cwd, dest)
	}
	if err != nil {
		return "", err
	}
	isDir := dest == "" || dest == "." || strings.HasSuffix(dest, "/") || strings.HasSuffix(dest, "/.")
	if !path.IsAbs(dest) {
		dest = path.Join(cwd, dest)
	}
	dest = path.Clean(dest)
	if isDir && dest != "/" {
		dest += "/"
	}
	return dest, nil
}

// sourcePath returns the path of a source in the root that it is of.
func (s *stage) sourcePath(src string, parents bool) (string, error) {
	src, err := s.pathIn("/", src)
	return copySourcePath(src, parents), err
}

// copySourcePath returns the absolute path of a source: steps up do not lead out of its root. Of --parents, the first
// "/./" stays.
func copySourcePath(src string, parents bool) string {
	if before, after, ok := strings.Cut(src, "/./"); parents && ok {
		return strings.TrimSuffix(path.Join("/", before), "/") + "/." + path.Join("/", after)
	}
	return path.Join("/", src)
}

// chownByName reports whether --chown has a name that must be looked up; root is 0 without that.
func chownByName(chown string) bool {
	user, group, _ := strings.Cut(chown, ":")
	for _, id := range []string{user, group} {
		if _, err := strconv.ParseInt(id, 10, 32); err != nil && id != "" && id != "root" {
			return true
		}
	}
	return false
}
