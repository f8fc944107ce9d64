package bake

import (
	"slices"

	"github.com/kilnbuild/kiln/bake/internal/syntax"
	"github.com/kilnbuild/kiln/bake/internal/values"
)

// Target is one build, as the files and the command line describe it. Strings and truth values that nothing says are nil.
type Target struct {
	Name        string
	Description string
	// Inherits are the targets that it begins with, of which later ones come before earlier ones.
	Inherits    []string
	Annotations []string
	// Attest are attestations with their type; the key disabled says that there is none.
	Attest  []Entry
	Context *string
	// Contexts are further contexts by name; TargetContext begins one that is the image of another target.
	Contexts         map[string]*string
	Dockerfile       *string
	DockerfileInline *string
	Args, Labels     map[string]*string
	Tags             []string
	CacheFrom        []Entry
	CacheTo          []Entry
	Stage            *string
	Secrets          []Entry // with the keys id, src and env
	SSH              []Entry // with the keys id and paths, which commas separate
	Platforms        []string
	Outputs          []Entry
	Pull, NoCache    *bool
	Network          *string
	NoCacheFilter    []string
	ShmSize          *string
	Ulimits          []string
	Call             *string
	Entitlements     []string
	ExtraHosts       map[string]*string
	Policy           []Entry
	// Linked says that the target is built only because others have it as a context.
	Linked bool
}

// Entry is an item of a list such as the outputs: its values by key.
type Entry = values.Entry

// TargetContext is the prefix of a context that is the image of another target.
const TargetContext = "target:"

// mergeRule says what becomes of an attribute that is set twice.
type mergeRule int

const (
	replaces mergeRule = iota
	appends            // what is new, at the end; entries with the same key in the place of the earlier one
)

// attribute is an attribute of a target.
type attribute struct {
	name string
	// set is its name for --set; "" if it cannot be set there.
	set   string
	rule  mergeRule
	field func(*Target) any
	// entries reads an item that is a string. Of entries with the same value of the key same the last one counts; "" is all keys.
	entries func(string) ([]Entry, error)
	same    string
}

// attributes are the attributes of targets, in the order in which they are printed. All but text and truth values that are nil, and empty
// lists, are.
func attributes() []attribute {
	return []attribute{
		{name: "inherits", field: func(t *Target) any { return &t.Inherits }},
		{name: "description", field: func(t *Target) any { return &t.Description }},
		{name: "annotations", set: "annotations", rule: appends, field: func(t *Target) any { return &t.Annotations }},
		{name: "attest", set: "attest", rule: appends, field: func(t *Target) any { return &t.Attest }, entries: values.AttestEntry, same: "type"},
		{name: "context", set: "context", field: func(t *Target) any { return &t.Context }},
		{name: "contexts", set: "contexts", field: func(t *Target) any { return &t.Contexts }},
		{name: "dockerfile", set: "dockerfile", field: func(t *Target) any { return &t.Dockerfile }},
		{name: "dockerfile-inline", field: func(t *Target) any { return &t.DockerfileInline }},
		{name: "args", set: "args", field: func(t *Target) any { return &t.Args }},
		{name: "labels", set: "labels", field: func(t *Target) any { return &t.Labels }},
		{name: "tags", set: "tags", field: func(t *Target) any { return &t.Tags }},
		{name: "cache-from", set: "cache-from", rule: appends, field: func(t *Target) any { return &t.CacheFrom }, entries: values.CacheEntries},
		{name: "cache-to", set: "cache-to", field: func(t *Target) any { return &t.CacheTo }, entries: values.CacheEntries},
		{name: "target", set: "target", field: func(t *Target) any { return &t.Stage }},
		{name: "secret", set: "secrets", rule: appends, field: func(t *Target) any { return &t.Secrets }, entries: values.SecretEntry, same: "id"},
		{name: "ssh", set: "ssh", rule: appends, field: func(t *Target) any { return &t.SSH }, entries: values.SSHEntry, same: "id"},
		{name: "platforms", set: "platform", field: func(t *Target) any { return &t.Platforms }},
		{name: "output", set: "output", field: func(t *Target) any { return &t.Outputs }, entries: values.OutputEntry},
		{name: "pull", set: "pull", field: func(t *Target) any { return &t.Pull }},
		{name: "no-cache", set: "no-cache", field: func(t *Target) any { return &t.NoCache }},
		{name: "network", set: "network", field: func(t *Target) any { return &t.Network }},
		{name: "no-cache-filter", set: "no-cache-filter", rule: appends, field: func(t *Target) any { return &t.NoCacheFilter }},
		{name: "shm-size", set: "shm-size", field: func(t *Target) any { return &t.ShmSize }},
		{name: "ulimits", set: "ulimits", rule: appends, field: func(t *Target) any { return &t.Ulimits }},
		{name: "call", set: "call", field: func(t *Target) any { return &t.Call }},
		{name: "entitlements", set: "entitlements", rule: appends, field: func(t *Target) any { return &t.Entitlements }},
		{name: "extra-hosts", set: "extra-hosts", field: func(t *Target) any { return &t.ExtraHosts }},
		{name: "policy", rule: appends, field: func(t *Target) any { return &t.Policy }, entries: values.PolicyEntry},
	}
}

// attributesOf returns the names that a block of a type may have.
func attributesOf(block string) []string {
	if block == syntax.Group {
		return []string{"description", "targets"}
	}
	names := []string{"name", "matrix"}
	for _, a := range attributes() {
		names = append(names, a.name)
	}
	return names
}

// merge sets what another target says on top of what this one does. Mappings are joined.
func (t *Target) merge(over *Target) {
	for _, a := range attributes() {
		a.merge(a.field(t), a.field(over))
	}
}

func (a *attribute) merge(to, from any) {
	switch from := from.(type) {
	case *string:
		if *from != "" {
			*to.(*string) = *from
		}
	case **string:
		if *from != nil {
			*to.(**string) = *from
		}
	case **bool:
		if *from != nil {
			*to.(**bool) = *from
		}
	case *map[string]*string:
		old := to.(*map[string]*string)
		for key, value := range *from {
			if value == nil && (*old)[key] != nil {
				continue
			}
			if *old == nil {
				*old = map[string]*string{}
			}
			(*old)[key] = value
		}
	case *[]string:
		old := to.(*[]string)
		if a.rule == appends {
			*old = unique(slices.Concat(*old, *from))
		} else if *from != nil {
			*old = unique(*from)
		}
	case *[]Entry:
		old := to.(*[]Entry)
		if a.rule == appends {
			*old = a.unique(slices.Concat(*old, *from))
		} else if *from != nil {
			*old = a.unique(*from)
		}
	}
}

// unique returns the items of a list without those that are there already.
func unique(list []string) []string {
	seen := map[string]bool{}
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool {
		if seen[s] {
			return true
		}
		seen[s] = true
		return false
	})
}

// unique returns the entries of a list; of those that are the same the last one, in the place of the first.
func (a *attribute) unique(list []Entry) []Entry {
	var out []Entry
	at := map[string]int{}
	for _, e := range list {
		key := e[a.same]
		if a.same == "" {
			key = e.String()
		}
		if i, ok := at[key]; ok {
			out[i] = e
			continue
		}
		at[key] = len(out)
		out = append(out, e)
	}
	return out
}
