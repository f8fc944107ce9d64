package report

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/store"
)

const itemFormat = "%-12s %-14s %-8s %-16s %s\n"

var itemHeadings = fmt.Sprintf(itemFormat, "KIND", "ID", "SIZE", "LAST USED", "MADE BY")

// Items returns a function that prints a line for an item of the root directory, and headings before the first.
func Items(to io.Writer, now time.Time) func(part.Item) error {
	text := itemHeadings
	return func(it part.Item) error {
		_, err := io.WriteString(to, text+itemLine(it, now))
		text = ""
		return err
	}
}

func itemLine(it part.Item, now time.Time) string {
	id := strings.TrimPrefix(it.ID, "sha256:")
	by := shorten(strings.Join(strings.Fields(it.Description), " "))
	line := fmt.Sprintf(itemFormat, it.Kind, id[:min(12, len(id))], Size(it.Size), units.HumanDuration(now.Sub(it.Used))+" ago", by)
	return strings.TrimRight(termtext.Line(line), " ") + "\n"
}

// Usage prints how much space each kind of item takes in the root directory, and before that a line for each item if verbose is set.
func Usage(to io.Writer, u *store.Usage, verbose bool, now time.Time) error {
	var out bytes.Buffer
	if verbose {
		slices.SortStableFunc(u.Items, func(x, y part.Item) int { return y.Used.Compare(x.Used) })
		out.WriteString(itemHeadings)
		for _, it := range u.Items {
			out.WriteString(itemLine(it, now))
		}
		out.WriteByte('\n')
	}
	type sum struct {
		kind              part.Kind
		count             int
		size, reclaimable int64
	}
	var sums []*sum
	for _, it := range u.Items {
		i := slices.IndexFunc(sums, func(s *sum) bool { return s.kind == it.Kind })
		if i < 0 {
			i = len(sums)
			sums = append(sums, &sum{kind: it.Kind})
		}
		sums[i].count++
		sums[i].size += it.Size
		if !it.Shared {
			sums[i].reclaimable += it.Size
		}
	}
	slices.SortFunc(sums, func(x, y *sum) int { return strings.Compare(string(x.kind), string(y.kind)) })
	table := tabwriter.NewWriter(&out, 10, 1, 3, ' ', 0)
	fmt.Fprintln(table, "TYPE\tCOUNT\tSIZE\tRECLAIMABLE")
	fmt.Fprintf(table, "named image\t%d\t%s\t%s\n", u.Images, Size(u.ImagesSize), Size(0))
	var reclaimable int64
	for _, s := range sums {
		reclaimable += s.reclaimable
		fmt.Fprintf(table, "%s\t%d\t%s\t%s\n", s.kind, s.count, Size(s.size), Size(s.reclaimable))
	}
	fmt.Fprintf(table, "total\t\t%s\t%s\n", Size(u.Total), Size(reclaimable))
	_ = table.Flush() // into memory
	_, err := to.Write(out.Bytes())
	return err
}
