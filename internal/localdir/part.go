package localdir

import (
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/internal/rootdir"
)

// Part returns the caches of contexts in the root directory root as a part of it. trash is a directory of this process on the same file
// system.
func Part(root, trash string) part.Part {
	return &part.Files{
		Root: root, Dir: rootdir.Context, Trash: trash, Kind: part.Context, Names: part.HalfHash, Sound: checkCache,
		Effect: "the files of the context are read again",
	}
}
