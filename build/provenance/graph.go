package provenance

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/attestation/slsa"
	"github.com/kilnbuild/kiln/frontend"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/llb"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// graph are the vertices that an image is made of, each after its inputs.
type graph struct {
	vertices []*llb.Vertex
	index    map[*llb.Vertex]int
	hide     hider
	// ids are those of the steps if they are not kiln's; nil if they are.
	ids map[llb.Digest]string
}

func newGraph(root llb.Output, hide hider) *graph {
	g := &graph{index: map[*llb.Vertex]int{}, hide: hide}
	// Without recursion, since a stage has any number of instructions: a vertex is taken twice, and added when its inputs are.
	type visit struct {
		v    *llb.Vertex
		done bool
	}
	stack := []visit{{v: root.Vertex}}
	for len(stack) > 0 {
		at := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if _, known := g.index[at.v]; known {
			continue
		}
		if at.done {
			g.index[at.v] = len(g.vertices)
			g.vertices = append(g.vertices, at.v)
			continue
		}
		stack = append(stack, visit{at.v, true})
		for _, in := range slices.Backward(at.v.Inputs()) {
			if _, known := g.index[in.Vertex]; !known {
				stack = append(stack, visit{v: in.Vertex})
			}
		}
	}
	return g
}

func (g *graph) id(v *llb.Vertex) string {
	if g.ids != nil {
		return g.ids[v.Digest()]
	}
	return "step" + strconv.Itoa(g.index[v])
}

func (g *graph) output(o llb.Output) string { return g.id(o.Vertex) + ":" + strconv.Itoa(o.Index) }

// config returns the steps.
func (g *graph) config() *slsa.Config {
	c := &slsa.Config{DigestMapping: map[string]string{}}
	for _, v := range g.vertices {
		s := slsa.Step{
			ID: g.id(v), Name: g.hide.text(v.Meta().Text), Platform: v.Meta().Platform,
			Op: map[string]any{v.Op().Kind(): g.op(v.Op())}, Inputs: []string{},
		}
		for _, in := range v.Inputs() {
			s.Inputs = append(s.Inputs, g.output(in))
		}
		c.Steps = append(c.Steps, s)
		c.DigestMapping[v.Digest().String()] = s.ID
	}
	return c
}

// source returns the Dockerfile and where in it steps are.
func (g *graph) source(filename string, text []byte) *slsa.Source {
	s := &slsa.Source{
		Infos:     []slsa.SourceInfo{{Filename: filename, Language: "Dockerfile", Data: text}},
		Locations: map[string]slsa.Locations{},
	}
	for _, v := range g.vertices {
		if at := v.Meta().Location; at.StartLine > 0 {
			lines := slsa.Range{Start: slsa.Position{Line: at.StartLine}, End: slsa.Position{Line: at.EndLine}}
			s.Locations[g.id(v)] = slsa.Locations{Locations: []slsa.Location{{Ranges: []slsa.Range{lines}}}}
		}
	}
	return s
}

// layers returns the blobs of the image's layers by the steps that made them; those of its base image are one list. depths is as in Build.
func (g *graph) layers(img frontend.Image, blobs []ocispec.Descriptor, depths map[llb.Output]int) map[string][][]ocispec.Descriptor {
	made := map[string][][]ocispec.Descriptor{}
	if top, ok := depths[img.Root]; ok && top == len(blobs) {
		for o, more := img.Root, true; more; {
			base, ok := o.Base()
			if from, to := depths[base], depths[o]; from < to {
				made[g.output(o)] = [][]ocispec.Descriptor{blobs[from:to]}
			}
			o, more = base, ok
		}
		return made
	}
	var steps []*llb.Vertex
	for _, h := range img.History {
		if h.Vertex != nil {
			steps = append(steps, h.Vertex)
		}
	}
	below := len(blobs) - len(steps)
	if below < 0 {
		return nil
	}
	if o := img.Root; below > 0 {
		for base, ok := o.Base(); ok; base, ok = o.Base() {
			o = base
		}
		made[g.output(o)] = [][]ocispec.Descriptor{blobs[:below]}
	}
	for i, v := range steps {
		made[g.output(v.Output(0))] = [][]ocispec.Descriptor{blobs[below+i : below+i+1]}
	}
	return made
}

// needed returns the secrets and agents that steps ask for, by ID.
func (g *graph) needed() (secrets, agents []slsa.Needed) {
	optional := map[llb.MountType]map[string]bool{llb.MountSecret: {}, llb.MountSSH: {}}
	for _, v := range g.vertices {
		op, ok := v.Op().(llb.Exec)
		if !ok {
			continue
		}
		for _, m := range op.Mounts {
			of := optional[m.Type]
			if of == nil {
				continue
			}
			id := m.ID
			if m.Type == llb.MountSSH {
				id = cmp.Or(id, "default")
			}
			before, known := of[id]
			of[id] = !m.Required && (before || !known)
		}
	}
	list := func(of map[string]bool) (all []slsa.Needed) {
		for _, id := range slices.Sorted(maps.Keys(of)) {
			all = append(all, slsa.Needed{ID: id, Optional: of[id]})
		}
		return all
	}
	return list(optional[llb.MountSecret]), list(optional[llb.MountSSH])
}

// network reports whether a step can reach a network.
func (g *graph) network() bool {
	return slices.ContainsFunc(g.vertices, func(v *llb.Vertex) bool {
		op, ok := v.Op().(llb.Exec)
		return ok && op.Network != llb.NetworkNone
	})
}

// fields are the values of an op by their names, without those that are zero.
type fields map[string]any

func (f fields) text(name, value string) {
	if value != "" {
		f[name] = value
	}
}

func (f fields) flag(name string, value bool) {
	if value {
		f[name] = true
	}
}

func (f fields) texts(name string, values []string) {
	if len(values) > 0 {
		f[name] = values
	}
}

// op describes what a vertex does.
func (g *graph) op(op llb.Op) fields {
	f := fields{}
	switch op := op.(type) {
	case llb.Image:
		f.text("ref", op.Ref)
		f.text("digest", op.Digest)
		f.flag("layout", op.Layout != "")
	case llb.Local:
		f.text("name", op.Name)
	case llb.HTTP:
		f.text("url", g.hide.text(op.URL))
		f.text("filename", op.Filename)
		f.text("checksum", op.Checksum)
	case llb.Blob:
		f.text("ref", op.Ref)
		f.text("digest", op.Digest)
		f.flag("layout", op.Store != "")
		f.text("filename", op.Filename)
	case llb.Git:
		f.text("remote", g.hide.text(remoteurl.WithoutUser(op.Remote)))
		f.text("ref", op.Ref)
		f.text("subdir", op.Subdir)
		f.text("checksum", op.Checksum)
		f.flag("keepGitDir", op.KeepGitDir)
		f.flag("skipSubmodules", op.SkipSubmodules)
	case llb.Exec:
		g.exec(f, op)
	case llb.File:
		actions := make([]fields, len(op.Actions))
		for i, a := range op.Actions {
			actions[i] = g.action(a)
		}
		f["actions"] = actions
	}
	return f
}

func (g *graph) exec(f fields, op llb.Exec) {
	f["args"], f["env"] = g.hide.texts(op.Args), g.hide.env(op.Env)
	f.text("cwd", op.Cwd)
	f.text("user", op.User)
	f.text("hostname", op.Hostname)
	f.text("network", string(op.Network))
	f.text("security", string(op.Security))
	for name, value := range runOptions(op.RunOptions) {
		f.text(name, value)
	}
	var hosts, devices []string
	for _, h := range op.ExtraHosts {
		hosts = append(hosts, h.Host+"="+h.IP)
	}
	for _, d := range op.Devices {
		devices = append(devices, d.Name)
	}
	f.texts("extraHosts", hosts)
	f.texts("devices", devices)
	var mounts []fields
	for _, m := range op.Mounts {
		mounts = append(mounts, mount(m))
	}
	if len(mounts) > 0 {
		f["mounts"] = mounts
	}
}

func mount(m llb.Mount) fields {
	f := fields{"type": string(m.Type)}
	f.text("target", m.Target)
	switch m.Type {
	case llb.MountBind, llb.MountCache:
		if m.Input > 0 {
			f["input"] = m.Input
		}
		f.text("source", m.Source)
		f.flag("readonly", m.ReadOnly)
		f.text("sharing", string(m.Sharing))
	case llb.MountSecret, llb.MountSSH:
		f.text("id", m.ID)
		f.text("env", m.Env)
		f.flag("required", m.Required)
	case llb.MountTmpfs:
		if m.Size > 0 {
			f["size"] = m.Size
		}
	}
	return f
}

func (g *graph) action(a llb.Action) fields {
	switch {
	case a.Copy != nil:
		c := a.Copy
		sources := make([]fields, len(c.Sources))
		for i, s := range c.Sources {
			sources[i] = fields{"input": s.Input, "path": g.hide.text(s.Path)}
			sources[i].flag("unpack", s.Unpack)
		}
		f := fields{"sources": sources, "dest": g.hide.text(c.Dest)}
		attributes(f, c.Attributes)
		f.texts("exclude", g.hide.texts(c.Exclude))
		f.flag("parents", c.Parents)
		f.flag("link", c.Link)
		return fields{"copy": f}
	case a.Mkfile != nil:
		m := a.Mkfile
		f := fields{"path": g.hide.text(m.Path), "data": []byte(g.hide.text(string(m.Content)))}
		f.text("name", m.Name)
		attributes(f, m.Attributes)
		f.flag("link", m.Link)
		return fields{"mkfile": f}
	case a.Mkdir != nil:
		f := fields{"path": g.hide.text(a.Mkdir.Path)}
		attributes(f, a.Mkdir.Attributes)
		return fields{"mkdir": f}
	case a.Remove != nil:
		return fields{"rm": fields{"path": g.hide.text(a.Remove.Path)}}
	case a.Symlink != nil:
		return fields{"symlink": fields{"path": g.hide.text(a.Symlink.Path), "target": g.hide.text(a.Symlink.Target)}}
	}
	return fields{}
}

func attributes(f fields, a llb.Attributes) {
	f.text("chown", a.Chown)
	f.text("chmod", a.Chmod)
	if a.Epoch != nil {
		f["epoch"] = *a.Epoch
	}
}

// runOptions returns the options of RUN that decide its result, by the names that BuildKit's frontend has for them.
func runOptions(o llb.RunOptions) map[string]string {
	all := map[string]string{}
	if o.ShmSize != 0 {
		all["shm-size"] = strconv.FormatInt(o.ShmSize, 10)
	}
	var limits []string
	for _, u := range o.Ulimits {
		limits = append(limits, fmt.Sprintf("%s=%d:%d", u.Name, u.Soft, u.Hard))
	}
	if len(limits) > 0 {
		all["ulimit"] = strings.Join(limits, ",")
	}
	return all
}
