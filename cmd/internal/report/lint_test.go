package report

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/internal/ctxtest"
)

// TestWarningsEnd shows that printing warnings ends with the context.
func TestWarningsEnd(t *testing.T) {
	var out bytes.Buffer
	err := printWarnings(ctxtest.EndAfter(3), &out, &build.Result{Warnings: make([]build.Warning, 10)})
	if got := strings.Count(out.String(), "WARNING"); !errors.Is(err, ctxtest.ErrEnded) || got != 2 {
		t.Errorf("%d warnings, %v", got, err)
	}
}
