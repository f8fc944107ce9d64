package outputs

import (
	"errors"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/exporter"
)

// Given is what whoever has made a result says of it, besides root file systems and configurations. The zero value is for a result of which
// nothing is said.
type Given struct {
	// Names are those of the image where an output leaves that to the result, as BuildKit writes them: "app,registry:5000/app:v1".
	Names string
	// Annotations are for every output that is an image, after its own.
	Annotations []exporter.Annotation
	// ByPlatform says that outputs tell platforms apart, even if there is only one: images in an index, files by directories.
	ByPlatform bool
	// IDs are what the maker calls the platforms of the images; none where they are called by their platforms.
	IDs []string
	// Attestations are those of each image.
	Attestations [][]attestation.Given
}

// SBOM reports whether there is a software bill of materials, so that none has to be made.
func (g *Given) SBOM() bool {
	return slices.ContainsFunc(g.Attestations, func(of []attestation.Given) bool {
		return slices.ContainsFunc(of, func(a attestation.Given) bool { return a.PredicateType == attestation.SPDX })
	})
}

// Directory returns the name of the directory that has the files of one of several platforms: "linux_arm64".
func (g *Given) Directory(i int, platform string) string {
	if i < len(g.IDs) {
		platform = g.IDs[i]
	}
	name := strings.NewReplacer("/", "_", `\`, "_", ":", "_").Replace(platform)
	if name == "." || name == ".." {
		return strings.Repeat("_", len(name))
	}
	return name
}

// Apply completes plans with what is given.
func Apply(plans []Plan, g *Given) error {
	for i := range plans {
		p := &plans[i]
		if p.ResultNames && g.Names != "" {
			var err error
			if p.Names, err = FullNames(strings.Split(g.Names, ",")); err != nil {
				return err
			}
		}
		if p.Type == Registry && len(p.Names) == 0 {
			return errors.New("pushing needs a name, and the result has none: the key name of the output gives it one")
		}
		if p.IsImage() {
			p.Form.Annotations = slices.Concat(p.Form.Annotations, g.Annotations)
			p.Form.Index = g.ByPlatform && p.Type != Docker && p.Type != Storage
		}
		p.Attest.Inline = p.takesInline()
		p.Attest.Given = slices.ContainsFunc(g.Attestations, func(of []attestation.Given) bool {
			return slices.ContainsFunc(of, func(a attestation.Given) bool { return !a.InlineOnly || p.Attest.Inline })
		})
		if g.SBOM() {
			p.Attest.SBOM = nil
		}
		if err := p.checkAttestations(); err != nil {
			return err
		}
	}
	return nil
}
