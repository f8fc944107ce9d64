package attestation

import (
	"strings"

	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/purl"
)

// ImageURL returns the package URL of an image, as BuildKit writes it: "pkg:docker/app@v1?platform=linux%2Famd64". An image of an OCI
// layout is of the type oci. platform may be "".
func ImageURL(kind string, name imagename.Name, platform string) string {
	path := imagename.Name{Registry: name.Registry, Repository: name.Repository}.FamiliarTagged()
	segments := strings.Split(path, "/")
	for i, s := range segments {
		segments[i] = purl.Escape(s)
	}
	url := "pkg:" + kind + "/" + strings.Join(segments, "/")
	if name.Tag != "" {
		url += "@" + purl.Escape(name.Tag)
	}
	mark := "?"
	if name.Digest != "" {
		url += mark + "digest=" + purl.Escape(string(name.Digest))
		mark = "&"
	}
	if platform != "" {
		url += mark + "platform=" + purl.Escape(platform)
	}
	return url
}
