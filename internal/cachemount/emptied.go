package cachemount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/lock"
)

// Emptied are the caches that a build has emptied already. The zero value is none.
type Emptied struct {
	mu  sync.Mutex
	all map[string]bool
}

// Once empties the cache that has the directory dir, and private ones of the same id, when no other step or build uses it any more: once
// in a build, so that what a step leaves there is there for the next. What was in it goes by way of tmp.
func (e *Emptied) Once(ctx context.Context, dir, tmp string) error {
	e.mu.Lock()
	done := e.all[dir]
	e.mu.Unlock()
	if done {
		return nil
	}
	// One that does not exist yet counts as emptied, too: what the first step leaves there is not to be removed by the second.
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil {
		return err
	}
	// The one that is not private is the last, since it says that the cache is empty.
	for _, entry := range slices.Backward(entries) {
		d := filepath.Join(filepath.Dir(dir), entry.Name())
		if d != dir && !strings.HasPrefix(d, dir+"-") {
			continue
		}
		if err := e.empty(ctx, dir, d, tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("empty a cache mount: %w", err)
		}
	}
	return nil
}

func (e *Emptied) empty(ctx context.Context, cache, dir, tmp string) error {
	l, err := lock.Acquire(ctx, filepath.Join(dir, Lock), false)
	if err != nil {
		return err
	}
	defer l.Release()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.all[cache] { // another step was faster, and its files may be in it
		return nil
	}
	old, err := os.MkdirTemp(tmp, "cache-")
	if err != nil {
		return err
	}
	defer dirtree.Remove(old)
	if err := os.Rename(filepath.Join(dir, Files), filepath.Join(old, "fs")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := Forget(dir); err != nil {
		return err
	}
	if cache == dir {
		if e.all == nil {
			e.all = map[string]bool{}
		}
		e.all[cache] = true
	}
	return nil
}
