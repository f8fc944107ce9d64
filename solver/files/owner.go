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

// ownerOf returns the owner requested by an action.
func (r *run) ownerOf(chown string) (Owner, error) {
	if passwd.NeedsFiles(chown) {
		if o, ok := r.Owners[chown]; ok {
			return o, nil
		}
		return Unknown, nil
	}
	uid, gid, err := passwd.Owner(nil, nil, chown)
	if err != nil {
		return Owner{}, fmt.Errorf("look up --chown=%s: %w", chown, err)
	}
	return Owner{uid, gid}, nil
}

// Names returns the values of Chown in an op that contain names of users or groups.
func Names(op llb.File) []string {
	var names []string
	for _, a := range op.Actions {
		if chown := a.Chown(); passwd.NeedsFiles(chown) {
			names = append(names, chown)
		}
	}
	return names
}

// Owners looks up the names of an op in a root file system. If the root has no layers, a name that does not exist is an error;
// otherwise warn is called. Layers of COPY --link have no names.
func Owners(op llb.File, root layer.Tree, empty bool, warn func(text string)) (map[string]Owner, error) {
	owners := map[string]Owner{}
	for _, a := range op.Actions {
		chown := a.Chown()
		if _, known := owners[chown]; known || !passwd.NeedsFiles(chown) {
			continue
		}
		flag, what := "--chown=", "the files belong"
		if a.Mkdir != nil {
			flag, what = "USER ", "a directory created by WORKDIR belongs"
		}
		uid, gid, err := passwd.Owner(opener(root, "/etc/passwd"), opener(root, "/etc/group"), chown)
		if _, missing := errors.AsType[*passwd.NotFoundError](err); missing && !empty && !linked(a) {
			warn(fmt.Sprintf("%s%s: %v; %s to %d:%d, as with docker build", flag, chown, err, what, uid, gid))
		} else if err != nil {
			return nil, fmt.Errorf("look up %s%s: %w", flag, chown, err)
		}
		owners[chown] = Owner{uid, gid}
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
