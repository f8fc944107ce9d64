package system

import (
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/sbom/internal/found"
	"github.com/kilnbuild/kiln/sbom/internal/found/foundtest"
)

const status = `Package: libc6
Status: install ok installed
Maintainer: GNU Libc Maintainers <debian-glibc@lists.debian.org>
Architecture: amd64
Multi-Arch: same
Source: glibc (2.36-8)
Version: 2.36-9+deb12u4
Conffiles:
 /etc/ld.so.conf.d/x86_64-linux-gnu.conf d4e7a7b88a71b5ffd9e2644e71a0cfab
Description: GNU C Library: Shared libraries
 Package: not-a-package

Package: removed
Status: deinstall ok config-files
Version: 1

Package: half
Status: install ok half-configured
Version: 2
`

func TestDpkg(t *testing.T) {
	all, err := Dpkg(foundtest.File("var/lib/dpkg/status", []byte(status)))
	want := "deb libc6@2.36-9+deb12u4 [amd64] [glibc@2.36-8] [GNU Libc Maintainers <debian-glibc@lists.debian.org>]\ndeb half@2\n"
	if got := foundtest.Show(all); got != want || err != nil {
		t.Errorf("got %s%v", got, err)
	}
	// Files of status.d have no states. A line that is too long is cut, and what follows is read.
	all, err = Dpkg(foundtest.File("var/lib/dpkg/status.d/base", []byte(
		"Package: base\nDescription: "+strings.Repeat("x", 2*found.MaxLine)+"\nVersion: 1\x1b[31m\n")))
	if got := foundtest.Show(all); got != "deb base@1[31m\n" || err != nil {
		t.Errorf("got %q %v", got, err)
	}
}

func TestApk(t *testing.T) {
	all, err := Apk(foundtest.File("lib/apk/db/installed", []byte(`C:Q1hLrQ1IBUKLMXbYXLBBlQ=
P:musl
V:1.2.4-r2
A:x86_64
T:the musl c library
L:MIT
o:musl
m:Timo <timo@example.org>
F:lib
R:libc.musl-x86_64.so.1

P:libcrypto3
o:openssl
V:3
`)))
	want := "apk musl@1.2.4-r2 [x86_64] [MIT] [Timo <timo@example.org>]\napk libcrypto3@3 [openssl]\n"
	if got := foundtest.Show(all); got != want || err != nil {
		t.Errorf("got %s%v", got, err)
	}
}

func TestOSRelease(t *testing.T) {
	r, err := OSRelease(foundtest.File("etc/os-release", []byte("# c\nID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME='De\"b'\nNAME=\"a\\\"b\"\n")))
	if err != nil || *r != (found.Release{ID: "debian", VersionID: "12", Name: `De"b`}) {
		t.Errorf("%+v %v", r, err)
	}
}

func FuzzDpkg(f *testing.F) {
	f.Add([]byte(status))
	foundtest.Fuzz(f, "var/lib/dpkg/status", Dpkg)
}

func FuzzApk(f *testing.F) {
	f.Add([]byte("P:a\nV:1\n\nP:b\n"))
	foundtest.Fuzz(f, "lib/apk/db/installed", Apk)
}

func FuzzOSRelease(f *testing.F) {
	f.Add([]byte("ID=\"a\\\"\nVERSION_ID='"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := OSRelease(foundtest.File("etc/os-release", data)); err != nil {
			t.Error(err)
		}
	})
}
