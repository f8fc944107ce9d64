// Package sourcepolicy decides by rules which sources a build may use, and which others it uses in their place. The rules are BuildKit's
// source policies (moby.buildkit.v1.sourcepolicy in JSON), and mean what they mean there. The package does not know builds: a source is an
// identifier, such as "docker-image://docker.io/library/debian:bookworm", with attributes.
package sourcepolicy

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

const (
	// maxSize bounds the text of a policy in bytes.
	maxSize = 1 << 20
	// maxRules bounds the rules of a policy.
	maxRules = 10000
	// maxIdentifier bounds an identifier in bytes, also the one that a rule makes: it is that of the longest URL.
	maxIdentifier = 8 << 10
	// maxConversions is how many rules may change one source, one after the other. It is BuildKit's number.
	maxConversions = 21
)

// Source is something that a build fetches.
type Source struct {
	// Identifier is "docker-image://…", "git://…", "https://…", "http://…", "local://…" or "oci-layout://…".
	Identifier string
	// Attrs are what else is said of it, by BuildKit's names: "http.checksum", "git.fullurl".
	Attrs map[string]string
}

// Policy is a list of rules. A nil Policy allows everything.
type Policy struct {
	file  string
	rules []rule
}

// rule is a rule that was read.
type rule struct {
	action   action
	selector selector
	update   update
}

type selector struct {
	identifier  string
	match       match
	pattern     *regexp.Regexp // of a wildcard or an expression
	constraints []constraint
}

type constraint struct {
	key, value string
	condition  condition
	pattern    *regexp.Regexp
}

// update is what a CONVERT changes.
type update struct {
	identifier string
	attrs      map[string]string
}

// File returns the name of the policy.
func (p *Policy) File() string { return p.file }

// RuleError is a rule that forbids a source, or that cannot be applied to it.
type RuleError struct {
	// File is the name of the policy, and Rule the number of the rule, from 1.
	File string
	Rule int
	// Source is the identifier that the rule was applied to.
	Source string
	// Denied says that the policy forbids the source. Otherwise Why says what is wrong.
	Denied bool
	Why    string
}

func (e *RuleError) Error() string {
	if e.Denied {
		return fmt.Sprintf("the source policy %s forbids %s (rule %d)", e.File, e.Source, e.Rule)
	}
	return fmt.Sprintf("source policy %s: rule %d: %s: %s", e.File, e.Rule, e.Source, e.Why)
}

// Evaluate returns what is used in place of a source: what the rules make of it, one after the other, until none changes it any more. Of
// those that do not change it, the last one that matches decides whether it is allowed. rule is the number of the rule that changed it
// last, from 1; 0 if none did. The error is a *RuleError. What Evaluate returns shares no map with s.
func (p *Policy) Evaluate(s Source) (_ Source, rule int, err error) {
	out, by, err := Evaluate([]*Policy{p}, s)
	return out, by.Number, err
}

// Rule is a rule of a policy.
type Rule struct {
	Policy *Policy
	// Number counts from 1.
	Number int
}

// Evaluate is Policy.Evaluate of several policies: all of them have to allow the source, and each may change it. by is the zero Rule if
// none did.
func Evaluate(policies []*Policy, s Source) (_ Source, by Rule, err error) {
	s.Attrs = maps.Clone(s.Attrs)
	for n := 0; ; n++ {
		changed, err := passAll(policies, &s)
		if err != nil || changed.Number == 0 {
			return s, by, err
		}
		by = changed
		if n == maxConversions-1 {
			return s, by, by.Policy.fails(by.Number, s.Identifier,
				"rules change it over and over: after %d conversions there is no end of it, so there is probably a circle", maxConversions)
		}
	}
}

// passAll applies policies to a source until a rule changes it, and returns that; the zero Rule if none does.
func passAll(policies []*Policy, s *Source) (Rule, error) {
	for _, p := range policies {
		if p == nil {
			continue
		}
		if changed, err := p.pass(s); err != nil || changed > 0 {
			return Rule{p, changed}, err
		}
	}
	return Rule{}, nil
}

// fails returns the error of a rule.
func (p *Policy) fails(rule int, source, format string, args ...any) *RuleError {
	return &RuleError{File: p.file, Rule: rule, Source: source, Why: fmt.Sprintf(format, args...)}
}

// pass applies the rules to a source until one changes it, and returns the number of that rule; 0 if none does.
func (p *Policy) pass(s *Source) (changed int, err error) {
	denied := 0
	for i := range p.rules {
		r := &p.rules[i]
		if !r.selector.matches(*s) {
			continue
		}
		switch r.action {
		case allow:
			denied = 0
		case deny:
			denied = i + 1
		case convert:
			next, why := r.convert(*s)
			if why != "" {
				return 0, p.fails(i+1, s.Identifier, "%s", why)
			}
			if next.Identifier != s.Identifier || !maps.Equal(next.Attrs, s.Attrs) {
				*s = next
				return i + 1, nil
			}
		}
	}
	if denied > 0 {
		return 0, &RuleError{File: p.file, Rule: denied, Source: s.Identifier, Denied: true}
	}
	return 0, nil
}

// matches reports whether a selector is about a source.
func (s *selector) matches(src Source) bool {
	for _, c := range s.constraints {
		if !c.holds(src.Attrs[c.key]) {
			return false
		}
	}
	return s.identifier == src.Identifier || s.pattern != nil && s.pattern.MatchString(src.Identifier)
}

func (c *constraint) holds(value string) bool {
	switch c.condition {
	case equal:
		return value == c.value
	case notEqual:
		return value != c.value
	default:
		return c.pattern.MatchString(value)
	}
}

// convert returns what a rule makes of a source that it matches, or why it cannot be done.
func (r *rule) convert(s Source) (out Source, why string) {
	out = Source{s.Identifier, maps.Clone(s.Attrs)}
	if r.update.identifier != "" {
		out.Identifier = r.selector.expand(s.Identifier, r.update.identifier)
	}
	if len(out.Identifier) > maxIdentifier {
		return out, fmt.Sprintf("what it becomes is longer than %d bytes", maxIdentifier)
	}
	if out.Identifier == "" {
		out.Identifier = s.Identifier
	}
	for key, value := range r.update.attrs {
		if out.Attrs == nil {
			out.Attrs = map[string]string{}
		}
		if value != out.Attrs[key] {
			out.Attrs[key] = value
		}
	}
	return out, ""
}

// expand replaces references to what the selector matched, "$1" or "${1}", in a template.
func (s *selector) expand(identifier, template string) string {
	switch s.match {
	case expression:
		return s.pattern.ReplaceAllString(identifier, template)
	case wildcard:
		at := s.pattern.FindStringSubmatchIndex(identifier)
		if at == nil { // it is the same as the selector, which has a star
			return identifier
		}
		return string(s.pattern.ExpandString(nil, template, identifier, at))
	default:
		return template
	}
}

// Changed returns the names of the attributes that differ between a source and what became of it, in order.
func Changed(before, after Source) []string {
	var names []string
	for key, value := range after.Attrs {
		if before.Attrs[key] != value {
			names = append(names, key)
		}
	}
	slices.Sort(names)
	return names
}

// Scheme returns what comes before "://" in an identifier, and what comes behind it.
func (s Source) Scheme() (scheme, rest string) {
	scheme, rest, _ = strings.Cut(s.Identifier, "://")
	return scheme, rest
}
