// Package version says which kiln this is.
package version

import "runtime/debug"

// release is the version of a build whose source is no module and no checkout; the linker sets it (-X).
var release string

// String returns the release, or the module's version as the go command has recorded it, or the commit.
func String() string {
	if release != "" {
		return release
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "devel-" + s.Value[:12]
		}
	}
	return "devel"
}
