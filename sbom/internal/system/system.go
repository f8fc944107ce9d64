// Package system reads what the package managers of Linux distributions write as text.
package system

import (
	"strings"

	"github.com/kilnbuild/kiln/sbom/internal/found"
)

// Dpkg reads the packages of dpkg's status file, or of one of status.d, which has no states.
func Dpkg(f *found.File) ([]found.Package, error) {
	var all found.Packages
	var p found.Package
	var status, source string
	var complete bool
	end := func() error {
		defer func() { p, status, source, complete = found.Package{}, "", "", false }()
		// A package that was removed, but for its configuration, is none: want, flag and state (dpkg, lib/dpkg/parse.c).
		if !complete || status != "" && !installed(status) {
			return nil
		}
		p.Type, p.Upstream = "deb", dpkgSource(source)
		return all.Add(p)
	}
	for line, err := range found.Lines(f) {
		if err != nil {
			return all.All, err
		}
		if strings.TrimSpace(line) == "" {
			if err := end(); err != nil {
				return all.All, err
			}
			continue
		}
		if line[0] == ' ' || line[0] == '\t' {
			continue // of a description, or of a list of files
		}
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.ToLower(key) {
		case "package":
			p.Name, complete = value, true
		case "version":
			p.Version = value
		case "architecture":
			p.Arch = value
		case "status":
			status = value
		case "source":
			source = value
		case "maintainer":
			p.Supplier = value
		}
	}
	return all.All, end()
}

// installed reports whether a package in a state of dpkg has files in the image.
func installed(status string) bool {
	words := strings.Fields(status)
	if len(words) != 3 {
		return false
	}
	switch words[2] {
	case "not-installed", "config-files":
		return false
	}
	return true
}

// dpkgSource returns the Upstream of a Source field: "name" or "name (version)".
func dpkgSource(source string) string {
	name, version, ok := strings.Cut(source, "(")
	name = strings.TrimSpace(name)
	if ok {
		return name + "@" + strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(version), ")"))
	}
	return name
}

// Apk reads the packages of apk's database of what is installed (apk-tools, doc/apk-installed).
func Apk(f *found.File) ([]found.Package, error) {
	var all found.Packages
	var p found.Package
	end := func() error {
		p.Type = "apk"
		err := all.Add(p)
		p = found.Package{}
		return err
	}
	for line, err := range found.Lines(f) {
		if err != nil {
			return all.All, err
		}
		if line == "" {
			if err := end(); err != nil {
				return all.All, err
			}
			continue
		}
		key, value, ok := strings.Cut(line, ":")
		if !ok || len(key) != 1 {
			continue
		}
		switch key[0] {
		case 'P':
			p.Name = value
		case 'V':
			p.Version = value
		case 'A':
			p.Arch = value
		case 'o':
			if value != p.Name {
				p.Upstream = value
			}
		case 'L':
			p.License = value
		case 'm':
			p.Supplier = value
		}
	}
	return all.All, end()
}

// OSRelease reads a file as os-release(5) describes it.
func OSRelease(f *found.File) (*found.Release, error) {
	r := &found.Release{}
	n := 0
	for line, err := range found.Lines(f) {
		if n++; n > maxReleaseLines {
			break
		}
		if err != nil {
			return r, err
		}
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = found.Field(unquote(value))
		switch key {
		case "ID":
			r.ID = value
		case "VERSION_ID":
			r.VersionID = value
		case "PRETTY_NAME":
			r.Name = value
		}
	}
	return r, nil
}

// maxReleaseLines is how many lines of an os-release are read.
const maxReleaseLines = 1000

// unquote removes the quotes of a shell assignment.
func unquote(s string) string {
	if len(s) < 2 || s[0] != s[len(s)-1] || s[0] != '"' && s[0] != '\'' {
		return s
	}
	quote, s := s[0], s[1:len(s)-1]
	if quote == '\'' {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
