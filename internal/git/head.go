package git

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/remoteurl"
)

// HeadTime returns when the commit was made that is checked out in the repository of dir, an absolute path that errors call shown: the
// committer's time. Whoever owns the repository, nothing that its configuration names is run, and nothing is fetched.
func HeadTime(ctx context.Context, dir, shown string) (time.Time, error) {
	if _, err := exec.LookPath("git"); err != nil {
		return time.Time{}, errors.New("git is not installed: install the package git")
	}
	c := &Client{}
	text, err := c.output(ctx, call{
		source: &remoteurl.Git{Remote: shown}, local: true, doing: "read the commit of",
		args: []string{"-C", dir, "--no-replace-objects", "-c", "safe.directory=*", "-c", "safe.bareRepository=explicit", "cat-file", "commit", "HEAD"},
	})
	if failed, ok := errors.AsType[*Error](err); ok && strings.Contains(failed.Said, "not a git repository") {
		return time.Time{}, fmt.Errorf("%s is not in a git repository", shown)
	} else if ok && strings.Contains(failed.Said, "HEAD") {
		return time.Time{}, fmt.Errorf("the repository of %s has no commit", shown)
	}
	if err != nil {
		return time.Time{}, err
	}
	header, _, _ := strings.Cut(text, "\n\n")
	for line := range strings.Lines(header) {
		who, ok := strings.CutPrefix(line, "committer ")
		if !ok {
			continue
		}
		// NAME <ADDRESS> SECONDS ZONE
		fields := strings.Fields(who[strings.LastIndexByte(who, '>')+1:])
		if len(fields) != 2 {
			break
		}
		seconds, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			break
		}
		return time.Unix(seconds, 0), nil
	}
	return time.Time{}, fmt.Errorf("the commit of %s has no time", shown)
}
