package store

import (
	"os"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/history"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/explain"
)

// Past returns a build of the history: the one whose ID begins or ends with id, the last one for "". An error that is *input.Error says
// that there is none.
func (r *Root) Past(id string) (*history.Past, error) {
	w, err := r.Work()
	if err != nil {
		return nil, err
	}
	return w.History.Past(id, w)
}

// Log implements history.Kept.
func (w *Work) Log(key string, failed bool) string {
	k, err := solver.ParseKey(key)
	if err != nil {
		return ""
	}
	file := w.Records.LogFile(k, failed)
	if _, err := os.Lstat(file); err != nil {
		return ""
	}
	return file
}

// Files implements history.Kept.
func (w *Work) Files(now, last string) events.Files {
	job := w.Layers.Job()
	defer job.Close()
	return explain.Explainer{Layers: job}.Files(solver.Layer{ID: now}, solver.Layer{ID: last})
}
