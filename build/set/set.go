// Package set does several builds together, of which some need the images of others.
package set

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/registry/layout"
	"github.com/kilnbuild/kiln/store"
	digest "github.com/opencontainers/go-digest"
)

// Member is one build of a set.
type Member struct {
	Name    string
	Options build.Options
	// Needs are named contexts that are the images of other members: the name of the member, by that of the context. Together they have no
	// cycle.
	Needs map[string]string
	// Linked says that the member is built only because others need it: its image is kept no longer than the set takes.
	Linked bool
	// Sinks are told what happens in this build, in addition to the stream of the set.
	Sinks []events.Sink
}

// MemberError says which member of a set failed.
type MemberError struct {
	Member string
	Result *build.Result
	Err    error
}

func (e *MemberError) Error() string { return fmt.Sprintf("target %s: %v", e.Member, e.Err) }

// Unwrap returns Err.
func (e *MemberError) Unwrap() error { return e.Err }

// maxJobs is how many members are built at once. Each has parallelism of its own.
const maxJobs = 16

// set is a set of builds that is being done.
type set struct {
	builder *build.Builder
	root    *store.Root
	events  *events.Stream
	jobs    chan struct{}
	done    map[string]chan struct{} // closed when the member is built

	mu      sync.Mutex
	results map[string]*build.Result
	err     error
}

// Build builds the members at the same time, each as a job of its own once those that it needs are built; steps that are the same in
// several members run once, since a step's key is locked while it runs. The first failure ends all others, and is a *MemberError. The
// results are those of the members that were built. root is where the builder keeps what it builds.
func Build(
	ctx context.Context, b *build.Builder, root *store.Root, members []Member, s *events.Stream,
) (map[string]*build.Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	set := &set{
		builder: b, root: root, events: s, jobs: make(chan struct{}, maxJobs),
		done: map[string]chan struct{}{}, results: map[string]*build.Result{},
	}
	needed := map[string]bool{}
	for _, m := range members {
		set.done[m.Name] = make(chan struct{})
		for _, name := range m.Needs {
			needed[name] = true
		}
	}
	var running sync.WaitGroup
	for _, m := range members {
		if needed[m.Name] {
			m.Options.Export.Outputs = withImage(m.Options.Export.Outputs)
		}
		running.Go(func() {
			if err := set.build(ctx, m); err != nil {
				cancel()
			}
		})
	}
	running.Wait()
	return set.results, errors.Join(set.err, set.forget(members))
}

// withImage returns outputs with one to the image store before the others, unless there is one: whoever needs the image finds all of it
// there.
func withImage(outputs []build.Output) []build.Output {
	if len(outputs) == 0 || slices.ContainsFunc(outputs, func(o build.Output) bool { return o.Type == build.OutputImage }) {
		return outputs
	}
	return append([]build.Output{{Type: build.OutputImage, Attrs: map[string]string{}}}, outputs...)
}

// build builds a member once those that it needs are built.
func (s *set) build(ctx context.Context, m Member) error {
	for _, name := range m.Needs {
		if s.done[name] == nil {
			return s.failed(m, &build.Result{}, fmt.Errorf("BUG: it needs %s, which is not built", name))
		}
		select {
		case <-s.done[name]:
		case <-ctx.Done():
			return s.failed(m, &build.Result{}, ctx.Err())
		}
	}
	select {
	case s.jobs <- struct{}{}:
		defer func() { <-s.jobs }()
	case <-ctx.Done():
		return s.failed(m, &build.Result{}, ctx.Err())
	}
	if err := s.link(&m); err != nil {
		return s.failed(m, &build.Result{}, err)
	}
	stream := events.New(append([]events.Sink{&relay{to: s.events, member: m.Name}}, m.Sinks...)...)
	defer stream.Close()
	result, err := s.builder.Build(ctx, m.Options, stream)
	if err != nil {
		return s.failed(m, result, err)
	}
	s.mu.Lock()
	s.results[m.Name] = result
	s.mu.Unlock()
	close(s.done[m.Name])
	return nil
}

// failed keeps the first error, which ends the set.
func (s *set) failed(m Member, result *build.Result, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = &MemberError{m.Name, result, err}
	}
	return err
}

// link makes the images of other members named contexts, which are in the image store under their digests.
func (s *set) link(m *Member) error {
	if len(m.Needs) == 0 {
		return nil
	}
	root, err := filepath.Abs(s.root.Images.Root())
	if err != nil {
		return err
	}
	named := maps.Clone(m.Options.Source.Named)
	if named == nil {
		named = map[string]string{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, other := range m.Needs {
		d := s.results[other].Digest
		if d == "" {
			return fmt.Errorf("the context %s is the target %s, whose output is no image", name, other)
		}
		named[name] = layout.Scheme + root + "@" + d
	}
	m.Options.Source.Named = named
	return nil
}

// forget removes the images from the store's list that nobody asked for.
func (s *set) forget(members []Member) error {
	var err error
	for _, m := range members {
		if r := s.results[m.Name]; m.Linked && r != nil && r.Digest != "" {
			_, forgetErr := s.root.Images.Forget(digest.Digest(r.Digest))
			err = errors.Join(err, forgetErr)
		}
	}
	return err
}

// relay passes the events of a member's stream on to that of the set. Vertices get IDs and places of their own, since several members may
// have the same ones. Their beginnings and ends are no events of the set.
type relay struct {
	to     *events.Stream
	member string
}

// Event implements events.Sink.
func (r *relay) Event(e events.Event) {
	switch body := e.Body.(type) {
	case events.Build, events.Done, events.Planned:
		return
	case events.Started:
		body.Place.Member = r.member
		body.Inputs = slices.Clone(body.Inputs)
		for i, in := range body.Inputs {
			body.Inputs[i] = r.id(in)
		}
		e.Body = body
	case events.Waiting:
		if body.For != (llb.Digest{}) {
			body.For = r.id(body.For)
		}
		e.Body = body
	}
	if e.Vertex != (llb.Digest{}) {
		e.Vertex = r.id(e.Vertex)
	}
	r.to.Relay(e)
}

// id returns the ID that a vertex of the member has in the stream of the set.
func (r *relay) id(d llb.Digest) llb.Digest {
	return sha256.Sum256(append([]byte("kiln member "+r.member+"\x00"), d[:]...))
}
