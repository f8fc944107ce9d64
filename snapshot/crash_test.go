package snapshot

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/ctxtest"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/llb"
	"golang.org/x/sys/unix"
)

// TestOtherBoot: a layer that was made before the host restarted is used only if its files are unchanged.
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
	note := filepath.Join(s.Path(id), unsyncedNote)
	noted := func() bool {
		_, err := os.Lstat(note)
		return err == nil
	}
	reopened := func(boot string) *tested {
		o := reopen(t, s)
		o.boot = boot
		return o
	}
	if !reopened(s.boot).Has(id) || !noted() {
		t.Error("another process of the same boot does not have the layer, or has compared it")
	}
	// Whatever the crash made of the file, the layer that is made again takes its place.
	file := filepath.Join(s.fsDir(id), "file")
	if err := os.WriteFile(file, []byte{0, 0, 0, 0}, 0o644); err != nil {
		t.Fatal(err)
	}
	now := reopened("the boot after")
	if m, err := now.Manifest(id); err != nil || m.Entries == 0 || !noted() {
		t.Errorf("the manifest, which is sound, is %v, or the layer was compared for it", err)
	}
	if err := now.Open(t.Context(), id); !errors.Is(err, layer.ErrDamaged) || !strings.Contains(err.Error(), "file has different content") {
		t.Fatalf("after a crash the layer is opened with %v, want ErrDamaged", err)
	}
	if again := step(t, now, nil, write).ID; again != id {
		t.Fatalf("the layer has the id %s, and then %s", id, again)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "text" {
		t.Errorf("the file is %q, %v", text, err)
	}
	// What is as it was is on disk, and not compared again.
	if !reopened("a later boot").Has(id) || noted() {
		t.Error("a layer that survived does not exist, or would be compared again")
	}
	// A note that the crash emptied is no reason to believe.
	if err := errors.Join(os.WriteFile(note, nil, 0o600), os.WriteFile(file, []byte("tex"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if reopened("a boot").Has(id) {
		t.Error("an empty note is taken for none")
	}
}

// TestSync: a layer that was synced is not compared in a later boot. With much to be written nothing waits for that.
func TestSync(t *testing.T) {
	s := newStore(t)
	id := step(t, s, nil, func(*rootfs.Root) {}).ID
	note := filepath.Join(s.Path(id), unsyncedNote)
	if err := s.Job.close(-1); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(note); err != nil {
		t.Errorf("the note of a layer that was not synced: %v", err)
	}
	later := reopen(t, s)
	if !later.Has(id) {
		t.Fatal("the layer does not exist")
	}
	if err := later.Job.close(math.MaxInt64); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(note); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the note of a layer that was synced: %v", err)
	}
}

// TestComparingEnds: the comparison after a crash ends with the context of who needs it, and only with that.
func TestComparingEnds(t *testing.T) {
	s := newStore(t)
	s.boot = "the boot before"
	id := step(t, s, nil, func(root *rootfs.Root) { put(t, root, "file", "text") }).ID
	now := reopen(t, s)
	ended, cancel := context.WithCancelCause(t.Context())
	cancel(ctxtest.ErrEnded)
	if err := now.Open(ended, id); !errors.Is(err, ctxtest.ErrEnded) {
		t.Errorf("Open with a context that has ended: %v", err)
	}
	if !now.Has(id) {
		t.Error("the layer is taken for damaged")
	}
}

// compared notes transfers.
type compared struct{ seen []events.Transfer }

func (c *compared) Event(e events.Event) {
	if tr, ok := e.Body.(events.Transfer); ok {
		c.seen = append(c.seen, tr)
	}
}

// TestComparingIsReported: the vertex that needs a large layer of another boot says that it is compared.
func TestComparingIsReported(t *testing.T) {
	s := newStore(t)
	s.boot = "the boot before"
	const size = 20 << 20
	id := step(t, s, nil, func(root *rootfs.Root) {
		f, err := root.OpenFile("file", unix.O_WRONLY|unix.O_CREAT, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
	}).ID
	now := reopen(t, s)
	now.boot = "the boot after"
	c := &compared{}
	task := events.New(c).Task(llb.Place{}, "RUN make")
	if err := now.Open(events.With(t.Context(), task), id); err != nil {
		t.Fatal(err)
	}
	if len(c.seen) < 2 {
		t.Fatalf("the transfers are %+v", c.seen)
	}
	last := c.seen[len(c.seen)-1]
	if last.Phase != events.Comparing || last.Name != string(id) || last.Current != size || !last.Done {
		t.Errorf("the last transfer is %+v", last)
	}
}
