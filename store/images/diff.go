package images

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Change is one difference between two images. Its JSON is one line of kiln diff --format=json.
type Change struct {
	// Part is "config", "layer", "file" or "size".
	Part string
	// Kind is "added", "removed" or "changed".
	Kind string
	// Name is a member of the configuration ("Cmd", "Env.PATH"), the diff ID of a layer, or the path of a file; "" for a size.
	Name string `json:",omitempty"`
	// Old and New are the values of a member of the configuration as JSON.
	Old json.RawMessage `json:",omitempty"`
	New json.RawMessage `json:",omitempty"`
	// What says what a file differs in: "type", "content", "mode", "owner", "target", "device" and "attributes".
	What []string `json:",omitempty"`
	// OldSize and NewSize are those of a file, a layer, or all layers in the store, in bytes.
	OldSize int64
	NewSize int64
}

// Diff calls f for each difference between two images, for one platform each: first those of the configuration, then those of layers,
// files and the size. Times of files are not compared.
func (set *Images) Diff(ctx context.Context, older, newer, platform string, f func(Change) error) (err error) {
	work, err := set.root.Work()
	if err != nil {
		return err
	}
	job := work.Layers.Job()
	defer func() { err = errors.Join(err, job.Close()) }()
	var manifests [2]ocispec.Manifest
	var configs [2]dockerspec.DockerOCIImage
	var trees [2]*tree
	for i, name := range []string{older, newer} {
		if manifests[i], configs[i], err = set.find(ctx, name, platform); err != nil {
			return err
		}
		if trees[i], err = set.tree(ctx, job, name, platform); err != nil {
			return err
		}
	}
	if err := diffConfigs(configs[0], configs[1], f); err != nil {
		return err
	}
	if err := diffLayers(manifests, configs, f); err != nil {
		return err
	}
	d := &fileDiff{ctx, trees[0], trees[1], f}
	if err := d.dir("", true, true); err != nil {
		return err
	}
	size := Change{Part: "size", Kind: "changed", OldSize: sizeOf(manifests[0]), NewSize: sizeOf(manifests[1])}
	if size.OldSize == size.NewSize {
		return nil
	}
	return f(size)
}

func sizeOf(m ocispec.Manifest) (sum int64) {
	for _, l := range m.Layers {
		sum += l.Size
	}
	return sum
}

// diffConfigs compares what containers get from the configurations, and the platforms.
func diffConfigs(older, newer dockerspec.DockerOCIImage, f func(Change) error) error {
	var members [2]map[string]json.RawMessage
	for i, c := range []dockerspec.DockerOCIImage{older, newer} {
		var err error
		if members[i], err = membersOf(c); err != nil {
			return err
		}
	}
	names := slices.Sorted(maps.Keys(members[0]))
	for name := range members[1] {
		if members[0][name] == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		was, is := members[0][name], members[1][name]
		if bytes.Equal(was, is) {
			continue
		}
		if err := f(Change{Part: "config", Kind: kind(was != nil, is != nil), Name: name, Old: was, New: is}); err != nil {
			return err
		}
	}
	return nil
}

func kind(before, now bool) string {
	switch {
	case !before:
		return "added"
	case !now:
		return "removed"
	}
	return "changed"
}

// membersOf returns the members of a configuration, and in place of Env, Labels, ExposedPorts and Volumes what each has.
func membersOf(c dockerspec.DockerOCIImage) (map[string]json.RawMessage, error) {
	data, err := json.Marshal(c.Config)
	if err != nil {
		return nil, err
	}
	out := map[string]json.RawMessage{}
	if err := json.Unmarshal(data, &out); err != nil {
		return nil, err
	}
	for _, name := range []string{"Labels", "ExposedPorts", "Volumes"} {
		var list map[string]json.RawMessage
		if json.Unmarshal(out[name], &list) == nil {
			delete(out, name)
			for key, value := range list {
				out[name+"."+key] = value
			}
		}
	}
	delete(out, "Env")
	for _, v := range c.Config.Env {
		key, value, _ := strings.Cut(v, "=")
		if out["Env."+key], err = json.Marshal(value); err != nil {
			return nil, err
		}
	}
	for name, value := range map[string]string{"OS": c.OS, "OSVersion": c.OSVersion, "Architecture": c.Architecture, "Variant": c.Variant, "Author": c.Author} {
		if value != "" {
			if out[name], err = json.Marshal(value); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// diffLayers reports the layers above those that both images begin with.
func diffLayers(m [2]ocispec.Manifest, c [2]dockerspec.DockerOCIImage, f func(Change) error) error {
	was, is := c[0].RootFS.DiffIDs, c[1].RootFS.DiffIDs
	shared := 0
	for shared < min(len(was), len(is)) && was[shared] == is[shared] {
		shared++
	}
	for i, d := range was[shared:] {
		if err := f(Change{Part: "layer", Kind: "removed", Name: string(d), OldSize: m[0].Layers[shared+i].Size}); err != nil {
			return err
		}
	}
	for i, d := range is[shared:] {
		if err := f(Change{Part: "layer", Kind: "added", Name: string(d), NewSize: m[1].Layers[shared+i].Size}); err != nil {
			return err
		}
	}
	return nil
}

// fileDiff compares the files of two images.
type fileDiff struct {
	ctx          context.Context
	older, newer *tree
	report       func(Change) error
}

// dir compares what is in a directory of either image, or both.
func (d *fileDiff) dir(at string, inOlder, inNewer bool) error {
	var was, is []layer.Entry
	var err error
	if inOlder {
		if was, err = d.older.List(at); err != nil {
			return err
		}
	}
	if inNewer {
		if is, err = d.newer.List(at); err != nil {
			return err
		}
	}
	for len(was) > 0 || len(is) > 0 {
		if err := ctxio.Ended(d.ctx); err != nil {
			return err
		}
		order := 0
		switch {
		case len(was) == 0:
			order = 1
		case len(is) == 0:
			order = -1
		default:
			order = cmp.Compare(was[0].Path, is[0].Path)
		}
		var before, now *layer.Entry
		if order <= 0 {
			before, was = &was[0], was[1:]
		}
		if order >= 0 {
			now, is = &is[0], is[1:]
		}
		if err := d.entry(before, now); err != nil {
			return err
		}
	}
	return nil
}

// entry compares a path in both images; nil where it does not exist.
func (d *fileDiff) entry(before, now *layer.Entry) error {
	c := Change{Part: "file", Kind: kind(before != nil, now != nil)}
	if before != nil {
		c.Name, c.OldSize = "/"+before.Path, before.Size
	}
	if now != nil {
		c.Name, c.NewSize = "/"+now.Path, now.Size
	}
	if before != nil && now != nil {
		c.What = differs(before, now)
	}
	if c.Kind != "changed" || len(c.What) > 0 {
		if err := d.report(c); err != nil {
			return err
		}
	}
	wasDir, isDir := before != nil && before.Type == layer.Dir, now != nil && now.Type == layer.Dir
	if wasDir || isDir {
		return d.dir(c.Name[1:], wasDir, isDir)
	}
	return nil
}

// differs says what two files of one name differ in.
func differs(a, b *layer.Entry) (what []string) {
	if a.Type != b.Type {
		return []string{"type"}
	}
	for _, one := range []struct {
		name string
		same bool
	}{
		{"content", a.Size == b.Size && a.Digest == b.Digest},
		{"target", a.Link == b.Link},
		{"device", a.Major == b.Major && a.Minor == b.Minor},
		{"mode", a.Mode == b.Mode},
		{"owner", a.UID == b.UID && a.GID == b.GID},
		{"attributes", fmt.Sprint(a.Xattrs) == fmt.Sprint(b.Xattrs)},
	} {
		if !one.same {
			what = append(what, one.name)
		}
	}
	return what
}

// String describes the change in one line, which begins with "+", "-" or "~".
func (c Change) String() string {
	sign := map[string]string{"added": "+", "removed": "-", "changed": "~"}[c.Kind]
	size := func() string {
		switch {
		case c.Kind == "added":
			return humanSize(c.NewSize)
		case c.Kind == "removed" || c.OldSize == c.NewSize:
			return humanSize(c.OldSize)
		}
		return humanSize(c.OldSize) + " -> " + humanSize(c.NewSize)
	}
	switch {
	case c.Part == "config" && c.Kind == "changed":
		return fmt.Sprintf("%s %s: %s -> %s", sign, c.Name, c.Old, c.New)
	case c.Part == "config":
		return fmt.Sprintf("%s %s: %s", sign, c.Name, append(c.Old[:len(c.Old):len(c.Old)], c.New...))
	case c.Part == "size":
		return size()
	}
	notes := c.What
	if c.OldSize > 0 || c.NewSize > 0 {
		notes = append(notes[:len(notes):len(notes)], size())
	}
	if len(notes) == 0 {
		return sign + " " + c.Name
	}
	return fmt.Sprintf("%s %s (%s)", sign, c.Name, strings.Join(notes, ", "))
}

func humanSize(n int64) string { return units.HumanSizeWithPrecision(float64(n), 3) }
