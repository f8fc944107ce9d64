// Package cachemount knows where cache mounts of steps lie in the root directory, and who uses one.
//
// A cache is a directory with its files in Files. Whoever uses it holds the lock of Lock in it, whose time is that of the last use. A
// private cache that is in use is replaced by another of the same id, with a number behind it.
package cachemount

import (
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/internal/rootdir"
)

// The names in a cache's directory.
const (
	Files = "fs"
	Lock  = "lock"
)

var names = part.NewPattern(`^[0-9a-f]{64}(-[0-9]+)?$`)

// Part returns the cache mounts in the root directory root as a part of it. trash is a directory of this process on the same file system.
func Part(root, trash string) part.Part {
	return &part.Files{Root: root, Dir: rootdir.Mounts, Trash: trash, Kind: part.Mount, Names: names, LockIn: Lock}
}
