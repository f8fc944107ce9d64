//go:build e2e

package e2e

import (
	"os/exec"
	"strings"
	"testing"
)

// An application with a package of npm, whose packages are installed before its sources are copied.
func TestNode(t *testing.T) {
	// A machine without npm, or one that has no opinion, leaves the choice to the npm in the image.
	if out, err := exec.Command("npm", "config", "get", "registry").Output(); err == nil {
		t.Setenv("E2E_NPM_REGISTRY", strings.TrimSpace(string(out)))
	}
	p := open(t, "node", "-t", "node-app", "--secret", "id=npm,env=E2E_NPM_REGISTRY")
	first := p.build()
	first.wantRan("RUN apt-get update", "WORKDIR", "COPY package.json", "RUN --mount=type=secret", "COPY src", "RUN node", "COPY --from=app", "RUN wc")
	p.build().wantAllCached(first)

	p.edit("src/main.js", "'hello'", "'goodbye'")
	edited := p.build()
	edited.wantRan("COPY src", "RUN node", "COPY --from=app", "RUN wc")
	edited.wantOther(first)

	p.edit("src/main.js", "a remark", "another remark")
	remark := p.build()
	remark.wantRan("COPY src", "RUN node") // which prints what it did before
	remark.wantSame(edited)

	p.edit("Dockerfile", "# What reads", "# That which reads")
	p.build().wantAllCached(edited)

	// The sources are copied to where they were copied before, over whatever is there now.
	p.edit("package.json", "1.0.0", "1.0.1")
	p.build().wantRan("COPY package.json", "RUN --mount=type=secret", "RUN node")
}
