package attestation

import (
	"strings"

	"github.com/kilnbuild/kiln/internal/imagename"
)

// ImageURL returns the package URL of an image, as BuildKit writes it: "pkg:docker/app@v1?platform=linux%2Famd64". An image of an OCI layout
// is of the type oci. platform may be "".
func ImageURL(kind string, name imagename.Name, platform string) string {
	path := imagename.Name{Registry: name.Registry, Repository: name.Repository}.FamiliarTagged()
	segments := strings.Split(path, "/")
	for i, s := range segments {
		segments[i] = percent(s)
	}
	url := "pkg:" + kind + "/" + strings.Join(segments, "/")
	if name.Tag != "" {
		url += "@" + percent(name.Tag)
	}
	mark := "?"
	if name.Digest != "" {
		url += mark + "digest=" + percent(string(name.Digest))
		mark = "&"
	}
	if platform != "" {
		url += mark + "platform=" + percent(platform)
	}
	return url
}

// percent encodes a component of a package URL: everything but letters, digits and "-._~:".
func percent(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("-._~:", c) >= 0:
			b.WriteByte(c)
		default:
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}
