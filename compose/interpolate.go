package compose

import (
	"errors"
	"fmt"
	"strings"
)

// maxValue bounds a value after interpolation, in bytes, and maxDepth how deeply expressions are nested in each other.
const (
	maxValue = 1 << 20
	maxDepth = 100
)

// Lookup returns the value of a variable.
type Lookup func(name string) (string, bool)

// interpolate replaces $NAME, ${NAME}, ${NAME:-default}, ${NAME:?error}, ${NAME:+other} and, without the colon, the forms in which an empty
// variable counts as set. "$$" is "$".
func interpolate(s string, lookup Lookup) (string, error) {
	i := &interpolator{text: s, lookup: lookup}
	out, err := i.until("")
	if err != nil {
		return "", fmt.Errorf("%q: %w", s, err)
	}
	return out, nil
}

type interpolator struct {
	text   string
	at     int
	depth  int
	lookup Lookup
}

// until returns the text up to the byte end, or all of it for "".
func (i *interpolator) until(end string) (string, error) {
	var out strings.Builder
	for i.at < len(i.text) {
		c := i.text[i.at]
		i.at++
		switch {
		case end != "" && c == end[0]:
			return out.String(), nil
		case c != '$':
			out.WriteByte(c)
		default:
			value, err := i.variable()
			if err != nil {
				return "", err
			}
			out.WriteString(value)
		}
		if out.Len() > maxValue {
			return "", fmt.Errorf("the value is larger than the %d MiB that are allowed", maxValue>>20)
		}
	}
	if end != "" {
		return "", errors.New("the closing brace of ${ is missing")
	}
	return out.String(), nil
}

// variable returns what stands for the text after "$".
func (i *interpolator) variable() (string, error) {
	rest := i.text[i.at:]
	if strings.HasPrefix(rest, "$") {
		i.at++
		return "$", nil
	}
	braced := strings.HasPrefix(rest, "{")
	if braced {
		i.at++
	}
	name := i.name()
	if name == "" {
		return "", errors.New("$ is not followed by the name of a variable: write $$ for a dollar sign")
	}
	value, set := i.lookup(name)
	if !braced {
		return value, nil
	}
	return i.operator(name, value, set)
}

// name returns the name of a variable.
func (i *interpolator) name() string {
	start := i.at
	for i.at < len(i.text) {
		c := i.text[i.at]
		letter := c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i.at == start || c < '0' || c > '9') {
			break
		}
		i.at++
	}
	return i.text[start:i.at]
}

// operator returns what "${NAME" and the rest up to "}" stand for.
func (i *interpolator) operator(name, value string, set bool) (string, error) {
	rest := i.text[i.at:]
	if strings.HasPrefix(rest, "}") {
		i.at++
		return value, nil
	}
	if strings.HasPrefix(rest, ":") {
		i.at++
		rest = rest[1:]
		set = set && value != ""
	}
	if rest == "" || !strings.ContainsRune("-?+", rune(rest[0])) {
		return "", fmt.Errorf("${%s is not followed by }, -, ? or +", name)
	}
	i.at++
	if i.depth++; i.depth > maxDepth {
		return "", fmt.Errorf("variables are nested more deeply than %d", maxDepth)
	}
	defer func() { i.depth-- }()
	lookup := i.lookup
	if rest[0] != '?' && (rest[0] == '+') != set || rest[0] == '?' && set {
		i.lookup = func(string) (string, bool) { return "x", true } // what is not used needs no variables
	}
	word, err := i.until("}")
	i.lookup = lookup
	if err != nil {
		return "", err
	}
	switch {
	case rest[0] == '+' && set, rest[0] == '-' && !set:
		return word, nil
	case rest[0] == '+':
		return "", nil
	case rest[0] == '?' && !set:
		if word == "" {
			word = "it is not set"
		}
		return "", fmt.Errorf("required variable %s: %s", name, word)
	}
	return value, nil
}
