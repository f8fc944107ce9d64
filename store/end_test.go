package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/ctxtest"
	"github.com/kilnbuild/kiln/internal/part"
)

// TestManagingEnds shows that what goes through all that a root directory keeps ends with its context.
func TestManagingEnds(t *testing.T) {
	b, err := Open(context.Background(), t.TempDir(), &config.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	const n = 50
	for i := range n {
		desc, err := b.Images.Put("application/x", fmt.Append(nil, i))
		if err == nil {
			err = b.Images.Tag(fmt.Sprintf("image:%d", i), desc)
		}
		mount := filepath.Join(b.Dir(), "mounts", fmt.Sprintf("%064x", i), "fs")
		if err = errors.Join(err, os.MkdirAll(mount, 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	nobody := events.New()
	defer nobody.Close()
	for name, do := range map[string]func(ctx context.Context) error{
		"Usage": func(ctx context.Context) error { _, err := b.Usage(ctx); return err },
		"Prune": func(ctx context.Context) error {
			_, err := b.Prune(ctx, PruneOptions{DryRun: true}, func(part.Item) error { return nil })
			return err
		},
		"Check": func(ctx context.Context) error {
			_, err := b.Check(ctx, false, nobody, func(part.Finding) {})
			return err
		},
	} {
		for _, at := range []int{1, n / 2} {
			if err := do(ctxtest.EndAfter(at)); !errors.Is(err, ctxtest.ErrEnded) {
				t.Errorf("%s, whose context ended when it was looked at %d times: %v", name, at, err)
			}
		}
	}
}
