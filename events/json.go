package events

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/kilnbuild/kiln/llb"
)

// Append appends the JSON of an event to dst, with a line feed. Text that is not UTF-8 has U+FFFD where it is not.
//
// It does without encoding/json, whose first look at the types takes longer than all else that a small build records.
func Append(dst []byte, e Event) []byte {
	w := writer{dst}
	w.open()
	w.key("time")
	w.buf = append(e.Time.AppendFormat(append(w.buf, '"'), time.RFC3339Nano), '"')
	if e.Vertex != (llb.Digest{}) {
		w.text("vertex", e.Vertex.String())
	}
	if e.Body != nil {
		w.key(e.Body.kind())
		w.open()
		e.Body.write(&w)
		w.close()
	}
	w.close()
	return append(w.buf, '\n')
}

// writer writes JSON objects. Members that are zero are left out.
type writer struct{ buf []byte }

func (w *writer) open()  { w.buf = append(w.buf, '{') }
func (w *writer) close() { w.buf = append(w.buf, '}') }

// key begins a member. Keys need no escapes.
func (w *writer) key(name string) {
	w.comma('{')
	w.buf = append(w.buf, '"')
	w.buf = append(w.buf, name...)
	w.buf = append(w.buf, '"', ':')
}

// comma separates what follows from what is before, unless that is the beginning of an object or array.
func (w *writer) comma(begin byte) {
	if last := w.buf[len(w.buf)-1]; last != begin {
		w.buf = append(w.buf, ',')
	}
}

func (w *writer) text(name, value string) {
	if value != "" {
		w.key(name)
		w.string(value)
	}
}

func (w *writer) number(name string, value int64) {
	if value != 0 {
		w.key(name)
		w.buf = strconv.AppendInt(w.buf, value, 10)
	}
}

func (w *writer) flag(name string, value bool) {
	if value {
		w.key(name)
		w.buf = append(w.buf, "true"...)
	}
}

func (w *writer) bytes(name string, value []byte) {
	if len(value) == 0 {
		return
	}
	w.key(name)
	w.buf = append(w.buf, '"')
	w.buf = base64.StdEncoding.AppendEncode(w.buf, value)
	w.buf = append(w.buf, '"')
}

// list writes an array of n elements, unless n is 0.
func (w *writer) list(name string, n int, element func(i int)) {
	if n == 0 {
		return
	}
	w.key(name)
	w.buf = append(w.buf, '[')
	for i := range n {
		w.comma('[')
		element(i)
	}
	w.buf = append(w.buf, ']')
}

func (w *writer) texts(name string, values []string) {
	w.list(name, len(values), func(i int) { w.string(values[i]) })
}

// objects writes an array of objects.
func (w *writer) objects(name string, n int, members func(i int)) {
	w.list(name, n, func(i int) {
		w.open()
		members(i)
		w.close()
	})
}

func (w *writer) location(l llb.Location) {
	if l == (llb.Location{}) {
		return
	}
	w.key("location")
	w.open()
	w.text("file", l.File)
	w.number("start", int64(l.StartLine))
	w.number("end", int64(l.EndLine))
	w.close()
}

func (w *writer) place(p llb.Place) {
	p.Project = ""
	if p == (llb.Place{}) {
		return
	}
	w.key("place")
	w.open()
	w.text("member", p.Member)
	w.text("group", p.Group)
	w.text("stage", p.Stage)
	w.number("stages", int64(p.Stages))
	w.number("step", int64(p.Step))
	w.number("steps", int64(p.Steps))
	w.text("platform", p.Platform)
	w.text("target", p.Target)
	w.number("platforms", int64(p.Platforms))
	w.flag("cross", p.Cross)
	w.close()
}

// string writes a JSON string (RFC 8259, section 7). U+2028 and U+2029 end lines for some readers, so they are escaped as well.
func (w *writer) string(s string) {
	const hex = "0123456789abcdef"
	w.buf = append(w.buf, '"')
	begin := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		r, n := rune(c), 1
		if c >= utf8.RuneSelf {
			r, n = utf8.DecodeRuneInString(s[i:])
			if !(r == utf8.RuneError && n == 1) && r != '\u2028' && r != '\u2029' {
				i += n
				continue
			}
		}
		w.buf = append(w.buf, s[begin:i]...)
		switch {
		case c == '"' || c == '\\':
			w.buf = append(w.buf, '\\', c)
		case c == '\n':
			w.buf = append(w.buf, '\\', 'n')
		default:
			w.buf = append(w.buf, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
		}
		i += n
		begin = i
	}
	w.buf = append(append(w.buf, s[begin:]...), '"')
}

func (Build) kind() string    { return "build" }
func (Planned) kind() string  { return "planned" }
func (Started) kind() string  { return "started" }
func (Waiting) kind() string  { return "waiting" }
func (Resumed) kind() string  { return "resumed" }
func (Log) kind() string      { return "log" }
func (Transfer) kind() string { return "transfer" }
func (Note) kind() string     { return "note" }
func (Cached) kind() string   { return "cached" }
func (Missed) kind() string   { return "missed" }
func (Files) kind() string    { return "files" }
func (Again) kind() string    { return "again" }
func (Warning) kind() string  { return "warning" }
func (Finished) kind() string { return "finished" }
func (Lost) kind() string     { return "lost" }
func (Done) kind() string     { return "done" }

func (b Build) write(w *writer) {
	w.number("version", int64(b.Version))
	w.text("id", b.ID)
	w.text("context", b.Context)
	w.text("dockerfile", b.Dockerfile)
	w.text("target", b.Target)
	w.texts("platforms", b.Platforms)
	w.texts("names", b.Names)
	w.flag("explain", b.Explain)
}

func (b Planned) write(w *writer) { w.number("steps", int64(b.Steps)) }

func (b Waiting) write(w *writer) {
	if b.For != (llb.Digest{}) {
		w.text("for", b.For.String())
	}
}

func (Resumed) write(*writer) {}

func (b Started) write(w *writer) {
	w.text("op", b.Op)
	w.place(b.Place)
	w.text("text", b.Text)
	w.list("inputs", len(b.Inputs), func(i int) { w.string(b.Inputs[i].String()) })
	w.location(b.Location)
}

func (b Log) write(w *writer) {
	w.number("stream", int64(b.Stream))
	w.bytes("data", b.Data)
}

func (b Transfer) write(w *writer) {
	w.text("name", b.Name)
	w.text("phase", string(b.Phase))
	w.number("current", b.Current)
	w.number("total", b.Total)
	w.flag("done", b.Done)
}

func (b Note) write(w *writer)   { w.text("text", b.Text) }
func (b Cached) write(w *writer) { w.text("key", b.Key) }

func (b Missed) write(w *writer) {
	w.text("reason", b.Reason)
	w.objects("changes", len(b.Changes), func(i int) {
		c := b.Changes[i]
		w.text("input", c.Input)
		w.texts("now", c.Now)
		w.texts("was", c.Was)
	})
	w.number("more", int64(b.More))
	w.text("last", b.Last)
}

func (b Files) write(w *writer) {
	w.objects("changes", len(b.Changes), func(i int) {
		c := b.Changes[i]
		w.text("path", c.Path)
		w.text("change", c.Kind)
		w.texts("what", c.What)
	})
	w.number("more", int64(b.More))
}

func (b Again) write(w *writer) {
	w.flag("differs", b.Differs)
	b.Files.write(w)
	w.text("error", b.Error)
}

func (b Warning) write(w *writer) {
	w.text("rule", b.Rule)
	w.text("text", b.Text)
	w.text("detail", b.Detail)
	w.text("url", b.URL)
	w.location(b.Location)
}

func (b Finished) write(w *writer) {
	w.objects("outputs", len(b.Outputs), func(i int) {
		o := b.Outputs[i]
		w.number("index", int64(o.Index))
		w.text("layer", o.Layer)
		w.text("content", o.Content)
	})
	w.objects("materials", len(b.Materials), func(i int) {
		w.text("uri", b.Materials[i].URI)
		w.text("digest", b.Materials[i].Digest)
	})
	w.text("error", b.Error)
	w.flag("canceled", b.Canceled)
	w.text("key", b.Key)
	w.number("logBytes", b.LogBytes)
	w.number("cpu", int64(b.CPU))
	w.number("memory", b.Memory)
}

func (b Lost) write(w *writer) { w.number("events", int64(b.Events)) }

func (b Done) write(w *writer) {
	w.text("error", b.Error)
	w.flag("canceled", b.Canceled)
	w.text("digest", b.Digest)
	w.text("image", b.Image)
	w.texts("names", b.Names)
	w.objects("layers", len(b.Layers), func(i int) {
		w.text("layer", b.Layers[i].Layer)
		w.number("size", b.Layers[i].Size)
	})
}

// Decode reads one event that Append wrote. An event of a kind that it does not know has no Body.
func Decode(line []byte) (Event, error) {
	// One of the pointers is set.
	var w struct {
		Time     time.Time
		Vertex   llb.Digest
		Build    *Build
		Planned  *Planned
		Started  *Started
		Waiting  *Waiting
		Resumed  *Resumed
		Log      *Log
		Transfer *Transfer
		Note     *Note
		Cached   *Cached
		Missed   *Missed
		Files    *Files
		Again    *Again
		Warning  *Warning
		Finished *Finished
		Lost     *Lost
		Done     *Done
	}
	if err := json.Unmarshal(line, &w); err != nil {
		return Event{}, fmt.Errorf("read an event: %w", err)
	}
	e := Event{Time: w.Time, Vertex: w.Vertex}
	switch {
	case w.Build != nil:
		e.Body = *w.Build
	case w.Planned != nil:
		e.Body = *w.Planned
	case w.Waiting != nil:
		e.Body = *w.Waiting
	case w.Resumed != nil:
		e.Body = *w.Resumed
	case w.Started != nil:
		e.Body = *w.Started
	case w.Log != nil:
		e.Body = *w.Log
	case w.Transfer != nil:
		e.Body = *w.Transfer
	case w.Note != nil:
		e.Body = *w.Note
	case w.Cached != nil:
		e.Body = *w.Cached
	case w.Missed != nil:
		e.Body = *w.Missed
	case w.Files != nil:
		e.Body = *w.Files
	case w.Again != nil:
		e.Body = *w.Again
	case w.Warning != nil:
		e.Body = *w.Warning
	case w.Finished != nil:
		e.Body = *w.Finished
	case w.Lost != nil:
		e.Body = *w.Lost
	case w.Done != nil:
		e.Body = *w.Done
	}
	return e, nil
}
