package store

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"golang.org/x/sys/unix"
)

// Where kiln.toml says nothing, the cache gives way when the disk is nearly full, unless it is small itself. As long as there is
// room, that costs a build one statfs(2).
const (
	defaultMinFree  = "10%"
	defaultReserved = "10%"
)

// collectEvery is how often the root directory is measured at most.
const collectEvery = time.Hour

// collection returns what kiln.toml asks for.
func (r *Root) collection() (o PruneOptions, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(r.Dir(), &st); err != nil {
		return o, fmt.Errorf("look at the file system of %s: %w", r.Name(), err)
	}
	disk := int64(st.Blocks) * st.Bsize
	o.All = true
	for _, size := range []struct {
		key, value string
		into       *int64
	}{{"maxUsedSpace", r.gc.MaxUsedSpace, &o.MaxUsed}, {"minFreeSpace", cmp.Or(r.gc.MinFreeSpace, defaultMinFree), &o.MinFree},
		{"reservedSpace", cmp.Or(r.gc.ReservedSpace, defaultReserved), &o.Reserved}} {
		if size.value == "" {
			continue
		}
		if *size.into, err = share(size.value, disk); err != nil {
			return o, fmt.Errorf("%s: [gc] %s = %q: %w", r.configFile, size.key, size.value, err)
		}
	}
	return o, nil
}

// share reads a size, as "20GB", or as "10%" of the disk.
func share(value string, disk int64) (int64, error) {
	percent, ok := strings.CutSuffix(value, "%")
	if !ok {
		return units.RAMInBytes(value)
	}
	n, err := strconv.ParseUint(percent, 10, 7)
	if err != nil || n > 100 {
		return 0, fmt.Errorf("want a size, as 20GB, or a share, as 10%%")
	}
	return disk / 100 * int64(n), nil
}

// Collect removes what has not been used for long, if the root directory is larger or the disk fuller than kiln.toml allows. What
// this process used stays. It measures the root directory only where it has reason to, and not more often than once an hour.
func (r *Root) Collect(ctx context.Context) error {
	if r.gc.Enabled != nil && !*r.gc.Enabled {
		return nil
	}
	o, err := r.collection()
	if err != nil {
		return err
	}
	if o.MaxUsed == 0 && r.free() >= o.MinFree {
		return nil
	}
	note := r.path(rootdir.Collected)
	if info, err := os.Lstat(note); err == nil && time.Since(info.ModTime()) < collectEvery {
		return nil
	}
	now := time.Now()
	if err := os.WriteFile(note, nil, 0o600); err == nil {
		_ = os.Chtimes(note, now, now) // if this fails, the next build measures again
	}
	_, err = r.Prune(ctx, o, func(part.Item) error { return nil })
	return err
}
