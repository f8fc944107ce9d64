package sourcepolicy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/regularfile"
)

// action is what a rule does.
type action int

const (
	allow action = iota
	deny
	convert
)

// match is how a selector compares identifiers.
type match int

const (
	wildcard match = iota
	exact
	expression
)

// condition is how a constraint compares an attribute.
type condition int

const (
	equal condition = iota
	notEqual
	matches
)

// Error is a policy that cannot be read.
type Error struct {
	// File is its name, Line the line that is wrong, from 1, or 0, and Rule the number of the rule, from 1, or 0.
	File       string
	Line, Rule int
	// Why says what is wrong.
	Why string
}

func (e *Error) Error() string {
	at := e.File
	if e.Line > 0 {
		at = fmt.Sprintf("%s:%d", e.File, e.Line)
	}
	if e.Rule > 0 {
		at += fmt.Sprintf(": rule %d", e.Rule)
	}
	return fmt.Sprintf("source policy %s: %s", at, e.Why)
}

// The JSON of a policy. Names and numbers stand for the same, as in the JSON of protocol buffers.
type jsonPolicy struct {
	Version int64             `json:"version"`
	Rules   []json.RawMessage `json:"rules"`
}

type jsonRule struct {
	Action   name          `json:"action"`
	Selector *jsonSelector `json:"selector"`
	Updates  *jsonUpdates  `json:"updates"`
}

type jsonSelector struct {
	Identifier  string            `json:"identifier"`
	MatchType   name              `json:"match_type"`
	MatchType2  name              `json:"matchType"`
	Constraints []*jsonConstraint `json:"constraints"`
}

type jsonConstraint struct {
	Key       string `json:"key"`
	Value     string `json:"value"`
	Condition name   `json:"condition"`
}

type jsonUpdates struct {
	Identifier string            `json:"identifier"`
	Attrs      map[string]string `json:"attrs"`
}

// name is a value of an enumeration as it is written: its name, its number, or "" if it is not there.
type name string

// UnmarshalJSON implements json.Unmarshaler.
func (n *name) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err == nil {
		*n = name(text)
		return nil
	}
	var number int32
	if err := json.Unmarshal(data, &number); err != nil {
		return fmt.Errorf("%s is neither a name nor a number", data)
	}
	*n = name(fmt.Sprint(number))
	return nil
}

// pick returns the number of a value among names.
func (n name) pick(what string, names ...string) (int, error) {
	if n == "" {
		return 0, nil
	}
	for i, known := range names {
		if string(n) == known || string(n) == fmt.Sprint(i) {
			return i, nil
		}
	}
	return 0, fmt.Errorf("unknown %s %q: there are %s", what, string(n), strings.Join(names, ", "))
}

// Read reads the policy in the file at path.
func Read(path string) (*Policy, error) {
	data, err := regularfile.Read(path, maxSize)
	if err != nil {
		return nil, fmt.Errorf("read the source policy: %w", err)
	}
	return Parse(path, data)
}

// Parse reads a policy; file is its name in errors. Every rule is checked, whether or not a build will need it. The error is an *Error.
func Parse(file string, data []byte) (*Policy, error) {
	fail := func(rule, line int, err error) (*Policy, error) {
		return nil, &Error{File: file, Rule: rule, Line: line, Why: err.Error()}
	}
	if len(data) > maxSize {
		return fail(0, 0, fmt.Errorf("it is larger than %d bytes", maxSize))
	}
	if string(bytes.TrimSpace(data)) == "null" {
		return fail(0, 1, errors.New("it is null, and no policy"))
	}
	var text jsonPolicy
	if err := decode(data, &text); err != nil {
		return fail(0, lineOf(data, err), err)
	}
	if text.Version != 0 && text.Version != 1 {
		return fail(0, 0, fmt.Errorf("it has version %d, and this kiln knows version 1", text.Version))
	}
	if len(text.Rules) > maxRules {
		return fail(0, 0, fmt.Errorf("it has more than %d rules", maxRules))
	}
	p := &Policy{file: file}
	for i, raw := range text.Rules {
		var r *jsonRule
		if err := decode(raw, &r); err != nil {
			return fail(i+1, 0, err)
		}
		read, err := r.read()
		if err != nil {
			return fail(i+1, 0, err)
		}
		p.rules = append(p.rules, read)
	}
	return p, nil
}

// decode decodes JSON that has no keys but those of v, and nothing behind it.
func decode(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return plain(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more behind the end of the policy")
	}
	return nil
}

// jsonError is an error of encoding/json without what it says of Go.
type jsonError struct {
	text   string
	offset int64 // behind the fault; 0 if it is not known
}

func (e *jsonError) Error() string { return e.text }

func plain(err error) error {
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return &jsonError{"it is not JSON: " + syntax.Error(), syntax.Offset}
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return errors.New("it is not JSON: it ends too early")
	}
	if kind, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return &jsonError{fmt.Sprintf("%s cannot be a JSON %s", orPolicy(kind.Field), kind.Value), kind.Offset}
	}
	return errors.New(strings.TrimPrefix(err.Error(), "json: "))
}

func orPolicy(field string) string {
	if field == "" {
		return "it"
	}
	return field
}

// lineOf returns the line of data that err is about, 0 if that is not known.
func lineOf(data []byte, err error) int {
	at, ok := errors.AsType[*jsonError](err)
	if !ok || at.offset <= 0 || at.offset > int64(len(data)) {
		return 0
	}
	return 1 + bytes.Count(data[:at.offset-1], []byte{'\n'})
}

// read checks a rule.
func (r *jsonRule) read() (rule, error) {
	var out rule
	if r == nil {
		return out, errors.New("it is null")
	}
	n, err := r.Action.pick("action", "ALLOW", "DENY", "CONVERT")
	if err != nil {
		return out, err
	}
	out.action = action(n)
	if r.Selector == nil {
		return out, errors.New("it has no selector")
	}
	if out.selector, err = r.Selector.read(); err != nil {
		return out, err
	}
	if out.action != convert {
		return out, nil
	}
	if r.Updates == nil {
		return out, errors.New("it converts, and has no updates that say into what")
	}
	if len(r.Updates.Identifier) > maxIdentifier {
		return out, fmt.Errorf("the identifier of updates is longer than %d bytes", maxIdentifier)
	}
	out.update = update{r.Updates.Identifier, r.Updates.Attrs}
	return out, nil
}

func (s *jsonSelector) read() (selector, error) {
	out := selector{identifier: s.Identifier}
	kind := s.MatchType
	if kind == "" {
		kind = s.MatchType2
	}
	n, err := kind.pick("match type", "WILDCARD", "EXACT", "REGEX")
	if err != nil {
		return out, err
	}
	if len(s.Identifier) > maxIdentifier {
		return out, fmt.Errorf("the identifier of its selector is longer than %d bytes", maxIdentifier)
	}
	switch out.match = match(n); out.match {
	case wildcard:
		if strings.Contains(s.Identifier, "**") {
			return out, fmt.Errorf("the wildcard %q has two stars in a row", s.Identifier)
		}
		parts := strings.Split(s.Identifier, "*")
		for i := range parts {
			parts[i] = regexp.QuoteMeta(parts[i])
		}
		out.pattern, err = regexp.Compile("^" + strings.Join(parts, "(.*)") + "$")
	case expression:
		out.pattern, err = regexp.Compile(s.Identifier)
	}
	if err != nil {
		return out, fmt.Errorf("the expression %q cannot be used: %w", s.Identifier, err)
	}
	if slices.Contains(s.Constraints, nil) {
		return out, errors.New("one of its constraints is null")
	}
	for _, c := range s.Constraints {
		n, err := c.Condition.pick("condition", "EQUAL", "NOTEQUAL", "MATCHES")
		if err != nil {
			return out, err
		}
		read := constraint{key: c.Key, value: c.Value, condition: condition(n)}
		if read.condition == matches {
			if read.pattern, err = regexp.Compile(c.Value); err != nil {
				return out, fmt.Errorf("the expression %q cannot be used: %w", c.Value, err)
			}
		}
		out.constraints = append(out.constraints, read)
	}
	return out, nil
}
