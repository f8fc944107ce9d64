// Package httpsource fetches files from http(s) addresses and remembers what servers said of them, so that one that has not
// changed is not fetched again. It does not know what the files are for, and keeps none.
package httpsource

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	_ "crypto/sha512" // sha384 and sha512 checksums

	"github.com/kilnbuild/kiln/internal/atomicfile"
	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/lease"
	"github.com/kilnbuild/kiln/internal/reach"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/opencontainers/go-digest"
)

// maxState bounds what is remembered of one address in bytes: headers that are longer are not kept.
const maxState = 64 << 10

// MaxSize bounds a file in bytes, so that an answer without end does not fill the disk: no layer is as large.
const MaxSize = 64 << 30

// settled is how much older than the answer a Last-Modified must be to tell one state of a file from the next: it counts
// whole seconds (RFC 9110, 8.8.2.2).
const settled = time.Minute

// Client fetches files. Its methods may be called from several goroutines, and several processes may share its directory.
type Client struct {
	// Limit is of the hosts of requests that have no Way. It is set before the Client is used, or left as it is.
	Limit reach.Limit

	dir, tmp string
	secret   func(ctx context.Context, id string) ([]byte, bool, error)
	patience fetch.Patience
	limit    int64 // MaxSize, or less in tests
}

// New returns a Client that remembers in the directory dir what servers said, which is made when it is first needed. Files
// are put in the directory tmp. secret gives the values of secrets by id: HTTP_AUTH_HEADER_HOST and HTTP_AUTH_TOKEN_HOST
// are asked for; false is for none.
func New(dir, tmp string, secret func(ctx context.Context, id string) ([]byte, bool, error)) *Client {
	return &Client{dir: dir, tmp: tmp, secret: secret, patience: fetch.Usual(), limit: MaxSize}
}

// Request is a file to be fetched.
type Request struct {
	remoteurl.HTTP
	// Checksum is the digest that the file must have; "" for none.
	Checksum digest.Digest
	// Header is sent to the host of URL, and to no other, as is Authorization, which takes the place of secrets and of User; "" for none.
	Header        http.Header
	Authorization string
	// MaxSize bounds the file in bytes; 0 is for the constant of that name.
	MaxSize int64
	// Way is how it is asked for; nil is for one of its own.
	Way *reach.Way
	// Received, where not nil, is told how many bytes of the file have come, and how many there are; 0 where that is not known.
	Received func(bytes, total int64)
}

// ChecksumError is a file that is another one than it has to be.
type ChecksumError struct {
	// URL is the address as it may be shown.
	URL       string
	Got, Want digest.Digest
}

func (e *ChecksumError) Error() string {
	return fmt.Sprintf("download %s: the file has digest %s, and the checksum says %s", e.URL, e.Got, e.Want)
}

// File is what is known of a file.
type File struct {
	Digest digest.Digest
	Size   int64
	// Modified is the server's Last-Modified; the zero time where it said nothing.
	Modified time.Time
	// Name is that of the file, as the server's Content-Disposition says; "" where that names none, or one that no file can have.
	Name string
	// Path is where the file is, the caller's to remove; "" when the server said, or the checksum did, that it is what it
	// was the last time.
	Path string
}

// state is what is remembered of an address.
type state struct {
	ETag         string
	LastModified string
	// Settled says that LastModified alone can report whether the file has changed.
	Settled bool
	Digest  digest.Digest
	Size    int64
	// Also are digests of other algorithms that the file was found to have.
	Also []digest.Digest
	// Name is that of Content-Disposition.
	Name string `json:",omitempty"`
}

func (s *state) file() *File {
	f := &File{Digest: s.Digest, Size: s.Size, Name: s.Name}
	if t, err := http.ParseTime(s.LastModified); err == nil {
		f.Modified = t
	}
	return f
}

// has reports whether the file is known to have a digest.
func (s *state) has(d digest.Digest) bool {
	if s.Digest == d {
		return true
	}
	for _, also := range s.Also {
		if also == d {
			return true
		}
	}
	return false
}

func (c *Client) statePath(r Request) string {
	name := r.URL
	for _, header := range slices.Sorted(maps.Keys(r.Header)) {
		name += fmt.Sprintf("\n%s: %q", header, r.Header[header])
	}
	return filepath.Join(c.dir, fmt.Sprintf("%x", sha256.Sum256([]byte(name)))[:32])
}

// known returns what is remembered; nil for nothing that can be read. It is only a cache.
func (c *Client) known(r Request) *state {
	s, err := readState(c.statePath(r))
	if err != nil {
		return nil
	}
	lease.Used(c.statePath(r), nil)
	return s
}

func readState(path string) (*state, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	sum, text, _ := strings.Cut(string(data), "\n")
	s := &state{}
	if len(data) > maxState || fmt.Sprintf("%x", sha256.Sum256([]byte(text))) != sum {
		return nil, errors.New("its checksum is wrong")
	}
	if err := json.Unmarshal([]byte(text), s); err != nil {
		return nil, err
	}
	return s, s.Digest.Validate()
}

// checkState returns an error unless the file at path holds what a server said.
func checkState(path string) error {
	_, err := readState(path)
	return err
}

func (c *Client) remember(r Request, s *state) error {
	text, err := json.Marshal(s)
	if err != nil || len(text) > maxState/2 {
		return err
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	return atomicfile.WriteBytes(c.statePath(r), c.tmp, fmt.Appendf(nil, "%x\n%s", sha256.Sum256(text), text))
}

// Look returns what the file is now. The server is asked whether it has changed, unless it is known to have the checksum; and
// it is fetched if it has. A file without the checksum is an error.
func (c *Client) Look(ctx context.Context, r Request) (*File, error) {
	old := c.known(r)
	if old != nil && r.Checksum != "" {
		if old.has(r.Checksum) {
			return old.file(), nil
		}
		old = nil // what the server has now is another file, or this is another algorithm
	}
	return c.fetch(ctx, r, old)
}

// Get fetches the file, whatever is known of it.
func (c *Client) Get(ctx context.Context, r Request) (*File, error) { return c.fetch(ctx, r, nil) }

func (c *Client) fetch(ctx context.Context, r Request, old *state) (*File, error) {
	s, path, err := c.download(ctx, r, old)
	if err != nil {
		return nil, err
	}
	file := s.file()
	if path != "" {
		if err := c.remember(r, s); err != nil {
			os.Remove(path)
			return nil, fmt.Errorf("remember %s: %w", remoteurl.Shown(r.URL), err)
		}
		file.Path = path
	}
	return file, nil
}

// Download fetches a file of which nothing is remembered.
func (c *Client) Download(ctx context.Context, r Request) (*File, error) {
	s, path, err := c.download(ctx, r, nil)
	if err != nil {
		return nil, err
	}
	file := s.file()
	file.Path = path
	return file, nil
}

// download returns the state of a file and where it is now, which is "" for one that is still as old says.
func (c *Client) download(ctx context.Context, r Request, old *state) (_ *state, _ string, err error) {
	f, err := os.CreateTemp(c.tmp, "http-")
	if err != nil {
		return nil, "", fmt.Errorf("download %s: %w", remoteurl.Shown(r.URL), err)
	}
	d := &download{c: c, request: r, old: old, file: f}
	keep := false
	defer func() {
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
		if err != nil || !keep {
			os.Remove(f.Name())
		}
	}()
	if d.authorization, err = c.authorization(ctx, r); err != nil {
		return nil, "", err
	}
	if err := d.run(ctx); err != nil {
		return nil, "", fmt.Errorf("download %s: %w", remoteurl.Shown(r.URL), err)
	}
	if d.unchanged {
		return old, "", nil
	}
	s := &state{
		ETag: d.etag, LastModified: d.modified, Settled: d.settled, Digest: digest.NewDigest(digest.SHA256, d.sum), Size: d.size, Name: d.name,
	}
	if r.Checksum != "" {
		got := s.Digest
		if d.other != nil {
			got = digest.NewDigest(r.Checksum.Algorithm(), d.other)
			s.Also = []digest.Digest{got}
		}
		if got != r.Checksum {
			return nil, "", &ChecksumError{remoteurl.Shown(r.URL), got, r.Checksum}
		}
	}
	keep = true
	return s, f.Name(), nil
}

// hashes begins the digests of a download anew.
func (d *download) hashes() {
	d.sum, d.other, d.size = sha256.New(), nil, 0
	if want := d.request.Checksum; want != "" && want.Algorithm() != digest.SHA256 {
		d.other = want.Algorithm().Hash()
	}
}

// download is one fetching of one file.
type download struct {
	c             *Client
	request       Request
	old           *state
	authorization string
	file          *os.File

	sum, other hash.Hash
	size       int64
	total      int64 // 0: the server does not say
	// Of the answer that the bytes so far are of; validator is an ETag by which the rest can be asked for.
	etag, modified, validator, name string
	settled                         bool
	unchanged                       bool
}
