package emulation

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/kilntest"
)

// Programs for every processor are executed: by the machine, or by an emulator that it does not need to know.
func TestFind(t *testing.T) {
	if kilntest.Before(6, 7) {
		t.Skip("a user namespace has no emulators of its own before Linux 6.7")
	}
	var m Machine
	for _, arch := range Architectures() {
		w, err := m.Find(t.Context(), arch)
		if err != nil {
			t.Error(err)
		}
		if arch == runtime.GOARCH && !w.Native {
			t.Errorf("%s needs %+v", arch, w)
		}
		if w.Native {
			continue
		}
		again, err := m.Find(t.Context(), arch)
		if err != nil || again.Emulator != w.Emulator {
			t.Errorf("%s is looked for twice: %v", arch, err)
		}
	}
	_, err := m.Find(t.Context(), "wasm")
	if missing, ok := errors.AsType[*MissingError](err); !ok || missing.Architecture != "wasm" {
		t.Errorf("programs for wasm: %v", err)
	}
}

// Of the names of an emulator the first is taken that can be used, and if there is none it is said why.
func TestLookUp(t *testing.T) {
	m := find("s390x")
	real, f, err := lookUp(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	write := func(name, text string) string {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	link := func(name, target string) string {
		dir := t.TempDir()
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	script := write("qemu-s390x-static", "#!/bin/sh\necho qemu-s390x version 9.0\n")
	for _, c := range []struct{ path, want string }{
		{t.TempDir(), "there is no qemu-s390x-static in $PATH"},
		{script, "qemu-s390x-static cannot be used: it is not a program"},
		{write("qemu-s390x", string(m.program())), "qemu-s390x cannot be used: it is not a program for this machine"},
		{link("qemu-s390x-static", "/bin/ls"), "it is not statically linked"},
		{link("qemu-s390x-static", "/bin/busybox"), "ask it for its version: exit status"},
		{link("qemu-s390x", real), ""},
		{script + ":" + link("qemu-s390x", real), ""},
	} {
		t.Setenv("PATH", c.path)
		_, f, err := lookUp(t.Context(), m)
		if f != nil {
			f.Close()
		}
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("in %s: %v, want %q", c.path, err, c.want)
		}
	}
}
