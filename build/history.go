package build

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/history"
	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
)

// retention returns what kiln.toml says of the history, as BuildKit reads the same section.
func retention(c *config.History) history.Retention {
	if c == nil {
		return history.Default
	}
	keep := history.Retention{Age: c.MaxAge.Duration}
	if c.MaxEntries != nil {
		keep.Entries, keep.Off = int(*c.MaxEntries), *c.MaxEntries == 0
	}
	return keep
}

// record puts the events of a stream into the history, until end is called, under an ID. That a build cannot be recorded is no failure of
// the build.
func (b *Builder) record(o Options, s *events.Stream) (id string, end func()) {
	r := b.history.Begin()
	s.Attach(r)
	return r.ID(), func() {
		s.Detach(r)
		if err := r.Close(); err != nil && o.Debug {
			s.Warn(err.Error())
		}
	}
}

// PastBuild is a build of the history.
type PastBuild struct {
	ID    string
	Begun time.Time
	Took  time.Duration
	Build events.Build
	Done  events.Done
	// Steps are in the order in which they ended; Lost is how many events are not in the history, since there were too many.
	Steps []PastStep
	Lost  int
}

// PastStep is what a build did of one vertex.
type PastStep struct {
	events.Started
	Cached bool
	// Missed says why it ran; nil for one that did not. Files is how its files differ, where they can still be compared.
	Missed   *events.Missed
	Files    *events.Files
	Finished events.Finished
	Took     time.Duration
	// LogFile holds its output; "" where there was none, or it is not kept any more.
	LogFile string
}

// Past returns a build of the history: the one whose ID begins or ends with id, the last one for "". An error that is *InputError says that
// there is none.
func (b *Builder) Past(id string) (*PastBuild, error) {
	if err := b.open(); err != nil {
		return nil, err
	}
	found, err := b.findBuilds(id)
	if err != nil {
		return nil, err
	}
	var p *PastBuild
	for _, full := range found {
		// A crash of the machine may have damaged the last ones.
		if p, err = b.readBuild(full); !errors.As(err, new(*history.DamagedError)) {
			break
		}
	}
	return p, err
}

func (b *Builder) readBuild(id string) (*PastBuild, error) {
	p := &PastBuild{ID: id}
	steps := map[llb.Digest]*PastStep{}
	began := map[llb.Digest]time.Time{}
	err := b.history.Read(id, func(e events.Event) error {
		step := steps[e.Vertex]
		switch body := e.Body.(type) {
		case events.Build:
			p.Build, p.Begun = body, e.Time
		case events.Done:
			p.Done, p.Took = body, e.Time.Sub(p.Begun)
		case events.Lost:
			p.Lost += body.Events
		case events.Started:
			steps[e.Vertex], began[e.Vertex] = &PastStep{Started: body}, e.Time
		default:
			if step == nil {
				return nil
			}
			switch body := body.(type) {
			case events.Cached:
				step.Cached = true
			case events.Missed:
				step.Missed = &body
			case events.Files:
				step.Files = &body
			case events.Finished:
				step.Finished, step.Took = body, e.Time.Sub(began[e.Vertex])
				b.complete(step)
				p.Steps = append(p.Steps, *step)
				delete(steps, e.Vertex)
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
func (b *Builder) complete(step *PastStep) {
	if key, err := solver.ParseKey(step.Finished.Key); err == nil && step.Finished.LogBytes > 0 {
		file := b.cache.LogFile(key, step.Finished.Error != "")
		if _, err := os.Lstat(file); err == nil {
			step.LogFile = file
		}
	}
	if m := step.Missed; m != nil && step.Files == nil && m.Last != "" && len(step.Finished.Outputs) > 0 {
		for _, c := range m.Changes {
			if c.Input == events.InputFiles {
				f := explainer{store: b.snapshots}.Files(solver.Layer{ID: step.Finished.Outputs[0].Layer}, solver.Layer{ID: m.Last})
				step.Files = &f
			}
		}
	}
}

// findBuilds returns the ID of the build that an ID, its beginning or its end names, and for "" those of all builds, the last one first.
func (b *Builder) findBuilds(id string) ([]string, error) {
	all, err := b.history.IDs()
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, &InputError{errors.New("there is no build in the history")}
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
		return nil, &InputError{fmt.Errorf("build %s is not in the history; the last one is %s", id, all[0])}
	case 1:
		return found, nil
	}
	return nil, &InputError{fmt.Errorf("%d builds have an ID that begins or ends with %s: give more of it", len(found), id)}
}
