package build

import (
	"context"

	"github.com/kilnbuild/kiln/events"
)

// readingContext reports the reading of files of a context at the vertex of ctx, which looks at them.
func readingContext(ctx context.Context, total int64) (count func(n int)) {
	report, _ := events.From(ctx).Counting("context", events.Reading, total)
	return func(n int) { report(int64(n)) }
}
