package blob

import (
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/internal/rootdir"
)

var noteNames = part.NewPattern(`^[0-9a-f]{64}\.[a-z0-9.-]+$`)

// Part returns the notes of which blob became which by compression, in the root directory root, as a part of it. trash is a directory of
// this process on the same file system.
func Part(root, trash string) part.Part {
	return &part.Files{
		Root: root, Dir: rootdir.Compressed, Trash: trash, Kind: part.Note, Names: noteNames, Effect: "the blob is compressed again",
		Sound: func(path string) error {
			_, err := ReadNote(path)
			return err
		},
	}
}
