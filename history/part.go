package history

import (
	"path/filepath"

	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/internal/rootdir"
)

// fileNames is the pattern of the names of builds.
var fileNames = part.NewPattern(`^[0-9]{8}T[0-9]{6}\.[0-9]{9}Z-[0-9a-f]{8}\.jsonl$`)

// Part returns the history as a part of the root directory. Builds are kept for people to read, so they are no cache.
func (h *History) Part() part.Part {
	return &part.Files{
		Root: filepath.Dir(h.dir), Dir: rootdir.Builds, Trash: h.tmp, Kind: part.Build, Names: fileNames, Shared: true, Sound: sound,
		Effect: "the build is not in the history any more",
	}
}
