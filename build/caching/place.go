package caching

import (
	"context"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/cache/remote"
	"github.com/kilnbuild/kiln/registry"
)

// Place is where a cache is, for what is no build.
type Place struct {
	repository remote.Repository
	tag        string
	close      func() error
}

// OpenPlace opens what a Spec of --cache-from names, which must exist if it is a directory. Close must be called.
func OpenPlace(s Spec, client *registry.Client) (*Place, error) {
	places, err := s.open(client)
	if err != nil {
		return nil, s.wrap(err)
	}
	return places[0], nil
}

// Close closes the place.
func (p *Place) Close() error { return p.close() }

// Read returns what the cache holds. Errors are those of remote.Read.
func (p *Place) Read(ctx context.Context) (*pack.Pack, error) {
	h, err := remote.Read(ctx, p.repository, p.tag)
	if err != nil {
		return nil, &PlaceError{p.repository.String(), err}
	}
	return h.Pack, nil
}

// Prune trims the cache, or empties it, and returns how many steps and cache mounts it had before and has now.
func (p *Place) Prune(ctx context.Context, l pack.Limit, all bool) (before, after remote.Count, err error) {
	before, after, err = remote.Prune(ctx, p.repository, p.tag, l, all)
	if err != nil {
		return before, after, &PlaceError{p.repository.String(), err}
	}
	return before, after, nil
}

// PlaceError says which cache could not be used.
type PlaceError struct {
	Cache string
	Err   error
}

func (e *PlaceError) Error() string { return "cache " + e.Cache + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *PlaceError) Unwrap() error { return e.Err }
