// Package lockfile reads and writes the file that says which digests the sources of a Dockerfile have: base images, files of servers,
// commits. It is made for people who compare it with an earlier one: a line for each source, in order, and nothing else.
//
//	kiln-lock 1
//	git https://git.example/tool.git#v1 sha1:… refs/tags/v1 sha1:…
//	http https://files.example/tool.tar sha256:…
//	image docker.io/library/debian:bookworm sha256:… debian:bookworm
//
// The first line has the version of the format. A line has the kind of the source, its name in full, and its digest: that of an image is
// the one of its index, if it has one, so it stands for every platform. Behind that are, of an image, the names that the Dockerfile has for
// it, and of a commit, the full name of the ref that it was found by and the object which that named. Fields are separated by single
// spaces. Lines are sorted by their bytes, as by LC_ALL=C sort.
//
// The package fetches nothing and does not know Dockerfiles.
package lockfile

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/material"
	"github.com/kilnbuild/kiln/internal/remoteurl"
)

const (
	// Suffix is what the name of a lock file has behind that of the Dockerfile.
	Suffix = ".lock"
	// Version is that of the format which this kiln writes, and the newest one that it reads.
	Version = 1
	// MaxSize bounds a lock file in bytes, and maxLines its lines.
	MaxSize  = 4 << 20
	maxLines = 10000
	// maxLine bounds a line in bytes: a name has at most 8 KiB, and an image few names.
	maxLine = 64 << 10

	header = "kiln-lock"
)

// Entry is one source.
type Entry struct {
	// Kind is material.Image, material.File or material.Git.
	Kind material.Kind
	// Name and Digest are those of a material.Material.
	Name, Digest string
	// Written are the names that a Dockerfile has for an image, where they differ from Name, in order.
	Written []string
	// Ref and Object are those of a material.Material.
	Ref, Object string
}

// Of returns a material as an entry; false if lock files have none of that kind.
func Of(m material.Material) (Entry, bool) {
	e := Entry{Kind: m.Kind, Name: m.Name, Digest: m.Digest}
	if m.Ref != "" {
		e.Ref, e.Object = m.Ref, material.Commit(m.Object)
	}
	return e, kinds[m.Kind] != nil
}

// Same reports whether two entries say the same of a source, whatever Dockerfiles call it.
func (e Entry) Same(other Entry) bool {
	return e.Kind == other.Kind && e.Name == other.Name && e.Digest == other.Digest && e.Ref == other.Ref && e.Object == other.Object
}

// Hash returns the hash of a digest of a commit or object, without its algorithm.
func Hash(digest string) string {
	_, hash, _ := strings.Cut(digest, ":")
	return hash
}

// fields returns the fields of the entry's line.
func (e Entry) fields() []string {
	f := []string{string(e.Kind), e.Name, e.Digest}
	if e.Ref != "" {
		f = append(f, e.Ref, e.Object)
	}
	return append(f, e.Written...)
}

// line returns the entry's line, without an end. A field that is not printable as it is, is quoted as in Go.
func (e Entry) line() string {
	fields := e.fields()
	for i, f := range fields {
		if quoted := strconv.QuoteToASCII(f); quoted != `"`+f+`"` || strings.Contains(f, " ") || f == "" {
			fields[i] = quoted
		}
	}
	return strings.Join(fields, " ")
}

// File is what a lock file has. A nil File has nothing.
type File struct {
	entries []Entry
	lines   []string
}

// New returns a file with the entries. Those of one kind and name have to be the same but for Written, and become one.
func New(entries []Entry) *File {
	entries = slices.Clone(entries)
	slices.SortStableFunc(entries, func(a, b Entry) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name)) })
	f := &File{}
	for _, e := range entries {
		if n := len(f.entries); n > 0 && f.entries[n-1].Kind == e.Kind && f.entries[n-1].Name == e.Name {
			f.entries[n-1].Written = append(f.entries[n-1].Written, e.Written...)
			continue
		}
		e.Written = slices.Clone(e.Written)
		f.entries = append(f.entries, e)
	}
	for i := range f.entries {
		e := &f.entries[i]
		e.Written = slices.DeleteFunc(e.Written, func(name string) bool { return name == e.Name })
		slices.Sort(e.Written)
		e.Written = slices.Compact(e.Written)
	}
	slices.SortFunc(f.entries, func(a, b Entry) int { return cmp.Compare(a.line(), b.line()) })
	for _, e := range f.entries {
		f.lines = append(f.lines, e.line())
	}
	return f
}

// Entries returns the entries in the order of the file.
func (f *File) Entries() []Entry {
	if f == nil {
		return nil
	}
	return slices.Clone(f.entries)
}

// Find returns the entry of a source; false if there is none.
func (f *File) Find(kind material.Kind, name string) (Entry, bool) {
	if f == nil {
		return Entry{}, false
	}
	for _, e := range f.entries {
		if e.Kind == kind && e.Name == name {
			return e, true
		}
	}
	return Entry{}, false
}

// Encode returns the text of the file.
func (f *File) Encode() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %d\n", header, Version)
	for _, line := range f.lines {
		b.WriteString(line)
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// Error is a lock file that cannot be used.
type Error struct {
	// File is its name, and Line the line that is wrong, from 1.
	File string
	Line int
	// Why says what is wrong.
	Why string
}

func (e *Error) Error() string { return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Why) }

// Parse reads a lock file; name is what errors call it. What Parse accepts, Encode writes again byte for byte. The error is an *Error.
func Parse(name string, data []byte) (*File, error) {
	at := 1
	fail := func(format string, args ...any) (*File, error) {
		return nil, &Error{File: name, Line: at, Why: fmt.Sprintf(format, args...)}
	}
	if len(data) > MaxSize {
		return fail("the lock file is larger than %d bytes", MaxSize)
	}
	text := string(data)
	first, rest, ok := strings.Cut(text, "\n")
	version, isLock := strings.CutPrefix(first, header+" ")
	n, err := strconv.ParseUint(version, 10, 32)
	switch {
	case strings.HasPrefix(first, "\ufeff"):
		return fail("the lock file begins with a byte order mark, which an editor has added: remove it, or run kiln lock again")
	case strings.HasSuffix(first, "\r"):
		return fail("the lock file has lines that end in CR LF: they end in LF, so an editor, or git's core.autocrlf, has changed it")
	case !isLock || err != nil || n == 0 || strconv.FormatUint(n, 10) != version:
		return fail("this is not a lock file: it does not begin with the line %q", fmt.Sprintf("%s %d", header, Version))
	case n > Version:
		return fail("the lock file has version %d, which a newer kiln wrote; this one reads version %d", n, Version)
	case !ok:
		return fail("the line has no end")
	}
	f := &File{}
	var last Entry
	for line := range strings.Lines(rest) {
		if at++; at > maxLines+1 {
			return fail("the lock file has more than %d lines", maxLines)
		}
		line, ok := strings.CutSuffix(line, "\n")
		if !ok {
			return fail("the line has no end")
		}
		e, why := parseLine(line)
		if why != "" {
			return fail("%s", why)
		}
		if at > 2 {
			switch before := f.lines[len(f.lines)-1]; {
			case e.Kind == last.Kind && e.Name == last.Name:
				return fail("%s is here twice", e.Name)
			case line < before:
				return fail("the line is not in order: %s %s comes before %s %s", e.Kind, e.Name, last.Kind, last.Name)
			}
		}
		f.entries, f.lines, last = append(f.entries, e), append(f.lines, line), e
	}
	return f, nil
}

// kinds are the kinds of entries, with what checks one.
var kinds = map[material.Kind]func(e *Entry, more []string) (why string){
	material.Image: image, material.File: file, material.Git: commit,
}

// parseLine reads a line, and says why it cannot be read.
func parseLine(line string) (e Entry, why string) {
	if len(line) > maxLine {
		return e, fmt.Sprintf("the line is longer than %d bytes", maxLine)
	}
	fields, ok := split(line)
	if !ok || len(fields) < 3 {
		return e, "the line is not KIND NAME DIGEST, separated by single spaces"
	}
	e = Entry{Kind: material.Kind(fields[0]), Name: fields[1], Digest: fields[2]}
	check := kinds[e.Kind]
	if check == nil {
		return e, fmt.Sprintf("%q is not a kind of source: there are git, http and image", fields[0])
	}
	if why := check(&e, fields[3:]); why != "" {
		return e, why
	}
	if e.line() != line {
		return e, "the line is not written as kiln lock writes it: " + e.line()
	}
	return e, ""
}

// split returns the fields of a line.
func split(line string) (fields []string, ok bool) {
	for {
		field, rest, more := strings.Cut(line, " ")
		if strings.HasPrefix(line, `"`) {
			quoted, err := strconv.QuotedPrefix(line)
			if err != nil {
				return nil, false
			}
			if field, err = strconv.Unquote(quoted); err != nil {
				return nil, false
			}
			rest, more = strings.CutPrefix(line[len(quoted):], " ")
			if !more && rest != "" {
				return nil, false
			}
		}
		fields = append(fields, field)
		if !more {
			return fields, true
		}
		line = rest
	}
}

// image checks an image: more are the names that Dockerfiles have for it.
func image(e *Entry, more []string) string {
	n, err := imagename.Parse(e.Name)
	switch {
	case err != nil || n.String() != e.Name:
		return fmt.Sprintf("%q is not the name of an image in full, as docker.io/library/debian:bookworm", e.Name)
	case !isSHA256(e.Digest):
		return fmt.Sprintf("%q is not the digest of an image: sha256: and 64 hexadecimal digits", e.Digest)
	case n.Digest != "" && string(n.Digest) != e.Digest:
		return fmt.Sprintf("the name has another digest than %s", e.Digest)
	case !slices.IsSorted(more) || len(slices.Compact(slices.Clone(more))) != len(more) || slices.Contains(more, e.Name):
		return "the names that the Dockerfile has for the image are not in order, or one of them is there twice"
	}
	if len(more) > 0 {
		e.Written = more
	}
	return ""
}

// file checks a file of a server.
func file(e *Entry, more []string) string {
	h, err := remoteurl.ParseHTTP(e.Name)
	switch {
	case err != nil || h.URL != e.Name || h.User != "":
		return fmt.Sprintf("%q is not the address of a file, without credentials", e.Name)
	case !isSHA256(e.Digest):
		return fmt.Sprintf("%q is not the digest of a file: sha256: and 64 hexadecimal digits", e.Digest)
	case len(more) > 0:
		return "there is more behind the digest of the file"
	}
	return ""
}

// commit checks a commit: more are the ref and the object that it was found by.
func commit(e *Entry, more []string) string {
	remote, _, _ := strings.Cut(e.Name, "#")
	g, err := remoteurl.ParseGit(e.Name)
	switch {
	case err != nil || g.Remote != remote || g.User != "" || g.Subdir != "" || strings.HasSuffix(e.Name, "#"):
		return fmt.Sprintf("%q is not the address of a repository and a ref, without credentials", e.Name)
	case !isCommit(e.Digest):
		return fmt.Sprintf("%q is not a commit: sha1: or sha256: and the hexadecimal digits of its hash", e.Digest)
	case len(more) != 0 && len(more) != 2:
		return "behind the commit there is not a ref and its object"
	case len(more) == 0:
		return ""
	}
	if e.Ref, e.Object = more[0], more[1]; !isCommit(e.Object) || e.Ref != "HEAD" && !strings.HasPrefix(e.Ref, "refs/") {
		return fmt.Sprintf("%q and %q are not a ref and its object", e.Ref, e.Object)
	}
	return ""
}

func isSHA256(digest string) bool {
	return strings.HasPrefix(digest, "sha256:") && imagename.IsDigest(digest)
}

// isCommit reports whether a digest is what material.Commit returns for a hash.
func isCommit(digest string) bool {
	hash := Hash(digest)
	return remoteurl.IsHash(hash) && material.Commit(hash) == digest
}
