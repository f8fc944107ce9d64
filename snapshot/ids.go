package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kilnbuild/kiln/internal/atomicfile"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/userns"
)

// OtherIDsError is returned for a store that was made with other user IDs, so that its files have other owners than this process
// would give them.
type OtherIDsError struct{ Root string }

func (e *OtherIDsError) Error() string {
	return fmt.Sprintf("%s was made with other user IDs than kiln has now, so the owners of its files would be wrong: "+
		"remove it, or name another directory with --root", rootdir.Shown(e.Root))
}

// checkIDs compares the IDs of the store with those of the process. In the initial namespace they are not recorded.
func (s *Store) checkIDs(note string, ns userns.Namespace) error {
	was, err := os.ReadFile(note)
	if errors.Is(err, fs.ErrNotExist) {
		_, made := os.Lstat(s.dir)
		if !ns.Nested || made == nil {
			was, err = nil, nil
		} else {
			was = []byte(ns.String())
			err = s.writeIDs(note, was)
		}
	}
	if err == nil && string(was) != ns.String() {
		err = &OtherIDsError{filepath.Dir(note)}
	}
	return err
}

func (s *Store) writeIDs(note string, ids []byte) error {
	return atomicfile.WriteBytes(note, s.tmp, ids)
}
