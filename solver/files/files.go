// Package files does what a File op says: COPY, ADD and WORKDIR. A selection yields the entries that the op's sources have, with where
// they come from; composing them resolves their paths over the root file system that they go to; and a sink makes a digest, a directory
// or a tar of what comes out. It knows trees of entries, and neither steps nor when one runs.
package files

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
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot/compose"
)

// Change is a File op with what it works on.
type Change struct {
	Op llb.File
	// Inputs are those of the vertex: the first is the root file system that is changed.
	Inputs []Input
	// Owners are the owners that names in Op stand for, by what Op says: see Owners. An owner that is not there is Unknown.
	Owners map[string]Owner
	// Limit bounds archives.
	Limit layer.Limit
	// Tmp is a directory for what does not fit into memory.
	Tmp string
}

// Input is what a Change reads from.
type Input struct {
	layer.Tree
	// Local says that it is a directory of the client, whose files can be opened. Selected are the paths and wildcards that all the steps
	// of the build select of it.
	Local    bool
	Selected []string
}

// Result is what came of a Change.
type Result struct {
	// Summary is that of the layer.
	layer.Summary
	// Archives are the files of contexts that are unpacked, in words, and Copied those that are copied beside any archives. Others are
	// the files of layers that are unpacked if they are archives.
	Archives []string
	Copied   []string
	Others   []string
	// Named says that an owner in the layer is Unknown.
	Named bool
}

// Unpacks reports whether an op unpacks files that are archives.
func Unpacks(op llb.File) bool {
	return slices.ContainsFunc(op.Actions, func(a llb.Action) bool {
		return a.Copy != nil && slices.ContainsFunc(a.Copy.Sources, func(s llb.CopySource) bool { return s.Unpack })
	})
}

// run is a Change on its way into a sink.
type run struct {
	Change
	ctx     context.Context
	trees   []layer.Tree // the inputs, until ctx ends
	actions []action
	unpacks bool
	result  Result

	sink      sink
	b         *compose.Builder
	streaming bool         // the builder passes entries on as they come
	inline    []layer.Tree // the files that actions hold, after trees in the numbers of origins
}

func newRun(ctx context.Context, c Change, s sink) (*run, error) {
	r := &run{Change: c, ctx: ctx, unpacks: Unpacks(c.Op), sink: s}
	for _, in := range c.Inputs {
		r.trees = append(r.trees, endingTree{in.Tree, ctx})
	}
	return r, r.prepare()
}

// action is an llb.Action that can be done.
type action interface {
	// find reads what the action needs to know of other inputs, and do changes the layer.
	find() error
	do() error
	wanted() llb.Attributes
}

// maker is an action that makes files with attributes.
type maker struct {
	*run
	attributes llb.Attributes
	now        moment
	owner      *Owner // nil: as in the source
	chmod      *mode.Set
	octal      bool
	context    bool              // what is copied is of a directory of the client
	number     int               // that of the tree that it is of
	links      map[string]string // physical path of the first copy of a file, by LinkID, below one selected path
}

func (m *maker) wanted() llb.Attributes { return m.attributes }

func (m *maker) find() error { return nil }

// prepare makes the actions ready.
func (r *run) prepare() error {
	if len(r.Op.Actions) == 0 {
		return errors.New("BUG: a file op without actions")
	}
	for _, op := range r.Op.Actions {
		var a action
		var err error
		switch {
		case op.Copy != nil:
			a, err = r.newCopy(op.Copy)
		case op.Mkfile != nil:
			m := &mkfile{op: op.Mkfile}
			m.maker, err = r.maker(op.Mkfile.Attributes)
			a = m
		case op.Mkdir != nil:
			m := &mkdir{op: op.Mkdir}
			m.maker, err = r.maker(op.Mkdir.Attributes)
			a = m
		case op.Remove != nil:
			a = &remove{run: r, op: op.Remove}
		case op.Symlink != nil:
			m := &symlink{op: op.Symlink}
			m.maker, err = r.maker(op.Symlink.Attributes)
			a = m
		default:
			err = errors.New("BUG: an action that is none")
		}
		if err != nil {
			return err
		}
		r.actions = append(r.actions, a)
	}
	return nil
}

// maker returns the maker of an action with these attributes.
func (r *run) maker(op llb.Attributes) (m maker, err error) {
	m = maker{run: r, attributes: op, now: made(op.Epoch)}
	if op.Chown != "" {
		o, err := r.ownerOf(op.Chown)
		if err != nil {
			return m, err
		}
		m.owner = &o
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

// now is the time of directories that no action asks for.
func (r *run) now() time.Time {
	return made(r.actions[0].wanted().Epoch).time
}

// all does the actions and gives the sink the layer's entries.
func (r *run) all() error {
	for _, a := range r.actions {
		if err := a.find(); err != nil {
			return err
		}
	}
	for _, a := range r.actions {
		if err := a.do(); err != nil {
			return err
		}
	}
	if !r.streaming {
		if err := r.b.Entries(r.add); err != nil {
			return err
		}
	}
	return r.b.Finish()
}

// add gives the sink the next entry of the layer. Where the sink takes no origins a LinkID is that of hard links, which may be of
// files below.
func (r *run) add(e *layer.Entry) error {
	if !r.sink.origins() {
		return r.sink.add(e, origin{})
	}
	from, err := r.origin(e.LinkID)
	if err != nil {
		return err
	}
	return r.sink.add(e, from)
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
	m.own(&e)
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

// own gives an entry its owner.
func (m *maker) own(e *layer.Entry) {
	if m.owner == nil {
		return
	}
	e.UID, e.GID = m.owner.UID, m.owner.GID
	m.result.Named = m.result.Named || *m.owner == Unknown
}

// apply gives an entry the owner and mode that the flags ask for.
func (m *maker) apply(e *layer.Entry) {
	m.own(e)
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
		return &layer.PathError{Path: target, Msg: "is a directory, and a file cannot be copied to it"}
	}
	if first, ok := m.links[src.LinkID]; ok && src.LinkID != "" {
		src.Path = target
		m.apply(&src)
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
			if read.Type == layer.Whiteout {
				return nil // it was removed, and is nothing that could be copied
			}
			src = read
		}
		if m.sink.bodies() {
			f := &lazyFile{tree: tree, entry: src}
			defer f.Close()
			body = f
		}
	}
	id := ""
	if src.Type == layer.File && m.sink.origins() {
		id = originID(m.number, src.Path)
	}
	src.Path, src.LinkID = target, id
	m.apply(&src)
	if err := m.b.Put(src, body); err != nil || !m.unpacks || !m.context || src.Type != layer.File {
		return err
	}
	put, _, err := m.b.Lookup(target)
	m.result.Copied = append(m.result.Copied, fmt.Sprintf("%x to /%s", put.Digest, target))
	return err
}
