//go:build e2e

package e2e

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/kilnbuild/kiln/internal/kilntest"
)

// writers is how many jobs export to one cache at once.
const writers = 50

// Jobs on machines of their own export to one cache at the same time, each with two steps that no other has. Afterwards a machine that
// has never built finds the steps of all of them.
func TestManyWriters(t *testing.T) {
	base := filepath.Join(t.TempDir(), "base")
	if err := kilntest.Base(base); err != nil {
		t.Fatal(err)
	}
	cache := registry + "/writers:cache"
	p := open(t, "writers", "--build-context", "base=oci-layout://"+base, "--output", "type=cacheonly")
	build := func(i int, root string) []string {
		return []string{"--root", root, "--build-arg", fmt.Sprintf("JOB=%d", i), "--cache-from", cache}
	}
	var all sync.WaitGroup
	for i := range writers {
		args := append(build(i, t.TempDir()), "--cache-to", "type=registry,mode=max,ref="+cache)
		all.Go(func() {
			if _, log, err := p.try(args...); err != nil {
				t.Errorf("job %d: %v\n%s", i, err, log)
			}
		})
	}
	all.Wait()
	empty := filepath.Join(t.TempDir(), "empty")
	for i := range writers {
		r := p.run(build(i, empty)...)
		r.wantRan()
		if len(r.cached) != 4 {
			t.Errorf("job %d: %d steps were cached, and there are 4", i, len(r.cached))
		}
	}
}
