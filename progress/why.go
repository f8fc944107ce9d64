package progress

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/events"
)

// Reasons says in lines why a step ran. Of files that differ it says nothing: an event of their own follows where that was asked for.
func Reasons(m events.Missed) []string {
	var lines []string
	files := false
	for _, c := range m.Changes {
		switch c.Input {
		case events.InputRoot:
			lines = append(lines, "ran because what it stands on is not what it was")
		case events.InputFiles:
			files = true
		default:
			lines = append(lines, changed(c)...)
		}
	}
	if len(lines) == 0 && !files {
		return []string{"ran because " + m.Reason}
	}
	if more := m.More + len(lines) - events.MaxChanges; more > 0 {
		lines = append(lines[:min(len(lines), events.MaxChanges)], fmt.Sprintf("and because of %d more changes", more))
	}
	return lines
}

// changed says how the values of one kind of input differ.
func changed(c events.Change) []string {
	switch {
	case len(c.Now) == 1 && len(c.Was) == 1 && c.Now[0] == c.Was[0]:
		return []string{fmt.Sprintf("ran because its %s has another value, which is not shown: %s", c.Input, strconv.Quote(c.Now[0]))}
	case len(c.Now) == 1 && len(c.Was) == 1:
		return []string{fmt.Sprintf("ran because its %s is now %s, and was %s", c.Input, strconv.Quote(c.Now[0]), strconv.Quote(c.Was[0]))}
	case len(c.Now) == 0 && len(c.Was) == 0:
		return []string{fmt.Sprintf("ran because its %ss were reordered", c.Input)}
	}
	var lines []string
	for _, v := range c.Now {
		lines = append(lines, fmt.Sprintf("ran because of a new %s: %s", c.Input, strconv.Quote(v)))
	}
	for _, v := range c.Was {
		lines = append(lines, fmt.Sprintf("ran because of a %s that is gone: %s", c.Input, strconv.Quote(v)))
	}
	return lines
}

// FileReasons says in lines which files made a step run.
func FileReasons(f events.Files) []string {
	if len(f.Changes) == 0 {
		return []string{"ran because its files changed"}
	}
	var lines []string
	for _, c := range f.Changes {
		lines = append(lines, "ran because "+fileChange(c))
	}
	if f.More > 0 {
		lines = append(lines, fmt.Sprintf("and because of %d more changes", f.More))
	}
	return lines
}

// Differences says in lines what a cached step made of another kind when it ran again; none if it made the same.
func Differences(a events.Again) []string {
	switch {
	case a.Error != "":
		return []string{"failed when it ran again: " + a.Error}
	case a.Differs && len(a.Changes) == 0:
		return []string{"made something else when it ran again"}
	}
	var lines []string
	for _, c := range a.Changes {
		lines = append(lines, fileChange(c)+" when it ran again")
	}
	if a.More > 0 {
		lines = append(lines, fmt.Sprintf("and %d more differences", a.More))
	}
	return lines
}

func fileChange(c events.FileChange) string {
	what := map[string]string{events.Added: "is new", events.Removed: "is not there any more"}[c.Kind]
	if what == "" {
		what = "has changed in " + strings.Join(c.What, ", ")
	}
	return "/" + c.Path + " " + what
}
