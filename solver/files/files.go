// Package files implements the File op: COPY, ADD and WORKDIR. A selection yields the entries of the op's sources and their
// origins; composing resolves their paths over the destination root file system; and a sink turns the result into a digest, a
// directory or a tar. The package works on trees of entries. It does not know steps, nor when they run.
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

// Change is a File op with its inputs.
type Change struct {
	Op llb.File
	// Inputs are the inputs of the vertex. The first is the root file system to change.
	Inputs []Input
	// Owners maps the names of owners in Op to their IDs: see Owners. A missing owner is Unknown.
	Owners map[Name]Owner
	// Limit limits archives.
	Limit layer.Limit
	// Tmp is a directory for data that does not fit into memory.
	Tmp string
}

// Input is what a Change reads from.
type Input struct {
	layer.Tree
	// Local reports that the input is a directory of the client, whose files can be opened. Selected are the paths and wildcards
	// that all steps of the build select from it; nil if the client has sent what was asked for, and that is all there.
	Local    bool
	Selected []string
}

// Result is the result of a Change.
type Result struct {
	// Summary is the summary of the layer.
	layer.Summary
	// Archives describes the files of contexts that are unpacked, and Copied those that are copied by an op that unpacks archives.
	// Others describes the files of layers that are unpacked if they are archives.
	Archives []string
	Copied   []string
	Others   []string
	// Unmatched are the sources of copies that selected nothing at all, which is not an error.
	Unmatched []*NoMatchError
	// Named reports that an owner in the layer is Unknown.
	Named bool
}

// Unpacks reports whether an op unpacks archives.
func Unpacks(op llb.File) bool {
	return slices.ContainsFunc(op.Actions, func(a llb.Action) bool {
		return a.Copy != nil && slices.ContainsFunc(a.Copy.Sources, func(s llb.CopySource) bool { return s.Unpack })
	})
}

// run is the execution of a Change with a sink.
type run struct {
	Change
	ctx     context.Context
	trees   []layer.Tree // the inputs, until ctx ends
	actions []action
	unpacks bool
	result  Result

	sink      sink
	b         *compose.Builder
	streaming bool         // the builder passes entries on as they arrive
	inline    []layer.Tree // the files contained in actions; numbered after trees in origins
}

func newRun(ctx context.Context, c Change, s sink) (*run, error) {
	r := &run{Change: c, ctx: ctx, unpacks: Unpacks(c.Op), sink: s}
	for _, in := range c.Inputs {
		r.trees = append(r.trees, endingTree{in.Tree, ctx})
	}
	return r, r.prepare()
}

// action is an executable llb.Action.
type action interface {
	// find reads the parts of other inputs that the action needs, and do changes the layer.
	find() error
	do() error
	wanted() llb.Attributes
}

// maker is the part common to actions that create files.
type maker struct {
	*run
	attributes llb.Attributes
	now        moment
	owner      *Owner // nil to keep the owner of the source
	chmod      *mode.Set
	octal      bool
	dated      bool              // what is copied has the time of what is new
	replace    bool              // see llb.Copy
	context    bool              // the source is a directory of the client
	number     int               // number of the source tree
	links      map[string]string // physical path of the first copy of a file by LinkID, for one selected path
}

func (m *maker) wanted() llb.Attributes { return m.attributes }

func (m *maker) find() error { return nil }

// prepare creates the actions.
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
			err = errors.New("BUG: an empty action")
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
	m = maker{run: r, attributes: op, now: made(op)}
	if op.Chown != "" {
		o, err := r.ownerOf(op)
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

// now returns the time of directories that are created implicitly.
func (r *run) now() time.Time {
	return made(r.actions[0].wanted()).time
}

// all executes the actions and passes the layer's entries to the sink.
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

// add passes the next entry of the layer to the sink. If the sink takes no origins, LinkIDs identify hard links, which may be to
// files of lower layers.
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

// dest creates the directories of the destination, including the last component if it ends in a slash, and returns its physical
// path. follow says whether a symbolic link in the last component is followed.
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

// target returns the physical path to which a single file is copied.
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

// newDir returns the attributes of a directory that is created because the destination names it.
func (m *maker) newDir(path string) layer.Entry {
	e := layer.Entry{Type: layer.Dir, Mode: 0o755, ModTime: m.now.time, Clock: m.now.clock}
	if m.octal {
		e.Mode = m.mode(&e) & 0o777 // the other bits apply only to copied files
	}
	passOn(m.b, path, &e)
	m.own(&e)
	return e
}

func (m *maker) mode(e *layer.Entry) uint32 {
	x := layer.FSMode(e.Mode)
	if e.Type == layer.Dir {
		x |= fs.ModeDir
	}
	return layer.LinuxMode(m.chmod.Apply(x))
}

// own sets the owner of an entry.
func (m *maker) own(e *layer.Entry) {
	if m.owner == nil {
		return
	}
	e.UID, e.GID = m.owner.UID, m.owner.GID
	m.result.Named = m.result.Named || *m.owner == Unknown
}

// apply sets the owner, the mode and the time of an entry as requested by flags.
func (m *maker) apply(e *layer.Entry) {
	m.own(e)
	m.date(e)
	if m.chmod != nil && e.Type != layer.Symlink {
		e.Mode = m.mode(e)
	}
}

// date sets the time of an entry that is copied.
func (m *maker) date(e *layer.Entry) {
	if m.dated {
		e.ModTime, e.Clock = m.now.time, m.now.clock
	}
}

// parentExists returns an error if the directory of a path is missing.
func (m *maker) parentExists(name string) error {
	at, _, err := m.b.Resolve(name, true)
	if err != nil || at == "" {
		return err
	}
	dir := layer.Parent(at)
	if dir == "" {
		return nil
	}
	if e, ok, err := m.b.Lookup(dir); err != nil || ok && e.Type == layer.Dir {
		return err
	}
	return &layer.PathError{Path: dir, Msg: "is not a directory, or does not exist"}
}

// clear removes what is at a physical path, if it is of another kind than what is to be put there and may be replaced.
func (m *maker) clear(target string, old layer.Entry, exists bool, with layer.Type) (still bool, err error) {
	if !exists || !m.replace || (old.Type == layer.Dir) == (with == layer.Dir) {
		return exists, nil
	}
	return false, m.b.Delete(target)
}

// leaf copies anything except a directory to a physical path.
func (m *maker) leaf(tree layer.Tree, src layer.Entry, target string) error {
	old, ok, err := m.b.Lookup(target)
	if err == nil {
		ok, err = m.clear(target, old, ok, src.Type)
	}
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
				return nil // it was removed
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
