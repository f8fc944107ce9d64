// Package passwd looks up users and groups in an image's /etc/passwd and /etc/group for USER and COPY --chown. It does not access
// the file system: the caller opens the two files.
package passwd

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
)

// MaxFile is the maximum size of a passwd or group file in bytes. A larger file is refused with ErrTooBig.
const MaxFile = 10 << 20

// MaxID is the highest user or group ID that Lookup accepts, as in Docker.
const MaxID = 1<<31 - 1

// ErrTooBig is returned if a passwd or group file is larger than MaxFile.
var ErrTooBig = errors.New("larger than 10 MiB")

// User is the user that a process runs as.
type User struct {
	UID, GID uint32
	// Groups is the complete supplementary group list for setgroups(2); GID is its first element.
	Groups []uint32
	// Home is the home directory of the passwd entry, which may be "", or "/" if there is no entry.
	Home string
}

// NotFoundError is returned for a name that does not exist.
type NotFoundError struct {
	// Kind is "user" or "group".
	Kind string
	// Name is the name as it was written.
	Name string
}

func (e *NotFoundError) Error() string {
	return fmt.Sprintf("%s %q is not in the image's /etc/%s", e.Kind, e.Name, fileOf(e.Kind))
}

// RangeError is returned for a number that is not a valid ID: negative or too large.
type RangeError struct {
	// Kind is "user" or "group".
	Kind string
	// Value is the number as it was written.
	Value string
}

func (e *RangeError) Error() string {
	return fmt.Sprintf("%s ID %s is out of range", e.Kind, e.Value)
}

func fileOf(kind string) string {
	if kind == "group" {
		return "group"
	}
	return "passwd"
}

// An Opener opens /etc/passwd or /etc/group. An error that wraps fs.ErrNotExist stands for an empty file.
type Opener = func() (io.ReadCloser, error)

// Lookup resolves the argument of USER: "", "user", "user:group", "user:" or ":group", each a name or a number. A number is
// always an ID, even if a user has that name. Without a user, root's entry is used. Without a group, the group of the entry and
// the supplementary groups that list the user are used, and group 0 for a number without an entry. Errors wrap *NotFoundError,
// *RangeError, ErrTooBig or the error of an Opener or a Read.
func Lookup(passwd, group Opener, spec string) (User, error) {
	name, groupName, _ := strings.Cut(spec, ":")
	users, err := read(passwd, "passwd", 7)
	if err != nil {
		return User{}, err
	}
	groups, err := read(group, "group", 4)
	if err != nil {
		return User{}, err
	}

	var u User
	var entry []string
	uid, numeric, err := number("user", name)
	switch {
	case err != nil:
		return User{}, err
	case name == "" || numeric:
		u.UID = uid
		entry = findID(users, uid)
	default:
		if entry = findName(users, name); entry == nil {
			return User{}, &NotFoundError{Kind: "user", Name: name}
		}
		if u.UID, err = field("user", entry[2], MaxID); err != nil {
			return User{}, err
		}
	}
	u.Home = "/"
	if entry != nil {
		u.Home = entry[5]
	}

	if groupName != "" {
		if u.GID, err = findGroup(groups, groupName); err != nil {
			return User{}, err
		}
		u.Groups = []uint32{u.GID}
		return u, nil
	}
	if entry == nil {
		u.Groups = []uint32{0}
		return u, nil
	}
	if u.GID, err = field("group", entry[3], MaxID); err != nil {
		return User{}, err
	}
	u.Groups = []uint32{u.GID}
	for _, g := range groups {
		if !slices.Contains(strings.Split(g[3], ","), entry[0]) {
			continue
		}
		gid, err := field("group", g[2], MaxID)
		if err != nil {
			return User{}, err
		}
		if !slices.Contains(u.Groups, gid) {
			u.Groups = append(u.Groups, gid)
		}
	}
	return u, nil
}

// maxOwner is the highest ID that can own a file: 2^32-1 means "leave unchanged" in chown(2).
const maxOwner = 1<<32 - 2

// Owner resolves the value of COPY --chown, "user", "user:group", "user:" or ":group", each a name or a number. Without a group, the group
// of the user's entry is used if the user is a name, and the same number if it is a number; ":group" and "" give user 0. The name root is
// always 0, and numbers are resolved without reading the files; a number that does not fit into a signed 32-bit integer is a name. Errors
// are as for Lookup. With a *NotFoundError the owner is still valid, and is the one that BuildKit uses: user and group 0 for a missing
// user, and the user's group for a missing group.
func Owner(passwd, group Opener, spec string) (uid, gid uint32, err error) {
	name, groupName, _ := strings.Cut(spec, ":")
	uid, numeric := ownerNumber(name)
	gid = uid
	var missing error
	if name != "" && name != "root" && !numeric {
		users, err := read(passwd, "passwd", 7)
		if err != nil {
			return 0, 0, err
		}
		if entry := findName(users, name); entry == nil {
			missing = &NotFoundError{Kind: "user", Name: name}
		} else {
			if uid, err = field("user", entry[2], maxOwner); err != nil {
				return 0, 0, err
			}
			if gid, err = field("group", entry[3], maxOwner); err != nil {
				return 0, 0, err
			}
		}
	}
	if groupName == "" {
		return uid, gid, missing
	}
	given, numeric := ownerNumber(groupName)
	if numeric || groupName == "root" {
		return uid, given, missing
	}
	groups, err := read(group, "group", 4)
	if err != nil {
		return 0, 0, err
	}
	entry := findName(groups, groupName)
	if entry == nil {
		return uid, gid, cmp.Or[error](missing, &NotFoundError{Kind: "group", Name: groupName})
	}
	given, err = field("group", entry[2], maxOwner)
	return uid, given, cmp.Or(err, missing)
}

// ownerNumber parses s if Owner treats it as a number. -1 means "leave unchanged" in chown(2).
func ownerNumber(s string) (uint32, bool) {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n == -1 {
		return 0, false
	}
	return uint32(n), true
}

// NeedsFiles reports whether Owner reads the image's files to resolve spec.
func NeedsFiles(spec string) bool {
	name, groupName, _ := strings.Cut(spec, ":")
	for _, s := range []string{name, groupName} {
		if _, numeric := ownerNumber(s); s != "" && s != "root" && !numeric {
			return true
		}
	}
	return false
}

// digits reports whether s is a number with an optional sign.
func digits(s string) bool {
	s = strings.TrimLeft(s, "+-")
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// number parses s if it is a number of at most MaxID.
func number(kind, s string) (n uint32, ok bool, err error) {
	if !digits(s) {
		return 0, false, nil
	}
	n, err = id(kind, s, MaxID)
	return n, true, err
}

func id(kind, s string, limit uint64) (uint32, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "+"), 10, 32)
	if err != nil || n > limit {
		return 0, &RangeError{Kind: kind, Value: s}
	}
	return uint32(n), nil
}

// field parses the ID in a field of an entry. If it is not a number it is 0, as in Docker.
func field(kind, s string, limit uint64) (uint32, error) {
	if !digits(s) {
		return 0, nil
	}
	return id(kind, s, limit)
}

func findName(entries [][]string, name string) []string {
	for _, e := range entries {
		if e[0] == name {
			return e
		}
	}
	return nil
}

func findID(entries [][]string, want uint32) []string {
	for _, e := range entries {
		if n, err := field("", e[2], 1<<32-1); err == nil && n == want {
			return e
		}
	}
	return nil
}

func findGroup(groups [][]string, name string) (uint32, error) {
	if gid, ok, err := number("group", name); ok {
		return gid, err
	}
	g := findName(groups, name)
	if g == nil {
		return 0, &NotFoundError{Kind: "group", Name: name}
	}
	return field("group", g[2], MaxID)
}

// read returns the entries of a file, each with n fields; missing fields at the end are "". As in Docker every line that is not
// blank is an entry, including comments and lines with only a name.
func read(open Opener, name string, n int) ([][]string, error) {
	f, err := open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the image's /etc/%s: %w", name, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read the image's /etc/%s: %w", name, err)
	}
	if len(text) > MaxFile {
		return nil, fmt.Errorf("read the image's /etc/%s: %w", name, ErrTooBig)
	}
	var entries [][]string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		fields := strings.Split(line, ":")
		for len(fields) < n {
			fields = append(fields, "")
		}
		entries = append(entries, fields)
	}
	return entries, nil
}
