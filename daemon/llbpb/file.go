package llbpb

import (
	"errors"
	"fmt"
	"math"
	"path"
	"strconv"
	"strings"

	"github.com/moby/buildkit/solver/pb"

	"github.com/kilnbuild/kiln/llb"
)

// fileDecoder reads one file op. Each of its actions works on an input or on what another action made. What is an output, or is used more
// than once, becomes a vertex; the actions from one of these to the next are the actions of one vertex.
type fileDecoder struct {
	*decoder
	o       *op
	actions []*pb.FileAction
	given   []llb.Output
	users   []int       // of what each action made
	kept    []bool      // whether that becomes a vertex
	chains  []*fileStep // that each action is the last of
	made    []llb.Output
}

// fileStep is a vertex that is being put together.
type fileStep struct {
	actions []llb.Action
	inputs  []llb.Output // the root is the first
	numbers map[llb.Output]int
}

func (d *decoder) file(o *op, f *pb.FileOp, inputs []llb.Output) error {
	n := len(f.GetActions())
	x := &fileDecoder{
		decoder: d, o: o, actions: f.GetActions(), given: inputs,
		users: make([]int, n), kept: make([]bool, n), chains: make([]*fileStep, n), made: make([]llb.Output, n),
	}
	if n == 0 {
		return errors.New("it has no actions")
	}
	outputs, err := x.look()
	if err != nil {
		return err
	}
	for i := range x.actions {
		if err := x.action(i); err != nil {
			return fmt.Errorf("action %d: %w", i, err)
		}
	}
	all := make([]llb.Output, len(outputs))
	for i := range all {
		by, ok := outputs[int64(i)]
		if !ok {
			return fmt.Errorf("it has %d outputs, and none with index %d", len(all), i)
		}
		all[i] = x.made[by]
	}
	return o.made(all...)
}

// look finds out what becomes a vertex, and which actions make the outputs.
func (x *fileDecoder) look() (outputs map[int64]int, err error) {
	outputs = map[int64]int{}
	use := func(i int, index int64, whole bool) error {
		if index < -1 || index >= int64(len(x.given)+len(x.actions)) {
			return fmt.Errorf("action %d: it has no input %d", i, index)
		}
		by := int(index) - len(x.given)
		if by < 0 {
			return nil
		}
		if by >= i {
			return fmt.Errorf("action %d: its input %d is made by a later one", i, index)
		}
		x.users[by]++
		x.kept[by] = x.kept[by] || whole || x.users[by] > 1
		return nil
	}
	for i, a := range x.actions {
		if a == nil {
			return nil, fmt.Errorf("action %d: it is empty", i)
		}
		if err := use(i, a.Input, false); err != nil {
			return nil, err
		}
		if a.GetCopy() != nil {
			if err := use(i, a.SecondaryInput, true); err != nil {
				return nil, err
			}
		}
		owner := ownerOf(a)
		for _, by := range []*pb.UserOpt{owner.GetUser(), owner.GetGroup()} {
			if name := by.GetByName(); name != nil {
				if err := use(i, name.Input, true); err != nil {
					return nil, err
				}
			}
		}
		if a.Output == int64(pb.SkipOutput) {
			continue
		}
		if _, twice := outputs[a.Output]; twice || a.Output < 0 || a.Output > math.MaxInt32 {
			return nil, fmt.Errorf("action %d: it cannot be output %d", i, a.Output)
		}
		outputs[a.Output], x.kept[i] = i, true
	}
	if len(outputs) == 0 {
		return nil, errors.New("it has no outputs")
	}
	return outputs, nil
}

func ownerOf(a *pb.FileAction) *pb.ChownOpt {
	switch a := a.GetAction().(type) {
	case *pb.FileAction_Copy:
		return a.Copy.GetOwner()
	case *pb.FileAction_Mkfile:
		return a.Mkfile.GetOwner()
	case *pb.FileAction_Mkdir:
		return a.Mkdir.GetOwner()
	case *pb.FileAction_Symlink:
		return a.Symlink.GetOwner()
	}
	return nil
}

// of returns what an index names: an input of the op, or what an action made that is kept.
func (x *fileDecoder) of(index int64) llb.Output {
	switch {
	case index < 0:
		return x.scratch()
	case index < int64(len(x.given)):
		return x.given[index]
	}
	return x.made[index-int64(len(x.given))]
}

// action reads an action.
func (x *fileDecoder) action(i int) error {
	a := x.actions[i]
	var step *fileStep
	if by := int(a.Input) - len(x.given); by >= 0 && !x.kept[by] {
		step, x.chains[by] = x.chains[by], nil // there is no other user
	} else {
		root := x.asRoot(x.o, x.of(a.Input))
		step = &fileStep{inputs: []llb.Output{root}, numbers: map[llb.Output]int{}}
	}
	x.chains[i] = step
	action, err := x.translate(step, a)
	if err != nil {
		return err
	}
	step.actions = append(step.actions, action)
	if !x.kept[i] {
		return nil
	}
	x.chains[i] = nil
	op := llb.File{Actions: step.actions}
	if err := checkFile(op, len(step.inputs)); err != nil {
		return err
	}
	x.made[i] = x.add(x.o, op, x.metaOf(x.o), step.inputs...).Output(0)
	return nil
}

// number returns the number of an output among the inputs of the vertex, at least 1.
func (s *fileStep) number(o llb.Output) int {
	n, ok := s.numbers[o]
	if !ok {
		n = len(s.inputs)
		s.numbers[o] = n
		s.inputs = append(s.inputs, o)
	}
	return n
}

// translate returns an action as kiln has it.
func (x *fileDecoder) translate(s *fileStep, action *pb.FileAction) (out llb.Action, err error) {
	switch a := action.Action.(type) {
	case *pb.FileAction_Copy:
		out.Copy, err = x.copy(s, a.Copy, x.of(action.SecondaryInput))
	case *pb.FileAction_Mkfile:
		m := a.Mkfile
		out.Mkfile = &llb.Mkfile{Path: path.Join("/", m.GetPath()), Content: m.GetData(), NoParents: true}
		out.Mkfile.Attributes, err = x.attributes(s, m.GetOwner(), modeOf(m.GetMode()&0o777, 0o644), m.GetTimestamp())
	case *pb.FileAction_Mkdir:
		m := a.Mkdir
		out.Mkdir = &llb.Mkdir{Path: path.Join("/", m.GetPath()), NoParents: !m.GetMakeParents()}
		out.Mkdir.Attributes, err = x.attributes(s, m.GetOwner(), modeOf(m.GetMode()&0o777, 0o755), m.GetTimestamp())
	case *pb.FileAction_Symlink:
		m := a.Symlink
		out.Symlink = &llb.Symlink{Path: path.Join("/", m.GetNewpath()), Target: m.GetOldpath()}
		out.Symlink.Attributes, err = x.attributes(s, m.GetOwner(), "", m.GetTimestamp())
	case *pb.FileAction_Rm:
		out.Remove = &llb.Remove{
			Path: path.Join("/", a.Rm.GetPath()), AllowMissing: a.Rm.GetAllowNotFound(), AllowWildcard: a.Rm.GetAllowWildcard(),
		}
	default:
		err = errors.New("its kind is not known")
	}
	return out, err
}

// modeOf returns a mode as llb.Attributes have it: "" for the usual one.
func modeOf(mode, usual int32) string {
	if mode == usual {
		return ""
	}
	return fmt.Sprintf("%04o", mode)
}

func (x *fileDecoder) copy(s *fileStep, c *pb.FileActionCopy, from llb.Output) (*llb.Copy, error) {
	src := c.GetSrc()
	out := &llb.Copy{
		Sources: []llb.CopySource{{
			Input: s.number(from), Path: path.Join("/", src), Unpack: c.GetAttemptUnpackDockerCompatibility(),
		}},
		Dest: path.Join("/", c.GetDest()), Exclude: c.GetExcludePatterns(), Include: c.GetIncludePatterns(),
		NoFollow: !c.GetFollowSymlink(), AsDir: !c.GetDirCopyContents() && !strings.HasSuffix(src, "/."), NoParents: !c.GetCreateDestPath(),
		NoWildcards: !c.GetAllowWildcard(), MustMatch: c.GetAllowWildcard() && !c.GetAllowEmptyWildcard(),
		Replace: c.GetAlwaysReplaceExistingDestPaths(),
	}
	if out.Dest != "/" && (strings.HasSuffix(c.GetDest(), "/") || strings.HasSuffix(c.GetDest(), "/.")) {
		out.Dest += "/"
	}
	for _, name := range c.GetRequiredPaths() {
		out.Required = append(out.Required, path.Join("/", name))
	}
	mode := c.GetModeStr()
	switch {
	case mode != "" || c.GetMode() == -1:
	case c.GetMode() < 0:
		return nil, fmt.Errorf("its mode is %d", c.GetMode())
	default:
		mode = fmt.Sprintf("%04o", c.GetMode()&0o7777)
	}
	var err error
	out.Attributes, err = x.attributes(s, c.GetOwner(), mode, c.GetTimestamp())
	out.Dated = out.Epoch != nil
	return out, err
}

// noTime is the timestamp of what has the time of the clock.
const noTime = -1

func (x *fileDecoder) attributes(s *fileStep, owner *pb.ChownOpt, mode string, timestamp int64) (a llb.Attributes, err error) {
	a.Chmod = mode
	if timestamp != noTime {
		seconds, nanos := timestamp/1e9, timestamp%1e9
		if nanos < 0 {
			seconds, nanos = seconds-1, nanos+1e9
		}
		a.Epoch, a.Nanos = &seconds, int(nanos)
	}
	if owner == nil {
		return a, nil
	}
	user, users, err := x.owner(s, owner.User)
	if err != nil {
		return a, err
	}
	group, groups, err := x.owner(s, owner.Group)
	if err != nil {
		return a, err
	}
	a.UsersIn, a.GroupsIn = users, groups
	switch {
	case owner.Group != nil:
		a.Chown = user + ":" + group
	case owner.User != nil:
		a.Chown = user
		// The group of a user is in the file of users.
		a.GroupsIn = users
	default:
		a.Chown = "0:0"
	}
	return a, nil
}

// owner returns a user or group as it is in llb.Attributes, and the number of the input whose files say what its name means.
func (x *fileDecoder) owner(s *fileStep, u *pb.UserOpt) (name string, in int, err error) {
	switch by := u.GetUser().(type) {
	case nil:
		return "", 0, nil
	case *pb.UserOpt_ByID:
		if by.ByID > math.MaxInt32 {
			return "", 0, fmt.Errorf("%d is no id of an owner", by.ByID)
		}
		return strconv.FormatUint(uint64(by.ByID), 10), 0, nil
	case *pb.UserOpt_ByName:
		name = by.ByName.GetName()
		if name == "" || strings.ContainsAny(name, ":\n\x00") {
			return "", 0, fmt.Errorf("%q is no name of an owner", clip(name))
		}
		from := x.of(by.ByName.GetInput())
		if from == s.inputs[0] {
			return name, 0, nil
		}
		return name, s.number(from), nil
	}
	return "", 0, errors.New("an owner is neither named nor numbered")
}

// checkFile returns what is wrong with a file op that has so many inputs. All that is said elsewhere of File holds if nothing is.
func checkFile(f llb.File, inputs int) error {
	if len(f.Actions) == 0 {
		return errors.New("it has no actions")
	}
	for _, a := range f.Actions {
		if err := checkAction(a, inputs); err != nil {
			return err
		}
	}
	return nil
}

func checkAction(a llb.Action, inputs int) error {
	set := 0
	var paths []string
	if c := a.Copy; c != nil {
		set++
		if len(c.Sources) == 0 {
			return errors.New("a copy has no sources")
		}
		for _, s := range c.Sources {
			if s.Input < 1 || s.Input >= inputs {
				return fmt.Errorf("a copy has no input %d", s.Input)
			}
			paths = append(paths, s.Path)
		}
		paths = append(append(paths, c.Dest), c.Required...)
	}
	if m := a.Mkfile; m != nil {
		set++
		paths = append(paths, m.Path)
		if m.Name != "" && strings.ContainsAny(m.Name, "/\x00") || m.Name == "." || m.Name == ".." || m.Name == "" && path.Clean(m.Path) == "/" {
			return fmt.Errorf("%q is no name of a file", clip(path.Join(m.Path, m.Name)))
		}
	}
	if m := a.Mkdir; m != nil {
		set++
		paths = append(paths, m.Path)
	}
	if r := a.Remove; r != nil {
		set++
		paths = append(paths, r.Path)
		if path.Clean(r.Path) == "/" {
			return errors.New("the root cannot be removed")
		}
	}
	if l := a.Symlink; l != nil {
		set++
		paths = append(paths, l.Path)
		if l.Target == "" || strings.IndexByte(l.Target, 0) >= 0 || path.Clean(l.Path) == "/" {
			return fmt.Errorf("a symbolic link at %q cannot lead to %q", clip(l.Path), clip(l.Target))
		}
	}
	if set != 1 {
		return errors.New("an action is not one of those that are known")
	}
	for _, p := range paths {
		if !path.IsAbs(p) || strings.IndexByte(p, 0) >= 0 {
			return fmt.Errorf("%q is no absolute path", clip(p))
		}
	}
	made := a.Attributes()
	if made.UsersIn < 0 || made.UsersIn >= inputs || made.GroupsIn < 0 || made.GroupsIn >= inputs {
		return fmt.Errorf("an owner is named in an input that is missing")
	}
	if made.Nanos < 0 || made.Nanos >= 1e9 || made.Nanos > 0 && made.Epoch == nil || strings.ContainsAny(made.Chown, "\n\x00") {
		return errors.New("a time or an owner is none")
	}
	return nil
}
