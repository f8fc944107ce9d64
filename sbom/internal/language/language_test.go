package language

import (
	"archive/zip"
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/sbom/internal/found"
	"github.com/kilnbuild/kiln/sbom/internal/found/foundtest"
)

func TestText(t *testing.T) {
	for _, c := range []struct {
		name, data, want string
		read             func(*found.File) ([]found.Package, error)
		bad              bool
	}{
		{"package.json", `{"name":"a","version":"1.0.0","license":"MIT"}`, "npm a@1.0.0 [MIT]\n", PackageJSON, false},
		{"scope", `{"name":"@s/a","version":"1.0.0","licenses":[{"type":"MIT"},{"type":"ISC"}]}`, "npm @s/a@1.0.0 [MIT AND ISC]\n", PackageJSON, false},
		{"no version", `{"name":"a","type":"module"}`, "", PackageJSON, false},
		{"other types", `{"name":["a"],"version":1}`, "", PackageJSON, false},
		{"large license", `{"name":"a","version":"1","license":[` + strings.Repeat(`{},`, 10_000) + `"MIT"]}`, "npm a@1\n", PackageJSON, false},
		{"no json", `name: a`, "", PackageJSON, true},
		{"too deep", strings.Repeat("[", 100_000), "", PackageJSON, true},
		{"lock 1", `{"lockfileVersion":1,"dependencies":{"a":{"version":"1.0.0","dependencies":{"b":{"version":"2.0.0"}}},"c":{"version":"3","dev":true}}}`,
			"npm a@1.0.0\nnpm b@2.0.0\n", PackageLock, false},
		{"lock 3", `{"lockfileVersion":3,"packages":{"":{"name":"app","version":"1"},"node_modules/a":{"version":"1.0.0","license":"MIT","dependencies":{"b":"^2"}},` +
			`"node_modules/a/node_modules/@s/b":{"version":"2.0.0"},"node_modules/c":{"version":"3","dev":true},"node_modules/al":{"name":"real","version":"4"},` +
			`"lib":{"version":"5"},"node_modules/lib":{"link":true}}}`,
			"npm a@1.0.0 [MIT]\nnpm @s/b@2.0.0\nnpm real@4\n", PackageLock, false},
		{"lock bad", `{"packages":{"node_modules/a":{"version":"1"},"node_modules/b":1}}`, "npm a@1\n", PackageLock, true},
		{"yarn 1", "# yarn lockfile v1\n\n\n\"@s/a@^1.0.0\", \"@s/a@^1.1.0\":\n  version \"1.1.1\"\n  resolved \"https://x\"\n  dependencies:\n    version \"9\"\n\n" +
			"al@npm:real@^2:\n  version \"2.0.0\"\n", "npm @s/a@1.1.1\nnpm real@2.0.0\n", YarnLock, false},
		{"yarn 4", "__metadata:\n  version: 8\n\n\"a@npm:^1\":\n  version: 1.2.3\n  resolution: \"a@npm:1.2.3\"\n\n\"app@workspace:.\":\n" +
			"  version: 0.0.0-use.local\n  resolution: \"app@workspace:.\"\n\n\"al@npm:@s/real@2\":\n  version: 2.0.0\n  resolution: \"@s/real@npm:2.0.0\"\n",
			"npm a@1.2.3\nnpm @s/real@2.0.0\n", YarnLock, false},
		{"metadata", "Metadata-Version: 2.1\nName: Flask_X\nVersion: 3.0\nLicense: UNKNOWN\nClassifier: a\n\nName: no\n", "pypi Flask_X@3.0\n", Python, false},
		{"expression", "Name: a\nLicense: long text\n of a license\nLicense-Expression: MIT\nVersion: 1\n", "pypi a@1 [MIT]\n", Python, false},
		{"no metadata", "\n", "", Python, false},
	} {
		all, err := c.read(foundtest.File(c.name, []byte(c.data)))
		if got := foundtest.Show(all); got != c.want || (err != nil) != c.bad {
			t.Errorf("%s: got %s%v", c.name, got, err)
		}
	}
	big := foundtest.File("package.json", nil)
	big.Size = found.MaxDocument + 1
	if _, err := PackageJSON(big); err == nil || err.Error() != "it is larger than 16 MiB" {
		t.Error(err)
	}
}

// archive returns an archive of files.
func archive(t testing.TB, files map[string]string) string {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		w, err := z.Create(name)
		if err == nil {
			_, err = w.Write([]byte(files[name]))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

const (
	pomPath      = "META-INF/maven/org.example/lib/pom.properties"
	manifestPath = "META-INF/MANIFEST.MF"
)

func pom(group, artifact, version string) string {
	return fmt.Sprintf("#Generated\ngroupId=%s\r\nartifactId=%s\nversion=%s\n", group, artifact, version)
}

func TestJava(t *testing.T) {
	lib := archive(t, map[string]string{pomPath: pom("org.example", "lib", "1.0"), manifestPath: "Manifest-Version: 1.0\n"})
	deep := lib
	for range maxNesting + 1 {
		deep = archive(t, map[string]string{"x.jar": deep})
	}
	for _, c := range []struct {
		name, data, want, bad string
	}{
		{"lib-1.0.jar", lib, "maven org.example/lib@1.0\n", ""},
		{"app.war", archive(t, map[string]string{manifestPath: "Implementation-Title: App\nImplementation-Version: 2\n .1\n\nName: x\nImplementation-Version: 9\n",
			"WEB-INF/lib/lib-1.0.jar": lib}), "maven org.example/lib@1.0\nmaven app/app@2.1\n", ""},
		{"bundle-3.jar", archive(t, map[string]string{manifestPath: "Bundle-SymbolicName: org.osgi.bundle;singleton:=true\n"}), "maven org.osgi/bundle@3\n", ""},
		{"jsr305-0.1~+svn49.jar", archive(t, map[string]string{manifestPath: "Manifest-Version: 1.0\n", pomPath: "groupId=x\n"}),
			"maven jsr305/jsr305@0.1~+svn49\n", ""},
		{"plain.jar", archive(t, map[string]string{"A.class": ""}), "", ""},
		{"deep.jar", deep, "", "nested deeper than 4"},
		{"no.jar", "not a zip", "", "not a valid zip"},
		{"cut.jar", archive(t, map[string]string{"a.jar": "no zip", "b.jar": lib}), "maven org.example/lib@1.0\n", "a.jar: zip: not a valid"},
	} {
		all, err := Java(foundtest.File("opt/"+c.name, []byte(c.data)))
		if got := foundtest.Show(all); got != c.want || (err == nil) != (c.bad == "") || err != nil && !strings.Contains(err.Error(), c.bad) {
			t.Errorf("%s: got %s%v", c.name, got, err)
		}
	}
}

// A member that says that it is larger than what may be unpacked is not unpacked, and one that lies is cut.
func TestBomb(t *testing.T) {
	a := &archives{file: foundtest.File("a.jar", nil), left: 10}
	inner := archive(t, map[string]string{manifestPath: strings.Repeat("a", 1000)})
	data := archive(t, map[string]string{"x.jar": inner})
	if err := a.read(strings.NewReader(data), int64(len(data)), "a.jar", 0); err == nil || err != errUnpacked {
		t.Error(err)
	}
}

func FuzzJava(f *testing.F) {
	lib := archive(f, map[string]string{pomPath: pom("g", "a", "1"), manifestPath: "Bundle-SymbolicName: a\n b\n"})
	f.Add([]byte(archive(f, map[string]string{"a-1.jar": lib, "b.war": lib})))
	foundtest.Fuzz(f, "a-1.jar", Java)
}

func FuzzPackageJSON(f *testing.F) {
	f.Add([]byte(`{"name":"@s/a","version":"1","licenses":[[{"type":"MIT"}]]}`))
	foundtest.Fuzz(f, "package.json", PackageJSON)
}

func FuzzPackageLock(f *testing.F) {
	f.Add([]byte(`{"packages":{"node_modules/a":{"version":"1"}},"dependencies":{"a":{"dependencies":{"b":{"version":"1"}}}}}`))
	f.Add([]byte(`{"dependencies":{"a":{"dependencies":{"b":{"version":"1"}}}}}`))
	foundtest.Fuzz(f, "package-lock.json", PackageLock)
}

func FuzzYarnLock(f *testing.F) {
	f.Add([]byte("\"@s/a@npm:@t/b@1\", c:\n  version \"1\"\n  resolution: \"@s/a@workspace:.\"\n"))
	foundtest.Fuzz(f, "yarn.lock", YarnLock)
}

func FuzzPython(f *testing.F) {
	f.Add([]byte("Name: a\nVersion: 1\nLicense: x\n y\n\n"))
	foundtest.Fuzz(f, "METADATA", Python)
}
