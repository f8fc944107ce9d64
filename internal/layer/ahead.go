package layer

import (
	"crypto/sha256"
	"io"
)

// The sizes in bytes of a file that is read ahead, and of a run of entries after which it ends: so a run has at most 1 MiB and an entry's
// header.
const (
	aheadFile = 512 << 10
	aheadRun  = 512 << 10
	aheadRuns = 3
)

// ahead reads the entries of an archive in a goroutine of its own, in runs. While the files of one run are written, the next one is read
// and hashed. Its consumer sees what it would see without.
type ahead struct {
	from       *Reader
	full, free chan *run
	passed     chan struct{} // the consumer needs no more of a file that it reads itself
	stop, done chan struct{}

	run  *run // that the consumer is in
	at   int  // the index in it of the next entry
	item arrived
	rest []byte // what the consumer has not read of item.data
}

// run is a sequence of entries, of which the last one may be a file that is not read ahead.
type run struct {
	items []arrived
	size  int // of the files and of what else their entries have in memory
	buf   []byte
}

// arrived is the result of Reader.next.
type arrived struct {
	entry Entry
	err   error

	data    []byte
	dataErr error // after data
	digest  Digest
	own     bool // the consumer reads the bytes from the archive
}

// Ahead makes the Reader read on while its entries are used, in a goroutine of its own: up to 3 MiB, files of more than 512 KiB excepted. It
// must be called before Next, and Close when no more is read.
func (r *Reader) Ahead() {
	a := &ahead{
		from: r, full: make(chan *run, aheadRuns), free: make(chan *run, aheadRuns), passed: make(chan struct{}, 1),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	for range aheadRuns {
		a.free <- &run{}
	}
	r.ahead = a
	go a.read()
}

// Close ends reading ahead, and waits for a Read of the archive that is under way.
func (r *Reader) Close() {
	if r.ahead != nil {
		close(r.ahead.stop)
		<-r.ahead.done
	}
}

// Loaded returns the bytes of the entry that Next returned last and their digest, if they were read ahead. They are valid until Next is
// called again.
func (r *Reader) Loaded() (data []byte, digest Digest, ok bool) {
	if a := r.ahead; a != nil && a.item.data != nil && a.item.dataErr == nil {
		return a.item.data, a.item.digest, true
	}
	return nil, Digest{}, false
}

// Loaded returns the bytes of a file that body is at the beginning of, and their digest, if it has them in memory.
func Loaded(body io.Reader) (data []byte, digest Digest, ok bool) {
	if r, isReader := body.(*Reader); isReader {
		return r.Loaded()
	}
	return nil, Digest{}, false
}

// read fills runs until the end of the archive, an error, or Close.
func (a *ahead) read() {
	defer close(a.done)
	for {
		var next *run
		select {
		case next = <-a.free:
		case <-a.stop:
			return
		}
		own, end := a.fill(next)
		a.full <- next
		if end {
			return
		}
		if own {
			select {
			case <-a.passed:
			case <-a.stop:
				return
			}
		}
	}
}

// fill fills a run. own says that the consumer reads the last file, and end that nothing follows.
func (a *ahead) fill(to *run) (own, end bool) {
	for to.size < aheadRun {
		select {
		case <-a.stop:
			return false, true
		default:
		}
		e, err := a.from.next()
		item := arrived{entry: e, err: err}
		to.size += entryMemory + len(e.Path) + len(e.Link)
		for _, x := range e.Xattrs {
			to.size += len(x.Name) + len(x.Value)
		}
		if e.Type == File && err == nil {
			if item.own = e.Size > aheadFile; !item.own {
				item.data = to.room(int(e.Size))
				n, err := io.ReadFull(a.from.tar, item.data)
				item.data, item.dataErr = item.data[:n], err
				item.digest = sha256.Sum256(item.data)
				to.size += n
			}
		}
		to.items = append(to.items, item)
		if item.own || err != nil {
			return item.own, err != nil
		}
	}
	return false, false
}

// entryMemory is about how many bytes an entry without names takes.
const entryMemory = 512

// room returns room for n bytes.
func (r *run) room(n int) []byte {
	if cap(r.buf)-len(r.buf) < n {
		r.buf = make([]byte, 0, max(n, min(2*cap(r.buf), aheadRun+aheadFile), 32<<10)) // entries of the run keep what they have
	}
	from := len(r.buf)
	r.buf = r.buf[:from+n]
	return r.buf[from : from+n : from+n]
}

func (a *ahead) next() (Entry, error) {
	if a.item.err != nil {
		return Entry{}, a.item.err
	}
	if a.item.own {
		a.passed <- struct{}{}
	}
	for a.run == nil || a.at == len(a.run.items) {
		if a.run != nil {
			clear(a.run.items)
			a.run.items, a.run.size, a.run.buf = a.run.items[:0], 0, a.run.buf[:0]
			a.free <- a.run
		}
		a.run, a.at = <-a.full, 0
	}
	a.item = a.run.items[a.at]
	a.at++
	a.rest = a.item.data
	return a.item.entry, a.item.err
}

// Read returns the bytes of the entry that next returned last.
func (a *ahead) Read(p []byte) (int, error) {
	if a.item.own {
		return a.from.tar.Read(p)
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	if n > 0 || len(p) == 0 {
		return n, nil
	}
	if a.item.dataErr != nil {
		return 0, a.item.dataErr
	}
	return 0, io.EOF
}
