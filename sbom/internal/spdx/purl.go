package spdx

import (
	"strings"

	"github.com/kilnbuild/kiln/internal/purl"
	"github.com/kilnbuild/kiln/sbom/internal/found"
)

// packageURL returns the package URL of a package in an image of a distribution (package-url/purl-spec, and its types).
func packageURL(p *found.Package, r *found.Release) string {
	namespace, name := p.Namespace, p.Name
	var qualifiers []string
	add := func(key, value string) {
		if value != "" {
			qualifiers = append(qualifiers, key+"="+purl.Escape(value))
		}
	}
	switch p.Type {
	case "deb", "apk", "rpm":
		if p.Type != "rpm" {
			name = strings.ToLower(name)
		}
		namespace = strings.ToLower(r.ID)
		add("arch", p.Arch)
		distro := r.ID
		if r.VersionID != "" {
			distro += "-" + r.VersionID
		}
		add("distro", distro)
		add("epoch", p.Epoch)
		add("upstream", p.Upstream) // the keys in the order of the alphabet
	case "pypi":
		name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
	case "npm":
		namespace, name = strings.ToLower(namespace), strings.ToLower(name)
	}
	var b strings.Builder
	b.WriteString("pkg:" + p.Type)
	for segment := range strings.SplitSeq(namespace, "/") {
		if segment != "" {
			b.WriteString("/" + purl.Escape(segment))
		}
	}
	b.WriteString("/" + purl.Escape(name))
	if p.Version != "" {
		b.WriteString("@" + purl.Escape(p.Version))
	}
	if len(qualifiers) > 0 {
		b.WriteString("?" + strings.Join(qualifiers, "&"))
	}
	return b.String()
}
