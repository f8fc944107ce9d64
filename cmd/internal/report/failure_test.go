package report

import (
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/frontend/quote"
	"github.com/kilnbuild/kiln/llb"
)

func TestExcerpt(t *testing.T) {
	text := quote.New([]byte("FROM busybox\n\nRUN false\n"))
	want := `Dockerfile:3
--------------------
   1 |     FROM busybox
   2 |
   3 | >>> RUN false
--------------------
`
	if got := string(excerpt(llb.Location{File: "Dockerfile", StartLine: 3, EndLine: 3}, text)); got != want {
		t.Errorf("got:\n%s", got)
	}
	for _, l := range []llb.Location{{File: "Dockerfile", StartLine: 9, EndLine: 9}, {File: "Dockerfile", StartLine: 9}} {
		if got := string(excerpt(l, text)); got != "Dockerfile:9\n" {
			t.Errorf("got:\n%s", got)
		}
	}
	long := quote.New([]byte(strings.Repeat("x \\\n\x1b[2J", 100)))
	got := string(excerpt(llb.Location{File: "D", StartLine: 3, EndLine: 90}, long))
	if n := strings.Count(got, "\n"); n != 3+2+excerptMost+1 || strings.Contains(got, "\x1b") || !strings.Contains(got, "…") {
		t.Errorf("%d lines:\n%s", n, got)
	}
}
