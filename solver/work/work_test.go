package work

import (
	"reflect"
	"testing"

	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
)

// All that work consists of survives its encoding, also what is kept out of the JSON of ops.
func TestEncode(t *testing.T) {
	root := solver.NewRef(solver.Layer{ID: "a", Content: solver.Content{1}}, solver.Layer{ID: "b"})
	epoch := int64(7)
	for _, w := range []solver.Work{
		File{
			Op: llb.File{Actions: []llb.Action{
				{Copy: &llb.Copy{Sources: []llb.CopySource{{Input: 1, Path: "/x"}}, Dest: "/", Attributes: llb.Attributes{Chown: "u", Epoch: &epoch}}},
				{Mkfile: &llb.Mkfile{Path: "/f", Content: []byte("\x00\xff")}}, {Mkdir: &llb.Mkdir{Path: "/d"}}, {Remove: &llb.Remove{Path: "/r"}},
				{Symlink: &llb.Symlink{Path: "/l", Target: "t"}},
			}},
			In: []solver.Ref{root, {Local: &llb.Local{Name: "context"}}, {}}, Planned: [32]byte{2}, Identity: [32]byte{3}, Archives: []string{"a"},
			Copied: []string{"c"},
		},
		Exec{Op: llb.Exec{Args: []string{"a"}, Proxy: []string{"p=q"}}, Proxy: []string{"p=q"}, Platform: "linux/arm64", In: []solver.Ref{root}},
		HTTP{Op: llb.HTTP{URL: "https://h/f", User: "me:secret"}, User: "me:secret", Digest: "sha256:00", Modified: "2026-01-02T03:04:05Z"},
		Git{Op: llb.Git{Remote: "https://h/r.git", User: "me"}, User: "me", Commit: "c", Name: "refs/heads/main", Object: "o"},
		Explicit{Layers: []Layer{{Root: root, AsIs: true}, {Root: root}}},
		Diff{Lower: root, Upper: root},
	} {
		data, err := Encode(w)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Decode(data); err != nil || !reflect.DeepEqual(got, w) {
			t.Errorf("%s\nis decoded as %+v, %v\nand was       %+v", data, got, err, w)
		}
	}
	if _, err := Encode(1); err == nil {
		t.Error("a number is encoded as work")
	}
	for _, data := range []string{"", "{}", "[]", `{"other":{}}`} {
		if w, err := Decode([]byte(data)); err == nil {
			t.Errorf("%s is decoded as %+v", data, w)
		}
	}
}
