package layer

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"os"
	"sort"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/internal/mapped"
)

// The version in magic is incremented with each change to the contents of a layer's directory, so that a layer of an earlier
// version is never misread: it counts as damaged, and is made again. 2: nothing is on disk that the manifest does not
// record. 3: the form of the layer on disk is not part of the manifest.
//
// The file consists of magic; the entries in the order of Compare, each with its length; a table of the entries' offsets, 8 bytes
// each; and a footer with the table's offset, the number of entries, the layer's time, flags, its content digest, its identity,
// and the SHA-256 of everything before. Numbers are little-endian. The file is read in place, with mmap(2).
const (
	magic      = "kiln layer manifest 3\n"
	anyMagic   = "kiln layer manifest "        // common prefix of all versions
	footerSize = 8 + 8 + 8 + 8 + 2*sha256.Size // without the digest of everything before
)

// The footer's flags, for fields of Summary.
const (
	flagImplied = 1 << iota
	flagPlain
	flagDevices
	flagOwned
)

// maxEntry is the maximum size of an entry in bytes: a path and a link of 64 KiB each and 1 MiB of extended attributes are far
// more than a kernel allows. It keeps a damaged length from causing a large allocation.
const maxEntry = 4 << 20

// Summary describes a layer as a whole.
type Summary struct {
	// Content is the digest of all entries without their times, or zero for a layer without entries.
	Content [sha256.Size]byte
	// Identity is the digest of Content and of the times that did not come from the clock. Layers with the same identity are
	// interchangeable.
	Identity [sha256.Size]byte
	// Entries is the number of entries.
	Entries int
	// Implied reports whether any entry is Implied.
	Implied bool
	// Plain reports that no entry is Opaque. It is also false if the manifest does not record this.
	Plain bool
	// Devices reports whether any entry is a Char or Block, and Owned whether any entry does not belong to root.
	Devices, Owned bool
	// Created is the time at which the layer was made.
	Created time.Time
}

// HidesBelow reports whether an entry may hide what layers below have in its directory, so that the layer cannot be stacked on other layers
// as it is.
func (s Summary) HidesBelow() bool { return !s.Plain && s.Entries > 0 }

// Digester computes a layer's Summary from its entries without writing anything. The entries are as for Writer.Add.
type Digester struct {
	content hash.Hash
	times   hash.Hash
	scratch []byte
	summary Summary
}

// NewDigester returns a Digester without entries.
func NewDigester() *Digester {
	return &Digester{content: sha256.New(), times: sha256.New(), summary: Summary{Plain: true}}
}

// Add adds the next entry.
func (d *Digester) Add(e *Entry) error {
	d.add(e)
	return nil
}

// add adds an entry and returns its encoding, which is valid until the next call.
func (d *Digester) add(e *Entry) []byte {
	// Leave room for the length in front of the data, so that each digest needs one call.
	b := appendBody(append(d.scratch[:0], 0, 0, 0, 0), e)
	binary.LittleEndian.PutUint32(b, uint32(len(b)-4))
	d.content.Write(b)
	var t [13]byte // fixed length, so that the encoding of a list of times is unambiguous
	if e.Clock {
		t[12] = 1
	} else {
		binary.LittleEndian.PutUint64(t[:], uint64(e.ModTime.Unix()))
		binary.LittleEndian.PutUint32(t[8:], uint32(e.ModTime.Nanosecond()))
	}
	d.times.Write(t[:])
	b = appendTime(b, e)
	d.scratch = b
	d.summary.Entries++
	d.summary.Implied = d.summary.Implied || e.Implied
	d.summary.Plain = d.summary.Plain && !e.Opaque
	d.summary.Devices = d.summary.Devices || e.Type == Char || e.Type == Block
	d.summary.Owned = d.summary.Owned || e.UID|e.GID != 0
	return b[4:]
}

// Sum returns the summary of the entries so far.
func (d *Digester) Sum() Summary {
	var content, times [sha256.Size]byte
	d.content.Sum(content[:0])
	d.times.Sum(times[:0])
	d.summary.Identity = sha256.Sum256(append(content[:], times[:]...))
	if d.summary.Entries > 0 {
		d.summary.Content = content
	}
	return d.summary
}

// Writer writes a manifest. Entries must come in the order of Compare, each path once.
type Writer struct {
	file    *os.File
	buf     *bufio.Writer
	sum     hash.Hash
	digests *Digester
	sizes   []byte // of the entries, as uvarints
	entries int
	offset  uint64
	last    string
}

// NewWriter begins a manifest in a new file called name.
func NewWriter(name string) (*Writer, error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	w := &Writer{file: f, sum: sha256.New(), digests: NewDigester()}
	w.buf = bufio.NewWriterSize(io.MultiWriter(f, w.sum), 1<<14)
	w.write([]byte(magic))
	return w, nil
}

func (w *Writer) write(p []byte) {
	w.buf.Write(p) // bufio keeps the first error for Flush
	w.offset += uint64(len(p))
}

// Add appends an entry.
func (w *Writer) Add(e *Entry) error {
	if w.entries > 0 && Compare(w.last, e.Path) >= 0 {
		return fmt.Errorf("BUG: manifest entry %q after %q", e.Path, w.last)
	}
	w.last = e.Path
	body := w.digests.add(e)
	if len(body) > maxEntry {
		return fmt.Errorf("entry %q is too large", e.Path)
	}
	w.sizes = binary.AppendUvarint(w.sizes, uint64(len(body)))
	w.entries++
	var size [4]byte
	binary.LittleEndian.PutUint32(size[:], uint32(len(body)))
	w.write(size[:])
	w.write(body)
	return nil
}

// Close completes the manifest of a layer that was made at created.
func (w *Writer) Close(created time.Time) (Summary, error) {
	s := w.digests.Sum()
	s.Created = created
	table := w.offset
	var b [8]byte
	put := func(v uint64) {
		binary.LittleEndian.PutUint64(b[:], v)
		w.write(b[:])
	}
	offset := uint64(len(magic))
	for rest := w.sizes; len(rest) > 0; {
		put(offset)
		size, n := binary.Uvarint(rest)
		offset, rest = offset+4+size, rest[n:]
	}
	put(table)
	put(uint64(w.entries))
	put(uint64(created.UnixNano()))
	flags := uint64(0)
	if s.Implied {
		flags |= flagImplied
	}
	if s.Plain {
		flags |= flagPlain
	}
	if s.Devices {
		flags |= flagDevices
	}
	if s.Owned {
		flags |= flagOwned
	}
	put(flags)
	w.write(s.Content[:])
	w.write(s.Identity[:])
	err := w.buf.Flush()
	if err == nil {
		_, err = w.file.Write(w.sum.Sum(nil))
	}
	return s, errors.Join(err, w.file.Close())
}

// Abort stops writing the manifest. The caller must remove the file.
func (w *Writer) Abort() { w.file.Close() }

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendBody(b []byte, e *Entry) []byte {
	flags := byte(0)
	if e.Opaque {
		flags |= 1
	}
	if e.Implied {
		flags |= 2
	}
	b = appendString(b, e.Path)
	b = append(b, byte(e.Type), flags)
	b = binary.AppendUvarint(b, uint64(e.Mode))
	b = binary.AppendUvarint(b, uint64(e.UID))
	b = binary.AppendUvarint(b, uint64(e.GID))
	b = appendString(b, e.Link)
	switch e.Type {
	case File:
		b = binary.AppendUvarint(b, uint64(e.Size))
		b = append(b, e.Digest[:]...)
	case Char, Block:
		b = binary.AppendUvarint(b, uint64(e.Major))
		b = binary.AppendUvarint(b, uint64(e.Minor))
	}
	b = binary.AppendUvarint(b, uint64(len(e.Xattrs)))
	for _, x := range e.Xattrs {
		b = appendString(b, x.Name)
		b = appendString(b, x.Value)
	}
	return b
}

func appendTime(b []byte, e *Entry) []byte {
	clock := byte(0)
	if e.Clock {
		clock = 1
	}
	b = binary.AppendVarint(b, e.ModTime.Unix())
	b = binary.AppendUvarint(b, uint64(e.ModTime.Nanosecond()))
	return append(b, clock)
}

// Identify computes a layer's Summary from its entries without writing anything. The entries are as for Writer.Add.
func Identify(entries iter.Seq[*Entry]) Summary {
	d := NewDigester()
	for e := range entries {
		d.add(e)
	}
	return d.Sum()
}

// Manifest is an open manifest file. It is safe for concurrent use.
type Manifest struct {
	Summary
	file  *mapped.File
	data  []byte
	table []byte
	// opaque are the indexes, ascending, of the opaque entries that are not in another one; computed on first use.
	opaque func() []int
}

// Written returns the time at which the manifest was written, by the clock of its file system. No time in the layer that came
// from the clock is later.
func (m *Manifest) Written() time.Time {
	if m.file == nil {
		return time.Time{}
	}
	return m.file.Modified
}

// ErrDamaged is returned for a manifest that was modified, or a layer that does not match its manifest.
var ErrDamaged = errors.New("the layer is damaged")

// OpenManifest opens a manifest and verifies its checksum.
func OpenManifest(name string) (*Manifest, error) {
	f, err := mapped.Open(name)
	if errors.Is(err, mapped.ErrDamaged) {
		err = fmt.Errorf("open %s: %w", name, ErrDamaged)
	}
	if err != nil {
		return nil, err
	}
	m, err := parse(f.Data)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	m.file = f
	return m, nil
}

// ErrOtherVersion wraps ErrDamaged, and is returned for a manifest written by another version of kiln.
var ErrOtherVersion = fmt.Errorf("%w: it was made by another version of kiln", ErrDamaged)

// parse parses the data before the digest at the end.
func parse(data []byte) (*Manifest, error) {
	if !bytes.HasPrefix(data, []byte(magic)) && bytes.HasPrefix(data, []byte(anyMagic)) {
		return nil, ErrOtherVersion
	}
	if len(data) < len(magic)+footerSize || string(data[:len(magic)]) != magic {
		return nil, ErrDamaged
	}
	footer := data[len(data)-footerSize:]
	number := func(i int) uint64 { return binary.LittleEndian.Uint64(footer[8*i:]) }
	m := &Manifest{data: data}
	table, n := number(0), number(1)
	if n > uint64(len(data))/8 || table < uint64(len(magic)) || table > uint64(len(data)) || table+8*n+footerSize != uint64(len(data)) {
		return nil, ErrDamaged
	}
	m.table = data[table : table+8*n]
	m.Entries = int(n)
	m.Created = time.Unix(0, int64(number(2)))
	m.Implied, m.Plain = number(3)&flagImplied != 0, number(3)&flagPlain != 0
	m.Devices, m.Owned = number(3)&flagDevices != 0, number(3)&flagOwned != 0
	m.opaque = sync.OnceValue(m.findOpaque)
	copy(m.Content[:], footer[32:])
	copy(m.Identity[:], footer[32+sha256.Size:])
	return m, nil
}

// Close unmaps the file. Entries that were returned stay valid.
func (m *Manifest) Close() error { return m.file.Close() }

// WriteTo writes the manifest as it is in its file, for ReceiveManifest elsewhere. It implements io.WriterTo.
func (m *Manifest) WriteTo(w io.Writer) (int64, error) {
	sum := sha256.Sum256(m.data)
	n, err := w.Write(m.data)
	if err != nil {
		return int64(n), err
	}
	k, err := w.Write(sum[:])
	return int64(n + k), err
}

func (m *Manifest) record(i int) decoder {
	o := binary.LittleEndian.Uint64(m.table[8*i:])
	n := binary.LittleEndian.Uint32(m.data[o:])
	return decoder{m.data[o+4 : o+4+uint64(n)]}
}

func (m *Manifest) path(i int) []byte {
	d := m.record(i)
	return d.bytes()
}

// At returns entry i, with 0 ≤ i < Entries.
func (m *Manifest) At(i int) Entry { return ParseEntry(m.record(i).b) }

// Append appends the encoding of the entry, without its LinkID, to b.
func (e *Entry) Append(b []byte) []byte { return appendTime(appendBody(b, e), e) }

// ParseEntry decodes an entry encoded by Append.
func ParseEntry(b []byte) Entry {
	d := decoder{b}
	e := Entry{Path: string(d.bytes())}
	e.Type = Type(d.byte())
	flags := d.byte()
	e.Opaque, e.Implied = flags&1 != 0, flags&2 != 0
	e.Mode, e.UID, e.GID = uint32(d.uvarint()), uint32(d.uvarint()), uint32(d.uvarint())
	e.Link = string(d.bytes())
	switch e.Type {
	case File:
		e.Size = int64(d.uvarint())
		d.b = d.b[copy(e.Digest[:], d.b):]
	case Char, Block:
		e.Major, e.Minor = uint32(d.uvarint()), uint32(d.uvarint())
	}
	if n := d.uvarint(); n > 0 {
		e.Xattrs = make([]Xattr, n)
		for i := range e.Xattrs {
			e.Xattrs[i] = Xattr{Name: string(d.bytes()), Value: string(d.bytes())}
		}
	}
	sec := d.varint()
	e.ModTime = time.Unix(sec, int64(d.uvarint()))
	e.Clock = d.byte() != 0
	return e
}

// search returns the index of the first entry that does not sort before path.
func (m *Manifest) search(path string) int {
	return sort.Search(m.Entries, func(i int) bool { return Compare(string(m.path(i)), path) >= 0 })
}

// Find returns the index of the layer's own entry for a path, or -1.
func (m *Manifest) Find(path string) int {
	i := m.search(path)
	if i == m.Entries || string(m.path(i)) != path {
		return -1
	}
	return i
}

// FindFrom is like Find, and fast if the entry is probably at index at.
func (m *Manifest) FindFrom(at int, path string) (int, bool) {
	if at < m.Entries && string(m.path(at)) == path {
		return at, true
	}
	i := m.Find(path)
	return i, i >= 0
}

// Same reports whether entry i equals e in all fields, including the time.
func (m *Manifest) Same(i int, e *Entry) bool {
	var buf [512]byte
	return bytes.Equal(m.record(i).b, e.Append(buf[:0]))
}

// Type returns the type of entry i.
func (m *Manifest) Type(i int) Type {
	d := m.record(i)
	d.bytes()
	return Type(d.byte())
}

// Lookup returns the layer's own entry for a path.
func (m *Manifest) Lookup(path string) (Entry, bool) {
	i := m.Find(path)
	if i < 0 {
		return Entry{}, false
	}
	return m.At(i), true
}

// Above returns the layer's own entry for the nearest parent directory of path that has one.
func (m *Manifest) Above(path string) (Entry, bool) {
	// The contents of a directory directly follow it, so the entry before the position of path is that directory or in it.
	i := m.search(path) - 1
	if i < 0 || path == "" {
		return Entry{}, false
	}
	before := m.path(i)
	common := 0
	for n := range min(len(before), len(path)) {
		if before[n] != path[n] {
			break
		}
		if path[n] == '/' {
			common = n
		}
		if n+1 == len(before) && len(path) > n+1 && path[n+1] == '/' {
			common = n + 1
		}
	}
	for dir := path[:common]; ; dir = Parent(dir) {
		if e, ok := m.Lookup(dir); ok || dir == "" {
			return e, ok // usually in the first iteration, since manifests contain the parents of their entries
		}
	}
}

// OpaqueAbove reports whether any parent directory of a path is opaque.
func (m *Manifest) OpaqueAbove(path string) bool {
	if m.Plain || path == "" {
		return false
	}
	opaque := m.opaque()
	// They do not contain each other, so only the last one before the path can contain it.
	i := sort.Search(len(opaque), func(i int) bool { return Compare(string(m.path(opaque[i])), path) >= 0 })
	return i > 0 && Within(path, string(m.path(opaque[i-1])))
}

// findOpaque returns the indexes of the opaque entries that are not in another one.
func (m *Manifest) findOpaque() []int {
	var found []int
	for i := range m.Entries {
		if !m.isOpaque(i) {
			continue
		}
		if n := len(found); n == 0 || !Within(string(m.path(i)), string(m.path(found[n-1]))) {
			found = append(found, i)
		}
	}
	return found
}

// isOpaque reports whether entry i is Opaque.
func (m *Manifest) isOpaque(i int) bool {
	d := m.record(i)
	d.bytes()
	d.byte()
	return d.byte()&1 != 0
}

// All yields every entry in order.
func (m *Manifest) All() iter.Seq[*Entry] {
	return func(yield func(*Entry) bool) {
		for i := range m.Entries {
			e := m.At(i)
			if !yield(&e) {
				return
			}
		}
	}
}

// List yields the layer's own entries in a directory, in order.
func (m *Manifest) List(dir string) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		i := m.search(dir)
		if i < m.Entries && string(m.path(i)) == dir {
			i++
		}
		for i < m.Entries {
			e := m.At(i)
			if !Within(e.Path, dir) {
				return
			}
			if !yield(e) {
				return
			}
			if e.Type != Dir {
				i++
				continue
			}
			// The contents of e precede the next name that is not in e.
			low, sub := i+1, e.Path
			i = low + sort.Search(m.Entries-low, func(k int) bool { return !Within(string(m.path(low+k)), sub) })
		}
	}
}

// decoder decodes the output of appendBody and appendTime, in data whose checksum was verified.
type decoder struct{ b []byte }

func (d *decoder) byte() byte {
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	d.b = d.b[n:]
	return v
}

func (d *decoder) bytes() []byte {
	n := d.uvarint()
	s := d.b[:n]
	d.b = d.b[n:]
	return s
}
