package frontend

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/ctxtest"
)

// TestEnds shows that lowering ends with its context, wherever it is in a Dockerfile of many instructions.
func TestEnds(t *testing.T) {
	const n = 1000
	for _, line := range []string{"ENV a%d=b", "ARG a%d=b", "LABEL a%d=b", "RUN make %d", "COPY a%d /etc/", "WORKDIR /%d", "ONBUILD RUN %d", "FROM scratch AS s%d", "EXPOSE %d"} {
		var text strings.Builder
		text.WriteString("FROM base\n")
		for i := range n {
			fmt.Fprintf(&text, line+"\n", i+1)
		}
		// What is done for each instruction: its sources, lowering, advice. For a stage: it is added, and resolved.
		for _, at := range []int{1, 2, n / 2, n, 3 * n / 2} {
			ctx := ctxtest.EndAfter(at)
			_, err := Build(ctx, []byte(text.String()), Options{Filename: "Dockerfile", BuildPlatform: amd64, AllStages: true}, fakeImages{})
			if !errors.Is(err, ctxtest.ErrEnded) {
				t.Errorf("%s: Build, whose context ended when it was looked at %d times: %v", line, at, err)
			}
			ctx = ctxtest.EndAfter(at)
			_, err = DescribeTarget(ctx, []byte(text.String()), Options{Filename: "Dockerfile", BuildPlatform: amd64}, fakeImages{})
			if !errors.Is(err, ctxtest.ErrEnded) && !strings.HasPrefix(line, "FROM") {
				t.Errorf("%s: DescribeTarget, whose context ended when it was looked at %d times: %v", line, at, err)
			}
		}
		if _, err := ListTargets(ctxtest.EndAfter(1), []byte(text.String()), Options{}); !errors.Is(err, ctxtest.ErrEnded) {
			t.Errorf("%s: ListTargets: %v", line, err)
		}
	}
}
