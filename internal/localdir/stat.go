package localdir

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"sync"
	"time"

	"crypto/sha256"

	"github.com/kilnbuild/kiln/internal/atomicfile"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lease"
	"github.com/kilnbuild/kiln/internal/mapped"
	"golang.org/x/sys/unix"
)

// stamp is what tells one state of a file from another without reading it. The kernel changes ctime at every change of
// bytes or attributes, and no program can set it, so an edit that keeps size and mtime is seen.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime int64 // nanoseconds
}

func stampOf(st *unix.Stat_t) stamp {
	return stamp{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano()}
}

func compareStamps(a, b stamp) int {
	switch {
	case a.dev != b.dev:
		return less(a.dev < b.dev)
	case a.ino != b.ino:
		return less(a.ino < b.ino)
	}
	return 0
}

func less(b bool) int {
	if b {
		return -1
	}
	return 1
}

// settled is how old a file's last change must be for its stamp to be remembered: the kernel's stamps have the
// resolution of its tick, at most 10 ms, so a file that changed just now may change again and keep its stamp.
const settled = 2 * time.Second

const (
	statMagic  = "kiln stat cache 2\n"
	oldMagic   = "kiln stat cache 1\n" // of earlier versions, whose records say nothing of extended attributes
	recordSize = 5*8 + sha256.Size + 1
)

// statCache remembers by the stamps of files their digests, and whether they have extended attributes. Its file is: magic, records sorted
// by device and inode, and the SHA-256 of both. It is only a cache: whatever is wrong with the file, the file is as good as empty.
type statCache struct {
	path string
	tmp  string // a directory on the same file system

	mu    sync.RWMutex
	file  *mapped.File // nil for none
	data  []byte       // the records of the file
	fresh map[stamp]learnt
	room  int // how many there may be in fresh before they go into the file
}

// most is how many digests that were learnt are kept in memory, or an eighth of those in the file if that is more: so the file
// is written a few times each time it doubles.
const most = 1 << 16

// learnt is what is known of a file.
type learnt struct {
	digest layer.Digest
	xattrs bool // it has extended attributes
	// settled says that the stamp was old enough when the file was read, and not only now: a file that changed after it was
	// read, within the same tick, has the stamp of what was read.
	settled bool
}

func openStatCache(path, tmp string) *statCache {
	c := &statCache{path: path, tmp: tmp, fresh: map[stamp]learnt{}, room: most}
	// Verifying the file takes a while, in which it is rarely needed. Readers wait for the lock.
	c.mu.Lock()
	go func() {
		defer c.mu.Unlock()
		if c.open() == nil {
			lease.Used(path, nil)
		}
	}()
	return c
}

// open takes the file that is there in the place of the one before, if it is whole.
func (c *statCache) open() error {
	f, err := openStats(c.path)
	if err != nil {
		return err
	}
	if c.file != nil {
		err = c.file.Close()
	}
	c.file, c.data = f, f.Data[len(statMagic):]
	return err
}

// openStats opens a cache file that is whole.
func openStats(path string) (*mapped.File, error) {
	f, err := mapped.Open(path)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(f.Data, []byte(oldMagic)) {
		return nil, errors.Join(errOldStats, f.Close())
	}
	if !bytes.HasPrefix(f.Data, []byte(statMagic)) || (len(f.Data)-len(statMagic))%recordSize != 0 {
		return nil, errors.Join(errors.New("it is not a cache of digests"), f.Close())
	}
	return f, nil
}

// checkCache returns an error unless the file at path is whole.
func checkCache(path string) error {
	f, err := openStats(path)
	if errors.Is(err, errOldStats) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}

var errOldStats = errors.New("it is of an earlier version")

func (c *statCache) count() int { return len(c.data) / recordSize }

// is reports whether record i is of the file of s, in whatever state.
func (c *statCache) is(i int, s stamp) bool {
	b := c.data[i*recordSize:]
	return binary.LittleEndian.Uint64(b[8:]) == s.ino && binary.LittleEndian.Uint64(b) == s.dev
}

func (c *statCache) at(i int) (stamp, learnt) {
	b := c.data[i*recordSize:]
	n := func(k int) uint64 { return binary.LittleEndian.Uint64(b[8*k:]) }
	known := learnt{digest: layer.Digest(b[40 : 40+sha256.Size]), xattrs: b[recordSize-1] != 0, settled: true}
	return stamp{n(0), n(1), int64(n(2)), int64(n(3)), int64(n(4))}, known
}

// finger is where a look-up in a statCache ended. Files of a directory were mostly made one after the other, so the record
// of the next file mostly follows. The zero value is the beginning.
type finger int

// near is how many records after the finger are looked at before all are searched.
const near = 4

func (c *statCache) get(s stamp, at *finger) (learnt, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	i := min(int(*at), c.count()) // the file may be another by now
	for end := min(i+near, c.count()); i < end && !c.is(i, s); i++ {
	}
	if i == c.count() || !c.is(i, s) {
		i = sort.Search(c.count(), func(i int) bool {
			other, _ := c.at(i)
			return compareStamps(other, s) >= 0
		})
	}
	if i < c.count() {
		*at = finger(i + 1)
		if other, d := c.at(i); other == s {
			return d, true
		}
	}
	l, ok := c.fresh[s]
	return l, ok
}

// put keeps what is known of a file that had the stamp when it was opened, at the time opened, and when it had been read.
func (c *statCache) put(s stamp, l learnt, opened time.Time) {
	limit := opened.Add(-settled).UnixNano()
	c.mu.Lock()
	defer c.mu.Unlock()
	l.settled = s.ctime < limit && s.mtime < limit
	c.fresh[s] = l
	if len(c.fresh) < c.room {
		return
	}
	// What cannot be written takes memory.
	if c.write() == nil && c.open() == nil {
		maps.DeleteFunc(c.fresh, func(_ stamp, l learnt) bool { return l.settled })
	}
	c.room = len(c.fresh) + max(most, c.count()/8)
}

// save writes what was learnt.
func (c *statCache) save() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.write()
}

// write makes the file again, with what was learnt. A file that has changed takes the place of its earlier state.
func (c *statCache) write() error {
	var added []stamp
	for s, l := range c.fresh {
		if l.settled {
			added = append(added, s)
		}
	}
	if len(added) == 0 {
		return nil
	}
	slices.SortFunc(added, compareStamps)
	if err := os.MkdirAll(filepath.Dir(c.path), 0o700); err != nil {
		return err
	}
	return atomicfile.Write(c.path, c.tmp, func(w io.Writer) error { return c.encode(w, added) })
}

// encode writes the file: what is there already, with what was added, which is sorted.
func (c *statCache) encode(w io.Writer, added []stamp) error {
	h := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(w, h), 64<<10) // it keeps the first error for Flush
	out.WriteString(statMagic)
	record := func(s stamp, l learnt) {
		var b [40]byte
		for i, v := range []uint64{s.dev, s.ino, uint64(s.size), uint64(s.mtime), uint64(s.ctime)} {
			binary.LittleEndian.PutUint64(b[8*i:], v)
		}
		out.Write(b[:])
		out.Write(l.digest[:])
		var flag byte
		if l.xattrs {
			flag = 1
		}
		out.WriteByte(flag)
	}
	i := 0
	for _, s := range added {
		for ; i < c.count(); i++ {
			old, d := c.at(i)
			order := compareStamps(old, s)
			if order > 0 {
				break
			}
			if order < 0 {
				record(old, d)
			}
		}
		record(s, c.fresh[s])
	}
	for ; i < c.count(); i++ {
		record(c.at(i))
	}
	if err := out.Flush(); err != nil {
		return err
	}
	_, err := w.Write(h.Sum(nil))
	return err
}

// sum reads a file to its end and returns the digest of its bytes and their number.
func sum(f io.Reader, buf []byte) (d layer.Digest, n int64, err error) {
	h := sha256.New()
	n, err = io.CopyBuffer(h, struct{ io.Reader }{f}, buf)
	h.Sum(d[:0])
	return d, n, err
}
