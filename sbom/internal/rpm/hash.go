package rpm

import (
	"encoding/binary"
	"iter"
)

// hashMagic is that of a hash table of Berkeley DB, and the others are of its pages and what is on them (db, src/dbinc/db_page.h).
const (
	hashMagic = 0x061561

	metaPage     = 8
	unsortedPage = 2
	hashPage     = 13
	overflowPage = 7
	pageHeader   = 26

	keyOrData = 1
	offPage   = 3
)

// hash yields the values of a hash table of Berkeley DB.
func (d *database) hash(order binary.ByteOrder) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		var meta [72]byte
		if err := d.read(meta[:], 0); err != nil {
			yield(nil, err)
			return
		}
		size := int64(order.Uint32(meta[20:]))
		if meta[25] != metaPage || size < 512 || size > 64<<10 || size&(size-1) != 0 || meta[24] != 0 {
			yield(nil, damaged("its first page is not one of a hash table"))
			return
		}
		page := make([]byte, size)
		for i := int64(1); i <= int64(order.Uint32(meta[32:])); i++ {
			if err := d.read(page, i*size); err != nil {
				yield(nil, err)
				return
			}
			if page[25] != hashPage && page[25] != unsortedPage {
				continue
			}
			entries := int64(order.Uint16(page[20:]))
			if pageHeader+2*entries > size {
				yield(nil, damaged("page %d has %d entries", i, entries))
				return
			}
			// Keys and values take turns. The value of key 0 is a counter, and on the page itself, as no package is.
			for e := int64(1); e < entries; e += 2 {
				at := int64(order.Uint16(page[pageHeader+2*e:]))
				if at < pageHeader || at+1 > size {
					yield(nil, damaged("an entry of page %d is behind its end", i))
					return
				}
				if page[at] != offPage {
					continue
				}
				if at+12 > size {
					yield(nil, damaged("an entry of page %d is behind its end", i))
					return
				}
				value, err := d.overflow(order, size, int64(order.Uint32(page[at+4:])), int64(order.Uint32(page[at+8:])))
				if !yield(value, err) || err != nil {
					return
				}
			}
		}
	}
}

// overflow returns a value of length bytes that begins on a page of its own.
func (d *database) overflow(order binary.ByteOrder, size, page, length int64) ([]byte, error) {
	if err := d.payload(length); err != nil {
		return nil, err
	}
	var value []byte
	b := make([]byte, size)
	for int64(len(value)) < length {
		if page == 0 {
			return nil, damaged("a value ends early")
		}
		if err := d.read(b, page*size); err != nil {
			return nil, err
		}
		n := int64(order.Uint16(b[22:]))
		if b[25] != overflowPage || n == 0 || n > size-pageHeader {
			return nil, damaged("page %d is not one of a value", page)
		}
		value = append(value, b[pageHeader:pageHeader+min(n, length-int64(len(value)))]...)
		page = int64(order.Uint32(b[16:]))
	}
	return value, nil
}
