package spdx

import (
	"strings"

	"github.com/kilnbuild/kiln/sbom/internal/found"
)

// PackageURL returns the package URL of a package in an image of a distribution (package-url/purl-spec, and its types).
func PackageURL(p *found.Package, r *found.Release) string {
	namespace, name := p.Namespace, p.Name
	var qualifiers []string
	add := func(key, value string) {
		if value != "" {
			qualifiers = append(qualifiers, key+"="+percent(value))
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
			b.WriteString("/" + percent(segment))
		}
	}
	b.WriteString("/" + percent(name))
	if p.Version != "" {
		b.WriteString("@" + percent(p.Version))
	}
	if len(qualifiers) > 0 {
		b.WriteString("?" + strings.Join(qualifiers, "&"))
	}
	return b.String()
}

// percent encodes a component of a package URL: everything but letters, digits and "-._~:".
func percent(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(s) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~:", c) >= 0 {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}
