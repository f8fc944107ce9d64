// Package suggest finds names that may have been meant, within limits: in a build as BuildKit does, and on the command line.
package suggest

import "github.com/moby/buildkit/util/suggest"

// maxSuggesting bounds the characters that are compared in one build to find names that were meant, and maxSuggested the
// length of such names: each name that is not known is compared with all that are.
const (
	maxSuggesting = 1 << 24
	maxSuggested  = 64
)

// Suggester finds names that may have been meant in one build.
type Suggester struct{ left int }

// New returns a Suggester.
func New() *Suggester { return &Suggester{left: maxSuggesting} }

// Search returns the one of known that name is nearly; false for none, and when there were too many before. known is
// only asked for if it is needed.
func (s *Suggester) Search(name string, known func() []string, caseSensitive bool) (string, bool) {
	if s.left <= 0 || len(name) > maxSuggested {
		return "", false
	}
	var near []string
	for _, k := range known() {
		s.left -= 8
		// What is not nearly as long is not near.
		if d := len(k) - len(name); -8 < d && d < 8 && len(k) <= maxSuggested {
			near = append(near, k)
			s.left -= len(k) * len(name)
		}
		if s.left <= 0 {
			return "", false
		}
	}
	return suggest.Search(name, near, caseSensitive)
}
