package caching

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/cache/remote"
	"github.com/kilnbuild/kiln/internal/signing"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/snapshot/blob"
)

// Spec is a value of --cache-from or --cache-to.
type Spec struct {
	// Type is that of a cache, such as "registry".
	Type string
	// Attrs are the other keys, in lower case, as written.
	Attrs map[string]string
	// Mounts are the ids of cache mounts that travel with it, or AllMounts.
	Mounts []string
	// Export is set for --cache-to.
	Export bool
	// Text is the whole value without secrets, for messages.
	Text string
	// Directory is what a cache of type local is in, in place of a directory of this machine; nil for that.
	Directory remote.Repository

	// What the caller of Paths makes absolute: the directory of a local cache, and the files with keys.
	path string
	keys []string
}

// defaultTag is the tag of a cache in a directory.
const defaultTag = "latest"

// Check returns what is wrong with a spec.
func (s *Spec) Check() error {
	if s.Type == "inline" {
		return s.checkInline()
	}
	k, err := kindOf(s.Type)
	if err != nil {
		return err
	}
	known := slices.Concat(k.from, importKeys)
	if s.Export {
		known = slices.Concat(k.to, exportKeys)
	}
	need := known[0]
	known = slices.DeleteFunc(known, func(key string) bool { return key == "" })
	for _, key := range slices.Sorted(maps.Keys(s.Attrs)) {
		if !slices.Contains(known, key) {
			return fmt.Errorf("type=%s has no key %s: it has %s", s.Type, key, strings.Join(known, ", "))
		}
	}
	if _, err := s.mounts(); err != nil {
		return err
	}
	if need != "" && s.Attrs[need] == "" {
		return fmt.Errorf("type=%s needs %s=…", s.Type, need)
	}
	if k.check != nil {
		if err := k.check(s); err != nil {
			return err
		}
	}
	if s.Type == "local" {
		s.path = s.Attrs[need]
	}
	for _, key := range []string{"sign", "verify"} {
		list, ok := s.Attrs[key]
		if !ok {
			continue
		}
		s.keys = strings.Split(list, ";")
		if slices.Contains(s.keys, "") || key == "sign" && len(s.keys) > 1 {
			several := ""
			if key == "verify" {
				several = "; several are separated by ;"
			}
			return fmt.Errorf("%s=%s: it is the path of a file with a key%s", key, list, several)
		}
	}
	if !s.Export {
		return nil
	}
	_, err = s.export()
	return err
}

// Paths returns the paths that it names, for the caller to make them absolute. Some may be "".
func (s *Spec) Paths() []*string {
	paths := []*string{&s.path}
	for i := range s.keys {
		paths = append(paths, &s.keys[i])
	}
	return paths
}

// verifying returns the keys whose signatures count; nil if all does. Errors are *signing.KeyError.
func (s *Spec) verifying() (pack.Keys, error) {
	var keys pack.Keys
	for _, file := range s.keys {
		key, err := signing.ReadPublicKey(file)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, nil
}

func (s *Spec) wrap(err error) error { return fmt.Errorf("%s: %w", s.flag(), err) }

// flag returns the flag with its value.
func (s *Spec) flag() string {
	flag := "--cache-from"
	if s.Export {
		flag = "--cache-to"
	}
	return fmt.Sprintf("%s %q", flag, s.Text)
}

// identity is the same for equal specs. It has secrets.
func (s *Spec) identity() string { return fmt.Sprint(s.Type, s.Attrs) }

func (s *Spec) truth(key string, otherwise bool) (bool, error) {
	v, ok := s.Attrs[key]
	if !ok {
		return otherwise, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, fmt.Errorf("%s=%s is neither true nor false", key, v)
	}
	return b, nil
}

// export reads the keys of an export.
func (s *Spec) export() (e Export, err error) {
	switch s.Attrs["mode"] {
	case "max":
		e.All = true
	case "", "min":
	default:
		return e, fmt.Errorf("mode=%s is neither min nor max", s.Attrs["mode"])
	}
	if e.Encoding.Compression, err = blob.ParseCompression(s.Attrs["compression"], s.Attrs["compression-level"]); err != nil {
		return e, err
	}
	oci, err := s.truth("oci-mediatypes", true)
	if err != nil {
		return e, err
	}
	asManifest, err := s.truth("image-manifest", true)
	switch {
	case err != nil:
		return e, err
	case asManifest && !oci:
		return e, errors.New("oci-mediatypes=false: an image manifest of Docker cannot hold a cache: add image-manifest=false")
	case !oci:
		e.Form = remote.FormList
	case !asManifest:
		e.Form = remote.FormIndex
	}
	if _, err := s.truth("force-compression", false); err != nil { // every layer is in the encoding that was asked for
		return e, err
	}
	ignore, err := s.truth("ignore-error", true)
	if err != nil {
		return e, err
	}
	e.Required = !ignore
	if e.Mounts, err = s.mounts(); err != nil {
		return e, err
	}
	e.Limit, err = ParseLimit(s.Attrs["max-size"], s.Attrs["max-age"])
	return e, err
}

// ParseLimit reads max-size, as "2GB", and max-age, as "72h" or "14d"; "" is no limit. The error begins with the name of the one that is
// wrong.
func ParseLimit(size, age string) (l pack.Limit, err error) {
	if size != "" {
		if l.Size, err = units.RAMInBytes(size); err != nil || l.Size <= 0 {
			return l, fmt.Errorf("max-size=%s is not a size, such as 2GB", size)
		}
	}
	if age != "" {
		if l.Age, err = parseAge(age); err != nil {
			return l, fmt.Errorf("max-age=%s is not a duration, such as 72h or 14d", age)
		}
	}
	return l, nil
}

func parseAge(v string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(v, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 15)
		return time.Duration(n) * 24 * time.Hour, err
	}
	d, err := time.ParseDuration(v)
	if err == nil && d <= 0 {
		err = errors.New("it is not positive")
	}
	return d, err
}

// open opens where the caches of a spec are; there is one for an import.
func (s *Spec) open(client *registry.Client) ([]*Place, error) {
	k, err := kindOf(s.Type)
	if err != nil {
		return nil, err
	}
	return k.open(s, client)
}

// openImports opens the caches that are imported. The error names the one that cannot be.
func (c *Caches) openImports(specs []Spec) ([]*remote.Import, error) {
	var all []*remote.Import
	for _, s := range specs {
		c.mu.Lock()
		c.asked[s.identity()] = true
		c.mu.Unlock()
		more, err := c.openImport(s)
		if err != nil {
			return nil, s.wrap(err)
		}
		all = append(all, more...)
	}
	return all, nil
}

func (c *Caches) openImport(s Spec) ([]*remote.Import, error) {
	keys, err := s.verifying()
	if err != nil {
		return nil, err
	}
	places, err := s.open(c.config.Client)
	if errors.Is(err, fs.ErrNotExist) {
		c.config.Events.Warn(fmt.Sprintf("the cache %s does not exist yet", s.Attrs["src"]))
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []*remote.Import
	for _, p := range places {
		c.closers = append(c.closers, p.Close)
		read := &remote.Import{Repository: p.repository, Tag: p.tag, Keys: keys}
		all = append(all, read)
		if len(s.Mounts) > 0 {
			if c.restored[read], err = s.mounts(); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

func (c *Caches) openExport(s Spec) error {
	if s.Type == "inline" {
		c.inline = &inline{}
		return nil
	}
	e, err := s.export()
	if err != nil {
		return err
	}
	for _, file := range s.keys {
		if e.Key, err = signing.ReadPrivateKey(file, signing.Password); err != nil {
			return err
		}
	}
	places, err := s.open(c.config.Client)
	if err != nil {
		return err
	}
	for _, p := range places {
		e.Repository, e.Tag = p.repository, p.tag
		c.closers = append(c.closers, p.Close)
		c.exports = append(c.exports, e)
	}
	return nil
}
