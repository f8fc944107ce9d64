// Package sbom finds out which packages are in an image, from what package managers and compilers have left in its files, and writes that
// as a document of SPDX.
//
// Each layer is scanned by itself, once: what its files tell is kept in the root directory. The packages of an image are those of the files
// that are to be seen through the stack of its layers.
package sbom

import (
	"context"
	"fmt"
	"path"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/version"
	"github.com/kilnbuild/kiln/sbom/internal/found"
	"github.com/kilnbuild/kiln/sbom/internal/spdx"
)

// Image is an image to be scanned.
type Image struct {
	// Name is what the document calls it.
	Name string
	// Created is the time of the document.
	Created time.Time
	// Layers are the layers of its root file system that have entries, the lowest first.
	Layers []layer.ID
	// Bring makes the files of a layer available that has to be scanned. It is called by several goroutines.
	Bring func(ctx context.Context, id layer.ID) error
	// View returns the layers with their manifests, in the order of Layers.
	View func(ctx context.Context) ([]layer.Part, error)
	// Files returns the files of a layer.
	Files func(ctx context.Context, id layer.ID) (layer.Files, error)
}

// Scanner scans images.
type Scanner struct {
	// Root is the root directory in which findings are kept, and Tmp a directory of this process on the same file system.
	Root, Tmp string
	// Warn is called for each file of an image that could not be read in full.
	Warn func(text string)
	// Scanned, unless nil, is called when a layer that has not been scanned before is.
	Scanned func(id layer.ID)
}

// parallel is how many layers are brought at once.
const parallel = 4

// Scan returns what is known of the packages in an image, as a document of SPDX 2.3 in JSON. What is damaged in the image is no error: Warn
// is called for it, and the rest is in the document.
func (s *Scanner) Scan(ctx context.Context, img *Image) ([]byte, error) {
	kept := store{s.Root, s.Tmp}
	all := map[layer.ID][]finding{}
	for _, id := range img.Layers {
		if known, ok := kept.load(id); ok {
			all[id] = known
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, id := range img.Layers {
		if all[id] == nil {
			g.Go(func() error { return img.Bring(gctx, id) })
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	parts, err := img.View(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range parts {
		if all[p.ID] != nil {
			continue
		}
		files, err := img.Files(ctx, p.ID)
		if err != nil {
			return nil, err
		}
		findings, err := scan(ctx, p.Manifest, files, s.Tmp)
		if err != nil {
			return nil, err
		}
		if findings == nil {
			findings = []finding{} // it is known to have none
		}
		if s.Scanned != nil {
			s.Scanned(p.ID)
		}
		all[p.ID] = findings
		if err := kept.save(p.ID, findings); err != nil {
			return nil, fmt.Errorf("keep what was found in a layer: %w", err)
		}
	}
	doc, err := s.combine(img, parts, all)
	if err != nil {
		return nil, err
	}
	return spdx.Write(doc)
}

// combine returns the findings in files that are to be seen in the image.
func (s *Scanner) combine(img *Image, parts []layer.Part, all map[layer.ID][]finding) (*spdx.Source, error) {
	doc := &spdx.Source{Name: img.Name, Tool: "kiln-" + version.String(), Created: img.Created}
	stack := layer.NewStack(parts)
	seen := map[layer.ID]bool{}
	weight := 0
	for _, p := range parts {
		if seen[p.ID] {
			continue
		}
		seen[p.ID] = true
		for i := range all[p.ID] {
			f := &all[p.ID][i]
			visible, err := shows(stack, p.ID, f)
			if err != nil {
				return nil, err
			}
			if !visible {
				continue
			}
			if f.Problem != "" {
				s.Warn(fmt.Sprintf("SBOM: /%s: %s; packages may be missing", f.Path, f.Problem))
			}
			// What the administrator has in etc replaces what the distribution has.
			if f.Release != nil && (doc.Release.ID == "" || strings.HasPrefix(f.Path, "etc/")) {
				doc.Release = *f.Release
			}
			for j := range f.Packages {
				if weight += f.Packages[j].Weight() + len(f.Path); weight > found.MaxWeight {
					if f.Problem == "" {
						s.Warn(fmt.Sprintf("SBOM: /%s: %v, with the files before it in the image; packages are missing", f.Path, found.ErrTooMany))
					}
					break
				}
				doc.Packages = append(doc.Packages, spdx.Located{Package: &f.Packages[j], Path: f.Path})
			}
		}
	}
	return doc, nil
}

// shows reports whether a finding in a layer says something of the image: whether its file is to be seen there.
func shows(stack *layer.Stack, id layer.ID, f *finding) (bool, error) {
	e, ok, err := stack.Lookup(f.Path)
	if err != nil || !ok || !strings.HasPrefix(e.LinkID, string(id)+"/") {
		return false, err
	}
	if f.Kind != kindLock {
		return true, nil
	}
	// What is installed beside a lock says itself what it is; the lock has what could have been.
	e, ok, err = stack.Lookup(layer.Join(path.Dir("/" + f.Path)[1:], modules))
	return !ok || e.Type != layer.Dir, err
}
