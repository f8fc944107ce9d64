package snapshot

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
)

// mergeRun is how many layers are merged to one, and mergeEntries how many entries they may have together for that to be worth
// it where the kernel does not ask for it. The kernel's cost of an overlay grows with each directory, and links to the files
// of a run are made once.
const (
	mergeRun     = 64
	mergeEntries = 4096
)

// Merge returns layers, the lowest first, that together are the same root file system as those of ids, which are different ones
// and not empty: runs of them are merged into one layer each, so that there are at most most of them, if possible. A merged layer
// is named by what it was made from. It is in the store as any other, but in nobody's record; if it is removed, it is made
// again. Its files are those of the layers, by hard links.
func (s *Store) Merge(ids []string, most int) ([]string, error) {
	if len(ids) < 2*mergeRun && len(ids) <= most {
		return ids, nil
	}
	out, err := s.mergeRuns(ids, mergeRun, mergeEntries)
	if err == nil && len(out) > most {
		out, err = s.mergeRuns(ids, mergeRun, math.MaxInt)
	}
	return out, err
}

// mergeRuns merges the runs of length layers that have at most that many entries. Where a run begins depends on the number of
// layers below alone, so a longer chain has the runs of a shorter one.
func (s *Store) mergeRuns(ids []string, length, entries int) ([]string, error) {
	var out []string
	for begin := 0; begin < len(ids); begin += length {
		run := ids[begin:min(begin+length, len(ids))]
		n := 0
		for _, id := range run {
			m, err := s.Manifest(id)
			if err != nil {
				return nil, err
			}
			n += m.Entries
		}
		if len(run) < length || n > entries {
			out = append(out, run...)
			continue
		}
		id, err := s.merged(ids[:begin], run)
		if err != nil {
			return nil, fmt.Errorf("merge layers: %w", err)
		}
		out = append(out, id)
	}
	return out, nil
}

// merged returns the layer that run is over the layers below.
func (s *Store) merged(below, run []string) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "merged over %q\n", below)
	for _, id := range run {
		m, err := s.Manifest(id)
		if err != nil {
			return "", err
		}
		// A layer that was made again, because its files were damaged, has the same id and another time.
		fmt.Fprintln(h, id, m.Created.UnixNano())
	}
	id := fmt.Sprintf("%x", h.Sum(nil))
	s.merging.Lock() // steps that start together mostly need the same
	defer s.merging.Unlock()
	if s.Has(id) {
		return id, nil
	}
	parent, err := s.Tree(below)
	if err != nil {
		return "", err
	}
	p, err := s.New()
	if err != nil {
		return "", err
	}
	defer p.Close()
	b := s.NewBuilder(parent, p, time.Unix(0, 0))
	defer b.Close()
	for _, id := range run {
		if err := s.replay(b, id); err != nil {
			return "", err
		}
	}
	if err := b.Finish(); err != nil {
		return "", err
	}
	_, err = p.Commit(b, id)
	return id, err
}

// replay puts what a layer does to the root file system below it into b.
func (s *Store) replay(b *Builder, id string) error {
	m, err := s.Manifest(id)
	if err != nil {
		return err
	}
	files, err := s.unpacked(id)
	if err != nil {
		return err
	}
	if err := b.disk.setEarlier(m, files); err != nil {
		return err
	}
	tree, err := s.Tree([]string{id})
	if err != nil {
		return err
	}
	for e := range m.All() {
		err := ctxio.Ended(s.Context)
		switch {
		case err != nil:
		case e.Type == layer.Whiteout:
			err = b.Delete(e.Path)
		case e.Type == layer.Hardlink:
			err = b.Link(*e, e.Link)
		case e.Type == layer.File:
			body := &lazyFile{open: func() (io.ReadCloser, error) { return tree.Open(e) }}
			err = b.Put(*e, body)
			body.Close()
		case e.Opaque && e.Path != "":
			if err = b.Delete(e.Path); err == nil {
				err = b.Put(*e, nil)
			}
		default:
			err = b.Put(*e, nil)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// lazyFile opens a file when it is read.
type lazyFile struct {
	open func() (io.ReadCloser, error)
	file io.ReadCloser
}

func (l *lazyFile) Read(p []byte) (int, error) {
	if l.file == nil {
		var err error
		if l.file, err = l.open(); err != nil {
			return 0, err
		}
	}
	return l.file.Read(p)
}

func (l *lazyFile) Close() {
	if l.file != nil {
		l.file.Close()
	}
}
