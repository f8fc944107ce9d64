package llb

import (
	"slices"
	"testing"
)

// What steps need of a directory is what they copy of it, or all.
func TestNeeds(t *testing.T) {
	var g Graph
	scratch := g.Add(Scratch{}, Meta{}).Output(0)
	local := g.Add(Local{Name: "context"}, Meta{}).Output(0)
	copied := func(paths ...string) Output {
		c := &Copy{Dest: "/"}
		for _, p := range paths {
			c.Sources = append(c.Sources, CopySource{Input: 1, Path: p})
		}
		return g.Add(File{Actions: []Action{{Copy: c}}}, Meta{}, scratch, local).Output(0)
	}
	for _, tc := range []struct {
		root Output
		want []string
	}{
		{copied("/a", "/d/e/"), []string{"a", "d/e"}},
		{copied("/src/*.go", "/src/[ab]/x"), []string{"src", "src"}},
		{copied("/*.go"), []string{""}},
		{copied("/"), []string{""}},
		{copied("/d/./e/../f"), []string{"d/f"}},
		{copied(`/a\*`), []string{""}},
		{g.Add(Exec{}, Meta{}, scratch, local).Output(0), []string{""}},
		{g.Add(Merge{}, Meta{}, copied("/a"), local).Output(0), []string{"", "a"}},
		{local, []string{""}},
		{scratch, nil},
	} {
		var got []string
		Needs([]Output{tc.root}, func(l Local, path string) {
			if l.Name != "context" {
				t.Errorf("needs %+v", l)
			}
			got = append(got, path)
		})
		slices.Sort(got)
		if !slices.Equal(got, tc.want) {
			t.Errorf("got %q, want %q", got, tc.want)
		}
	}
}
