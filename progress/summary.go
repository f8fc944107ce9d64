package progress

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/llb"
)

const (
	// maxSlowest is how many of the slowest steps a summary names, and worthNaming how long the shortest of them took.
	maxSlowest  = 3
	worthNaming = 50 * time.Millisecond
	// maxLayers is how many new layers a summary names.
	maxLayers = 10
)

// summary is what is said of a build at its end.
type summary struct {
	steps   map[llb.Digest]bool // whether they ran; those that did not were cached
	slowest []slow
	made    map[string]string // the steps that ran and made layers, by layer
}

// counts returns how many steps ran, and how many were cached.
func (s *summary) counts() (ran, cached int) {
	for _, r := range s.steps {
		if r {
			ran++
		} else {
			cached++
		}
	}
	return ran, cached
}

// slow is a step and how long it took.
type slow struct {
	id   llb.Digest
	name string
	took time.Duration
}

// add adds a task that ended. Only vertices of the graph are steps, but whatever takes long is named.
func (s *summary) add(t *task, at time.Time, f events.Finished) {
	if s.steps == nil {
		s.steps, s.made = map[llb.Digest]bool{}, map[string]string{}
	}
	switch {
	case f.Error != "" || f.Canceled:
		return
	case t.what.Op != "":
		// An image that was there as a list of files may be fetched later.
		s.steps[t.id] = s.steps[t.id] || !t.cached
	}
	if t.cached {
		return
	}
	for _, o := range f.Outputs {
		s.made[o.Layer] = t.name
	}
	if took := t.took(at); took >= worthNaming {
		s.slowest = append(s.slowest, slow{t.id, t.name, took})
		slices.SortStableFunc(s.slowest, func(a, b slow) int { return cmp.Compare(b.took, a.took) })
		s.slowest = s.slowest[:min(len(s.slowest), maxSlowest)]
	}
}

// narrow is the width of terminals on which the columns of a summary would leave no room for names.
const narrow = 50

// text returns the lines of a summary. Those that name the image are whole on a terminal of any width.
func (s *summary) text(d *tty, width int) string {
	var b strings.Builder
	put := func(line string) { b.WriteString(truncate(line, width) + "\n") }
	took, total := d.now().Sub(d.began).Seconds(), d.counts.String()
	switch {
	case d.result.Canceled:
		put(fmt.Sprintf("[+] Canceled after %.1fs (%s)", took, total))
		return b.String()
	case d.result.Error != "":
		put(fmt.Sprintf("[+] Failed after %.1fs (%s)", took, total))
		return b.String()
	}
	ran, cached := s.counts()
	put(fmt.Sprintf("[+] Built in %.1fs (%s): %s ran, %d cached", took, total, plural(ran, "step"), cached))
	list := func(label string, rows [][2]string) {
		if width < narrow && len(rows) > 0 {
			put(" " + label)
		}
		for _, row := range rows {
			if width < narrow {
				put("  " + row[0] + " " + row[1])
			} else {
				put(fmt.Sprintf(" %-7s %8s %s", label, row[0], row[1]))
			}
			label = ""
		}
	}
	var slowest [][2]string
	for _, slow := range s.slowest {
		slowest = append(slowest, [2]string{seconds(slow.took), slow.name})
	}
	list("slowest", slowest)
	list("new", s.layers(d.result.Layers))
	if id := d.result.Image; id != "" {
		b.WriteString(" image   " + termtext.Line(id) + "\n")
	}
	for _, name := range d.result.Names {
		b.WriteString(" name    " + termtext.Line(name) + "\n")
	}
	return b.String()
}

// layers returns the sizes of the layers of the image that are new, the largest first, and the steps that made them.
func (s *summary) layers(all []events.LayerSize) [][2]string {
	var fresh []events.LayerSize
	for _, l := range all {
		if s.made[l.Layer] != "" {
			fresh = append(fresh, l)
		}
	}
	slices.SortStableFunc(fresh, func(a, b events.LayerSize) int { return cmp.Compare(b.Size, a.Size) })
	var rows [][2]string
	for _, l := range fresh[:min(len(fresh), maxLayers)] {
		rows = append(rows, [2]string{size(l.Size), s.made[l.Layer]})
	}
	if more := len(fresh) - maxLayers; more > 0 {
		rows = append(rows, [2]string{"…", "and " + plural(more, "layer") + " more"})
	}
	return rows
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
