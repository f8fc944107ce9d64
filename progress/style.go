package progress

import (
	"fmt"
	"strconv"
	"strings"
)

// style is how the view on a terminal looks.
type style struct {
	// The SGR parameters (ECMA-48, 8.3.117) of the lines of each state, and of the output of steps; "" for none.
	done, canceled, failed, warning, output string
	// logLines is how many lines of its output a running step has.
	logLines int
}

// newStyle returns the style that the environment asks for. It can be used also if there is an error, which then says what is wrong with a
// variable.
func newStyle(getenv func(string) string) (style, error) {
	s := style{logLines: 6}
	var err error
	if v := getenv("BUILDKIT_TTY_LOG_LINES"); v != "" {
		n, parseErr := strconv.Atoi(v)
		if parseErr != nil || n < 0 || n > maxLogLines {
			err = fmt.Errorf("BUILDKIT_TTY_LOG_LINES: %q is not a number from 0 to %d", v, maxLogLines)
		} else {
			s.logLines = n
		}
	}
	if getenv("NO_COLOR") != "" {
		return s, err
	}
	s.done, s.canceled, s.failed, s.warning, s.output = "34", "33", "31", "33", "2"
	for _, field := range strings.Split(getenv("BUILDKIT_COLORS"), ":") {
		if colourErr := s.set(field); colourErr != nil {
			err = fmt.Errorf("BUILDKIT_COLORS: %w", colourErr)
		}
	}
	return s, err
}

// maxLogLines is the most that BUILDKIT_TTY_LOG_LINES can ask for.
const maxLogLines = 100

// set sets the colour of a state: "run=green" or "run=120,200,0". An empty field sets nothing.
func (s *style) set(field string) error {
	if field == "" {
		return nil
	}
	state, colour, _ := strings.Cut(field, "=")
	of := map[string]*string{"run": &s.done, "cancel": &s.canceled, "error": &s.failed, "warning": &s.warning}[state]
	if of == nil {
		return fmt.Errorf("state %q does not exist: the states are run, cancel, error and warning", state)
	}
	code, err := parseColour(colour)
	if err == nil {
		*of = code
	}
	return err
}

// parseColour returns the SGR parameters of one of BuildKit's names of colours, or of "red,green,blue", each from 0 to 255.
func parseColour(text string) (string, error) {
	names := []string{"black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"}
	for i, name := range names {
		switch text {
		case name:
			return strconv.Itoa(30 + i), nil
		case "light" + name, "bright" + name:
			return strconv.Itoa(90 + i), nil
		}
	}
	parts := strings.Split(text, ",")
	if len(parts) != 3 {
		return "", fmt.Errorf("colour %q is invalid: use a name, as blue, or red,green,blue as numbers up to 255", text)
	}
	code := "38;2"
	for _, part := range parts {
		n, err := strconv.ParseUint(part, 10, 8)
		if err != nil {
			return "", fmt.Errorf("colour %q is invalid: %q is not a number up to 255", text, part)
		}
		code += ";" + strconv.FormatUint(n, 10)
	}
	return code, nil
}

// paint returns a line with SGR parameters.
func (style) paint(code, line string) string {
	if code == "" {
		return line
	}
	return "\x1b[" + code + "m" + line + "\x1b[0m"
}
