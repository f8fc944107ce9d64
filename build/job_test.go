package build

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kilnbuild/kiln/build/confine"
	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/material"
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/store"
	digest "github.com/opencontainers/go-digest"
)

// seen collects the events of one stream.
type seen struct {
	mu     sync.Mutex
	events []events.Event
}

func (s *seen) Event(e events.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
}

// project makes a context with a Dockerfile and a file.
func project(t *testing.T, dockerfile, file string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"Dockerfile": dockerfile, "file": file} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestJobs runs several jobs in one process, on one root directory, at the same time. Each stream has the events of its own job, and when
// the jobs are over nothing is held any more.
func TestJobs(t *testing.T) {
	b := newBuilder(t)
	const n = 4
	results, streams := make([]*Result, n), make([]*seen, n)
	var jobs sync.WaitGroup
	for i := range n {
		streams[i] = &seen{}
		dir := project(t, "FROM scratch\nCOPY file /\n", strings.Repeat("x", i))
		jobs.Go(func() {
			s := events.New(streams[i])
			defer s.Close()
			j, err := b.Begin(Options{Source: contexts.Source{Context: dir}}, s)
			if err != nil {
				t.Error(err)
				return
			}
			if results[i], err = j.Run(t.Context()); err != nil {
				t.Error(err)
			}
			if err := j.Close(t.Context()); err != nil { // it is closed already
				t.Error(err)
			}
			for _, e := range streams[i].events {
				if build, ok := e.Body.(events.Build); ok && build.Context != dir {
					t.Errorf("job %d has the events of the build of %s", i, build.Context)
				}
			}
		})
	}
	jobs.Wait()
	if t.Failed() {
		return
	}
	digests := map[string]bool{}
	for i, r := range results {
		digests[r.Digest] = true
		done := 0
		for _, e := range streams[i].events {
			if d, ok := e.Body.(events.Done); ok {
				done++
				if d.Digest != r.Digest {
					t.Errorf("job %d made %s, and its events say %s", i, r.Digest, d.Digest)
				}
			}
		}
		if done != 1 {
			t.Errorf("the events of job %d have %d ends", i, done)
		}
	}
	if len(digests) != n {
		t.Errorf("%d jobs made %d images", n, len(digests))
	}
	if _, err := b.root.Prune(t.Context(), store.PruneOptions{All: true}, func(part.Item) error { return nil }); err != nil {
		t.Fatal(err)
	}
	u, err := b.root.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range u.Items {
		if it.Kind == part.Image || it.Kind == part.Blob || it.Kind == part.Layer || it.Kind == part.Record {
			t.Errorf("%s %s is held by a job that is over", it.Kind, it.ID)
		}
	}
}

// What is wrong with the options is said before anything is read, and holds nothing.
func TestBegin(t *testing.T) {
	b := newBuilder(t)
	elsewhere, err := exporter.ParseAnnotation("manifest[linux/s390x]:a=b")
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]Options{
		"name":     {Export: Export{Tags: []string{"a.-b"}}},
		"output":   {Export: Export{Outputs: []Output{{Type: OutputOCI, Attrs: map[string]string{"tar": "maybe"}}}}},
		"limits":   {Run: Run{Request: confine.Request{Limits: confine.Limits{"memory-swap": "1m", "memory": "1g"}}}},
		"/proc":    {Run: Run{Request: confine.Request{NoProcessSandbox: true}}},
		"platform": {Export: Export{Annotations: elsewhere}},
	} {
		if _, err := b.Begin(o, nil); !errors.As(err, new(*input.Error)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	j, err := b.Begin(Options{Source: contexts.Source{Context: t.TempDir()}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Close(t.Context()); err != nil {
		t.Errorf("close a job that did not run: %v", err)
	}
}

// A check and a description build nothing, and fetch nothing.
func TestCalls(t *testing.T) {
	b := newBuilder(t)
	source := contexts.Source{Context: project(t, "FROM scratch AS one\nARG a=1\nCOPY file /\nMAINTAINER me\nFROM one AS two\n", "x")}
	res, err := b.Build(t.Context(), Options{Source: source, Call: CallCheck}, nil)
	if err != nil || len(res.Warnings) != 1 || res.Warnings[0].Rule != "MaintainerDeprecated" || res.Digest != "" {
		t.Errorf("check: %+v, %v", res, err)
	}
	res, err = b.Build(t.Context(), Options{Source: source, Call: CallTargets}, nil)
	if err != nil || res.Targets == nil || len(res.Targets.Targets) != 2 {
		t.Errorf("targets: %+v, %v", res, err)
	}
	res, err = b.Build(t.Context(), Options{Source: source, Target: Target{Stage: "one"}, Call: CallOutline}, nil)
	if err != nil || res.Outline == nil || len(res.Outline.Args) != 1 {
		t.Errorf("outline: %+v, %v", res, err)
	}
	w, err := b.root.Work()
	if err != nil {
		t.Fatal(err)
	}
	if ids, err := w.History.IDs(); err != nil || len(ids) != 0 {
		t.Errorf("the history has %q, %v", ids, err)
	}
}

// A context on standard input is an archive, or a Dockerfile; it is not both context and Dockerfile.
func TestStdin(t *testing.T) {
	b := newBuilder(t)
	build := func(text, dockerfile string) (*Result, error) {
		return b.Build(t.Context(), Options{
			Source: contexts.Source{Context: "-", Dockerfile: dockerfile, Stdin: strings.NewReader(text)},
			Export: Export{Outputs: []Output{{Type: OutputCacheOnly}}},
		}, nil)
	}
	if res, err := build("FROM scratch\nLABEL a=b\n", ""); err != nil || string(res.Dockerfile) != "FROM scratch\nLABEL a=b\n" {
		t.Errorf("a Dockerfile: %+v, %v", res, err)
	}
	if _, err := build("\x00\x01", ""); !errors.As(err, new(*input.Error)) {
		t.Errorf("neither: %v", err)
	}
	if _, err := build("", "-"); err == nil || !strings.Contains(err.Error(), "both") {
		t.Errorf("both: %v", err)
	}
}

// TestMaterials: a result has what the build took from elsewhere, each thing once, whether or not the steps were cached.
func TestMaterials(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("text")) }))
	defer server.Close()
	b := newBuilder(t)
	url := server.URL + "/file"
	dir := project(t, "FROM scratch AS a\nADD "+url+" /a\nFROM scratch\nADD "+url+" /b\nCOPY --from=a / /\n", "")
	want := []material.Material{{Kind: material.File, Name: url, Digest: digest.FromString("text").String()}}
	for range 2 {
		r, err := b.Build(t.Context(), Options{Source: contexts.Source{Context: dir}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(r.Materials, want) {
			t.Errorf("the materials are %v, want %v", r.Materials, want)
		}
	}
}
