package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/internal/layer"
)

// Form is how a layer is stored in this root directory. Nothing outside this package depends on it, and it is not part of any
// identity, manifest or record: the same layer may have another form in another root directory, or later.
type Form int

// The forms of layers.
const (
	// Whole is a layer whose fs contains all its files, as a lower directory of an overlay.
	Whole Form = iota
	// Delta is a layer whose fs contains only the files that differ from its base: see package dir.
	Delta
	// NoWhiteouts is a layer made where root file systems are copies: fs contains all its files, but no marks for the paths that the
	// layer deletes.
	NoWhiteouts
	// BlobOnly is a layer without fs, whose bytes are in its blob.
	BlobOnly
	// EntriesOnly is a layer of an image of which only the manifest is stored. Its bytes are in a blob elsewhere.
	EntriesOnly
)

// traits are the properties of a form that the operations on layers depend on.
type traits struct {
	name string
	// files reports that trees and tars read the layer's files from fs. Otherwise fs is first created from the blob.
	files bool
	// base reports that files that are not in fs are read from the base, which is below fs in an overlay. The base is pruned after
	// the layer.
	base bool
	// overlay reports that fs can be a lower directory of an overlay, and not only be copied.
	overlay bool
	// verify is the part of the layer that Verify and the check after a crash compare with the manifest.
	verify verified
	// needsBlob reports that the layer exists only as long as its blob, and disappears when the blob is pruned.
	needsBlob bool
}

// verified is a part of a layer that is compared with its manifest.
type verified int

const (
	verifyNothing verified = iota // image stores compare blobs with their digests
	verifyAll
	verifyOwn         // the files that differ from the base
	verifyNoWhiteouts // everything except whiteouts and opaque marks
)

// forms defines the properties of each form. No other code depends on a particular form for them.
var forms = [...]traits{
	Whole:       {name: "whole", files: true, overlay: true, verify: verifyAll},
	Delta:       {name: "delta", files: true, base: true, overlay: true, verify: verifyOwn},
	NoWhiteouts: {name: "no-whiteouts", files: true, verify: verifyNoWhiteouts},
	BlobOnly:    {name: "blob-only", needsBlob: true},
	EntriesOnly: {name: "entries-only"},
}

func (f Form) String() string { return forms[f].name }

func (f Form) is() traits { return forms[f] }

// The directory with the files of a layer is called fs, fs.delta-BASE or fs.no-whiteouts, so that a single rename sets the files
// and their form, and neither can be lost without the other.
const (
	fsName            = "fs"
	deltaPrefix       = fsName + ".delta-"
	noWhiteoutsFSName = fsName + ".no-whiteouts"
)

// nameOf returns the name of the directory with the files of a layer in a form.
func nameOf(f Form, base layer.ID) string {
	switch f {
	case Delta:
		return deltaPrefix + string(base)
	case NoWhiteouts:
		return noWhiteoutsFSName
	}
	return fsName
}

// formOf returns the form of the layer in a directory, and the base of a Delta. The error wraps layer.ErrDamaged if the directory
// contains an unknown form.
func formOf(path string) (f Form, base layer.ID, err error) {
	if _, err := os.Lstat(filepath.Join(path, fsName)); !errors.Is(err, fs.ErrNotExist) {
		return Whole, "", err
	}
	list, err := os.ReadDir(path)
	if err != nil {
		return 0, "", err
	}
	for _, e := range list {
		name := e.Name()
		base, delta := strings.CutPrefix(name, deltaPrefix)
		switch {
		case delta && layer.ID(base).Valid():
			return Delta, layer.ID(base), nil
		case name == noWhiteoutsFSName:
			return NoWhiteouts, "", nil
		case strings.HasPrefix(name, fsName):
			return 0, "", fmt.Errorf("%s has an unknown form: %w", filepath.Join(path, name), layer.ErrDamaged)
		}
	}
	return BlobOnly, "", nil
}
