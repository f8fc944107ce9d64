package git

import (
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/internal/rootdir"
)

// lockSuffix follows the name of a mirror in that of its lock, whose time is that of the mirror's last use.
const lockSuffix = ".lock"

var mirrorNames = part.NewPattern(`^[0-9a-f]{32}(\.lock)?$`)

// Part returns the mirrors in the root directory root as a part of it. trash is a directory of this process on the same file system.
func Part(root, trash string) part.Part {
	return &part.Files{Root: root, Dir: rootdir.Git, Trash: trash, Kind: part.Git, Names: mirrorNames, LockBeside: lockSuffix}
}
