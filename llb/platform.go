package llb

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
)

// Platform names an operating system and processor as OCI does (image-spec, config.md): OS "linux", Architecture "arm64",
// Variant "v8" or "", OSVersion for Windows alone.
type Platform struct {
	OS           string
	Architecture string
	Variant      string
	OSVersion    string
}

// String returns "os[(version)]/architecture[/variant]".
func (p Platform) String() string {
	s := p.OS
	if p.OSVersion != "" {
		s += "(" + p.OSVersion + ")"
	}
	s += "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return strings.TrimSuffix(s, "/")
}

// PlatformError is a text that is not a platform.
type PlatformError struct{ Text string }

func (e *PlatformError) Error() string {
	return fmt.Sprintf("%q is not a platform: it has to be os/architecture[/variant], for example linux/arm64", e.Text)
}

// ParsePlatform reads "os[(version)][/architecture[/variant]]" or an architecture alone, as --platform and FROM --platform take it;
// what is left out is taken from host. Other names of processors are replaced by OCI's: x86_64 by amd64, aarch64 by
// arm64, armhf by arm/v7. The error is a *PlatformError.
func ParsePlatform(s string, host Platform) (Platform, error) {
	bad := &PlatformError{s}
	parts := strings.Split(strings.ToLower(strings.TrimSpace(s)), "/")
	version := ""
	if os, rest, ok := strings.Cut(parts[0], "("); ok {
		version, ok = strings.CutSuffix(rest, ")")
		if !ok || version == "" || strings.Trim(version, "abcdefghijklmnopqrstuvwxyz0123456789_.-") != "" {
			return Platform{}, bad
		}
		parts[0] = os
	}
	for _, part := range parts {
		if part == "" || strings.Trim(part, "abcdefghijklmnopqrstuvwxyz0123456789_.-") != "" {
			return Platform{}, bad
		}
	}
	p := Platform{OSVersion: version}
	switch len(parts) {
	case 1:
		if slices.Contains(knownOS, parts[0]) {
			return Platform{OS: parts[0], OSVersion: version, Architecture: host.Architecture, Variant: host.Variant}.Normalize(), nil
		}
		p = Platform{OS: host.OS, Architecture: parts[0]}.Normalize()
		if version != "" || !slices.Contains(knownArchitectures, p.Architecture) {
			return Platform{}, bad
		}
		return p, nil
	case 2:
		p.OS, p.Architecture = parts[0], parts[1]
	case 3:
		p.OS, p.Architecture, p.Variant = parts[0], parts[1], parts[2]
	default:
		return Platform{}, bad
	}
	return p.Normalize(), nil
}

var (
	knownOS = []string{
		"linux", "windows", "darwin", "freebsd", "netbsd", "openbsd", "wasi", "js", "android", "aix", "solaris", "illumos", "plan9",
	}
	knownArchitectures = []string{
		"386", "amd64", "arm", "arm64", "loong64", "mips",
		"mipsle", "mips64", "mips64le", "ppc64", "ppc64le", "riscv64", "s390x", "wasm",
	}
)

// Normalize returns p with OCI's names of processors and the variant that goes without saying left out: v8 of arm64 and
// v1 of amd64. An arm without variant is v7, a 32-bit one as "armhf" is.
func (p Platform) Normalize() Platform {
	p.OS, p.Architecture, p.Variant = strings.ToLower(p.OS), strings.ToLower(p.Architecture), strings.ToLower(p.Variant)
	if p.OS == "macos" {
		p.OS = "darwin"
	}
	switch p.Architecture {
	case "i386", "i486", "i586", "i686":
		p.Architecture, p.Variant = "386", ""
	case "x86_64", "x86-64", "amd64":
		p.Architecture = "amd64"
		if p.Variant == "v1" {
			p.Variant = ""
		}
	case "aarch64", "arm64":
		p.Architecture = "arm64"
		if p.Variant == "8" || p.Variant == "v8" {
			p.Variant = ""
		}
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	case "arm":
		switch p.Variant {
		case "", "7":
			p.Variant = "v7"
		case "5", "6", "8":
			p.Variant = "v" + p.Variant
		}
	}
	return p
}

// Host returns the platform that kiln runs on.
func Host() Platform { return Platform{OS: "linux", Architecture: runtime.GOARCH}.Normalize() }
