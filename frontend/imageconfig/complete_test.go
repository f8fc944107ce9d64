package imageconfig

import (
	"reflect"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A history has an entry for each layer, and every entry has a time.
func TestComplete(t *testing.T) {
	one, two, three := time.Unix(1, 0), time.Unix(2, 0), time.Unix(3, 0)
	for name, c := range map[string]struct {
		history []ocispec.History
		layers  []Made
		want    []ocispec.History
	}{
		"nothing": {nil, nil, nil},
		"no entries": {nil, []Made{{"a", &one}, {"b", &two}}, []ocispec.History{
			{Created: &one, CreatedBy: "a", Comment: completed}, {Created: &two, CreatedBy: "b", Comment: completed},
		}},
		"too few, and no times": {
			[]ocispec.History{{CreatedBy: "ENV", EmptyLayer: true}, {CreatedBy: "RUN"}, {CreatedBy: "CMD", EmptyLayer: true}},
			[]Made{{"a", &two}, {"b", &three}},
			[]ocispec.History{
				{Created: &two, CreatedBy: "ENV", EmptyLayer: true}, {Created: &two, CreatedBy: "RUN"},
				{Created: &two, CreatedBy: "CMD", EmptyLayer: true},
				{Created: &three, CreatedBy: "b", Comment: completed},
			},
		},
		"too many": {
			[]ocispec.History{{CreatedBy: "RUN 1", Created: &one}, {CreatedBy: "RUN 2"}}, []Made{{"a", &two}},
			[]ocispec.History{{CreatedBy: "RUN 1", Created: &one}, {CreatedBy: "RUN 2", Created: &one, EmptyLayer: true}},
		},
	} {
		if got := Complete(c.history, c.layers); !reflect.DeepEqual(got, c.want) && len(got)+len(c.want) > 0 {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}
