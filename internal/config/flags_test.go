package config

import (
	"slices"
	"testing"
)

// TestRegistryFlags holds that flags are added to what kiln.toml says and leave it as it is.
func TestRegistryFlags(t *testing.T) {
	file := Registries{DockerHub: {Mirrors: []string{"old:1"}, Realms: []string{"auth"}}}
	c := &Config{Registries: file}
	f := RegistryFlags{
		Mirrors:  []string{"https://one/", "index.docker.io=http://two:5000/prefix", "other.corp=one"},
		Insecure: []string{"other.corp", "[::1]:5000"},
	}
	if err := f.Apply(c); err != nil {
		t.Fatal(err)
	}
	hub := c.Registries[DockerHub]
	if want := []string{"one", "two:5000/prefix", "old:1"}; !slices.Equal(hub.Mirrors, want) || !slices.Equal(hub.Realms, []string{"auth"}) {
		t.Errorf("Docker Hub is %+v, and its mirrors should be %q", hub, want)
	}
	if !c.Registries["two:5000"].HTTP || c.Registries["one"].HTTP {
		t.Error("a mirror speaks plain HTTP where its address says so, and nowhere else")
	}
	other := c.Registries["other.corp"]
	if !slices.Equal(other.Mirrors, []string{"one"}) || !other.Insecure || !other.Fallback || !c.Registries["[::1]:5000"].Insecure {
		t.Errorf("other.corp is %+v", other)
	}
	if len(file) != 1 || !slices.Equal(file[DockerHub].Mirrors, []string{"old:1"}) {
		t.Errorf("kiln.toml is %+v now", file)
	}
	for _, bad := range []RegistryFlags{
		{Mirrors: []string{""}}, {Mirrors: []string{"a="}}, {Mirrors: []string{"=a"}}, {Mirrors: []string{"a/b=c"}}, {Mirrors: []string{"ftp://a"}},
		{Insecure: []string{""}}, {Insecure: []string{"a/b"}}, {Insecure: []string{"https://a"}}, {Insecure: []string{"10.0.0.0/8"}}, {CA: []string{""}},
		{CA: []string{"=/dev/null"}}, {CA: []string{"/dev/null"}}, {CA: []string{"/dev/zero"}},
	} {
		if err := bad.Apply(&Config{}); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}
