// Package cas is the image store: a directory that is an OCI image layout at every moment, whose blobs are named by what
// they hold. Of manifests it knows which blobs they refer to, and of registries nothing.
//
// Any number of processes use one store at once, and each may be killed at any time: a blob is written to a temporary file
// and renamed into place when its digest is known to be right, and the index is replaced as a whole under a lock.
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

// MaxManifest is how large a blob ReadAll reads when it is given no limit, in bytes: the size that distribution-spec
// (spec.md, "Pushing Manifests") wants registries to take at least, and most registries' own limit.
const MaxManifest = 4 << 20

// The directories of a store.
const (
	blobsDir = rootdir.Blobs + "/sha256"
	tmpDir   = rootdir.Tmp
	locksDir = rootdir.Locks
)

// The modes of what a store holds. Layers may hold set-user-id programs, so nobody else may look into the root; the files
// have the modes that a layout copied elsewhere should have.
const (
	rootMode = 0o700
	dirMode  = 0o755
	fileMode = 0o644
)

// tmpPrefix begins the name of every temporary file here. Each is locked by its writer, so one that can be locked is left
// over from a process that died.
const tmpPrefix = "blob-"

// Store is an image store. Its methods may be called from several goroutines at once.
type Store struct {
	// Context is that of the process: its end ends waiting for other processes. It is set before the store is used, or left as it is.
	Context context.Context

	root string
	name string // of root, for people

	mu   sync.Mutex
	held map[digest.Digest]held
}

// held is a blob that stays as long as this process does: see package lease.
type held struct {
	lock *lock.Lock
	info fs.FileInfo
}

// Open returns the store in the directory root, which it makes, with its parents, when it is absent.
//
// The directory must belong to the process's user and be writable by nobody else; kiln takes away others' permission to
// look into it. One that holds other things but no oci-layout file is refused, because kiln would otherwise close
// somebody's home directory.
//
// A root that is a relative name stays one: the process's working directory must not change then. See package rootdir.
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
	// In a user namespace of kiln's own, kiln and what belongs to its user have the id 0, and other owners may have none.
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

// checkLayout refuses the layout of another version rather than writing into it.
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
		return fmt.Errorf("its image layout has version %q (%s) and this kiln knows %s",
			l.Version, ocispec.ImageLayoutFile, ocispec.ImageLayoutVersion)
	}
	return nil
}

// create makes a file of the root from v as JSON unless another process has made it meanwhile.
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

// publish writes a file of the root and has name give it its name. Nobody writes such a file again soon, so it is on disk before: a crash
// of the machine must not leave an empty one.
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

// Sweep removes what dead processes have left in tmp, as Open does. What it cannot remove is only a matter of space.
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
			_ = l.Remove() // a matter of space, as above
		}
	}
}

// Root returns the store's directory as an absolute path.
func (s *Store) Root() string { return s.root }

// Name returns the absolute path that the store's directory had when it was opened, for people to read.
func (s *Store) Name() string { return s.name }

// Path returns the path of a blob, whether or not it exists, for programs that open files by name. What is read there is
// not verified.
func (s *Store) Path(d digest.Digest) (string, error) {
	d, err := ParseDigest(string(d))
	if err != nil {
		return "", err
	}
	return filepath.Join(s.root, blobsDir, d.Encoded()), nil
}

// temp makes a temporary file and holds its lock, which is what keeps Sweep off it; shared, since it becomes the lock of the
// blob that the file becomes.
func (s *Store) temp(ctx context.Context) (*lock.Lock, error) {
	f, err := os.CreateTemp(filepath.Join(s.root, tmpDir), tmpPrefix)
	if err != nil {
		return nil, err
	}
	f.Close()
	return lock.Acquire(ctx, f.Name(), true)
}

// Create begins a blob. The caller writes its bytes, then calls Commit, and always calls Close.
func (s *Store) Create(ctx context.Context) (*Writer, error) {
	tmp, err := s.temp(ctx)
	if err != nil {
		return nil, fmt.Errorf("create blob: %w", err)
	}
	return &Writer{ctx: ctx, store: s, tmp: tmp, file: bufio.NewWriterSize(tmp.File(), blockSize), hash: sha256.New()}, nil
}

// Writer is a blob being written. It is for one goroutine.
type Writer struct {
	ctx   context.Context
	store *Store
	tmp   *lock.Lock // the open temporary file; nil after Commit or Close
	file  *bufio.Writer
	hash  hash.Hash
	size  int64
}

// Write appends bytes to the blob.
func (w *Writer) Write(p []byte) (int, error) {
	if w.tmp == nil {
		return 0, fmt.Errorf("write blob: %w", fs.ErrClosed)
	}
	n, err := w.file.Write(p)
	w.hash.Write(p[:n])
	w.size += int64(n)
	if err != nil {
		return n, fmt.Errorf("write blob: %w", err)
	}
	return n, nil
}

// Commit ends the blob and gives it its name. It returns the blob's digest and size, without a media type. If want is not
// "" or size not -1, and the bytes are others, it returns a *MismatchError and there is no blob.
//
// A blob that exists already stays, since others may hold it, unless it is damaged. What was committed stays until Release,
// as Has says. Nothing is synchronised to disk: what reads a blob verifies it.
func (w *Writer) Commit(want digest.Digest, size int64) (ocispec.Descriptor, error) {
	if w.tmp == nil {
		return ocispec.Descriptor{}, fmt.Errorf("commit blob: %w", fs.ErrClosed)
	}
	if err := w.file.Flush(); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("commit blob: %w", err)
	}
	got := sum(w.hash)
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
			return ocispec.Descriptor{}, err // nobody knows
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

// sound reads a blob to its end, and holds it if it is right.
func (s *Store) sound(ctx context.Context, desc ocispec.Descriptor) bool {
	if !s.Has(desc) {
		return false
	}
	r, err := s.Open(desc) // it verifies what is read
	if err != nil {
		return false
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, ctxio.Reader(ctx, r))
	return err == nil
}

// Job returns the same store for one of several jobs of the process: what that relies on is held until its own Release, whatever others
// hold or release.
func (s *Store) Job() *Store {
	return &Store{Context: s.Context, root: s.root, name: s.name, held: map[digest.Digest]held{}}
}

// keep holds the blob that l is the lock of.
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

// Release lets go of all blobs that the Store has held. It can be used on.
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

// Close removes the temporary file if the blob was not committed. Closing again does nothing.
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

// Stat returns the size of a blob's file in bytes, or an error that is fs.ErrNotExist. It reads nothing: whether the bytes
// are right is known to a reader alone.
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

// Has tells whether there is a blob of the descriptor's digest and size, and holds it: no other process prunes it before
// Release or the end of this process. A file that a crash of the machine has cut short is none.
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
	// It may be another file by now, of the same digest.
	if info, err = l.File().Stat(); err != nil || info.Size() != desc.Size {
		_ = l.Release() // nothing was written
		return false
	}
	return s.keep(desc.Digest, l) == nil
}

// Open opens a blob for reading. The reader ends with io.EOF only if the bytes are those of desc, else with a
// *MismatchError that names the file; a blob found wrong is removed, so that it is fetched or made again. The error is
// fs.ErrNotExist when there is none.
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

// blockSize is how much of a blob is read or written at once, at least.
const blockSize = 256 << 10

// blockReader reads a file in blocks.
type blockReader struct {
	*bufio.Reader
	io.Closer
}

// discard removes the blob that was read and found wrong, unless it was replaced meanwhile or is right after all and it
// was the descriptor's size that lied.
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
	_ = os.Remove(path) // it will be found wrong again
}

// ReadAll returns the bytes of a blob of at most limit bytes, or MaxManifest when limit is 0, verified as Open does.
func (s *Store) ReadAll(desc ocispec.Descriptor, limit int64) ([]byte, error) {
	r, err := s.Open(desc)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return ReadAll(r, desc, limit)
}

// ReadAll returns all that a verifying reader of desc has, if that is at most limit bytes, or MaxManifest when limit is 0.
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

// Remove removes a blob, whether or not an image has it. One that does not exist is no error.
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

// Blobs calls f for each blob of the store with its digest and the size of its file until f returns an error, which it
// returns. Files that are no blobs are passed over.
func (s *Store) Blobs(f func(digest.Digest, int64) error) error {
	dir, err := os.Open(filepath.Join(s.root, blobsDir))
	if err != nil {
		return fmt.Errorf("list blobs: %w", err)
	}
	defer dir.Close()
	for {
		entries, err := dir.ReadDir(1024) // so many at a time that memory stays small
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

// Empty says whether the store has no blob yet, as that of a new root.
func (s *Store) Empty() bool {
	dir, err := os.Open(filepath.Join(s.root, blobsDir))
	if err != nil {
		return false // whoever needs a blob says what is wrong
	}
	defer dir.Close()
	_, err = dir.Readdirnames(1)
	return err == io.EOF
}
