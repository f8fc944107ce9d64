package bake

import (
	"slices"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/kilnbuild/kiln/bake/internal/syntax"
)

// checkBody returns an error if a block has attributes or blocks that there are not.
func checkBody(b *hclsyntax.Block, attributes []string, blocks ...string) error {
	for _, name := range syntax.SortedAttributes(b.Body) {
		if !slices.Contains(attributes, name) {
			return syntax.ErrorAt(b.Body.Attributes[name].NameRange, "a %s has no attribute %s%s", b.Type, name, similar(name, attributes))
		}
	}
	for _, inner := range b.Body.Blocks {
		switch {
		case slices.Contains(attributes, inner.Type):
			return syntax.ErrorAt(inner.TypeRange, "%s is not a block: write %s = ", inner.Type, inner.Type)
		case !slices.Contains(blocks, inner.Type):
			return syntax.ErrorAt(inner.TypeRange, "a %s has no block %s", b.Type, inner.Type)
		}
	}
	return nil
}

// label returns the only label of a block.
func label(b *hclsyntax.Block) (string, error) {
	if len(b.Labels) != 1 {
		return "", syntax.ErrorAt(b.TypeRange, "a %s has one name: write %s \"NAME\" {", b.Type, b.Type)
	}
	return b.Labels[0], nil
}

// checkName returns an error unless a target or group can have the name.
func checkName(name string, at hcl.Range) error {
	valid := name != ""
	for _, c := range name {
		valid = valid && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-')
	}
	if !valid {
		return syntax.ErrorAt(at, "the name %q is invalid: names of targets and groups have letters, digits, _ and -; "+
			"sanitize() replaces the rest", name)
	}
	return nil
}
