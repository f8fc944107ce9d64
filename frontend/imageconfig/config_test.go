package imageconfig

import (
	"strings"
	"testing"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestHistory has base images whose history has too few and too many entries for their layers. "l" is an entry of a layer, "e" one
// without.
func TestHistory(t *testing.T) {
	for _, tt := range []struct {
		layers        int
		history, want string
	}{
		{2, "lel", "lel"}, {2, "", "ll"}, {2, "l", "ll"}, {3, "ele", "elell"}, {2, "lll", "lle"}, {1, "elell", "elee" + "e"}, {0, "ll", "ee"}, {0, "", ""},
	} {
		image := &dockerspec.DockerOCIImage{}
		for range tt.layers {
			image.RootFS.DiffIDs = append(image.RootFS.DiffIDs, digest.FromString("x"))
		}
		for _, c := range tt.history {
			image.History = append(image.History, ocispec.History{EmptyLayer: c == 'e', CreatedBy: "own"})
		}
		var got strings.Builder
		for i, h := range Of(image).History() {
			got.WriteByte("le"[map[bool]int{false: 0, true: 1}[h.Empty]])
			if (h.CreatedBy == "own") != (i < len(tt.history)) {
				t.Errorf("%d layers, history %q: entry %d is %+v", tt.layers, tt.history, i, h)
			}
		}
		if got.String() != tt.want {
			t.Errorf("%d layers, history %q: got %q, want %q", tt.layers, tt.history, got.String(), tt.want)
		}
		if len(image.History) != len(tt.history) {
			t.Error("the image itself was changed")
		}
	}
}
