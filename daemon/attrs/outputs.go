package attrs

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	controlapi "github.com/moby/buildkit/api/services/control"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/build/caching"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/input"
)

// keyConfig is the attribute of an exporter that is the configuration of its image, and prefixAttest begins those of the frontend that ask
// for attestations.
const (
	keyConfig    = "containerimage.config"
	prefixAttest = "attest:"
)

// Output reads the attributes of an exporter. What goes to the client goes to the receiver, and warn is told of what has no effect. The
// error is an *input.Error.
func Output(kind string, attrs map[string]string, to exporter.Receiver, warn func(string)) (build.Output, error) {
	o := build.Output{Type: build.OutputType(kind), Attrs: maps.Clone(attrs)}
	bad := func(format string, args ...any) (build.Output, error) {
		return o, &input.Error{Err: fmt.Errorf("exporter %s: "+format, append([]any{kind}, args...)...)}
	}
	if o.Attrs == nil {
		o.Attrs = map[string]string{}
	}
	switch o.Type {
	case build.OutputImage:
		push, err := truth(o.Attrs, "push")
		if err != nil {
			return bad("%w", err)
		}
		if push {
			o.Type = build.OutputRegistry
		}
	case build.OutputOCI, build.OutputDocker, build.OutputLocal, build.OutputTar:
		o.To = to
	default:
		return bad("exporter could not be found")
	}
	if mode := o.Attrs["mode"]; o.Type == build.OutputLocal && (mode == "copy" || mode == "delete") {
		delete(o.Attrs, "mode") // what the client does with what was there
	}
	if o.ResultNames = o.Attrs["name"] == "*"; o.ResultNames || o.Attrs["name"] == "" {
		delete(o.Attrs, "name")
	}
	for name := range attrs {
		if strings.HasPrefix(name, prefixAttest) {
			delete(o.Attrs, name)
			warn(fmt.Sprintf("exporter %s: %s is an attribute of the build, and has no effect here", kind, name))
		}
	}
	if config, ok := o.Attrs[keyConfig]; ok {
		o.Config = &dockerspec.DockerOCIImage{}
		if err := json.Unmarshal([]byte(config), &o.Config); err != nil || o.Config == nil {
			return bad("%s is not the configuration of an image: %w", keyConfig, cmp.Or(err, errNull))
		}
		delete(o.Attrs, keyConfig)
	}
	return o, nil
}

var errNull = errors.New("it is null")

// keyEpoch is the attribute of an exporter that is its SOURCE_DATE_EPOCH, and argEpoch that of the frontend.
const (
	keyEpoch = "source-date-epoch"
	argEpoch = "build-arg:SOURCE_DATE_EPOCH"
)

// Date gives an exporter that has no SOURCE_DATE_EPOCH that of the frontend, if that is a number, or none.
func Date(e *controlapi.Exporter, frontend map[string]string) {
	v, given := frontend[argEpoch]
	if _, own := e.Attrs[keyEpoch]; own || !given {
		return
	}
	if _, err := strconv.ParseInt(v, 10, 64); err != nil && v != "" {
		return // it is for the frontend to read
	}
	if e.Attrs == nil {
		e.Attrs = map[string]string{}
	}
	e.Attrs[keyEpoch] = v
}

// Annotations returns the annotations that metadata of a result ask for.
func Annotations(metadata map[string][]byte) ([]exporter.Annotation, error) {
	var all []exporter.Annotation
	for _, key := range slices.Sorted(maps.Keys(metadata)) {
		rest, ok := strings.CutPrefix(key, "annotation")
		if !ok || rest == "" || !strings.ContainsRune("-[.", rune(rest[0])) {
			continue
		}
		a, err := exporter.AnnotationOf(rest, string(metadata[key]))
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, nil
}

// truth reads an attribute that is true or false, and removes it.
func truth(attrs map[string]string, name string) (bool, error) {
	v, ok := attrs[name]
	delete(attrs, name)
	if !ok {
		return false, nil
	}
	if v == "" {
		return true, nil
	}
	on, err := strconv.ParseBool(v)
	if err != nil {
		return false, fmt.Errorf("non-bool value %q specified for %s", v, name)
	}
	return on, nil
}

// CacheLocal is the type of a cache in a directory of the client.
const CacheLocal = "local"

// ownKeys are the keys with a client's credentials, and where they are sent, by the type of the cache. Where they are not given, those of
// kilnd's own environment would be used.
var ownKeys = map[string][]string{
	"s3": {"access_key_id", "secret_access_key"}, "azblob": {"account_url", "secret_access_key"}, "gha": {"url_v2", "token"},
}

// Spec reads the attributes of a cache. The error is an *input.Error.
func (c Cache) Spec(export bool) (s caching.Spec, err error) {
	s = caching.Spec{Type: c.Type, Attrs: map[string]string{}, Export: export}
	text := []string{"type=" + c.Type}
	for _, key := range slices.Sorted(maps.Keys(c.Attrs)) {
		value := c.Attrs[key]
		key = strings.ToLower(key)
		if c.Type == CacheLocal && key == "reset" {
			continue // the client does it
		}
		if !export && slices.Contains(caching.ExportKeys(), key) {
			continue // clients give imports and exports the same attributes
		}
		if key == "mounts" {
			if s.Mounts, err = caching.AppendMounts(nil, value); err != nil {
				return s, &input.Error{Err: err}
			}
		} else {
			s.Attrs[key] = value
		}
		text = append(text, key+"="+caching.Shown(key, value))
	}
	s.Text = strings.Join(text, ",")
	if s.Type == "gha" {
		gitHub(s.Attrs)
	}
	for _, key := range []string{"sign", "verify"} {
		if _, ok := s.Attrs[key]; ok {
			return s, &input.Error{Err: fmt.Errorf("cache %q: the key %s names a file, and those of the daemon are not for its clients",
				s.Text, key)}
		}
	}
	for _, key := range ownKeys[s.Type] {
		if s.Attrs[key] == "" {
			return s, &input.Error{Err: fmt.Errorf("cache %q: it needs the key %s: the daemon lends its clients no credentials of its own",
				s.Text, key)}
		}
	}
	if err = s.Check(); err != nil {
		return s, &input.Error{Err: fmt.Errorf("cache %q: %w", s.Text, err)}
	}
	return s, nil
}

// gitHub makes the attributes that buildx sends for GitHub's cache those that kiln has. buildx sends the addresses of both versions of the
// service, of which GitHub has only the second one any more, and what BuildKit asks GitHub for besides, to make fewer requests.
func gitHub(attrs map[string]string) {
	if attrs["url_v2"] == "" && attrs["version"] != "1" {
		attrs["url_v2"] = attrs["url"]
	}
	for _, key := range []string{"url", "repository", "ghtoken"} {
		delete(attrs, key)
	}
}
