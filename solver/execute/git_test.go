package execute

import (
	"testing"

	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver/session"
)

// The keys and the agent of the user of this process are for contexts that this user named, and not for clients of a daemon.
func TestGitIdentity(t *testing.T) {
	for _, c := range []struct{ context, elsewhere, user bool }{
		{context: true, user: true},
		{context: true, elsewhere: true},
		{},
	} {
		x := &Job{Session: &session.Session{Elsewhere: c.elsewhere}}
		who, giveBack, err := x.gitIdentity(t.Context(), llb.Git{Remote: "ssh://git@example.org/app", Context: c.context})
		if err != nil {
			t.Fatal(err)
		}
		giveBack()
		if who.User != c.user {
			t.Errorf("%+v: the user's own keys: %t", c, who.User)
		}
	}
}
