package remote

import (
	"context"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/solver"
)

// FoundMount is the contents of a cache mount in a cache.
type FoundMount struct {
	pack.Mount
	Import *Import
}

// Mounts returns what the caches have of the mount with a key, in their order. The error is that of ctx.
func (im *Imports) Mounts(ctx context.Context, key string) ([]FoundMount, error) {
	caches, err := im.wait(ctx)
	if err != nil {
		return nil, err
	}
	var found []FoundMount
	for _, c := range caches {
		if m, ok := c.head.Pack.Mounts[key]; ok && (c.Keys == nil || c.mount(key, m)) {
			found = append(found, FoundMount{m, c})
		}
	}
	return found, nil
}

// mount reports whether a mount is signed.
func (c *Import) mount(key string, m pack.Mount) bool {
	k, err := solver.ParseKey(key)
	return err == nil && counts(c, c.signed, k, func() bool { return c.Keys.Mount(m) })
}
