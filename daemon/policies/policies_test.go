package policies

import (
	"context"
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/moby/buildkit/sourcepolicy/policysession"

	"github.com/kilnbuild/kiln/internal/sourcepolicy"
)

const sum = "@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

// Policies see what a source is, however it is written, and what comes with it.
func TestAdmit(t *testing.T) {
	for _, tt := range []struct {
		id    string
		attrs map[string]string
		seen  []string
		// to is what the first of them becomes, and after what the source then is.
		to     sourcepolicy.Source
		after  string
		kept   map[string]string
		denied bool
	}{
		{id: "docker-image://alpine", seen: []string{"docker-image://docker.io/library/alpine:latest"}, after: "docker-image://alpine"},
		{id: "git://h/r.git#main:../a/../b", seen: []string{"git://h/r.git#main:b"}, after: "git://h/r.git#main:../a/../b"},
		{id: "git://h/r.git#:/", seen: []string{"git://h/r.git"}, after: "git://h/r.git#:/"},
		{id: "local://context", seen: []string{"local://context"}, after: "local://context"},
		{id: "docker-image://a", seen: []string{"docker-image://docker.io/library/a:latest"},
			to:    sourcepolicy.Source{Identifier: "https://h/f", Attrs: map[string]string{"http.checksum": "c", "note": "x"}},
			after: "https://h/f", kept: map[string]string{"http.checksum": "c"}},
		{id: "git://h/r.git", attrs: map[string]string{pb.AttrGitBundle: "docker-image+blob://r.io/b" + sum},
			seen: []string{"git://h/r.git", "docker-image+blob://r.io/b" + sum}, after: "git://h/r.git",
			kept: map[string]string{pb.AttrGitBundle: "docker-image+blob://r.io/b" + sum}},
		{id: "git://h/r.git", attrs: map[string]string{pb.AttrGitBundle: "oci-layout+blob://s/b" + sum}, denied: true,
			seen: []string{"git://h/r.git", "oci-layout+blob://s/b" + sum + " s/b"}},
	} {
		var seen []string
		decide := Decide(func(_ context.Context, s sourcepolicy.Source, _ *pb.Platform) (sourcepolicy.Source, error) {
			id := s.Identifier
			if store := s.Attrs[pb.AttrOCILayoutStoreID]; store != "" {
				id += " " + store
			}
			seen = append(seen, id)
			switch {
			case tt.denied && len(seen) == 2:
				return s, errors.New("denied")
			case tt.to.Identifier != "" && len(seen) == 1:
				return tt.to, nil
			}
			return s, nil
		})
		op := &pb.SourceOp{Identifier: tt.id, Attrs: maps.Clone(tt.attrs)}
		err := decide.Admit(t.Context(), op, nil)
		if !slices.Equal(seen, tt.seen) || (err != nil) != tt.denied {
			t.Errorf("%s: policies see %q, and decide %v", tt.id, seen, err)
		}
		if !tt.denied && (op.Identifier != tt.after || !maps.Equal(op.Attrs, tt.kept)) {
			t.Errorf("%s becomes %s %v", tt.id, op.Identifier, op.Attrs)
		}
	}
}

// A client that converts for ever, or never decides, is asked a few times.
func TestAskEnds(t *testing.T) {
	asked := 0
	c := Client{Check: func(_ context.Context, req *policysession.CheckPolicyRequest) (*policysession.CheckPolicyResponse, error) {
		asked++
		return &policysession.CheckPolicyResponse{Result: &policysession.CheckPolicyResponse_Decision{Decision: &policysession.DecisionResponse{
			Action: spb.PolicyAction_CONVERT, Update: req.Source.Source,
		}}}, nil
	}}
	left, err, converted := 10, error(nil), true
	for err == nil && converted {
		_, converted, err = c.Ask(t.Context(), sourcepolicy.Source{Identifier: "docker-image://a"}, "", &left)
	}
	if err == nil || asked != 10 {
		t.Errorf("it was asked %d times: %v", asked, err)
	}
}
