package records

import (
	"errors"
	"testing"

	control "github.com/moby/buildkit/api/services/control"

	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/store"
)

// What is kept is told and removed in BuildKit's terms; the history is neither.
func TestUsage(t *testing.T) {
	root, err := store.Open(t.Context(), t.TempDir(), &config.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	work, err := root.Work()
	if err != nil {
		t.Fatal(err)
	}
	r := New(work.History, work.Scratch.Path(), func(err error) { t.Error(err) })
	do(t, r, Request{Ref: "a"}, Result{})
	for _, data := range []string{"one", "two"} {
		desc, err := root.Images.Put("application/vnd.oci.image.manifest.v1+json", []byte(data))
		if err != nil {
			t.Fatal(err)
		}
		if data == "two" {
			if err := root.Images.Tag("docker.io/library/two:latest", desc); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := root.Images.Release(); err != nil {
		t.Fatal(err)
	}
	usage := func(filters ...string) []*control.UsageRecord {
		t.Helper()
		resp, err := DiskUsage(t.Context(), root, &control.DiskUsageRequest{Filter: filters})
		if err != nil {
			t.Fatal(err)
		}
		return resp.Record
	}
	prune := func(req *control.PruneRequest) int {
		t.Helper()
		n := 0
		if err := Prune(t.Context(), root, req, func(*control.UsageRecord) error { n++; return nil }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if all := usage(); len(all) != 1 || all[0].RecordType != typeInternal || all[0].InUse || all[0].Size == 0 {
		t.Errorf("the root directory keeps %v", all)
	}
	if n := len(usage("type==regular")); n != 0 {
		t.Errorf("%d layers are kept", n)
	}
	if n := prune(&control.PruneRequest{All: true, Filter: []string{"type==regular"}}); n != 0 {
		t.Errorf("%d things were removed that the filter keeps", n)
	}
	if n := prune(&control.PruneRequest{All: true, KeepDuration: 1 << 60}); n != 0 {
		t.Errorf("%d things were removed that were used of late", n)
	}
	if n := prune(&control.PruneRequest{All: true}); n != 1 {
		t.Errorf("%d things were removed", n)
	}
	if all := usage(); len(all) != 0 {
		t.Errorf("%v is left", all)
	}
	if got := refs(list(t, r, &control.BuildHistoryRequest{})); got != "COMPLETE:a" {
		t.Errorf("the history has %s", got)
	}
	if _, err := root.Images.Lookup("docker.io/library/two:latest"); err != nil {
		t.Error(err)
	}
	if err := Prune(t.Context(), root, &control.PruneRequest{Filter: []string{"x+"}}, nil); !errors.As(err, new(*QueryError)) {
		t.Errorf("a filter that is none: %v", err)
	}
}
