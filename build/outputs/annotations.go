package outputs

import (
	"fmt"
	"slices"

	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/llb"
)

// annotation reads what follows "annotation" in the key of an output.
func (p *Plan) annotation(rest, value string) error {
	a, err := exporter.AnnotationOf(rest, value)
	if err != nil {
		return fmt.Errorf("output %s: %w", p.Type, err)
	}
	p.Form.Annotations = append(p.Form.Annotations, a)
	return nil
}

// checkAnnotations returns an error for an annotation of what the image is not going to have.
func (p *Plan) checkAnnotations(platforms []llb.Platform) error {
	if len(platforms) == 0 {
		platforms = []llb.Platform{llb.Host()}
	}
	for _, a := range p.Form.Annotations {
		switch {
		case p.Form.Docker:
			return fmt.Errorf("output %s: oci-mediatypes=false, and Docker's media types have no annotations", p.Type)
		case (a.Part == exporter.OnIndex || a.Part == exporter.OnIndexDescriptor) && len(platforms) < 2 && !p.Attest.Any() && !p.Form.Index:
			return fmt.Errorf("annotation %s: an image of one platform has no %s: annotate its manifest", a.Key, a.Part)
		case a.Platform != "" && !slices.ContainsFunc(platforms, func(p llb.Platform) bool { return p.String() == a.Platform }):
			return fmt.Errorf("annotation %s: the build is not for %s", a.Key, a.Platform)
		}
	}
	return nil
}
