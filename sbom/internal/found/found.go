// Package found has what scanners find in the files of an image: packages, and what the files say of them. It bounds what is read.
package found

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Package is a package that a file tells of.
type Package struct {
	// Type is that of its package URL: "deb", "apk", "rpm", "golang", "npm", "pypi", "maven", "cargo".
	Type string
	// Namespace is the part of the name before the last slash of the package URL; "" for none. That of packages of a distribution is the
	// distribution, which the file does not know.
	Namespace string `json:",omitempty"`
	Name      string
	Version   string `json:",omitempty"`
	Arch      string `json:",omitempty"`
	// Upstream is the source package that it was made of, "name@version", or without the version where it is the same.
	Upstream string `json:",omitempty"`
	// Epoch is that of the version of an rpm; "" for none.
	Epoch string `json:",omitempty"`
	// License is what the package says of its license, and Supplier of who maintains it.
	License  string `json:",omitempty"`
	Supplier string `json:",omitempty"`
}

// Release is the distribution that an image is made of, as os-release(5) names it.
type Release struct {
	ID        string
	VersionID string `json:",omitempty"`
	Name      string `json:",omitempty"`
}

// File is a file to be read.
type File struct {
	// Path is that in the image, without a leading slash.
	Path string
	Size int64
	io.Reader
	// Spool keeps what is left of r on disk, for reading in any order, and returns its length: at most limit bytes, else a *TooLargeError.
	// free must be called afterwards, unless there is an error.
	Spool func(r io.Reader, limit int64) (at io.ReaderAt, size int64, free func(), err error)
}

// Limits of what is read. A file that exceeds one is not read, or read up to there, and that is said.
const (
	MaxWeight   = 40 << 20  // of the packages of one file, of a layer, and of an image: see Package.Weight
	MaxField    = 4 << 10   // bytes of a name, a version or a license
	MaxLine     = 1 << 20   // bytes of a line of a text file
	MaxDocument = 16 << 20  // bytes of a file that is read as a whole: JSON
	MaxText     = 256 << 20 // bytes of a text file that is read line by line
)

// ErrTooMany is returned with the packages so far if a file has more than MaxWeight.
var ErrTooMany = fmt.Errorf("it has more packages than the %d MiB of them that an SBOM can have", MaxWeight>>20)

// Weight is about how many bytes a package takes in a document, which has its name and version several times.
func (p *Package) Weight() int {
	return 700 + 6*(len(p.Namespace)+len(p.Name)+len(p.Version)+len(p.Arch)+len(p.Upstream)+len(p.Epoch)+len(p.License)+len(p.Supplier))
}

// A TooLargeError is returned for a file that is larger than is read.
type TooLargeError struct{ Limit int64 }

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("it is larger than %d MiB", e.Limit>>20)
}

// Packages are those of one file.
type Packages struct {
	All    []Package
	weight int
}

// Add adds a package, unless it has no name. The error is ErrTooMany.
func (p *Packages) Add(found Package) error {
	for _, s := range []*string{
		&found.Namespace, &found.Name, &found.Version, &found.Arch, &found.Upstream, &found.Epoch, &found.License, &found.Supplier,
	} {
		*s = Field(*s)
	}
	if found.Name == "" {
		return nil
	}
	if p.weight += found.Weight(); p.weight > MaxWeight {
		return ErrTooMany
	}
	p.All = append(p.All, found)
	return nil
}

// Field returns a value of a file as it can be shown and kept: valid UTF-8 on one line, without control characters, of at most MaxField
// bytes.
func Field(s string) string {
	plain := true
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] >= 0x7f {
			plain = false
			break
		}
	}
	if !plain {
		s = strings.ToValidUTF8(s, "\uFFFD")
		s = strings.Map(func(r rune) rune {
			switch {
			case r == '\n', r == '\t', r == '\r':
				return ' '
			case unicode.IsControl(r), unicode.Is(unicode.Cf, r), r == '\u2028', r == '\u2029':
				return -1
			}
			return r
		}, s)
	}
	s = strings.TrimSpace(s)
	if len(s) > MaxField {
		s = s[:MaxField]
		for len(s) > 0 && !utf8.ValidString(s[max(0, len(s)-utf8.UTFMax):]) {
			s = s[:len(s)-1]
		}
	}
	return s
}

// Document returns all bytes of a file that is to be parsed as a whole.
func Document(f *File) ([]byte, error) {
	if f.Size > MaxDocument {
		return nil, &TooLargeError{MaxDocument}
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxDocument+1))
	if err != nil {
		return nil, &ReadError{err}
	}
	if len(data) > MaxDocument {
		return nil, &TooLargeError{MaxDocument}
	}
	return data, nil
}

// ReadError says that the bytes of a file could not be had, so that nothing is known of what is in it.
type ReadError struct{ Err error }

func (e *ReadError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *ReadError) Unwrap() error { return e.Err }
