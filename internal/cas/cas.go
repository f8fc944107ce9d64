// Package cas implements the image store: a directory that is an OCI image layout at every moment, whose blobs are named by their
// digests. It knows which blobs a manifest refers to, and nothing about registries.
//
// Any number of processes may use one store at once, and each may be killed at any time: a blob is written to a temporary file
// and renamed into place once its digest is verified, and the index is replaced atomically under a lock.
package cas

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/lease"
	"github.com/kilnbuild/kiln/internal/lock"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// MaxManifest is the default limit of ReadAll in bytes: the size that registries should accept at least according to
// distribution-spec (spec.md, "Pushing Manifests"), and the limit of most registries.
const MaxManifest = 4 << 20

// The directories of a store.
const (
	blobsDir = rootdir.Blobs + "/sha256"
	tmpDir   = rootdir.Tmp
	locksDir = rootdir.Locks
)

// The file modes in a store. Layers may contain set-user-ID programs, so only the owner may access the root; the files have the
// modes that a copy of the layout should have.
const (
	rootMode = 0o700
	dirMode  = 0o755
	fileMode = 0o644
)

// tmpPrefix is the prefix of the names of temporary files. Each is locked by its writer, so a file that can be locked belongs to
// a process that died.
const tmpPrefix = "blob-"

// Store is an image store. It is safe for concurrent use.
type Store struct {
	// Context is the context of the process: when it ends, waiting for other processes ends. It may be set before the store is used.
	Context context.Context

	root string
	name string // absolute path of root, for messages

	mu   sync.Mutex
	held map[digest.Digest]held
}

// held is a blob that is locked against removal until Release: see package lease.
type held struct {
	lock *lock.Lock
	info fs.FileInfo
}

// Open returns the store in the directory root, which is created, with its parents, if it does not exist.
//
// The directory must belong to the process's user and be writable only by that user; kiln removes the permission of others to
// access it. A directory with other contents but no oci-layout file is refused, because kiln would otherwise close someone's home
// directory to others.
//
// If root is a relative path, the process's working directory must not change while the store is used. See package rootdir.
func Open(root string) (*Store, error) {
	name, err := filepath.Abs(rootdir.Shown(root))
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	s := &Store{Context: context.Background(), root: filepath.Clean(root), name: name, held: map[digest.Digest]held{}}
	if err := s.prepare(); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", name, err)
	}
	s.Sweep()
	return s, nil
}

func (s *Store) prepare() error {
	if err := os.MkdirAll(s.root, rootMode); err != nil {
		return err
	}
	dir, err := os.Open(s.root)
	if err != nil {
		return err
	}
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return err
	}
	// In kiln's own user namespace, the ID of kiln and its user's files is 0, and other owners may not be mapped.
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("it belongs to user %d and kiln runs as user %d: choose another directory with --root", st.Uid, userns.UID())
	}
	if st.Mode&0o022 != 0 {
		return fmt.Errorf("others may write to it (mode %04o): "+
			"run chmod 700 on it if you trust what it holds, or choose another directory with --root", st.Mode&0o7777)
	}
	layout, err := os.ReadFile(filepath.Join(s.root, ocispec.ImageLayoutFile))
	switch {
	case err == nil:
		if err := checkLayout(layout); err != nil {
			return err
		}
	case errors.Is(err, fs.ErrNotExist):
		names, err := dir.Readdirnames(-1)
		if err != nil {
			return err
		}
		for _, name := range names {
			if !rootdir.Known(name) {
				return fmt.Errorf("it holds %q and is not a root directory of kiln: choose an empty directory with --root", name)
			}
		}
	default:
		return err
	}
	if st.Mode&0o077 != 0 {
		if err := dir.Chmod(rootMode); err != nil {
			return err
		}
	}
	for _, name := range []string{tmpDir, locksDir, blobsDir} {
		if err := os.MkdirAll(filepath.Join(s.root, name), dirMode); err != nil {
			return err
		}
	}
	if layout == nil {
		if err := s.create(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}); err != nil {
			return err
		}
	}
	if _, err := os.Lstat(s.indexPath()); errors.Is(err, fs.ErrNotExist) {
		empty := ocispec.Index{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{},
		}
		return s.create(ocispec.ImageIndexFile, empty)
	}
	return nil
}

// checkLayout refuses a layout of another version, so that kiln does not write to it.
func checkLayout(data []byte) error {
	var l ocispec.ImageLayout
	err := json.Unmarshal(data, &l)
	if err == nil && l.Version == "" {
		err = errors.New("it has no version")
	}
	if err != nil {
		return fmt.Errorf("read %s: %w; kiln check --repair makes it again if this is kiln's root directory", ocispec.ImageLayoutFile, err)
	}
	if l.Version != ocispec.ImageLayoutVersion {
		return fmt.Errorf("its image layout has version %q (%s), and this version of kiln supports %s",
			l.Version, ocispec.ImageLayoutFile, ocispec.ImageLayoutVersion)
	}
	return nil
}

// create creates a file in the root from v as JSON, unless another process has created it.
func (s *Store) create(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	err = s.publish(s.Context, data, func(temp string) error { return os.Link(temp, filepath.Join(s.root, name)) })
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// publish writes a temporary file and calls name to rename or link it. The file is synced first, so that a crash of the host does
// not leave an empty one: such a file is not soon written again.
func (s *Store) publish(ctx context.Context, data []byte, name func(temp string) error) error {
	tmp, err := s.temp(ctx)
	if err != nil {
		return err
	}
	defer tmp.Remove()
	file := tmp.File()
	if _, err := file.Write(data); err != nil {
		return err
	}
	if err := file.Chmod(fileMode); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	return name(file.Name())
}

// Sweep removes the temporary files of processes that died, as Open does. A file that cannot be removed only takes space.
func (s *Store) Sweep() {
	entries, err := os.ReadDir(filepath.Join(s.root, tmpDir))
	if err != nil {
		return
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tmpPrefix) {
			continue
		}
		if l, err := lock.Try(filepath.Join(s.root, tmpDir, e.Name()), false); err == nil {
			_ = l.Remove() // the file only takes space
		}
	}
}

// Root returns the store's directory, as it was passed to Open.
func (s *Store) Root() string { return s.root }

// Name returns the absolute path of the store's directory when it was opened, for messages.
func (s *Store) Name() string { return s.name }

// Path returns the path of a blob, whether or not it exists, for programs that open files by name. Its bytes are not verified.
func (s *Store) Path(d digest.Digest) (string, error) {
	d, err := ParseDigest(string(d))
	if err != nil {
		return "", err
	}
	return filepath.Join(s.root, blobsDir, d.Encoded()), nil
}

// temp creates a temporary file and locks it, so that Sweep does not remove it. The lock is shared, since it becomes the lock of
// the blob.
func (s *Store) temp(ctx context.Context) (*lock.Lock, error) {
	f, err := os.CreateTemp(filepath.Join(s.root, tmpDir), tmpPrefix)
	if err != nil {
		return nil, err
	}
	f.Close()
	return lock.Acquire(ctx, f.Name(), true)
}

// Create begins a blob. The caller writes its bytes, then calls Commit, and must always call Close.
func (s *Store) Create(ctx context.Context) (*Writer, error) {
	tmp, err := s.temp(ctx)
	if err != nil {
		return nil, fmt.Errorf("create blob: %w", err)
	}
	return &Writer{ctx: ctx, store: s, tmp: tmp, file: bufio.NewWriterSize(tmp.File(), blockSize), hash: sha256.New()}, nil
}

// CreateVerified is Create for bytes that come from a reader which ends with io.EOF only if they are those of the digest, as that of
// VerifyReader does: they are not hashed a second time. Commit must not be called before that end.
func (s *Store) CreateVerified(ctx context.Context, d digest.Digest) (*Writer, error) {
	w, err := s.Create(ctx)
	if err == nil {
		w.hash, w.verified = nil, d
	}
	return w, err
}

// Writer is a blob being written. It is not safe for concurrent use.
type Writer struct {
	ctx      context.Context
	store    *Store
	tmp      *lock.Lock // the open temporary file; nil after Commit or Close
	file     *bufio.Writer
	hash     hash.Hash     // nil if the bytes are hashed where they come from
	verified digest.Digest // is theirs then
	size     int64
}

// Write appends bytes to the blob.
func (w *Writer) Write(p []byte) (int, error) {
	if w.tmp == nil {
		return 0, fmt.Errorf("write blob: %w", fs.ErrClosed)
	}
	n, err := w.file.Write(p)
	if w.hash != nil {
		w.hash.Write(p[:n])
	}
	w.size += int64(n)
	if err != nil {
		return n, fmt.Errorf("write blob: %w", err)
	}
	return n, nil
}

// Commit completes the blob and gives it its name. It returns the blob's digest and size, without a media type. If want is not ""
// or size is not -1, and the blob does not match, it returns a *MismatchError and discards the blob.
//
// An existing blob is kept, since others may hold it, unless it is damaged. The blob is held until Release, as with Has. It is
// not synced to disk, since readers verify blobs.
func (w *Writer) Commit(want digest.Digest, size int64) (ocispec.Descriptor, error) {
	if w.tmp == nil {
		return ocispec.Descriptor{}, fmt.Errorf("commit blob: %w", fs.ErrClosed)
	}
	if err := w.file.Flush(); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("commit blob: %w", err)
	}
	got := w.verified
	if w.hash != nil {
		got = sum(w.hash)
	}
	if (want != "" && want != got) || (size >= 0 && size != w.size) {
		err := &MismatchError{Where: "commit", Digest: want, Size: size, GotDigest: got, GotSize: w.size}
		return ocispec.Descriptor{}, errors.Join(err, w.Close())
	}
	path, err := w.store.Path(got)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := w.tmp.File().Chmod(fileMode); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("commit blob: %w", err)
	}
	desc := ocispec.Descriptor{Digest: got, Size: w.size}
	err = unix.Renameat2(unix.AT_FDCWD, w.tmp.File().Name(), unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if err == unix.EEXIST {
		if w.store.sound(w.ctx, desc) {
			return desc, w.Close()
		}
		if err := ctxio.Ended(w.ctx); err != nil {
			return ocispec.Descriptor{}, err // unknown whether the existing blob is sound
		}
		err = os.Rename(w.tmp.File().Name(), path)
	}
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("commit blob: %w", err)
	}
	err = w.store.keep(got, w.tmp)
	w.tmp = nil
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("commit blob: %w", err)
	}
	return desc, nil
}

// sound reads a blob to EOF and reports whether it is undamaged. It holds the blob.
func (s *Store) sound(ctx context.Context, desc ocispec.Descriptor) bool {
	if !s.Has(desc) {
		return false
	}
	r, err := s.Open(desc) // the reader verifies the bytes
	if err != nil {
		return false
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, ctxio.Reader(ctx, r))
	return err == nil
}

// Job returns the same store for one of several jobs of the process. The blobs that the job uses are held until its own Release,
// independent of other jobs.
func (s *Store) Job() *Store {
	return &Store{Context: s.Context, root: s.root, name: s.name, held: map[digest.Digest]held{}}
}

// keep holds the blob d, whose lock is l.
func (s *Store) keep(d digest.Digest, l *lock.Lock) error {
	info, err := l.File().Stat()
	if err != nil {
		return errors.Join(err, l.Release())
	}
	s.mu.Lock()
	old := s.held[d]
	s.held[d] = held{l, info}
	s.mu.Unlock()
	return old.lock.Release()
}

// Release releases all blobs that the Store has held. The Store can still be used afterwards.
func (s *Store) Release() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for _, h := range s.held {
		err = errors.Join(err, h.lock.Release())
	}
	clear(s.held)
	return err
}

// Close removes the temporary file if the blob was not committed. Further calls do nothing.
func (w *Writer) Close() error {
	if w.tmp == nil {
		return nil
	}
	err := w.tmp.Remove()
	w.tmp = nil
	return err
}

// Put stores a small blob and returns its descriptor with the media type.
func (s *Store) Put(mediaType string, data []byte) (ocispec.Descriptor, error) {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if s.Has(desc) {
		if _, err := s.ReadAll(desc, desc.Size); err == nil {
			return desc, nil
		}
	}
	w, err := s.Create(s.Context)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer w.Close()
	if _, err := w.Write(data); err != nil {
		return ocispec.Descriptor{}, err
	}
	if _, err := w.Commit(desc.Digest, desc.Size); err != nil {
		return ocispec.Descriptor{}, err
	}
	return desc, nil
}

// Stat returns the size of a blob's file in bytes, or an error that wraps fs.ErrNotExist. It does not verify the blob.
func (s *Store) Stat(d digest.Digest) (int64, error) {
	path, err := s.Path(d)
	if err != nil {
		return 0, err
	}
	fi, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	if !fi.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a regular file", path)
	}
	return fi.Size(), nil
}

// Has reports whether a blob with the descriptor's digest and size exists, and holds it: no process removes it before Release or
// the end of this process. A file of another size, as left by a crash of the host, does not count.
func (s *Store) Has(desc ocispec.Descriptor) bool {
	path, err := s.Path(desc.Digest)
	if err != nil {
		return false
	}
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() != desc.Size {
		return false
	}
	s.mu.Lock()
	h := s.held[desc.Digest]
	s.mu.Unlock()
	if h.lock != nil && os.SameFile(h.info, info) {
		return true
	}
	l, err := lease.Take(path)
	if err != nil {
		return false
	}
	// It may have been replaced by another file of the same digest.
	if info, err = l.File().Stat(); err != nil || info.Size() != desc.Size {
		_ = l.Release() // nothing was written
		return false
	}
	return s.keep(desc.Digest, l) == nil
}

// Open opens a blob for reading. The reader returns io.EOF only if the bytes match desc, and otherwise a *MismatchError that
// names the file. A blob that does not match is removed, so that it is fetched or made again. The error wraps fs.ErrNotExist if
// the blob does not exist.
func (s *Store) Open(desc ocispec.Descriptor) (io.ReadCloser, error) {
	path, err := s.Path(desc.Digest)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open blob: %w", err)
	}
	if !fi.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("open blob: %s is not a regular file", path)
	}
	return &verifyReader{
		r:     blockReader{bufio.NewReaderSize(f, int(min(blockSize, max(fi.Size(), 1)))), f},
		desc:  desc,
		where: path,
		hash:  sha256.New(),
		bad:   func() { discard(path, fi, desc.Digest) },
	}, nil
}

// blockSize is the minimum number of bytes of a blob read or written at once.
const blockSize = 256 << 10

// blockReader reads a file in blocks.
type blockReader struct {
	*bufio.Reader
	io.Closer
}

// discard removes a blob that did not match, unless it was replaced since, or its digest is right and the descriptor's size was
// wrong.
func discard(path string, read fs.FileInfo, want digest.Digest) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !os.SameFile(fi, read) {
		return
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil || sum(h) == want {
		return
	}
	_ = os.Remove(path) // if this fails, the next reader tries again
}

// ReadAll returns the bytes of a blob of at most limit bytes, or MaxManifest if limit is 0. They are verified as by Open.
func (s *Store) ReadAll(desc ocispec.Descriptor, limit int64) ([]byte, error) {
	r, err := s.Open(desc)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return ReadAll(r, desc, limit)
}

// ReadAll returns all bytes of r, a verifying reader of desc, if they are at most limit, or MaxManifest if limit is 0.
func ReadAll(r io.Reader, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	if limit == 0 {
		limit = MaxManifest
	}
	if desc.Size < 0 || desc.Size > limit {
		return nil, fmt.Errorf("read blob %s: its %d bytes are more than the %d allowed", desc.Digest, desc.Size, limit)
	}
	var buf bytes.Buffer
	buf.Grow(int(desc.Size) + bytes.MinRead)
	if _, err := buf.ReadFrom(r); err != nil {
		return nil, fmt.Errorf("read blob: %w", err)
	}
	return buf.Bytes(), nil
}

// Remove removes a blob, whether or not an image refers to it. It is not an error if the blob does not exist.
func (s *Store) Remove(d digest.Digest) error {
	path, err := s.Path(d)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove blob: %w", err)
	}
	return nil
}

// Blobs calls f for each blob of the store with its digest and the size of its file. If f returns an error, Blobs stops and
// returns it. Files that are not blobs are skipped.
func (s *Store) Blobs(f func(digest.Digest, int64) error) error {
	dir, err := os.Open(filepath.Join(s.root, blobsDir))
	if err != nil {
		return fmt.Errorf("list blobs: %w", err)
	}
	defer dir.Close()
	for {
		entries, err := dir.ReadDir(1024) // limits memory
		for _, e := range entries {
			d, err := ParseDigest(digestPrefix + e.Name())
			if err != nil {
				continue
			}
			fi, err := e.Info()
			if err != nil || !fi.Mode().IsRegular() {
				continue
			}
			if err := f(d, fi.Size()); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list blobs: %w", err)
		}
	}
}

// Empty reports whether the store has no blobs, as in a new root.
func (s *Store) Empty() bool {
	dir, err := os.Open(filepath.Join(s.root, blobsDir))
	if err != nil {
		return false // the error is reported when a blob is read
	}
	defer dir.Close()
	_, err = dir.Readdirnames(1)
	return err == io.EOF
}
