package snapshot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"golang.org/x/sys/unix"
)

// A crash of the host may leave files that were not yet written to disk empty or full of zeros. kiln does not wait for the disk
// because of that. Instead a layer has a note with the ID of the boot in which it was made, and in that boot nothing can have
// been lost. In another boot the layer is compared with its manifest when it is first used, since a file that can be read then is
// on disk. The note is removed after that, or once the file system was synced.
const unsyncedNote = "unsynced"

// unsynced returns the boot in which a layer was made, if it may not be on disk yet, or "" if it is.
func (s *Store) unsynced(id layer.ID) (boot string, err error) {
	note, err := os.ReadFile(filepath.Join(s.Path(id), unsyncedNote))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", err
	case len(note) == 0:
		return "a boot that ended in a crash", nil
	}
	return string(note), nil
}

// survived compares a layer that was made in another boot of the host with its manifest. It returns an error if a crash has
// damaged the layer, or if ctx ends.
func (s *Store) survived(ctx context.Context, o *opened, form Form) error {
	o.blobs.Check(ctx, s.Path(o.id))
	if err := ctxio.Ended(ctx); err != nil {
		return err
	}
	var damage string
	compared, stop := context.WithCancel(ctx)
	defer stop()
	count, end := events.From(ctx).Counting(string(o.id), events.Comparing, 0)
	defer end()
	err := s.compare(compared, o.id, o.manifest, form, o.base, func(path, what string) {
		if damage == "" {
			damage = path + " " + what
		}
		stop()
	}, count)
	switch {
	case damage != "":
		return fmt.Errorf("%w: the host restarted before layer %s was completely written to disk: %s", layer.ErrDamaged, o.id, damage)
	case err != nil:
		return fmt.Errorf("compare layer %s, which was made before the host restarted, with its manifest: %w", o.id, err)
	}
	return s.onDisk(o.id)
}

// onDisk removes the note of a layer.
func (s *Store) onDisk(id layer.ID) error {
	if err := os.Remove(filepath.Join(s.Path(id), unsyncedNote)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("record that layer %s is on disk: %w", id, err)
	}
	return nil
}

// syncLimit is the maximum number of unwritten bytes of the host with which closing a job syncs the disk. Any disk writes that
// much in a fraction of a second.
const syncLimit = 8 << 20

// sync makes layers durable, if the host has at most limit unwritten bytes. Otherwise a later process does it, when the kernel
// has written them. The caller has the layers open.
func (s *Store) sync(ids []layer.ID, limit int64) error {
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

// unwritten returns the number of bytes of files that the host has in memory and not on disk, proc_meminfo(5), or 0 if it is
// unknown.
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
