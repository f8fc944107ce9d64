package snapshot

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/internal/scratch"
	"golang.org/x/sys/unix"
)

// Where a tree was just removed, ext4 without a journal takes long to make files: before it takes a free inode it looks, for each
// file, at all those of the group that were freed within the last minutes (recently_deleted in fs/ext4/ialloc.c), which is twenty
// times the work of all else. And it puts a new tree just there, since scratch has it choose the group with the fewest directories.
// So kiln looks how long a directory takes, and makes another if it is too long. One that is too slow stays in tmp as long as
// the process, so that its group is not chosen again.

// slowInode is the processor time from which on making a file is slow. It mostly takes some 10 µs; where it takes longer, as on a slow
// processor or in a traced process, a directory is slow that takes slowTimes as long as the quickest file.
const (
	slowInode = 60 * time.Microsecond
	slowTimes = 6
)

// maxSlow is how many slow directories one process replaces, and maxSpread how many it makes for one of them until it takes the whole disk
// for slow. slowName is what the names of those begin with that it keeps.
const (
	maxSlow   = 4096
	maxSpread = 64
	slowName  = "slow-"
)

// spreading makes directories where files can be made quickly.
type spreading struct {
	tmp  string
	slow time.Duration // slowInode
	once sync.Once
	mu   sync.Mutex
	left int           // how many directories may still be replaced
	fast time.Duration // the least processor time that a file took
}

// may reports whether there is any use in it.
func (s *spreading) may() bool {
	s.once.Do(func() {
		var st unix.Stat_t
		if unix.Stat(s.tmp, &st) == nil && st.Mode&unix.S_ISGID == 0 && journalless(&st) {
			s.left = maxSlow
		}
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.left > 0
}

// journalless reports whether a file is on an ext4 that is known to have no journal (kernel, fs/ext4/sysfs.c).
func journalless(st *unix.Stat_t) bool {
	device, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		return false
	}
	task, err := os.ReadFile(filepath.Join("/sys/fs/ext4", filepath.Base(device), "journal_task"))
	return err == nil && strings.TrimSpace(string(task)) == "<none>"
}

// dir makes a directory in tmp, in which files can be made quickly if that is possible.
func (s *spreading) dir(pattern string) (string, error) {
	for made := 1; ; made++ {
		name, err := os.MkdirTemp(s.tmp, pattern)
		if err != nil || !s.may() || s.inodeTime(name) < s.slow {
			return name, err
		}
		if made == maxSpread {
			s.use(maxSlow)
			return name, nil
		}
		if pattern == slowName {
			continue
		}
		if err := os.Rename(name, filepath.Join(s.tmp, slowName+filepath.Base(name))); err != nil {
			return "", err
		}
	}
}

// use takes n from left.
func (s *spreading) use(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left -= n
}

// inodeTime returns the processor time that a file takes in a directory; 0 if that cannot be found out.
func (s *spreading) inodeTime(dir string) time.Duration {
	least := time.Duration(math.MaxInt64)
	for range 2 {
		took, err := processorTime(func() error {
			fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
			if err == nil {
				unix.Close(fd)
			}
			return err
		})
		if err != nil {
			return 0
		}
		if least = min(least, took); least < s.slow {
			break
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fast == 0 || least < s.fast {
		s.fast = least
	}
	return least
}

// isSlow reports whether a directory that took this long is slow.
func (s *spreading) isSlow(took time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return took >= s.slow && took >= slowTimes*s.fast
}

// processorTime returns how long a thread works on f.
func processorTime(f func() error) (time.Duration, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var begun, ended unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &begun); err != nil {
		return 0, f()
	}
	err := f()
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ended)
	return time.Duration(ended.Nano() - begun.Nano()), err
}

// mkdir makes the directory name in dir.
func (s *spreading) mkdir(dir int, name string, mode uint32) error {
	if !s.may() {
		return unix.Mkdirat(dir, name, mode)
	}
	took, err := processorTime(func() error { return unix.Mkdirat(dir, name, mode) })
	if err != nil || !s.isSlow(took) {
		return err
	}
	s.use(1)
	other, err := s.dir(slowName)
	if err != nil {
		return nil // a slow one is one, too
	}
	// The other takes its place, and is kept in that of the other. Those that come next in dir go to groups of their own at once.
	if unix.Fchmodat(unix.AT_FDCWD, other, mode, 0) == nil {
		_ = unix.Renameat2(unix.AT_FDCWD, other, dir, name, unix.RENAME_EXCHANGE)
	}
	scratch.Spread("/proc/self/fd/" + strconv.Itoa(dir))
	return nil
}
