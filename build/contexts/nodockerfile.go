package contexts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/suggest"
)

// maxNames bounds the names of a directory that are looked at for what may have been meant, and maxMeant those that an error has.
const (
	maxNames = 1 << 14
	maxMeant = 3
)

// noDockerfile returns the error for a context that is a directory without a Dockerfile. It names what may have been meant.
func (s *Source) noDockerfile() error {
	context := rootdir.Shown(s.Context)
	var near []string
	for _, name := range namesIn(s.Context) {
		if lower := strings.ToLower(name); strings.Contains(lower, "dockerfile") && !strings.HasSuffix(lower, ".dockerignore") ||
			lower == "containerfile" || suggest.Nearest("Dockerfile", name) != "" {
			near = append(near, "-f "+filepath.Join(context, name))
		}
	}
	slices.Sort(near)
	hint := "name one with -f"
	switch above := filepath.Join(s.Context, "..", "Dockerfile"); {
	case len(near) > 0:
		more := ""
		if len(near) > maxMeant {
			near, more = near[:maxMeant], fmt.Sprintf(" (and %d more)", len(near)-maxMeant)
		}
		hint = "did you mean " + strings.Join(near, " or ") + more + "?"
	case isRegular(above):
		hint = fmt.Sprintf("there is one in the directory above: kiln build -f %s %s, or that directory as the context",
			filepath.Join(context, "..", "Dockerfile"), context)
	}
	return fmt.Errorf("there is no Dockerfile in %s: %s", context, hint)
}

// explain adds to the error of reading the Dockerfile what may have been meant by -f.
func (s *Source) explain(err error) error {
	err = fmt.Errorf("read the Dockerfile: %w", err)
	path := s.Dockerfile
	if path == "" {
		return err
	}
	info, statErr := os.Stat(path)
	switch {
	case statErr == nil && info.IsDir() && isRegular(filepath.Join(path, "Dockerfile")):
		return fmt.Errorf("%w (did you mean -f %s?)", err, rootdir.Shown(filepath.Join(path, "Dockerfile")))
	case !errors.Is(statErr, fs.ErrNotExist):
		return err
	}
	// docker users expect -f to be relative to the context now and then; it is relative to the current directory.
	if shown := rootdir.Shown(path); !filepath.IsAbs(shown) && isRegular(filepath.Join(s.Context, shown)) {
		return fmt.Errorf("%w (-f is relative to the current directory: did you mean -f %s?)", err, rootdir.Shown(filepath.Join(s.Context, shown)))
	}
	if name := suggest.Nearest(filepath.Base(path), namesIn(filepath.Dir(path))...); name != "" {
		return fmt.Errorf("%w (did you mean -f %s?)", err, filepath.Join(filepath.Dir(rootdir.Shown(path)), name))
	}
	return err
}

// namesIn returns names in a directory; none if it cannot be read.
func namesIn(dir string) []string {
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, _ := f.Readdirnames(maxNames)
	return names
}

func isRegular(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}
