package pack

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/kilnbuild/kiln/internal/gunzip"
	"github.com/kilnbuild/kiln/internal/zstdframes"
)

// MembersType is the media type of a table of members: a blob that says where the independent parts of another blob are, which is the tar
// of a layer compressed with gzip or zstd. With it, and the manifest of the layer, the bytes of one file can be fetched alone.
const MembersType = "application/vnd.kiln.cache.members.v1"

// membersHeader begins a table of members.
const membersHeader = "kiln cache members 1\n"

// The limits of a table: a layer of 64 GiB has at most 131,072 members.
const (
	maxMembers = 1 << 18
	maxMember  = max(gunzip.MaxSized, zstdframes.MaxSize) // bytes, in the blob and in the tar
	// MaxMembersSize bounds a table in bytes.
	MaxMembersSize = int64(len(membersHeader) + binary.MaxVarintLen64 + maxMembers*2*binary.MaxVarintLen32)
)

// EncodeMembers returns the table of the members of a blob; nil if it has none, one, or too many: such a blob is fetched as a whole.
func EncodeMembers(members []gunzip.Member) []byte {
	if len(members) < 2 || len(members) > maxMembers {
		return nil
	}
	b := binary.AppendUvarint([]byte(membersHeader), uint64(len(members)))
	for _, m := range members {
		b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(m.Size)), uint64(m.Data))
	}
	return b
}

// Members are those of a blob, in their order.
type Members []gunzip.Member

// DecodeMembers reads the table of a blob of size bytes. What it says of the data is not known to be true; the rest fits the blob.
func DecodeMembers(table []byte, size int64) (Members, error) {
	if int64(len(table)) > MaxMembersSize {
		return nil, fmt.Errorf("a table of members has %d bytes, and the limit is %d", len(table), MaxMembersSize)
	}
	if len(table) < len(membersHeader) || string(table[:len(membersHeader)]) != membersHeader {
		return nil, errors.New("it is no table of members of this version")
	}
	d := table[len(membersHeader):]
	next := func() int64 {
		v, n := binary.Uvarint(d)
		if n <= 0 || v > maxMember {
			d = nil
			return -1
		}
		d = d[n:]
		return int64(v)
	}
	n := next()
	if n < 0 || n > maxMembers || n > int64(len(d)/2) {
		return nil, errors.New("a table of members is cut off")
	}
	members, total := make(Members, n), int64(0)
	for i := range members {
		m := gunzip.Member{Size: next(), Data: next()}
		if m.Size <= 0 || m.Data < 0 {
			return nil, fmt.Errorf("member %d of a table is invalid", i)
		}
		members[i] = m
		total += m.Size
	}
	if len(d) > 0 || total != size {
		return nil, fmt.Errorf("a table of members is for a blob of %d bytes, and not for one of %d", total, size)
	}
	return members, nil
}

// Span is a part of a blob: the bytes from From until To, which decompress to a part of the tar; what is looked for begins there after Skip
// bytes.
type Span struct{ From, To, Skip int64 }

// Span returns the part of the blob that has the bytes of the tar from offset on, of the given length, which is not 0; false if the blob
// ends before.
func (m Members) Span(offset, length int64) (Span, bool) {
	var s Span
	at, data := int64(0), int64(0) // where the member begins in the blob, and its data in the tar
	if offset < 0 || length <= 0 || length > 1<<62-offset {
		return s, false
	}
	for _, part := range m {
		if data <= offset {
			s.From, s.Skip = at, offset-data
		}
		at, data = at+part.Size, data+part.Data
		if data >= offset+length {
			s.To = at
			return s, true
		}
	}
	return s, false
}
