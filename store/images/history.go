package images

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Step is an entry of an image's history.
type Step struct {
	Created            time.Time // the zero time where the image does not say
	CreatedBy, Comment string
	// Layer is the layer that it made; the zero value if it made none.
	Layer ocispec.Descriptor
}

// History returns the ID of an image and its steps, the last first. Of an image for several platforms it is that for one; "" is the host's,
// or the first one's.
func (set *Images) History(ctx context.Context, name, platform string) (digest.Digest, []Step, error) {
	m, config, err := set.find(ctx, name, platform)
	if err != nil {
		return "", nil, err
	}
	layers := m.Layers
	var steps []Step
	for _, h := range config.History {
		step := Step{CreatedBy: h.CreatedBy, Comment: h.Comment}
		if h.Created != nil {
			step.Created = *h.Created
		}
		if !h.EmptyLayer && len(layers) > 0 {
			step.Layer, layers = layers[0], layers[1:]
		}
		steps = append([]Step{step}, steps...)
	}
	for _, l := range layers { // of which the history says nothing
		steps = append([]Step{{Layer: l}}, steps...)
	}
	return m.Config.Digest, steps, nil
}
