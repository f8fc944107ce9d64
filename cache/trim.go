package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/solver"
)

// Stored is a record as it lies on disk.
type Stored struct {
	Key solver.Key
	// Record is nil for one that is damaged; Damage says what is wrong with it.
	Record *solver.Record
	Damage error
	// Size is the length of the record and its log in bytes.
	Size int64
	// Used is when it was made or read last, within an hour.
	Used time.Time
}

// All calls f for each record until f returns an error, which it returns. Records that go meanwhile are passed over.
func (c *Cache) All(f func(Stored) error) error {
	return c.each(func(path string, key solver.Key) error {
		s := Stored{Key: key}
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		s.Size, s.Used = info.Size(), info.ModTime()
		if log, err := os.Lstat(path + ".log"); err == nil {
			s.Size += log.Size()
		}
		r, err := c.read(path, key, info)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		s.Record, s.Damage = r, err
		return f(s)
	})
}

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

// Remove removes a record with its log. One that is not there is no error.
func (c *Cache) Remove(key solver.Key) error {
	for _, path := range []string{c.path(key), c.path(key) + ".log"} {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("remove a record: %w", err)
		}
	}
	return nil
}

// FailedLog is what a step printed when it failed last.
type FailedLog struct {
	Key solver.Key
	// Path is the file, and Size its length in bytes.
	Path string
	Size int64
	// Used is when the step failed.
	Used time.Time
}

// FailedLogs calls f for the log of each step that failed when it ran last, until f returns an error, which it returns.
func (c *Cache) FailedLogs(f func(FailedLog) error) error {
	logs, err := filepath.Glob(filepath.Join(c.dir, "??", "*"+failedLog))
	if err != nil {
		return fmt.Errorf("list the logs of failures: %w", err)
	}
	for _, path := range logs {
		key, err := solver.ParseKey(strings.TrimSuffix(filepath.Base(path), failedLog))
		if err != nil {
			continue
		}
		info, err := os.Lstat(path)
		if err != nil {
			continue // the step runs again
		}
		if err := f(FailedLog{Key: key, Path: path, Size: info.Size(), Used: info.ModTime()}); err != nil {
			return err
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
