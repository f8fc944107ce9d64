package store

import (
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/part"
)

// How much has to go follows BuildKit's rule (cache/manager.go, calculateKeepBytes): the limits that are not 0 hold together, but for what
// is reserved.
func TestExcess(t *testing.T) {
	for _, tc := range []struct {
		name        string
		o           PruneOptions
		total, free int64
		want        int64
		limited     bool
	}{
		{"no limit", PruneOptions{}, 100, 10, 0, false},
		{"too much is used", PruneOptions{MaxUsed: 60}, 100, 10, 40, true},
		{"not too much", PruneOptions{MaxUsed: 200}, 100, 10, -100, true},
		{"too little is free", PruneOptions{MinFree: 30}, 100, 10, 20, true},
		{"enough is free", PruneOptions{MinFree: 5}, 100, 10, 0, true},
		{"the narrower of both", PruneOptions{MaxUsed: 90, MinFree: 30}, 100, 10, 20, true},
		{"but for what is reserved", PruneOptions{MaxUsed: 10, Reserved: 70}, 100, 10, 30, true},
		{"all but what is reserved", PruneOptions{Reserved: 70}, 100, 10, 30, true},
	} {
		got, limited := tc.o.excess(tc.total, tc.free)
		if limited != tc.limited || limited && got != tc.want {
			t.Errorf("%s: %d, %v", tc.name, got, limited)
		}
	}
}

// What images with a name are made of is shared, and so are the records of it; a layer takes its description from the record, and the base
// of delta layers goes after them.
func TestRelate(t *testing.T) {
	now := time.Now()
	items := []part.Item{
		{Kind: part.Record, ID: "r", Description: "RUN make", Layers: []string{"delta"}},
		{Kind: part.Record, ID: "other", Description: "RUN test", Layers: []string{"cache"}},
		{Kind: part.Layer, ID: "delta", Base: "base", DiffIDs: []string{"d1"}, Used: now},
		{Kind: part.Layer, ID: "base", Used: now.Add(-time.Hour)},
		{Kind: part.Layer, ID: "cache", Used: now},
		{Kind: part.Entries, ID: "d2"},
		{Kind: part.Entries, ID: "d3"},
		{Kind: part.Git, ID: "d1"},
		{Kind: part.Layer, ID: "lost", Base: "not there"},
	}
	relate(items, &cas.Reached{DiffIDs: map[string]bool{"d1": true, "d2": true}})
	byID := map[string]part.Item{}
	for _, it := range items {
		byID[string(it.Kind)+" "+it.ID] = it
	}
	for name, want := range map[string]bool{
		"record r": true, "record other": false, "layer delta": true, "layer base": true, "layer cache": false, "entries d2": true, "entries d3": false,
		"git mirror d1": false, "layer lost": false,
	} {
		if it, ok := byID[name]; !ok || it.Shared != want {
			t.Errorf("%s is shared: %v", name, it.Shared)
		}
	}
	if !byID["layer base"].Used.After(byID["layer delta"].Used) {
		t.Error("the base of a delta layer goes before it")
	}
	if got := byID["layer delta"].Description; got != "RUN make" {
		t.Errorf("the layer was made by %q", got)
	}
}
