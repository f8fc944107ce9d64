package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/userns"
	"golang.org/x/sys/unix"
)

// In a user namespace a disk cannot hold all that a layer does. Attributes hold it instead, which an overlay copies together
// with the file, so that it is still there when a step has changed or moved the file:
//
//   - a device is an empty file whose deviceXattr is its type and number: "c 1:3";
//   - where there is one id, the ownerXattr of what does not belong to root is its owner: "33:33". Symbolic links and named
//     pipes, which cannot have such attributes, get the owner of what was there before.
//
// Attributes that take the first namespace's root to set are in the manifest alone.
const (
	heldPrefix  = "user.kiln."
	deviceXattr = heldPrefix + "device"
	ownerXattr  = heldPrefix + "owner"
)

// OtherIDsError is a store that is kept in another form than this process's, or whose files have other owners than they would have
// for it.
type OtherIDsError struct{ Root string }

func (e *OtherIDsError) Error() string {
	return fmt.Sprintf("%s was made with other user ids than kiln has now, so the owners of its files would be wrong: remove it, or name another directory with --root", rootdir.Shown(e.Root))
}

// checkIDs compares the ids of the store with those of the process. Those of the first namespace are not written down.
func (s *Store) checkIDs(note string) error {
	was, err := os.ReadFile(note)
	if errors.Is(err, fs.ErrNotExist) {
		_, made := os.Lstat(s.dir)
		if !s.ns.Nested || made == nil {
			was, err = nil, nil
		} else {
			was = []byte(s.ns.String())
			err = s.writeIDs(note, was)
		}
	}
	if err == nil && string(was) != s.ns.String() {
		err = &OtherIDsError{filepath.Dir(note)}
	}
	return err
}

func (s *Store) writeIDs(note string, ids []byte) error {
	f, err := os.CreateTemp(s.tmp, "ids-")
	if err != nil {
		return err
	}
	_, err = f.Write(ids)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), note)
}

// owner returns the owner that e has on disk, and the value of ownerXattr, or "". An id that nobody can have there is an error.
func owner(ns userns.Namespace, e *layer.Entry) (uid, gid int, held string, err error) {
	switch {
	case !ns.Nested || e.UID|e.GID == 0:
	case ns.Single():
		return 0, 0, fmt.Sprintf("%d:%d", e.UID, e.GID), nil
	default:
		if err := ns.Check(e.UID, e.GID); err != nil {
			return 0, 0, "", fmt.Errorf("/%s: %w", e.Path, err)
		}
	}
	return int(e.UID), int(e.GID), "", nil
}

// writable reports whether an extended attribute can be set.
func writable(ns userns.Namespace, name string) bool {
	return !ns.Nested || !strings.HasPrefix(name, "trusted.") && !strings.HasPrefix(name, heldPrefix)
}

// device makes the file that stands for a device.
func device(dir int, e *layer.Entry) error {
	fd, err := unix.Openat(dir, e.Name(), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fsetxattr(fd, deviceXattr, fmt.Appendf(nil, "%c %d:%d", e.Type, e.Major, e.Minor), 0)
}

// restore gives e what an attribute of its file holds. It reports false for an attribute that holds nothing, which is a file's own.
func restore(e *layer.Entry, name, value string) (bool, error) {
	switch name {
	case ownerXattr:
		_, err := fmt.Sscanf(value, "%d:%d", &e.UID, &e.GID)
		return true, held(e, name, err)
	case deviceXattr:
		if e.Type != layer.File {
			return true, held(e, name, errors.New("it is no file"))
		}
		var kind byte
		_, err := fmt.Sscanf(value, "%c %d:%d", &kind, &e.Major, &e.Minor)
		if e.Type = layer.Type(kind); err == nil && e.Type != layer.Char && e.Type != layer.Block {
			err = fmt.Errorf("there is no device of type %q", kind)
		}
		return true, held(e, name, err)
	}
	return false, nil
}

func held(e *layer.Entry, name string, err error) error {
	if err != nil {
		return &os.PathError{Op: "read " + name + " of", Path: e.Path, Err: err}
	}
	return nil
}
