package set

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/store"
)

// seen collects the steps of one stream.
type seen struct {
	mu       sync.Mutex
	names    map[string]string // of steps by vertex
	cached   map[string]bool   // steps that were
	finished map[string]bool
}

func (s *seen) Event(e events.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.names == nil {
		s.names, s.cached, s.finished = map[string]string{}, map[string]bool{}, map[string]bool{}
	}
	id := e.Vertex.String()
	switch body := e.Body.(type) {
	case events.Started:
		s.names[id] = body.Text
	case events.Cached:
		s.cached[s.names[id]] = true
	case events.Finished:
		s.finished[s.names[id]] = body.Error == ""
	}
}

// opened is a root directory with what builds in it.
func opened(t *testing.T) (*build.Builder, *store.Root) {
	t.Helper()
	root, err := store.Open(context.Background(), t.TempDir(), &config.Config{}) // it outlives what t.Context ends
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := root.Close(); err != nil {
			t.Error(err)
		}
	})
	b, err := build.New(root, registry.New(nil), &config.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return b, root
}

// member returns a build of a Dockerfile in a context with a file.
func member(t *testing.T, name, dockerfile string, sink events.Sink) Member {
	t.Helper()
	dir := t.TempDir()
	for file, text := range map[string]string{"Dockerfile": dockerfile, "file": "text"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m := Member{Name: name, Options: build.Options{Source: contexts.Source{Context: dir}, Call: build.CallBuild}}
	m.Options.Export.Tags = []string{name}
	if sink != nil {
		m.Sinks = []events.Sink{sink}
	}
	return m
}

// TestEqualSteps holds that a step which several members have runs in one of them.
func TestEqualSteps(t *testing.T) {
	b, root := opened(t)
	const n = 4
	var members []Member
	streams := make([]*seen, n)
	for i := range n {
		streams[i] = &seen{}
		members = append(members, member(t, string(rune('a'+i)), "FROM scratch\nCOPY file /\n", streams[i]))
	}
	results, err := Build(t.Context(), b, root, members, nil)
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for i, s := range streams {
		if !s.finished["COPY file /"] {
			t.Errorf("member %d has the steps %v", i, s.names)
		}
		if !s.cached["COPY file /"] {
			ran++
		}
		if d := results[members[i].Name].Digest; d != results["a"].Digest {
			t.Errorf("member %d is the image %s, and the first one %s", i, d, results["a"].Digest)
		}
	}
	if ran != 1 {
		t.Errorf("the step ran in %d members", ran)
	}
}

// TestNeeds holds that a member begins with the image of another one, which is kept no longer than the set takes if only that was asked
// for.
func TestNeeds(t *testing.T) {
	b, root := opened(t)
	base := member(t, "base", "FROM scratch\nCOPY file /\n", nil)
	base.Linked, base.Options.Export.Tags = true, nil
	stream := &seen{}
	app := member(t, "app", "FROM parent\nCOPY file /again\n", stream)
	app.Needs = map[string]string{"parent": "base"}
	results, err := Build(t.Context(), b, root, []Member{app, base}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if results["app"].Digest == "" || results["base"].Digest == "" || results["app"].Digest == results["base"].Digest {
		t.Errorf("the images are %q and %q", results["base"].Digest, results["app"].Digest)
	}
	list, err := root.Images.Images()
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range list {
		if image.Desc.Digest.String() == results["base"].Digest {
			t.Errorf("the image %s that nobody asked for is kept", image.Desc.Digest)
		}
	}
	// What has no image cannot be needed.
	checked := member(t, "checked", "FROM scratch\nCOPY file /\n", nil)
	checked.Options.Call = build.CallCheck
	app.Needs = map[string]string{"parent": "checked"}
	if _, err := Build(t.Context(), b, root, []Member{checked, app}, nil); err == nil || !strings.Contains(err.Error(), "whose output is no image") {
		t.Errorf("got the error %v, want one that says that there is no image", err)
	}
}

// TestFailure holds that the first failure ends the other members, also those that wait, and is the error.
func TestFailure(t *testing.T) {
	b, root := opened(t)
	broken := member(t, "broken", "FROM scratch\nCOPY not-there /\n", nil)
	waiting := member(t, "waiting", "FROM parent\nCOPY file /\n", nil)
	waiting.Needs = map[string]string{"parent": "broken"}
	last := member(t, "last", "FROM parent\nCOPY file /\n", nil)
	last.Needs = map[string]string{"parent": "waiting"}
	results, err := Build(t.Context(), b, root, []Member{last, waiting, broken}, nil)
	failed, ok := errors.AsType[*MemberError](err)
	if !ok || failed.Member != "broken" || !strings.Contains(err.Error(), "not-there") || failed.Result.DockerfileName == "" {
		t.Errorf("got the error %v, want that of the member broken", err)
	}
	if len(results) > 0 {
		t.Errorf("there are results: %v", results)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Build(ctx, b, root, []Member{member(t, "a", "FROM scratch\nCOPY file /\n", nil)}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got the error %v, want that of the context", err)
	}
}
