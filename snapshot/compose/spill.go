package compose

import (
	"bufio"
	"bytes"
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"slices"

	"github.com/kilnbuild/kiln/internal/layer"
)

// spill keeps the entries of a Builder that are not directories. An image may have millions of them, so memory holds only the place of
// each entry, some 16 bytes; the entries themselves are in a file, unless they are few.
//
// An entry that is put is appended as a record. The last record of a name in a directory is the valid one.
type spill struct {
	tmp  string // the directory for files
	seed maphash.Seed
	// at has the places of records by the hashes of their directories' numbers and their names. Where two have one hash, the second is found
	// by the number that follows. Removed is the place of one that was taken out.
	at      map[uint64]int64
	file    *os.File // of the records before tail; nil while there are none. It has no name
	size    int64    // of the file
	tail    []byte
	last    string // the path of the last record
	ordered bool   // each record sorts behind the one before
	scratch []byte
}

const (
	removed = -1
	// tailSize is how many bytes of records are kept in memory before they go to the file, and sortSize how many are sorted
	// at once.
	tailSize = 1 << 20
	sortSize = 8 << 20
)

// leaf is an entry with what its Builder knows of it.
type leaf struct {
	layer.Entry
	// in is the number of the directory that it was put in: it is part of the layer as long as that is.
	in int
	// links is the same number for all names of one file; 0 for a file that has one name.
	links int
}

func newSpill(tmp string) *spill {
	return &spill{tmp: tmp, seed: maphash.MakeSeed(), at: map[uint64]int64{}, ordered: true}
}

func (l *spill) close() {
	if l.file != nil {
		l.file.Close()
	}
}

// hash returns the number by which a name of a directory is found. The seed is not known to those who choose names.
func (l *spill) hash(in int, name string) uint64 {
	return maphash.String(l.seed, name) + uint64(in)*0x9e3779b97f4a7c15 // directories' names of the same hash lie far from each other
}

// find returns the place of the record of a name in a directory, or removed, and the number that it is or would be found by.
func (l *spill) find(in int, name string) (at int64, number uint64, err error) {
	free, isFree := uint64(0), false
	for number = l.hash(in, name); ; number++ {
		at, ok := l.at[number]
		if ok && at != removed {
			found, err := l.read(at)
			if err != nil || found.in == in && found.Name() == name {
				return at, number, err
			}
			continue
		}
		if !isFree {
			free, isFree = number, true
		}
		if !ok {
			return removed, free, nil
		}
	}
}

// counts reports whether the record e at a place is the last of its name in its directory.
func (l *spill) counts(e *leaf, at int64) (bool, error) {
	if l.at[l.hash(e.in, e.Name())] == at {
		return true, nil
	}
	last, _, err := l.find(e.in, e.Name())
	return last == at, err
}

// get returns the entry of a name in a directory; false if there is none.
func (l *spill) get(in int, name string) (leaf, bool, error) {
	at, _, err := l.find(in, name)
	if err != nil || at == removed {
		return leaf{}, false, err
	}
	found, err := l.read(at)
	return found, err == nil, err
}

// put adds an entry, in the place of that of the same name in the same directory.
func (l *spill) put(e *leaf) error {
	_, number, err := l.find(e.in, e.Name())
	if err != nil {
		return err
	}
	if len(l.tail) >= tailSize {
		if err := l.flush(); err != nil {
			return err
		}
	}
	l.ordered = l.ordered && (len(l.at) == 0 || layer.Compare(l.last, e.Path) < 0)
	l.last = e.Path
	l.at[number] = l.size + int64(len(l.tail))
	l.scratch = e.append(l.scratch[:0])
	l.tail = binary.LittleEndian.AppendUint32(l.tail, uint32(len(l.scratch)))
	l.tail = append(l.tail, l.scratch...)
	return nil
}

// remove takes the entry of a name in a directory out. Its number stays known, for a name whose number follows.
func (l *spill) remove(in int, name string) error {
	at, number, err := l.find(in, name)
	if err == nil && at != removed {
		l.at[number] = removed
	}
	return err
}

func (l *spill) flush() error {
	if l.file == nil {
		f, err := unnamed(l.tmp)
		if err != nil {
			return err
		}
		l.file = f
	}
	n, err := l.file.WriteAt(l.tail, l.size)
	l.size += int64(n)
	l.tail = l.tail[:copy(l.tail, l.tail[n:])]
	return err
}

// unnamed makes a file that is gone when it is closed.
func unnamed(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "entries-")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

// read reads the record at a place.
func (l *spill) read(at int64) (leaf, error) {
	if at >= l.size {
		b := l.tail[at-l.size:]
		n := binary.LittleEndian.Uint32(b)
		return parseLeaf(b[4 : 4+n]), nil
	}
	var first [512]byte // most are shorter
	n, err := l.file.ReadAt(first[:min(int64(len(first)), l.size-at)], at)
	if err != nil {
		return leaf{}, err
	}
	size := int(binary.LittleEndian.Uint32(first[:]))
	if 4+size <= n {
		return parseLeaf(first[4 : 4+size]), nil
	}
	b := make([]byte, size)
	if _, err := l.file.ReadAt(b, at+4); err != nil {
		return leaf{}, err
	}
	return parseLeaf(b), nil
}

func (e *leaf) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(e.in))
	b = binary.AppendUvarint(b, uint64(e.links))
	b = binary.AppendUvarint(b, uint64(len(e.LinkID)))
	b = append(b, e.LinkID...)
	return e.Entry.Append(b)
}

func parseLeaf(b []byte) leaf {
	in, n := binary.Uvarint(b)
	b = b[n:]
	links, n := binary.Uvarint(b)
	b = b[n:]
	size, n := binary.Uvarint(b)
	b = b[n:]
	e := leaf{layer.ParseEntry(b[size:]), int(in), int(links)}
	e.LinkID = string(b[:size])
	return e
}

// all calls f for the entries that count and that live says are there, in the order in which they were put.
func (l *spill) all(live func(*leaf) bool, f func(*leaf) error) error {
	var records io.Reader = bytes.NewReader(l.tail)
	if l.file != nil {
		records = io.MultiReader(io.NewSectionReader(l.file, 0, l.size), records)
	}
	r := bufio.NewReaderSize(records, 64<<10)
	for at := int64(0); ; {
		e, n, err := nextLeaf(r)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		counts, err := l.counts(&e, at)
		if err != nil {
			return err
		}
		if counts && live(&e) {
			if err := f(&e); err != nil {
				return err
			}
		}
		at += n
	}
}

// nextLeaf reads a record, of n bytes.
func nextLeaf(r *bufio.Reader) (e leaf, n int64, err error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return leaf{}, 0, err
	}
	b := make([]byte, binary.LittleEndian.Uint32(size[:]))
	if _, err := io.ReadFull(r, b); err != nil {
		return leaf{}, 0, fmt.Errorf("read entries: %w", errors.Join(err, io.ErrUnexpectedEOF))
	}
	return parseLeaf(b), int64(4 + len(b)), nil
}

// sorted calls f for the entries that count and that live says are there, in the order of layer.Compare.
func (l *spill) sorted(live func(*leaf) bool, f func(*leaf) error) error {
	if l.ordered {
		return l.all(live, f)
	}
	// Parts that fit into memory are sorted and written one after the other, then read side by side.
	var parts []*bufio.Reader
	var file *os.File
	var part []leaf
	var size, written int64
	order := func(a, b leaf) int { return layer.Compare(a.Path, b.Path) }
	end := func() error {
		slices.SortFunc(part, order)
		if file == nil {
			var err error
			if file, err = unnamed(l.tmp); err != nil {
				return err
			}
		}
		begin := written
		w := bufio.NewWriterSize(io.NewOffsetWriter(file, begin), 256<<10)
		for i := range part {
			l.scratch = part[i].append(l.scratch[:0])
			var n [4]byte
			binary.LittleEndian.PutUint32(n[:], uint32(len(l.scratch)))
			w.Write(n[:]) // w keeps the first error for Flush
			w.Write(l.scratch)
			written += int64(4 + len(l.scratch))
		}
		parts = append(parts, bufio.NewReaderSize(io.NewSectionReader(file, begin, written-begin), 32<<10))
		clear(part)
		part, size = part[:0], 0
		return w.Flush()
	}
	defer func() {
		if file != nil {
			file.Close()
		}
	}()
	err := l.all(live, func(e *leaf) error {
		part = append(part, *e)
		size += int64(len(e.Path)+len(e.Link)) + 128
		for _, x := range e.Xattrs {
			size += int64(len(x.Name) + len(x.Value))
		}
		if size < sortSize {
			return nil
		}
		return end()
	})
	if err != nil {
		return err
	}
	slices.SortFunc(part, order)
	return merge(parts, part, f)
}

// merge calls f for the entries of all parts, which are sorted each, and of one that is in memory.
func merge(parts []*bufio.Reader, last []leaf, f func(*leaf) error) error {
	next := func(i int) (*leaf, error) {
		if i == len(parts) {
			if len(last) == 0 {
				return nil, nil
			}
			e := &last[0]
			last = last[1:]
			return e, nil
		}
		e, _, err := nextLeaf(parts[i])
		if err == io.EOF {
			return nil, nil
		}
		return &e, err
	}
	var heads partHeads
	for i := range len(parts) + 1 {
		e, err := next(i)
		if err != nil {
			return err
		}
		if e != nil {
			heads = append(heads, partHead{e, i})
		}
	}
	heap.Init(&heads)
	for len(heads) > 0 {
		least := heads[0]
		if err := f(least.leaf); err != nil {
			return err
		}
		e, err := next(least.part)
		if err != nil {
			return err
		}
		if e == nil {
			heap.Pop(&heads)
			continue
		}
		heads[0].leaf = e
		heap.Fix(&heads, 0)
	}
	return nil
}

// partHead is the first entry that is left of a part.
type partHead struct {
	*leaf
	part int
}

// partHeads is a heap.Interface, the least path first.
type partHeads []partHead

func (h partHeads) Len() int           { return len(h) }
func (h partHeads) Less(i, j int) bool { return layer.Compare(h[i].Path, h[j].Path) < 0 }
func (h partHeads) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *partHeads) Push(x any)        { *h = append(*h, x.(partHead)) }
func (h *partHeads) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	*h = (*h)[:last]
	return x
}
