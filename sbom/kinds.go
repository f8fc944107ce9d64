package sbom

import (
	"path"
	"strings"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/sbom/internal/binaries"
	"github.com/kilnbuild/kiln/sbom/internal/found"
	"github.com/kilnbuild/kiln/sbom/internal/language"
	"github.com/kilnbuild/kiln/sbom/internal/rpm"
	"github.com/kilnbuild/kiln/sbom/internal/system"
)

// kind is what a file that tells of packages is.
type kind string

const (
	kindRelease kind = "os-release"
	kindLock    kind = "lock"
	kindOther   kind = ""
)

// reader reads the packages of a file.
type reader struct {
	kind kind
	read func(*found.File) ([]found.Package, error)
}

// readers are those for files of some names, in any directory.
var readers = map[string]reader{
	"package.json":        {kindOther, language.PackageJSON},
	"package-lock.json":   {kindLock, language.PackageLock},
	"npm-shrinkwrap.json": {kindLock, language.PackageLock},
	"yarn.lock":           {kindLock, language.YarnLock},
}

// rpmDirs are where rpm's database is, by distribution.
var rpmDirs = []string{"var/lib/rpm", "usr/lib/sysimage/rpm", "usr/share/rpm"}

// modules is the directory of the packages that npm and yarn have installed.
const modules = "node_modules"

// minProgram is the size in bytes of the smallest header of a program.
const minProgram = 52

// wanted returns what reads a file of an image, by its path and what the manifest says of it. A program is not known before its first bytes
// are read: then program is set.
func wanted(e *layer.Entry) (r reader, program, ok bool) {
	dir, name := path.Split(e.Path)
	dir = strings.TrimSuffix(dir, "/")
	if r, ok := readers[name]; ok {
		// A package brings the lock that it was developed with.
		return r, false, r.kind != kindLock || !strings.Contains("/"+dir+"/", "/"+modules+"/")
	}
	switch {
	case e.Path == "etc/os-release", e.Path == "usr/lib/os-release":
		return reader{kind: kindRelease}, false, true
	case name == "status" && in(dir, "var/lib/dpkg"), in(dir, "var/lib/dpkg/status.d") && path.Ext(name) != ".md5sums":
		return reader{read: system.Dpkg}, false, true
	case name == "installed" && (in(dir, "lib/apk/db") || in(dir, "usr/lib/apk/db")):
		return reader{read: system.Apk}, false, true
	case name == "METADATA" && strings.HasSuffix(dir, ".dist-info"), strings.HasSuffix(name, ".egg-info"),
		name == "PKG-INFO" && (strings.HasSuffix(dir, ".egg-info") || path.Base(dir) == "EGG-INFO"):
		return reader{read: language.Python}, false, true
	case language.IsArchive(name):
		return reader{read: language.Java}, false, true
	case name == "Packages" || name == "Packages.db" || name == "rpmdb.sqlite":
		for _, d := range rpmDirs {
			if in(dir, d) {
				return reader{read: rpm.Read}, false, true
			}
		}
	}
	if e.Size >= minProgram && (e.Mode&0o111 != 0 || strings.Contains(name, ".so")) {
		return reader{read: binaries.Read}, true, true
	}
	return reader{}, false, false
}

// in reports whether a directory is one, perhaps of a root file system below another.
func in(dir, suffix string) bool { return dir == suffix || strings.HasSuffix(dir, "/"+suffix) }
