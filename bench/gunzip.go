package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kilnbuild/kiln/internal/gunzip"
	"github.com/klauspost/compress/gzip"
)

// gunzipPairs is how often each file is decompressed by one reader and then by the other.
const gunzipPairs = 7

// compareGunzip decompresses gzip files by package gunzip and by klauspost/compress, in turn, and prints the rates in MB/s of output, and
// how many times as fast the first one was. Both check the sums, on one processor; the files are in memory.
func compareGunzip(w io.Writer, files []string) error {
	table := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprintln(table, "| file\t| MB\t| uncompressed\t| klauspost MB/s\t| kiln MB/s\t| ratio\t| from\t| to\t|")
	fmt.Fprintln(table, "|---\t|--:\t|--:\t|--:\t|--:\t|--:\t|--:\t|--:\t|")
	buf := make([]byte, 512<<10)
	measure := func(data []byte, open func(io.Reader) (io.Reader, error)) (int64, time.Duration, error) {
		start := time.Now()
		z, err := open(bytes.NewReader(data))
		if err != nil {
			return 0, 0, err
		}
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{z}, buf)
		return n, time.Since(start), err
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		var theirs, ours, ratios []float64
		var size int64
		for range gunzipPairs {
			n, t, err := measure(data, func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) })
			if err != nil {
				return fmt.Errorf("decompress %s by klauspost/compress: %w", name, err)
			}
			m, o, err := measure(data, func(r io.Reader) (io.Reader, error) { return gunzip.NewReader(r) })
			if err != nil || m != n {
				return fmt.Errorf("decompress %s: %d bytes of %d: %w", name, m, n, err)
			}
			size = n
			theirs, ours = append(theirs, float64(n)/1e6/t.Seconds()), append(ours, float64(n)/1e6/o.Seconds())
			ratios = append(ratios, t.Seconds()/o.Seconds())
		}
		for _, list := range [][]float64{theirs, ours, ratios} {
			slices.Sort(list)
		}
		const median = gunzipPairs / 2
		fmt.Fprintf(table, "| %s\t| %.0f\t| %.0f\t| %.0f\t| %.0f\t| %.2f\t| %.2f\t| %.2f\t|\n", strings.TrimSuffix(filepath.Base(name), ".gz"),
			float64(len(data))/1e6, float64(size)/1e6, theirs[median], ours[median], ratios[median], ratios[0], ratios[gunzipPairs-1])
	}
	return table.Flush()
}
