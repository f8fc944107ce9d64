// Package passwd looks up users and groups in an image's /etc/passwd and /etc/group, as USER and COPY --chown mean them.
// It knows nothing of file systems: the caller opens the two files.
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

// MaxFile is the size in bytes above which a passwd or group file is refused with ErrTooBig.
const MaxFile = 10 << 20

// MaxID is the highest number that Lookup takes for a user or a group, as Docker does.
const MaxID = 1<<31 - 1

// ErrTooBig says that a passwd or group file is larger than MaxFile.
var ErrTooBig = errors.New("larger than 10 MiB")

// User is what a process runs as.
type User struct {
	UID, GID uint32
	// Groups is the complete supplementary group list for setgroups(2); GID is its first element.
	Groups []uint32
	// Home is the home directory of the passwd entry, which may be "", and "/" if there is no entry.
	Home string
}

// NotFoundError says that a name is in neither file.
type NotFoundError struct {
	// Kind is "user" or "group".
	Kind string
	// Name is the name as it was written.
	Name string
}

func (e *NotFoundError) Error() string {
	return fmt.Sprintf("%s %q is not in the image's /etc/%s", e.Kind, e.Name, fileOf(e.Kind))
}

// RangeError says that a number is no id: negative or too large.
type RangeError struct {
	// Kind is "user" or "group".
	Kind string
	// Value is the number as it was written.
	Value string
}

func (e *RangeError) Error() string {
	return fmt.Sprintf("%s id %s is out of range", e.Kind, e.Value)
}

func fileOf(kind string) string {
	if kind == "group" {
		return "group"
	}
	return "passwd"
}

// An Opener opens /etc/passwd or /etc/group; an error that is fs.ErrNotExist means an empty file.
type Opener = func() (io.ReadCloser, error)

// Lookup resolves the argument of USER: "", "user", "user:group", "user:" or ":group", each a name or a number. A number is
// always an id, even if a user has that name. Without a user it is root's entry; without a group it is the entry's group and
// the supplementary groups that name the user, and 0 for a number that has no entry. Errors are *NotFoundError,
// *RangeError, ErrTooBig or what an Opener or a Read returned, wrapped.
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

// maxOwner is the highest owner a file can have: 2^32-1 means "leave as it is" to chown(2).
const maxOwner = 1<<32 - 2

// Owner resolves the value of COPY --chown, "user", "user:group" or ":group", each a name or a number. A user alone gives
// the group of its entry if it is a name and the same number if it is a number; ":group" and "" give user 0, and a colon
// without a group gives group 0. The name root is 0 whatever the files hold, and numbers do not read them; one that does not fit into
// 32 bits with a sign is a name.
// Errors are as with Lookup. With a *NotFoundError the owner is still valid: that which BuildKit takes, user and group 0 for a
// user that is not there, and the user's group for such a group.
func Owner(passwd, group Opener, spec string) (uid, gid uint32, err error) {
	name, groupName, hasGroup := strings.Cut(spec, ":")
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
		if hasGroup {
			gid = 0
		}
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

// ownerNumber parses s if Owner takes it for a number; -1 means "leave as it is" to chown(2).
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

// digits reports whether s is a number, with a sign perhaps.
func digits(s string) bool {
	s = strings.TrimLeft(s, "+-")
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// number parses s if it is written as a number, of at most MaxID.
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

// field parses the id in a field of an entry. One that is no number is 0, as with Docker.
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

// read returns the entries of a file, each with n fields; what is missing at an entry's end is "". As with Docker every line
// that is not blank is an entry, comments and names alone too.
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
