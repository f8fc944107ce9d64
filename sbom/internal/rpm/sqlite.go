package rpm

import (
	"encoding/binary"
	"errors"
)

// sqliteMagic begins every database of SQLite (sqlite.org/fileformat2.html).
const sqliteMagic = "SQLite format 3\x00"

// Types of pages of a table's tree.
const (
	interiorPage = 5
	leafPage     = 13
)

// sqliteFile is a database of SQLite, as far as the rows of a table can be read from it: no index, no journal.
type sqliteFile struct {
	*database
	pageSize, usable int64
	visited          int64 // pages of trees: a tree cannot have more than there are
}

// errStop ends a walk that nobody wants to go on.
var errStop = errors.New("the walk is over")

// sqlite yields the blobs of the table Packages.
func (d *database) sqlite(yield func([]byte, error) bool) {
	f := &sqliteFile{database: d}
	err := f.packages(func(h []byte) error {
		if !yield(h, nil) {
			return errStop
		}
		return nil
	})
	if err != nil && err != errStop {
		yield(nil, err)
	}
}

func (f *sqliteFile) packages(yield func(h []byte) error) error {
	var begin [100]byte
	if err := f.read(begin[:], 0); err != nil {
		return err
	}
	f.pageSize = int64(binary.BigEndian.Uint16(begin[16:]))
	if f.pageSize == 1 {
		f.pageSize = 64 << 10
	}
	f.usable = f.pageSize - int64(begin[20])
	if f.pageSize < 512 || f.pageSize&(f.pageSize-1) != 0 || f.usable < 480 {
		return damaged("its pages have %d bytes", f.pageSize)
	}
	root := int64(-1)
	err := f.table(1, 0, func(row []byte) error {
		// type, name, tbl_name, rootpage, sql
		columns, err := record(row, 4)
		if err == nil && string(columns[0].bytes) == "table" && string(columns[1].bytes) == "Packages" {
			root = columns[3].number
		}
		return err
	})
	if err != nil {
		return err
	}
	if root < 0 {
		return damaged("it has no table of packages")
	}
	f.used = 0
	return f.table(root, 0, func(row []byte) error {
		columns, err := record(row, 2) // hnum, blob
		if err != nil {
			return err
		}
		return yield(columns[1].bytes)
	})
}

// maxDepth is how deep a tree can be: SQLite's own limit (BTCURSOR_MAX_DEPTH).
const maxDepth = 20

// table calls row for each row of the tree whose root is a page.
func (f *sqliteFile) table(page int64, depth int, row func(record []byte) error) error {
	if f.visited++; depth > maxDepth || f.visited > f.size/f.pageSize {
		return damaged("a tree refers to itself")
	}
	b := make([]byte, f.pageSize)
	if page < 1 {
		return damaged("it refers to page %d", page)
	}
	if err := f.read(b, (page-1)*f.pageSize); err != nil {
		return err
	}
	head := b
	if page == 1 {
		head = b[100:]
	}
	cells := int(binary.BigEndian.Uint16(head[3:]))
	pointers := head[8:]
	if head[0] == interiorPage {
		pointers = head[12:]
	} else if head[0] != leafPage {
		return damaged("page %d is of type %d", page, head[0])
	}
	if 2*cells > len(pointers) {
		return damaged("page %d has %d cells", page, cells)
	}
	for i := range cells {
		at := int64(binary.BigEndian.Uint16(pointers[2*i:]))
		if at+4 > f.usable {
			return damaged("a cell of page %d is behind its end", page)
		}
		cell := b[at:f.usable]
		var err error
		if head[0] == interiorPage {
			err = f.table(int64(binary.BigEndian.Uint32(cell)), depth+1, row)
		} else {
			err = f.leaf(cell, row)
		}
		if err != nil {
			return err
		}
	}
	if head[0] == interiorPage {
		return f.table(int64(binary.BigEndian.Uint32(head[8:])), depth+1, row)
	}
	return nil
}

// leaf reads the row of a cell.
func (f *sqliteFile) leaf(cell []byte, row func([]byte) error) error {
	size, n := varint(cell)
	if n == 0 {
		return damaged("a cell ends early")
	}
	_, m := varint(cell[n:])
	if m == 0 {
		return damaged("a cell ends early")
	}
	cell = cell[n+m:]
	if err := f.payload(size); err != nil {
		return err
	}
	local, most := size, f.usable-35
	if size > most {
		least := (f.usable-12)*32/255 - 23
		if local = least + (size-least)%(f.usable-4); local > most {
			local = least
		}
	}
	if local > int64(len(cell)) || local < size && local+4 > int64(len(cell)) {
		return damaged("a cell ends early")
	}
	if local == size {
		return row(cell[:size])
	}
	whole := append(make([]byte, 0, size), cell[:local]...)
	next := int64(binary.BigEndian.Uint32(cell[local:]))
	page := make([]byte, f.usable)
	for int64(len(whole)) < size {
		if next < 1 {
			return damaged("a row ends early")
		}
		if err := f.read(page, (next-1)*f.pageSize); err != nil {
			return err
		}
		next = int64(binary.BigEndian.Uint32(page))
		whole = append(whole, page[4:min(f.usable, 4+size-int64(len(whole)))]...)
	}
	return row(whole)
}

// column is a value of a row: a number, or bytes of a text or blob.
type column struct {
	number int64
	bytes  []byte
}

// record returns the first n values of a row.
func record(b []byte, n int) ([]column, error) {
	short := damaged("a row ends early")
	size, m := varint(b)
	if m == 0 || size < int64(m) || size > int64(len(b)) {
		return nil, short
	}
	types, data := b[m:size], b[size:]
	out := make([]column, n)
	for i := range out {
		kind, m := varint(types)
		if m == 0 {
			return nil, short
		}
		types = types[m:]
		var length int64
		switch {
		case kind < 0:
			return nil, short
		case kind <= 4:
			length = kind
		case kind == 5:
			length = 6
		case kind == 6, kind == 7:
			length = 8
		case kind >= 12:
			length = (kind - 12) / 2
		}
		if length > int64(len(data)) {
			return nil, short
		}
		value := data[:length]
		data = data[length:]
		switch {
		case kind >= 12:
			out[i].bytes = value
		case kind == 9:
			out[i].number = 1
		case kind <= 6:
			for j, c := range value {
				if j == 0 {
					out[i].number = int64(int8(c))
				} else {
					out[i].number = out[i].number<<8 | int64(c)
				}
			}
		}
	}
	return out, nil
}

// varint reads a number of SQLite's, most significant bits first, and returns how many bytes it takes; 0 if b ends before.
func varint(b []byte) (int64, int) {
	var v uint64
	for i := 0; i < 9 && i < len(b); i++ {
		if i == 8 {
			return int64(v<<8 | uint64(b[i])), 9
		}
		v = v<<7 | uint64(b[i]&0x7f)
		if b[i] < 0x80 {
			return int64(v), i + 1
		}
	}
	return 0, 0
}
