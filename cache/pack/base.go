package pack

import (
	"cmp"
	"maps"
	"slices"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/signing"
)

// maxBases is how many layers of images a published pack says the entries of.
const maxBases = 1024

// Base says what is in a layer of an image that builds start from, so that a step which needs no bytes of its files does not fetch it. It
// may be wrong: that shows where the layer is unpacked.
type Base struct {
	// ID is the layer's diff ID, as 64 hexadecimal digits.
	ID layer.ID
	// Manifest is the layer's manifest, of media type ManifestType.
	Manifest ocispec.Descriptor
	// Used is when a build last used it, with a precision of a second.
	Used time.Time
	// Signatures are of everything but Used.
	Signatures Signatures
}

// AddBase adds what is in a layer of an image. Of two with one ID the one that is signed stays; it counts as used when either was.
func (p *Pack) AddBase(b Base) {
	if p.Bases == nil {
		p.Bases = map[layer.ID]Base{}
	}
	if old, ok := p.Bases[b.ID]; ok {
		switch c := compareBases(old, b); {
		case c > 0:
			old, b = b, old
		case c == 0:
			b.Signatures = b.Signatures.with(old.Signatures)
		}
		if old.Used.After(b.Used) {
			b.Used = old.Used
		}
	}
	p.Bases[b.ID] = b
}

func compareBases(a, b Base) int {
	return cmp.Or(compareSigned(a.Signatures, b.Signatures), cmp.Compare(a.Manifest.Digest, b.Manifest.Digest),
		cmp.Compare(a.Manifest.Size, b.Manifest.Size))
}

// hasBases reports whether adding other's bases would change nothing but times of use by less than slack.
func (p *Pack) hasBases(other *Pack, slack time.Duration) bool {
	for id, b := range other.Bases {
		have, ok := p.Bases[id]
		if !ok || b.Used.Sub(have.Used) >= slack {
			return false
		}
		if c := compareBases(have, b); c < 0 || c == 0 && !have.Signatures.covers(b.Signatures) {
			return false
		}
	}
	return true
}

// trimBases adds the bases that stay to kept, those that were used last, as far as the limit allows beside blobs of size bytes.
func (p *Pack) trimBases(kept *Pack, blobs blobSet, size int64, l Limit, now time.Time) {
	for _, b := range slices.SortedFunc(maps.Values(p.Bases), func(a, b Base) int {
		return cmp.Or(used(b.Used, now).Compare(used(a.Used, now)), cmp.Compare(a.ID, b.ID))
	}) {
		fresh, more := blobs.lacks([]ocispec.Descriptor{b.Manifest})
		size += more
		if len(kept.Bases) >= maxBases || l.exceeded(blobs, fresh, size) || l.Age > 0 && now.Sub(used(b.Used, now)) > l.Age {
			return
		}
		maps.Copy(blobs, fresh)
		kept.AddBase(b)
	}
}

func (b *Base) statement() statement {
	s := newStatement("base")
	s.text(string(b.ID))
	s.text(string(b.Manifest.Digest))
	s.number(b.Manifest.Size)
	return s
}

// Sign adds a signature.
func (b *Base) Sign(k *signing.PrivateKey) error {
	sig, err := b.statement().sign(k)
	b.Signatures = b.Signatures.with(Signatures{sig})
	return err
}

// Base reports whether one of the keys has signed what is said of a layer of an image.
func (k Keys) Base(b Base) bool { return k.signed(b.statement(), b.Signatures) }

type baseLine struct {
	ID       layer.ID   `json:"id"`
	Manifest descriptor `json:"manifest"`
	Used     int64      `json:"used"`
	signatures
}

func encodeBase(b Base) *baseLine {
	return &baseLine{b.ID, descriptor{b.Manifest.Digest, b.Manifest.Size}, b.Used.Unix(), encodeSignatures(b.Signatures)}
}

// decodeBase returns false for what no kiln writes.
func decodeBase(l *baseLine) (Base, bool) {
	b := Base{ID: l.ID, Used: time.Unix(l.Used, 0), Signatures: l.decode()}
	b.Manifest = ocispec.Descriptor{MediaType: ManifestType, Digest: l.Manifest.Digest, Size: l.Manifest.Size}
	return b, l.ID.Valid() && l.Manifest.valid() && written(b.Used)
}
