package layer

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"iter"
	"math"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// WhiteoutPrefix and OpaqueName are how a layer's tar says what is deleted (image-spec, layer.md, "Whiteouts").
const (
	WhiteoutPrefix = ".wh."
	OpaqueName     = ".wh..wh..opq"
	xattrRecord    = "SCHILY.xattr."
)

// Body writes the bytes of a File to w, and must write as many as its Size says.
type Body func(w io.Writer) error

// TarEntries yields the entries of a manifest with what writes their bytes, for WriteTar.
func TarEntries(m *Manifest, files Files) iter.Seq2[*Entry, Body] {
	return func(yield func(*Entry, Body) bool) {
		for e := range m.All() {
			if !yield(e, func(w io.Writer) error { return files.Copy(w, e) }) {
				return
			}
		}
	}
}

// WriteTar writes the tar of a layer whose entries come in the order of Compare, each File with its Body: the same bytes for the
// same entries. Headers are ustar where that holds everything, else PAX. The entries must not be changed afterwards, and
// bodies may be called from several goroutines at once.
func WriteTar(w io.Writer, entries iter.Seq2[*Entry, Body]) error {
	return writeTar(w, entries, header)
}

// writeTar is WriteTar with headers of another kind.
func writeTar(w io.Writer, entries iter.Seq2[*Entry, Body], header func(*Entry) *tar.Header) error {
	workers := min(runtime.GOMAXPROCS(0), maxTarWorkers)
	t := &tarWriter{to: w, header: header, queue: make(chan *tarRun, workers), free: make(chan *tarRun, workers+1), done: make(chan error, 1)}
	for range cap(t.free) {
		t.free <- &tarRun{ready: make(chan struct{}, 1)}
	}
	go t.write()
	run := <-t.free
	for e, body := range entries {
		if t.failed.Load() {
			break
		}
		large := e.Type == File && e.Size > maxTarRun/4
		if n := len(run.items); n > 0 && (large || run.large || run.size >= maxTarRun || n >= maxTarItems) {
			t.send(run)
			run = <-t.free
		}
		run.items = append(run.items, tarItem{e, body})
		run.size += e.Size
		run.large = large
	}
	t.send(run)
	close(t.queue)
	return <-t.done
}

// What a goroutine writes to memory at once: about so many bytes of so many entries. Opening and reading a small file takes
// longer than all that is done with its bytes, so several goroutines do that.
const (
	maxTarRun     = 1 << 20
	maxTarItems   = 512
	maxTarWorkers = 8
)

type tarItem struct {
	entry *Entry
	body  Body
}

// tarRun is entries that follow each other, which are written to memory, or one large file, which is not.
type tarRun struct {
	items []tarItem
	size  int64 // of the files
	large bool
	buf   bytes.Buffer
	err   error
	ready chan struct{}
}

// tarWriter puts runs together.
type tarWriter struct {
	to     io.Writer
	header func(*Entry) *tar.Header
	queue  chan *tarRun // in order, being written to memory
	free   chan *tarRun
	done   chan error
	failed atomic.Bool // nobody wants any more
}

func (t *tarWriter) send(run *tarRun) {
	t.queue <- run
	if run.large {
		run.ready <- struct{}{}
		return
	}
	go func() {
		if !t.failed.Load() {
			run.err = run.write(tar.NewWriter(&run.buf), t.header)
		}
		run.ready <- struct{}{}
	}()
}

// write writes the runs in their order, and the end of the tar.
func (t *tarWriter) write() {
	tw := tar.NewWriter(t.to)
	var err error
	for run := range t.queue {
		<-run.ready
		switch {
		case err != nil:
		case run.large:
			err = run.write(tw, t.header)
		case run.err != nil:
			err = run.err
		default:
			_, err = t.to.Write(run.buf.Bytes())
		}
		if err != nil {
			t.failed.Store(true)
		}
		clear(run.items)
		run.items, run.size, run.large, run.err = run.items[:0], 0, false, nil
		run.buf.Reset()
		t.free <- run
	}
	if err == nil {
		err = tw.Close()
	}
	t.done <- err
}

// write writes the entries with their padding.
func (r *tarRun) write(tw *tar.Writer, header func(*Entry) *tar.Header) error {
	for _, item := range r.items {
		e := item.entry
		if err := tw.WriteHeader(header(e)); err != nil {
			return fmt.Errorf("write the tar header of /%s: %w", e.Path, err)
		}
		if e.Opaque {
			opq := &tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(e.Path+"/"+OpaqueName, "/"), ModTime: time.Unix(0, 0)}
			if err := tw.WriteHeader(opq); err != nil {
				return fmt.Errorf("write the tar header of /%s: %w", e.Path, err)
			}
		}
		if e.Type != File || e.Size == 0 {
			continue
		}
		if err := item.body(tw); err != nil {
			return fmt.Errorf("write /%s to the tar: %w", e.Path, err)
		}
	}
	return tw.Flush()
}

func header(e *Entry) *tar.Header {
	h := &tar.Header{Name: e.Path, Mode: int64(e.Mode), Uid: int(e.UID), Gid: int(e.GID), ModTime: e.ModTime}
	switch e.Type {
	case File:
		h.Typeflag, h.Size = tar.TypeReg, e.Size
	case Dir:
		h.Typeflag, h.Name = tar.TypeDir, e.Path+"/"
		if e.Path == "" {
			h.Name = "./"
		}
	case Symlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.Link
	case Hardlink:
		h.Typeflag, h.Linkname = tar.TypeLink, e.Link
	case Char:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(e.Major), int64(e.Minor)
	case Block:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeBlock, int64(e.Major), int64(e.Minor)
	case Fifo:
		h.Typeflag = tar.TypeFifo
	case Whiteout:
		dir, base := path.Split(e.Path)
		return &tar.Header{Typeflag: tar.TypeReg, Name: dir + WhiteoutPrefix + base, ModTime: time.Unix(0, 0)}
	}
	if e.ModTime.Nanosecond() != 0 {
		h.Format = tar.FormatPAX // ustar has whole seconds only
	}
	if len(e.Xattrs) > 0 {
		h.PAXRecords = map[string]string{}
		for _, x := range e.Xattrs {
			h.PAXRecords[xattrRecord+x.Name] = x.Value
		}
	}
	return h
}

// HeaderError is what is wrong with an entry of an archive.
type HeaderError struct {
	Name string
	Msg  string
}

func (e *HeaderError) Error() string { return fmt.Sprintf("archive entry %q: %s", Clip(e.Name), e.Msg) }

// FromHeader returns the entry that a tar header describes, with the path cleaned of "." and of a leading slash. A path or
// link that leads out of the root by "..", a number out of range and an unknown type are a *HeaderError. ok is false for
// headers that are no entries, as global PAX headers. A Hardlink's Link is cleaned as the path is.
func FromHeader(h *tar.Header) (e Entry, ok bool, err error) {
	bad := func(format string, args ...any) (Entry, bool, error) {
		return Entry{}, false, &HeaderError{Name: h.Name, Msg: fmt.Sprintf(format, args...)}
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return Entry{}, false, nil
	}
	p, inside := CleanPath(h.Name)
	if !inside {
		return bad("the name leads out of the archive")
	}
	if len(p) >= MaxPath {
		return bad(PathTooLong)
	}
	e = Entry{Path: p, Mode: uint32(h.Mode) & 0o7777, ModTime: h.ModTime}
	if h.Uid < 0 || h.Uid > math.MaxUint32-1 || h.Gid < 0 || h.Gid > math.MaxUint32-1 {
		return bad("owner %d:%d is out of range", h.Uid, h.Gid)
	}
	e.UID, e.GID = uint32(h.Uid), uint32(h.Gid)
	switch h.Typeflag {
	case tar.TypeReg, '\x00', tar.TypeCont, tar.TypeGNUSparse:
		e.Type, e.Size = File, h.Size
	case tar.TypeDir:
		e.Type = Dir
	case tar.TypeSymlink:
		e.Type, e.Link, e.Mode = Symlink, h.Linkname, 0o777
		if h.Linkname == "" || len(h.Linkname) >= MaxPath || strings.IndexByte(h.Linkname, 0) >= 0 {
			return bad("the symbolic link's target is not a path")
		}
	case tar.TypeLink:
		target, inside := CleanPath(h.Linkname)
		if !inside || target == "" {
			return bad("the hard link to %q leads out of the archive", Clip(h.Linkname))
		}
		e.Type, e.Link = Hardlink, target
		if len(target) >= MaxPath {
			return bad("the hard link's target: %s", PathTooLong)
		}
	case tar.TypeChar, tar.TypeBlock:
		e.Type = Char
		if h.Typeflag == tar.TypeBlock {
			e.Type = Block
		}
		if h.Devmajor < 0 || h.Devmajor > 0xfff || h.Devminor < 0 || h.Devminor > 0xfffff {
			return bad("device %d:%d is out of range", h.Devmajor, h.Devminor)
		}
		e.Major, e.Minor = uint32(h.Devmajor), uint32(h.Devminor)
		if e.Type == Char && e.Major == 0 && e.Minor == 0 {
			return bad("character device 0:0 is how an overlay marks a deletion, and cannot be kept")
		}
	case tar.TypeFifo:
		e.Type = Fifo
	default:
		return bad("type %q is not known", h.Typeflag)
	}
	if p == "" && e.Type != Dir {
		return bad("the root of the archive is not a directory")
	}
	if strings.IndexByte(p, 0) >= 0 {
		return bad("the name has a NUL byte")
	}
	for key, value := range h.PAXRecords {
		if name, found := strings.CutPrefix(key, xattrRecord); found && KeepXattr(name) {
			// They are parts of the whole header, which would stay in memory with them.
			e.Xattrs = append(e.Xattrs, Xattr{Name: strings.Clone(name), Value: strings.Clone(value)})
		}
	}
	slices.SortFunc(e.Xattrs, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	return e, true, nil
}

// CleanPath returns a name of an archive as a path below its root, and whether it stays there: ".." may not lead above
// it. An absolute name starts at the root.
func CleanPath(name string) (string, bool) {
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == "." || clean == "/" {
		return "", true
	}
	return clean, clean != ".." && !strings.HasPrefix(clean, "../")
}

// Clip keeps a hostile name from filling an error.
func Clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
