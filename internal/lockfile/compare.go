package lockfile

import (
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/material"
)

// Called reports whether a user who writes name may mean the entry: its name in full, or one that the Dockerfile has for it, or for an
// image any other spelling of it.
func (e Entry) Called(name string) bool {
	if name == e.Name || slices.Contains(e.Written, name) {
		return true
	}
	n, err := imagename.Parse(name)
	return e.Kind == material.Image && err == nil && n.String() == e.Name
}

// Verb is what happened to an entry.
type Verb string

// The verbs.
const (
	Added   Verb = "added"
	Updated Verb = "updated"
	Renamed Verb = "renamed" // in the Dockerfile, and nothing else
	Removed Verb = "removed"
)

// Change is a difference between two files.
type Change struct {
	Verb Verb
	// Entry is the one of the new file, or for Removed of the old one, and Was the digest that it had; "" for Added.
	Entry Entry
	Was   string
}

// String returns the change as a line.
func (c Change) String() string {
	parts := []string{string(c.Verb), string(c.Entry.Kind), c.Entry.Name}
	switch {
	case c.Verb == Renamed:
		parts = append(parts, "which the Dockerfile calls", strings.Join(append([]string(nil), c.Entry.Written...), ", "))
		if len(c.Entry.Written) == 0 {
			parts[len(parts)-1] = "by this name"
		}
	case c.Verb == Updated && c.Was != c.Entry.Digest:
		parts = append(parts, c.Was, "->", c.Entry.Digest)
	default:
		parts = append(parts, c.Entry.Digest)
	}
	return strings.Join(parts, " ")
}

// Compare returns what is different in after, in the order of its entries, and then what before has more.
func Compare(before, after *File) []Change {
	var changes []Change
	for _, e := range after.Entries() {
		switch old, ok := before.Find(e.Kind, e.Name); {
		case !ok:
			changes = append(changes, Change{Added, e, ""})
		case !old.Same(e):
			changes = append(changes, Change{Updated, e, old.Digest})
		case !slices.Equal(old.Written, e.Written):
			changes = append(changes, Change{Renamed, e, old.Digest})
		}
	}
	for _, e := range before.Entries() {
		if _, ok := after.Find(e.Kind, e.Name); !ok {
			changes = append(changes, Change{Removed, e, e.Digest})
		}
	}
	return changes
}

// Kept returns after with the entries of before that it does not have.
func Kept(before, after *File) *File {
	all := after.Entries()
	for _, e := range before.Entries() {
		if _, ok := after.Find(e.Kind, e.Name); !ok {
			all = append(all, e)
		}
	}
	return New(all)
}
