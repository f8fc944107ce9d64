package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/kilnbuild/kiln/cache"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/history"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/httpsource"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lease"
	"github.com/kilnbuild/kiln/internal/localdir"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/solver"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Finding is something that is wrong with a root directory.
type Finding struct {
	// Path is the file, relative to the root directory.
	Path string
	// Problem says what is wrong with it, and Effect what comes of that.
	Problem string
	Effect  string
	// Repaired says that it is as if the file had never been there: what needs it makes it again.
	Repaired bool
}

// Checked is how much Check looked at.
type Checked struct {
	Images, Blobs, Layers, Records int
	// Bytes is how much was read of blobs and layers.
	Bytes int64
}

// RepairLayout does what of a repair comes before New: see cas.RepairLayout.
func RepairLayout(root string) (bool, error) { return cas.RepairLayout(root) }

// Check verifies everything that the root directory keeps, while other processes may use it, and calls found for what is wrong.
// With repair, what is wrong is removed where it can be made again.
func (r *Root) Check(ctx context.Context, repair bool, s *events.Stream, found func(Finding)) (*Checked, error) {
	if _, err := r.Work(); err != nil {
		return nil, err
	}
	c := &checker{root: r, repair: repair, bad: map[digest.Digest]bool{}, badLayers: map[string]bool{}}
	c.found = func(f Finding) {
		c.mu.Lock()
		defer c.mu.Unlock()
		found(f)
	}
	for _, part := range []struct {
		name string
		do   func(context.Context, *events.Task) error
	}{
		{"checking the root directory", c.places}, {"checking blobs", c.blobs}, {"checking images", c.images}, {"checking layers", c.layers},
		{"checking records", c.records}, {"checking the rest", c.rest},
	} {
		task := s.Task(llb.Place{}, part.name)
		err := part.do(ctx, task)
		task.Done(err)
		if err != nil {
			return &c.sum, fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return &c.sum, nil
}

type checker struct {
	root   *Root
	repair bool
	found  func(Finding)

	mu        sync.Mutex
	sum       Checked
	bad       map[digest.Digest]bool // blobs that are damaged
	badLayers map[string]bool        // layers that are damaged, or were
}

// report says what is wrong with a file, after mend, unless that is nil, has repaired it if it is to be.
func (c *checker) report(path, problem, effect string, mend func() error) error {
	f := Finding{Path: path, Problem: problem, Effect: effect}
	if c.repair && mend != nil {
		if err := mend(); err != nil {
			return fmt.Errorf("repair %s: %w", path, err)
		}
		f.Repaired = true
	}
	c.found(f)
	return nil
}

// The names that may be in each directory, as regular expressions; "" is for any name. What is in tmp and locks comes and goes.
const (
	rootName   = `^(blobs|index\.json|oci-layout|layers|entries|records|context|mounts|compressed|git|http|builds|locks|tmp|gc|ids)$`
	hash64     = `^[0-9a-f]{64}$`
	hash32     = `^[0-9a-f]{32}$`
	lockedHash = `^[0-9a-f]{32}(\.lock)?$`
	mountName  = `^[0-9a-f]{64}(-[0-9]+)?$`
	prefixName = `^([0-9a-f]{2}|steps)$`
	recordName = `^[0-9a-f]{64}((\.failed)?\.log)?$`
	noteName   = `^[0-9a-f]{64}\.[a-z0-9.-]+$`
	layerName  = `^(fs|manifest|unsynced|packed|over|bare|blob\.[a-z0-9.-]+)$`
	shaName    = `^sha256$`
	buildName  = `^[0-9]{8}T[0-9]{6}\.[0-9]{9}Z-[0-9a-f]{8}\.jsonl$`
)

// foreign is what becomes of a file that kiln did not make.
const foreign = "kiln does not know it and leaves it alone: move it away"

// places looks for what does not belong, and for directories that others could write to.
func (c *checker) places(ctx context.Context, _ *events.Task) error {
	if err := c.names(".", rootName); err != nil {
		return err
	}
	for _, dir := range []struct{ path, name string }{
		{"blobs", shaName}, {"blobs/sha256", hash64}, {"layers", hash64}, {"entries", hash64}, {"records", prefixName}, {"records/steps", hash64},
		{"context", hash32}, {"mounts", mountName}, {"compressed", noteName}, {"git", lockedHash}, {"http", hash32}, {history.DirName, buildName}, {"locks", ""}, {"tmp", ""},
	} {
		if err := c.names(dir.path, dir.name); err != nil {
			return err
		}
	}
	for _, err := range c.root.Left() {
		if err := c.report("tmp", "holds what a killed process has left: "+err.Error(), "it only takes space: remove it by hand", nil); err != nil {
			return err
		}
	}
	prefixes, err := filepath.Glob(filepath.Join(c.root.Dir(), "records", "??"))
	for i := 0; err == nil && i < len(prefixes); i++ {
		if err := ctxio.Ended(ctx); err != nil {
			return err
		}
		err = c.names("records/"+filepath.Base(prefixes[i]), recordName)
	}
	return err
}

// names looks at one directory, in which there may be names that match the expression allowed.
func (c *checker) names(dir, allowed string) error {
	path := filepath.Join(c.root.Dir(), dir)
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return c.report(dir, "is no directory", "kiln cannot work with it: move it away", nil)
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		err := c.report(dir, fmt.Sprintf("belongs to user %d with mode %04o", st.Uid, st.Mode&0o7777), "others could change what kiln builds with",
			func() error {
				return errors.Join(os.Chown(path, os.Geteuid(), -1), os.Chmod(path, fs.FileMode(st.Mode&0o755)))
			})
		if err != nil {
			return err
		}
	}
	if allowed == "" {
		return nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	expected := regexp.MustCompile(allowed)
	for _, e := range entries {
		if !expected.MatchString(e.Name()) {
			if err := c.report(filepath.Join(dir, e.Name()), "does not belong here", foreign, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// blobs reads every blob.
func (c *checker) blobs(ctx context.Context, task *events.Task) error {
	type blob struct {
		digest digest.Digest
		size   int64
	}
	var all []blob
	var total, done int64
	err := c.root.Images.Blobs(func(d digest.Digest, size int64) error {
		all = append(all, blob{d, size})
		total += size
		return nil
	})
	if err != nil {
		return err
	}
	// What an image needs is reported with the image.
	c.sum.Blobs = len(all)
	report := task.Transferring("bytes", total)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, blob := range all {
		g.Go(func() error {
			path, err := c.root.Images.Path(blob.digest)
			if err != nil {
				return err
			}
			f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it was pruned
			}
			if err != nil {
				return err
			}
			defer f.Close()
			v := blob.digest.Verifier()
			n, err := io.Copy(io.MultiWriter(v, ctxio.Writer(ctx, io.Discard)), f)
			report(atomic.AddInt64(&done, n), false)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err == nil && v.Verified() {
				return nil
			}
			problem := "is not what its name says: its bytes have another digest"
			if err != nil {
				problem = "cannot be read: " + err.Error()
			}
			c.mu.Lock()
			c.bad[blob.digest] = true
			c.mu.Unlock()
			return c.report(c.rel(path), problem, "what needs it fetches it or makes it again", func() error { return c.root.Images.Remove(blob.digest) })
		})
	}
	err = g.Wait()
	c.sum.Bytes += done
	return err
}

func (c *checker) rel(path string) string {
	rel, _ := filepath.Rel(c.root.Dir(), path)
	return rel
}

// images looks whether every image has what it is made of. The list of images cannot change meanwhile, so no blob of one is
// pruned.
func (c *checker) images(ctx context.Context, _ *events.Task) error {
	if err := c.root.Images.CheckIndex(); err != nil {
		others, listErr := c.manifests(ctx)
		if listErr != nil {
			return listErr
		}
		err := c.report("index.json", "cannot be read: "+err.Error(), "no image can be found by its name; a repair lists all that are there, without a name where that is lost",
			func() error { return c.root.Images.RepairIndex(others) })
		if err != nil || !c.repair {
			return err
		}
	}
	var unusable []digest.Digest
	err := c.root.Images.Locked(func(entries []ocispec.Descriptor) error {
		c.sum.Images = len(entries)
		for _, e := range entries {
			if err := ctxio.Ended(ctx); err != nil {
				return err
			}
			name := e.Annotations[ocispec.AnnotationRefName]
			if name == "" {
				name = e.Digest.String()
			}
			lost, listable := c.image(e)
			for _, d := range lost {
				path, err := c.root.Images.Path(d)
				if err != nil {
					return err
				}
				problem := "is not there"
				if c.bad[d] && !c.repair {
					problem = "is damaged"
				}
				effect := fmt.Sprintf("image %s cannot be used: build or pull it again", name)
				if c.repair && !listable {
					effect += ", it is not listed any more"
				}
				if err := c.report(c.rel(path), problem, effect, nil); err != nil {
					return err
				}
			}
			if !listable {
				unusable = append(unusable, e.Digest)
			}
		}
		return nil
	})
	if err != nil || !c.repair {
		return err
	}
	for _, d := range unusable {
		// Without its manifest an image cannot even be listed.
		if err := c.root.Images.Drop(ocispec.Descriptor{Digest: d}); err != nil && !errors.As(err, new(*cas.NotFoundError)) {
			return err
		}
	}
	return nil
}

// image returns the blobs that an image lacks, and whether its manifest and config can be read. An index that was pulled for one
// platform has only that platform's manifest.
func (c *checker) image(desc ocispec.Descriptor) (lost []digest.Digest, listable bool) {
	missing := func(d ocispec.Descriptor) bool {
		size, err := c.root.Images.Stat(d.Digest)
		return err != nil || size != d.Size || c.bad[d.Digest]
	}
	if missing(desc) {
		return []digest.Digest{desc.Digest}, false
	}
	if !registry.IsIndex(desc.MediaType) && !registry.IsManifest(desc.MediaType) {
		return nil, true
	}
	var m struct {
		Manifests []ocispec.Descriptor
		Config    *ocispec.Descriptor
		Layers    []ocispec.Descriptor
	}
	data, err := c.root.Images.ReadAll(desc, 0)
	if err != nil || json.Unmarshal(data, &m) != nil {
		return []digest.Digest{desc.Digest}, false
	}
	listable = true
	there := 0
	for _, d := range m.Manifests {
		if _, err := c.root.Images.Stat(d.Digest); err != nil && !c.bad[d.Digest] {
			continue
		}
		there++
		sub, ok := c.image(d)
		lost, listable = append(lost, sub...), listable && ok
	}
	if len(m.Manifests) > 0 && there == 0 {
		return []digest.Digest{m.Manifests[0].Digest}, false
	}
	if m.Config != nil && missing(*m.Config) {
		lost, listable = append(lost, m.Config.Digest), false
	}
	for _, d := range m.Layers {
		if missing(d) {
			lost = append(lost, d.Digest)
		}
	}
	return lost, listable
}

// manifests returns the images that the blobs are, those of an index aside.
func (c *checker) manifests(ctx context.Context) ([]ocispec.Descriptor, error) {
	var all []ocispec.Descriptor
	inIndex := map[digest.Digest]bool{}
	err := c.root.Images.Blobs(func(d digest.Digest, size int64) error {
		if err := ctxio.Ended(ctx); err != nil {
			return err
		}
		if size > cas.MaxManifest || c.bad[d] {
			return nil
		}
		desc := ocispec.Descriptor{Digest: d, Size: size}
		data, err := c.root.Images.ReadAll(desc, 0)
		if err != nil {
			return nil // it is reported with the blobs
		}
		var m struct {
			MediaType string
			Manifests []ocispec.Descriptor
		}
		if json.Unmarshal(data, &m) != nil || !registry.IsIndex(m.MediaType) && !registry.IsManifest(m.MediaType) {
			return nil
		}
		desc.MediaType = m.MediaType
		if lost, _ := c.image(desc); len(lost) > 0 {
			return nil
		}
		for _, sub := range m.Manifests {
			inIndex[sub.Digest] = true
		}
		all = append(all, desc)
		return nil
	})
	return slices.DeleteFunc(all, func(d ocispec.Descriptor) bool { return inIndex[d.Digest] }), err
}

// layers compares every layer with its manifest.
func (c *checker) layers(ctx context.Context, task *events.Task) error {
	ids, err := c.root.work.Layers.IDs()
	if err != nil {
		return err
	}
	c.sum.Layers = len(ids)
	var bytes atomic.Int64
	report := task.Transferring("bytes", 0)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, id := range ids {
		g.Go(func() error {
			err := c.layer(ctx, id, &bytes)
			report(bytes.Load(), false)
			return err
		})
	}
	err = g.Wait()
	c.sum.Bytes += bytes.Load()
	return err
}

// maxDamage is how many files of one layer are named.
const maxDamage = 20

func (c *checker) layer(ctx context.Context, id string, bytes *atomic.Int64) error {
	type damage struct{ path, what string }
	var all []damage
	more := 0
	err := c.root.work.Layers.Verify(ctx, id, func(path, what string) {
		if len(all) == maxDamage {
			more++
			return
		}
		all = append(all, damage{path, what})
	}, func(n int64) { bytes.Add(n) })
	if err != nil {
		return err
	}
	dir := c.root.work.Layers.Path(id)
	notes, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it was pruned
	}
	if err != nil {
		return err
	}
	expected := regexp.MustCompile(layerName)
	for _, n := range notes {
		path := filepath.Join(dir, n.Name())
		switch {
		case !expected.MatchString(n.Name()):
			err = c.report(c.rel(path), "does not belong here", foreign, nil)
		case strings.HasPrefix(n.Name(), "blob."):
			err = c.note(path)
		}
		if err != nil {
			return err
		}
	}
	if len(all) == 0 {
		return nil
	}
	removed := false
	if c.repair {
		if removed, err = reap(lease.Remove(dir, c.root.work.Scratch.Path())); err != nil {
			return fmt.Errorf("repair layer %s: %w", id, err)
		}
	}
	c.mu.Lock()
	c.badLayers[id] = true
	c.mu.Unlock()
	effect := "the next build that needs the layer makes it again"
	switch {
	case c.repair && !removed:
		effect = "a running build uses the layer: repair again when it is over"
	case !c.repair && !strings.HasPrefix(all[0].path, "manifest"):
		effect = "a step may see it, and what reads it fails: kiln check --repair removes the layer, and it is made again"
	}
	for _, d := range all {
		c.found(Finding{Path: filepath.Join("layers", id, d.path), Problem: d.what, Effect: effect, Repaired: removed})
	}
	if more > 0 {
		c.found(Finding{Path: filepath.Join("layers", id), Problem: fmt.Sprintf("has %d more damaged files", more), Effect: effect, Repaired: removed})
	}
	return nil
}

// note reads a note of a blob.
func (c *checker) note(path string) error {
	if _, _, err := exporter.ReadNote(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return c.report(c.rel(path), "is damaged: "+err.Error(), "the blob is made again", func() error { return dirtree.Remove(path) })
	}
	return nil
}

// records reads every record, and compares it with the layer that it names.
func (c *checker) records(ctx context.Context, _ *events.Task) error {
	return c.root.work.Records.All(func(s cache.Stored) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		c.sum.Records++
		k := s.Key.String()
		path := filepath.Join("records", k[:2], k)
		remove := func() error { return c.root.work.Records.Remove(s.Key) }
		if s.Damage != nil {
			return c.report(path, "is damaged: "+s.Damage.Error(), "the step runs again", remove)
		}
		for _, made := range s.Record.Outputs {
			if c.otherContent(made.Layer) {
				return c.report(path, "says that layer "+made.ID+" has another content than it has", "steps that follow may be taken for cached that are not", remove)
			}
		}
		return nil
	})
}

// otherContent reports whether a layer that is there and sound has another content than a record says.
func (c *checker) otherContent(l solver.Layer) bool {
	if c.badLayers[l.ID] {
		return false
	}
	m, err := layer.OpenManifest(filepath.Join(c.root.work.Layers.Path(l.ID), "manifest"))
	if err != nil {
		return false // the layer is gone, which is a miss
	}
	defer m.Close()
	return solver.Content(m.Content) != l.Content
}

// rest reads the small caches.
func (c *checker) rest(ctx context.Context, _ *events.Task) error {
	for _, place := range []struct {
		dir    string
		check  func(path string) error
		effect string
	}{
		{"entries", func(path string) error {
			m, err := layer.OpenManifest(path)
			if err == nil {
				err = m.Close()
			}
			return err
		}, "the layer is read again"},
		{"context", localdir.CheckCache, "the files of the context are read again"},
		{"http", httpsource.CheckState, "the file is fetched again"},
		{"compressed", func(path string) error {
			_, _, err := exporter.ReadNote(path)
			return err
		}, "the blob is compressed again"},
		{history.DirName, history.Check, "the build is not in the history any more"},
	} {
		names, err := os.ReadDir(filepath.Join(c.root.Dir(), place.dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, name := range names {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			path := filepath.Join(c.root.Dir(), place.dir, name.Name())
			err := place.check(path)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err := c.report(c.rel(path), "is damaged: "+err.Error(), place.effect, func() error { return dirtree.Remove(path) }); err != nil {
				return err
			}
		}
	}
	return nil
}
