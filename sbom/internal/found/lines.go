package found

import (
	"bufio"
	"io"
	"iter"
)

// Lines yields the lines of r without their ends. Of a line that is longer than MaxLine it yields the beginning. A line is valid until the
// next one. Whatever ends the lines but the end of r is a *ReadError, yielded last, or a *TooLargeError after MaxText bytes.
func Lines(r io.Reader) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		limited := &io.LimitedReader{R: r, N: MaxText}
		b := bufio.NewReaderSize(limited, 64<<10)
		var line []byte
		for {
			part, more, err := b.ReadLine()
			if err == io.EOF {
				if limited.N <= 0 {
					yield("", &TooLargeError{MaxText})
				}
				return
			}
			if err != nil {
				yield("", &ReadError{err})
				return
			}
			line = append(line, part[:min(len(part), MaxLine-len(line))]...)
			if more {
				continue
			}
			if !yield(string(line), nil) {
				return
			}
			line = line[:0]
		}
	}
}
