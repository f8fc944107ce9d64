package ops

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	mode "github.com/tonistiigi/dchapes-mode"

	"github.com/kilnbuild/kiln/internal/ignore"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/passwd"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/solver"
)

// planCopy plans COPY and ADD. The layer's entries are worked out without writing anything: their digest is the key, so
// that nothing but what is selected and what decides where it goes has any part in it. Archives that are to be unpacked
// enter with their own digest, and with the whole content of the root that they are unpacked over.
func (r *Runner) planCopy(ctx context.Context, v *llb.Vertex, op llb.Copy, in []*solver.Chain) (solver.Step, error) {
	c := &copying{store: r.Snapshots, op: op, now: made(op.Epoch), limit: r.Snapshots.Limit, inputs: make([]layer.Tree, len(in)),
		local: make([]bool, len(in)), selections: make([][]string, len(in))}
	c.unpacks = slices.ContainsFunc(op.Sources, func(s llb.CopySource) bool { return s.Unpack })
	for i, vertex := range v.Inputs() {
		var t layer.Tree
		var err error
		if i == 0 {
			t, err = r.destination(ctx, vertex, in[0], passwd.NeedsFiles(op.Chown) || c.unpacks)
		} else {
			t, err = r.tree(ctx, vertex, in[i])
		}
		if err != nil {
			return solver.Step{}, err
		}
		c.inputs[i] = t
		if _, c.local[i] = vertex.Op().(llb.Local); c.local[i] {
			c.selections[i] = r.selections[vertex.Digest()]
		}
	}
	c.during(ctx)
	// Without an image below there are no names.
	c.nameless = op.Link || in[0] == nil
	if err := c.prepare(r.warn); err != nil {
		return solver.Step{}, err
	}
	planned, err := c.build(nil)
	if err != nil {
		return solver.Step{}, err
	}
	inputs := append(common(v), contentInput("files", solver.Content(planned.Content)), epochInput(op.Epoch))
	archives, copied := c.archives, c.copied
	if len(archives) > 0 {
		inputs = append(inputs, contentInput("root", in[0].Content()), solver.Input{Name: "chown", Value: op.Chown})
		for _, a := range archives {
			inputs = append(inputs, solver.Input{Name: "archive", Value: a})
		}
	}
	return solver.Step{
		Inputs: inputs,
		Run: func(ctx context.Context, job solver.Job) (solver.Layer, error) {
			c.during(ctx)
			if r.pack != nil && !r.inFiles[v.Digest()] && !c.unpacks {
				return r.packLayer(ctx, c, planned, job)
			}
			p, written, err := c.write(job.Last.ID)
			if err != nil {
				return solver.Layer{}, err
			}
			defer p.Close()
			// Another program may have written to the context since it was looked at. What is in archives is not known
			// before they are unpacked, only their own digests are.
			same := slices.Equal(c.archives, archives) && slices.Equal(c.copied, copied)
			if len(archives) == 0 {
				same = same && written.Content == planned.Content
			}
			if !same {
				return solver.Layer{}, errChanged
			}
			layer, err := p.CommitWritten(written, "")
			r.Snapshots.SetEarlier(layer.ID, job.Last.ID)
			return committed(layer), err
		},
	}, nil
}

// copying is one COPY or ADD. build does it, with or without writing.
type copying struct {
	ctx    context.Context
	store  *snapshot.Store
	op     llb.Copy
	now    moment
	limit  layer.Limit // of archives
	inputs []layer.Tree
	trees  []layer.Tree // the inputs, until ctx ends
	local  []bool       // which of the inputs are contexts
	// selections are what all sources of the build select of the inputs that are contexts.
	selections [][]string

	exclude  *ignore.Matcher
	nameless bool   // a name in --chown is an error if it cannot be looked up
	owner    *owner // nil: as in the source
	chmod    *mode.Set
	octal    bool
	archives []string // what the last build unpacked, in words
	unpacks  bool     // whether it may
	copied   []string // and then the files that it copied besides, in words

	emit      func(*layer.Entry) error // takes the layer's entries, in order
	streaming bool                     // the builder emits them itself
	reuse     func(*snapshot.Builder)  // is given a builder that writes
	b         *snapshot.Builder
	writing   bool
	links     map[string]string // physical path of the first copy of a file, by LinkID, below one selected path
	from      map[string]origin // of files, by physical path: those of all, or the last one of a stream; nil: nobody asks
}

// during makes ctx the one that ends the copying.
func (c *copying) during(ctx context.Context) {
	c.ctx, c.trees = ctx, make([]layer.Tree, len(c.inputs))
	for i, t := range c.inputs {
		c.trees[i] = endingTree{t, ctx}
	}
}

type owner struct{ uid, gid uint32 }

func (c *copying) prepare(warn func(string)) error {
	var err error
	if c.exclude, err = ignore.New(c.ctx, c.op.Exclude); err != nil {
		return fmt.Errorf("read --exclude: %w", err)
	}
	if c.op.Chown != "" {
		etc := c.trees[0]
		uid, gid, err := passwd.Owner(opener(etc, "/etc/passwd"), opener(etc, "/etc/group"), c.op.Chown)
		if _, missing := errors.AsType[*passwd.NotFoundError](err); missing && !c.nameless {
			warn(fmt.Sprintf("--chown=%s: %v; the files belong to %d:%d, as with docker build", c.op.Chown, err, uid, gid))
		} else if err != nil {
			return fmt.Errorf("look up --chown=%s: %w", c.op.Chown, err)
		}
		c.owner = &owner{uid, gid}
	}
	if c.op.Chmod == "" {
		return nil
	}
	n, err := strconv.ParseUint(c.op.Chmod, 8, 32)
	c.octal = err == nil
	if c.octal && n > 0o7777 {
		return fmt.Errorf("--chmod=%s is out of range: an octal mode is between 0 and 07777", c.op.Chmod)
	}
	set, err := mode.ParseWithUmask(c.op.Chmod, 0)
	if err != nil {
		return fmt.Errorf("--chmod=%s is neither an octal mode, as 0644, nor a symbolic one, as u=rwX,go=rX", c.op.Chmod)
	}
	c.chmod = &set
	return nil
}

// write makes the layer. What is as it was in the layer that the step made last is taken from there: if that is possible by having it
// below, else by hard links.
func (c *copying) write(last string) (*snapshot.Pending, layer.Summary, error) {
	over := !c.unpacks
	for {
		p, err := c.store.New()
		if err != nil {
			return nil, layer.Summary{}, err
		}
		c.reuse = func(b *snapshot.Builder) {
			b.Reuse(c.store, last)
			if over {
				b.Over(c.store, last)
			}
		}
		sum, err := c.build(p)
		if err == nil {
			return p, sum, nil
		}
		p.Close()
		if !over || !errors.Is(err, snapshot.ErrNotOver) {
			return nil, sum, err
		}
		over = false
	}
}

// build puts everything into a builder and returns the summary of the layer. With p it writes it there, with its manifest.
func (c *copying) build(p *snapshot.Pending) (sum layer.Summary, err error) {
	c.b = c.store.NewBuilder(c.trees[0], p, c.now.time)
	c.b.Trim()
	defer c.b.Close()
	digests := layer.NewDigester()
	c.emit, c.streaming = digests.Add, false
	var manifest *layer.Writer
	if c.writing = p != nil; c.writing {
		c.reuse(c.b)
		if manifest, err = p.Manifest(); err != nil {
			return sum, err
		}
		c.emit = manifest.Add
	}
	if err = c.all(); err != nil {
		if manifest != nil {
			manifest.Abort()
		}
		return sum, err
	}
	if manifest != nil {
		if p.Over() {
			manifest.Over()
		}
		return manifest.Close(time.Now())
	}
	return digests.Sum(), nil
}

// all copies the sources and emits the layer's entries.
func (c *copying) all() error {
	c.archives, c.copied = nil, nil
	matches, err := c.find()
	if err != nil {
		return err
	}
	for i, src := range c.op.Sources {
		if err := c.source(src, matches[i]); err != nil {
			return err
		}
	}
	if !c.streaming {
		if err := c.b.Entries(c.emit); err != nil {
			return err
		}
	}
	return c.b.Finish()
}

// selected is a path that a source selects, and what is there.
type selected struct {
	name     string // as the source has it
	physical string
	entry    *layer.Entry // nil: nothing is there
}

// find returns what each source selects. Files whose digests are not known yet are read for them, several at a time.
func (c *copying) find() ([][]selected, error) {
	all := make([][]selected, len(c.op.Sources))
	files := make([][]*layer.Entry, len(c.trees))
	for i, src := range c.op.Sources {
		if src.Inline != nil || c.op.Parents {
			continue
		}
		tree := c.trees[src.Input]
		names, err := glob(tree, src.Path)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			m := selected{name: name}
			if m.physical, m.entry, err = snapshot.Resolve(tree.Lookup, name, true); err != nil {
				return nil, err
			}
			all[i] = append(all[i], m)
			if m.entry != nil && m.entry.Type == layer.File {
				files[src.Input] = append(files[src.Input], m.entry)
			}
		}
	}
	for i, list := range files {
		if len(list) == 0 {
			continue
		}
		if err := c.trees[i].Sum(c.ctx, list); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (c *copying) source(src llb.CopySource, matches []selected) error {
	if src.Inline != nil {
		return c.inline(src.Inline)
	}
	tree := c.trees[src.Input]
	if c.op.Parents {
		return c.parents(tree, src)
	}
	if len(matches) == 0 {
		literal, _ := split(src.Path)
		return c.unmatched(tree, src, literal)
	}
	for _, m := range matches {
		c.links = map[string]string{}
		if err := c.match(tree, m, src, len(matches) == 1 && len(c.op.Sources) == 1 && !c.unpacks); err != nil {
			return err
		}
	}
	return nil
}

// match copies one path that a source selects; only says that there is nothing else to copy.
func (c *copying) match(tree layer.Tree, m selected, src llb.CopySource, only bool) error {
	e := m.entry
	if e == nil {
		if src.AllowMissing {
			return nil
		}
		return notFound(tree, m.name, m.physical)
	}
	if src.Unpack && e.Type == layer.File {
		ok, err := c.archive(tree, e)
		if ok || err != nil {
			return err
		}
	}
	dest, err := c.dest()
	if err != nil {
		return err
	}
	if e.Type == layer.Dir {
		return c.dir(tree, *e, dest, only)
	}
	target, err := c.target(dest, path.Base("/"+m.name))
	if err != nil {
		return err
	}
	return c.leaf(tree, *e, target)
}

// dest makes the directories that the destination names, all of it if it ends in a slash, else all but the last
// component, and returns its physical path.
func (c *copying) dest() (string, error) {
	dir := c.op.Dest
	if !strings.HasSuffix(dir, "/") {
		dir = path.Dir(dir)
	}
	physical, _, err := c.b.Resolve(dir, true)
	if err != nil {
		return "", err
	}
	if err := c.b.Mkdirs(physical, c.newDir); err != nil {
		return "", err
	}
	physical, _, err = c.b.Resolve(c.op.Dest, !c.op.Link)
	return physical, err
}

// target returns the physical path that a single file goes to.
func (c *copying) target(dest, base string) (string, error) {
	e, ok, err := c.b.Lookup(dest)
	if err != nil {
		return "", err
	}
	if !ok || e.Type != layer.Dir {
		return dest, nil
	}
	return join(dest, base), nil
}

// newDir is what a directory is like that only the destination names.
func (c *copying) newDir(path string) layer.Entry {
	e := layer.Entry{Type: layer.Dir, Mode: 0o755, ModTime: c.now.time, Clock: c.now.clock}
	if c.octal {
		e.Mode = c.mode(&e) & 0o777 // the other bits are for what is copied
	}
	passOn(c.b, path, &e)
	if c.owner != nil {
		e.UID, e.GID = c.owner.uid, c.owner.gid
	}
	return e
}

func (c *copying) mode(e *layer.Entry) uint32 {
	m := fs.FileMode(e.Mode & 0o777)
	for bit, flag := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if e.Mode&bit != 0 {
			m |= flag
		}
	}
	if e.Type == layer.Dir {
		m |= fs.ModeDir
	}
	m = c.chmod.Apply(m)
	out := uint32(m.Perm())
	for bit, flag := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&flag != 0 {
			out |= bit
		}
	}
	return out
}

// attributes gives an entry the owner and mode that the flags ask for.
func (c *copying) attributes(e *layer.Entry) {
	if c.owner != nil {
		e.UID, e.GID = c.owner.uid, c.owner.gid
	}
	if c.chmod != nil && e.Type != layer.Symlink {
		e.Mode = c.mode(e)
	}
}

// dir copies what is in a source directory into dest. If that is all there is to copy, it comes in the order of the layer's
// entries, each path once, so that nothing has to be kept of however many files.
func (c *copying) dir(tree layer.Tree, src layer.Entry, dest string, only bool) error {
	if only {
		c.streaming = true
		c.b.Stream(c.emit)
	}
	old, ok, err := c.b.Lookup(dest)
	if err != nil {
		return err
	}
	if ok && old.Type != layer.Dir {
		return &snapshot.PathError{Path: dest, Msg: "is not a directory, and a directory cannot be copied to it"}
	}
	top := old
	if !ok {
		top = c.newDir(dest)
		top.Path = dest
	}
	if dest != "" {
		// The directory that is copied into gets the source's time, and keeps its own attributes.
		top.ModTime, top.Clock = src.ModTime, src.Clock
		if err := c.b.Put(top, nil); err != nil {
			return err
		}
	}
	return c.below(tree, src.Path, func(e *layer.Entry) error {
		return c.nested(tree, *e, join(dest, strings.TrimPrefix(e.Path[len(src.Path):], "/")))
	})
}

// put copies selected entries of one tree, parents first, to the physical paths that to gives for theirs.
func (c *copying) put(tree layer.Tree, selected []*layer.Entry, to func(string) string) error {
	for _, src := range selected {
		if c.ctx.Err() != nil {
			return context.Cause(c.ctx)
		}
		if err := c.nested(tree, *src, to(src.Path)); err != nil {
			return err
		}
	}
	return nil
}

// nested copies an entry that lies below a source directory.
func (c *copying) nested(tree layer.Tree, src layer.Entry, target string) error {
	if src.Type != layer.Dir {
		return c.leaf(tree, src, target)
	}
	old, ok, err := c.b.Lookup(target)
	if err != nil {
		return err
	}
	if ok && old.Type != layer.Dir {
		return &snapshot.PathError{Path: target, Msg: "is not a directory, and a directory cannot be copied to it"}
	}
	src.Path, src.Implied, src.Opaque, src.LinkID = target, false, false, ""
	c.attributes(&src)
	return c.b.Put(src, nil)
}

// leaf copies anything but a directory to a physical path.
func (c *copying) leaf(tree layer.Tree, src layer.Entry, target string) error {
	old, ok, err := c.b.Lookup(target)
	if err != nil {
		return err
	}
	if ok && old.Type == layer.Dir {
		return &snapshot.PathError{Path: target, Msg: "is a directory, and a file cannot be copied to it"}
	}
	if first, ok := c.links[src.LinkID]; ok && src.LinkID != "" {
		src.Path = target
		c.attributes(&src)
		if !c.streaming && c.from != nil {
			c.from[target] = c.from[first]
		}
		return c.b.Link(src, first)
	}
	if src.LinkID != "" {
		c.links[src.LinkID] = target
	}
	var body io.Reader
	if src.Type == layer.File {
		if src.Digest == (layer.Digest{}) {
			read := src // src itself need not be on the heap
			if err := tree.Sum(c.ctx, []*layer.Entry{&read}); err != nil {
				return err
			}
			src = read
		}
		if c.from != nil {
			if c.streaming {
				clear(c.from)
			}
			c.from[target] = origin{tree, src.Path}
		}
		if c.writing {
			f := &lazyFile{tree: tree, entry: src}
			defer f.Close()
			body = f
		}
	}
	src.Path, src.LinkID = target, ""
	c.attributes(&src)
	if err := c.b.Put(src, body); err != nil || !c.unpacks || src.Type != layer.File {
		return err
	}
	put, _, err := c.b.Lookup(target)
	c.copied = append(c.copied, fmt.Sprintf("%x to /%s", put.Digest, target))
	return err
}

// inline copies a heredoc.
func (c *copying) inline(f *llb.InlineFile) error {
	dest, err := c.dest()
	if err != nil {
		return err
	}
	target, err := c.target(dest, f.Name)
	if err != nil {
		return err
	}
	tree := inlineTree{f.Content}
	return c.leaf(tree, layer.Entry{Type: layer.File, Mode: 0o644, Size: int64(len(f.Content)), ModTime: c.now.time, Clock: c.now.clock}, target)
}

func join(dir, name string) string {
	switch {
	case dir == "":
		return name
	case name == "":
		return dir
	}
	return dir + "/" + name
}

// lazyFile is a file of a tree that is opened when somebody reads it.
type lazyFile struct {
	tree  layer.Tree
	entry layer.Entry
	file  io.ReadCloser
}

func (l *lazyFile) Read(p []byte) (int, error) {
	if l.file == nil {
		f, err := l.tree.Open(&l.entry)
		if err != nil {
			return 0, err
		}
		l.file = f
	}
	return l.file.Read(p)
}

func (l *lazyFile) Close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}
