package language

import (
	"strings"

	"github.com/kilnbuild/kiln/sbom/internal/found"
)

// Python reads the METADATA of a .dist-info directory, or the PKG-INFO of an .egg-info: headers as of mail
// (packaging.python.org, core metadata).
func Python(f *found.File) ([]found.Package, error) {
	p := found.Package{Type: "pypi"}
	var license string
	for line, err := range found.Lines(f) {
		if err != nil {
			return nil, err
		}
		if line == "" {
			break // what follows is a description
		}
		key, value, ok := strings.Cut(line, ":")
		if !ok || line[0] == ' ' || line[0] == '\t' {
			continue
		}
		value = strings.TrimSpace(value)
		if value == "UNKNOWN" {
			continue // what setuptools writes for none
		}
		switch strings.ToLower(key) {
		case "name":
			p.Name = value
		case "version":
			p.Version = value
		case "license-expression":
			p.License = value
		case "license":
			license = value
		}
	}
	if p.License == "" {
		p.License = license
	}
	if p.Version == "" {
		return nil, nil
	}
	var all found.Packages
	err := all.Add(p)
	return all.All, err
}
