package client

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/ignore"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/received"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/tonistiigi/fsutil/types"
	"golang.org/x/sys/unix"
)

const (
	// maxAsked is how many files are asked for before they have come.
	maxAsked = 64
	// maxFiles bounds the files of one directory, each of which takes some 300 bytes of memory while they come.
	maxFiles = 1 << 20
	// maxNames bounds the names, link targets and attributes of one directory in bytes, all together.
	maxNames = 256 << 20
	// maxClientError bounds what is shown of a client's own error, in bytes.
	maxClientError = 4 << 10
	// minProof is how many files of a directory must be described as before where the client gives no key for the directory: with fewer, it
	// may be another one, and all are sent. Empty files do not count.
	minProof = 16
	// settled is how old the last change of a file has to be when it is asked for. One that is written later within the tick of the
	// client's clock has the same description.
	settled = 2 * time.Second
	// maxXattrName and maxXattr are XATTR_NAME_MAX and XATTR_SIZE_MAX of limits.h.
	maxXattrName = 255
	maxXattr     = 64 << 10
	// descriptions is the name of the file with the descriptions of all files: see llb.Local.Metadata.
	descriptions = ".fsutil-metadata"
)

// stream is the connection over which a directory is sent. The protocol is that of package fsutil: the client describes all files in order;
// kiln asks for the bytes of some by their numbers, and says when it has all.
type stream interface {
	SendMsg(any) error
	RecvMsg(any) error
}

// receiver receives one directory.
type receiver struct {
	stream stream
	cache  *received.Cache
	limit  layer.Limit
	// proof is how many files must be as they were before that is believed: see minProof.
	proof int
	// all has all files sent; metadata only those that whole matches.
	all, metadata bool
	whole         *ignore.Matcher
	// count is told how many bytes have come so far.
	count func(n int64, done bool)

	entries []layer.Entry
	known   received.Known
	dirs    dirs
	names   int64 // see maxNames
	bytes   int64 // of files
	devices int   // that were left out

	number  uint32    // of the next file that is described
	waiting []request // files that will be asked for
	matched []match   // files that are as they were, until there are enough of them
	asked   map[uint32]*incoming
	about   *received.File // has the descriptions; nil without metadata
	skipped []int          // with metadata, entries of directories that hold nothing so far
}

// request is a file that has to be sent: the entry at index.
type request struct {
	number uint32
	index  int
}

// match is a file that was sent before, with the digest that it had then.
type match struct {
	request
	digest layer.Digest
}

// incoming is a file that was asked for.
type incoming struct {
	*received.File
	index int
	at    time.Time // when it was asked for
}

// run receives all.
func (r *receiver) run(ctx context.Context) (*received.Tree, error) {
	r.asked = map[uint32]*incoming{}
	if r.metadata {
		r.about = r.cache.Create()
	}
	defer r.abort()
	// Requests are sent by another goroutine: the client may not read them before it has described more files.
	requests := make(chan uint32, maxAsked)
	sent := make(chan error, 1)
	go func() {
		var err error
		for number := range requests {
			if err == nil {
				err = r.stream.SendMsg(&types.Packet{Type: types.PACKET_REQ, ID: number})
			}
		}
		sent <- err
	}()
	err := r.packets(ctx, requests)
	close(requests)
	if err != nil {
		return nil, err // the other goroutine may wait for the client, until the caller ends the stream
	}
	if err := <-sent; err != nil {
		return nil, err
	}
	if err := r.finish(); err != nil {
		return nil, err
	}
	if r.about != nil {
		if err := r.addDescriptions(); err != nil {
			return nil, err
		}
	}
	return r.cache.Finish(r.entries)
}

// abort throws away what has come in part.
func (r *receiver) abort() {
	for _, f := range r.asked {
		f.Abort() // what stays is removed with the directory of the process
	}
	if r.about != nil {
		r.about.Abort()
	}
}

// packets receives until all files are described and those that were asked for have come.
func (r *receiver) packets(ctx context.Context, requests chan<- uint32) error {
	var p types.Packet
	var size int64
	defer func() { r.count(size, true) }()
	for described := false; !described || len(r.asked) > 0; {
		if err := ctxio.Ended(ctx); err != nil {
			return err
		}
		p.ResetVT()
		if err := r.stream.RecvMsg(&p); err != nil {
			if err == io.EOF {
				err = errors.New("the client ended before it had sent all")
			}
			return err
		}
		size += int64(p.SizeVT())
		r.count(size, false)
		var err error
		switch p.Type {
		case types.PACKET_STAT:
			switch {
			case described:
				err = errors.New("the client describes files after the last one")
			case p.Stat == nil:
				described = true
				r.last()
			default:
				err = r.describe(ctx, p.Stat)
			}
		case types.PACKET_DATA:
			err = r.data(&p)
		case types.PACKET_ERR:
			err = &ClientError{termtext.Clip(string(p.Data), maxClientError)}
		default:
			err = fmt.Errorf("the client sent a packet of type %d", p.Type)
		}
		if err != nil {
			return err
		}
		for len(r.waiting) > 0 && len(r.asked) < maxAsked {
			next := r.waiting[0]
			r.waiting = r.waiting[1:]
			r.asked[next.number] = &incoming{File: r.cache.Create(), index: next.index, at: time.Now()}
			requests <- next.number // there is room
		}
	}
	return nil
}

// ClientError is what went wrong at the client, in its words.
type ClientError struct{ Msg string }

// Error returns the words of the client.
func (e *ClientError) Error() string { return "the client says: " + e.Msg }

// finish says that all has come, and waits for the client's end.
func (r *receiver) finish() error {
	if err := r.stream.SendMsg(&types.Packet{Type: types.PACKET_FIN}); err != nil {
		return err
	}
	for {
		var p types.Packet
		switch err := r.stream.RecvMsg(&p); {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case p.Type != types.PACKET_FIN:
			return fmt.Errorf("the client sent a packet of type %d after the end", p.Type)
		}
	}
}

// describe takes the description of the next file.
func (r *receiver) describe(ctx context.Context, s *types.Stat) error {
	number := r.number
	r.number++
	if r.metadata && s.Path == descriptions {
		return nil
	}
	e, keep, err := r.entry(s)
	if err != nil {
		return err
	}
	if !keep {
		r.devices++
		return nil
	}
	wanted := true
	if r.metadata {
		if err := r.note(s); err != nil {
			return err
		}
		wanted, _ = r.whole.Ignored(e.Path, ignore.Info{})
		if !wanted && e.Type == layer.Dir {
			r.skipped = append(r.skipped, len(r.entries))
		} else if !wanted {
			return nil
		}
	}
	if e.Type == layer.Hardlink && !r.isFile(e.Link) {
		return &layer.PathError{Path: e.Path, Msg: fmt.Sprintf("it is a link to %q, which is no file that was sent before", layer.Clip(e.Link))}
	}
	if most := min(maxFiles, r.limit.Entries); len(r.entries) >= most {
		return &layer.LimitError{Msg: fmt.Sprintf("it has more than %d files", most)}
	}
	r.entries = append(r.entries, e)
	if e.Type != layer.File {
		return nil
	}
	asking := request{number, len(r.entries) - 1}
	d, ok := layer.Digest{}, false
	if !r.all {
		d, ok = r.cache.Digest(&r.known, &e)
	}
	if !ok {
		r.waiting = append(r.waiting, asking)
		return nil
	}
	r.matched = append(r.matched, match{asking, d})
	if e.Size > 0 && r.proof > 0 {
		r.proof--
	}
	if r.proof == 0 {
		return r.believe()
	}
	return nil
}

// believe takes the files that are as they were.
func (r *receiver) believe() error {
	for _, m := range r.matched {
		e := &r.entries[m.index]
		e.Digest = m.digest
		if err := r.add(e.Size); err != nil {
			return err
		}
	}
	r.matched = r.matched[:0]
	return nil
}

// last takes the end of the descriptions.
func (r *receiver) last() {
	for _, m := range r.matched {
		r.waiting = append(r.waiting, m.request)
	}
	r.matched = nil
}

// add counts bytes of files.
func (r *receiver) add(n int64) error {
	if r.bytes += n; r.bytes > r.limit.Size || n < 0 {
		return &layer.LimitError{Msg: fmt.Sprintf("its files have more than the %s that are allowed", termtext.Size(r.limit.Size))}
	}
	return nil
}

// data takes bytes of a file.
func (r *receiver) data(p *types.Packet) error {
	f := r.asked[p.ID]
	if f == nil {
		return fmt.Errorf("the client sent bytes of file %d, which it was not asked for", p.ID)
	}
	if len(p.Data) > 0 {
		if err := r.add(int64(len(p.Data))); err != nil {
			return err
		}
		_, err := f.Write(p.Data)
		return err
	}
	delete(r.asked, p.ID)
	digest, err := f.Commit()
	if err != nil {
		return err
	}
	e := &r.entries[f.index]
	e.Digest = digest
	// See settled. A time that is that of no clock, as archives that are to be equal have it, tells nothing either.
	e.Clock = e.Size != f.Size() || e.ModTime.After(f.at.Add(-settled)) || e.ModTime.Unix() <= 1
	e.Size = f.Size()
	return nil
}

// entry returns what is described as an entry; false for a device node, which nobody gets from a client.
func (r *receiver) entry(s *types.Stat) (e layer.Entry, keep bool, err error) {
	bad := func(why string) (layer.Entry, bool, error) {
		return e, false, &layer.PathError{Path: s.Path, Msg: why}
	}
	if why := badPath(s.Path); why != "" {
		return bad(why)
	}
	if why := r.dirs.enter(s.Path); why != "" {
		return bad(why)
	}
	mode := fs.FileMode(s.Mode)
	e = layer.Entry{Path: s.Path, Mode: layer.LinuxMode(mode), UID: s.Uid, GID: s.Gid, ModTime: time.Unix(0, s.ModTime)}
	r.names += int64(len(s.Path) + len(s.Linkname))
	if e.Xattrs, err = r.xattrs(s); err != nil {
		return e, false, err
	}
	if r.names > maxNames {
		return e, false, &layer.LimitError{Msg: "its names and attributes take more than the " + termtext.Size(maxNames) + " that are allowed"}
	}
	switch mode & fs.ModeType {
	case fs.ModeDir:
		e.Type = layer.Dir
		r.dirs.add(s.Path)
	case fs.ModeSymlink:
		if s.Linkname == "" || len(s.Linkname) >= layer.MaxPath || strings.IndexByte(s.Linkname, 0) >= 0 {
			return bad("it is a symbolic link with an invalid target")
		}
		e.Type, e.Mode, e.Link = layer.Symlink, 0o777, s.Linkname
	case fs.ModeNamedPipe:
		e.Type = layer.Fifo
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		return e, false, nil
	case 0:
		if s.Size < 0 {
			return bad("its size is negative")
		}
		e.Type, e.Size = layer.File, s.Size
		if s.Linkname != "" {
			e.Type, e.Link, e.Size = layer.Hardlink, s.Linkname, 0
		}
	default:
		return bad(fmt.Sprintf("it is neither a file nor a directory nor a link (%v)", mode&fs.ModeType))
	}
	return e, true, nil
}

// isFile reports whether a path is that of a file that was described before.
func (r *receiver) isFile(p string) bool {
	i, ok := sort.Find(len(r.entries), func(i int) int { return layer.Compare(p, r.entries[i].Path) })
	return ok && r.entries[i].Type == layer.File
}

// xattrs returns the attributes that a file of a context has: those of users.
func (r *receiver) xattrs(s *types.Stat) ([]layer.Xattr, error) {
	var all []layer.Xattr
	for _, name := range slices.Sorted(maps.Keys(s.Xattrs)) {
		r.names += int64(len(name) + len(s.Xattrs[name]))
		if strings.HasPrefix(name, "user.") && layer.KeepXattr(name) && strings.IndexByte(name, 0) < 0 {
			if len(name) > maxXattrName || len(s.Xattrs[name]) > maxXattr {
				return nil, &layer.PathError{Path: s.Path, Msg: "it has an extended attribute that is larger than Linux takes"}
			}
			all = append(all, layer.Xattr{Name: name, Value: string(s.Xattrs[name])})
		}
	}
	return all, nil
}

// badPath says what is wrong with a path, or "". A name that no layer can have is for the step to refuse that copies it.
func badPath(p string) string {
	switch {
	case p == "" || strings.IndexByte(p, 0) >= 0:
		return "the name is invalid"
	case len(p) >= layer.MaxPath:
		return layer.PathTooLong
	}
	for name := range strings.SplitSeq(p, "/") {
		if name == "" || name == "." || name == ".." {
			return "the path is not clean"
		}
		if len(name) > unix.NAME_MAX {
			return "the name is longer than 255 bytes"
		}
	}
	return ""
}

// dirs are the directories in which the last path lies, and the path: descriptions come in order, each after its directory.
type dirs struct {
	open []string
	last string
}

// enter goes on to a path, and says what is wrong with that, or "".
func (d *dirs) enter(p string) string {
	if layer.Compare(d.last, p) >= 0 {
		return "the client describes it out of order"
	}
	d.last = p
	for len(d.open) > 0 && !layer.Within(p, d.open[len(d.open)-1]) {
		d.open = d.open[:len(d.open)-1]
	}
	parent := layer.Parent(p)
	if parent != "" && (len(d.open) == 0 || d.open[len(d.open)-1] != parent) {
		return "the client did not describe the directory that it is in"
	}
	return ""
}

// add notes that the last path is a directory.
func (d *dirs) add(p string) { d.open = append(d.open, p) }

// note writes a description into the file of descriptions, after its length.
func (r *receiver) note(s *types.Stat) error {
	data, err := s.Marshal()
	if err == nil {
		err = r.add(int64(len(data)))
	}
	if err == nil {
		_, err = r.about.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(data))))
	}
	if err == nil {
		_, err = r.about.Write(data)
	}
	return err
}

// addDescriptions adds the file of descriptions, and leaves out the directories that hold nothing else.
func (r *receiver) addDescriptions() error {
	empty := map[int]bool{}
	for _, i := range slices.Backward(r.skipped) {
		next := i + 1
		for empty[next] {
			next++
		}
		empty[i] = next == len(r.entries) || !layer.Within(r.entries[next].Path, r.entries[i].Path)
	}
	kept := r.entries[:0]
	for i, e := range r.entries {
		if !empty[i] {
			kept = append(kept, e)
		}
	}
	digest, err := r.about.Commit()
	if err != nil {
		return err
	}
	e := layer.Entry{Path: descriptions, Type: layer.File, Mode: 0o644, Size: r.about.Size(), Digest: digest, ModTime: time.Unix(0, 0)}
	r.about = nil
	i, _ := slices.BinarySearchFunc(kept, e, func(a, b layer.Entry) int { return layer.Compare(a.Path, b.Path) })
	r.entries = slices.Insert(kept, i, e)
	return nil
}
