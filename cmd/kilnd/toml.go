package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/regularfile"
	"github.com/pelletier/go-toml/v2"
)

// maxConfig bounds the configuration file in bytes.
const maxConfig = 1 << 20

// buildkitd is what buildkitd.toml may hold. A key that is not here is an error, and so is a value that kilnd cannot do.
type buildkitd struct {
	Debug        bool     `toml:"debug"`
	Trace        bool     `toml:"trace"`
	Root         string   `toml:"root"`
	Entitlements []string `toml:"insecure-entitlements"`
	Log          struct {
		Format string `toml:"format"`
		Level  string `toml:"level"`
	} `toml:"log"`
	GRPC struct {
		Address      []string `toml:"address"`
		DebugAddress string   `toml:"debugAddress"`
		UID          *int     `toml:"uid"`
		GID          *int     `toml:"gid"`
		TLS          struct {
			Cert string `toml:"cert"`
			Key  string `toml:"key"`
			CA   string `toml:"ca"`
		} `toml:"tls"`
	} `toml:"grpc"`
	OTEL struct {
		SocketPath string `toml:"socketPath"`
	} `toml:"otel"`
	CDI struct {
		Disabled    bool     `toml:"disabled"`
		SpecDirs    []string `toml:"specDirs"`
		AutoAllowed []string `toml:"autoAllowed"`
	} `toml:"cdi"`
	Worker struct {
		OCI        ociWorker `toml:"oci"`
		Containerd struct {
			Enabled *bool `toml:"enabled"`
		} `toml:"containerd"`
	} `toml:"worker"`
	Registries config.Registries `toml:"registry"`
	History    *config.History   `toml:"history"`
	System     struct {
		PlatformsCacheMaxAge any `toml:"platformsCacheMaxAge"`
	} `toml:"system"`
	ProvenanceEnvDir string `toml:"provenanceEnvDir"`
}

// ociWorker is the section of the worker.
type ociWorker struct {
	Enabled          *bool             `toml:"enabled"`
	Labels           map[string]string `toml:"labels"`
	Platforms        []string          `toml:"platforms"`
	Snapshotter      string            `toml:"snapshotter"`
	Rootless         bool              `toml:"rootless"`
	NoProcessSandbox bool              `toml:"noProcessSandbox"`
	GC               *bool             `toml:"gc"`
	KeepStorage      any               `toml:"gckeepstorage"`
	ReservedSpace    any               `toml:"reservedSpace"`
	MaxUsedSpace     any               `toml:"maxUsedSpace"`
	MinFreeSpace     any               `toml:"minFreeSpace"`
	NetworkMode      string            `toml:"networkMode"`
}

// configure reads kiln.toml, and then a file in the form of buildkitd.toml.
func (s *settings) configure(name, file string) error {
	var err error
	if s.config, err = config.Load(); err != nil {
		return err
	}
	given := file != ""
	if !given {
		if name != "buildkitd" {
			return nil
		}
		file = "/etc/buildkit/buildkitd.toml"
	}
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) && !given {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(data) > maxConfig {
		err = fmt.Errorf("it is larger than %d bytes", maxConfig)
	}
	var b buildkitd
	if err == nil {
		err = toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(&b)
	}
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok && len(strict.Errors) > 0 {
		row, _ := strict.Errors[0].Position()
		err = fmt.Errorf("line %d: kilnd has no key %v", row, strict.Errors[0].Key())
	}
	if err == nil {
		err = s.take(&b, filepath.Dir(file))
	}
	if err != nil {
		return &input.Error{Err: fmt.Errorf("%s: %w", file, err)}
	}
	return nil
}

// take takes what the configuration says. Paths are relative to dir.
func (s *settings) take(b *buildkitd, dir string) error {
	w := &b.Worker.OCI
	switch {
	case w.Enabled != nil && !*w.Enabled:
		return errors.New("[worker.oci] enabled = false: kilnd has no other worker")
	case b.Worker.Containerd.Enabled != nil && *b.Worker.Containerd.Enabled:
		return errors.New("[worker.containerd] enabled = true: kilnd has no such worker")
	case !slices.Contains([]string{"", "auto", "host"}, w.NetworkMode):
		return fmt.Errorf("[worker.oci] networkMode = %q: kilnd has a network of its own", w.NetworkMode)
	case !slices.Contains([]string{"", "auto", "overlayfs", "native"}, w.Snapshotter):
		return fmt.Errorf("[worker.oci] snapshotter = %q: kilnd has a store of its own", w.Snapshotter)
	case len(b.CDI.AutoAllowed) > 0:
		return errors.New("[cdi] autoAllowed is not supported: allow the entitlement device")
	case b.GRPC.UID != nil:
		return errors.New("[grpc] uid is not supported: the socket belongs to kilnd's user")
	}
	s.debug = s.debug || b.Debug || b.Trace || b.Log.Level == "debug" || b.Log.Level == "trace"
	if s.root == "" {
		s.root = b.Root
	}
	s.entitlements = append(s.entitlements, b.Entitlements...)
	s.addresses = b.GRPC.Address
	if b.GRPC.GID != nil {
		s.group = fmt.Sprint(*b.GRPC.GID)
	}
	for _, p := range []struct {
		to   *string
		from string
	}{{&s.cert, b.GRPC.TLS.Cert}, {&s.key, b.GRPC.TLS.Key}, {&s.ca, b.GRPC.TLS.CA}} {
		if *p.to == "" && p.from != "" {
			*p.to = within(dir, p.from)
		}
	}
	for k, v := range w.Labels {
		s.labels[k] = v
	}
	c := s.config
	c.NoProcessSandbox = c.NoProcessSandbox || w.NoProcessSandbox
	if w.GC != nil {
		c.GC.Enabled = w.GC
	}
	for _, v := range []struct {
		to   *string
		from any
	}{{&c.GC.ReservedSpace, w.KeepStorage}, {&c.GC.ReservedSpace, w.ReservedSpace}, {&c.GC.MaxUsedSpace, w.MaxUsedSpace},
		{&c.GC.MinFreeSpace, w.MinFreeSpace}} {
		if v.from != nil {
			*v.to = fmt.Sprint(v.from)
		}
	}
	if len(b.CDI.SpecDirs) > 0 {
		// Whoever names them for clients of BuildKit wants those to have what is in them.
		s.entitlements = append(s.entitlements, "device")
		c.CDI.SpecDirs = nil
		for _, d := range b.CDI.SpecDirs {
			c.CDI.SpecDirs = append(c.CDI.SpecDirs, within(dir, d))
		}
	}
	if b.CDI.Disabled {
		c.CDI.SpecDirs = []string{os.DevNull}
	}
	if b.History != nil {
		c.History = b.History
	}
	if b.ProvenanceEnvDir != "" {
		var err error
		if s.provenance, err = provenanceEnv(within(dir, b.ProvenanceEnvDir)); err != nil {
			return fmt.Errorf("provenanceEnvDir: %w", err)
		}
	}
	return c.Merge(b.Registries, dir)
}

// provenanceEnv reads the files DIR/*.json, each an object whose members all provenance gets; later files replace those of earlier ones.
func provenanceEnv(dir string) (map[string]any, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	env := map[string]any{}
	for _, name := range files {
		data, err := regularfile.Read(name, maxConfig)
		if err == nil {
			err = json.Unmarshal(data, &env)
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
	}
	return env, nil
}

// within makes a path absolute that is relative to dir.
func within(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}
