// Package status keeps what happens in a build of a client, from its beginning on, in the form in which BuildKit's API streams it: any
// number of readers get all of it, whenever they come, and go on until the build has ended.
//
// A Log is a list of control.StatusResponse, each of which is one change. Encoded, each follows its length as 32 bits, little-endian;
// this is also the form that BuildKit's history has for the log of a build. What does not fit into a buffer goes to a file without a name,
// so a build needs little memory, whatever its steps print.
package status

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"

	control "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/events"
)

const (
	// bufferSize is how many bytes of a Log are in memory before they go to its file.
	bufferSize = 256 << 10
	// maxMessage bounds what one message to a reader is made of, in bytes, unless a single change is larger.
	maxMessage = 1 << 20
	// maxSize is how many bytes a Log holds before output and transfers are left out. What remains, as the vertices, is bounded by the
	// size of the graph.
	maxSize = 256 << 20
	// maxChange bounds one encoded change that is read from a file, in bytes.
	maxChange = 64 << 20
)

// headerSize is that of the length before each change.
const headerSize = 4

// MediaType is that of an encoded Log in BuildKit's history.
const MediaType = "application/vnd.buildkit.status.v0"

// Log holds the changes of one build. It is an events.Sink. Its methods may be called from several goroutines.
type Log struct {
	tmp string

	mu     sync.Mutex
	view   view
	buf    []byte
	file   *os.File // nil as long as everything fits into buf
	inFile int64    // how many bytes are in the file, before those of buf
	// err says why there is no more, if the file cannot be written.
	err error
	// clipped says that maxSize is reached.
	clipped bool
	// closed says that nothing follows. users are the owner, until Release, and the readers.
	closed bool
	users  int
	// wake is closed by the next change, or Close; nil if nobody waits.
	wake chan struct{}
}

// NewLog returns an empty Log. Its file is going to be in the directory tmp, without a name. Release must be called.
func NewLog(tmp string) *Log {
	l := &Log{tmp: tmp, users: 1}
	l.view = view{vertices: map[digestKey]*vertex{}, shown: map[string]*shown{}, emit: l.append}
	return l
}

// Alias says which digests vertices have for the client, and the groups in which it shows some of those. A vertex can have several, and
// several vertices the same one. A vertex without any is shown under its own digest. It has to be called before a vertex starts.
func (l *Log) Alias(digests map[digestKey][]string, groups map[string]*pb.ProgressGroup) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.view.alias(digests, groups)
}

// Source gives the text of a file in which warnings have their place, by its name.
func (l *Log) Source(info *pb.SourceInfo) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.view.sources = append(slices.DeleteFunc(l.view.sources, func(s *pb.SourceInfo) bool { return s.Filename == info.Filename }), info)
}

// Event implements events.Sink.
func (l *Log) Event(e events.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.view.event(e)
	}
}

// Warn adds a warning that a front end has sent. It says false if there are too many already.
func (l *Log) Warn(w *control.VertexWarning) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.closed && l.view.warn(w)
}

// append adds a change. l.mu is held.
func (l *Log) append(change *control.StatusResponse) {
	if l.err != nil {
		return
	}
	if l.size() > maxSize && len(change.Vertexes) == 0 && len(change.Warnings) == 0 {
		if l.clipped {
			return
		}
		l.clipped = true
		for _, log := range change.Logs {
			log.Msg = fmt.Appendf(nil, "\n[output clipped, %d MiB of all steps reached]\n", maxSize>>20)
		}
	}
	n := change.SizeVT()
	at := len(l.buf)
	l.buf = slices.Grow(l.buf, headerSize+n)[:at+headerSize+n]
	binary.LittleEndian.PutUint32(l.buf[at:], uint32(n))
	if _, err := change.MarshalToSizedBufferVT(l.buf[at+headerSize:]); err != nil {
		l.buf, l.err = l.buf[:at], err
		return
	}
	if len(l.buf) > bufferSize {
		l.flush()
	}
	l.notify()
}

func (l *Log) size() int64 { return l.inFile + int64(len(l.buf)) }

// notify wakes the readers that wait.
func (l *Log) notify() {
	if l.wake != nil {
		close(l.wake)
		l.wake = nil
	}
}

// flush moves the buffer to the file.
func (l *Log) flush() {
	if l.file == nil {
		if l.file, l.err = unnamedFile(l.tmp); l.err != nil {
			return
		}
	}
	if _, l.err = l.file.Write(l.buf); l.err == nil {
		l.inFile += int64(len(l.buf))
		l.buf = l.buf[:0]
	}
}

// unnamedFile returns a file that is gone when it is closed.
func unnamedFile(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_RDWR|unix.O_CLOEXEC|unix.O_TMPFILE, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), filepath.Join(dir, "status")), nil
	}
	f, err := os.CreateTemp(dir, "status-")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

// Close says that the build has ended: vertices that have not are canceled, and readers come to their end.
func (l *Log) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.view.close()
	l.closed = true
	l.notify()
}

// Release ends the owner's use of the Log, after Close. It is there until the last reader has ended.
func (l *Log) Release() { l.use(-1) }

// Retain adds another user, who has to call Release as well.
func (l *Log) Retain() { l.use(1) }

// use adds n to the users.
func (l *Log) use(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users += n; l.users == 0 && l.file != nil {
		_ = l.file.Close() // it has no name
		l.file = nil
	}
}

// Summary returns how many vertices and warnings there are so far.
func (l *Log) Summary() Summary {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.view.summary
}

// Spans returns when vertices were worked on, in the order in which that ended; at most maxSpans.
func (l *Log) Spans() []Span {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.view.spans)
}

// ErrIncomplete is the error of a reader of a Log whose file could not be written.
var ErrIncomplete = errors.New("the progress of the build could not be kept")

// Read calls send with everything from the beginning on, several changes at a time, until the Log is closed. It returns the error of
// send, or the cause of ctx's end.
func (l *Log) Read(ctx context.Context, send func(*control.StatusResponse) error) error {
	l.use(1)
	defer l.use(-1)
	for at := int64(0); ; {
		message, next, wait, err := l.next(at)
		if err != nil {
			return err
		}
		if next == at {
			if wait == nil {
				return nil
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-wait:
			}
			continue
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := sendMessage(message, send); err != nil {
			return err
		}
		at = next
	}
}

// next returns the changes from an offset on as one message, and the offset after them. Where there are none, wait is closed when there
// are, and is nil at the end.
func (l *Log) next(at int64) (message []byte, next int64, wait <-chan struct{}, err error) {
	l.mu.Lock()
	if at >= l.inFile {
		defer l.mu.Unlock()
		if rest := l.buf[at-l.inFile:]; len(rest) > 0 && (l.err == nil || l.closed) {
			message, n, err := join(rest, nil)
			return message, at + int64(n), nil, err
		}
		switch {
		case l.closed && l.err != nil:
			return nil, at, nil, fmt.Errorf("%w: %w", ErrIncomplete, l.err)
		case l.closed:
			return nil, at, nil, nil
		case l.wake == nil:
			l.wake = make(chan struct{})
		}
		return nil, at, l.wake, nil
	}
	file, size := l.file, l.inFile
	l.mu.Unlock()
	message, next, err = read(file, at, size)
	return message, next, nil, err
}

// WriteTo writes all of a closed Log, encoded.
func (l *Log) WriteTo(w io.Writer) (int64, error) {
	l.mu.Lock()
	file, size, rest := l.file, l.inFile, l.buf
	l.mu.Unlock()
	var n int64
	if size > 0 {
		var err error
		if n, err = io.Copy(w, io.NewSectionReader(file, 0, size)); err != nil {
			return n, err
		}
	}
	m, err := w.Write(rest)
	return n + int64(m), err
}

// Replay calls send with everything in an encoded Log, of size bytes.
func Replay(ctx context.Context, r io.ReaderAt, size int64, send func(*control.StatusResponse) error) error {
	for at := int64(0); at < size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		message, next, err := read(r, at, size)
		if err != nil {
			return err
		}
		if err := sendMessage(message, send); err != nil {
			return err
		}
		at = next
	}
	return nil
}

// read returns the changes in a file of a size from an offset on, as one message, and the offset after them.
func read(r io.ReaderAt, at, size int64) (message []byte, next int64, err error) {
	data := make([]byte, min(size-at, maxMessage+headerSize))
	if _, err := r.ReadAt(data, at); err != nil {
		return nil, at, fmt.Errorf("read the progress of the build: %w", err)
	}
	message, n, err := join(data, func(need int) ([]byte, error) {
		if int64(need) > size-at || need > maxChange {
			return nil, fmt.Errorf("read the progress of the build: %w", errDamaged)
		}
		whole := make([]byte, need)
		_, err := r.ReadAt(whole, at)
		return whole, err
	})
	return message, at + int64(n), err
}

// errDamaged is the error of a file that is not an encoded Log.
var errDamaged = errors.New("it is damaged")

// join returns the changes at the beginning of data as one message of at most maxMessage bytes, or a single one, and the length of what
// they were encoded in. Of a first one that is not whole, more returns the whole, given its length. A message is the concatenation of
// encodings: its fields are all lists.
func join(data []byte, more func(need int) ([]byte, error)) (message []byte, length int, err error) {
	for len(data)-length >= headerSize {
		n := int(binary.LittleEndian.Uint32(data[length:]))
		end := length + headerSize + n
		if end > len(data) {
			break
		}
		if length > 0 && len(message)+n > maxMessage {
			break
		}
		message = append(message, data[length+headerSize:end]...)
		length = end
	}
	if length > 0 {
		return message, length, nil
	}
	if len(data) < headerSize || more == nil {
		return nil, 0, errDamaged
	}
	length = headerSize + int(binary.LittleEndian.Uint32(data))
	whole, err := more(length)
	if err != nil {
		return nil, 0, err
	}
	return whole[headerSize:], length, nil
}

func sendMessage(encoded []byte, send func(*control.StatusResponse) error) error {
	var message control.StatusResponse
	if err := message.UnmarshalVT(encoded); err != nil {
		return fmt.Errorf("decode the progress of the build: %w", err)
	}
	return send(&message)
}
