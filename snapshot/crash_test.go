package snapshot

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"golang.org/x/sys/unix"
)

// TestOtherBoot: a layer that was made before the machine was started again counts only if its files are what they were.
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
	checked := 0
	reopened := func(boot string) *Store {
		o := reopen(t, s)
		o.boot = boot
		o.CheckBlobs = func(string) { checked++ }
		return o
	}
	if !reopened(s.boot).Has(id) || checked > 0 {
		t.Errorf("another process of the same boot does not have the layer, or has looked at it %d times", checked)
	}
	// Whatever the crash made of the file, the layer that is made again takes its place.
	file, note := filepath.Join(s.fsDir(id), "file"), filepath.Join(s.dir, id, unsyncedNote)
	if err := os.WriteFile(file, []byte{0, 0, 0, 0}, 0o644); err != nil {
		t.Fatal(err)
	}
	now := reopened("the boot after")
	if _, err := now.Manifest(id); !errors.Is(err, layer.ErrDamaged) || !strings.Contains(err.Error(), "file holds other bytes") {
		t.Fatalf("after a crash the layer's manifest is %v, want ErrDamaged", err)
	}
	if again := step(t, now, nil, write).ID; again != id {
		t.Fatalf("the layer has the id %s, and then %s", id, again)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "text" {
		t.Errorf("the file is %q, %v", text, err)
	}
	// What is as it was is on disk, and not looked at again.
	checked = 0
	for range 2 {
		if !reopened("a later boot").Has(id) {
			t.Error("a layer that survived is not there")
		}
	}
	if checked != 1 {
		t.Errorf("the layer was looked at %d times, want once", checked)
	}
	// A note that the crash emptied is no reason to believe.
	if err := errors.Join(os.WriteFile(note, nil, 0o600), os.WriteFile(file, []byte("tex"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if reopened("a boot").Has(id) {
		t.Error("an empty note is taken for none")
	}
}

// TestSync: a layer that was synced is not looked at in a later boot. With much to be written nothing waits for that.
func TestSync(t *testing.T) {
	s := newStore(t)
	id := step(t, s, nil, func(*rootfs.Root) {}).ID
	note := filepath.Join(s.dir, id, unsyncedNote)
	if err := s.Sync(-1); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(note); err != nil {
		t.Errorf("the note of a layer that was not synced: %v", err)
	}
	later := reopen(t, s)
	if !later.Has(id) {
		t.Fatal("the layer is not there")
	}
	if err := later.Sync(math.MaxInt64); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(note); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the note of a layer that was synced: %v", err)
	}
}
