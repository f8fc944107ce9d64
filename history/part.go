package history

import (
	"context"
	"iter"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/internal/rootdir"
)

// fileNames is the pattern of the names of the files of builds.
var fileNames = part.NewPattern(`^[0-9]{8}T[0-9]{6}\.[0-9]{9}Z-[0-9a-f]{8}\.(jsonl|record|pinEnd)$`)

// Part returns the history as a part of the root directory. Builds are kept for people to read, so they are no cache.
func (h *History) Part() part.Part {
	return &history{h, part.Files{
		Root: filepath.Dir(h.dir), Dir: rootdir.Builds, Trash: h.tmp, Kind: part.Build, Names: fileNames, Shared: true, Sound: sound,
		Effect: "the build is not in the history any more",
	}}
}

// history is the part: a build is one item, whatever files it has, with the name of the first.
type history struct {
	*History
	part.Files
}

// Items implements part.Part.
func (p *history) Items(ctx context.Context) iter.Seq2[part.Item, error] {
	return func(yield func(part.Item, error) bool) {
		all, err := p.builds()
		if err != nil {
			yield(part.Item{}, err)
			return
		}
		for _, b := range all {
			if err := ctxio.Ended(ctx); err != nil {
				yield(part.Item{}, err)
				return
			}
			it := part.Item{Kind: part.Build, ID: b.id + b.ends[0], Shared: true}
			for _, end := range b.ends {
				file := part.Item{}
				if !file.Measure(p.file(b.id, end)) {
					continue
				}
				it.Size += file.Size
				if file.Used.After(it.Used) {
					it.Used = file.Used
				}
			}
			if it.Used.IsZero() {
				continue // it is gone
			}
			if !yield(it, nil) {
				return
			}
		}
	}
}

// InUse implements part.Part: a build that is pinned is kept.
func (p *history) InUse(it part.Item) bool {
	id, _, ok := split(it.ID)
	return ok && p.Pinned(id)
}

// Remove implements part.Part.
func (p *history) Remove(it part.Item) (bool, error) {
	id, _, ok := split(it.ID)
	if !ok || p.Pinned(id) {
		return false, nil
	}
	return p.History.Remove(id)
}

// Name implements part.Part.
func (p *history) Name() string { return p.Files.Name() }

// Check implements part.Part.
func (p *history) Check(ctx context.Context, r *part.Report) error { return p.Files.Check(ctx, r) }

// sound returns an error unless the file at path is whole. Records are for others to read, and a file beside one has nothing in it.
func sound(path string) error {
	if strings.HasSuffix(path, recordEnd) || strings.HasSuffix(path, pinEnd) {
		return nil
	}
	return soundEvents(path)
}
