package cas

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/kilnbuild/kiln/internal/ctxtest"
	"github.com/kilnbuild/kiln/internal/lock"
)

// TestEnds shows that a commit that compares a blob with the one that is there ends with its context, and that nobody waits longer than
// the store's context for another process.
func TestEnds(t *testing.T) {
	s := open(t)
	begin := func(ctx context.Context) *Writer {
		w, err := s.Create(ctx)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { w.Close() })
		if _, err := w.Write([]byte("text")); err != nil {
			t.Fatal(err)
		}
		return w
	}
	if _, err := begin(context.Background()).Commit("", -1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	again := begin(ctx)
	cancel(ctxtest.ErrEnded)
	if _, err := again.Commit("", -1); !errors.Is(err, ctxtest.ErrEnded) {
		t.Errorf("Commit: %v", err)
	}

	desc, err := s.Put("x", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := lock.Acquire(context.Background(), filepath.Join(s.Root(), locksDir, "index"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	s.Context = ctx
	if err := s.Tag("name", desc); !errors.Is(err, ctxtest.ErrEnded) {
		t.Errorf("Tag: %v", err)
	}
	if err := s.Locked(nil); !errors.Is(err, ctxtest.ErrEnded) {
		t.Errorf("Locked: %v", err)
	}
}
