package provenance

import (
	"cmp"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/attestation/slsa"
	"github.com/kilnbuild/kiln/frontend/lint"
	"github.com/kilnbuild/kiln/frontend/quote"
	"github.com/kilnbuild/kiln/llb"
)

// minHidden is the length in bytes from which a secret is hidden wherever it occurs. A shorter one is a part of too many other texts, and
// is only hidden as the value of its variable.
const minHidden = 4

// hider hides the values of variables that have the name of a secret.
type hider struct {
	secrets  []string
	replacer *strings.Replacer
}

// hider returns what hides the secrets of the build: in its arguments and in the environments of steps.
func (b *Build) hider(root llb.Output) hider {
	var secrets []string
	add := func(name, value string) {
		if len(value) >= minHidden && lint.IsSecretName(name) {
			secrets = append(secrets, value)
		}
	}
	for name, value := range b.Request.Args {
		add(name, value)
	}
	if b.API != nil {
		for r := range b.API.Asked.Request.All() {
			for name, value := range r.Args {
				if name, ok := strings.CutPrefix(name, slsa.ArgPrefix); ok {
					add(name, value)
				}
			}
		}
	}
	for v := range llb.Vertices([]llb.Output{root}) {
		if op, ok := v.Op().(llb.Exec); ok {
			for _, e := range op.Env {
				name, value, _ := strings.Cut(e, "=")
				add(name, value)
			}
		}
	}
	// A secret may be a part of another.
	slices.SortFunc(secrets, func(x, y string) int { return cmp.Or(len(y)-len(x), strings.Compare(x, y)) })
	h := hider{secrets: slices.Compact(secrets)}
	pairs := make([]string, 0, 2*len(h.secrets))
	for _, s := range h.secrets {
		pairs = append(pairs, s, lint.Hidden)
	}
	h.replacer = strings.NewReplacer(pairs...)
	return h
}

// text returns a text without secrets.
func (h hider) text(s string) string {
	if len(h.secrets) == 0 {
		return s
	}
	return h.replacer.Replace(s)
}

// texts is text for each.
func (h hider) texts(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = h.text(s)
	}
	return out
}

// variable returns the value of a variable, unless it is a secret.
func (h hider) variable(name, value string) string {
	if value != "" && lint.IsSecretName(name) {
		return lint.Hidden
	}
	return h.text(value)
}

// env is variable for "NAME=value".
func (h hider) env(list []string) []string {
	out := make([]string, len(list))
	for i, e := range list {
		name, value, ok := strings.Cut(e, "=")
		out[i] = name
		if ok {
			out[i] += "=" + h.variable(name, value)
		}
	}
	return out
}

// shown returns the Dockerfile without secrets.
func (b *Build) shown(hide hider) []byte {
	q := quote.New(b.Dockerfile)
	var out strings.Builder
	for n := range q.Lines() {
		out.WriteString(hide.text(q.Line(n)))
		out.WriteByte('\n')
	}
	return []byte(out.String())
}
