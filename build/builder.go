// Package build puts kiln together: a request goes in, and a result comes out. It is the only package that knows frontend, solver, store,
// registries and exporters.
package build

import (
	"path/filepath"

	"github.com/kilnbuild/kiln/build/confine"
	"github.com/kilnbuild/kiln/internal/cdi"
	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/resolved"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/store"
	"github.com/kilnbuild/kiln/store/images"
)

// Builder builds images and keeps them in one root directory. Its methods may be called from several goroutines.
type Builder struct {
	// Frontends, where not nil, runs frontends that are images. It is set before the first job.
	Frontends Frontends

	root   *store.Root
	client *registry.Client
	images *images.Images
	// cdiDirs are where the specifications of devices are.
	cdiDirs []string
	// defaults are what kiln.toml says of each RUN.
	defaults confine.Defaults
	// store is the absolute path of the image store.
	store string
	// locked is what kiln.toml says for Pins.Locked.
	locked bool
	// reproducible is what kiln.toml says of builds that do not say it themselves.
	reproducible bool
	// foreign is what kiln.toml says of frontends that are images.
	foreign bool
}

// New returns a Builder that keeps what it builds in a root directory, and reaches registries by the client.
func New(root *store.Root, client *registry.Client, cfg *config.Config) (*Builder, error) {
	b := &Builder{root: root, client: client, images: images.New(root, client), cdiDirs: cfg.CDI.SpecDirs}
	b.locked, b.reproducible, b.foreign = cfg.Locked, cfg.Reproducible, cfg.Frontends
	var err error
	if b.defaults, err = confine.Configured(cfg); err != nil {
		return nil, err
	}
	if b.store, err = filepath.Abs(root.Images.Root()); err != nil {
		return nil, err
	}
	if len(b.cdiDirs) == 0 {
		b.cdiDirs = cdi.DefaultDirs
	}
	return b, nil
}

// Devices returns the devices of the machine that steps may be given.
func (b *Builder) Devices() []*cdi.Device { return cdi.Load(b.cdiDirs...).All() }

// as returns the Builder for a job of a client: one with the same root directory that reaches registries with the client's credentials, if
// it has any, and has of their images what known says that they have shown to the client's user. release is called when the job has ended.
func (b *Builder) as(c *Client, known *resolved.Names) (own *Builder, release func()) {
	if c.Credentials == nil {
		return b, func() {}
	}
	of := *b
	of.client = b.client.WithCredentials(c.Credentials, known.To(c.User))
	of.images = images.New(b.root, of.client)
	return &of, of.client.Close
}
