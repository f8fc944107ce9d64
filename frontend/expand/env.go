package expand

import (
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// Env is a list of variables, each name once. Looking one up and setting it takes the same time however many there
// are. A nil *Env is empty and can only be read.
type Env struct {
	budget *Budget
	at     map[string]int // where names are in list
	list   []string       // "NAME=value"; "" for one that is no more
	gone   int            // how many are no more
	size   int            // bytes of list as JSON
	// shared is set if another Env uses list, and perhaps at, so that they must be copied before they are changed.
	shared bool
}

var _ shell.EnvGetter = (*Env)(nil)

// NewEnv returns an empty Env whose copies are paid from b.
func NewEnv(b *Budget) *Env { return &Env{budget: b, at: map[string]int{}} }

// Get implements shell.EnvGetter.
func (e *Env) Get(name string) (string, bool) {
	if e == nil {
		return "", false
	}
	i, ok := e.at[name]
	if !ok {
		return "", false
	}
	_, value, _ := strings.Cut(e.list[i], "=")
	return value, true
}

// Keys implements shell.EnvGetter.
func (e *Env) Keys() []string {
	if e == nil {
		return nil
	}
	keys := make([]string, 0, len(e.at))
	for _, kv := range e.list {
		if kv != "" {
			k, _, _ := strings.Cut(kv, "=")
			keys = append(keys, k)
		}
	}
	return keys
}

// All returns the list. It must not be changed.
func (e *Env) All() []string {
	e.compact()
	e.shared = true
	return e.list[:len(e.list):len(e.list)]
}

// Fork returns a copy, which takes no time until one of the two is changed.
func (e *Env) Fork() *Env {
	e.shared = true
	other := *e
	return &other
}

// Set makes name be value, at the end of the list. The error is that of the budget.
func (e *Env) Set(name, value string) error {
	if err := e.Unset(name); err != nil {
		return err
	}
	return e.add(name, value)
}

// Replace makes name be value, at its old place in the list if it has one: the order of an image configuration's Env. The error is that of
// the budget.
func (e *Env) Replace(name, value string) error {
	i, ok := e.at[name]
	if !ok {
		return e.add(name, value)
	}
	kv := name + "=" + value
	if kv == e.list[i] {
		return nil
	}
	if err := e.own(); err != nil {
		return err
	}
	i = e.at[name]
	e.size += JSONSize(kv) - JSONSize(e.list[i])
	e.list[i] = kv
	return nil
}

// Unset takes a name out. The error is that of the budget.
func (e *Env) Unset(name string) error {
	if _, ok := e.at[name]; !ok {
		return nil
	}
	if err := e.own(); err != nil {
		return err
	}
	i := e.at[name]
	e.size -= JSONSize(e.list[i])
	e.list[i] = ""
	delete(e.at, name)
	if e.gone++; e.gone > 32 && e.gone > len(e.list)/2 {
		e.compact()
	}
	return nil
}

func (e *Env) add(name, value string) error {
	if err := e.own(); err != nil {
		return err
	}
	kv := name + "=" + value
	e.at[name] = len(e.list)
	e.list = append(e.list, kv)
	e.size += JSONSize(kv)
	return nil
}

// EntrySize is about what an entry of a list or a map takes beside its text.
const EntrySize = 32

// own makes the Env the only one that has its list.
func (e *Env) own() error {
	if !e.shared {
		return nil
	}
	if err := e.budget.Spend(e.size + EntrySize*len(e.at)); err != nil {
		return err
	}
	e.list = slices.Clone(e.list)
	e.shared = false
	e.index()
	return nil
}

// Size returns about how many bytes the list takes as JSON.
func (e *Env) Size() int { return e.size }

// Rebudget makes b pay for further copies.
func (e *Env) Rebudget(b *Budget) { e.budget = b }

// Fill adds variables as they are in an image's configuration, perhaps without a "=" or several times: then the first counts.
func (e *Env) Fill(list []string) {
	for _, kv := range list {
		if kv != "" {
			e.list = append(e.list, kv)
			e.size += JSONSize(kv)
		}
	}
	e.index()
}

// compact takes out what is no more.
func (e *Env) compact() {
	if e.gone == 0 {
		return
	}
	e.list = slices.DeleteFunc(slices.Clone(e.list), func(kv string) bool { return kv == "" })
	e.shared, e.gone = false, 0
	e.index()
}

// index finds the names' places again.
func (e *Env) index() {
	e.at = make(map[string]int, len(e.list))
	for i, kv := range e.list {
		if kv == "" {
			continue
		}
		k, _, _ := strings.Cut(kv, "=")
		if _, ok := e.at[k]; !ok {
			e.at[k] = i
		}
	}
}

// JSONSize returns how many bytes encoding/json makes of a text, with quotes and a comma.
func JSONSize(text string) int {
	n := len(text) + 3
	for i, r := range text {
		switch {
		case r == '"' || r == '\\' || r == '\n' || r == '\r' || r == '\t' || r == '\b' || r == '\f':
			n++
		case r < ' ' || r == '<' || r == '>' || r == '&':
			n += 5
		case r == '\u2028' || r == '\u2029':
			n += 3
		case r == utf8.RuneError && text[i] != '\xef':
			n += 5 // no UTF-8
		}
	}
	return n
}
