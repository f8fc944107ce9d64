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

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/passwd"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/solver"
)

// planFile plans COPY, ADD and WORKDIR. The layer's entries are worked out without writing anything: their digest is the key, so
// that nothing but what is selected and what decides where it goes has any part in it. Archives that are to be unpacked
// enter with their own digest, and with the whole content of the root that they are unpacked over.
func (r *Runner) planFile(ctx context.Context, v *llb.Vertex, op llb.File, in []*solver.Chain) (solver.Step, error) {
	f := &filing{store: r.Snapshots, op: op, limit: r.Snapshots.Limit, inputs: make([]layer.Tree, len(in)),
		local: make([]bool, len(in)), selections: make([][]string, len(in)), unpacks: unpacks(op)}
	for i, input := range v.Inputs() {
		var t layer.Tree
		var err error
		if i == 0 {
			t, err = r.destination(ctx, input, in[0], looksInside(op))
		} else {
			t, err = r.tree(ctx, input, in[i])
		}
		if err != nil {
			return solver.Step{}, err
		}
		f.inputs[i] = t
		if _, f.local[i] = input.Vertex.Op().(llb.Local); f.local[i] {
			f.selections[i] = r.selections[input.Vertex.Digest()]
		}
	}
	f.during(ctx)
	if err := f.prepare(in[0] == nil, r.warn); err != nil {
		return solver.Step{}, err
	}
	planned, err := f.build(nil)
	if err != nil {
		return solver.Step{}, err
	}
	inputs := append(common(v), contentInput("files", solver.Content(planned.Content)))
	inputs = append(inputs, f.epochs()...)
	archives, copied := f.archives, f.copied
	if len(archives) > 0 {
		inputs = append(inputs, contentInput("root", in[0].Content()))
		for _, a := range f.actions {
			inputs = append(inputs, solver.Input{Name: "chown", Value: a.wanted().Chown})
		}
		for _, a := range archives {
			inputs = append(inputs, solver.Input{Name: "archive", Value: a})
		}
	}
	return solver.Step{
		Inputs: inputs,
		Run: func(ctx context.Context, job solver.Job) (solver.Layer, error) {
			f.during(ctx)
			if r.pack != nil && !r.inFiles[v.Digest()] && !f.unpacks {
				return r.packLayer(ctx, f, planned, job)
			}
			p, written, err := f.write(job.Last.ID)
			if err != nil {
				return solver.Layer{}, err
			}
			defer p.Close()
			// Another program may have written to the context since it was looked at. What is in archives is not known
			// before they are unpacked, only their own digests are.
			same := slices.Equal(f.archives, archives) && slices.Equal(f.copied, copied)
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

// epochs are the key inputs of the times that actions give; none if they give none.
func (f *filing) epochs() []solver.Input {
	var inputs []solver.Input
	given := false
	for _, a := range f.actions {
		in := solver.Input{Name: "epoch"}
		if epoch := a.wanted().Epoch; epoch != nil {
			in.Value, given = strconv.FormatInt(*epoch, 10), true
		}
		inputs = append(inputs, in)
	}
	if !given {
		return nil
	}
	return inputs
}

// unpacks reports whether an op unpacks files that are archives.
func unpacks(op llb.File) bool {
	return slices.ContainsFunc(op.Actions, func(a llb.Action) bool {
		return a.Copy != nil && slices.ContainsFunc(a.Copy.Sources, func(s llb.CopySource) bool { return s.Unpack })
	})
}

// filing is one File op. build does it, with or without writing.
type filing struct {
	ctx    context.Context
	store  *snapshot.Store
	op     llb.File
	limit  layer.Limit // of archives
	inputs []layer.Tree
	trees  []layer.Tree // the inputs, until ctx ends
	local  []bool       // which of the inputs are contexts
	// selections are what all sources of the build select of the inputs that are contexts.
	selections [][]string
	actions    []action

	archives []string // what the last build unpacked, in words
	unpacks  bool     // whether it may
	copied   []string // and then the files that it copied besides, in words

	emit      func(*layer.Entry) error // takes the layer's entries, in order
	streaming bool                     // the builder emits them itself
	reuse     func(*snapshot.Builder)  // is given a builder that writes
	b         *snapshot.Builder
	writing   bool
	from      map[string]origin // of files, by physical path: those of all, or the last one of a stream; nil: nobody asks
}

// during makes ctx the one that ends the work.
func (f *filing) during(ctx context.Context) {
	f.ctx, f.trees = ctx, make([]layer.Tree, len(f.inputs))
	for i, t := range f.inputs {
		f.trees[i] = endingTree{t, ctx}
	}
}

// action is an llb.Action that can be done.
type action interface {
	// find reads what the action needs to know of other inputs, and do changes the layer.
	find() error
	do() error
	wanted() llb.Attributes
}

type owner struct{ uid, gid uint32 }

// maker is an action that makes files with attributes.
type maker struct {
	*filing
	attributes llb.Attributes
	now        moment
	owner      *owner // nil: as in the source
	chmod      *mode.Set
	octal      bool
	links      map[string]string // physical path of the first copy of a file, by LinkID, below one selected path
}

func (m *maker) wanted() llb.Attributes { return m.attributes }

func (m *maker) find() error { return nil }

// prepare makes the actions ready. empty says that there is nothing below, and so no names of users.
func (f *filing) prepare(empty bool, warn func(string)) error {
	if len(f.op.Actions) == 0 {
		return errors.New("BUG: a file op without actions")
	}
	for _, op := range f.op.Actions {
		var a action
		var err error
		switch {
		case op.Copy != nil:
			a, err = f.newCopy(op.Copy, empty, warn)
		case op.Mkfile != nil:
			m := &mkfile{op: op.Mkfile}
			m.maker, err = f.maker(op.Mkfile.Attributes, forFlag, empty || op.Mkfile.Link, warn)
			a = m
		case op.Mkdir != nil:
			m := &mkdir{op: op.Mkdir}
			m.maker, err = f.maker(op.Mkdir.Attributes, forUser, empty, warn)
			a = m
		case op.Remove != nil:
			a = &remove{filing: f, op: op.Remove}
		case op.Symlink != nil:
			m := &symlink{op: op.Symlink}
			m.maker, err = f.maker(op.Symlink.Attributes, forFlag, empty, warn)
			a = m
		default:
			err = errors.New("BUG: an action that is none")
		}
		if err != nil {
			return err
		}
		f.actions = append(f.actions, a)
	}
	return nil
}

// asker is who asks for an owner, in messages: what asks, and what then belongs to it.
type asker struct{ flag, what string }

var (
	forFlag = asker{"--chown=", "the files belong"}
	forUser = asker{"USER ", "a directory that WORKDIR makes belongs"}
)

// maker returns the maker of an action with these attributes. A name that does not exist is an error if nameless, else a warning.
func (f *filing) maker(op llb.Attributes, by asker, nameless bool, warn func(string)) (m maker, err error) {
	m = maker{filing: f, attributes: op, now: made(op.Epoch)}
	if op.Chown != "" {
		etc := f.trees[0]
		uid, gid, err := passwd.Owner(opener(etc, "/etc/passwd"), opener(etc, "/etc/group"), op.Chown)
		if _, missing := errors.AsType[*passwd.NotFoundError](err); missing && !nameless {
			warn(fmt.Sprintf("%s%s: %v; %s to %d:%d, as with docker build", by.flag, op.Chown, err, by.what, uid, gid))
		} else if err != nil {
			return m, fmt.Errorf("look up %s%s: %w", by.flag, op.Chown, err)
		}
		m.owner = &owner{uid, gid}
	}
	if op.Chmod == "" {
		return m, nil
	}
	n, err := strconv.ParseUint(op.Chmod, 8, 32)
	m.octal = err == nil
	if m.octal && n > 0o7777 {
		return m, fmt.Errorf("--chmod=%s is out of range: an octal mode is between 0 and 07777", op.Chmod)
	}
	set, err := mode.ParseWithUmask(op.Chmod, 0)
	if err != nil {
		return m, fmt.Errorf("--chmod=%s is neither an octal mode, as 0644, nor a symbolic one, as u=rwX,go=rX", op.Chmod)
	}
	m.chmod = &set
	return m, nil
}

// write makes the layer. What is as it was in the layer that the step made last is taken from there: if that is possible by having it
// below, else by hard links.
func (f *filing) write(last string) (*snapshot.Pending, layer.Summary, error) {
	over := !f.unpacks
	for {
		p, err := f.store.New()
		if err != nil {
			return nil, layer.Summary{}, err
		}
		f.reuse = func(b *snapshot.Builder) {
			b.Reuse(f.store, last)
			if over {
				b.Over(f.store, last)
			}
		}
		sum, err := f.build(p)
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
func (f *filing) build(p *snapshot.Pending) (sum layer.Summary, err error) {
	f.b = f.store.NewBuilder(f.trees[0], p, f.now())
	f.b.Trim()
	defer f.b.Close()
	digests := layer.NewDigester()
	f.emit, f.streaming = digests.Add, false
	var manifest *layer.Writer
	if f.writing = p != nil; f.writing {
		f.reuse(f.b)
		if manifest, err = p.Manifest(); err != nil {
			return sum, err
		}
		f.emit = manifest.Add
	}
	if err = f.all(); err != nil {
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

// now is the time of directories that no action asks for.
func (f *filing) now() time.Time {
	return made(f.actions[0].wanted().Epoch).time
}

// all does the actions and emits the layer's entries.
func (f *filing) all() error {
	f.archives, f.copied = nil, nil
	for _, a := range f.actions {
		if err := a.find(); err != nil {
			return err
		}
	}
	for _, a := range f.actions {
		if err := a.do(); err != nil {
			return err
		}
	}
	if !f.streaming {
		if err := f.b.Entries(f.emit); err != nil {
			return err
		}
	}
	return f.b.Finish()
}

// dest makes the directories that the destination names, all of it if it ends in a slash, else all but the last
// component, and returns its physical path. follow says whether the last component is followed.
func (m *maker) dest(to string, follow bool) (string, error) {
	dir := to
	if !strings.HasSuffix(dir, "/") {
		dir = path.Dir(dir)
	}
	physical, _, err := m.b.Resolve(dir, true)
	if err != nil {
		return "", err
	}
	if err := m.b.Mkdirs(physical, m.newDir); err != nil {
		return "", err
	}
	physical, _, err = m.b.Resolve(to, follow)
	return physical, err
}

// target returns the physical path that a single file goes to.
func (m *maker) target(dest, base string) (string, error) {
	e, ok, err := m.b.Lookup(dest)
	if err != nil {
		return "", err
	}
	if !ok || e.Type != layer.Dir {
		return dest, nil
	}
	return join(dest, base), nil
}

// newDir is what a directory is like that only the destination names.
func (m *maker) newDir(path string) layer.Entry {
	e := layer.Entry{Type: layer.Dir, Mode: 0o755, ModTime: m.now.time, Clock: m.now.clock}
	if m.octal {
		e.Mode = m.mode(&e) & 0o777 // the other bits are for what is copied
	}
	passOn(m.b, path, &e)
	if m.owner != nil {
		e.UID, e.GID = m.owner.uid, m.owner.gid
	}
	return e
}

func (m *maker) mode(e *layer.Entry) uint32 {
	x := fs.FileMode(e.Mode & 0o777)
	for bit, flag := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if e.Mode&bit != 0 {
			x |= flag
		}
	}
	if e.Type == layer.Dir {
		x |= fs.ModeDir
	}
	x = m.chmod.Apply(x)
	out := uint32(x.Perm())
	for bit, flag := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if x&flag != 0 {
			out |= bit
		}
	}
	return out
}

// apply gives an entry the owner and mode that the flags ask for.
func (m *maker) apply(e *layer.Entry) {
	if m.owner != nil {
		e.UID, e.GID = m.owner.uid, m.owner.gid
	}
	if m.chmod != nil && e.Type != layer.Symlink {
		e.Mode = m.mode(e)
	}
}

// leaf copies anything but a directory to a physical path.
func (m *maker) leaf(tree layer.Tree, src layer.Entry, target string) error {
	old, ok, err := m.b.Lookup(target)
	if err != nil {
		return err
	}
	if ok && old.Type == layer.Dir {
		return &snapshot.PathError{Path: target, Msg: "is a directory, and a file cannot be copied to it"}
	}
	if first, ok := m.links[src.LinkID]; ok && src.LinkID != "" {
		src.Path = target
		m.apply(&src)
		if !m.streaming && m.from != nil {
			m.from[target] = m.from[first]
		}
		return m.b.Link(src, first)
	}
	if src.LinkID != "" {
		m.links[src.LinkID] = target
	}
	var body io.Reader
	if src.Type == layer.File {
		if src.Digest == (layer.Digest{}) {
			read := src // src itself need not be on the heap
			if err := tree.Sum(m.ctx, []*layer.Entry{&read}); err != nil {
				return err
			}
			src = read
		}
		if m.from != nil {
			if m.streaming {
				clear(m.from)
			}
			m.from[target] = origin{tree, src.Path}
		}
		if m.writing {
			f := &lazyFile{tree: tree, entry: src}
			defer f.Close()
			body = f
		}
	}
	src.Path, src.LinkID = target, ""
	m.apply(&src)
	if err := m.b.Put(src, body); err != nil || !m.unpacks || src.Type != layer.File {
		return err
	}
	put, _, err := m.b.Lookup(target)
	m.copied = append(m.copied, fmt.Sprintf("%x to /%s", put.Digest, target))
	return err
}
