package plan

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
)

// A shortcut is computed without the entries of any layer, and changes with all that can change the key.
func TestShortcut(t *testing.T) {
	p := newPlanner(t)
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		p.look()
	}
	write("a", "1")
	write("b", "1")
	shortcut := func(op llb.Op, meta llb.Meta, in ...solver.Ref) solver.Key {
		t.Helper()
		inputs, err := p.Shortcut(t.Context(), op, meta, in)
		if err != nil {
			t.Fatal(err)
		}
		if inputs == nil {
			return solver.Key{}
		}
		return solver.KeyOf(inputs)
	}
	cp := func(path, dest string) llb.File {
		return llb.File{Actions: []llb.Action{{Copy: &llb.Copy{Sources: []llb.CopySource{{Input: 1, Path: path}}, Dest: dest}}}}
	}
	base := shortcut(cp("/a", "/x/"), llb.Meta{}, content(1), local)
	if base == (solver.Key{}) {
		t.Fatal("COPY has no shortcut")
	}
	write("b", "2")
	if shortcut(cp("/a", "/x/"), llb.Meta{}, content(1), local) != base {
		t.Error("it changes with a file that is not copied")
	}
	for what, key := range map[string]solver.Key{
		"the root":        shortcut(cp("/a", "/x/"), llb.Meta{}, content(2), local),
		"the destination": shortcut(cp("/a", "/y/"), llb.Meta{}, content(1), local),
		"the source":      shortcut(cp("/b", "/x/"), llb.Meta{}, content(1), local),
	} {
		if key == base {
			t.Errorf("it does not change with %s", what)
		}
	}
	write("a", "2")
	if shortcut(cp("/a", "/x/"), llb.Meta{}, content(1), local) == base {
		t.Error("it does not change with the file")
	}
	if shortcut(cp("/none", "/x/"), llb.Meta{}, content(1), local) != (solver.Key{}) {
		t.Error("what cannot be planned has a shortcut")
	}

	stage := shortcut(cp("/a", "/x/"), llb.Meta{}, content(1), content(2))
	if stage == (solver.Key{}) || stage == shortcut(cp("/a", "/x/"), llb.Meta{}, content(1), content(3)) {
		t.Error("that of COPY --from does not change with the stage")
	}
	mounted := llb.Exec{Args: []string{"x"}, Mounts: []llb.Mount{{Type: llb.MountBind, Target: "/m", Input: 1, Source: "/sub"}}}
	run := shortcut(mounted, llb.Meta{Platform: "linux/amd64"}, content(1), content(2))
	if run == (solver.Key{}) || run == shortcut(mounted, llb.Meta{Platform: "linux/arm64"}, content(1), content(2)) {
		t.Error("that of RUN with a mount does not change with the platform")
	}
	if shortcut(llb.Exec{Args: []string{"x"}}, llb.Meta{}, content(1)) != (solver.Key{}) {
		t.Error("a RUN whose key needs no entries has a shortcut")
	}
	if len(p.asked) > 0 {
		t.Errorf("entries were looked at: %v", p.asked)
	}
}
