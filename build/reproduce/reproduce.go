// Package reproduce has what makes the result of a build the same on every host, and what tells whether steps make the same again.
package reproduce

import (
	"errors"
	"fmt"

	"github.com/kilnbuild/kiln/build/caching"
	"github.com/kilnbuild/kiln/frontend"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot/blob"
)

// CheckCaches returns an *input.Error if a build cannot import what caches are asked for: its cache mounts begin empty, since what is left in
// one depends on earlier builds.
func CheckCaches(from []caching.Spec) error {
	for _, s := range from {
		if len(s.Mounts) > 0 {
			return &input.Error{Err: errors.New("--cache-from with mounts= does nothing for a reproducible build, whose cache mounts begin empty: " +
				"leave out mounts=, or give --reproducible=false")}
		}
	}
	return nil
}

// Date has all times in the layers of an output written as SOURCE_DATE_EPOCH. given says that the user has set rewrite-timestamp.
func Date(layers *blob.Encoding, given bool) error {
	if given && !layers.Rewrite {
		return errors.New("rewrite-timestamp=false contradicts --reproducible: leave out one of them")
	}
	layers.Rewrite, layers.All = true, true
	return nil
}

// CheckHost returns an *input.Error if the result of a step could depend on this host.
func CheckHost(images []frontend.Image) error {
	if ns, err := userns.Current(); err != nil || !ns.Single() {
		return err
	}
	for _, img := range images {
		for v := range llb.Vertices([]llb.Output{img.Root}) {
			if _, ok := v.Op().(llb.Exec); ok {
				return &input.Error{Err: fmt.Errorf("%s: the result of a RUN can differ from that of other hosts, so that the build is not reproducible: %s; "+
					"README.md says how to give kiln more ids", v.Meta().Name(), userns.Note())}
			}
		}
	}
	return nil
}
