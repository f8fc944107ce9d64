package parser

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/command"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	moby "github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/util/suggest"
)

// Error is a fault of a Dockerfile, or of a step that one of its lines asks for.
type Error struct {
	// File is the name under which the Dockerfile is shown.
	File string
	// Line and EndLine are the first and the last line of the instruction, counted from 1; 0 where no line is to blame.
	Line, EndLine int
	// Msg says what is wrong, in one line without the position.
	Msg string
	// Hint is advice, for example "did you mean RUN?"; "" for none.
	Hint string
	// Syntax says that the instruction is not in the language, whatever the build is given.
	Syntax bool
	// Err is the cause, nil where Msg is all there is.
	Err error
}

// Error returns "file:line: message (hint)".
func (e *Error) Error() string {
	s := e.Msg
	if e.Line > 0 {
		s = fmt.Sprintf("%s:%d: %s", e.File, e.Line, s)
	} else if e.File != "" {
		s = e.File + ": " + s
	}
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Lines returns the first and the last line of a location as instructions have it; 0, 0 for an empty one.
func Lines(location []moby.Range) (start, end int) {
	for _, r := range location {
		if start == 0 || r.Start.Line < start {
			start = r.Start.Line
		}
		end = max(end, r.End.Line)
	}
	return start, end
}

// At returns err as an Error at location in file. An Error in err's chain keeps its own position where it has one.
// A nil err gives nil.
func At(err error, file string, location []moby.Range) error {
	if err == nil {
		return nil
	}
	start, end := Lines(location)
	var own *Error
	if errors.As(err, &own) {
		if own.Line > 0 || start == 0 {
			return err
		}
		e := *own
		e.File, e.Line, e.EndLine = file, start, end
		return &e
	}
	var located *moby.LocationError
	if errors.As(err, &located) {
		// What wraps a LocationError only repeats the position in words.
		if inner := located.Unwrap(); inner != nil {
			err = inner
		}
		if start == 0 && len(located.Locations) > 0 {
			start, end = Lines(located.Locations[0])
		}
	}
	msg, hint := splitHint(err.Error())
	var unknown *instructions.UnknownInstructionError
	var number *strconv.NumError
	switch {
	case errors.As(err, &unknown):
		hint = suggestInstruction(unknown.Instruction)
	case errors.As(err, &number) && hint == "":
		msg = fmt.Sprintf("%q is not a number", number.Num)
		if errors.Is(number, strconv.ErrRange) {
			msg = number.Num + " is too large, or too small"
		}
	case hint == "":
		hint = advice(msg)
	}
	return &Error{File: file, Line: start, EndLine: end, Msg: msg, Hint: hint, Err: err}
}

// advice returns what to do about some of the errors of BuildKit's packages that do not say it; "" for others.
func advice(msg string) string {
	switch {
	case strings.Contains(msg, "missing unit in duration"):
		return "a duration has a unit, as 30s or 5m"
	case strings.Contains(msg, "invalid duration"):
		return "a duration is a number and its unit, as 30s or 5m; there are no variables in it"
	case strings.Contains(msg, "csv mounts: EOF"):
		return "a mount is written as --mount=type=cache,target=/path"
	case msg == "unterminated heredoc":
		return "a line with nothing but the word after << ends it"
	case strings.Contains(msg, "requires the arguments to be in JSON form"):
		return `a list whose strings are in double quotes, as ["/bin/sh", "-c"]`
	case strings.Contains(msg, "no build stage in current context"):
		return "FROM comes before it"
	case strings.Contains(msg, "requires either one or three arguments"):
		return "as FROM image or FROM image AS stage"
	case strings.Contains(msg, "must have two arguments"):
		return "as NAME=value"
	}
	return ""
}

// splitHint takes the "(did you mean X?)" that BuildKit's packages put at a message's end off it.
func splitHint(msg string) (text, hint string) {
	const mark = " (did you mean "
	i := strings.LastIndex(msg, mark)
	if i < 0 || !strings.HasSuffix(msg, "?)") {
		return msg, ""
	}
	return msg[:i], msg[i+2 : len(msg)-1] // as it is: BuildKit's clients are used to it
}

// suggestInstruction returns the hint for an unknown instruction, "" where none is near it. Letters that only changed
// places count as nearer than others.
func suggestInstruction(name string) string {
	known := slices.Sorted(maps.Keys(command.Commands))
	letters := func(s string) string {
		b := []byte(strings.ToLower(s))
		slices.Sort(b)
		return string(b)
	}
	match, _ := suggest.Search(name, known, false)
	for _, k := range known {
		if letters(k) == letters(name) {
			match = k
		}
	}
	if match == "" {
		return ""
	}
	return "did you mean " + strings.ToUpper(match) + "?"
}
