package part

import (
	"regexp"
	"sync"
)

// Pattern is a regular expression that is compiled when it is first used: to compile those of all parts would take every command that
// needs none of them a third of a millisecond.
type Pattern struct {
	compiled func() *regexp.Regexp
}

// NewPattern returns the pattern of an expression in the syntax of package regexp. One that is invalid panics when it is first used.
func NewPattern(expr string) *Pattern {
	return &Pattern{sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })}
}

// MatchString reports whether s has a match of the pattern.
func (p *Pattern) MatchString(s string) bool { return p.compiled().MatchString(s) }
