package spdx

import (
	"testing"

	"github.com/kilnbuild/kiln/sbom/internal/found"
)

func TestPackageURL(t *testing.T) {
	r := &found.Release{ID: "debian", VersionID: "12"}
	for _, c := range []struct {
		p    found.Package
		want string
	}{
		{found.Package{Type: "deb", Name: "libc6", Version: "2.36-9+deb12u4", Arch: "amd64", Upstream: "glibc@2.36-8"},
			"pkg:deb/debian/libc6@2.36-9%2Bdeb12u4?arch=amd64&distro=debian-12&upstream=glibc%402.36-8"},
		{found.Package{Type: "rpm", Name: "Bash", Version: "1-2", Epoch: "1"}, "pkg:rpm/debian/Bash@1-2?distro=debian-12&epoch=1"},
		{found.Package{Type: "npm", Namespace: "@s", Name: "a", Version: "1"}, "pkg:npm/%40s/a@1"},
		{found.Package{Type: "pypi", Name: "Flask_X", Version: "1"}, "pkg:pypi/flask-x@1"},
		{found.Package{Type: "golang", Namespace: "github.com/Azure/x", Name: "y"}, "pkg:golang/github.com/Azure/x/y"},
		{found.Package{Type: "maven", Namespace: "org.example", Name: "lib", Version: "1 2"}, "pkg:maven/org.example/lib@1%202"},
	} {
		if got := packageURL(&c.p, r); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
}

func TestExpression(t *testing.T) {
	for declared, want := range map[string]string{
		"MIT": "MIT", "mit OR apache-2.0": "MIT OR Apache-2.0", "GPL-2.0-or-later WITH Classpath-exception-2.0": "GPL-2.0-or-later WITH Classpath-exception-2.0",
	} {
		if got, text := expression(declared); got != want || text != "" {
			t.Errorf("%s: %s %s", declared, got, text)
		}
	}
	for _, declared := range []string{"Apache 2.0", "see COPYING", "LicenseRef-x", "(MIT", "MIT AND"} {
		if got, text := expression(declared); len(got) != len("LicenseRef-")+16 || text != declared {
			t.Errorf("%s: %s %s", declared, got, text)
		}
	}
}

func FuzzExpression(f *testing.F) {
	f.Add("(MIT OR Apache-2.0) AND GPL-2.0+ WITH Classpath-exception-2.0")
	f.Fuzz(func(t *testing.T, declared string) {
		if expr, text := expression(declared); expr == "" || text != "" && text != declared {
			t.Errorf("%q %q", expr, text)
		}
	})
}
