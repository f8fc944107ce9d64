package lockfile

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/material"
)

var (
	sum   = "sha256:" + strings.Repeat("0", 64)
	other = "sha256:" + strings.Repeat("1", 64)
	hash  = "sha1:" + strings.Repeat("2", 40)
	text  = "kiln-lock 1\n" +
		"git git@git.example:tool.git " + hash + "\n" +
		"git https://git.example/tool.git#v1 " + hash + " refs/tags/v1 " + hash + "\n" +
		"http https://files.example/tool.tar " + sum + "\n" +
		"image docker.io/library/debian:bookworm " + sum + " debian:bookworm docker.io/debian:bookworm\n" +
		"image registry.example/base:v1 " + other + " \"my base\"\n"
)

func TestRoundTrip(t *testing.T) {
	f, err := Parse("Dockerfile.lock", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(f.Encode()); got != text {
		t.Errorf("it is written as\n%s", got)
	}
	// The order in which entries come has no part in the file.
	entries := f.Entries()
	slices.Reverse(entries)
	base := Entry{Kind: material.Image, Name: "registry.example/base:v1", Digest: other, Written: []string{"my base", "registry.example/base:v1"}}
	entries = append(entries, base)
	if got := string(New(entries).Encode()); got != text {
		t.Errorf("made anew it is\n%s", got)
	}
	if e, ok := f.Find(material.Image, "docker.io/library/debian:bookworm"); !ok || !e.Called("debian:bookworm") || e.Called("debian") {
		t.Errorf("%v, %v", e, ok)
	}
	var none *File
	if len(none.Entries()) != 0 {
		t.Error("no file has entries")
	}
}

func TestParseErrors(t *testing.T) {
	line := func(s string) string { return "kiln-lock 1\n" + s + "\n" }
	for in, want := range map[string]string{
		"":                                   "f:1: this is not a lock file",
		"FROM x\n":                           `f:1: this is not a lock file: it does not begin with the line "kiln-lock 1"`,
		"kiln-lock 0\n":                      "f:1: this is not a lock file",
		"\ufeffkiln-lock 1\n":                "f:1: the lock file begins with a byte order mark",
		"kiln-lock 1\r\n":                    "f:1: the lock file has lines that end in CR LF",
		"kiln-lock 01\n":                     "f:1: this is not a lock file",
		"kiln-lock 2\nx\n":                   "f:1: the lock file has version 2, which a newer kiln wrote; this one reads version 1",
		"kiln-lock 1":                        "f:1: the line has no end",
		"kiln-lock 1\n\n":                    "f:2: the line is not KIND NAME DIGEST",
		line("# a comment"):                  `f:2: "#" is not a kind of source: there are git, http and image`,
		line("image  x"):                     "f:2: ",
		line("image debian:bookworm " + sum): "f:2: \"debian:bookworm\" is not the name of an image in full",
		line("image docker.io/library/debian:bookworm sha256:00"):          `f:2: "sha256:00" is not the digest of an image`,
		line("image r.example/a:1@" + sum + " " + other):                   "f:2: the name has another digest",
		line("image r.example/a:1 " + sum + " b a"):                        "f:2: the names that the Dockerfile has for the image are not",
		line("image r.example/a:1 " + sum + " a a"):                        "f:2: the names that the Dockerfile has",
		line("image r.example/a:1 " + sum + " "):                           "f:2: the line is not written as kiln lock writes it",
		line(`image "r.example/a:1" ` + sum):                               "f:2: the line is not written as kiln lock writes it",
		line(`image r.example/a:1 ` + sum + ` "a`):                         "f:2: the line is not KIND NAME DIGEST",
		line(`image r.example/a:1 ` + sum + ` "a"b`):                       "f:2: the line is not KIND NAME DIGEST",
		line("http https://u:p@h/x " + sum):                                "f:2: \"https://u:p@h/x\" is not the address of a file",
		line("http ftp://h/x " + sum):                                      "f:2: \"ftp://h/x\" is not the address",
		line("http https://h/x " + hash):                                   "is not the digest of a file",
		line("http https://h/x " + sum + " x"):                             "there is more behind the digest",
		line("git https://h/r.git#v1:dir " + hash):                         "is not the address of a repository and a ref",
		line("git https://u@h/r.git#v1 " + hash):                           "is not the address of a repository and a ref",
		line("git https://h/r.git sha1:00"):                                `"sha1:00" is not a commit`,
		line("git https://h/r.git sha256:" + strings.Repeat("2", 40)):      "is not a commit",
		line("git https://h/r.git " + hash + " refs/heads/x"):              "behind the commit there is not a ref and its object",
		line("git https://h/r.git " + hash + " main " + hash):              "are not a ref and its object",
		line("http https://h/b " + sum + "\nhttp https://h/a " + sum):      "f:3: the line is not in order: http https://h/a comes before",
		line("http https://h/b " + sum + "\nhttp https://h/b " + other):    "f:3: https://h/b is here twice",
		line("http https://h/b " + other + "\nhttp https://h/b " + sum):    "f:3: https://h/b is here twice",
		line("http https://h/" + strings.Repeat("x", maxLine) + " " + sum): "f:2: the line is longer than 65536 bytes",
		strings.Repeat("x", MaxSize+1):                                     "f:1: the lock file is larger than 4194304 bytes",
		many(maxLines + 1):                                                 "f:10002: the lock file has more than 10000 lines",
	} {
		if _, err := Parse("f", []byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%.100q): error %v, want %s", in, err, want)
		}
	}
	if _, err := Parse("f", []byte(many(maxLines))); err != nil {
		t.Error(err)
	}
}

// many returns a lock file with so many entries.
func many(n int) string {
	var b strings.Builder
	b.WriteString("kiln-lock 1\n")
	for i := range n {
		fmt.Fprintf(&b, "http https://h/%05d %s\n", i, sum)
	}
	return b.String()
}

func TestCompare(t *testing.T) {
	before, err := Parse("f", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	entries := before.Entries()[1:] // the first is removed
	entries[1].Digest = other
	entries[2].Written = nil
	after := New(append(entries, Entry{Kind: material.File, Name: "https://files.example/new", Digest: sum}))
	var got []string
	for _, c := range Compare(before, after) {
		got = append(got, c.String())
	}
	want := []string{
		"added http https://files.example/new " + sum,
		"updated http https://files.example/tool.tar " + sum + " -> " + other,
		"renamed image docker.io/library/debian:bookworm which the Dockerfile calls by this name",
		"removed git git@git.example:tool.git " + hash,
	}
	if !slices.Equal(got, want) {
		t.Errorf("the changes are\n%s", strings.Join(got, "\n"))
	}
	if kept := Kept(before, after); len(kept.Entries()) != len(before.Entries())+1 {
		t.Errorf("kept are\n%s", kept.Encode())
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(text))
	f.Add([]byte("kiln-lock 1\nimage \"a b\" sha256:0 \"\\x00\"\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		lock, err := Parse("f", data)
		if err != nil {
			return
		}
		if got := lock.Encode(); !bytes.Equal(got, data) {
			t.Errorf("%q is written as %q", data, got)
		}
		if got := New(lock.Entries()).Encode(); !bytes.Equal(got, data) {
			t.Errorf("%q is made anew as %q", data, got)
		}
	})
}
