package daemon

import (
	controlapi "github.com/moby/buildkit/api/services/control"

	"github.com/kilnbuild/kiln/build/caching"
	"github.com/kilnbuild/kiln/daemon/attrs"
)

// keyCacheManifest is the key of the descriptor by which a client finds what was exported to its directories.
const keyCacheManifest = "cache.manifest"

// cacheSpecs returns the caches that a request imports and exports.
func (b *buildJob) cacheSpecs(o *controlapi.CacheOptions) (from, to []caching.Spec, err error) {
	for _, c := range o.GetImports() {
		s, err := b.cacheSpec(c, false)
		if err != nil {
			return nil, nil, err
		}
		from = append(from, s)
	}
	for _, c := range o.GetExports() {
		s, err := b.cacheSpec(c, true)
		if err != nil {
			return nil, nil, err
		}
		to = append(to, s)
	}
	return from, to, nil
}

// cacheSpec returns one of them. A directory is always the client's.
func (b *buildJob) cacheSpec(c *controlapi.CacheOptionsEntry, export bool) (caching.Spec, error) {
	s, err := attrs.Cache{Type: c.GetType(), Attrs: c.GetAttrs()}.Spec(export)
	if err != nil || s.Type != attrs.CacheLocal {
		return s, err
	}
	if !export {
		s.Directory = b.client.Cache(s.Attrs["src"])
		return s, nil
	}
	dir := b.client.Cache(s.Attrs["dest"])
	b.caches = append(b.caches, dir)
	s.Directory = dir
	return s, nil
}

// exported adds to what the client is told of the result where the caches are that were exported to it.
func (b *buildJob) exported(about map[string]string) error {
	for _, c := range b.caches {
		manifest, err := c.Exported()
		if err != nil {
			return err
		}
		if manifest != "" {
			about[keyCacheManifest] = manifest
		}
	}
	return nil
}
