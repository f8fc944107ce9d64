// Package build puts kiln together: a request goes in, and a result comes out. It is the only package that knows frontend, solver, store,
// registries and exporters.
package build

import (
	"fmt"

	"github.com/kilnbuild/kiln/internal/cdi"
	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/store"
	"github.com/kilnbuild/kiln/store/images"
)

// Builder builds images and keeps them in one root directory. Its methods may be called from several goroutines.
type Builder struct {
	root   *store.Root
	client *registry.Client
	images *images.Images
	// cdiDirs are where the specifications of devices are.
	cdiDirs []string
	// limits are those of kiln.toml.
	limits Limits
	// userns is --userns as kiln.toml has it.
	userns string
	// noProcessSandbox is --no-process-sandbox as kiln.toml has it.
	noProcessSandbox bool
}

// New returns a Builder that keeps what it builds in a root directory, and reaches registries by the client.
func New(root *store.Root, client *registry.Client, cfg *config.Config) (*Builder, error) {
	b := &Builder{root: root, client: client, images: images.New(root, client), cdiDirs: cfg.CDI.SpecDirs}
	b.userns, b.noProcessSandbox = cfg.Userns, cfg.NoProcessSandbox
	if err := CheckUserns(b.userns); err != nil {
		return nil, fmt.Errorf("%s: userns = %q: %w", cfg.File, b.userns, err)
	}
	var err error
	if b.limits, err = configured(cfg.Limits); err != nil {
		return nil, fmt.Errorf("%s: [limits]: %w", cfg.File, err)
	}
	if len(b.cdiDirs) == 0 {
		b.cdiDirs = cdi.DefaultDirs
	}
	return b, nil
}
