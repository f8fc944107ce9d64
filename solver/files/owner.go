package files

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/passwd"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot/compose"
)

// Owner is the owner of a file.
type Owner struct{ UID, GID uint32 }

// Unknown is the owner for a name that was not looked up. No file can have it.
var Unknown = Owner{1<<32 - 2, 1<<32 - 2}

// Name is the name of an owner: Chown of an action, and the numbers of the inputs in whose files users and groups are looked up.
type Name struct {
	Chown         string
	Users, Groups int
}

func nameOf(a llb.Attributes) Name { return Name{a.Chown, a.UsersIn, a.GroupsIn} }

// ownerOf returns the owner requested by an action.
func (r *run) ownerOf(a llb.Attributes) (Owner, error) {
	if passwd.NeedsFiles(a.Chown) {
		if o, ok := r.Owners[nameOf(a)]; ok {
			return o, nil
		}
		return Unknown, nil
	}
	uid, gid, err := passwd.Owner(nil, nil, a.Chown)
	if err != nil {
		return Owner{}, fmt.Errorf("look up --chown=%s: %w", a.Chown, err)
	}
	return Owner{uid, gid}, nil
}

// Names returns the owners of an op that contain names of users or groups.
func Names(op llb.File) []Name {
	var names []Name
	for _, a := range op.Actions {
		if attributes := a.Attributes(); passwd.NeedsFiles(attributes.Chown) {
			names = append(names, nameOf(attributes))
		}
	}
	return names
}

// Owners looks up the names of an op in its inputs. If the root has no layers, a name that does not exist there is an error; otherwise
// warn is called. Layers of COPY --link have no names.
func Owners(op llb.File, inputs []Input, empty bool, warn func(text string)) (map[Name]Owner, error) {
	owners := map[Name]Owner{}
	for _, a := range op.Actions {
		name := nameOf(a.Attributes())
		if _, known := owners[name]; known || !passwd.NeedsFiles(name.Chown) {
			continue
		}
		flag, what := "--chown=", "the files belong"
		if a.Mkdir != nil {
			flag, what = "USER ", "a directory created by WORKDIR belongs"
		}
		users, groups := inputs[name.Users].Tree, inputs[name.Groups].Tree
		uid, gid, err := passwd.Owner(opener(users, "/etc/passwd"), opener(groups, "/etc/group"), name.Chown)
		nowhere := empty && (name.Users == 0 || name.Groups == 0)
		if _, missing := errors.AsType[*passwd.NotFoundError](err); missing && !nowhere && !linked(a) {
			warn(fmt.Sprintf("%s%s: %v; %s to %d:%d, as with docker build", flag, name.Chown, err, what, uid, gid))
		} else if err != nil {
			return nil, fmt.Errorf("look up %s%s: %w", flag, name.Chown, err)
		}
		owners[name] = Owner{uid, gid}
	}
	return owners, nil
}

func linked(a llb.Action) bool {
	return a.Copy != nil && a.Copy.Link || a.Mkfile != nil && a.Mkfile.Link
}

// opener opens a regular file of a tree, following links inside it.
func opener(t layer.Tree, name string) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) {
		_, e, err := compose.Resolve(t.Lookup, name, true)
		if err != nil {
			return nil, err
		}
		if e == nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		if e.Type != layer.File {
			return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("is not a regular file")}
		}
		return t.Open(e)
	}
}
