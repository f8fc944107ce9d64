package received

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kilnbuild/kiln/internal/atomicfile"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/internal/rootdir"
)

// Part returns the caches in the root directory root as a part of it. trash is a directory of this process on the same file system.
func Part(root, trash string) part.Part {
	return &part.Files{
		Root: root, Dir: rootdir.Received, Trash: trash, Kind: part.Received, Names: part.HalfHash, LockIn: lockName, Sound: sound,
		Effect: "the client sends its files again",
	}
}

// sweep removes the files that no list has. Nobody else uses the cache.
func (c *Cache) sweep() error {
	listed, err := c.listed()
	if err != nil {
		return err
	}
	return c.each(func(path string, d layer.Digest, ok bool) error {
		if ok && listed[d] {
			return nil
		}
		return os.Remove(path)
	})
}

// listed returns the digests of all files that lists have. A list that cannot be read is removed.
func (c *Cache) listed() (map[layer.Digest]bool, error) {
	names, err := c.lists()
	if err != nil {
		return nil, err
	}
	listed := map[layer.Digest]bool{}
	for _, name := range names {
		m, err := layer.OpenManifest(c.list(name))
		if err != nil {
			if err := os.Remove(c.list(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			continue
		}
		for e := range m.All() {
			if e.Type == layer.File {
				listed[e.Digest] = true
			}
		}
		if err := m.Close(); err != nil {
			return nil, err
		}
	}
	return listed, nil
}

// each calls f for each file of the cache: ok is false for one whose name is no digest.
func (c *Cache) each(f func(path string, d layer.Digest, ok bool) error) error {
	dirs, err := os.ReadDir(c.path(filesDir))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		files, err := os.ReadDir(c.path(filesDir, dir.Name()))
		if err != nil {
			return err
		}
		for _, file := range files {
			var d layer.Digest
			b, err := hex.DecodeString(dir.Name() + file.Name())
			ok := err == nil && copy(d[:], b) == len(d) && len(b) == len(d)
			if err := f(c.path(filesDir, dir.Name(), file.Name()), d, ok); err != nil {
				return err
			}
		}
	}
	return nil
}

// afterBoot makes sure, once after each start of the host, that what lists have is there: files and lists are not written through to the
// disk, and a loss of power takes what it likes of them.
func (c *Cache) afterBoot(ctx context.Context) error {
	boot, err := os.ReadFile(bootID)
	if err != nil {
		return err
	}
	if last, err := os.ReadFile(c.path(bootName)); err == nil && bytes.Equal(last, boot) {
		return nil
	}
	there := map[layer.Digest]bool{}
	err = c.each(func(path string, d layer.Digest, ok bool) error {
		if err := ctxio.Ended(ctx); err != nil {
			return err
		}
		if ok && verify(ctx, path, d) == nil {
			there[d] = true
			return nil
		}
		if err := ctxio.Ended(ctx); err != nil {
			return err
		}
		return os.Remove(path)
	})
	if err != nil {
		return err
	}
	names, err := c.lists()
	if err != nil {
		return err
	}
	for _, name := range names {
		if whole(c.list(name), there) != nil {
			if err := os.Remove(c.list(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return atomicfile.Write(c.path(bootName), c.tmp, func(w io.Writer) error {
		_, err := w.Write(boot)
		return err
	})
}

// verify returns an error unless a file has a digest.
func verify(ctx context.Context, path string, want layer.Digest) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, ctxio.Reader(ctx, f)); err != nil {
		return err
	}
	if got := layer.Digest(h.Sum(nil)); got != want {
		return fmt.Errorf("%s has other bytes than its name says", filepath.Base(path))
	}
	return nil
}

// whole returns an error unless all that a list has is there.
func whole(path string, there map[layer.Digest]bool) error {
	m, err := layer.OpenManifest(path)
	if err != nil {
		return err
	}
	defer m.Close()
	for e := range m.All() {
		if e.Type == layer.File && !there[e.Digest] {
			return fmt.Errorf("%s lists a file that is missing", filepath.Base(path))
		}
	}
	return nil
}

// sound returns an error for a cache that is damaged.
func sound(path string) error {
	c := &Cache{dir: path}
	there := map[layer.Digest]bool{}
	err := c.each(func(path string, d layer.Digest, ok bool) error {
		if !ok {
			return fmt.Errorf("%s does not belong there", filepath.Base(path))
		}
		there[d] = true
		return verify(context.Background(), path, d)
	})
	if err != nil {
		return err
	}
	names, err := c.lists()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := whole(c.list(name), there); err != nil {
			return err
		}
	}
	return nil
}
