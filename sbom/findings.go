package sbom

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/kilnbuild/kiln/internal/atomicfile"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lease"
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/internal/regularfile"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/sbom/internal/found"
)

// finding is what one file of a layer tells.
type finding struct {
	Path     string
	Kind     kind            `json:",omitempty"`
	Packages []found.Package `json:",omitempty"`
	Release  *found.Release  `json:",omitempty"`
	// Problem says what is wrong with the file; "" for nothing.
	Problem string `json:",omitempty"`
}

// format begins the file of the findings of a layer. Its number is increased whenever a scan would find something else in the same files.
const format = "kiln scan 1 "

// maxFindings bounds that file in bytes.
const maxFindings = 64 << 20

// store keeps the findings of layers, which do not change, in a root directory.
type store struct{ root, tmp string }

// Part returns the findings that are kept in the root directory root as a part of it. trash is a directory of this process on the same file
// system.
func Part(root, trash string) part.Part {
	return &part.Files{
		Root: root, Dir: rootdir.Scans, Trash: trash, Kind: part.Scan, Names: part.Hash,
		Sound:  func(path string) error { _, err := read(path); return err },
		Effect: "the layer is scanned again for the next SBOM",
	}
}

func (s store) path(id layer.ID) string {
	return rootdir.Path(rootdir.Path(s.root, rootdir.Scans), string(id))
}

// load returns the findings of a layer; false if there are none that can be used.
func (s store) load(id layer.ID) ([]finding, bool) {
	if !id.Valid() {
		return nil, false
	}
	all, err := read(s.path(id))
	if err != nil {
		return nil, false
	}
	lease.Used(s.path(id), nil)
	return all, true
}

func read(path string) ([]finding, error) {
	data, err := regularfile.Read(path, maxFindings)
	if err != nil {
		return nil, err
	}
	rest, ok := bytes.CutPrefix(data, []byte(format))
	if !ok {
		return nil, errors.New("it was made by another version of kiln")
	}
	sum, rest, _ := bytes.Cut(rest, []byte("\n"))
	if actual := sha256.Sum256(rest); string(sum) != hex.EncodeToString(actual[:]) {
		return nil, errors.New("its checksum is wrong")
	}
	var all []finding
	err = json.Unmarshal(rest, &all)
	return all, err
}

// save keeps the findings of a layer.
func (s store) save(id layer.ID, all []finding) error {
	data, err := json.Marshal(all)
	if err != nil {
		return err
	}
	if len(data) > maxFindings {
		return nil // the layer is scanned each time
	}
	if err := os.MkdirAll(rootdir.Path(s.root, rootdir.Scans), 0o700); err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	return atomicfile.Write(s.path(id), s.tmp, func(w io.Writer) error {
		if _, err := fmt.Fprintf(w, "%s%x\n", format, sum); err != nil {
			return err
		}
		_, err := w.Write(data)
		return err
	})
}
