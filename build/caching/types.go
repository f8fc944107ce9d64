package caching

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/cache/remote"
	"github.com/kilnbuild/kiln/cache/remote/azblob"
	"github.com/kilnbuild/kiln/cache/remote/bucket"
	"github.com/kilnbuild/kiln/cache/remote/gha"
	"github.com/kilnbuild/kiln/cache/remote/s3"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/registry"
)

// kind is a type of caches.
type kind struct {
	name string
	// from and to are the keys of imports and exports, without importKeys and exportKeys. The first one must be given, unless it is "".
	from, to []string
	// check returns what is wrong with a Spec, without making a request; nil for nothing more than what Check finds.
	check func(*Spec) error
	// open opens where the caches of a Spec are.
	open func(*Spec, *registry.Client) ([]*Place, error)
}

// kinds are in the order in which they are listed. It is a function, so that nothing of it is done where no cache is named.
func kinds() []kind {
	return []kind{
		{name: "registry", from: registryKeys(), to: registryKeys(), check: (*Spec).checkRegistry, open: (*Spec).openRegistry},
		{name: "local", from: []string{"src", "tag", "digest"}, to: []string{"dest", "tag"}, open: (*Spec).openDir},
		{name: "s3", from: s3Keys(), to: append(s3Keys(), "touch_refresh", "upload_parallelism"), check: (*Spec).checkS3, open: (*Spec).openS3},
		{name: "azblob", from: azureKeys(), to: append(azureKeys(), "touch_refresh"), check: (*Spec).checkAzure, open: (*Spec).openAzure},
		{name: "gha", from: ghaKeys(), to: ghaKeys(), check: (*Spec).checkGitHub, open: (*Spec).openGitHub},
	}
}

// importKeys and exportKeys are those that every type has.
var (
	importKeys = []string{"verify", mountsKey, mountsMaxSizeKey}
	exportKeys = []string{
		"mode", "compression", "compression-level", "force-compression", "oci-mediatypes", "image-manifest", "ignore-error", "max-size",
		"max-age", "sign", mountsKey, mountsMaxSizeKey,
	}
)

// ExportKeys returns the keys that exports of every type have, and imports do not.
func ExportKeys() []string {
	return slices.DeleteFunc(slices.Clone(exportKeys), func(key string) bool { return slices.Contains(importKeys, key) })
}

// Shown returns what is shown of the value of a key, in lower case: nothing of a secret, nor of the query of an address, which may have a
// signature.
func Shown(key, value string) string {
	if slices.Contains([]string{"access_key_id", "secret_access_key", "session_token", "token", "ghtoken"}, key) {
		return "…"
	}
	if before, _, ok := strings.Cut(value, "?"); ok {
		return before + "?…"
	}
	return value
}

// kindOf returns the kind with a name.
func kindOf(name string) (kind, error) {
	var names []string
	for _, k := range kinds() {
		if k.name == name {
			return k, nil
		}
		names = append(names, k.name)
	}
	use := "use " + strings.Join(names[:len(names)-1], ", ") + " or " + names[len(names)-1]
	return kind{}, fmt.Errorf("type=%s is no type of cache: %s", name, use)
}

// checkInline is Check for a cache in an image, which is in no place of its own.
func (s *Spec) checkInline() error {
	if !s.Export {
		return errors.New("type=inline is for --cache-to: the cache in an image is read with type=registry,ref=IMAGE")
	}
	for _, key := range slices.Sorted(maps.Keys(s.Attrs)) {
		if key != "mode" {
			return fmt.Errorf("type=inline has no key %s: it has mode", key)
		}
	}
	if len(s.Mounts) > 0 {
		return fmt.Errorf("type=inline has no key %s: it has mode", mountsKey)
	}
	if mode := s.Attrs["mode"]; mode != "" && mode != "min" {
		return fmt.Errorf("mode=%s: an image has the layers of mode=min, and no others", mode)
	}
	return nil
}

func registryKeys() []string { return []string{"ref", "registry.insecure"} }

func (s *Spec) checkRegistry() error {
	_, err := s.truth("registry.insecure", false)
	return err
}

// openRegistry returns where a cache is that is in a registry. registry.insecure is for this cache alone: images still go to the registry
// as kiln.toml and the flags of the command say.
func (s *Spec) openRegistry(client *registry.Client) ([]*Place, error) {
	name, err := imagename.Parse(s.Attrs["ref"])
	if err != nil {
		return nil, err
	}
	insecure, err := s.truth("registry.insecure", false)
	if err != nil {
		return nil, err
	}
	if insecure {
		client = client.Insecure(name.Registry)
	}
	r, tag, err := remote.InRegistry(client, s.Attrs["ref"])
	if err != nil {
		return nil, err
	}
	return []*Place{{r, tag, func() error { return nil }}}, nil
}

func (s *Spec) openDir(*registry.Client) ([]*Place, error) {
	if s.Directory != nil {
		return []*Place{{s.Directory, cmp.Or(s.Attrs["digest"], s.Attrs["tag"], defaultTag), func() error { return nil }}}, nil
	}
	open, shown, tag := remote.OpenDir, s.Attrs["src"], s.Attrs["digest"]
	if s.Export {
		open, shown, tag = remote.CreateDir, s.Attrs["dest"], ""
	}
	d, err := open(s.path, shown)
	if err != nil {
		return nil, err
	}
	return []*Place{{d, cmp.Or(tag, s.Attrs["tag"], defaultTag), d.Close}}, nil
}

// attr returns the value of a key or else of the first of some variables that is set.
func (s *Spec) attr(key string, variables ...string) string {
	if v := s.Attrs[key]; v != "" {
		return v
	}
	for _, name := range variables {
		if v := os.Getenv(name); v != "" {
			return v
		}
	}
	return ""
}

// layouts returns where in a bucket the caches of a Spec are: several for an export with several names, separated by semicolons.
func (s *Spec) layouts() ([]bucket.Layout, error) {
	l := bucket.Layout{Prefix: s.Attrs["prefix"], Blobs: bucket.DefaultBlobs, Manifests: bucket.DefaultManifests}
	if v, ok := s.Attrs["blobs_prefix"]; ok {
		l.Blobs = v
	}
	if v, ok := s.Attrs["manifests_prefix"]; ok {
		l.Manifests = v
	}
	if v := s.Attrs["touch_refresh"]; v != "" {
		var err error
		if l.Touch, err = time.ParseDuration(v); err != nil || l.Touch <= 0 {
			return nil, fmt.Errorf("touch_refresh=%s is not a duration, such as 12h", v)
		}
	}
	if l.Blobs == l.Manifests {
		return nil, fmt.Errorf("blobs_prefix and manifests_prefix are both %q", l.Blobs)
	}
	names := []string{cmp.Or(s.Attrs["name"], defaultName)}
	if s.Export {
		names = strings.Split(names[0], ";")
	}
	var all []bucket.Layout
	for _, name := range names {
		if l.Name = strings.TrimSpace(name); slices.ContainsFunc(all, func(other bucket.Layout) bool { return other.Name == l.Name }) {
			continue
		}
		if err := l.Check(); err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	return all, nil
}

// defaultName is the name of a cache in a bucket. It is not that of BuildKit's, whose caches kiln neither reads nor replaces.
const defaultName = "kiln"

func s3Keys() []string {
	return []string{"", "bucket", "region", "name", "prefix", "blobs_prefix", "manifests_prefix", "endpoint_url", "use_path_style",
		"access_key_id", "secret_access_key", "session_token", "disable_accept_encoding"}
}

func (s *Spec) s3() (o s3.Options, err error) {
	o = s3.Options{
		Bucket: s.attr("bucket", "AWS_BUCKET"), Region: s.attr("region", "AWS_REGION", "AWS_DEFAULT_REGION"), Endpoint: s.Attrs["endpoint_url"],
		AccessKeyID: s.Attrs["access_key_id"], SecretAccessKey: s.Attrs["secret_access_key"], SessionToken: s.Attrs["session_token"],
	}
	if o.Bucket == "" {
		return o, errors.New("type=s3 needs bucket=… or AWS_BUCKET")
	}
	if o.Region == "" {
		return o, errors.New("type=s3 needs region=… or AWS_REGION")
	}
	if o.PathStyle, err = s.truth("use_path_style", false); err != nil {
		return o, err
	}
	if _, err = s.truth("disable_accept_encoding", true); err != nil { // it is never part of what is signed
		return o, err
	}
	if v := s.Attrs["upload_parallelism"]; v != "" {
		if o.Parallel, err = strconv.Atoi(v); err != nil || o.Parallel < 1 || o.Parallel > s3.MaxParallel {
			return o, fmt.Errorf("upload_parallelism=%s is not a number from 1 to %d", v, s3.MaxParallel)
		}
	}
	return o, nil
}

func (s *Spec) checkS3() error {
	o, err := s.s3()
	if err == nil {
		err = o.Check()
	}
	if err == nil {
		_, err = s.layouts()
	}
	return err
}

func (s *Spec) openS3(*registry.Client) ([]*Place, error) {
	o, err := s.s3()
	if err != nil {
		return nil, err
	}
	b, err := s3.Open(o)
	if err != nil {
		return nil, err
	}
	return s.inBucket(b, b.Where, b.Close)
}

func azureKeys() []string {
	return []string{"", "account_url", "account_name", "container", "name", "prefix", "blobs_prefix", "manifests_prefix", "secret_access_key"}
}

// defaultContainer is the container in Azure's storage, as with buildx.
const defaultContainer = "buildkit-cache"

func (s *Spec) azure() (azblob.Options, error) {
	o := azblob.Options{
		AccountURL:  s.attr("account_url", "BUILDKIT_AZURE_STORAGE_ACCOUNT_URL"),
		AccountName: s.attr("account_name", "BUILDKIT_AZURE_STORAGE_ACCOUNT_NAME"),
		Container:   cmp.Or(s.attr("container", "BUILDKIT_AZURE_STORAGE_CONTAINER"), defaultContainer), Key: s.Attrs["secret_access_key"],
	}
	if o.AccountURL == "" {
		return o, errors.New("type=azblob needs account_url=… or BUILDKIT_AZURE_STORAGE_ACCOUNT_URL")
	}
	return o, o.Check()
}

func (s *Spec) checkAzure() error {
	_, err := s.azure()
	if err == nil {
		_, err = s.layouts()
	}
	return err
}

func (s *Spec) openAzure(*registry.Client) ([]*Place, error) {
	o, err := s.azure()
	if err != nil {
		return nil, err
	}
	c, err := azblob.Open(o)
	if err != nil {
		return nil, err
	}
	return s.inBucket(c, c.Where, c.Close)
}

func ghaKeys() []string {
	return []string{"", "url_v2", "token", "scope", "timeout", "version"}
}

func (s *Spec) gitHub() (o gha.Options, err error) {
	if v := s.Attrs["version"]; v != "" && v != "2" {
		return o, fmt.Errorf("version=%s: kiln speaks version 2 of the protocol of GitHub's cache, which is the only one that GitHub still has",
			v)
	}
	o = gha.Options{URL: s.attr("url_v2", "ACTIONS_RESULTS_URL"), Token: s.Attrs["token"], Scope: cmp.Or(s.Attrs["scope"], defaultName)}
	if o.Token == "" && s.Attrs["url_v2"] == "" {
		o.Token = os.Getenv("ACTIONS_RUNTIME_TOKEN")
	}
	switch {
	case o.URL == "":
		return o, errors.New("type=gha needs url_v2=… or ACTIONS_RESULTS_URL, which GitHub sets for actions, " +
			"and for a run step only if an action passes it on")
	case o.Token == "" && s.Attrs["url_v2"] != "":
		return o, errors.New("type=gha needs token=… with url_v2: ACTIONS_RUNTIME_TOKEN is sent to ACTIONS_RESULTS_URL alone")
	case o.Token == "":
		return o, errors.New("type=gha needs token=… or ACTIONS_RUNTIME_TOKEN")
	}
	o.Timeout = defaultTimeout
	if v := s.Attrs["timeout"]; v != "" {
		if o.Timeout, err = time.ParseDuration(v); err != nil || o.Timeout <= 0 {
			return o, fmt.Errorf("timeout=%s is not a duration, such as 10m", v)
		}
	}
	return o, o.Check()
}

// defaultTimeout bounds each transfer from and to GitHub's cache, as with buildx.
const defaultTimeout = 10 * time.Minute

func (s *Spec) checkGitHub() error {
	_, err := s.gitHub()
	return err
}

func (s *Spec) openGitHub(*registry.Client) ([]*Place, error) {
	o, err := s.gitHub()
	if err != nil {
		return nil, err
	}
	c, err := gha.Open(o)
	if err != nil {
		return nil, err
	}
	return []*Place{{c, o.Scope, c.Close}}, nil
}

// inBucket returns the places in a bucket; where names a key of it for messages, and closing ends its use.
func (s *Spec) inBucket(objects bucket.Objects, where func(key string) string, closing func() error) ([]*Place, error) {
	layouts, err := s.layouts()
	if err != nil {
		return nil, err
	}
	var places []*Place
	for _, l := range layouts {
		shown := where(l.Prefix + l.Manifests + l.Name)
		if l.Blobs != bucket.DefaultBlobs {
			shown += " with blobs_prefix=" + l.Blobs
		}
		places = append(places, &Place{bucket.New(objects, l, shown), l.Name, closing})
	}
	return places, nil
}
