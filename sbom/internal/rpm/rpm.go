// Package rpm reads the databases of rpm in their three formats: SQLite, ndb, and Berkeley DB's hash tables. It reads what they say of
// packages without the libraries that wrote them, and believes nothing of it: a database may be damaged, or made to harm.
package rpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/sbom/internal/found"
)

// maxDatabase bounds a database in bytes, and maxHeader what it says of one package. (rpm itself allows 256 MiB of the latter.)
const (
	maxDatabase = 2 << 30
	maxHeader   = 32 << 20
)

var errDamaged = errors.New("the database is damaged")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errDamaged}, args...)...)
}

// Read reads a database of rpm. With an error it returns what could be read.
func Read(f *found.File) ([]found.Package, error) {
	if f.Size == 0 {
		return nil, nil
	}
	whole, size, free, err := f.Spool(f, maxDatabase)
	if err != nil {
		return nil, err
	}
	defer free()
	d := &database{r: whole, size: size}
	var begin [32]byte
	if err := d.read(begin[:], 0); err != nil {
		return nil, err
	}
	var headers iter.Seq2[[]byte, error]
	switch {
	case string(begin[:16]) == sqliteMagic:
		headers = d.sqlite
	case string(begin[:4]) == ndbMagic:
		headers = d.ndb
	case binary.LittleEndian.Uint32(begin[12:]) == hashMagic:
		headers = d.hash(binary.LittleEndian)
	case binary.BigEndian.Uint32(begin[12:]) == hashMagic:
		headers = d.hash(binary.BigEndian)
	default:
		return nil, damaged("it is neither SQLite, ndb nor a hash table of Berkeley DB")
	}
	var all found.Packages
	var bad error
	for h, err := range headers {
		if err != nil {
			return all.All, err
		}
		p, err := header(h)
		if err != nil {
			bad = err // of one package
			continue
		}
		if p.Name == "gpg-pubkey" {
			continue // a key that packages are signed with, kept as a package
		}
		if err := all.Add(p); err != nil {
			return all.All, err
		}
	}
	return all.All, bad
}

// database is the file of a database.
type database struct {
	r    io.ReaderAt
	size int64
	used int64
}

// read fills b with what is at offset.
func (d *database) read(b []byte, offset int64) error {
	if offset < 0 || offset > d.size-int64(len(b)) {
		return damaged("it refers to what is behind its end")
	}
	if _, err := d.r.ReadAt(b, offset); err != nil {
		return &found.ReadError{Err: err}
	}
	return nil
}

// payload counts n bytes of a package. All packages together cannot have more than the file, unless it refers to the same bytes twice.
func (d *database) payload(n int64) error {
	if n < 0 || n > maxHeader {
		return damaged("a package takes %d bytes", n)
	}
	if d.used += n; d.used > d.size {
		return damaged("it refers to the same bytes more than once")
	}
	return nil
}

// Tags and types of a header (rpm, docs/manual/tags.md, format_header.md).
const (
	tagName      = 1000
	tagVersion   = 1001
	tagRelease   = 1002
	tagEpoch     = 1003
	tagVendor    = 1011
	tagLicense   = 1014
	tagArch      = 1022
	tagSourceRPM = 1044

	typeInt32  = 4
	typeString = 6
	typeI18N   = 9

	entrySize  = 16
	maxEntries = 64 << 10
)

// header reads the header of a package as it is in a database: numbers of entries and of bytes, entries, bytes.
func header(b []byte) (found.Package, error) {
	p := found.Package{Type: "rpm"}
	if len(b) < 8 {
		return p, damaged("a package has no header")
	}
	count, size := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	if count > maxEntries || uint64(count)*entrySize+uint64(size) > uint64(len(b)-8) {
		return p, damaged("a package's header is longer than it can be")
	}
	entries, data := b[8:8+count*entrySize], b[8+count*entrySize:][:size]
	var release string
	for ; len(entries) > 0; entries = entries[entrySize:] {
		tag, kind, at := binary.BigEndian.Uint32(entries), binary.BigEndian.Uint32(entries[4:]), binary.BigEndian.Uint32(entries[8:])
		into := map[uint32]*string{
			tagName: &p.Name, tagVersion: &p.Version, tagRelease: &release, tagVendor: &p.Supplier, tagLicense: &p.License, tagArch: &p.Arch,
			tagSourceRPM: &p.Upstream, tagEpoch: &p.Epoch,
		}[tag]
		if into == nil {
			continue
		}
		if uint64(at) > uint64(len(data)) {
			return p, damaged("an entry of a package's header is behind its end")
		}
		value := data[at:]
		switch {
		case tag == tagEpoch:
			if kind == typeInt32 && len(value) >= 4 {
				*into = strconv.FormatUint(uint64(binary.BigEndian.Uint32(value)), 10)
			}
		case kind == typeString || kind == typeI18N:
			s, _, ok := strings.Cut(string(value[:min(len(value), found.MaxField+1)]), "\x00")
			if !ok {
				return p, damaged("a string of a package's header does not end")
			}
			*into = s
		}
	}
	if p.Name == "" {
		return p, damaged("a package has no name")
	}
	if release != "" {
		p.Version += "-" + release
	}
	if p.Upstream == "(none)" {
		p.Upstream = ""
	}
	return p, nil
}
