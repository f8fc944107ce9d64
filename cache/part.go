package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lease"
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/solver"
)

// recordsPart are the records with their logs, and the logs of failures.
type recordsPart struct {
	cache *Cache
	// content returns what the content of a layer is by its manifest; false if there is none.
	content func(id string) (layer.Digest, bool)
}

// Part returns the records and logs as a part of the root directory. content returns the content of a layer by its manifest, and false if
// the layer is not there.
func (c *Cache) Part(content func(id string) (layer.Digest, bool)) part.Part {
	return &recordsPart{c, content}
}

// Name implements part.Part.
func (p *recordsPart) Name() string { return "records" }

// Items implements part.Part.
func (p *recordsPart) Items(ctx context.Context) iter.Seq2[part.Item, error] {
	return func(yield func(part.Item, error) bool) {
		for s, err := range p.cache.records(ctx) {
			it := part.Item{Kind: part.Record, ID: s.key.String(), Size: s.size, Used: s.used}
			if s.record != nil {
				it.Description = s.record.Name
				for _, m := range s.record.Outputs {
					it.Layers = append(it.Layers, m.ID)
				}
			}
			if !yield(it, err) || err != nil {
				return
			}
		}
		logs, err := filepath.Glob(filepath.Join(p.cache.dir, "??", "*"+failedLog))
		if err != nil {
			yield(part.Item{}, fmt.Errorf("list the logs of failures: %w", err))
			return
		}
		for _, path := range logs {
			if err := ctxio.Ended(ctx); err != nil {
				yield(part.Item{}, err)
				return
			}
			key, err := solver.ParseKey(strings.TrimSuffix(filepath.Base(path), failedLog))
			if err != nil {
				continue
			}
			it := part.Item{Kind: part.Log, ID: key.String(), Shared: true}
			if it.Measure(path) && !yield(it, nil) { // else the step runs again
				return
			}
		}
	}
}

// InUse implements part.Part. A record is read whole before it is used, and a log is only shown; who walks over the parts has to keep the
// records of layers that are in use, since without them the work of a running build would be lost.
func (p *recordsPart) InUse(part.Item) bool { return false }

// Remove implements part.Part.
func (p *recordsPart) Remove(it part.Item) (bool, error) {
	key, err := solver.ParseKey(it.ID)
	if err != nil {
		return false, err
	}
	if it.Kind == part.Log {
		return part.Reap(lease.Trash(p.cache.path(key)+failedLog, p.cache.tmp))
	}
	return true, p.cache.remove(key)
}

var (
	// prefixes are the directories of records by the first digits of their keys, and that of the hints.
	prefixes = part.NewPattern(`^([0-9a-f]{2}|steps)$`)
	// recordNames are the names in those of records.
	recordNames = part.NewPattern(`^[0-9a-f]{64}((\.failed)?\.log)?$`)
)

// Check implements part.Part: it reads every record, and compares it with the layers that it names.
func (p *recordsPart) Check(ctx context.Context, r *part.Report) error {
	if err := errors.Join(r.Dir(rootdir.Records, prefixes.MatchString), r.Dir(rootdir.Records+"/steps", part.Hash.MatchString)); err != nil {
		return err
	}
	dirs, err := filepath.Glob(filepath.Join(p.cache.dir, "??"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := ctxio.Ended(ctx); err != nil {
			return err
		}
		if err := r.Dir(filepath.Join(rootdir.Records, filepath.Base(dir)), recordNames.MatchString); err != nil {
			return err
		}
	}
	for s, err := range p.cache.records(ctx) {
		if err != nil {
			return err
		}
		r.Count(part.Record, 1)
		if err := p.check(r, s); err != nil {
			return err
		}
	}
	return nil
}

func (p *recordsPart) check(r *part.Report, s stored) error {
	path := p.cache.path(s.key)
	remove := func() error { return p.cache.remove(s.key) }
	if s.damage != nil {
		return r.Problem(path, "is damaged: "+s.damage.Error(), "the step runs again", remove)
	}
	for _, made := range s.record.Outputs {
		if r.Damaged(part.Layer, made.ID) {
			continue
		}
		// A layer that is gone is a miss.
		if content, ok := p.content(made.ID); ok && solver.Content(content) != made.Content {
			return r.Problem(path, "says that layer "+made.ID+" has another content than it has",
				"steps that follow may be taken for cached that are not", remove)
		}
	}
	return nil
}

// stored is a record as it lies on disk.
type stored struct {
	key solver.Key
	// record is nil for one that is damaged; damage says what is wrong with it.
	record *solver.Record
	damage error
	// size is the length of the record and its log in bytes.
	size int64
	// used is when it was made or read last, within an hour.
	used time.Time
}

// records reads each record. Those that go meanwhile are passed over.
func (c *Cache) records(ctx context.Context) iter.Seq2[stored, error] {
	return func(yield func(stored, error) bool) {
		err := c.each(func(path string, key solver.Key) error {
			if err := ctxio.Ended(ctx); err != nil {
				return err
			}
			s := stored{key: key}
			info, err := os.Lstat(path)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			s.size, s.used = info.Size(), info.ModTime()
			if log, err := os.Lstat(path + ".log"); err == nil {
				s.size += log.Size()
			}
			s.record, s.damage = c.read(path, key, info)
			if errors.Is(s.damage, fs.ErrNotExist) {
				return nil
			}
			if !yield(s, nil) {
				return errStop
			}
			return nil
		})
		if err != nil && err != errStop {
			yield(stored{}, err)
		}
	}
}

// errStop ends a walk whose records nobody wants any more.
var errStop = errors.New("the walk is over")

// each calls f for each file that has a record's name.
func (c *Cache) each(f func(path string, key solver.Key) error) error {
	dirs, err := os.ReadDir(c.dir)
	if err != nil {
		return fmt.Errorf("list the records: %w", err)
	}
	for _, dir := range dirs {
		if len(dir.Name()) != 2 {
			continue
		}
		files, err := os.ReadDir(filepath.Join(c.dir, dir.Name()))
		if err != nil {
			return fmt.Errorf("list the records: %w", err)
		}
		for _, file := range files {
			key, err := solver.ParseKey(file.Name())
			if err != nil || c.path(key) != filepath.Join(c.dir, dir.Name(), file.Name()) {
				continue
			}
			if err := f(c.path(key), key); err != nil {
				return err
			}
		}
	}
	return nil
}

// read reads the record at path, which info is of.
func (c *Cache) read(path string, key solver.Key, info fs.FileInfo) (*solver.Record, error) {
	if !info.Mode().IsRegular() || info.Size() > maxRecord {
		return nil, errors.New("not a small file")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return decode(key, string(data))
}

// remove removes a record with its log. One that is not there is no error.
func (c *Cache) remove(key solver.Key) error {
	for _, path := range []string{c.path(key), c.path(key) + ".log"} {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("remove a record: %w", err)
		}
	}
	return nil
}

// strayAge is how old a log must be that has no record to be taken for one that lost it: a log is put in place just before
// its record.
const strayAge = time.Hour

// Sweep removes what belongs to records that are gone: logs, and hints of what a step made last. The log of a failure belongs to no
// record, and stays.
func (c *Cache) Sweep() error {
	var errs []error
	remove := func(path string) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("sweep the cache: %w", err))
		}
	}
	steps, err := os.ReadDir(c.steps())
	errs = append(errs, err)
	for _, s := range steps {
		path := filepath.Join(c.steps(), s.Name())
		target, err := os.Readlink(path)
		if err == nil {
			if key, err := solver.ParseKey(target); err == nil {
				if _, err := os.Lstat(c.path(key)); err == nil {
					continue
				}
			}
		}
		remove(path)
	}
	logs, err := filepath.Glob(filepath.Join(c.dir, "??", "*.log"))
	errs = append(errs, err)
	for _, log := range logs {
		if strings.HasSuffix(log, failedLog) {
			continue
		}
		if _, err := os.Lstat(strings.TrimSuffix(log, ".log")); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if info, err := os.Lstat(log); err == nil && time.Since(info.ModTime()) > strayAge {
			remove(log)
		}
	}
	return errors.Join(errs...)
}
