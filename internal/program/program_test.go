package program

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/rootfs"
)

// elf returns a program for a machine with a loader, as far as a Finder reads it.
func elf(machine byte, loader string) string {
	b := make([]byte, 64+56)
	copy(b, "\x7fELF\x02\x01\x01")
	b[18], b[32], b[54], b[56] = machine, 64, 56, 1
	b[64], b[72], b[96] = 3, 120, byte(len(loader)+1)
	return string(b) + loader + "\x00"
}

func TestFinder(t *testing.T) {
	own, other := byte(62), byte(183)
	if runtime.GOARCH == "arm64" {
		own, other = other, own
	}
	for _, tt := range []struct {
		name, text string
		mode       os.FileMode
		status     int
		want       string
	}{
		{"crlf", "#!/bin/sh -e\r\necho\r\n", 0o755, 127, `its interpreter is "/bin/sh -e\r"`},
		{"script", "#!/bin/sh\n", 0o755, 127, ""},
		{"no interpreter", "#! /bin/bash\n", 0o755, 127, "begins with #!/bin/bash, and the image has no such program"},
		{"only #!", "#!", 0o755, 127, ""},
		{"not executable", "#!/bin/sh\n", 0o644, 126, "is not executable: COPY --chmod=755"},
		{"byte order mark", "\xef\xbb\xbf#!/bin/sh\n", 0o755, 126, "byte order mark"},
		{"glibc", elf(own, "/lib64/ld-linux-x86-64.so.2"), 0o755, 127, "needs the loader /lib64/ld-linux-x86-64.so.2"},
		{"musl", elf(own, "/lib/ld-musl-x86_64.so.1"), 0o755, 127, "made for musl"},
		{"loader", elf(own, "/bin/sh"), 0o755, 127, ""},
		{"foreign", elf(other, "/none"), 0o755, 2, "is a program for "},
		{"another status", "#!/bin/sh\r\n", 0o755, 126, ""},
		{"step that fails", "#!/bin/sh\n", 0o644, 2, ""},
		{"empty", "", 0o755, 126, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for path, text := range map[string]string{"bin/sh": "", "app/x": tt.text} {
				path = filepath.Join(dir, path)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Chmod(filepath.Join(dir, "app/x"), tt.mode); err != nil {
				t.Fatal(err)
			}
			root, err := rootfs.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			for script, name := range map[string]string{"/app/x": "/app/x", "true && ./x y": "./x", "A=1 exec x\n": "/app/x"} {
				x := &Finder{Root: root, Dir: "/app", Env: []string{"PATH=/bin:/app"}, Architecture: runtime.GOARCH}
				fault := x.Command(script, tt.status)
				switch {
				case tt.want == "" && fault != nil:
					t.Errorf("%q: %s", script, fault.Text)
				case tt.want != "" && (fault == nil || !strings.Contains(fault.Text, tt.want) || !strings.Contains(fault.Text, name)):
					t.Errorf("%q: %+v, want %q of %s", script, fault, tt.want, name)
				}
			}
		})
	}
}

// A file of an image is not trusted.
func FuzzFinder(f *testing.F) {
	f.Add([]byte(elf(62, "/x")), "a; b")
	f.Add([]byte("#!\r\n"), "$(x)`y`")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text []byte, script string) {
		path := filepath.Join(dir, "x")
		if err := os.WriteFile(path, text, 0o755); err != nil {
			t.Fatal(err)
		}
		root, err := rootfs.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		if fault := (&Finder{Root: root}).file("/x", "/x"); fault != nil && (fault.Text == "" || len(fault.Text) > 2*maxHead+512) {
			t.Errorf("%d bytes: %.100s", len(fault.Text), fault.Text)
		}
		for _, word := range commands(script) {
			if word == "" || bytes.ContainsAny([]byte(word), " \t\n\x00") {
				t.Errorf("a command is %q", word)
			}
		}
	})
}
