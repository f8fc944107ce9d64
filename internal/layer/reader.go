package layer

import (
	"archive/tar"
	"fmt"
	"io"
	"path"

	"github.com/kilnbuild/kiln/internal/termtext"
)

// Limit bounds what one archive may hold: a few bytes of an archive can stand for as many files and bytes as they like.
type Limit struct {
	// Size is of the archive, uncompressed, and of all its files together, in bytes.
	Size int64
	// Entries is their number, and how many directories they and their names may make together. Of each one something is kept in memory
	// until the layer is complete.
	Entries int
}

// DefaultLimit is what an archive may hold where kiln.toml does not say.
var DefaultLimit = Limit{Size: 64 << 30, Entries: 4 << 20}

// OrDefault returns the limit with DefaultLimit in place of what is not set.
func (l Limit) OrDefault() Limit {
	if l.Size <= 0 {
		l.Size = DefaultLimit.Size
	}
	if l.Entries <= 0 {
		l.Entries = DefaultLimit.Entries
	}
	return l
}

// maxAttributes bounds the extended attributes of one archive together, in bytes.
const maxAttributes = 1 << 30

// LimitError is an archive that holds more than it may.
type LimitError struct{ Msg string }

func (e *LimitError) Error() string { return e.Msg }

// Reader reads the entries of a tar that may come from anybody.
type Reader struct {
	// Rooted takes names that lead above the top by ".." as they would be in a chroot: there the top is above itself. Without it they
	// are errors.
	Rooted bool

	stream io.Reader
	tar    *tar.Reader
	limit  Limit
	size   int64
	// attributes are the bytes of extended attributes so far.
	attributes int64
	entries    int
	// first and err are what Begins has read.
	first *tar.Header
	err   error
}

// NewReader returns a Reader of an uncompressed tar. The zero Limit is DefaultLimit.
func NewReader(tarball io.Reader, limit Limit) *Reader {
	limit = limit.OrDefault()
	r := &Reader{limit: limit}
	r.stream = &limitedReader{r: tarball, left: limit.Size, over: r.tooLarge}
	r.tar = tar.NewReader(r.stream)
	return r
}

func (r *Reader) tooLarge() error {
	return &LimitError{fmt.Sprintf("the archive holds more than the %s that are allowed; "+
		"archive.maxSize in kiln.toml allows more", termtext.Size(r.limit.Size))}
}

// Begin reads as far as the first entry, and returns the error that Next is going to return for it. It is called before Next or
// not at all.
func (r *Reader) Begin() error {
	r.first, r.err = r.tar.Next()
	return r.err
}

// Next returns the next entry, whose bytes, if it is a File, Read gives, or io.EOF at the end. Errors of the archive's own are
// *HeaderError, *LimitError, and those of archive/tar.
func (r *Reader) Next() (Entry, error) {
	for {
		h, err := r.first, r.err
		if r.first = nil; h == nil && err == nil {
			h, err = r.tar.Next()
		}
		if err != nil {
			return Entry{}, err
		}
		if r.entries++; r.entries > r.limit.Entries {
			return Entry{}, &LimitError{fmt.Sprintf("the archive has more than the %d entries that are allowed; "+
				"archive.maxEntries in kiln.toml allows more", r.limit.Entries)}
		}
		if r.Rooted {
			h.Name = path.Clean("/" + h.Name)
			if h.Typeflag == tar.TypeLink {
				h.Linkname = path.Clean("/" + h.Linkname)
			}
		}
		e, ok, err := FromHeader(h)
		if err != nil {
			return Entry{}, err
		}
		if !ok {
			continue
		}
		if e.Size > r.limit.Size-r.size {
			return Entry{}, r.tooLarge()
		}
		r.size += e.Size
		for _, x := range e.Xattrs {
			r.attributes += int64(len(x.Name) + len(x.Value))
		}
		if r.attributes > maxAttributes {
			return Entry{}, &LimitError{fmt.Sprintf("the archive's entries have more than %d MiB of extended attributes", maxAttributes>>20)}
		}
		return e, nil
	}
}

// Read reads the bytes of the entry that Next returned last.
func (r *Reader) Read(p []byte) (int, error) { return r.tar.Read(p) }

// Rest reads what follows the end of the archive.
func (r *Reader) Rest() error {
	_, err := io.Copy(io.Discard, r.stream)
	return err
}

// limitedReader fails with over's error after left bytes. An error stays: what reads through it may take bytes that come with
// an error and drop the error, and not every reader has it a second time.
type limitedReader struct {
	r    io.Reader
	left int64
	over func() error
	err  error
}

func (l *limitedReader) Read(p []byte) (int, error) {
	if l.err != nil {
		return 0, l.err
	}
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		n, err = 0, l.over()
	}
	l.err = err
	return n, err
}
