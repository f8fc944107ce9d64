package similar

import "testing"

func TestName(t *testing.T) {
	names := []string{"Dockerfile", "README.md", "package.json", "a"}
	for name, want := range map[string]string{
		"dockerfile": "Dockerfile", "Dokerfile": "Dockerfile", "readme.md": "README.md", "Readme.dm": "README.md", "pakage.json": "package.json",
		"main.go": "", "": "",
	} {
		if got := Name(name, names); got != want && !(name == "" && got == "a") {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}
