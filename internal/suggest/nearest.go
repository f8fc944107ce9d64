package suggest

import "strings"

// Nearest returns the one of known that name is probably a misspelling or the beginning of; "" if there is none. Names are compared without
// regard to case, and of several that are equally near it is the first.
func Nearest(name string, known ...string) string {
	name = strings.ToLower(name)
	if len(name) < 2 || len(name) > maxSuggested {
		return ""
	}
	nearest, least := "", allowance(name)+1
	for _, k := range known {
		if len(k) > maxSuggested {
			continue
		}
		if d := distance(name, strings.ToLower(k)); d < least {
			nearest, least = k, d
		}
	}
	if nearest == "" && len(name) >= minPrefix {
		for _, k := range known {
			if strings.HasPrefix(strings.ToLower(k), name) {
				return k
			}
		}
	}
	return nearest
}

// Hint returns Nearest as the end of an error message, "; did you mean host?", or "".
func Hint(name string, known ...string) string {
	if near := Nearest(name, known...); near != "" && near != name {
		return "; did you mean " + near + "?"
	}
	return ""
}

// minPrefix is how many letters at least are taken for the beginning of a name.
const minPrefix = 3

// allowance is how many letters of a name may be wrong: more of a longer one.
func allowance(name string) int {
	switch {
	case len(name) <= 3:
		return 1
	case len(name) <= 8:
		return 2
	}
	return 3
}

// distance is the number of letters that have to be inserted, removed, replaced, or exchanged with the next one to make b of a.
func distance(a, b string) int {
	// The last three rows of the table of distances between beginnings of a and of b.
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last, row = last, row, before
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replaced := last[j-1]
			if a[i-1] != b[j-1] {
				replaced++
			}
			row[j] = min(replaced, last[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}
