// Package pack defines what a cache that travels holds: records of steps, the layers that they made, and where the bytes of those are. It
// does not know where a pack is kept, nor how a build uses it. docs/cache-format.md describes the format.
package pack

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/solver"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Pack is a set of records with what they need. The zero value is empty.
type Pack struct {
	// Records are by key. Those of other versions of kiln are in Foreign.
	Records map[solver.Key]Record
	// Layers are those that records name, by ID.
	Layers map[layer.ID]Layer
	// Shortcuts lead from what a step and its inputs are to the key of its record: see solver.Shortcuts.
	Shortcuts map[solver.Key]solver.Key
	// Foreign are records whose keys another version of kiln computes. They are kept for it, and never used.
	Foreign map[solver.Key]Record
}

// Record is a record with what decides how long it stays.
type Record struct {
	solver.Record
	// Version is the solver.KeyVersion that the key was computed with.
	Version string
	// Used is when a build last used it, with a precision of a second.
	Used time.Time
}

// Layer is a layer that a step made.
type Layer struct {
	ID layer.ID
	// Content is the digest of its entries.
	Content solver.Content
	// Created is when it was made: the time of the step in an image's history.
	Created time.Time
	// Opaque says that an entry hides what lies below it, so that the layer cannot be stacked on another root as it is.
	Opaque bool
	// Manifest is the layer's manifest, of media type ManifestType; its digest is "" where the layer has none.
	Manifest ocispec.Descriptor
	// Blobs are its tars, by the name of their encoding, such as "gzip".
	Blobs map[string]Blob
}

// Blob is the tar of a layer in one encoding.
type Blob struct {
	Desc   ocispec.Descriptor
	DiffID digest.Digest
}

// The media types of what a cache holds besides tars of layers.
const (
	Type         = "application/vnd.kiln.cache.pack.v1+zstd"
	ManifestType = "application/vnd.kiln.cache.layer.v1+zstd"
	ArtifactType = "application/vnd.kiln.cache.v1"
)

// AddRecord adds a record. Of two under one key the one that began later stays, so that it does not matter who adds first; it counts as
// used when either was.
func (p *Pack) AddRecord(key solver.Key, r Record) {
	into := &p.Records
	if r.Version != solver.KeyVersion {
		into = &p.Foreign
	}
	if *into == nil {
		*into = map[solver.Key]Record{}
	}
	old, ok := (*into)[key]
	if ok && compareRecords(old, r) > 0 {
		old, r = r, old
	}
	if ok && old.Used.After(r.Used) {
		r.Used = old.Used
	}
	(*into)[key] = r
}

// compareRecords orders records of one key: the later one is the greater.
func compareRecords(a, b Record) int {
	return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.Took, b.Took), strings.Compare(outputsOf(a), outputsOf(b)))
}

func outputsOf(r Record) string {
	var b strings.Builder
	for _, m := range r.Outputs {
		b.WriteString(m.ID)
	}
	return b.String()
}

// AddLayer adds a layer, with the blobs of one of the same ID that is there.
func (p *Pack) AddLayer(l Layer) {
	if p.Layers == nil {
		p.Layers = map[layer.ID]Layer{}
	}
	old, ok := p.Layers[l.ID]
	if ok {
		// Which one stays does not depend on the order.
		if cmp.Or(old.Created.Compare(l.Created), cmp.Compare(old.Manifest.Digest, l.Manifest.Digest)) > 0 {
			old, l = l, old
		}
		blobs := maps.Clone(old.Blobs)
		if blobs == nil {
			blobs = map[string]Blob{}
		}
		for encoding, b := range l.Blobs {
			if have, ok := blobs[encoding]; !ok || have.Desc.Digest < b.Desc.Digest {
				blobs[encoding] = b
			}
		}
		l.Blobs = blobs
		if l.Manifest.Digest == "" {
			l.Manifest = old.Manifest
		}
	}
	p.Layers[l.ID] = l
}

// AddShortcut adds a shortcut.
func (p *Pack) AddShortcut(from, to solver.Key) {
	if p.Shortcuts == nil {
		p.Shortcuts = map[solver.Key]solver.Key{}
	}
	if old, ok := p.Shortcuts[from]; !ok || slices.Compare(old[:], to[:]) < 0 {
		p.Shortcuts[from] = to
	}
}

// Add adds all of another pack. The result does not depend on the order in which packs are added, nor on how often: whatever writers of one
// cache add in whatever order, all end with the same.
func (p *Pack) Add(other *Pack) {
	for key, r := range other.Records {
		p.AddRecord(key, r)
	}
	for key, r := range other.Foreign {
		p.AddRecord(key, r)
	}
	for _, l := range other.Layers {
		p.AddLayer(l)
	}
	for from, to := range other.Shortcuts {
		p.AddShortcut(from, to)
	}
}

// Has reports whether adding other would change nothing but times of use by less than slack.
func (p *Pack) Has(other *Pack, slack time.Duration) bool {
	for key, r := range other.Records {
		have, ok := p.Records[key]
		if !ok || compareRecords(have, r) < 0 || r.Used.Sub(have.Used) >= slack {
			return false
		}
	}
	for id, l := range other.Layers {
		have, ok := p.Layers[id]
		if !ok {
			return false
		}
		for encoding := range l.Blobs {
			if _, ok := have.Blobs[encoding]; !ok {
				return false
			}
		}
	}
	for from := range other.Shortcuts {
		if _, ok := p.Shortcuts[from]; !ok {
			return false
		}
	}
	return true
}

// Blobs returns the descriptors of everything that the pack refers to, each once, sorted by digest.
func (p *Pack) Blobs() []ocispec.Descriptor {
	all := map[digest.Digest]ocispec.Descriptor{}
	for _, l := range p.Layers {
		for _, d := range l.Descriptors() {
			all[d.Digest] = d
		}
	}
	return slices.SortedFunc(maps.Values(all), func(a, b ocispec.Descriptor) int { return cmp.Compare(a.Digest, b.Digest) })
}

// Descriptors returns those of the layer's manifest and blobs.
func (l Layer) Descriptors() []ocispec.Descriptor {
	var all []ocispec.Descriptor
	if l.Manifest.Digest != "" {
		all = append(all, l.Manifest)
	}
	for _, b := range l.Blobs {
		all = append(all, b.Desc)
	}
	return all
}

// Limit bounds a pack. Zero values are no bounds.
type Limit struct {
	// Size is of all blobs together, in bytes, and Blobs their number.
	Size  int64
	Blobs int
	// Records is their number.
	Records int
	// Age is how long a record stays that no build uses.
	Age time.Duration
}

// Trim removes records, the one that was used least recently first, until the pack is within the limit, and then what no record needs.
func (p *Pack) Trim(l Limit, now time.Time) {
	type item struct {
		key     solver.Key
		foreign bool
		Record
	}
	var items []item
	for key, r := range p.Records {
		items = append(items, item{key, false, r})
	}
	for key, r := range p.Foreign {
		items = append(items, item{key, true, r})
	}
	slices.SortFunc(items, func(a, b item) int { return cmp.Or(b.Used.Compare(a.Used), slices.Compare(a.key[:], b.key[:])) })
	kept := Pack{}
	blobs := map[digest.Digest]bool{}
	size, full := int64(0), false
	for _, it := range items {
		more, n := int64(0), 0
		fresh := map[digest.Digest]bool{}
		for _, m := range it.Outputs {
			for _, d := range p.Layers[layer.ID(m.ID)].Descriptors() {
				if !blobs[d.Digest] && !fresh[d.Digest] {
					fresh[d.Digest] = true
					more += d.Size
					n++
				}
			}
		}
		full = full || l.Records > 0 && len(kept.Records)+len(kept.Foreign) >= l.Records || l.Size > 0 && size+more > l.Size || l.Blobs > 0 && len(blobs)+n > l.Blobs
		if full || l.Age > 0 && now.Sub(it.Used) > l.Age {
			continue
		}
		size += more
		maps.Copy(blobs, fresh)
		for _, m := range it.Outputs {
			if have, ok := p.Layers[layer.ID(m.ID)]; ok {
				kept.AddLayer(have)
			}
		}
		kept.AddRecord(it.key, it.Record)
	}
	for from, to := range p.Shortcuts {
		if _, ok := kept.Records[to]; ok {
			kept.AddShortcut(from, to)
		}
	}
	*p = kept
}
