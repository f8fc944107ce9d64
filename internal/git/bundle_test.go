package git

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/layer"
)

// TestBundle makes a bundle of a commit with an ancestor, and takes the commit from it where its repository does not answer.
func TestBundle(t *testing.T) {
	r := newRemote(t)
	first := r.commit("r.git", map[string]string{"a": "1"})
	second := r.git("r.git", "", "commit-tree", "-p", first, "-m", "y", first+"^{tree}")
	r.git("r.git", "", "update-ref", "refs/heads/main", second)

	c, s := newClient(t), r.source("r.git#main")
	if _, err := exported(t, c, s, Options{}); err != nil { // the mirror has the last commit alone
		t.Fatal(err)
	}
	commit, err := c.Resolve(t.Context(), s, Identity{})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "bundle")
	err = c.Bundle(t.Context(), s, commit, Options{Log: io.Discard}, "bundle", func(e layer.Entry, body *os.File) error {
		data, err := io.ReadAll(body)
		if e.Path != "bundle" || e.Size != int64(len(data)) {
			t.Errorf("the file is %+v", e)
		}
		return errors.Join(err, os.WriteFile(file, data, 0o600))
	})
	if err != nil {
		t.Fatal(err)
	}
	if refs := r.git(".", "", "ls-remote", file); refs != second+"\trefs/heads/main" {
		t.Errorf("the bundle has %q", refs)
	}

	gone := r.source("gone.git#main")
	from := func(ref, id string) ([]string, error) {
		s := *gone
		s.Ref = ref
		var out []string
		o := Options{Bundle: file, Log: io.Discard}
		err := newClient(t).Export(t.Context(), &s, Commit{ID: id, Object: id}, o, func(e layer.Entry, _ io.Reader) error {
			out = append(out, e.Path)
			return nil
		})
		return out, err
	}
	for _, id := range []string{first, second} {
		if got, err := from("", id); err != nil || !slices.Equal(got, []string{"", "a"}) {
			t.Errorf("of commit %s there is %q: %v", id, got, err)
		}
	}
	for ref, want := range map[string]string{"main": "the checksum says", "other": "no branch, tag or other ref"} {
		if _, err := from(ref, first); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the ref %s: %v, want %s", ref, err, want)
		}
	}
	if _, err := from("", strings.Repeat("1", 40)); err == nil || !strings.Contains(err.Error(), "not found in bundle") {
		t.Errorf("another commit: %v", err)
	}
	if err := os.WriteFile(file, []byte("# v2 git bundle\n"+second+" refs/heads/main\n\nPACKbroken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := from("", second); err == nil {
		t.Error("a broken bundle is read")
	}
}
