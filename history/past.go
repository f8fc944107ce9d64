package history

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/llb"
)

// Past is a build of the history.
type Past struct {
	ID    string
	Begun time.Time
	Took  time.Duration
	Build events.Build
	Done  events.Done
	// Steps are in the order in which they ended; Lost is how many events are not in the history, since there were too many.
	Steps []Step
	Lost  int
}

// Step is what a build did of one vertex.
type Step struct {
	events.Started
	Cached bool
	// Missed says why it ran; nil for one that did not. Files is how its files differ, where they can still be compared.
	Missed   *events.Missed
	Files    *events.Files
	Finished events.Finished
	// Took does not include the time in which the step only waited.
	Took time.Duration
	// LogFile holds its output; "" where there was none, or it is not kept any more.
	LogFile string
}

// Kept finds what is kept elsewhere about the steps of a build.
type Kept interface {
	// Log returns the file that holds what the step with a record's key printed; "" where it is not kept any more.
	Log(key string, failed bool) string
	// Files returns how the files of a layer differ from those of another, as far as both are still there.
	Files(now, last string) events.Files
}

// Past returns a build of the history: the one whose ID begins or ends with id, the last one for "". An error that is *input.Error says
// that there is none.
func (h *History) Past(id string, kept Kept) (*Past, error) {
	found, err := h.find(id)
	if err != nil {
		return nil, err
	}
	var p *Past
	for _, full := range found {
		// A crash of the machine may have damaged the last ones.
		if p, err = h.past(full, kept); !errors.As(err, new(*DamagedError)) {
			break
		}
	}
	return p, err
}

func (h *History) past(id string, kept Kept) (*Past, error) {
	p := &Past{ID: id}
	steps := map[llb.Digest]*Step{}
	began := map[llb.Digest]time.Time{}   // without the time in which it waited
	waiting := map[llb.Digest]time.Time{} // since when
	err := h.Read(id, func(e events.Event) error {
		step := steps[e.Vertex]
		switch body := e.Body.(type) {
		case events.Build:
			p.Build, p.Begun = body, e.Time
		case events.Done:
			p.Done, p.Took = body, e.Time.Sub(p.Begun)
		case events.Lost:
			p.Lost += body.Events
		case events.Started:
			steps[e.Vertex], began[e.Vertex] = &Step{Started: body}, e.Time
		default:
			if step == nil {
				return nil
			}
			switch body := body.(type) {
			case events.Waiting:
				waiting[e.Vertex] = e.Time
			case events.Resumed:
				began[e.Vertex] = began[e.Vertex].Add(e.Time.Sub(waiting[e.Vertex]))
				delete(waiting, e.Vertex)
			case events.Cached:
				step.Cached = true
			case events.Missed:
				step.Missed = &body
			case events.Files:
				step.Files = &body
			case events.Finished:
				end, ok := waiting[e.Vertex]
				if !ok {
					end = e.Time
				}
				step.Finished, step.Took = body, end.Sub(began[e.Vertex])
				step.complete(kept)
				p.Steps = append(p.Steps, *step)
				delete(steps, e.Vertex)
				delete(waiting, e.Vertex)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read build %s: %w", id, err)
	}
	return p, nil
}

// complete adds to a step what is not in its events: its log, and how its files differ.
func (s *Step) complete(kept Kept) {
	if s.Finished.LogBytes > 0 {
		s.LogFile = kept.Log(s.Finished.Key, s.Finished.Error != "")
	}
	if m := s.Missed; m != nil && s.Files == nil && m.Last != "" && len(s.Finished.Outputs) > 0 {
		for _, c := range m.Changes {
			if c.Input == events.InputFiles {
				f := kept.Files(s.Finished.Outputs[0].Layer, m.Last)
				s.Files = &f
			}
		}
	}
}

// find returns the ID of the build that an ID, its beginning or its end names, and for "" those of all builds, the last one first.
func (h *History) find(id string) ([]string, error) {
	all, err := h.IDs()
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, &input.Error{Err: errors.New("the history has no builds")}
	}
	if id == "" {
		return all, nil
	}
	var found []string
	for _, candidate := range all {
		if strings.HasPrefix(candidate, id) || strings.HasSuffix(candidate, id) {
			found = append(found, candidate)
		}
	}
	switch len(found) {
	case 0:
		return nil, &input.Error{Err: fmt.Errorf("build %s is not in the history; the last one is %s", id, all[0])}
	case 1:
		return found, nil
	}
	return nil, &input.Error{Err: fmt.Errorf("%d builds have an ID that begins or ends with %s: give more of it", len(found), id)}
}

// maxLooked is how many builds LastWarnings looks at.
const maxLooked = 20

// errEnough ends the reading of a build of which enough is known.
var errEnough = errors.New("enough is known")

// LastWarnings returns what checks found in the last build of a Dockerfile in a context, as events.Build names both; nil if none of the
// last 20 builds is one.
func (h *History) LastWarnings(context, dockerfile string) []events.Warning {
	ids, err := h.IDs()
	if err != nil {
		return nil // there is no history
	}
	for _, id := range ids[:min(len(ids), maxLooked)] {
		var warnings []events.Warning
		err := h.Read(id, func(e events.Event) error {
			switch b := e.Body.(type) {
			case events.Build:
				if b.Context != context || b.Dockerfile != dockerfile {
					return errEnough
				}
			case events.Warning:
				if b.Rule != "" {
					warnings = append(warnings, b)
				}
			}
			return nil
		})
		if err == nil {
			return warnings
		}
	}
	return nil
}
