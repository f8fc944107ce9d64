package frontend

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/llb"
)

// dump returns a result as text: for each image its configuration and history, then the vertices, inputs first, then the
// warnings.
func dump(res *Result, err error) string {
	var out strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&out, format+"\n", args...) }
	if err != nil {
		line("error: %v", err)
	}
	var order []*llb.Vertex
	number := map[*llb.Vertex]int{}
	var visit func(v *llb.Vertex)
	visit = func(v *llb.Vertex) {
		if number[v] > 0 {
			return
		}
		for _, in := range v.Inputs() {
			visit(in.Vertex)
		}
		order = append(order, v)
		number[v] = len(order)
	}
	for _, image := range res.Images {
		visit(image.Root.Vertex)
		line("image %s, root %d", image.Platform, number[image.Root.Vertex])
		if image.Author != "" {
			line("  author %s", image.Author)
		}
		line("  config %s", compact(image.Config))
		for _, h := range image.History {
			from := "base"
			switch {
			case h.Vertex != nil:
				from = fmt.Sprint(number[h.Vertex])
			case h.Empty:
				from = "-"
			}
			line("  history %4s %q", from, h.CreatedBy)
		}
	}
	if res.Epoch != nil {
		line("epoch %d", *res.Epoch)
	}
	for _, v := range order {
		var inputs []string
		for _, in := range v.Inputs() {
			inputs = append(inputs, fmt.Sprint(number[in.Vertex]))
		}
		line("vertex %d %s(%s) %s", number[v], v.Op().Kind(), strings.Join(inputs, ", "), compact(v.Op()))
		m := v.Meta()
		line("  %q line %d-%d %s", m.Name(), m.Location.StartLine, m.Location.EndLine, strings.TrimSpace(m.Platform+" "+noCache(m)))
		if e, ok := v.Op().(llb.Exec); ok && len(e.Proxy) > 0 {
			line("  proxy %q", e.Proxy)
		}
	}
	for _, w := range res.Warnings {
		line("warning line %d-%d %s: %s", w.Location.StartLine, w.Location.EndLine, w.Rule, w.Msg)
	}
	return out.String()
}

func noCache(m llb.Meta) string {
	if m.NoCache {
		return "no cache"
	}
	return ""
}

// compact returns v as JSON without what is empty, and inline files as text.
func compact(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	var tree any
	if err := json.Unmarshal(data, &tree); err != nil {
		return err.Error()
	}
	var prune func(v any) any
	prune = func(v any) any {
		switch v := v.(type) {
		case map[string]any:
			for k, e := range v {
				// The members of a set of ports or volumes are empty and stay.
				if e = prune(e); e == nil && !strings.HasPrefix(k, "/") && !strings.Contains(k, "/tcp") && !strings.Contains(k, "/udp") {
					delete(v, k)
				} else {
					v[k] = e
				}
			}
			if len(v) == 0 {
				return nil
			}
			return v
		case []any:
			for i := range v {
				v[i] = prune(v[i])
			}
			if len(v) == 0 {
				return nil
			}
			return v
		case string:
			if v == "" {
				return nil
			}
		case bool:
			if !v {
				return nil
			}
		case float64:
			if v == 0 {
				return nil
			}
		}
		return v
	}
	data, err = json.Marshal(prune(tree))
	if err != nil {
		return err.Error()
	}
	return strings.ReplaceAll(string(data), "\\u003c", "<")
}

// check returns what is wrong with a result that every result has to have right.
func check(res *Result) error {
	for _, image := range res.Images {
		if image.Root.Vertex == nil {
			return fmt.Errorf("an image has no root")
		}
		var layers []*llb.Vertex
		for o, ok := image.Root, true; ok; o, ok = o.Base() {
			layers = append(layers, o.Vertex)
		}
		layers = layers[:len(layers)-1] // what the root begins with
		slices.Reverse(layers)
		var named []*llb.Vertex
		for i, h := range image.History {
			if h.Vertex != nil {
				named = append(named, h.Vertex)
			}
			if h.Vertex != nil && h.Empty {
				return fmt.Errorf("history entry %d is empty and has a layer", i)
			}
		}
		if !slices.Equal(layers, named) {
			return fmt.Errorf("the history names %d layers of %d", len(named), len(layers))
		}
		seen := map[*llb.Vertex]bool{}
		var visit func(v *llb.Vertex) error
		visit = func(v *llb.Vertex) error {
			if seen[v] {
				return nil
			}
			seen[v] = true
			if err := checkVertex(v); err != nil {
				return fmt.Errorf("%s: %w", v.Meta().Name(), err)
			}
			for _, in := range v.Inputs() {
				if err := visit(in.Vertex); err != nil {
					return err
				}
			}
			return nil
		}
		if err := visit(image.Root.Vertex); err != nil {
			return err
		}
	}
	return nil
}

func checkVertex(v *llb.Vertex) error {
	_, isLocal := v.Op().(llb.Local)
	if len(v.Inputs()) > 0 {
		if _, rootIsLocal := v.Inputs()[0].Vertex.Op().(llb.Local); rootIsLocal || isLocal {
			return fmt.Errorf("a local directory is a root file system")
		}
	}
	switch op := v.Op().(type) {
	case llb.Exec:
		if len(op.Args) == 0 || !strings.HasPrefix(op.Cwd, "/") {
			return fmt.Errorf("no arguments, or the working directory %q", op.Cwd)
		}
		for _, m := range op.Mounts {
			if m.Input < 0 || m.Input >= len(v.Inputs()) || m.Type == llb.MountBind && m.Input == 0 {
				return fmt.Errorf("mount input %d", m.Input)
			}
			if m.Target == "/" || m.Target != "" && !strings.HasPrefix(m.Target, "/") || m.Target == "" && m.Env == "" {
				return fmt.Errorf("mount target %q", m.Target)
			}
			if m.Input > 0 {
				if _, ok := v.Inputs()[m.Input].Vertex.Op().(llb.Local); ok {
					return fmt.Errorf("a mount shows a local directory")
				}
			}
		}
	case llb.File:
		if len(op.Actions) == 0 {
			return fmt.Errorf("no actions")
		}
		for _, a := range op.Actions {
			if err := checkAction(v, a); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkAction(v *llb.Vertex, a llb.Action) error {
	switch {
	case a.Copy != nil:
		if !strings.HasPrefix(a.Copy.Dest, "/") || len(a.Copy.Sources) == 0 {
			return fmt.Errorf("destination %q, %d sources", a.Copy.Dest, len(a.Copy.Sources))
		}
		for _, s := range a.Copy.Sources {
			if s.Input < 1 || s.Input >= len(v.Inputs()) || !strings.HasPrefix(s.Path, "/") {
				return fmt.Errorf("source %d:%q", s.Input, s.Path)
			}
		}
	case a.Mkfile != nil:
		if !strings.HasPrefix(a.Mkfile.Path, "/") || a.Mkfile.Name == "" {
			return fmt.Errorf("path %q, name %q", a.Mkfile.Path, a.Mkfile.Name)
		}
	case a.Mkdir != nil:
		if !strings.HasPrefix(a.Mkdir.Path, "/") {
			return fmt.Errorf("path %q", a.Mkdir.Path)
		}
	default:
		return fmt.Errorf("an action of another kind")
	}
	return nil
}
