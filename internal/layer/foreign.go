package layer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// ReceiveManifest checks a manifest that came from elsewhere, in the file called name, and returns it open. Its checksum only says that it
// came as it was sent. So every entry is decoded with bounds, must be one that a layer can have, in order, below directories that are
// there, and must encode to the same bytes; and the summary must be that of the entries. The error wraps ErrDamaged.
func ReceiveManifest(name string, limit Limit) (*Manifest, error) {
	m, err := OpenManifest(name)
	if err != nil {
		return nil, err
	}
	if err := m.received(limit); err != nil {
		m.Close()
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return m, nil
}

func (m *Manifest) received(limit Limit) error {
	limit = limit.OrDefault()
	if m.Entries > limit.Entries {
		return fmt.Errorf("it has %d entries, and the limit is %d", m.Entries, limit.Entries)
	}
	table := uint64(len(m.data) - footerSize - len(m.table))
	at, size := uint64(len(magic)), int64(0)
	d := NewDigester()
	var dirs []string // those that the last entry lies in, the outermost first
	last := ""
	for i := range m.Entries {
		if binary.LittleEndian.Uint64(m.table[8*i:]) != at || at+4 > table {
			return fmt.Errorf("entry %d is not where it should be", i)
		}
		n := uint64(binary.LittleEndian.Uint32(m.data[at:]))
		if n > maxEntry || at+4+n > table {
			return fmt.Errorf("entry %d is too large", i)
		}
		body := m.data[at+4 : at+4+n]
		at += 4 + n
		e, ok := parseForeign(body)
		if !ok || !bytes.Equal(d.add(&e), body) {
			return fmt.Errorf("entry %d cannot be read", i)
		}
		if i > 0 && Compare(last, e.Path) >= 0 {
			return fmt.Errorf("entry %d is not in order", i)
		}
		last = e.Path
		if size += e.Size; size > limit.Size {
			return fmt.Errorf("its files have more than %d bytes", limit.Size)
		}
		for len(dirs) > 0 && !Within(e.Path, dirs[len(dirs)-1]) {
			dirs = dirs[:len(dirs)-1]
		}
		if err := e.fits(dirs); err != nil {
			return err
		}
		if e.Type == Dir {
			dirs = append(dirs, e.Path)
		}
	}
	if at != table {
		return fmt.Errorf("it has %d bytes that are no entry's", table-at)
	}
	sum := d.Sum()
	sum.Created = m.Created
	if sum != m.Summary {
		return errors.New("its summary is that of another layer")
	}
	for e := range m.All() {
		if e.Type != Hardlink {
			continue
		}
		if target, ok := m.Lookup(e.Link); !ok || target.Type != File {
			return fmt.Errorf("/%s is a link to /%s, which is no file", Clip(e.Path), Clip(e.Link))
		}
	}
	return nil
}

// fits says why a layer cannot have an entry that lies in dirs.
func (e *Entry) fits(dirs []string) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("/%s: "+format, append([]any{Clip(e.Path)}, args...)...)
	}
	if msg := BadName(e.Path); msg != "" {
		return bad("%s", msg)
	}
	if len(e.Path) >= MaxPath {
		return bad("%s", PathTooLong)
	}
	if e.Path != "" && Parent(e.Path) != "" && (len(dirs) == 0 || dirs[len(dirs)-1] != Parent(e.Path)) {
		return bad("the layer has no directory that it is in")
	}
	switch e.Type {
	case File, Dir, Char, Block, Fifo, Whiteout:
		if e.Link != "" {
			return bad("it is no link, and names %q", Clip(e.Link))
		}
	case Symlink:
		if e.Link == "" || len(e.Link) >= MaxPath || bytes.IndexByte([]byte(e.Link), 0) >= 0 {
			return bad("its target is none")
		}
	case Hardlink: // what it names may come later
	default:
		return bad("its type %q is none", e.Type)
	}
	if e.Path == "" && e.Type != Dir || e.Mode > 0o7777 || e.Type != Dir && (e.Opaque || e.Implied) || e.Size < 0 {
		return bad("no layer has such an entry")
	}
	if !slices.IsSortedFunc(e.Xattrs, func(a, b Xattr) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) }) {
		return bad("its attributes are not in order")
	}
	for _, x := range e.Xattrs {
		if !KeepXattr(x.Name) || bytes.IndexByte([]byte(x.Name), 0) >= 0 {
			return bad("no layer keeps its attribute %q", Clip(x.Name))
		}
	}
	return nil
}

// parseForeign is ParseEntry for bytes that may be anything; false if they are no entry.
func parseForeign(b []byte) (e Entry, ok bool) {
	if !wellFormed(b) {
		return e, false
	}
	return ParseEntry(b), true
}

// wellFormed reports whether ParseEntry can decode b.
func wellFormed(b []byte) bool {
	ok := true
	skip := func(n uint64) []byte {
		if !ok || n > uint64(len(b)) {
			ok = false
			return nil
		}
		head := b[:n]
		b = b[n:]
		return head
	}
	number := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			ok = false
			return 0
		}
		skip(uint64(n))
		return v
	}
	skip(number()) // path
	head := skip(2)
	for range 3 { // mode, owner, group
		number()
	}
	skip(number()) // link
	if !ok {
		return false
	}
	switch Type(head[0]) {
	case File:
		number()
		skip(32)
	case Char, Block:
		number()
		number()
	}
	attributes := number()
	if attributes > uint64(len(b)) {
		return false
	}
	for range attributes {
		skip(number())
		skip(number())
	}
	number() // seconds, a varint of the same length
	number()
	skip(1)
	return ok && len(b) == 0
}
