// Package rootdir finds kiln's root directory once, checks who else could replace it, and has the names of what lies in it. It does not
// know what that is.
package rootdir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Enter makes dir, with its parents, if it is missing, and makes it the working directory of the process. From then on names that
// are relative lead below the directory that dir was at that moment, whatever becomes of its path: somebody who may rename a
// directory above it can take it away, and put another in its place, for those alone who come later. Programs that the process
// starts inherit it. All other paths have to be absolute before.
func Enter(dir string) error {
	begin()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	entered.root = dir
	return nil
}

// entered is the working directory before Enter, the root directory, and the paths that the user gave by what they became. It is for messages
// alone.
var entered struct {
	once        sync.Once
	start, root string

	mu    sync.Mutex
	given map[string]string
}

// begin notes the working directory, once.
func begin() {
	entered.once.Do(func() {
		if dir, err := os.Getwd(); err == nil { // else it was removed, and nobody can have named anything there
			entered.start = dir
		}
	})
}

// Absolute makes a path absolute that is relative to the working directory, and notes it for Shown; "" stays. It is called before Enter.
func Absolute(path *string) error {
	if *path == "" {
		return nil
	}
	begin()
	abs, err := filepath.Abs(*path)
	if err != nil {
		return err
	}
	entered.mu.Lock()
	defer entered.mu.Unlock()
	if entered.given == nil {
		entered.given = map[string]string{}
	}
	entered.given[abs], *path = *path, abs
	return nil
}

// Shown returns what people call a path of the host. One that the user gave is as they gave it, and one below that begins with it. Another
// absolute one in the directory that the process was started in becomes relative to that. A relative path is below the root directory once
// Enter was called, and becomes absolute.
func Shown(path string) string {
	if !filepath.IsAbs(path) {
		if entered.root == "" {
			return path
		}
		return filepath.Join(entered.root, path)
	}
	path = filepath.Clean(path)
	if shown, ok := asGiven(path); ok {
		return shown
	}
	begin()
	if rel, err := filepath.Rel(entered.start, path); err == nil && entered.start != "" && filepath.IsLocal(rel) {
		return rel
	}
	return path
}

// asGiven returns an absolute path as the user gave it, or the closest directory above it that they gave; false for none.
func asGiven(path string) (string, bool) {
	entered.mu.Lock()
	defer entered.mu.Unlock()
	for dir := path; len(entered.given) > 0; dir = filepath.Dir(dir) {
		if given, ok := entered.given[dir]; ok {
			if dir == path {
				return given, true
			}
			rel, err := filepath.Rel(dir, path)
			return filepath.Join(given, rel), err == nil
		}
		if dir == "/" {
			break
		}
	}
	return "", false
}

// Doubt is a directory or symbolic link on the way to the root directory with which somebody else can replace what is behind it.
type Doubt struct {
	// Path is the directory or link.
	Path string
	// Owner is the user that it belongs to; -1 if others than its owner may write to it.
	Owner int
}

// String says what is wrong with Path: "belongs to user 1000".
func (d Doubt) String() string {
	if d.Owner < 0 {
		return "can be written to by other users and is not sticky"
	}
	return fmt.Sprintf("belongs to user %d", d.Owner)
}

// maxLinks is how many symbolic links are followed, which is the kernel's limit.
const maxLinks = 40

// Doubts returns what on the way to dir, an absolute path, belongs neither to root nor to the user uid, or can be written to by
// others; a directory that is sticky, as /tmp is, can, since nobody removes there what belongs to somebody else. What does not
// exist yet is not looked at, and dir itself is not: see cas.Open. A group may write if it is root's or the owner's own, which
// by custom has the owner's number.
func Doubts(dir string, uid int) ([]Doubt, error) {
	var found []Doubt
	at, here := -1, "/"
	defer func() { unix.Close(at) }()
	at, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/", Err: err}
	}
	rest := strings.Split(filepath.Clean(dir), "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		if rest = rest[1:]; name == "" || name == "." {
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstat(at, &st); err != nil {
			return nil, &os.PathError{Op: "stat", Path: here, Err: err}
		}
		add(&found, here, &st, uid)
		next, err := unix.Openat(at, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			return found, nil
		}
		path := filepath.Join(here, name)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		if err := unix.Fstat(next, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK {
			unix.Close(at)
			at, here = next, path
			continue
		}
		target, err := readlink(next)
		unix.Close(next)
		if links++; err == nil && links > maxLinks {
			err = unix.ELOOP
		}
		if err != nil {
			return nil, &os.PathError{Op: "readlink", Path: path, Err: err}
		}
		if int(st.Uid) != 0 && int(st.Uid) != uid {
			found = appendOnce(found, Doubt{path, int(st.Uid)})
		}
		rest = append(strings.Split(target, "/"), rest...)
		if strings.HasPrefix(target, "/") {
			unix.Close(at)
			if at, err = unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
				return nil, &os.PathError{Op: "open", Path: "/", Err: err}
			}
			here = "/"
		}
	}
	return found, nil
}

// add adds what is doubtful about a directory.
func add(found *[]Doubt, path string, st *unix.Stat_t, uid int) {
	if int(st.Uid) != 0 && int(st.Uid) != uid {
		*found = appendOnce(*found, Doubt{path, int(st.Uid)})
		return
	}
	group := st.Mode&unix.S_IWGRP != 0 && st.Gid != 0 && st.Gid != st.Uid
	if (group || st.Mode&unix.S_IWOTH != 0) && st.Mode&unix.S_ISVTX == 0 {
		*found = appendOnce(*found, Doubt{path, -1})
	}
}

func appendOnce(list []Doubt, d Doubt) []Doubt {
	for _, have := range list {
		if have.Path == d.Path {
			return list
		}
	}
	return append(list, d)
}

// readlink returns the target of the symbolic link that fd is open on.
func readlink(fd int) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	return string(buf[:max(n, 0)]), err
}
