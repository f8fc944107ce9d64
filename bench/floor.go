package main

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"

	"github.com/kilnbuild/kiln/internal/gunzip"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// floorArg makes this program do the work of a floor, in a process of its own so that its memory is not the bench's.
const floorArg = "-do-floor"

// floor returns what measures a floor.
func (e *env) floor(kind, arg string) func() (usage, error) {
	return func() (usage, error) {
		self, err := os.Executable()
		if err != nil {
			return usage{}, err
		}
		unix.Sync()
		return execute(e.ctx, []string{"TMPDIR=" + e.tmp}, self, floorArg, kind, arg)
	}
}

func runFloor(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: %s KIND ARGUMENT", floorArg)
	}
	switch kind, arg := args[0], args[1]; kind {
	case "statx":
		return statTree(arg)
	case "copy":
		return copyTree(arg)
	case "gunzip":
		return uncompress(arg)
	case "spawn":
		n, err := strconv.Atoi(arg)
		if err != nil {
			return err
		}
		for range n {
			if err := exec.Command("busybox", "sh", "-c", "true").Run(); err != nil {
				return err
			}
		}
		return nil
	case "work":
		n, err := strconv.Atoi(arg)
		if err != nil {
			return err
		}
		return work(n)
	default:
		return fmt.Errorf("there is no floor %q", kind)
	}
}

// statTree looks at every entry of a tree, on all processors: one level of directories after the other.
func statTree(root string) error {
	for level := []string{root}; len(level) > 0; {
		next := make([][]string, len(level))
		var g errgroup.Group
		g.SetLimit(runtime.NumCPU())
		for i, dir := range level {
			g.Go(func() (err error) {
				next[i], err = statDir(dir)
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		level = slices.Concat(next...)
	}
	return nil
}

func statDir(dir string) (below []string, err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		var st unix.Statx_t
		if err := unix.Statx(int(f.Fd()), name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &st); err != nil {
			return nil, err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			below = append(below, filepath.Join(dir, name))
		}
	}
	return below, nil
}

// copyTree reads all files of a tree, hashes what it reads, and writes it to one file: what a layer's tar takes at least.
func copyTree(root string) error {
	out, err := os.CreateTemp("", "floor-")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	h := sha256.New()
	w := bufio.NewWriterSize(io.MultiWriter(out, h), 1<<20)
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
	return errors.Join(err, w.Flush())
}

func uncompress(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gunzip.NewReader(f)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, z)
	return err
}

// work runs the commands of the workload many: what the builds share once, then the rest, as many at a time as there are
// processors.
func work(builds int) error {
	command := func(text string) error { return exec.Command("busybox", "sh", "-c", text).Run() }
	if err := command(hashing(sharedHashes, "/dev/null")); err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(runtime.NumCPU())
	for range builds {
		g.Go(func() error { return command(hashing(ownHashes, "/dev/null")) })
	}
	return g.Wait()
}
