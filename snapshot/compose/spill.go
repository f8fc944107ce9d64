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

// spill stores the entries of a Builder that are not directories. An image may have millions of them, so only the offset of each
// entry, some 16 bytes, is kept in memory; the entries themselves are in a file, unless there are only a few.
//
// An entry is stored by appending a record. The last record for a name in a directory is the valid one.
type spill struct {
	tmp  string // the directory for files
	seed maphash.Seed
	// at maps the hash of a directory number and a name to the offset of a record. On a collision the next free hash is used
	// instead. The offset removed marks a deleted entry.
	at      map[uint64]int64
	file    *os.File // unlinked file with the records before tail; nil if there are none
	size    int64    // size of file in bytes
	tail    []byte
	last    string // path of the last record
	ordered bool   // whether the records are in the order of layer.Compare
	scratch []byte
}

const (
	removed = -1
	// tailSize is the number of bytes of records kept in memory before they are written to the file, and sortSize the number sorted
	// at once.
	tailSize = 1 << 20
	sortSize = 8 << 20
)

// leaf is an entry that is not a directory.
type leaf struct {
	layer.Entry
	// in is the number of the directory that contains the entry. The entry is part of the layer as long as the directory is.
	in int
	// links identifies a file with more than one name, and is the same for all its names; it is 0 for a file with one name.
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

// hash returns the hash of a name in a directory. The random seed prevents deliberate collisions.
func (l *spill) hash(in int, name string) uint64 {
	return maphash.String(l.seed, name) + uint64(in)*0x9e3779b97f4a7c15 // spread equal names of different directories
}

// find returns the offset of the record of a name in a directory, or removed, and the hash under which it is or would be stored.
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

// counts reports whether the record e at the given offset is the last one for its name and directory.
func (l *spill) counts(e *leaf, at int64) (bool, error) {
	if l.at[l.hash(e.in, e.Name())] == at {
		return true, nil
	}
	last, _, err := l.find(e.in, e.Name())
	return last == at, err
}

// get returns the entry for a name in a directory. It returns false if there is none.
func (l *spill) get(in int, name string) (leaf, bool, error) {
	at, _, err := l.find(in, name)
	if err != nil || at == removed {
		return leaf{}, false, err
	}
	found, err := l.read(at)
	return found, err == nil, err
}

// put stores an entry, replacing the one with the same name and directory.
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

// remove deletes the entry for a name in a directory. Its hash stays in use, so that entries stored under a later hash because of
// a collision are still found.
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

// unnamed creates a temporary file without a name, which is freed when it is closed.
func unnamed(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "entries-")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

// read reads the record at an offset.
func (l *spill) read(at int64) (leaf, error) {
	if at >= l.size {
		b := l.tail[at-l.size:]
		n := binary.LittleEndian.Uint32(b)
		return parseLeaf(b[4 : 4+n]), nil
	}
	var first [512]byte // most records are shorter
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

// all calls f for each valid entry for which live returns true, in the order in which they were put.
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

// nextLeaf reads a record and returns its length n in bytes.
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

// sorted calls f for each valid entry for which live returns true, in the order of layer.Compare.
func (l *spill) sorted(live func(*leaf) bool, f func(*leaf) error) error {
	if l.ordered {
		return l.all(live, f)
	}
	// This is an external merge sort: parts that fit into memory are sorted and written to a file, then merged.
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

// merge calls f for the entries of the sorted parts and of last, which is sorted and in memory.
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

// partHead is the first remaining entry of a part.
type partHead struct {
	*leaf
	part int
}

// partHeads implements heap.Interface with the least path first.
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
