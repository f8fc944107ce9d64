package directories

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/localdir"
	"github.com/kilnbuild/kiln/llb"
)

// paths returns all paths of a tree, in order.
func paths(t *testing.T, tree layer.Tree, dir string) (all []string) {
	t.Helper()
	list, err := tree.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if _, ok, err := tree.Lookup(e.Path); err != nil || !ok {
			t.Errorf("%s is listed, and looked up it is not there: %v", e.Path, err)
		}
		all = append(all, e.Path)
		if e.Type == layer.Dir {
			all = append(all, paths(t, tree, e.Path)...)
		}
	}
	return all
}

func TestOpen(t *testing.T) {
	dir, tmp := t.TempDir(), t.TempDir()
	for _, name := range []string{"a/b/c", "a/b/d", "a/e", "f", "lib/g"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(name), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("lib/g", filepath.Join(dir, "link")), os.Symlink("/a/b", filepath.Join(dir, "abs"))); err != nil {
		t.Fatal(err)
	}
	tree, err := localdir.Open(t.Context(), dir, nil, filepath.Join(tmp, "digests"), tmp)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	d := New(map[string]layer.Tree{"context": tree})
	for name, test := range map[string]struct {
		op   llb.Local
		want []string
	}{
		"all":       {llb.Local{}, []string{"a", "a/b", "a/b/c", "a/b/d", "a/e", "abs", "f", "lib", "lib/g", "link"}},
		"include":   {llb.Local{Include: []string{"a/b/c", "f"}}, []string{"a", "a/b", "a/b/c", "f"}},
		"directory": {llb.Local{Include: []string{"a/b"}}, []string{"a", "a/b", "a/b/c", "a/b/d"}},
		"exclude":   {llb.Local{Exclude: []string{"a", "!a/b/d", "l*"}}, []string{"a", "a/b", "a/b/d", "abs", "f"}},
		"both":      {llb.Local{Include: []string{"a"}, Exclude: []string{"**/c"}}, []string{"a", "a/b", "a/b/d", "a/e"}},
		"link":      {llb.Local{Follow: []string{"link"}}, []string{"lib", "lib/g", "link"}},
		"through":   {llb.Local{Follow: []string{"abs/c"}}, []string{"a", "a/b", "a/b/c", "abs"}},
		"wildcard":  {llb.Local{Follow: []string{"l*k"}}, []string{"lib", "lib/g", "link"}},
		"nothing":   {llb.Local{Follow: []string{"Dockerfile"}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			test.op.Name = "context"
			got, err := d.Open(t.Context(), test.op)
			if err != nil {
				t.Fatal(err)
			}
			if all := paths(t, got, ""); !slices.Equal(all, test.want) {
				t.Errorf("got %q, want %q", all, test.want)
			}
			if again, err := d.Open(t.Context(), test.op); err != nil || again != got {
				t.Errorf("an equal op gives another tree: %v", err)
			}
		})
	}
	for _, op := range []llb.Local{{Name: "home"}, {Name: "context", Session: "another"}, {Name: "../context"}} {
		if _, err := d.Open(t.Context(), op); !errors.As(err, new(*UnknownError)) {
			t.Errorf("%+v: %v", op, err)
		}
	}
	if got := d.Received(); !slices.Equal(got, []string{"context"}) {
		t.Errorf("received %q", got)
	}
}
