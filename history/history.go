// Package history keeps the events of builds in the root directory, for some days, and reads them. It does not know what builds do.
//
// builds/<id>.jsonl holds the events of one build, in the encoding of package events, from events.Build to events.Done. Output is
// not in it: events.Finished says under which key the cache keeps that. A file gets its name when it is complete, and no build waits for
// the disk: what a crash of the machine has cut off does not end with events.Done, and is no history.
//
// builds/<id>.record is what whoever serves builds to clients keeps of one beside its events; this package does not read it. As long as
// there is an empty file builds/<id>.pinEnd, the build is kept however old it is.
package history

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"golang.org/x/sys/unix"
)

const (
	// most is how many builds are kept however young they are, unless Retention.Entries says more: each build looks through their names.
	most = 1000
	// maxFile bounds the file of one build, in bytes. What is too much is counted.
	maxFile = 16 << 20
	// maxLine bounds one event, in bytes: a vertex may have many inputs.
	maxLine = 4 << 20
	// bufferSize is from how many bytes on the events of a build that is running are put into a file.
	bufferSize = 256 << 10
)

// Retention says which builds are kept, as buildkitd.toml does: a build is removed when it is older than Age and not one of the last
// Entries.
type Retention struct {
	Age     time.Duration
	Entries int
	// Off records no builds.
	Off bool
}

// Default is what BuildKit keeps: of the last 48 hours, and 50 builds in any case.
var Default = Retention{Age: 48 * time.Hour, Entries: 50}

// History is the directory. Its methods are safe for concurrent use, also by other processes.
type History struct {
	dir, tmp string
	keep     Retention
	unnamed  int // O_TMPFILE; in tests 0, which is as if the file system had no files without a name
}

// Open returns the history of a root directory, which may not have one yet. tmp is a directory of this process's own on the same file
// system.
func Open(root, tmp string, keep Retention) *History {
	return &History{dir: filepath.Join(root, rootdir.Builds), tmp: tmp, keep: keep, unnamed: unix.O_TMPFILE}
}

// idFormat is how an ID begins, so that IDs are in the order in which builds began.
const idFormat = "20060102T150405.000000000Z"

// The names of a build's files end with these.
const (
	extension = ".jsonl"
	recordEnd = ".record"
	pinEnd    = ".pin"
)

// split returns the ID of the build that a file in the directory is of, and how the name ends; false if it is of none. It is called for
// each of them in every build.
func split(name string) (id, end string, ok bool) {
	const size = len(idFormat) + len("-00000000")
	if len(name) <= size || name[8] != 'T' {
		return "", "", false
	}
	id, end = name[:size], name[size:]
	return id, end, end == extension || end == recordEnd || end == pinEnd
}

// isName reports whether a file in the directory has the events of a build.
func isName(s string) bool {
	_, end, ok := split(s)
	return ok && end == extension
}

// IDs returns the IDs of the builds that a root directory remembers, the last first, without opening it.
func IDs(root string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(root, rootdir.Builds))
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range slices.Backward(entries) {
		if isName(e.Name()) {
			ids = append(ids, strings.TrimSuffix(e.Name(), extension))
		}
	}
	return ids, nil
}

// Recorder writes the events of one build. It is an events.Sink.
type Recorder struct {
	history *History
	id      string
	ready   chan struct{} // closed when older builds have been removed, and there is a file

	mu    sync.Mutex
	buf   []byte
	file  *os.File // see create; only used when ready is closed
	named bool     // the file has a name, in tmp
	size  int64    // of what is in the file
	lost  int      // events that were too much
	done  bool     // the last event has come
	err   error
	space int64 // maxFile, or less in tests
}

// NewID returns the ID of a build that begins now.
func NewID() string { return fmt.Sprintf("%s-%08x", time.Now().UTC().Format(idFormat), rand.Uint32()) }

// Begin returns the Recorder of a build that begins now. Meanwhile builds are removed that are not to be kept any more, and the file is
// made: an ext4 that has just removed other files takes half a millisecond to find an inode. Close must be called.
func (h *History) Begin() *Recorder {
	r := &Recorder{
		history: h, id: NewID(), ready: make(chan struct{}), space: maxFile,
		buf: make([]byte, 0, 8<<10),
	}
	go func() {
		defer close(r.ready)
		if !h.keep.Off {
			r.create()
		}
		h.prune()
	}()
	return r
}

// ID is the name of the build.
func (r *Recorder) ID() string { return r.id }

// Event implements events.Sink.
func (r *Recorder) Event(e events.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.history.keep.Off {
		return
	}
	switch b := e.Body.(type) {
	case events.Log:
		return
	case events.Transfer:
		if !b.Done {
			return
		}
	case events.Done:
		r.done = true
		if r.lost > 0 {
			r.buf = events.Append(r.buf, events.Event{Time: e.Time, Body: events.Lost{Events: r.lost}})
		}
	default:
		if r.size+int64(len(r.buf)) > r.space {
			r.lost++
			return
		}
	}
	before := len(r.buf)
	if r.buf = events.Append(r.buf, e); len(r.buf)-before > maxLine {
		r.buf = r.buf[:before]
		r.lost++
	}
	if len(r.buf) > bufferSize {
		r.flush()
	}
}

// create makes the file, without a name where the file system can have such files (open(2), O_TMPFILE), and else in tmp.
func (r *Recorder) create() {
	h := r.history
	fd, err := unix.Open(h.dir, unix.O_WRONLY|unix.O_CLOEXEC|h.unnamed, 0o600)
	if err == unix.ENOENT {
		if r.err = os.MkdirAll(h.dir, 0o700); r.err != nil {
			return
		}
		fd, err = unix.Open(h.dir, unix.O_WRONLY|unix.O_CLOEXEC|h.unnamed, 0o600)
	}
	if err == nil {
		r.file = os.NewFile(uintptr(fd), r.path())
		return
	}
	r.named = true
	r.file, r.err = os.OpenFile(filepath.Join(h.tmp, r.id+extension), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

// path is where the file is going to be.
func (r *Recorder) path() string { return filepath.Join(r.history.dir, r.id+extension) }

// publish gives the file its name.
func (r *Recorder) publish() error {
	if r.named {
		return os.Rename(r.file.Name(), r.path())
	}
	// AT_EMPTY_PATH would need a privilege (linkat(2)).
	unnamed := fmt.Sprintf("/proc/self/fd/%d", r.file.Fd())
	if err := unix.Linkat(unix.AT_FDCWD, unnamed, unix.AT_FDCWD, r.path(), unix.AT_SYMLINK_FOLLOW); err != nil {
		return &os.LinkError{Op: "link", Old: unnamed, New: r.path(), Err: err}
	}
	return nil
}

// flush puts the buffer into the file.
func (r *Recorder) flush() {
	<-r.ready
	if r.err == nil {
		_, r.err = r.file.Write(r.buf)
	}
	r.size += int64(len(r.buf))
	r.buf = r.buf[:0]
}

// Close keeps the build, if its stream has come to its end. An error says that the build is not in the history.
func (r *Recorder) Close() error {
	<-r.ready
	r.mu.Lock()
	defer r.mu.Unlock()
	published := false
	if r.done && r.file != nil {
		r.flush()
		if r.err == nil {
			r.err = r.publish()
			published = r.err == nil
		}
	}
	if r.file != nil {
		r.err = errors.Join(r.err, r.file.Close())
		if r.named && !published {
			r.err = errors.Join(r.err, os.Remove(r.file.Name()))
		}
	}
	if r.err != nil {
		return fmt.Errorf("record the build: %w", r.err)
	}
	return nil
}

// IDs returns the builds, the last one first.
func (h *History) IDs() ([]string, error) { return h.with(extension) }

// Recorded returns the builds of which there is a recordEnd, the last one first.
func (h *History) Recorded() ([]string, error) { return h.with(recordEnd) }

// with returns the builds that have a file whose name ends so.
func (h *History) with(end string) ([]string, error) {
	builds, err := h.builds()
	if err != nil {
		return nil, fmt.Errorf("list the history of builds: %w", err)
	}
	var ids []string
	for _, b := range slices.Backward(builds) {
		if slices.Contains(b.ends, end) {
			ids = append(ids, b.id)
		}
	}
	return ids, nil
}

// build are the files of a build, by how their names end, in alphabetical order.
type build struct {
	id   string
	ends []string
}

func (b build) pinned() bool { return slices.Contains(b.ends, pinEnd) }

// builds returns the builds of which there is anything, the oldest first.
func (h *History) builds() ([]build, error) {
	dir, err := os.Open(h.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var all []build
	for _, name := range names {
		id, end, ok := split(name)
		if !ok {
			continue
		}
		if len(all) == 0 || all[len(all)-1].id != id {
			all = append(all, build{id: id})
		}
		last := &all[len(all)-1]
		last.ends = append(last.ends, end)
	}
	return all, nil
}

// prune removes builds that are not to be kept, and leaves room for one more. What cannot be removed is only a matter of space.
func (h *History) prune() {
	builds, err := h.builds()
	if err != nil {
		return
	}
	builds = slices.DeleteFunc(builds, build.pinned)
	room := 1
	if h.keep.Off {
		room = 0
	}
	floor, ceiling := max(0, h.keep.Entries-room), max(most, h.keep.Entries)-room
	for n := len(builds); n > floor; n-- {
		b := builds[len(builds)-n]
		if n <= ceiling {
			info, err := os.Lstat(h.file(b.id, b.ends[0]))
			if err == nil && time.Since(info.ModTime()) <= h.keep.Age {
				return // those that follow are younger
			}
		}
		_ = h.remove(b) // somebody else may be pruning too
	}
}

// file is the path of a file of a build.
func (h *History) file(id, end string) string { return filepath.Join(h.dir, id+end) }

// remove removes the files of a build.
func (h *History) remove(b build) error {
	var err error
	for _, end := range b.ends {
		if gone := os.Remove(h.file(b.id, end)); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}
	return err
}

// DamagedError is a file that is not the whole history of a build.
type DamagedError struct{ Reason string }

func (e *DamagedError) Error() string { return e.Reason }

// errLater is a file of a later version of kiln.
var errLater = errors.New("it was written by a later version of kiln")

// Read calls f for each event of a build until f returns an error, which it returns. A build that is not in the history is
// fs.ErrNotExist, a file that is not whole a *DamagedError.
func (h *History) Read(id string, f func(events.Event) error) error {
	if !isName(id+extension) || strings.Contains(id, "/") {
		return fs.ErrNotExist
	}
	return read(filepath.Join(h.dir, id+extension), f)
}

// soundEvents returns an error unless the file at path is the whole history of a build, or one that only a later version can read.
func soundEvents(path string) error {
	err := read(path, func(events.Event) error { return nil })
	if errors.Is(err, errLater) {
		return nil
	}
	return err
}

func read(path string, f func(events.Event) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewReaderSize(file, 64<<10)
	var last events.Body
	for n := 1; ; n++ {
		line, err := readLine(lines)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		e, err := events.Decode(line)
		if err != nil {
			return &DamagedError{fmt.Sprintf("line %d: %v", n, err)}
		}
		if build, ok := e.Body.(events.Build); ok && build.Version > events.Version {
			return errLater
		} else if ok != (n == 1) {
			return &DamagedError{fmt.Sprintf("line %d: a history begins with the event of a build, and has one", n)}
		}
		last = e.Body
		if err := f(e); err != nil {
			return err
		}
	}
	if _, ok := last.(events.Done); !ok {
		return &DamagedError{"it does not have the end of the build"}
	}
	return nil
}

// readLine returns the next line, io.EOF at the end.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return line, nil
		case err == io.EOF && len(line) == 0:
			return nil, io.EOF
		case err == io.EOF:
			return nil, &DamagedError{"its last line has no end"}
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		case len(line) > 2*maxLine:
			return nil, &DamagedError{fmt.Sprintf("a line is longer than %d MiB", 2*maxLine>>20)}
		}
	}
}
