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

// Form is how a layer is kept in this root directory. Nothing outside this package depends on it, and no identity, manifest or record has
// it: the same layer may have another form in another root directory, or later.
type Form int

// The forms of layers.
const (
	// Whole is a layer all of whose files are in fs, as the lower directory of an overlay.
	Whole Form = iota
	// Delta is a layer of which fs has only the files that differ from its base: see package dir.
	Delta
	// NoWhiteouts is a layer that was made where roots are copies: fs has all its files, and no marks of what the layer deletes.
	NoWhiteouts
	// BlobOnly is a layer without fs, whose bytes are in its blob.
	BlobOnly
	// EntriesOnly is a layer of an image of which only the manifest is there. Its bytes are in a blob elsewhere.
	EntriesOnly
)

// traits are what the operations on a layer take its form for.
type traits struct {
	name string
	// files says that trees and tars read the layer's files from fs. Otherwise fs is made first, from the blob.
	files bool
	// base says that they read files that are not in fs from the base, and that the base is below fs in an overlay. The base is pruned
	// after the layer.
	base bool
	// overlay says that fs can be a lower directory of an overlay, and not only be copied.
	overlay bool
	// verify says what Verify and the comparison after a crash compare with the manifest.
	verify verified
	// needsBlob says that the layer does not exist if its blob does not, so that it goes when that is pruned.
	needsBlob bool
}

// verified is a part of a layer that is compared with its manifest.
type verified int

const (
	verifyNothing verified = iota // image stores compare blobs with their digests
	verifyAll
	verifyOwn         // what differs from the base
	verifyNoWhiteouts // all but whiteouts and opaque marks
)

// forms is the only place that says what a form means.
var forms = [...]traits{
	Whole:       {name: "whole", files: true, overlay: true, verify: verifyAll},
	Delta:       {name: "delta", files: true, base: true, overlay: true, verify: verifyOwn},
	NoWhiteouts: {name: "no-whiteouts", files: true, verify: verifyNoWhiteouts},
	BlobOnly:    {name: "blob-only", needsBlob: true},
	EntriesOnly: {name: "entries-only"},
}

func (f Form) String() string { return forms[f].name }

func (f Form) is() traits { return forms[f] }

// The directory with the files of a layer is called fs, fs.delta-BASE or fs.no-whiteouts. So a form is in the same rename as the files, and
// cannot be lost without them.
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

// formOf returns the form of the layer in a directory, and the base of a Delta. The error is layer.ErrDamaged for a name that kiln does not
// give.
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
			return 0, "", fmt.Errorf("the form of %s is not known: %w", filepath.Join(path, name), layer.ErrDamaged)
		}
	}
	return BlobOnly, "", nil
}
