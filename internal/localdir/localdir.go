// Package localdir reads a directory of the client, a build context, as a tree: what its .dockerignore excludes is not
// there, and the digests of unchanged files come from a cache. It does not know what the tree is for.
package localdir

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/ignore"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"golang.org/x/sys/unix"
)

// Dir is a directory of the client. It implements layer.Tree: everything in it belongs to user and group 0, and of extended attributes it
// has those of users, as for docker build. It is safe for concurrent use.
type Dir struct {
	ctx    context.Context
	name   string
	root   *rootfs.Root
	ignore *ignore.Matcher
	stats  *statCache
	now    func() time.Time // time.Now, or a test's clock
	hidden fileID           // of the directory that is not part of the tree; the zero fileID for none
	warn   func(text string)
	// modTime is what Canonical set, and keepGit; nil without.
	modTime *time.Time
	keepGit bool
	// reading is what Reading set.
	reading func(ctx context.Context, total int64) (count func(n int))
	copies

	mu    sync.Mutex
	infos map[string]dirInfo
	// places says of directories in which something was looked up whether they are in the hidden one; nothing if there is none.
	places map[string]bool
}

// dirInfo is what the ignore patterns say of a directory.
type dirInfo struct {
	ignored bool
	info    ignore.Info
	// hasAny is set if something in an excluded directory is part of the tree; it is valid once looked is set.
	hasAny, looked bool
}

// Open opens the directory name. cacheFile is where digests are kept from build to build; tmp is a directory on the same file
// system, for what is unfinished. m may be nil. The end of ctx ends everything that reads the directory, however large it and its files
// are.
func Open(ctx context.Context, name string, m *ignore.Matcher, cacheFile, tmp string) (*Dir, error) {
	root, err := rootfs.Open(name)
	if err != nil {
		return nil, err
	}
	return &Dir{
		ctx: ctx, name: name, root: root, ignore: m, stats: openStatCache(cacheFile, tmp), now: time.Now, infos: map[string]dirInfo{},
		warn: func(string) {}, places: map[string]bool{}, reading: func(context.Context, int64) func(int) { return nil },
	}, nil
}

// fileID tells a file from all others, whatever its path is.
type fileID struct{ dev, ino uint64 }

func idOf(st *unix.Stat_t) fileID { return fileID{uint64(st.Dev), st.Ino} }

// HideRoot takes kiln's root directory out of the tree, wherever it lies in it; the directory itself cannot be it. It is called before
// anything else.
func (d *Dir) HideRoot(root string) error {
	var st unix.Stat_t
	if err := unix.Stat(root, &st); err != nil {
		return &os.PathError{Op: "stat", Path: root, Err: err}
	}
	d.hidden = idOf(&st)
	hidden, err := d.within("")
	if hidden {
		err = errors.New("it is kiln's root directory")
	}
	return err
}

// shown returns the path on the host of a path of the directory.
func (d *Dir) shown(path string) string { return filepath.Join(d.name, path) }

// hides reports whether what was found is the hidden directory.
func (d *Dir) hides(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFDIR && d.hidden == idOf(st)
}

// within reports whether a directory is the hidden one, or in it.
func (d *Dir) within(dir string) (bool, error) {
	d.mu.Lock()
	hidden, ok := d.places[dir]
	d.mu.Unlock()
	if ok {
		return hidden, nil
	}
	if dir != "" {
		if hidden, err := d.within(layer.Parent(dir)); hidden || err != nil {
			return hidden, err
		}
	}
	f, err := d.root.OpenNoSymlinks(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if missing(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return false, &os.PathError{Op: "stat", Path: d.shown(dir), Err: err}
	}
	hidden = d.hides(&st)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.places[dir] = hidden
	return hidden, nil
}

// missing reports whether an error of OpenNoSymlinks says that nothing is at a path.
func missing(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// Warn sets what is told of files that change while they are read. It is called before anything else.
func (d *Dir) Warn(warn func(text string)) { d.warn = warn }

// Reading sets what is told when Sum is about to read files of so many bytes. The function that it returns is called with the number of
// bytes of each read, by several goroutines; nil is for none.
func (d *Dir) Reading(begin func(ctx context.Context, total int64) (count func(n int))) {
	d.reading = begin
}

// Canonical makes the tree what git would record of it, so that a checkout is the same under every umask and on every file system: files
// are 0644 or 0755, directories 0755, all with the time t, without extended attributes; hard links are files of their own; and what is
// named .git is not there, unless keepGit is set. It is called before anything else.
func (d *Dir) Canonical(t time.Time, keepGit bool) { d.modTime, d.keepGit = &t, keepGit }

// canonical applies Canonical to an entry.
func (d *Dir) canonical(e *layer.Entry) {
	if d.modTime != nil {
		e.Canonical(*d.modTime)
	}
}

// hidesGit reports whether a path is left out because of Canonical.
func (d *Dir) hidesGit(path string) bool {
	return d.modTime != nil && !d.keepGit && layer.InGitDir(path)
}

// Close frees the directory, after keeping the digests that were learnt in the cache file.
func (d *Dir) Close() error {
	return errors.Join(d.stats.save(), d.copies.remove(), d.root.Close())
}

// Ignored returns what of .dockerignore excludes a path of the directory, for errors to say so; false where nothing does.
func (d *Dir) Ignored(path string) (ignore.Reason, bool) { return d.ignore.Reason(path) }

// match returns whether a path is excluded, from what is known of its parent.
func (d *Dir) match(path string) (bool, ignore.Info) {
	if d.ignore == nil || path == "" {
		return false, ignore.Info{}
	}
	var parent ignore.Info
	if dir := layer.Parent(path); dir != "" {
		parent = d.dirInfo(dir).info
	}
	return d.ignore.Ignored(path, parent)
}

func (d *Dir) dirInfo(path string) dirInfo {
	d.mu.Lock()
	info, ok := d.infos[path]
	d.mu.Unlock()
	if ok {
		return info
	}
	info.ignored, info.info = d.match(path)
	d.mu.Lock()
	d.infos[path] = info
	d.mu.Unlock()
	return info
}

// visible reports whether an entry of this type at path is part of the tree. An excluded directory is if an exception may
// bring something in it back, and something is there.
func (d *Dir) visible(path string, t layer.Type) (bool, error) {
	if d.ignore == nil || path == "" {
		return true, nil
	}
	if t != layer.Dir {
		excluded, _ := d.match(path)
		return !excluded, nil
	}
	info := d.dirInfo(path)
	if !info.ignored {
		return true, nil
	}
	if info.looked || !d.ignore.MayReinclude(path) {
		return info.hasAny, nil
	}
	below, err := d.List(path)
	if err != nil {
		return false, err
	}
	info.hasAny, info.looked = len(below) > 0, true
	d.mu.Lock()
	defer d.mu.Unlock()
	d.infos[path] = info
	return info.hasAny, nil
}

// Lookup implements layer.Tree.
func (d *Dir) Lookup(path string) (layer.Entry, bool, error) {
	if err := ctxio.Ended(d.ctx); err != nil {
		return layer.Entry{}, false, err
	}
	if d.hidesGit(path) {
		return layer.Entry{}, false, nil
	}
	if c, ok := d.copies.of(path); ok {
		return c.entry, true, nil
	}
	f, err := d.root.OpenNoSymlinks(path, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if missing(err) {
		return layer.Entry{}, false, nil
	}
	if err != nil {
		return layer.Entry{}, false, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return layer.Entry{}, false, &os.PathError{Op: "stat", Path: d.shown(path), Err: err}
	}
	if d.hidden != (fileID{}) && path != "" {
		if hidden, err := d.within(layer.Parent(path)); err != nil || hidden || d.hides(&st) {
			return layer.Entry{}, false, err
		}
	}
	e, err := d.entry(int(f.Fd()), "", path, &st, new(finger))
	if err != nil {
		return layer.Entry{}, false, err
	}
	ok, err := d.visible(path, e.Type)
	return e, ok, err
}

// stat looks at the last component of path in the directory dir, whether or not .dockerignore excludes it.
func (d *Dir) stat(dir int, path string, at *finger) (layer.Entry, bool, error) {
	if c, ok := d.copies.of(path); ok {
		return c.entry, true, nil
	}
	var st unix.Stat_t
	name := path[len(layer.Parent(path)):]
	name = strings.TrimPrefix(name, "/")
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if err == unix.ENOENT {
			return layer.Entry{}, false, nil
		}
		return layer.Entry{}, false, &os.PathError{Op: "stat", Path: d.shown(path), Err: err}
	}
	if d.hides(&st) {
		return layer.Entry{}, false, nil
	}
	e, err := d.entry(dir, name, path, &st, at)
	return e, err == nil, err
}

// entry makes an entry of what was found out about name in the directory dir, or with "" about dir itself.
func (d *Dir) entry(dir int, name, path string, st *unix.Stat_t, at *finger) (layer.Entry, error) {
	e := layer.Entry{Path: path, Mode: st.Mode & 0o7777, ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec)}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		e.Type = layer.Dir
		var err error
		if e.Xattrs, err = d.xattrs(dir, name, path); err != nil {
			return e, err
		}
	case unix.S_IFREG:
		e.Type, e.Size = layer.File, st.Size
		if known, ok := d.stats.get(stampOf(st), at); ok && !d.volatile(st) {
			e.Digest = known.digest
			if known.xattrs {
				var err error
				if e.Xattrs, err = d.xattrs(dir, name, path); err != nil {
					return e, err
				}
			}
		}
		if st.Nlink > 1 {
			e.LinkID = strconv.FormatUint(uint64(st.Dev), 16) + ":" + strconv.FormatUint(st.Ino, 16)
		}
	case unix.S_IFLNK:
		e.Type, e.Mode = layer.Symlink, 0o777
		var err error
		if e.Link, err = readlink(dir, name); err != nil {
			return e, &os.PathError{Op: "readlink", Path: d.shown(path), Err: err}
		}
	case unix.S_IFCHR:
		e.Type, e.Major, e.Minor = layer.Char, unix.Major(st.Rdev), unix.Minor(st.Rdev)
	case unix.S_IFBLK:
		e.Type, e.Major, e.Minor = layer.Block, unix.Major(st.Rdev), unix.Minor(st.Rdev)
	case unix.S_IFIFO:
		e.Type = layer.Fifo
	default:
		// A socket becomes an empty file, as for docker build.
		e.Type = layer.File
	}
	d.canonical(&e)
	return e, nil
}

// readlink returns the target of a symbolic link. It is not a part of entry, for which the buffer on the stack would make the stack of
// each goroutine that lists a directory grow.
//
//go:noinline
func readlink(dir int, name string) (string, error) {
	var b [unix.PathMax]byte
	n, err := unix.Readlinkat(dir, name, b[:])
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

// List implements layer.Tree.
func (d *Dir) List(path string) ([]layer.Entry, error) {
	all, err := d.list(path)
	if err != nil || d.ignore == nil {
		return all, err
	}
	// The directory is closed by now: to see whether something is part of the tree may take many more, each in the one before.
	visible := all[:0]
	for _, e := range all {
		ok, err := d.visible(e.Path, e.Type)
		if err != nil {
			return nil, err
		}
		if ok {
			visible = append(visible, e)
		}
	}
	return visible, nil
}

// ListAll is List with what is excluded, for errors to say so.
func (d *Dir) ListAll(path string) ([]layer.Entry, error) { return d.list(path) }

// list is List without regard to what is excluded.
func (d *Dir) list(path string) ([]layer.Entry, error) {
	if list, ok := d.copies.listing(path); ok {
		return list, nil
	}
	list, err := d.read(path)
	if err == nil {
		d.copies.keepListing(path, list)
	}
	return list, err
}

// read is list from disk. A directory that was removed since it was found is empty.
func (d *Dir) read(path string) ([]layer.Entry, error) {
	f, err := d.root.OpenNoSymlinks(path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	out := make([]layer.Entry, 0, len(names))
	fd, at := int(f.Fd()), finger(0)
	for _, name := range names {
		if err := ctxio.Ended(d.ctx); err != nil {
			return nil, err
		}
		p := name
		if path != "" {
			p = path + "/" + name
		}
		if d.hidesGit(p) {
			continue
		}
		e, ok, err := d.stat(fd, p, &at)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, e)
		}
	}
	return out, nil
}
