package pack

import (
	"cmp"
	"maps"
	"slices"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/internal/cachemount"
	"github.com/kilnbuild/kiln/internal/signing"
)

// The media types of the blobs of a mount, which package mounts makes.
const (
	IndexType = "application/vnd.kiln.cache.mount.v1+zstd"
	BlockType = "application/vnd.kiln.cache.block.v1+zstd"
)

// The limits of one mount: MaxIndex is how many bytes its index may have, as it is sent, and MaxBlocks how many blocks it may have.
const (
	MaxIndex  = 256 << 20
	MaxBlocks = 2048
)

// Mount is what a cache mount had when a build ended.
type Mount struct {
	// Identity says which mount it is.
	cachemount.Identity
	// Made is when it was exported, with a precision of a millisecond.
	Made time.Time
	// Files is how many files and directories it has, and Size how many bytes the files have. Both are for people.
	Files int
	Size  int64
	// Index says what the mount has, and Blocks have its files: see package mounts.
	Index  ocispec.Descriptor
	Blocks []ocispec.Descriptor
	// Signatures are of everything but Blocks, which the index names as well.
	Signatures Signatures
}

// AddMount adds the contents of a mount. Of two of one mount the one that is signed stays or else the one that was made later: nothing of
// them is mixed.
func (p *Pack) AddMount(m Mount) {
	if p.Mounts == nil {
		p.Mounts = map[string]Mount{}
	}
	key := m.Key()
	if old, ok := p.Mounts[key]; ok {
		switch c := compareMounts(old, m); {
		case c > 0:
			m = old
		case c == 0:
			m.Signatures = m.Signatures.with(old.Signatures)
		}
	}
	p.Mounts[key] = m
}

// compareMounts orders the contents of one mount as compareRecords does records.
func compareMounts(a, b Mount) int {
	return cmp.Or(
		compareSigned(a.Signatures, b.Signatures),
		a.Made.Compare(b.Made), cmp.Compare(a.Index.Digest, b.Index.Digest), cmp.Compare(a.Index.Size, b.Index.Size),
		cmp.Compare(a.Files, b.Files), cmp.Compare(a.Size, b.Size),
		slices.CompareFunc(a.Blocks, b.Blocks, func(a, b ocispec.Descriptor) int {
			return cmp.Or(cmp.Compare(a.Digest, b.Digest), cmp.Compare(a.Size, b.Size))
		}),
	)
}

func (m Mount) statement() statement {
	s := newStatement("mount")
	s.text(m.ID)
	s.number(int64(m.Mode))
	s.number(int64(m.UID))
	s.number(int64(m.GID))
	s.text(m.From)
	s.number(m.Made.UnixMilli())
	s.number(int64(m.Files))
	s.number(m.Size)
	s.text(string(m.Index.Digest))
	s.number(m.Index.Size)
	return s
}

// Sign adds a signature.
func (m *Mount) Sign(k *signing.PrivateKey) error {
	sig, err := m.statement().sign(k)
	m.Signatures = m.Signatures.with(Signatures{sig})
	return err
}

// Mount reports whether one of the keys has signed the contents of a mount.
func (k Keys) Mount(m Mount) bool { return k.signed(m.statement(), m.Signatures) }

// Descriptors returns those of the mount's blobs.
func (m Mount) Descriptors() []ocispec.Descriptor {
	return append([]ocispec.Descriptor{m.Index}, m.Blocks...)
}

// trimMounts adds the mounts that stay to kept, the one that was made last first, and returns the size of their blobs, which are added
// to blobs. They stay before records do: a limit that has no room for them has none for anything else.
func (p *Pack) trimMounts(kept *Pack, blobs blobSet, l Limit, now time.Time) (size int64) {
	all := slices.SortedFunc(maps.Values(p.Mounts), func(a, b Mount) int {
		return -cmp.Or(compareMounts(a, b), cmp.Compare(a.Key(), b.Key()))
	})
	for _, m := range all {
		fresh, more := blobs.lacks(m.Descriptors())
		if l.Age > 0 && now.Sub(m.Made) > l.Age || l.exceeded(blobs, fresh, size+more) || len(kept.Mounts) >= maxMounts {
			continue
		}
		size += more
		maps.Copy(blobs, fresh)
		kept.AddMount(m)
	}
	return size
}

// maxMounts is how many mounts a pack may have that is published.
const maxMounts = 100

type mountLine struct {
	cachemount.Identity
	Made   int64        `json:"made"` // milliseconds since 1970
	Files  int          `json:"files"`
	Size   int64        `json:"size"`
	Index  descriptor   `json:"index"`
	Blocks []descriptor `json:"blocks,omitempty"`
	signatures
}

func encodeMount(m Mount) *mountLine {
	l := &mountLine{
		Identity: m.Identity, Made: m.Made.UnixMilli(), Files: m.Files, Size: m.Size, Index: descriptor{m.Index.Digest, m.Index.Size},
		signatures: encodeSignatures(m.Signatures),
	}
	for _, b := range m.Blocks {
		l.Blocks = append(l.Blocks, descriptor{b.Digest, b.Size})
	}
	return l
}

func decodeMount(l *mountLine) (Mount, bool) {
	m := Mount{
		Identity: l.Identity, Made: time.UnixMilli(l.Made), Files: l.Files, Size: l.Size,
		Index:      ocispec.Descriptor{MediaType: IndexType, Digest: l.Index.Digest, Size: l.Index.Size},
		Signatures: l.decode(),
	}
	if !written(m.Made) || !l.Index.valid() || l.Index.Size > MaxIndex || len(l.Blocks) > MaxBlocks || l.Files < 0 || l.Size < 0 {
		return m, false
	}
	for _, b := range l.Blocks {
		if !b.valid() {
			return m, false
		}
		m.Blocks = append(m.Blocks, ocispec.Descriptor{MediaType: BlockType, Digest: b.Digest, Size: b.Size})
	}
	return m, true
}
