package daemon

import (
	"context"
	"fmt"
	"strings"
	"testing"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/daemon/returned"
	"github.com/kilnbuild/kiln/llb"
)

// A build holds no more for its client than is allowed.
func TestHeld(t *testing.T) {
	refused := func(what string, err error) {
		t.Helper()
		if status.Code(err) != codes.ResourceExhausted {
			t.Errorf("%s: %v", what, err)
		}
	}
	b := &buildJob{ready: make(chan struct{}), over: make(chan struct{}), held: held{refs: map[string]*ref{}, requests: maxRequests}}
	close(b.ready)
	refused("another request", b.use(t.Context()))
	for range maxRefs {
		b.add(&ref{})
	}
	refused("another result", b.room(1))
	def := &pb.Definition{Def: [][]byte{make([]byte, maxSent/2-1<<10)}}
	for range 2 {
		if err := b.take(def); err != nil {
			t.Fatal(err)
		}
	}
	refused("another definition", b.take(def))
	refused("attributes", b.takeAttrs(map[string]string{"build-arg:A": strings.Repeat("x", 1<<20)}))
	for range maxFrontends {
		leave, err := b.enter()
		if err != nil {
			t.Fatal(err)
		}
		defer leave()
	}
	_, err := b.enter()
	refused("another frontend", err)
}

// What a client returns is not believed: results without files, and platforms that are there once and named a thousand times.
func TestReturned(t *testing.T) {
	res := &result{refs: map[string]*ref{"a": nil, "b": {}}, metadata: map[string][]byte{}}
	if all := res.all(); len(all) != 1 {
		t.Errorf("%d refs", len(all))
	}
	named := strings.Repeat(`{"ID":"a"},`, len(res.refs)+returned.MaxRepeated) + `{"ID":"a"}`
	res.metadata[returned.KeyPlatforms] = []byte(`{"Platforms":[` + named + `]}`)
	if _, err := (&buildJob{}).product(res); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a platform that is named again and again: %v", err)
	}
}

// A build can be used by the user alone who asked for it, and nobody can have more builds wait than leave others room.
func TestUsers(t *testing.T) {
	s := &Server{builds: newBuilds(), draining: make(chan struct{})}
	s.builds.byRef["ref"] = &buildJob{user: "a"}
	if _, err := s.builds.wait(t.Context(), "ref", "a"); err != nil {
		t.Error(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if b, err := s.builds.wait(ended, "ref", "b"); err == nil {
		t.Errorf("a build of %s", b.user)
	}
	for i := range maxKnown / 2 {
		s.builds.byRef[fmt.Sprint(i)] = &buildJob{user: "a"}
	}
	err := s.begin(t.Context(), &buildJob{server: s, user: "a", request: &controlapi.SolveRequest{Ref: "another"}})
	if status.Code(err) != codes.ResourceExhausted {
		t.Error(err)
	}
}

// A frontend that is a process has steps in the control group that the client names for them, and in no other.
func TestControlGroups(t *testing.T) {
	g := &llb.Graph{}
	step := func(parent string, on llb.Output) llb.Output {
		return g.Add(llb.Exec{Args: []string{"x"}, RunOptions: llb.RunOptions{CgroupParent: parent}}, llb.Meta{}, on).Output(0)
	}
	b := &bridge{cgroupParent: "mine"}
	for parent, allowed := range map[string]bool{"": true, "mine": true, "/system.slice/sshd.service": false} {
		below := step(parent, scratch())
		for _, res := range []*result{{single: &ref{root: step("mine", below)}}, {refs: map[string]*ref{"a": nil, "b": {root: below}}}} {
			if err := b.confined(res); (err == nil) != allowed || err != nil && status.Code(err) != codes.PermissionDenied {
				t.Errorf("%q: %v", parent, err)
			}
		}
	}
}
