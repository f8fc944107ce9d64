package remote_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/cache/remote"
	"github.com/kilnbuild/kiln/cache/remote/remotetest"
	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/registry/registrytest"
)

func TestRepositories(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	path := filepath.Join(t.TempDir(), "new", "cache")
	inDir := func(t *testing.T) remote.Repository {
		t.Helper()
		dir, err := remote.CreateDir(path, "cache")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { dir.Close() })
		return dir
	}
	t.Run("directory", func(t *testing.T) {
		remotetest.Run(t, remotetest.Traits{}, inDir)
		remotetest.Writers(t, 50, inDir)
	})
	inRegistry := func(r *registrytest.Registry) func(*testing.T) remote.Repository {
		return func(t *testing.T) remote.Repository {
			t.Helper()
			repository, _, err := remote.InRegistry(registry.New(config.Registries{}), r.Host+"/team/app:cache")
			if err != nil {
				t.Fatal(err)
			}
			return repository
		}
	}
	t.Run("registry", func(t *testing.T) { remotetest.Run(t, remotetest.Traits{}, inRegistry(registrytest.Start(t))) })
	t.Run("registry that removes nothing", func(t *testing.T) {
		r := registrytest.StartWith(t, "", registrytest.KeepManifests)
		remotetest.Run(t, remotetest.Traits{KeepsManifests: true}, inRegistry(r))
	})
}

// A registry takes a cache in every form, whatever it was in before, and gives it back.
func TestForms(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	r, _, err := remote.InRegistry(registry.New(config.Registries{}), registrytest.Start(t).Host+"/team/app:cache")
	if err != nil {
		t.Fatal(err)
	}
	for _, form := range []remote.Form{remote.FormIndex, "", remote.FormList, remote.FormIndex} {
		w := remote.NewWriter(r, "cache")
		w.Form = form
		own := remotetest.One(fmt.Sprintf("step of %q", form))
		if _, err := w.Publish(t.Context(), own, pack.Limit{}, func(context.Context) error { return nil }); err != nil {
			t.Fatalf("%q: %v", form, err)
		}
		h, err := remote.Read(t.Context(), r, "cache")
		if err != nil || !h.Pack.Has(own, time.Hour) {
			t.Fatalf("%q: %+v, %v", form, h, err)
		}
	}
}
