package part

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

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

// Report takes what a check of the root directory finds. It may be used by several goroutines.
type Report struct {
	// Root is the root directory.
	Root string
	// Repair says that what is wrong is to be removed where it can be made again.
	Repair bool

	found func(Finding)
	read  func(done, total int64)

	mu      sync.Mutex
	counts  map[Kind]int
	bytes   int64 // that were read
	done    int64 // of them in the part that is being checked
	total   int64 // of the part; 0 if it is not known
	damaged map[string]bool
}

// NewReport returns a Report that calls found for each finding, one at a time, and read as the parts are read.
func NewReport(root string, repair bool, found func(Finding), read func(done, total int64)) *Report {
	return &Report{Root: root, Repair: repair, found: found, read: read, counts: map[Kind]int{}, damaged: map[string]bool{}}
}

// Begin is called before each part: total is how many bytes there are to read, 0 if that is not known.
func (r *Report) Begin(total int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done, r.total = 0, total
}

// Read counts bytes that were read.
func (r *Report) Read(n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bytes, r.done = r.bytes+n, r.done+n
	r.read(r.done, r.total)
}

// Count counts n items that were checked.
func (r *Report) Count(k Kind, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[k] += n
}

// Counted returns how many items of a kind were checked.
func (r *Report) Counted(k Kind) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts[k]
}

// Bytes returns how many bytes were read.
func (r *Report) Bytes() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bytes
}

// SetDamaged notes that an item is damaged, or was before it was repaired, for the parts that are checked later.
func (r *Report) SetDamaged(k Kind, id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.damaged[string(k)+" "+id] = true
}

// Damaged reports whether SetDamaged was called for an item.
func (r *Report) Damaged(k Kind, id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.damaged[string(k)+" "+id]
}

// Found reports a finding.
func (r *Report) Found(f Finding) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.found(f)
}

// Problem reports what is wrong with a file, after mend, unless that is nil, has repaired it if it is to be. The path may be absolute.
func (r *Report) Problem(path, problem, effect string, mend func() error) error {
	f := Finding{Path: r.rel(path), Problem: problem, Effect: effect}
	if r.Repair && mend != nil {
		if err := mend(); err != nil {
			return fmt.Errorf("repair %s: %w", f.Path, err)
		}
		f.Repaired = true
	}
	r.Found(f)
	return nil
}

// rel returns a path below the root directory as a relative one.
func (r *Report) rel(path string) string {
	if rel, err := filepath.Rel(r.Root, path); err == nil && filepath.IsLocal(rel) {
		return rel
	}
	return path
}

// Foreign is the effect of a file that kiln did not make.
const Foreign = "kiln does not know it and leaves it alone: move it away"

// Dir checks a directory of the root directory, if it is there: that it is one, that nobody else can write to it, and that it holds only
// names that belong there; nil is for any.
func (r *Report) Dir(dir string, belongs func(name string) bool) error {
	path := filepath.Join(r.Root, dir)
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return r.Problem(dir, "is not a directory", "kiln cannot work with it: move it away", nil)
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		err := r.Problem(dir,
			fmt.Sprintf("belongs to user %d with mode %04o", st.Uid, st.Mode&0o7777),
			"others could change what kiln builds with",
			func() error {
				return errors.Join(os.Chown(path, os.Geteuid(), -1), os.Chmod(path, fs.FileMode(st.Mode&0o755)))
			})
		if err != nil {
			return err
		}
	}
	if belongs == nil {
		return nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !belongs(e.Name()) {
			if err := r.Problem(filepath.Join(dir, e.Name()), "does not belong here", Foreign, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// The patterns of names that are digests, or their first half.
var (
	Hash     = NewPattern(`^[0-9a-f]{64}$`)
	HalfHash = NewPattern(`^[0-9a-f]{32}$`)
)
