// Package reproduce has what makes the result of a build the same on every host, and what tells whether steps make the same again.
package reproduce

import (
	"errors"
	"fmt"
	"slices"

	"github.com/kilnbuild/kiln/build/caching"
	"github.com/kilnbuild/kiln/frontend"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot/blob"
)

// CheckCaches returns an *input.Error if a build cannot use caches as it is asked to. The cache mounts of one that is reproducible begin
// empty, since what is left in one depends on earlier builds. One that runs steps twice takes nothing from the cache, and publishes none
// before it has ended.
func CheckCaches(reproducible, twice, verify bool, from, to []caching.Spec) error {
	mounts := func(s caching.Spec) bool { return len(s.Mounts) > 0 }
	var text string
	switch {
	case reproducible && slices.ContainsFunc(from, mounts):
		text = "--cache-from with mounts= does nothing for a reproducible build, whose cache mounts begin empty: " +
			"leave out mounts=, or give --reproducible=false"
	case twice && len(to) > 0:
		text = "--check-reproducible publishes no cache: leave out --cache-to"
	case twice && verify:
		text = "--check-reproducible uses no cached step: leave out --verify-cache"
	default:
		return nil
	}
	return &input.Error{Err: errors.New(text)}
}

// Date has all times in the layers of an output written as SOURCE_DATE_EPOCH. given says that the user has set rewrite-timestamp.
func Date(layers *blob.Encoding, given bool) error {
	if given && !layers.Rewrite {
		return errors.New("rewrite-timestamp=false contradicts --reproducible: leave out one of them")
	}
	layers.Rewrite, layers.All = true, true
	return nil
}

// CheckHost returns an *input.Error if the result of a step of a reproducible build could depend on this host.
func CheckHost(reproducible bool, images []frontend.Image) error {
	if !reproducible {
		return nil
	}
	if ns, err := userns.Current(); err != nil || !ns.Single() {
		return err
	}
	for _, img := range images {
		for v := range llb.Vertices([]llb.Output{img.Root}) {
			if _, ok := v.Op().(llb.Exec); ok {
				return &input.Error{Err: fmt.Errorf("%s: the result of a RUN can differ from that of other hosts, so that the build is not "+
					"reproducible: %s; README.md says how to give kiln more ids", v.Meta().Name(), userns.Note())}
			}
		}
	}
	return nil
}
