package layer

import (
	"archive/tar"
	"fmt"
	"io"
	"path"

	"github.com/kilnbuild/kiln/internal/termtext"
)

// Limit limits the contents of an archive, since a few bytes of an archive can represent any number of files and bytes.
type Limit struct {
	// Size is the maximum size of the uncompressed archive, and of all its files together, in bytes.
	Size int64
	// Entries is the maximum number of entries, and of directories created by them and their names. Each takes memory until the
	// layer is complete.
	Entries int
}

// DefaultLimit is the limit if kiln.toml does not set one.
var DefaultLimit = Limit{Size: 64 << 30, Entries: 4 << 20}

// OrDefault returns the limit with the values of DefaultLimit for fields that are not set.
func (l Limit) OrDefault() Limit {
	if l.Size <= 0 {
		l.Size = DefaultLimit.Size
	}
	if l.Entries <= 0 {
		l.Entries = DefaultLimit.Entries
	}
	return l
}

// maxAttributes is the maximum total size of the extended attributes of an archive in bytes.
const maxAttributes = 1 << 30

// LimitError is returned for an archive that exceeds a limit.
type LimitError struct{ Msg string }

func (e *LimitError) Error() string { return e.Msg }

// Reader reads the entries of an untrusted tar.
type Reader struct {
	// Rooted resolves names that lead above the top with ".." as in a chroot, where the parent of the top is the top. Otherwise they
	// are errors.
	Rooted bool

	stream io.Reader
	tar    *tar.Reader
	limit  Limit
	size   int64
	// attributes is the total size of the extended attributes read so far.
	attributes int64
	entries    int
	// first and err are the result of Begin.
	first *tar.Header
	err   error
	ahead *ahead // nil if it does not read ahead
}

// NewReader returns a Reader for an uncompressed tar. The zero Limit is DefaultLimit.
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

// Begin reads up to the first entry, and returns the error that Next will return for it. It may only be called before Next.
func (r *Reader) Begin() error {
	r.first, r.err = r.tar.Next()
	return r.err
}

// Next returns the next entry, or io.EOF at the end. Read returns the bytes of a File. Errors in the archive are *HeaderError,
// *LimitError, and those of archive/tar.
func (r *Reader) Next() (Entry, error) {
	if r.ahead != nil {
		return r.ahead.next()
	}
	return r.next()
}

func (r *Reader) next() (Entry, error) {
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
func (r *Reader) Read(p []byte) (int, error) {
	if r.ahead != nil {
		return r.ahead.Read(p)
	}
	return r.tar.Read(p)
}

// Rest reads the bytes after the end of the archive.
func (r *Reader) Rest() error {
	_, err := io.Copy(io.Discard, r.stream)
	return err
}

// limitedReader returns the error of over after left bytes. The error is permanent: a caller may drop an error that is returned
// with bytes, and not every reader returns it again.
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
