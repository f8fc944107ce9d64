package passwd

import (
	"errors"
	"io"
	"io/fs"
	"reflect"
	"strings"
	"testing"
)

const users = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
1000:x:0:0:a name that looks like a number:/:/bin/sh

# a comment
short:x:7
app:x:1500:1501::/home/app:/bin/sh
big:x:4294967296:0::/:/bin/sh
bad:x:12a:0::/:/bin/sh
:x:99:99::/:/bin/sh
`

const groups = `root:x:0:
daemon:x:1:
adm:x:4:daemon,app
mail:x:8:
wheel:x:10:root
users:x:100:app,other
dup:x:1501:app
www-data:x:33:
huge:x:2147483648:
x
`

func text(s string) Opener {
	return func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(s)), nil }
}

func missing() (io.ReadCloser, error) {
	return nil, &fs.PathError{Op: "open", Path: "/etc/x", Err: fs.ErrNotExist}
}

func TestLookup(t *testing.T) {
	for _, c := range []struct {
		spec string
		want User
	}{
		{"", User{0, 0, []uint32{0, 10}, "/root"}},
		{":", User{0, 0, []uint32{0, 10}, "/root"}},
		{"root", User{0, 0, []uint32{0, 10}, "/root"}},
		{"0", User{0, 0, []uint32{0, 10}, "/root"}},
		{"33", User{33, 33, []uint32{33}, "/var/www"}},
		{"daemon", User{1, 1, []uint32{1, 4}, "/usr/sbin"}},
		{"daemon:", User{1, 1, []uint32{1, 4}, "/usr/sbin"}},
		{"daemon:mail", User{1, 8, []uint32{8}, "/usr/sbin"}},
		{"www-data:33", User{33, 33, []uint32{33}, "/var/www"}},
		{"2000:3000", User{2000, 3000, []uint32{3000}, "/"}},
		{"2000", User{2000, 0, []uint32{0}, "/"}},
		{":mail", User{0, 8, []uint32{8}, "/root"}},
		{"1000", User{1000, 0, []uint32{0}, "/"}},
		{"app", User{1500, 1501, []uint32{1501, 4, 100}, "/home/app"}},
		{"2147483647", User{MaxID, 0, []uint32{0}, "/"}},
		// Fields that are missing or no numbers are 0.
		{"bad", User{0, 0, []uint32{0}, "/"}},
		{"short", User{7, 0, []uint32{0}, ""}},
		{"app:x", User{1500, 0, []uint32{0}, "/home/app"}},
	} {
		got, err := Lookup(text(users), text(groups), c.spec)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q: %+v, %v; want %+v", c.spec, got, err, c.want)
		}
	}
}

// With Docker every line is an entry, so one that is nothing but a comment is a user with the number 0.
func TestLookupComment(t *testing.T) {
	want := User{0, 0, []uint32{0}, ""}
	if got, err := Lookup(text("# users\nroot:x:0:0::/root:\n"), missing, ""); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
}

func TestLookupErrors(t *testing.T) {
	var notFound *NotFoundError
	var outOfRange *RangeError
	for spec, target := range map[string]any{
		"ghost": &notFound, "daemon:ghosts": &notFound, "0:ghosts": &notFound, ":ghosts": &notFound,
		"2147483648": &outOfRange, "4294967296": &outOfRange, "-1": &outOfRange,
		"18446744073709551616": &outOfRange, "0:-1": &outOfRange, "0:4294967296": &outOfRange,
		"big": &outOfRange, "0:huge": &outOfRange,
	} {
		if u, err := Lookup(text(users), text(groups), spec); !errors.As(err, target) {
			t.Errorf("%q: %+v, %v; want %T", spec, u, err, target)
		}
	}
}

func TestLookupWithoutFiles(t *testing.T) {
	for spec, want := range map[string]User{
		"":    {0, 0, []uint32{0}, "/"},
		"5:6": {5, 6, []uint32{6}, "/"},
		"5":   {5, 0, []uint32{0}, "/"},
	} {
		if got, err := Lookup(missing, missing, spec); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v; want %+v", spec, got, err, want)
		}
	}
	var notFound *NotFoundError
	if _, err := Lookup(missing, missing, "app"); !errors.As(err, &notFound) {
		t.Error(err)
	}
}

func TestOwner(t *testing.T) {
	for _, c := range []struct {
		spec     string
		uid, gid uint32
	}{
		{"", 0, 0}, {":", 0, 0}, {"33:", 33, 33}, {"7:", 7, 7}, {"app:", 1500, 1501}, {"root", 0, 0}, {"root:root", 0, 0}, {":users", 0, 100},
		{":77", 0, 77}, {":root", 0, 0},
		{"1234", 1234, 1234}, {"+1", 1, 1}, {"7:8", 7, 8}, {"www-data", 33, 33}, {"app", 1500, 1501},
		{"www-data:users", 33, 100}, {"www-data:77", 33, 77}, {"77:users", 77, 100}, {"1000", 1000, 1000},
		{"2147483647:2147483647", 2147483647, 2147483647},
	} {
		uid, gid, err := Owner(text(users), text(groups), c.spec)
		if err != nil || uid != c.uid || gid != c.gid {
			t.Errorf("%q: %d:%d, %v; want %d:%d", c.spec, uid, gid, err, c.uid, c.gid)
		}
		if !NeedsFiles(c.spec) {
			uid, gid, err := Owner(missing, missing, c.spec)
			if err != nil || uid != c.uid || gid != c.gid {
				t.Errorf("%q without files: %d:%d, %v", c.spec, uid, gid, err)
			}
		}
	}
	// What is not there is an error that comes with the owner that BuildKit takes.
	var notFound *NotFoundError
	for _, c := range []struct {
		spec     string
		uid, gid uint32
	}{
		{"ghost", 0, 0}, {":ghosts", 0, 0}, {"root:ghosts", 0, 0}, {"7:ghosts", 7, 7}, {"app:ghosts", 1500, 1501}, {"ghost:users", 0, 100}, {"ghost:7", 0, 7},
		{"1:2:3", 1, 1}, {"ghost:ghosts", 0, 0}, {"2147483648", 0, 0}, {"4294967295", 0, 0}, {"1:3000000000", 1, 1}, {"-1", 0, 0}, {"1:-1", 1, 1},
		{"99999999999:2", 0, 2},
	} {
		if uid, gid, err := Owner(text(users), text(groups), c.spec); !errors.As(err, &notFound) || uid != c.uid || gid != c.gid {
			t.Errorf("%q: %d:%d, %v; want %d:%d", c.spec, uid, gid, err, c.uid, c.gid)
		}
	}
	var outOfRange *RangeError
	for spec, target := range map[string]any{
		"big": &outOfRange,
	} {
		if _, _, err := Owner(text(users), text(groups), spec); !errors.As(err, target) {
			t.Errorf("%q: %v", spec, err)
		}
		if _, _, err := Owner(missing, missing, spec); err == nil {
			t.Errorf("%q without files: no error", spec)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
func (zeros) Close() error               { return nil }

func TestFilesThatCannotBeRead(t *testing.T) {
	endless := func() (io.ReadCloser, error) { return zeros{}, nil }
	if _, err := Lookup(endless, missing, "app"); !errors.Is(err, ErrTooBig) {
		t.Error(err)
	}
	if _, _, err := Owner(missing, endless, ":users"); !errors.Is(err, ErrTooBig) {
		t.Error(err)
	}
	refused := func() (io.ReadCloser, error) { return nil, fs.ErrPermission }
	if _, err := Lookup(refused, missing, "app"); !errors.Is(err, fs.ErrPermission) {
		t.Error(err)
	}
}

func FuzzLookup(f *testing.F) {
	f.Add(users, groups, "app:users")
	f.Add("a:x:1:1:::\n", "a:x:1:a\n", "1")
	f.Add("a::::", "::::", "a:a")
	f.Fuzz(func(t *testing.T, p, g, spec string) {
		u, err := Lookup(text(p), text(g), spec)
		if err != nil {
			return
		}
		if u.UID > MaxID || u.GID > MaxID || len(u.Groups) == 0 || u.Groups[0] != u.GID {
			t.Errorf("%+v", u)
		}
		if name, _, _ := strings.Cut(spec, ":"); digits(name) && u.UID == 0 && strings.Trim(strings.TrimPrefix(name, "+"), "0") != "" {
			t.Errorf("%q became root", spec)
		}
		_, _, _ = Owner(text(p), text(g), spec)
	})
}
