package termtext

import (
	"bytes"
	"io"

	"golang.org/x/term"
)

// IsTerminal reports whether v, an *os.File or a wrapper of one, is a terminal.
func IsTerminal(v any) bool {
	f, ok := v.(interface{ Fd() uintptr })
	return ok && term.IsTerminal(int(f.Fd()))
}

// Writer returns w itself unless it is a terminal; then it returns a writer that shows lines as [Append] makes them, without colours. A
// file or a pipe gets every byte unchanged.
func Writer(w io.Writer) io.Writer {
	if !IsTerminal(w) {
		return w
	}
	return lines{w}
}

// lines makes the lines of each write safe on a terminal. A character or sequence that is split between two writes is shown as its parts,
// so it has no effect either.
type lines struct{ w io.Writer }

func (l lines) Write(p []byte) (int, error) {
	out := make([]byte, 0, len(p))
	for line := range bytes.Lines(p) {
		text, ended := bytes.CutSuffix(line, []byte("\n"))
		out = Append(out, text, false)
		if ended {
			out = append(out, '\n')
		}
	}
	if _, err := l.w.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// JSONWriter returns a writer to w that escapes controls as [JSON] does. Each write is one or more whole JSON values, as those of
// encoding/json's Encoder are.
func JSONWriter(w io.Writer) io.Writer { return values{w} }

type values struct{ w io.Writer }

func (v values) Write(p []byte) (int, error) {
	if _, err := v.w.Write(JSON(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}
