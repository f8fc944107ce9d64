package frontend

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	moby "github.com/moby/buildkit/frontend/dockerfile/parser"
	filemode "github.com/tonistiigi/dchapes-mode"

	"github.com/kilnbuild/kiln/frontend/lint"
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
	unpack        bool
	// from is what the paths are in. remote, where not nil, returns the output of a source that is in no context, and what is
	// taken of it; that of no vertex for a path in from.
	from   llb.Output
	remote func(src string) (llb.Output, llb.CopySource, error)
	at     []moby.Range
}

// copy lowers COPY.
func (b *builder) copy(s *stage, c *instructions.CopyCommand, sources []*stage, check *linter.Linter) error {
	cp := copying{
		keyword: "COPY", text: c.String(), SourcesAndDest: c.SourcesAndDest, chown: c.Chown, chmod: c.Chmod,
		link: c.Link, parents: c.Parents, exclude: c.ExcludePatterns, at: c.Location(),
	}
	for _, src := range c.SourcePaths {
		if remoteurl.IsHTTP(src) {
			return errors.New("source can't be a URL for COPY")
		}
		if remoteurl.IsGit(src) {
			return errors.New("source can't be a git ref for COPY")
		}
	}
	if len(sources) > 0 {
		from := sources[0]
		if !from.lowered {
			return fmt.Errorf("cannot copy from stage %q, it needs to be defined before current stage %q", c.From, s.name)
		}
		cp.from = from.root
		if dir, ok := from.directory(); ok {
			cp.from = dir
		}
	} else {
		cp.from = b.mainContext()
		lint.Ignored(check, b.opts.Ignore, "Copy", c.SourcePaths, c.Location())
	}
	return b.copyFiles(s, cp)
}

// mainContext is the build context.
func (b *builder) mainContext() llb.Output {
	return b.graph.Add(llb.Local{Name: "context"}, llb.Meta{Place: llb.Place{Group: "internal"}, Text: "load build context"}).Output(0)
}

// copyFiles adds the vertices of COPY and ADD.
func (b *builder) copyFiles(s *stage, cp copying) error {
	if err := checkChmod(cp.chmod); err != nil {
		return err
	}
	link := cp.link && cp.chmod == "" // as in BuildKit, --link has no effect beside --chmod
	if link && chownByName(cp.chown) {
		return fmt.Errorf("--chown=%s: names of users and groups cannot be used with --link, use numeric uid[:gid] instead", cp.chown)
	}
	if _, err := ignore.New(b.ctx, cp.exclude); err != nil {
		return fmt.Errorf("--exclude: %w", err)
	}
	dest, err := s.copyDest(cp.DestPath)
	if err != nil {
		return err
	}
	attributes := llb.Attributes{Chown: cp.chown, Chmod: cp.chmod, Epoch: b.epoch}
	files := llb.Copy{
		Dest:       dest,
		Attributes: attributes,
		Exclude:    cp.exclude,
		Parents:    cp.parents,
		Link:       link,
	}
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
	inputs := []llb.Output{s.root}
	if files.Link {
		inputs[0] = b.scratch()
	}
	number := map[llb.Output]int{} // of inputs that are sources
	for _, src := range cp.SourcePaths {
		created.WriteString(" " + remoteurl.WithoutUser(src))
		from, source, err := cp.source(s, src)
		if err != nil {
			return err
		}
		if source.Input = number[from]; source.Input == 0 {
			source.Input = len(inputs)
			number[from] = source.Input
			inputs = append(inputs, from)
		}
		files.Sources = append(files.Sources, source)
	}
	var op llb.File
	if len(files.Sources) > 0 {
		op.Actions = append(op.Actions, llb.Action{Copy: &files})
	}
	for _, f := range cp.SourceContents {
		created.WriteString(" <<" + f.Path)
		if err := checkFileName(f.Path); err != nil {
			return err
		}
		file := llb.Mkfile{Path: files.Dest, Name: f.Path, Link: files.Link, Content: []byte(f.Data), Attributes: attributes}
		op.Actions = append(op.Actions, llb.Action{Mkfile: &file})
	}
	created.WriteString(" " + cp.DestPath + " # buildkit")

	meta := b.stepMeta(s, cp.text, b.words, s.env, cp.at)
	meta.Text = withoutUsers(meta.Text, cp.SourcePaths)
	meta.NoCache = s.noCache
	v := b.graph.Add(op, meta, inputs...)
	if files.Link {
		meta.NoCache = false
		meta.Text = "LINK " + meta.Text
		v = b.graph.Add(llb.Merge{}, meta, s.root, v.Output(0))
	}
	s.root = v.Output(0)
	s.config.Commit(created.String(), v)
	return nil
}

// source returns what a source is in, and what is taken of it.
func (cp copying) source(s *stage, src string) (llb.Output, llb.CopySource, error) {
	if cp.remote != nil {
		if v, source, err := cp.remote(src); err != nil || v.Vertex != nil {
			return v, source, err
		}
	}
	src, err := s.pathIn("/", src)
	return cp.from, llb.CopySource{Path: copySourcePath(src, cp.parents), Unpack: cp.unpack}, err
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

// copySourcePath returns the absolute path of a source: steps up do not lead out of its root. Of --parents, the first
// "/./" stays.
func copySourcePath(src string, parents bool) string {
	if before, after, ok := strings.Cut(src, "/./"); parents && ok {
		return strings.TrimSuffix(path.Join("/", before), "/") + "/." + path.Join("/", after)
	}
	return path.Join("/", src)
}

// chownByName says whether --chown has a name; root needs no file to be known.
func chownByName(chown string) bool {
	user, group, _ := strings.Cut(chown, ":")
	for _, id := range []string{user, group} {
		if _, err := strconv.ParseInt(id, 10, 32); err != nil && id != "" && id != "root" {
			return true
		}
	}
	return false
}

// checkChmod refuses a --chmod that is neither octal nor symbolic.
func checkChmod(mode string) error {
	if mode == "" {
		return nil
	}
	if n, err := strconv.ParseUint(mode, 8, 32); err == nil && n <= 0o7777 {
		return nil
	}
	if _, err := filemode.Parse(mode); err != nil {
		return fmt.Errorf("invalid chmod parameter: '%s'. it should be octal string and between 0 and 07777, or symbolic like u=rwX,go=rX", mode)
	}
	return nil
}
