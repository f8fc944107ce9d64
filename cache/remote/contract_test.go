package remote_test

import (
	"path/filepath"
	"testing"

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
