package httpsource

import (
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/internal/rootdir"
)

// Part returns what servers said of files, in the root directory root, as a part of it. trash is a directory of this process on the same
// file system.
func Part(root, trash string) part.Part {
	return &part.Files{
		Root: root, Dir: rootdir.HTTP, Trash: trash, Kind: part.HTTP, Names: part.HalfHash, Sound: checkState,
		Effect: "the file is fetched again",
	}
}
