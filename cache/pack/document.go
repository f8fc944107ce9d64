package pack

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	digest "github.com/opencontainers/go-digest"
)

// The limits of documents: the bytes of one, of all that a published pack has, and their number.
const (
	MaxDocument  = 64 << 10
	maxDocuments = 64
	maxDocText   = 512 << 10
)

// Document is a manifest or a config of an image that builds start from, as its registry has it. Its digest is the name that it has in the
// pack, so it can be nothing else than what somebody asks for by that.
type Document struct {
	Text string
	// Used is when a build last used it, with a precision of a second.
	Used time.Time
}

// AddDocument adds a document. One that is too large or is not text, and so no JSON, is left out.
func (p *Pack) AddDocument(d Document) {
	if len(d.Text) > MaxDocument || !utf8.ValidString(d.Text) {
		return
	}
	if p.Documents == nil {
		p.Documents = map[digest.Digest]Document{}
	}
	name := digest.FromString(d.Text)
	if old, ok := p.Documents[name]; ok && old.Used.After(d.Used) {
		d.Used = old.Used
	}
	p.Documents[name] = d
}

// trimDocuments adds the documents that stay to kept, those that were used last.
func (p *Pack) trimDocuments(kept *Pack, l Limit, now time.Time) {
	text := 0
	for _, d := range slices.SortedFunc(maps.Values(p.Documents), func(a, b Document) int {
		return cmp.Or(used(b.Used, now).Compare(used(a.Used, now)), strings.Compare(a.Text, b.Text))
	}) {
		text += len(d.Text)
		if len(kept.Documents) >= maxDocuments || text > maxDocText || l.Age > 0 && now.Sub(used(d.Used, now)) > l.Age {
			return
		}
		kept.AddDocument(d)
	}
}

type documentLine struct {
	Text string `json:"text"`
	Used int64  `json:"used"`
}

// decodeDocument returns false for a document with a time that no kiln writes.
func decodeDocument(l *documentLine) (Document, bool) {
	d := Document{l.Text, time.Unix(l.Used, 0)}
	return d, written(d.Used)
}
