package llb

import "strings"

// Platform names an operating system and processor as OCI does (image-spec, config.md): OS "linux", Architecture "arm64",
// Variant "v8" or "", OSVersion for Windows alone.
type Platform struct {
	OS           string
	Architecture string
	Variant      string
	OSVersion    string
}

// String returns "os/architecture[/variant]".
func (p Platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return strings.TrimSuffix(s, "/")
}
