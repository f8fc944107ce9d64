// Package pack defines what a cache that travels holds: records of steps, the layers that they made, and where the bytes of those are. It
// does not know where a pack is kept, nor how a build uses it. docs/cache-format.md describes the format.
package pack

import (
	"bytes"
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
	Shortcuts map[solver.Key]Shortcut
	// Foreign are records whose keys another version of kiln computes. They are kept for it, and never used.
	Foreign map[solver.Key]Record
	// Mounts are the contents of cache mounts, by the key of their identity.
	Mounts map[string]Mount
	// Documents describe images that builds start from, by their digests.
	Documents map[digest.Digest]Document
	// Bases are what layers of images that builds start from hold, by diff ID.
	Bases map[layer.ID]Base

	memory int
}

// Memory returns how many bytes of memory a pack takes at most that Decode has returned.
func (p *Pack) Memory() int { return p.memory }

// Record is a record with what decides how long it stays.
type Record struct {
	solver.Record
	// Version is the solver.KeyVersion that the key was computed with.
	Version string
	// Known says that it has neither Inputs nor texts, and perhaps not its layers: it says only what the step has made.
	Known bool
	// Used is when a build last used it, with a precision of a second.
	Used time.Time
	// Signatures are of everything but Used.
	Signatures Signatures
}

// OnlyKnown returns a record without what says how the step was made, for a cache that does not get its layers. Signatures are of that, and
// so they are gone.
func (r Record) OnlyKnown() Record {
	if !r.Known {
		r.Known, r.Inputs, r.Name, r.Took, r.LogSize, r.Signatures = true, nil, "", 0, 0, nil
	}
	return r
}

// Shortcut leads to the key of a step.
type Shortcut struct {
	Key        solver.Key
	Signatures Signatures
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
	// Image says that it is a layer of an image with an inline cache: its ID is its diff ID, and it has no manifest.
	Image bool
	// Manifest is the layer's manifest, of media type ManifestType; its digest is "" where the layer has none.
	Manifest ocispec.Descriptor
	// Blobs are its tars, by the name of their encoding, such as "gzip".
	Blobs map[string]Blob
	// Signatures are of everything but Blobs, which have their own.
	Signatures Signatures
}

// Blob is the tar of a layer in one encoding.
type Blob struct {
	Desc       ocispec.Descriptor
	DiffID     digest.Digest
	Signatures Signatures
	// Members is the table of members that Desc is made of, for DecodeMembers; it has no digest if there is none.
	Members ocispec.Descriptor
}

// The media types of what a cache holds besides tars of layers.
const (
	Type         = "application/vnd.kiln.cache.pack.v1+zstd"
	ManifestType = "application/vnd.kiln.cache.layer.v1+zstd"
	ArtifactType = "application/vnd.kiln.cache.v1"
)

// AddRecord adds a record. Of two under one key the one that is signed stays, or else the one that is not only Known, or the one that began
// later, so that it does not matter who adds first; it counts as used when either was.
func (p *Pack) AddRecord(key solver.Key, r Record) {
	into := &p.Records
	if r.Version != solver.KeyVersion {
		into = &p.Foreign
	}
	if *into == nil {
		*into = map[solver.Key]Record{}
	}
	if old, ok := (*into)[key]; ok {
		switch c := compareRecords(old, r); {
		case c > 0:
			old, r = r, old
		case c == 0:
			r.Signatures = r.Signatures.with(old.Signatures)
		}
		if old.Used.After(r.Used) {
			r.Used = old.Used
		}
	}
	(*into)[key] = r
}

// compareRecords orders records of one key: the one that stays is the greater. Those that say the same are equal.
func compareRecords(a, b Record) int {
	c := cmp.Or(compareSigned(a.Signatures, b.Signatures), compareKnown(a, b), a.Started.Compare(b.Started), cmp.Compare(a.Took, b.Took),
		strings.Compare(outputsOf(a), outputsOf(b)))
	if c == 0 {
		c = bytes.Compare(a.statement(solver.Key{}), b.statement(solver.Key{}))
	}
	return c
}

// compareKnown orders what is only Known before all else.
func compareKnown(a, b Record) int {
	switch {
	case a.Known == b.Known:
		return 0
	case a.Known:
		return -1
	}
	return 1
}

func outputsOf(r Record) string {
	var b strings.Builder
	for _, m := range r.Outputs {
		b.WriteString(m.ID)
	}
	return b.String()
}

// AddLayer adds a layer. Of two with one ID, made at different times, the greater stays as a whole, so that its time and those of the files
// in its tar are of one making. Two descriptions of one making become one with the blobs of both.
func (p *Pack) AddLayer(l Layer) {
	if p.Layers == nil {
		p.Layers = map[layer.ID]Layer{}
	}
	if old, ok := p.Layers[l.ID]; ok {
		switch c := compareLayers(old, l); {
		case c > 0:
			l = old
		case c == 0:
			l.Signatures = l.Signatures.with(old.Signatures)
			l.Blobs = addBlobs(old.Blobs, l.Blobs)
		}
	}
	p.Layers[l.ID] = l
}

// addBlobs returns the blobs of both. Which one of an encoding stays does not depend on the order.
func addBlobs(old, added map[string]Blob) map[string]Blob {
	blobs := maps.Clone(old)
	if blobs == nil {
		blobs = map[string]Blob{}
	}
	for encoding, b := range added {
		if have, ok := blobs[encoding]; ok {
			switch c := compareBlobs(have, b); {
			case c > 0:
				b = have
			case c == 0:
				b.Signatures = b.Signatures.with(have.Signatures)
			}
		}
		blobs[encoding] = b
	}
	return blobs
}

// compareLayers orders layers of one ID as compareRecords does records, and compareBlobs their blobs in one encoding. One without a
// manifest is less than one with it.
func compareLayers(a, b Layer) int {
	return cmp.Or(compareSigned(a.Signatures, b.Signatures), cmp.Compare(min(len(a.Manifest.Digest), 1), min(len(b.Manifest.Digest), 1)),
		a.Created.Compare(b.Created), cmp.Compare(a.Manifest.Digest, b.Manifest.Digest), bytes.Compare(a.statement(), b.statement()))
}

func compareBlobs(a, b Blob) int {
	return cmp.Or(compareSigned(a.Signatures, b.Signatures), cmp.Compare(a.Desc.Digest, b.Desc.Digest),
		bytes.Compare(a.statement("", ""), b.statement("", "")))
}

// AddShortcut adds a shortcut.
func (p *Pack) AddShortcut(from solver.Key, t Shortcut) {
	if p.Shortcuts == nil {
		p.Shortcuts = map[solver.Key]Shortcut{}
	}
	if old, ok := p.Shortcuts[from]; ok {
		switch c := compareShortcuts(old, t); {
		case c > 0:
			t = old
		case c == 0:
			t.Signatures = t.Signatures.with(old.Signatures)
		}
	}
	p.Shortcuts[from] = t
}

func compareShortcuts(a, b Shortcut) int {
	return cmp.Or(compareSigned(a.Signatures, b.Signatures), slices.Compare(a.Key[:], b.Key[:]))
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
	for from, t := range other.Shortcuts {
		p.AddShortcut(from, t)
	}
	for _, m := range other.Mounts {
		p.AddMount(m)
	}
	for _, d := range other.Documents {
		p.AddDocument(d)
	}
	for _, b := range other.Bases {
		p.AddBase(b)
	}
}

// Has reports whether adding other would change nothing but times of use by less than slack.
func (p *Pack) Has(other *Pack, slack time.Duration) bool {
	for key, r := range other.Records {
		have, ok := p.Records[key]
		if !ok || r.Used.Sub(have.Used) >= slack {
			return false
		}
		if c := compareRecords(have, r); c < 0 || c == 0 && !have.Signatures.covers(r.Signatures) {
			return false
		}
	}
	for id, l := range other.Layers {
		have, ok := p.Layers[id]
		if !ok {
			return false
		}
		c := compareLayers(have, l)
		if c > 0 {
			continue
		}
		if c < 0 || !have.Signatures.covers(l.Signatures) {
			return false
		}
		for encoding, b := range l.Blobs {
			if have, ok := have.Blobs[encoding]; !ok || !have.Signatures.covers(b.Signatures) {
				return false
			}
		}
	}
	for from, t := range other.Shortcuts {
		if have, ok := p.Shortcuts[from]; !ok || !have.Signatures.covers(t.Signatures) {
			return false
		}
	}
	for key, m := range other.Mounts {
		have, ok := p.Mounts[key]
		if !ok {
			return false
		}
		if c := compareMounts(have, m); c < 0 || c == 0 && !have.Signatures.covers(m.Signatures) {
			return false
		}
	}
	for name, d := range other.Documents {
		have, ok := p.Documents[name]
		if !ok || d.Used.Sub(have.Used) >= slack {
			return false
		}
	}
	return p.hasBases(other, slack)
}

// Blobs returns the descriptors of everything that the pack refers to, each once, sorted by digest.
func (p *Pack) Blobs() []ocispec.Descriptor {
	all := map[digest.Digest]ocispec.Descriptor{}
	for _, l := range p.Layers {
		for _, d := range l.Descriptors() {
			all[d.Digest] = d
		}
	}
	for _, m := range p.Mounts {
		for _, d := range m.Descriptors() {
			all[d.Digest] = d
		}
	}
	for _, b := range p.Bases {
		all[b.Manifest.Digest] = b.Manifest
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
		if b.Members.Digest != "" {
			all = append(all, b.Members)
		}
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

// exceeded reports whether two sets without a blob in common are more than the limit allows, which have size bytes together.
func (l Limit) exceeded(a, b blobSet, size int64) bool {
	return l.Size > 0 && size > l.Size || l.Blobs > 0 && len(a)+len(b) > l.Blobs
}

// blobSet is a set of blobs.
type blobSet map[digest.Digest]bool

// lacks returns those of all that are not in the set, and their size in bytes.
func (s blobSet) lacks(all []ocispec.Descriptor) (fresh blobSet, size int64) {
	fresh = blobSet{}
	for _, d := range all {
		if !s[d.Digest] && !fresh[d.Digest] {
			fresh[d.Digest] = true
			size += d.Size
		}
	}
	return fresh, size
}

// maxSkew is how far in the future the clocks of other machines may be.
const maxSkew = 24 * time.Hour

// used returns when something was used last. What claims to be used in the future would stay for ever.
func used(at, now time.Time) time.Time {
	if at.After(now.Add(maxSkew)) {
		return time.Time{}
	}
	return at
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
	slices.SortFunc(items, func(a, b item) int {
		return cmp.Or(used(b.Used, now).Compare(used(a.Used, now)), slices.Compare(a.key[:], b.key[:]))
	})
	kept := Pack{}
	blobs := blobSet{}
	size, full := p.trimMounts(&kept, blobs, l, now), false
	for _, it := range items {
		var needed []ocispec.Descriptor
		for _, m := range it.Outputs {
			needed = append(needed, p.Layers[layer.ID(m.ID)].Descriptors()...)
		}
		fresh, more := blobs.lacks(needed)
		full = full || l.Records > 0 && len(kept.Records)+len(kept.Foreign) >= l.Records || l.exceeded(blobs, fresh, size+more)
		if full || l.Age > 0 && now.Sub(used(it.Used, now)) > l.Age {
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
	for from, t := range p.Shortcuts {
		if _, ok := kept.Records[t.Key]; ok {
			kept.AddShortcut(from, t)
		}
	}
	if len(kept.Records)+len(kept.Foreign) > 0 {
		p.trimDocuments(&kept, l, now)
		p.trimBases(&kept, blobs, size, l, now)
	}
	*p = kept
}
