package frontend

import (
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// defaultPath is the PATH of images that set none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environ is a list of variables, each name once. To look one up and to set it takes the same time however many there
// are. The nil *environ has none, and can only be read.
type environ struct {
	budget *budget
	at     map[string]int // where names are in list
	list   []string       // "NAME=value"; "" for one that is no more
	gone   int            // how many are no more
	size   int            // the bytes of list as JSON
	// shared says that somebody else has list, and perhaps at, so that they must be copied before they are changed.
	shared bool
}

var _ shell.EnvGetter = (*environ)(nil)

func newEnviron(b *budget) *environ { return &environ{budget: b, at: map[string]int{}} }

// Get implements shell.EnvGetter.
func (e *environ) Get(name string) (string, bool) {
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
func (e *environ) Keys() []string {
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

// all returns the list. It must not be changed.
func (e *environ) all() []string {
	e.compact()
	e.shared = true
	return e.list[:len(e.list):len(e.list)]
}

// fork returns a copy, which takes no time until one of the two is changed.
func (e *environ) fork() *environ {
	e.shared = true
	other := *e
	return &other
}

// set makes name be value, at the end of the list. The error is that of the budget.
func (e *environ) set(name, value string) error {
	if err := e.unset(name); err != nil {
		return err
	}
	return e.add(name, value)
}

// replace makes name be value, at its old place in the list if it has one: the order of an image configuration's Env. The error is that of
// the budget.
func (e *environ) replace(name, value string) error {
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
	e.size += jsonSize(kv) - jsonSize(e.list[i])
	e.list[i] = kv
	return nil
}

// unset takes a name out. The error is that of the budget.
func (e *environ) unset(name string) error {
	if _, ok := e.at[name]; !ok {
		return nil
	}
	if err := e.own(); err != nil {
		return err
	}
	i := e.at[name]
	e.size -= jsonSize(e.list[i])
	e.list[i] = ""
	delete(e.at, name)
	if e.gone++; e.gone > 32 && e.gone > len(e.list)/2 {
		e.compact()
	}
	return nil
}

func (e *environ) add(name, value string) error {
	if err := e.own(); err != nil {
		return err
	}
	kv := name + "=" + value
	e.at[name] = len(e.list)
	e.list = append(e.list, kv)
	e.size += jsonSize(kv)
	return nil
}

// entrySize is about what an entry of a list or a map takes beside its text.
const entrySize = 32

// own makes the environ the only one that has its list.
func (e *environ) own() error {
	if !e.shared {
		return nil
	}
	if err := e.budget.spend(e.size + entrySize*len(e.at)); err != nil {
		return err
	}
	e.list = slices.Clone(e.list)
	e.shared = false
	e.index()
	return nil
}

// fill adds variables as they are in an image's configuration, perhaps without a "=" or several times: then the first counts.
func (e *environ) fill(list []string) {
	for _, kv := range list {
		if kv != "" {
			e.list = append(e.list, kv)
			e.size += jsonSize(kv)
		}
	}
	e.index()
}

// compact takes out what is no more.
func (e *environ) compact() {
	if e.gone == 0 {
		return
	}
	e.list = slices.DeleteFunc(slices.Clone(e.list), func(kv string) bool { return kv == "" })
	e.shared, e.gone = false, 0
	e.index()
}

// index finds the names' places again.
func (e *environ) index() {
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
