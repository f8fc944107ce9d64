package snapshot

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"golang.org/x/sys/unix"
)

// TestOtherBoot: a layer that was made before the machine was started again counts only if it was known to be on disk.
func TestOtherBoot(t *testing.T) {
	s := newStore(t)
	s.boot = "the boot before"
	write := func(root *rootfs.Root) {
		f, err := root.OpenFile("file", unix.O_WRONLY|unix.O_CREAT, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		f.WriteString("text")
		f.Close()
	}
	id := step(t, s, nil, write).ID
	reopened := func(boot string) *Store {
		o := reopen(t, s)
		if boot != "" {
			o.boot = boot
		}
		return o
	}
	if !reopened(s.boot).Has(id) {
		t.Error("another process of the same boot does not have the layer")
	}
	now := reopened("")
	if _, err := now.Manifest(id); !errors.Is(err, layer.ErrDamaged) {
		t.Fatalf("after a crash the layer's manifest is %v, want ErrDamaged", err)
	}
	// Whatever the crash made of the file, the layer that is made again takes its place.
	file := filepath.Join(s.fsDir(id), "file")
	if err := os.WriteFile(file, []byte{0, 0, 0, 0}, 0o644); err != nil {
		t.Fatal(err)
	}
	if again := step(t, now, nil, write).ID; again != id {
		t.Fatalf("the layer has the id %s, and then %s", id, again)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "text" {
		t.Errorf("the file is %q, %v", text, err)
	}
	// Once synced it needs no boot.
	if err := now.Sync(); err != nil {
		t.Fatal(err)
	}
	if !reopened("a later boot").Has(id) {
		t.Error("a layer that was synced is not there after a crash")
	}
	// A note that the crash emptied is no reason to believe.
	if err := os.WriteFile(filepath.Join(s.dir, id, unsyncedNote), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if reopened("").Has(id) {
		t.Error("an empty note is taken for none")
	}
}
