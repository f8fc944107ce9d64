package snapshot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/internal/layer"
	"golang.org/x/sys/unix"
)

// A crash of the machine may leave files empty, or full of zeros, that were not on disk yet. Nothing waits for the disk because of
// that: a layer has a note that says in which boot of the machine it was made, and in that boot nothing can have been lost. In
// another the layer is compared with its manifest when it is first used, and what is read then is on disk. The note goes with that,
// or when the file system was synced meanwhile.
const unsyncedNote = "unsynced"

// survived returns an error if a crash of the machine has damaged a layer. s.mu is held.
func (s *Store) survived(id string, m *layer.Manifest) error {
	boot, err := os.ReadFile(filepath.Join(s.dir, id, unsyncedNote))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && string(boot) == s.boot {
		s.unsynced[id] = true
		return nil
	}
	if s.CheckBlobs != nil {
		s.CheckBlobs(id)
	}
	var damage string
	ctx, stop := context.WithCancel(s.Context)
	defer stop()
	err = s.compare(ctx, id, m, func(path, what string) {
		if damage == "" {
			damage = path + " " + what
		}
		stop()
	}, func(int64) {})
	switch {
	case damage != "":
		return fmt.Errorf("%w: the machine was started again before all of layer %s was on disk: %s", layer.ErrDamaged, id, damage)
	case err != nil:
		return fmt.Errorf("compare layer %s, which was made before the machine was started again, with its manifest: %w", id, err)
	}
	return s.onDisk(id)
}

// onDisk removes the note of a layer.
func (s *Store) onDisk(id string) error {
	if err := os.Remove(filepath.Join(s.dir, id, unsyncedNote)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("note that layer %s is on disk: %w", id, err)
	}
	return nil
}

// Sync makes the layers that this process made or used survive a crash of the machine as they are, if the machine has at most
// limit bytes that are not written yet. Otherwise that is for a later process, when the kernel has written them.
func (s *Store) Sync(limit int64) error {
	s.mu.Lock()
	ids := slices.Collect(maps.Keys(s.unsynced))
	s.mu.Unlock()
	if len(ids) == 0 || unwritten() > limit {
		return nil
	}
	d, err := os.Open(s.dir)
	if err != nil {
		return fmt.Errorf("sync the layer store: %w", err)
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("sync the layer store: %w", err)
	}
	for _, id := range ids {
		_ = s.onDisk(id) // a note that stays costs a comparison
	}
	return nil
}

// unwritten returns how many bytes of files the machine has in memory and not on disk, proc_meminfo(5); 0 if that is not known.
func unwritten() int64 {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0
	}
	defer f.Close()
	var sum int64
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if name == "Dirty" || name == "Writeback" {
			kib, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(value, "kB")), 10, 64)
			sum += kib << 10
		}
	}
	return sum
}
