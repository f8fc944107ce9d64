package rpm

import "encoding/binary"

// ndb's file has pages of slots, the first two of which are the header, and blobs in blocks of 16 bytes (rpm, lib/backend/ndb/rpmpkg.c).
const (
	ndbMagic   = "RpmP"
	slotMagic  = "Slot"
	blobMagic  = "BlbS"
	slotSize   = 16
	blockSize  = 16
	slotsPage  = 4096
	maxSlots   = 64 << 10 // pages
	blobHeader = 16
)

// ndb yields the blobs of a database of the format ndb.
func (d *database) ndb(yield func([]byte, error) bool) {
	var begin [32]byte
	if err := d.read(begin[:], 0); err != nil {
		yield(nil, err)
		return
	}
	pages := binary.LittleEndian.Uint32(begin[12:])
	if pages == 0 || pages > maxSlots {
		yield(nil, damaged("it has %d pages of slots", pages))
		return
	}
	page := make([]byte, slotsPage)
	for i := range int64(pages) {
		if err := d.read(page, i*slotsPage); err != nil {
			yield(nil, err)
			return
		}
		slots := page
		if i == 0 {
			slots = page[2*slotSize:]
		}
		for ; len(slots) > 0; slots = slots[slotSize:] {
			index := binary.LittleEndian.Uint32(slots[4:])
			if string(slots[:4]) != slotMagic {
				yield(nil, damaged("a slot of page %d is none", i))
				return
			}
			if index == 0 {
				continue // it is free
			}
			h, err := d.ndbBlob(index, int64(binary.LittleEndian.Uint32(slots[8:]))*blockSize)
			if !yield(h, err) || err != nil {
				return
			}
		}
	}
}

// ndbBlob returns the blob of the package with an index.
func (d *database) ndbBlob(index uint32, at int64) ([]byte, error) {
	var head [blobHeader]byte
	if err := d.read(head[:], at); err != nil {
		return nil, err
	}
	if string(head[:4]) != blobMagic || binary.LittleEndian.Uint32(head[4:]) != index {
		return nil, damaged("package %d is not where it should be", index)
	}
	size := int64(binary.LittleEndian.Uint32(head[12:]))
	if err := d.payload(size); err != nil {
		return nil, err
	}
	if at+blobHeader+size > d.size {
		return nil, damaged("package %d is behind the end", index)
	}
	h := make([]byte, size)
	return h, d.read(h, at+blobHeader)
}
