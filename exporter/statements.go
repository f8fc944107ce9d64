package exporter

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/layer"
)

// NamedStatement is a file with a statement about the files of an output.
type NamedStatement struct {
	Name string
	attestation.Attestation
}

// WithStatements returns a root file system that has in addition files with statements about all of its files, as BuildKit writes them, at
// its top, of a time. A file that has such a name already is an *input.Error.
func WithStatements(ctx context.Context, tree layer.Tree, all []NamedStatement, when time.Time) (layer.Tree, error) {
	subjects, err := subjects(ctx, tree)
	if err != nil {
		return nil, err
	}
	added := &addedFiles{Tree: tree, bytes: map[string][]byte{}}
	for _, s := range all {
		if _, there, err := tree.Lookup(s.Name); err != nil {
			return nil, err
		} else if there || added.bytes[s.Name] != nil {
			return nil, &input.Error{Err: fmt.Errorf("write the attestation %s: there is a file of this name already; "+
				"attestation-prefix=PREFIX of the output gives it another one", s.Name)}
		}
		data, err := json.MarshalIndent(s.Statement(subjects), "", "  ")
		if err == nil && len(data) > attestation.MaxStatement {
			err = fmt.Errorf("with the digests of %d files it has %d bytes; the limit is %d MiB", len(subjects), len(data), attestation.MaxStatement>>20)
		}
		if err != nil {
			return nil, fmt.Errorf("write the attestation %s: %w", s.Name, err)
		}
		added.bytes[s.Name] = data
		added.entries = append(added.entries, layer.Entry{
			Path: s.Name, Type: layer.File, Mode: 0o600, Size: int64(len(data)), Digest: sha256.Sum256(data), ModTime: when,
		})
	}
	return added, nil
}

// subjects returns the regular files of a root file system, with their digests.
func subjects(ctx context.Context, tree layer.Tree) ([]attestation.Resource, error) {
	all := []attestation.Resource{}
	err := entries(ctx, tree, nil, func(e *layer.Entry) error {
		file := *e
		switch e.Type {
		case layer.File:
		case layer.Hardlink:
			var ok bool
			var err error
			if file, ok, err = tree.Lookup(e.Path); err != nil || !ok || file.Type != layer.File {
				return err
			}
		default:
			return nil
		}
		all = append(all, attestation.Resource{Name: e.Path, Digest: map[string]string{"sha256": hex.EncodeToString(file.Digest[:])}})
		return nil
	})
	return all, err
}

// addedFiles is a tree with further files at its top.
type addedFiles struct {
	layer.Tree
	entries []layer.Entry
	bytes   map[string][]byte
}

// Lookup implements layer.Tree.
func (a *addedFiles) Lookup(path string) (layer.Entry, bool, error) {
	for _, e := range a.entries {
		if e.Path == path {
			return e, true, nil
		}
	}
	return a.Tree.Lookup(path)
}

// List implements layer.Tree.
func (a *addedFiles) List(dir string) ([]layer.Entry, error) {
	list, err := a.Tree.List(dir)
	if err != nil || dir != "" {
		return list, err
	}
	list = slices.Concat(list, a.entries)
	slices.SortFunc(list, func(x, y layer.Entry) int { return strings.Compare(x.Path, y.Path) })
	return list, nil
}

// Open implements layer.Tree.
func (a *addedFiles) Open(e *layer.Entry) (io.ReadCloser, error) {
	if data, ok := a.bytes[e.Path]; ok {
		return io.NopCloser(bytes.NewReader(data)), nil
	}
	return a.Tree.Open(e)
}
