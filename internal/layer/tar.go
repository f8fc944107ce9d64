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

// WhiteoutPrefix and OpaqueName mark deletions in a layer's tar (image-spec, layer.md, "Whiteouts").
const (
	WhiteoutPrefix = ".wh."
	OpaqueName     = ".wh..wh..opq"
	xattrRecord    = "SCHILY.xattr."
)

// Body writes the bytes of a File to w. It must write exactly Size bytes.
type Body func(w io.Writer) error

// TarEntries yields the entries of a manifest and their bodies, for WriteLayer.
func TarEntries(m *Manifest, files Files) iter.Seq2[*Entry, Body] {
	return func(yield func(*Entry, Body) bool) {
		for e := range m.All() {
			if !yield(e, func(w io.Writer) error { return files.Copy(w, e) }) {
				return
			}
		}
	}
}

// WriteLayer writes the tar of a layer. Entries must come in the order of Compare, each File with its Body. The output is
// determined by the entries. Headers are in ustar format if it can represent the entry, and otherwise in PAX format. Times are whole
// seconds, as in the layers of other builders: fractions would need PAX headers of 1 KiB for each small file. The entries must not be
// modified afterwards, and bodies may be called concurrently.
func WriteLayer(w io.Writer, entries iter.Seq2[*Entry, Body]) error {
	return writeTar(w, entries, layerHeader)
}

// WriteTar is like WriteLayer, but for times, which are exact.
func WriteTar(w io.Writer, entries iter.Seq2[*Entry, Body]) error {
	return writeTar(w, entries, header)
}

// writeTar is like WriteTar, with custom headers.
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

// The approximate number of bytes and entries that a goroutine writes to memory at once. Opening and reading a small file takes
// longer than processing its bytes, so several goroutines do it.
const (
	maxTarRun     = 1 << 20
	maxTarItems   = 512
	maxTarWorkers = 8
)

type tarItem struct {
	entry *Entry
	body  Body
}

// tarRun is a sequence of entries that is written to memory, or one large file, which is not.
type tarRun struct {
	items []tarItem
	size  int64 // of the files
	large bool
	buf   bytes.Buffer
	err   error
	ready chan struct{}
}

// tarWriter concatenates runs.
type tarWriter struct {
	to     io.Writer
	header func(*Entry) *tar.Header
	queue  chan *tarRun // in order, being written to memory
	free   chan *tarRun
	done   chan error
	failed atomic.Bool // stop producing runs
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

// write writes the runs in order, and the end of the tar.
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
		if err := writeHeaders(tw, e, header); err != nil {
			return err
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

func layerHeader(e *Entry) *tar.Header {
	rounded := *e
	rounded.ModTime = e.ModTime.Truncate(time.Second)
	return header(&rounded)
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

// HeaderError is returned for an invalid entry of an archive.
type HeaderError struct {
	Name string
	Msg  string
}

func (e *HeaderError) Error() string { return fmt.Sprintf("archive entry %q: %s", Clip(e.Name), e.Msg) }

// FromHeader returns the entry described by a tar header. "." and a leading slash are removed from its path and from the Link of
// a Hardlink. A path or link that leads out of the root with "..", a number out of range or an unknown type is a *HeaderError. ok
// is false for headers that are not entries, such as global PAX headers.
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
			// They are substrings of the whole header, which would stay in memory with them.
			e.Xattrs = append(e.Xattrs, Xattr{Name: strings.Clone(name), Value: strings.Clone(value)})
		}
	}
	slices.SortFunc(e.Xattrs, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	return e, true, nil
}

// CleanPath returns a name in an archive as a path relative to its root, and whether it stays in the root, that is, whether ".."
// does not lead above it. An absolute name starts at the root.
func CleanPath(name string) (string, bool) {
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == "." || clean == "/" {
		return "", true
	}
	return clean, clean != ".." && !strings.HasPrefix(clean, "../")
}

// Clip shortens a name for an error message, since an archive may contain very long ones.
func Clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
