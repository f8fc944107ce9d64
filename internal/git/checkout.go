package git

import (
	"context"
	"os/exec"
	"strings"

	"github.com/kilnbuild/kiln/internal/remoteurl"
)

// Checkout says what the repository that has dir in its working tree is at.
type Checkout struct {
	// Revision is the hash of the commit that is checked out, and Origin the address of the remote of that name, without credentials.
	// Each is "" if there is none.
	Revision, Origin string
}

// DescribeCheckout returns the checkout that dir, an absolute path, is in; the zero value if it is in none, or git cannot say. Files may
// differ from those of the commit. Nothing that the repository's configuration names is run, and nothing is fetched.
func DescribeCheckout(ctx context.Context, dir string) Checkout {
	if _, err := exec.LookPath("git"); err != nil {
		return Checkout{}
	}
	ask := func(args ...string) string {
		out, err := (&Client{}).output(ctx, call{
			source: &remoteurl.Git{Remote: dir}, local: true, doing: "describe the checkout of",
			args: append([]string{"-C", dir, "--no-replace-objects", "-c", "safe.directory=*", "-c", "safe.bareRepository=explicit"}, args...),
		})
		if err != nil {
			return ""
		}
		return strings.TrimSpace(out)
	}
	c := Checkout{Revision: ask("rev-parse", "--quiet", "--verify", "HEAD^{commit}")}
	if c.Revision != "" {
		c.Origin = remoteurl.WithoutUser(ask("config", "--get", "remote.origin.url"))
	}
	return c
}
