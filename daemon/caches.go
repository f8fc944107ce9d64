package daemon

import (
	controlapi "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"

	"github.com/kilnbuild/kiln/build/caching"
	"github.com/kilnbuild/kiln/daemon/attrs"
	"github.com/kilnbuild/kiln/internal/input"
)

// keyCacheManifest is the key of the descriptor by which a client finds what was exported to its directories.
const keyCacheManifest = "cache.manifest"

// cacheSpecs returns the caches that a request imports and exports.
func (b *buildJob) cacheSpecs(o *controlapi.CacheOptions) (from, to []caching.Spec, err error) {
	for _, c := range o.GetImports() {
		s, err := b.cacheSpec(attrs.Cache{Type: c.GetType(), Attrs: c.GetAttrs()}, false)
		if err != nil {
			return nil, nil, err
		}
		from = append(from, s)
	}
	for _, c := range o.GetExports() {
		s, err := b.cacheSpec(attrs.Cache{Type: c.GetType(), Attrs: c.GetAttrs()}, true)
		if err != nil {
			return nil, nil, err
		}
		to = append(to, s)
	}
	return from, to, nil
}

// imported returns the caches that a request of a frontend imports.
func imported(req *gateway.SolveRequest) []attrs.Cache {
	var all []attrs.Cache
	for _, c := range req.CacheImports {
		all = append(all, attrs.Cache{Type: c.GetType(), Attrs: c.GetAttrs()})
	}
	return all
}

// importing has what is solved from now on use the caches that a frontend is asked to import. Clients name most of them in the request for
// the build as well.
func (b *buildJob) importing(all []attrs.Cache) error {
	if len(all) == 0 {
		return nil
	}
	var specs []caching.Spec
	for _, c := range all {
		s, err := b.cacheSpec(c, false)
		if err != nil {
			return err
		}
		specs = append(specs, s)
	}
	if err := b.job.Import(specs); err != nil {
		return &input.Error{Err: err}
	}
	return nil
}

// cacheSpec returns one of them. A directory is always the client's.
func (b *buildJob) cacheSpec(c attrs.Cache, export bool) (caching.Spec, error) {
	s, err := c.Spec(export)
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
