package caching

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/docker/go-units"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/cache/mounts"
	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/cache/remote"
	"github.com/kilnbuild/kiln/internal/cachemount"
	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/lock"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot/dir"
	"github.com/kilnbuild/kiln/solver/execute"
	"github.com/kilnbuild/kiln/store/images"
)

// The keys of cache mounts.
const (
	mountsKey        = "mounts"
	mountsMaxSizeKey = "mounts-max-size"
)

// AllMounts is the value of mounts= for the cache mounts of all steps.
const AllMounts = "all"

// unknownContent is the From of a cache mount that starts from the files of a stage, before these are known.
const unknownContent = "?"

// cacheMounts returns the cache mounts of all steps, each once.
func cacheMounts(roots []llb.Output) []cachemount.Identity {
	var all []cachemount.Identity
	for v := range llb.Vertices(roots) {
		op, _ := v.Op().(llb.Exec)
		for _, m := range op.Mounts {
			id := cachemount.Identity{ID: m.CacheID, Mode: m.Mode, UID: m.UID, GID: m.GID}
			if m.Input > 0 {
				id.From = unknownContent
			}
			if m.Type == llb.MountCache && !slices.Contains(all, id) {
				all = append(all, id)
			}
		}
	}
	return all
}

// maxMountsMaxSize bounds what a user may allow the files of a cache mount to have, in bytes.
const maxMountsMaxSize = 1 << 40

// MountSelection says which cache mounts travel. The zero value is none.
type MountSelection struct {
	// IDs are those of the mounts, and All says that it is every one.
	IDs []string
	All bool
	// MaxSize is how many bytes the files of each may have.
	MaxSize int64
}

// Has reports whether the mount with an id is selected.
func (s MountSelection) Has(id string) bool {
	return s.All || slices.ContainsFunc(s.IDs, func(other string) bool { return cachemount.SameID(id, other) })
}

// AppendMounts reads one value of mounts=, which may be given several times: ids of cache mounts with semicolons or, in quoted fields,
// commas between them.
func AppendMounts(ids []string, value string) ([]string, error) {
	for _, id := range strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ';' }) {
		if id = strings.TrimSpace(id); id != "" {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("mounts=%s names no cache mount: give ids such as mounts=/root/.npm, or mounts=%s", value, AllMounts)
	}
	return ids, nil
}

// mounts reads the keys of cache mounts.
func (s *Spec) mounts() (m MountSelection, err error) {
	size := s.Attrs[mountsMaxSizeKey]
	if len(s.Mounts) == 0 {
		if size != "" {
			return m, fmt.Errorf("%s needs %s=, with the ids of cache mounts or %s", mountsMaxSizeKey, mountsKey, AllMounts)
		}
		return m, nil
	}
	m.IDs, m.All, m.MaxSize = s.Mounts, slices.Contains(s.Mounts, AllMounts), mounts.DefaultMaxSize
	if size != "" {
		if m.MaxSize, err = units.RAMInBytes(size); err != nil || m.MaxSize <= 0 || m.MaxSize > maxMountsMaxSize {
			return m, fmt.Errorf("%s=%s is not a size of at most 1TB, such as 2GB", mountsMaxSizeKey, size)
		}
	}
	return m, nil
}

// Mounts are the cache mounts of one build, of which some travel. It implements execute.CacheMounts.
type Mounts struct {
	*Caches
	disk *dir.FS

	mu       sync.Mutex
	used     map[string]usedMount // by key
	declared []cachemount.Identity
	bad      map[badMount]bool
	contents map[digest.Digest]*mounts.Contents // of restored mounts, by the digest of the index
}

// usedMount is a mount that a step has used, and its directory.
type usedMount struct {
	cachemount.Identity
	dir string
}

// badMount is a mount that could not be restored from an import.
type badMount struct {
	from *remote.Import
	key  string
}

// openMounts prepares what has to do with cache mounts, if any are to travel.
func (c *Caches) openMounts() error {
	if len(c.restored) == 0 && !slices.ContainsFunc(c.exports, func(e Export) bool { return len(e.Mounts.IDs) > 0 }) {
		return nil
	}
	ns, err := userns.Current()
	if err != nil {
		return err
	}
	disk, err := dir.NewFS(c.config.Tmp, ns)
	if err != nil {
		return err
	}
	c.mounts = &Mounts{
		Caches: c, disk: disk, used: map[string]usedMount{}, bad: map[badMount]bool{}, contents: map[digest.Digest]*mounts.Contents{},
	}
	c.closers = append(c.closers, c.mounts.close)
	return nil
}

func (m *Mounts) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var err error
	for _, c := range m.contents {
		err = errors.Join(err, c.Close())
	}
	m.contents = nil
	return err
}

// Mounts returns what the executor of steps tells of cache mounts and asks for them; nil if none travel.
func (c *Caches) Mounts() execute.CacheMounts {
	if c.mounts == nil {
		return nil
	}
	return c.mounts
}

// Declare says what is built, whether its steps run or not. It warns of ids of cache mounts that none of them has.
func (c *Caches) Declare(roots []llb.Output) {
	if c.mounts == nil {
		return
	}
	all := cacheMounts(roots)
	c.mounts.declared = all
	var ids []string
	for _, id := range all {
		ids = append(ids, id.ID)
	}
	slices.Sort(ids)
	ids = slices.Compact(ids)
	there := "no step has a cache mount"
	if len(ids) > 0 {
		there = "there are " + strings.Join(ids, ", ")
	}
	for _, specs := range [][]Spec{c.config.From, c.config.To} {
		for _, s := range specs {
			for _, id := range s.Mounts {
				if id != AllMounts && !slices.ContainsFunc(ids, func(have string) bool { return cachemount.SameID(have, id) }) {
					c.config.Events.Warn(fmt.Sprintf("%v: no step has a cache mount with the id %q: %s", s.flag(), id, there))
				}
			}
		}
	}
}

// Used implements execute.CacheMounts.
func (m *Mounts) Used(id cachemount.Identity, dir string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used[id.Key()] = usedMount{id, dir}
}

// Restore implements execute.CacheMounts. What cannot be restored is a warning, once.
func (m *Mounts) Restore(ctx context.Context, id cachemount.Identity, dir, tmp string) (bool, error) {
	if len(m.restored) == 0 {
		return false, nil
	}
	key := id.Key()
	found, err := m.cache.imports.Mounts(ctx, key)
	if err != nil {
		return false, err
	}
	for _, f := range found {
		selected, ok := m.restored[f.Import]
		m.mu.Lock()
		bad := m.bad[badMount{f.Import, key}]
		m.mu.Unlock()
		if !ok || bad || !selected.Has(id.ID) {
			continue
		}
		err := m.restore(ctx, f, selected.MaxSize, dir, tmp)
		if err == nil {
			return true, nil
		}
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		m.mu.Lock()
		m.bad[badMount{f.Import, key}] = true
		m.mu.Unlock()
		m.config.Events.Warn(fmt.Sprintf("the cache mount %q was not restored from the cache %s: %v", id.ID, f.Import.Repository, err))
	}
	return false, nil
}

func (m *Mounts) restore(ctx context.Context, f remote.FoundMount, limit int64, dir, tmp string) error {
	if f.Size > limit {
		return fmt.Errorf("its files have %s, and %s allows %s", termtext.Size(f.Size), mountsMaxSizeKey, termtext.Size(limit))
	}
	open := func(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
		blob, err := f.Import.Repository.Open(ctx, desc)
		if err != nil {
			return nil, err
		}
		return images.Downloading(ctx, desc, blob), nil
	}
	contents, err := m.index(ctx, f.Index, limit, open)
	if err != nil {
		return err
	}
	to, err := os.MkdirTemp(tmp, "cache-")
	if err != nil {
		return err
	}
	defer dirtree.Remove(to) // what is left of it
	if err := mounts.Restore(ctx, m.disk, contents, to, open); err != nil {
		return err
	}
	err = cachemount.Place(to, dir, f.Import.Keys != nil)
	if errors.Is(err, fs.ErrExist) {
		return nil // a step that shares it has written files meanwhile
	}
	return err
}

// index returns what an index says, which is read once.
func (m *Mounts) index(ctx context.Context, desc ocispec.Descriptor, limit int64, open mounts.Open) (*mounts.Contents, error) {
	m.mu.Lock()
	have := m.contents[desc.Digest]
	m.mu.Unlock()
	if have != nil {
		return have, nil
	}
	blob, err := open(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	contents, err := mounts.Decode(ctx, blob, m.config.Tmp, limit)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, blob); err != nil { // its digest is known at the end
		return nil, errors.Join(err, contents.Close())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if have := m.contents[desc.Digest]; have != nil { // another step was faster
		return have, contents.Close()
	}
	m.contents[desc.Digest] = contents
	return contents, nil
}

// inUseTime is how long the end of a build waits for another build that has a cache mount for itself.
const inUseTime = 10 * time.Second

// export adds the cache mounts to own that an export gets, once their blobs are sent. seen is what the place held when it was read, nil if
// it was not; it is returned, read where that is needed. What goes wrong with a mount is told by warn, and leaves the place with what it
// has; the error is that of ctx.
func (m *Mounts) export(ctx context.Context, e Export, seen *remote.Head, own *pack.Pack) (_ *remote.Head, warn func(), err error) {
	var warnings []string
	warn = func() {
		for _, text := range warnings {
			m.config.Events.Warn(text)
		}
	}
	all := m.candidates(e)
	if len(all) == 0 {
		return seen, warn, nil
	}
	if seen == nil {
		seen, _ = remote.Read(ctx, e.Repository, e.Tag) // what is wrong with it shows again when it is published
	}
	for _, c := range all {
		old, ok := pack.Mount{}, false
		if seen != nil {
			old, ok = seen.Pack.Mounts[c.Key()]
		}
		if ok && !c.ran {
			continue // nothing has changed here
		}
		made, err := m.write(ctx, e, c, old)
		switch {
		case ctx.Err() != nil:
			return seen, warn, context.Cause(ctx)
		case errors.Is(err, fs.ErrNotExist) && !c.ran:
		case errors.As(err, new(*mounts.TooLargeError)):
			warnings = append(warnings,
				fmt.Sprintf("the cache mount %q was not exported to %s: %v; %s= allows more", c.ID, e.Repository, err, mountsMaxSizeKey))
		case err != nil:
			warnings = append(warnings, fmt.Sprintf("the cache mount %q was not exported to %s: %v", c.ID, e.Repository, err))
		case made.Index.Digest != old.Index.Digest && made.Files > 1: // one is the directory itself: it is worth nothing without others
			own.AddMount(made)
		}
	}
	return seen, warn, nil
}

// candidate is a cache mount that may be exported. ran says that a step has used it in this build.
type candidate struct {
	usedMount
	ran bool
}

// candidates returns the mounts of an export: those that steps have used, and others that steps have, where they lie for steps that ran
// earlier.
func (m *Mounts) candidates(e Export) []candidate {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []candidate
	for _, u := range m.used {
		if e.Mounts.Has(u.ID) {
			all = append(all, candidate{u, true})
		}
	}
	for _, id := range m.declared {
		if _, ran := m.used[id.Key()]; !ran && e.Mounts.Has(id.ID) && id.From != unknownContent {
			all = append(all, candidate{usedMount{id, filepath.Join(m.config.Root, rootdir.Mounts, id.Key())}, false})
		}
	}
	slices.SortFunc(all, func(a, b candidate) int { return cmp.Compare(a.Key(), b.Key()) })
	return all
}

// write sends the blobs of a mount, while no step uses it that does not share it.
func (m *Mounts) write(ctx context.Context, e Export, c candidate, old pack.Mount) (made pack.Mount, err error) {
	if _, err := os.Lstat(filepath.Join(c.dir, cachemount.Files)); err != nil {
		return made, err
	}
	if e.Key != nil && !cachemount.Verified(c.dir) {
		return made, errNotSigned
	}
	waiting, cancel := context.WithTimeoutCause(ctx, inUseTime, errors.New("another build uses it"))
	defer cancel()
	l, err := lock.Acquire(waiting, filepath.Join(c.dir, cachemount.Lock), true)
	if err != nil {
		return made, err
	}
	defer l.Release()
	var contents *mounts.Contents
	if old.Index.Digest != "" && !m.wasBad(e, c.Key()) {
		// Blocks of what cannot be read are not used again.
		contents, _ = m.index(ctx, old.Index, min(max(e.Mounts.MaxSize, old.Size), maxMountsMaxSize), e.Repository.Open)
	}
	w, err := mounts.Write(ctx, m.disk, filepath.Join(c.dir, cachemount.Files), m.config.Tmp, contents, e.Mounts.MaxSize, e.Repository)
	if err != nil {
		return made, err
	}
	made = pack.Mount{
		Identity: c.Identity, Made: time.Now().Truncate(time.Millisecond),
		Files: w.Files, Size: w.Size, Index: w.Index, Blocks: w.Blocks,
	}
	if e.Key != nil {
		err = made.Sign(e.Key)
	}
	return made, err
}

// errNotSigned is returned for a mount that an export would sign.
var errNotSigned = errors.New("it has files from a cache that was read without verify=, which sign= cannot vouch for; " +
	"kiln cache mounts rm empties it")

// wasBad reports whether a mount could not be restored from the place of an export.
func (m *Mounts) wasBad(e Export, key string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for b := range m.bad {
		if b.key == key && b.from.Repository.String() == e.Repository.String() && b.from.Tag == e.Tag {
			return true
		}
	}
	return false
}
