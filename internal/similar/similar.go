// Package similar finds the name that was probably meant by one that does not exist.
package similar

import (
	"slices"
	"strings"

	"github.com/moby/buildkit/util/suggest"
)

// Name returns the one of names that differs from name in the case of letters alone, or else by very few of them; "" for none.
func Name(name string, names []string) string {
	if i := slices.IndexFunc(names, func(n string) bool { return strings.EqualFold(n, name) }); i >= 0 {
		return names[i]
	}
	match, ok := suggest.Search(name, names, false)
	if !ok {
		return ""
	}
	// The match is in lower case.
	i := slices.IndexFunc(names, func(n string) bool { return strings.EqualFold(n, match) })
	if i < 0 {
		return ""
	}
	return names[i]
}
