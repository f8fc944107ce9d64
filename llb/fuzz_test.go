package llb

import "testing"

// FuzzParsePlatform: a platform's own text is read as the same platform, and what is normal stays so.
func FuzzParsePlatform(f *testing.F) {
	for _, s := range []string{"linux", "arm64", "linux/arm/v7", "linux/aarch64/v8", "windows/amd64", "windows(10.0.20348)/amd64", "windows(/amd64", "windows(1)", "(1)/amd64", "amd64(1)", "x86_64", "linux/", "/", "a/b/c/d", " Linux/AMD64 ", "armhf", "linux/arm", "darwin/arm64/v8"} {
		f.Add(s)
	}
	host := Platform{OS: "linux", Architecture: "amd64"}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePlatform(s, host)
		if err != nil {
			return
		}
		if p.OS == "" || p.Architecture == "" || p.Normalize() != p {
			t.Errorf("%q is read as %+v", s, p)
		}
		if again, err := ParsePlatform(p.String(), host); err != nil || again != p {
			t.Errorf("%q is read as %+v, and %q as %+v: %v", s, p, p.String(), again, err)
		}
	})
}
