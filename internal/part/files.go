package part

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/lease"
	"github.com/kilnbuild/kiln/internal/usage"
)

// Files is a Part that is one directory, each of whose entries is an item.
type Files struct {
	// Root is the root directory, and Dir the name of the part in it.
	Root, Dir string
	// Trash is a directory of this process on the same file system.
	Trash string
	Kind  Kind
	// Names is the pattern of the names that may be there.
	Names *Pattern
	// Shared is that of each Item.
	Shared bool
	// LockIn is the name of the file in an item, and LockBeside what is added to its name for the file beside it, that is locked by whoever
	// uses the item; "" for none. Its time is that of the last use.
	LockIn, LockBeside string
	// Sound returns an error for an item that is damaged, and Effect says what comes of that; nil if there is nothing to check.
	Sound  func(path string) error
	Effect string
}

// Name implements Part.
func (p *Files) Name() string { return p.Dir }

func (p *Files) path(id string) string { return filepath.Join(p.Root, p.Dir, id) }

// lock returns the lock file of an item; "" for none.
func (p *Files) lock(id string) string {
	switch {
	case p.LockIn != "":
		return filepath.Join(p.path(id), p.LockIn)
	case p.LockBeside != "":
		return p.path(id) + p.LockBeside
	}
	return ""
}

// ids calls f for each item. A lock file whose item is not there counts as the item.
func (p *Files) ids(f func(id string) error) error {
	names, err := os.ReadDir(filepath.Join(p.Root, p.Dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, name := range names {
		id := name.Name()
		if item, isLock := strings.CutSuffix(id, p.LockBeside); isLock && p.LockBeside != "" {
			if _, err := os.Lstat(p.path(item)); err == nil {
				continue
			}
			id = item
		}
		if err := f(id); err != nil {
			return err
		}
	}
	return nil
}

// errStop ends a walk whose items nobody wants any more.
var errStop = errors.New("the walk is over")

// Items implements Part.
func (p *Files) Items(ctx context.Context) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		err := p.ids(func(id string) error {
			if err := ctxio.Ended(ctx); err != nil {
				return err
			}
			it := Item{Kind: p.Kind, ID: id, Shared: p.Shared}
			there := it.Measure(p.path(id))
			if lock := p.lock(id); lock != "" {
				// A directory's own time says nothing of what is in it.
				if info, err := os.Lstat(lock); err == nil {
					it.Used, there = info.ModTime(), there || p.LockBeside != ""
				}
			}
			if !there {
				return nil
			}
			var err error
			if it.Size, err = usage.Of(ctx, p.path(id)); err != nil {
				return fmt.Errorf("measure %s: %w", p.path(id), err)
			}
			if !yield(it, nil) {
				return errStop
			}
			return nil
		})
		if err != nil && err != errStop {
			yield(Item{}, err)
		}
	}
}

// InUse implements Part.
func (p *Files) InUse(it Item) bool {
	lock := p.lock(it.ID)
	return lock != "" && lease.InUse(lock)
}

// Remove implements Part.
func (p *Files) Remove(it Item) (bool, error) {
	remove := func() (bool, error) { return Reap(lease.Trash(p.path(it.ID), p.Trash)) }
	if lock := p.lock(it.ID); lock != "" {
		return UnderLock(lock, p.LockBeside != "", remove)
	}
	return remove()
}

// Check implements Part.
func (p *Files) Check(ctx context.Context, r *Report) error {
	if err := r.Dir(p.Dir, p.Names.MatchString); err != nil {
		return err
	}
	if p.Sound == nil {
		return nil
	}
	return p.ids(func(id string) error {
		if err := ctxio.Ended(ctx); err != nil {
			return err
		}
		path := p.path(id)
		err := p.Sound(path)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return r.Problem(path, "is damaged: "+err.Error(), p.Effect, func() error { return dirtree.Remove(path) })
	})
}
