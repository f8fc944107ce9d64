package lint

import (
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/linter"
	moby "github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/kilnbuild/kiln/internal/ignore"
)

// TestIgnored: as in BuildKit, whatever excludes everything excludes the context itself and absolute sources.
func TestIgnored(t *testing.T) {
	for _, c := range []struct {
		ignored string
		sources string
		want    string // of the sources
	}{
		{"*", ". / a /a a/b /a/b *.md", ". / a /a a/b /a/b *.md"},
		{"**", ". /a *", ". /a *"},
		{"**/*", ". /a", ". /a"},
		{"*.md", ". *.md x.md a/x.md x*", "*.md x.md"},
		{".*", ". / .git a", ".git"},
		{"a", "a a/b ./a/b/c /a b", "a a/b a/b/c"},
		{"a*", "a* ab b*", "a* ab"},
		{"*/b", "a/b a/b/c b", "a/b a/b/c"},
		{"*\n!a", ". b", ""},
	} {
		var got []string
		config := &linter.Config{Warn: func(rule, _, _, msg string, _ []moby.Range) {
			_, name, _ := strings.Cut(msg, `"`)
			name, _, _ = strings.Cut(name, `"`)
			got = append(got, name)
		}}
		m, err := ignore.Parse(t.Context(), strings.NewReader(c.ignored))
		if err != nil {
			t.Fatal(err)
		}
		Ignored(linter.New(config), m, "Copy", strings.Fields(c.sources), nil)
		if !slices.Equal(got, strings.Fields(c.want)) {
			t.Errorf("%q: of %q these are excluded: %q, want %q", c.ignored, c.sources, got, c.want)
		}
	}
}
