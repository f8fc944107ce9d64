package returned

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/llb"
)

// KeyPlatforms is the key of the metadata of a result that has its platforms.
const KeyPlatforms = "refs.platforms"

// Index are the platforms of a result, as its metadata have them.
type Index struct {
	Platforms []Platform
}

// Platform is a platform, by what the maker of the result calls it.
type Platform struct {
	ID       string
	Platform ocispec.Platform
}

// Platforms returns the platforms that the metadata of a result name, normalised; none where they name none. The error is the client's.
func Platforms(metadata map[string][]byte) ([]Platform, error) {
	data, ok := metadata[KeyPlatforms]
	if !ok {
		return nil, nil
	}
	var known Index
	if len(data) > 0 {
		if err := json.Unmarshal(data, &known); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "failed to parse platforms passed to exporter: %v", err)
		}
	}
	if len(known.Platforms) == 0 {
		return nil, status.Error(codes.InvalidArgument, "invalid empty platforms index for exporter")
	}
	for i := range known.Platforms {
		p := &known.Platforms[i].Platform
		if known.Platforms[i].ID == "" {
			return nil, status.Error(codes.InvalidArgument, "invalid empty platform key for exporter")
		}
		if p.OS == "" || p.Architecture == "" {
			return nil, status.Errorf(codes.InvalidArgument, "invalid platform value %v for exporter", *p)
		}
		normal := llb.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}.Normalize()
		p.OS, p.Architecture, p.Variant = normal.OS, normal.Architecture, normal.Variant
	}
	return known.Platforms, nil
}

// MaxRepeated is how many platforms of a result may be repeated.
const MaxRepeated = 16

// IDs returns what the maker of a result with so many refs calls its platforms. The error is the client's.
func IDs(known []Platform, refs int) ([]string, error) {
	var ids []string
	for _, k := range known {
		ids = append(ids, k.ID)
	}
	if len(ids) > refs+MaxRepeated { // a client may name a platform twice
		return nil, status.Errorf(codes.InvalidArgument, "the result has %d platforms, and %d refs", len(ids), refs)
	}
	return ids, nil
}

// Mismatch says how the platforms of a result differ from those that its request names, or from the server's own if it names none; "" if
// they do not. byPlatform says that the result has a ref for each platform.
func Mismatch(requested string, made []llb.Platform, byPlatform bool) string {
	var asked []llb.Platform
	if requested == "" {
		asked = []llb.Platform{llb.Host().Normalize()}
	} else {
		for one := range strings.SplitSeq(requested, ",") {
			parsed, err := llb.ParsePlatform(one, llb.Host())
			if err != nil {
				return fmt.Sprintf("Invalid platform result requested %q: %s", one, err)
			}
			if slices.Contains(asked, parsed) {
				return fmt.Sprintf("Duplicate platform result requested %q", one)
			}
			asked = append(asked, parsed)
		}
	}
	has := func(have llb.Platform) bool {
		return slices.ContainsFunc(asked, func(want llb.Platform) bool {
			if want.OSVersion == "" {
				have.OSVersion = "" // which nobody asks for, and the base image has
			}
			return have == want
		})
	}
	all := !slices.ContainsFunc(made, func(p llb.Platform) bool { return !has(p) })
	switch {
	case len(asked) > 1 && !byPlatform:
		return "Multiple platforms requested but result is not multi-platform"
	case all && len(asked) == len(made):
		return ""
	case len(asked) == 1 && len(made) == 1:
		return fmt.Sprintf("Requested platform %q does not match result platform %q", asked[0], made[0])
	}
	return fmt.Sprintf("Requested platforms %s do not match result platforms %s", list(asked), list(made))
}

// list returns platforms in order: "linux/amd64,linux/arm64".
func list(all []llb.Platform) string {
	var names []string
	for _, p := range all {
		names = append(names, p.String())
	}
	slices.Sort(names)
	return strings.Join(names, ",")
}
