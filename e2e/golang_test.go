//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"testing"
)

// A program of two stages, with a module of the machine's proxy: the image holds the binary alone.
func TestGo(t *testing.T) {
	t.Setenv("E2E_GOPROXY", command(t, "go", "env", "GOPROXY"))
	t.Setenv("E2E_GOSUMDB", command(t, "go", "env", "GOSUMDB"))
	p := open(t, "golang", "-t", "go-app", "--secret", "id=proxy,env=E2E_GOPROXY", "--secret", "id=sumdb,env=E2E_GOSUMDB")
	first := p.build()
	first.wantRan("RUN apt-get update", "WORKDIR", "COPY go.mod", "RUN --mount=type=secret", "COPY *.go", "RUN --mount=type=cache", "COPY --from=build")

	hello := func() string {
		dir := p.files()
		names, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(names) != 1 || names[0].Name() != "hello" {
			t.Errorf("the image has %v, and should have hello alone", names)
		}
		return command(t, filepath.Join(dir, "hello"))
	}
	if got := hello(); got != "I can eat glass and it doesn't hurt me." {
		t.Errorf("the program printed %q", got)
	}
	p.build().wantAllCached(first)

	p.edit("main.go", "// the end", "// this is the end")
	comment := p.build()
	comment.wantRan("COPY *.go", "RUN --mount=type=cache") // which makes the program that it made before
	comment.wantSame(first)

	p.edit("main.go", "quote.Glass()", "quote.Go()")
	edited := p.build()
	edited.wantRan("COPY *.go", "RUN --mount=type=cache", "COPY --from=build")
	edited.wantOther(first)
	if got := hello(); got != "Don't communicate by sharing memory, share memory by communicating." {
		t.Errorf("the program printed %q", got)
	}

	p.edit("Dockerfile", "# Without a build id", "# A comment: without a build id")
	p.build().wantAllCached(edited)
}
