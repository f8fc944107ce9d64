package attestation

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/internal/suggest"
)

// Options say which attestations a build makes. The zero value makes none.
type Options struct {
	// Provenance and SBOM are nil if they are not asked for.
	Provenance *Provenance
	SBOM       *SBOM
	// NoProvenance says that the user does not want it, where a build would describe itself without being asked.
	NoProvenance bool
	// Given says that whoever made the result has attestations of it besides, and Inline that those which are for stores and registries
	// alone are wanted.
	Given, Inline bool
	// NoVCS leaves the commit and the origin of a context that is a git checkout out of the provenance.
	NoVCS bool
}

// Any reports whether there are attestations to make.
func (o *Options) Any() bool { return o.Provenance != nil || o.SBOM != nil || o.Given }

// InlineOnly reports whether all that is asked for is left out of outputs that are not in a store or registry.
func (o *Options) InlineOnly() bool {
	return (o.Provenance == nil || o.Provenance.InlineOnly) && (o.SBOM == nil || o.SBOM.InlineOnly)
}

// Anonymously returns the same options for attestations that are the same each time: see Provenance.Anonymous.
func (o Options) Anonymously() Options {
	if o.Provenance != nil {
		p := *o.Provenance
		p.Anonymous = true
		o.Provenance = &p
	}
	return o
}

// Provenance says how a build describes itself.
type Provenance struct {
	// Max describes everything: build arguments, steps, the Dockerfile and layers.
	Max bool
	// PredicateType is SLSA1 or SLSA02.
	PredicateType string
	// BuilderID is who builds, as a URI; "" for kiln's own.
	BuilderID string
	// File is the name of the file in outputs that are files.
	File string
	// InlineOnly is as in Attestation.
	InlineOnly bool
	// Reproducible says of the build that it can be repeated with the same result. It is the user's word.
	Reproducible bool
	// Complete makes it an error that the build uses files of the client, which are no materials.
	Complete bool
	// Anonymous leaves out what differs each time, or from one machine to another: the ID of the build, when it began and ended, whether
	// the cache was used, and where a checkout came from.
	Anonymous bool
}

// SBOM says how a software bill of materials is made.
type SBOM struct {
	// Generator is the image of a scanner; "" for the built-in one.
	Generator string
	// Attrs are the other values, which are for the Generator.
	Attrs map[string]string
	// InlineOnly is as in Attestation.
	InlineOnly bool
}

// DefaultFile is the name of the file with the provenance in outputs that are files, and DefaultSBOM that of the software bill of
// materials.
const (
	DefaultFile = "provenance.json"
	DefaultSBOM = "sbom.spdx.json"
)

// Types of attestations that can be asked for.
const (
	typeProvenance = "provenance"
	typeSBOM       = "sbom"
)

// Set reads what is asked for of one type of attestations: the values of --attest without its type.
func (o *Options) Set(kind string, values map[string]string) error {
	values = maps.Clone(values)
	disabled := false
	if v, ok := values["disabled"]; ok {
		var err error
		if disabled, err = truth("disabled", v); err != nil {
			return err
		}
		delete(values, "disabled")
	}
	switch kind {
	case typeProvenance:
		if o.Provenance != nil || o.NoProvenance {
			return errors.New("provenance is asked for twice: name it in one of --attest and --provenance")
		}
		p, err := parseProvenance(values)
		if err != nil {
			return err
		}
		if o.NoProvenance = disabled; !disabled {
			o.Provenance = p
		}
	case typeSBOM:
		if o.SBOM != nil {
			return errors.New("an SBOM is asked for twice: name it in one of --attest and --sbom")
		}
		s, err := parseSBOM(values)
		if err != nil {
			return err
		}
		if !disabled {
			o.SBOM = s
		}
	case "":
		return errors.New("it has no type: write type=provenance or type=sbom")
	default:
		return fmt.Errorf("there is no attestation of type=%s; the types are provenance and sbom%s",
			kind, suggest.Hint(kind, typeProvenance, typeSBOM))
	}
	return nil
}

// provenanceKeys are the keys of --provenance.
var provenanceKeys = []string{
	"mode", "version", "builder-id", "filename", "inline-only", "reproducible", "complete-materials", "anonymous", "disabled",
}

// parseProvenance reads the values of --provenance.
func parseProvenance(values map[string]string) (*Provenance, error) {
	p := &Provenance{Max: true, PredicateType: SLSA1, File: DefaultFile} // as BuildKit
	for _, key := range slices.Sorted(maps.Keys(values)) {
		v := values[key]
		var err error
		switch key {
		case "mode":
			switch v {
			case "max", "full":
				p.Max = true
			case "min":
				p.Max = false
			default:
				err = fmt.Errorf("mode=%s is neither min nor max", v)
			}
		case "version":
			switch v {
			case "v1":
				p.PredicateType = SLSA1
			case "v0.2":
				p.PredicateType = SLSA02
			default:
				err = fmt.Errorf("version=%s is neither v1 nor v0.2", v)
			}
		case "builder-id":
			p.BuilderID = v
		case "filename":
			p.File, err = v, CheckFile("filename", v)
		case "inline-only":
			p.InlineOnly, err = truth(key, v)
		case "reproducible":
			p.Reproducible, err = truth(key, v)
		case "complete-materials":
			p.Complete, err = truth(key, v)
		case "anonymous":
			p.Anonymous, err = truth(key, v)
		case "capture-usage":
			var on bool
			if on, err = truth(key, v); on {
				err = errors.New("capture-usage is not supported: kiln explain shows what the steps of a build used")
			}
		default:
			err = fmt.Errorf("provenance has no %s; there are %s%s", key, strings.Join(provenanceKeys, ", "), suggest.Hint(key, provenanceKeys...))
		}
		if err != nil {
			return nil, err
		}
	}
	return p, nil
}

// parseSBOM reads the values of --sbom.
func parseSBOM(values map[string]string) (*SBOM, error) {
	s := &SBOM{Attrs: map[string]string{}}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		v := values[key]
		var err error
		switch key {
		case "generator":
			s.Generator = v
		case "inline-only":
			s.InlineOnly, err = truth(key, v)
		default:
			s.Attrs[key] = v
		}
		if err != nil {
			return nil, err
		}
	}
	if s.Generator != "" || len(s.Attrs) == 0 {
		return s, nil
	}
	key := slices.Sorted(maps.Keys(s.Attrs))[0]
	return nil, fmt.Errorf("the built-in scanner has no %s; with generator=IMAGE, it is a parameter of that scanner%s",
		key, suggest.Hint(key, "generator"))
}

// CheckFile returns an error unless name, which the user gave as key, can be the name of a file in a directory.
func CheckFile(key, name string) error {
	special := name == "" || name == "." || name == ".." || name == "/"
	if special || name != path.Base(name) || strings.ContainsRune(name, 0) || len(name) > maxName {
		return fmt.Errorf("%s=%s is not the name of a file", key, name)
	}
	return nil
}

// maxName is how many bytes the name of a file may have (NAME_MAX, limits.h).
const maxName = 255

func truth(key, value string) (bool, error) {
	b, err := strconv.ParseBool(value)
	if err != nil {
		return false, fmt.Errorf("%s=%s is neither true nor false", key, value)
	}
	return b, nil
}
