package values

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/zclconf/go-cty/cty"
)

// version is a semantic version (https://semver.org), or a part of one in a constraint.
type version struct {
	numbers [3]uint64
	// known is how many of the numbers are written; the rest are zeros, or anything in a constraint.
	known      int
	prerelease []string
}

// parseVersion reads a version; in a constraint x, X and * stand for any number.
func parseVersion(s string, wildcards bool) (v version, err error) {
	wrong := fmt.Errorf("%q is not a version", s)
	text, _, _ := strings.Cut(strings.TrimPrefix(s, "v"), "+")
	text, pre, hasPre := strings.Cut(text, "-")
	if hasPre {
		if v.prerelease = strings.Split(pre, "."); strings.Contains("."+pre+".", "..") {
			return v, wrong
		}
	}
	parts := strings.Split(text, ".")
	if len(parts) > 3 {
		return v, wrong
	}
	open := true
	for i, part := range parts {
		if wildcards && (part == "x" || part == "X" || part == "*") {
			open = false
			continue
		}
		n, err := strconv.ParseUint(part, 10, 64)
		if err != nil {
			return v, wrong
		}
		if open {
			v.numbers[i], v.known = n, i+1
		}
	}
	return v, nil
}

// compare returns the order of versions.
func (v version) compare(w version) int {
	for i := range v.numbers {
		if c := cmp.Compare(v.numbers[i], w.numbers[i]); c != 0 {
			return c
		}
	}
	switch {
	case len(v.prerelease) == 0 && len(w.prerelease) == 0:
		return 0
	case len(v.prerelease) == 0:
		return 1
	case len(w.prerelease) == 0:
		return -1
	}
	for i := range min(len(v.prerelease), len(w.prerelease)) {
		a, b := v.prerelease[i], w.prerelease[i]
		x, errX := strconv.ParseUint(a, 10, 64)
		y, errY := strconv.ParseUint(b, 10, 64)
		c := strings.Compare(a, b)
		switch {
		case errX == nil && errY == nil:
			c = cmp.Compare(x, y)
		case errX == nil:
			c = -1
		case errY == nil:
			c = 1
		}
		if c != 0 {
			return c
		}
	}
	return cmp.Compare(len(v.prerelease), len(w.prerelease))
}

// next returns the first version after all that have the first n numbers of v.
func (v version) next(n int) version {
	out := version{known: 3}
	copy(out.numbers[:n], v.numbers[:n])
	if n > 0 {
		out.numbers[n-1]++
	}
	return out
}

// below reports whether a version, or the release that it precedes, comes before a limit.
func (v version) below(limit version) bool {
	release := v
	release.prerelease = nil
	return release.compare(limit) < 0
}

// compareVersion reports whether a version satisfies constraints.
func compareVersion(args []cty.Value) (cty.Value, error) {
	v, err := parseVersion(args[0].AsString(), false)
	if err != nil {
		return cty.DynamicVal, err
	}
	satisfied := false
	for alternative := range strings.SplitSeq(args[1].AsString(), "||") {
		ok, err := v.satisfies(alternative)
		if err != nil {
			return cty.DynamicVal, err
		}
		satisfied = satisfied || ok
	}
	return cty.BoolVal(satisfied), nil
}

// satisfies reports whether a version satisfies all of the constraints that commas or spaces separate. A range is "1.2 - 3.4". A prerelease
// satisfies them only if one of them has a prerelease.
func (v version) satisfies(all string) (bool, error) {
	words := strings.Fields(strings.ReplaceAll(all, ",", " "))
	if len(words) == 0 {
		return false, errors.New("a constraint is empty")
	}
	satisfied, prerelease := true, false
	for i := 0; i < len(words); i++ {
		word := words[i]
		operator := word[:len(word)-len(strings.TrimLeft(word, "=!<>~^"))]
		word = word[len(operator):]
		if word == "" { // the version is the next word
			if i++; i == len(words) {
				return false, fmt.Errorf("the constraint %q has no version", operator)
			}
			word = words[i]
		}
		checks := [][2]string{{operator, word}}
		if i+2 < len(words) && words[i+1] == "-" && operator == "" {
			checks = [][2]string{{">=", word}, {"<=", words[i+2]}}
			i += 2
		}
		for _, check := range checks {
			w, err := parseVersion(check[1], true)
			if err != nil {
				return false, err
			}
			ok, err := v.check(check[0], w)
			if err != nil {
				return false, err
			}
			satisfied, prerelease = satisfied && ok, prerelease || len(w.prerelease) > 0
		}
	}
	return satisfied && (prerelease || len(v.prerelease) == 0), nil
}

// check reports whether a version satisfies one constraint.
func (v version) check(operator string, w version) (bool, error) {
	c := v.compare(w)
	partial := w.known < 3
	inside := c >= 0 && (w.known == 0 || v.below(w.next(w.known)))
	switch operator {
	case "", "=", "==":
		if partial {
			return inside, nil
		}
		return c == 0, nil
	case "!=":
		if partial {
			return !inside, nil
		}
		return c != 0, nil
	case ">":
		if partial {
			return w.known > 0 && !v.below(w.next(w.known)), nil
		}
		return c > 0, nil
	case ">=", "=>":
		return c >= 0, nil
	case "<":
		return c < 0, nil
	case "<=", "=<":
		if partial {
			return w.known == 0 || v.below(w.next(w.known)), nil
		}
		return c <= 0, nil
	case "~", "~>":
		return c >= 0 && (w.known == 0 || v.below(w.next(min(w.known, 2)))), nil
	case "^":
		fixed := 1 // up to the first number that is not zero
		for fixed < w.known && w.numbers[fixed-1] == 0 {
			fixed++
		}
		return c >= 0 && (w.known == 0 || v.below(w.next(fixed))), nil
	}
	return false, fmt.Errorf("there is no constraint %q", operator)
}
