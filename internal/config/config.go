// Package config reads kiln.toml and finds kiln's directories. It does not know what the settings are used for.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/pelletier/go-toml/v2"
)

// maxFile bounds kiln.toml in bytes, so that $KILN_CONFIG naming a device ends in an error.
const maxFile = 1 << 20

// DockerHub is the name under which the registry of short image names is configured.
const DockerHub = "docker.io"

// Config is what kiln.toml holds. The zero value is the configuration without one.
type Config struct {
	// File is the path of the file, as errors name it; "" without one.
	File string `toml:"-"`
	// Root is kiln's root directory, or "": see RootDir.
	Root string `toml:"root"`
	// CDI is where the specifications of devices are.
	CDI CDI `toml:"cdi"`
	// Userns is "auto" or "START:COUNT" for RUN in a user namespace with ids of its own; "" is for none.
	Userns string `toml:"userns"`
	// NoProcessSandbox lets each RUN see kiln's own /proc. The key is that of buildkitd.toml.
	NoProcessSandbox bool `toml:"noProcessSandbox"`
	// Locked has builds use what the lock files of Dockerfiles say and nothing else.
	Locked bool `toml:"locked"`
	// Reproducible makes builds reproducible that do not say whether they are.
	Reproducible bool `toml:"reproducible"`
	// Frontends lets builds run frontends that are images, which the first line of a Dockerfile can name.
	Frontends bool `toml:"frontends"`
	// GC is when a build is followed by the removal of what has not been used for long.
	GC GC `toml:"gc"`
	// History is which builds the history keeps; nil where nothing is said.
	History *History `toml:"history"`
	// Limits bound each step.
	Limits Limits `toml:"limits"`
	// Archive bounds what archives may hold, layers of images among them.
	Archive Archive `toml:"archive"`
	// Registries are the settings of registries by name.
	Registries Registries `toml:"registry"`
}

// GC says how large the root directory may grow. The keys are those of buildkitd.toml; sizes are as "20GB", or as "10%" of the file
// system.
type GC struct {
	// Enabled is true where nothing is said.
	Enabled *bool `toml:"enabled"`
	// MaxUsedSpace bounds the root directory; "" for no bound.
	MaxUsedSpace string `toml:"maxUsedSpace"`
	// MinFreeSpace is how much of the file system is to be free; "" for "10%".
	MinFreeSpace string `toml:"minFreeSpace"`
	// ReservedSpace is what the root directory may have in any case; "" for "10%".
	ReservedSpace string `toml:"reservedSpace"`
}

// History says how long builds are kept in the history. The keys are those of buildkitd.toml, and mean what they mean there: a build is
// removed when it is older than MaxAge and not one of the last MaxEntries.
type History struct {
	// MaxAge is in seconds, or a duration as "48h".
	MaxAge Duration `toml:"maxAge"`
	// MaxEntries is 0 where nothing is said; a 0 that is written records no builds.
	MaxEntries *int64 `toml:"maxEntries"`
}

// Duration is a number of seconds, or a text as "48h".
type Duration struct{ time.Duration }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	s := string(text)
	parsed, err := time.ParseDuration(s)
	if err != nil {
		seconds, numErr := strconv.ParseInt(s, 10, 32)
		if numErr != nil {
			return fmt.Errorf("%q is neither a number of seconds nor a duration, as 48h is", s)
		}
		parsed = time.Duration(seconds) * time.Second
	}
	if parsed < 0 {
		return fmt.Errorf("%q is negative", s)
	}
	d.Duration = parsed
	return nil
}

// Limits are the limits of a step: sizes as "512m", lists as "0-3", times as "30m". The zero value of each is for none, that of
// Pids for the usual one.
type Limits struct {
	Pids        int64  `toml:"pids"`
	Memory      string `toml:"memory"`
	MemorySwap  string `toml:"memorySwap"`
	CPUShares   int64  `toml:"cpuShares"`
	CPUPeriod   int64  `toml:"cpuPeriod"`
	CPUQuota    int64  `toml:"cpuQuota"`
	CpusetCpus  string `toml:"cpusetCpus"`
	CpusetMems  string `toml:"cpusetMems"`
	StepTimeout string `toml:"stepTimeout"`
}

// Archive is the settings of what is unpacked: layers of images, archives of ADD and of build contexts.
type Archive struct {
	// MaxSize is of one archive, uncompressed, and of its files together, as a number of bytes with or without a unit; "" is
	// kiln's own limit.
	MaxSize string `toml:"maxSize"`
	// MaxEntries is the number of entries of one archive; 0 is kiln's own limit.
	MaxEntries int `toml:"maxEntries"`
	// Size is MaxSize in bytes; 0 where that is "".
	Size int64 `toml:"-"`
}

// CDI is the settings of devices. The key is that of buildkitd.toml.
type CDI struct {
	// SpecDirs are the directories of specifications, in place of the usual ones.
	SpecDirs []string `toml:"specDirs"`
}

// Registries holds settings by the registry's name as image names have it: "docker.io", "registry.corp:5000". A name with an asterisk,
// "*.azurecr.io", is of all registries whose names it matches, and sets their CredentialHelper alone.
type Registries map[string]Registry

// CredentialHelper returns the name of the credential helper of a registry, or "". The registry's own settings come first, then those of
// the longest pattern that matches its name.
func (r Registries) CredentialHelper(registry string) string {
	if helper := r[registry].CredentialHelper; helper != "" {
		return helper
	}
	longest := ""
	for name := range r {
		if isPattern(name) && matches(name, registry) && (len(name) > len(longest) || len(name) == len(longest) && name < longest) {
			longest = name
		}
	}
	return r[longest].CredentialHelper
}

func isPattern(name string) bool { return strings.Contains(name, "*") }

// matches reports whether a pattern stands for a registry's name: an asterisk is any text without a dot.
func matches(pattern, registry string) bool {
	slashed := strings.NewReplacer(".", "/")
	ok, err := path.Match(slashed.Replace(pattern), slashed.Replace(registry))
	return ok && err == nil
}

// Registry is the settings of one registry. The keys are those of buildkitd.toml, Realms and CredentialHelper.
type Registry struct {
	// Mirrors are asked before the registry, in order, as "host[:port][/prefix]"; each may have settings of its own
	// under its "host[:port]".
	Mirrors []string `toml:"mirrors"`
	// HTTP speaks plain http. Without it only loopback registries may.
	HTTP bool `toml:"http"`
	// Insecure speaks https without checking the certificate. It never falls back to http.
	Insecure bool `toml:"insecure"`
	// Fallback speaks plain http where the registry does not speak https. No key sets it.
	Fallback bool `toml:"-"`
	// CA names files of PEM certificates that are trusted besides the system's.
	CA []string `toml:"ca"`
	// KeyPairs are client certificates.
	KeyPairs []KeyPair `toml:"keypair"`
	// Realms are the "host[:port]" of token servers that may be sent the registry's password over https although they are
	// other hosts than the registry.
	Realms []string `toml:"realms"`
	// CredentialHelper is NAME of the program docker-credential-NAME, which is asked where Docker's configuration has no credentials.
	CredentialHelper string `toml:"credentialHelper"`
}

// KeyPair names the PEM files of a client certificate.
type KeyPair struct {
	Key  string `toml:"key"`
	Cert string `toml:"cert"`
}

// Load reads the first of $KILN_CONFIG, $XDG_CONFIG_HOME/kiln/kiln.toml (~/.config where that variable is not set) and
// /etc/kiln/kiln.toml that exists; with none it returns an empty Config. The file that $KILN_CONFIG names must exist.
// Errors name the file, and the line where there is one.
func Load() (*Config, error) {
	if path := os.Getenv("KILN_CONFIG"); path != "" {
		return read(path)
	}
	for _, path := range places() {
		c, err := read(path)
		if !errors.Is(err, fs.ErrNotExist) {
			return c, err
		}
	}
	return &Config{}, nil
}

// Describe says which file Load reads.
func Describe() string {
	if path := os.Getenv("KILN_CONFIG"); path != "" {
		return path + ", which $KILN_CONFIG names"
	}
	for _, path := range places() {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return path
		}
	}
	return "none of " + strings.Join(places(), " and ")
}

func places() []string {
	var paths []string
	if dir, err := os.UserConfigDir(); err == nil {
		paths = append(paths, filepath.Join(dir, "kiln", "kiln.toml"))
	}
	return append(paths, "/etc/kiln/kiln.toml")
}

func read(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("read configuration: %s is larger than %d bytes", path, maxFile)
	}
	return Parse(path, data)
}

// Parse returns the Config in the TOML text data. Path is the file's name in errors, and what relative names of files in it
// are relative to its directory of. A key that kiln does not know is an error.
func Parse(path string, data []byte) (*Config, error) {
	var c Config
	if err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(&c); err != nil {
		return nil, located(path, err)
	}
	c.File = path
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	abs := func(p *string) {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	abs(&c.Root)
	for i := range c.CDI.SpecDirs {
		abs(&c.CDI.SpecDirs[i])
	}
	if c.Archive.MaxSize != "" {
		if c.Archive.Size, err = units.RAMInBytes(c.Archive.MaxSize); err != nil || c.Archive.Size <= 0 {
			return nil, fmt.Errorf(`%s: archive.maxSize: %q is not a size; an example is "200GB"`, path, c.Archive.MaxSize)
		}
	}
	if c.Archive.MaxEntries < 0 {
		return nil, fmt.Errorf("%s: archive.maxEntries: %d is not a number of entries", path, c.Archive.MaxEntries)
	}
	if c.History != nil && c.History.MaxEntries != nil && *c.History.MaxEntries < 0 {
		return nil, fmt.Errorf("%s: history.maxEntries: %d is not a number of builds", path, *c.History.MaxEntries)
	}
	given := c.Registries
	c.Registries = Registries{}
	if err := c.Merge(given, dir); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &c, nil
}

// Merge adds settings of registries to those that are there, or puts them in their place. Relative names of files in them are relative to
// dir.
func (c *Config) Merge(given Registries, dir string) error {
	names := map[string]string{}
	if c.Registries == nil {
		c.Registries = Registries{}
	}
	for name, r := range given {
		if err := check(name, r); err != nil {
			return fmt.Errorf("[registry.%q]: %w", name, err)
		}
		abs := func(p *string) {
			if *p != "" && !filepath.IsAbs(*p) {
				*p = filepath.Join(dir, *p)
			}
		}
		for i := range r.CA {
			abs(&r.CA[i])
		}
		for i := range r.KeyPairs {
			abs(&r.KeyPairs[i].Key)
			abs(&r.KeyPairs[i].Cert)
		}
		if _, twice := names[canonical(name)]; twice {
			return fmt.Errorf("[registry.%q] is the same registry as [registry.%q]", name, canonical(name))
		}
		names[canonical(name)] = name
		c.Registries[canonical(name)] = r
	}
	return nil
}

// tomlTypes are the names of types in errors.
var tomlTypes = map[string]string{"string": "string", "int64": "whole number", "int": "whole number", "bool": "boolean, true or false"}

// located puts the file and line before an error of the TOML decoder.
func located(path string, err error) error {
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok && len(strict.Errors) > 0 {
		first := strict.Errors[0]
		line, _ := first.Position()
		return fmt.Errorf("%s:%d: unknown key %s", path, line, strings.Join(first.Key(), "."))
	}
	if syntax, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, _ := syntax.Position()
		// The decoder names types of Go for a value of another type.
		if got, ok := strings.CutPrefix(syntax.Error(), "toml: cannot decode TOML "); ok {
			got, kind, _ := strings.Cut(got, " into ")
			kind = kind[strings.LastIndex(kind, " ")+1:]
			want, ok := tomlTypes[strings.TrimLeft(kind, "*")]
			if !ok {
				want = "value of another type"
			}
			return fmt.Errorf("%s:%d: %s: want a %s, not a TOML %s", path, line, strings.Join(syntax.Key(), "."), want, got)
		}
		return fmt.Errorf("%s:%d: %w", path, line, err)
	}
	return fmt.Errorf("%s: %w", path, err)
}

func check(name string, r Registry) error {
	if !isHost(name) {
		return errors.New(`want a registry's name, "host" or "host:port"`)
	}
	if strings.ContainsAny(r.CredentialHelper, "/\x00") {
		return fmt.Errorf("credentialHelper %q: want NAME of a program docker-credential-NAME", r.CredentialHelper)
	}
	if isPattern(name) && (strings.Contains(name, "[") || !reflect.DeepEqual(r, Registry{CredentialHelper: r.CredentialHelper})) {
		return errors.New("a pattern can set credentialHelper alone; other keys need the name of a registry")
	}
	for _, m := range r.Mirrors {
		host, _, _ := strings.Cut(m, "/")
		if !isHost(host) {
			return fmt.Errorf(`mirror %q: want "host[:port][/prefix]" without https://`, m)
		}
	}
	for _, realm := range r.Realms {
		if !isHost(realm) {
			return fmt.Errorf(`realm %q: want "host[:port]" without https://`, realm)
		}
	}
	for _, p := range r.KeyPairs {
		if p.Key == "" || p.Cert == "" {
			return errors.New("a keypair needs both key and cert")
		}
	}
	return nil
}

// isHost reports whether s is "host" or "host:port" and nothing else.
func isHost(s string) bool {
	u, err := url.Parse("//" + s)
	return err == nil && s != "" && u.Host == s && u.Hostname() != "" && !strings.HasSuffix(s, ":") && !strings.ContainsAny(s, " \t%")
}

// canonical maps the names that Docker Hub has had to the one that image names have.
func canonical(name string) string {
	switch name {
	case "index.docker.io", "registry-1.docker.io":
		return DockerHub
	}
	return name
}

// RootDir returns the directory of the image store, layers and records as an absolute path: flag unless it is "", else
// $KILN_ROOT, else the configuration's root, else /var/lib/kiln for root and $XDG_DATA_HOME/kiln (~/.local/share/kiln where
// that variable is not set) for others. It makes nothing.
func (c *Config) RootDir(flag string) (string, error) {
	for _, dir := range []string{flag, os.Getenv("KILN_ROOT"), c.Root} {
		if dir != "" {
			return filepath.Abs(dir)
		}
	}
	if userns.UID() == 0 {
		return "/var/lib/kiln", nil
	}
	// The base directory specification has relative paths ignored.
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "kiln"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find kiln's root directory: %w: name one with --root", err)
	}
	return filepath.Join(home, ".local", "share", "kiln"), nil
}
