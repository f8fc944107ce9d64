package config

import (
	"crypto/x509"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/regularfile"
)

// Every is the name of the settings that hold for all registries; only their CA counts. No registry has this name.
const Every = ""

// maxCA bounds a file of authorities that a flag names, in bytes.
const maxCA = 4 << 20

// RegistryFlags are settings of registries on the command line. They are added to those of kiln.toml.
type RegistryFlags struct {
	// Mirrors are "[HOST=]MIRROR" and go before those of kiln.toml; the registry is Docker Hub where there is no HOST.
	Mirrors []string
	// Insecure are registries, "HOST", whose certificates are not checked, and which may speak plain HTTP.
	Insecure []string
	// CA are "[HOST=]FILE"; without HOST the authorities are trusted for every registry.
	CA []string
}

// Apply adds the settings to c, in which paths become absolute. The error is an *input.Error.
func (f *RegistryFlags) Apply(c *Config) error {
	registries := Registries{}
	for name, r := range c.Registries {
		registries[name] = r
	}
	// Of the mirrors of one registry the first flag comes first.
	for _, v := range slices.Backward(f.Mirrors) {
		if err := registries.addMirror(v); err != nil {
			return &input.Error{Err: fmt.Errorf("--registry-mirror %q: %w", v, err)}
		}
	}
	for _, host := range f.Insecure {
		if !isHost(host) {
			return &input.Error{Err: fmt.Errorf(`--insecure-registry %q: want a registry's name, "host" or "host:port"`, host)}
		}
		registries.edit(host, (*Registry).trustAnything)
	}
	for _, v := range f.CA {
		if err := registries.addCA(v); err != nil {
			return &input.Error{Err: fmt.Errorf("--registry-ca %q: %w", v, err)}
		}
	}
	c.Registries = registries
	return nil
}

// Insecure returns the settings in which the certificate of a registry is not checked, and which lets it speak plain HTTP: those of
// --insecure-registry.
func (r Registries) Insecure(name string) Registries {
	all := maps.Clone(r)
	if all == nil {
		all = Registries{}
	}
	all.edit(name, (*Registry).trustAnything)
	return all
}

func (r *Registry) trustAnything() { r.Insecure, r.Fallback = true, true }

// edit changes the settings of a registry. Lists are replaced, not written to.
func (r Registries) edit(name string, change func(*Registry)) {
	set := r[canonical(name)]
	change(&set)
	r[canonical(name)] = set
}

func (r Registries) addMirror(value string) error {
	host, mirror, ok := strings.Cut(value, "=")
	if !ok {
		host, mirror = DockerHub, value
	}
	if !isHost(host) {
		return fmt.Errorf(`%q is not a registry's name, "host" or "host:port"`, host)
	}
	mirror, plain := strings.CutPrefix(mirror, "http://")
	mirror = strings.TrimSuffix(strings.TrimPrefix(mirror, "https://"), "/")
	at, _, _ := strings.Cut(mirror, "/")
	if !isHost(at) {
		return fmt.Errorf(`%q is not a mirror, "host[:port][/prefix]"`, mirror)
	}
	if plain {
		r.edit(at, func(set *Registry) { set.HTTP = true })
	}
	r.edit(host, func(set *Registry) { set.Mirrors = append([]string{mirror}, set.Mirrors...) })
	return nil
}

func (r Registries) addCA(value string) error {
	host, file, ok := strings.Cut(value, "=")
	if !ok {
		host, file = Every, value
	} else if !isHost(host) {
		return fmt.Errorf(`%q is not a registry's name, "host" or "host:port"`, host)
	}
	pem, err := regularfile.Read(file, maxCA)
	if err != nil {
		return err
	}
	if !x509.NewCertPool().AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s has no certificate in PEM form", file)
	}
	if file, err = filepath.Abs(file); err != nil {
		return err
	}
	r.edit(host, func(set *Registry) { set.CA = append(slices.Clip(set.CA), file) })
	return nil
}
