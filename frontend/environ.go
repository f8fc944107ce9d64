package frontend

import (
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// defaultPath is the PATH of images that set none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environ is a list of "NAME=value", each name once, the one set last at the end.
type environ []string

var _ shell.EnvGetter = environ(nil)

// Get implements shell.EnvGetter.
func (e environ) Get(name string) (string, bool) {
	for _, kv := range e {
		if k, v, _ := strings.Cut(kv, "="); k == name {
			return v, true
		}
	}
	return "", false
}

// Keys implements shell.EnvGetter.
func (e environ) Keys() []string {
	keys := make([]string, len(e))
	for i, kv := range e {
		keys[i], _, _ = strings.Cut(kv, "=")
	}
	return keys
}

// without returns a copy of e that has no name.
func (e environ) without(name string) environ {
	return slices.DeleteFunc(slices.Clone(e), func(kv string) bool {
		k, _, _ := strings.Cut(kv, "=")
		return k == name
	})
}

// with returns a copy of e in which name is value.
func (e environ) with(name, value string) environ {
	return append(e.without(name), name+"="+value)
}

// setInPlace returns a copy of env in which name is value, at its old place where it has one: the order of an image
// configuration's Env.
func setInPlace(env []string, name, value string) []string {
	env = slices.Clone(env)
	for i, kv := range env {
		if k, _, _ := strings.Cut(kv, "="); k == name {
			env[i] = name + "=" + value
			return env
		}
	}
	return append(env, name+"="+value)
}
