package torture

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// TestOutputFlood has steps print much, in lines without end, and in what a terminal would obey. kiln's memory stays small,
// what it writes moves no terminal, and the end of the log of a step that fails is there.
func TestOutputFlood(t *testing.T) {
	much, line := 40, 32 // MiB
	if rounds(t, 0) > 0 {
		much, line = 10<<10, 1<<10
	}
	// A step's output is counted on its way to nowhere: the long form's does not fit into memory.
	run := func(t *testing.T, script string, args ...string) (out *output, failed bool) {
		p := newProject(t, filepath.Join(t.TempDir(), "root"), map[string]string{"Dockerfile": "FROM base\nRUN <<EOF\n" + script + "\nEOF\n"})
		out = &output{}
		cmd := p.kiln(args...)
		cmd.Stderr = out
		failed = runWithoutLog(t, cmd) != nil
		p.clean()
		return out, failed
	}
	t.Run("much", func(t *testing.T) {
		out, failed := run(t, fmt.Sprintf("yes 0123456789abcdef | head -c %dm; echo cc: no such file >&2; exit 3", much))
		if !failed || out.lines < much<<20/17 {
			t.Errorf("failed %v, %d lines", failed, out.lines)
		}
		_, end, _ := strings.Cut(string(out.last), "\nkiln: ")
		if !strings.Contains(end, "cc: no such file\n") || len(end) > 4<<10 {
			t.Errorf("the log ends with\n%s", out.last)
		}
	})
	t.Run("quiet", func(t *testing.T) {
		if out, failed := run(t, fmt.Sprintf("yes 0123456789abcdef | head -c %dm", much), "--progress=none"); failed || out.bytes != 0 {
			t.Errorf("failed %v, %d bytes", failed, out.bytes)
		}
	})
	t.Run("a line", func(t *testing.T) {
		out, failed := run(t, fmt.Sprintf("head -c %dm /dev/zero | tr '\\0' x", line))
		if failed || out.exes < line<<20 {
			t.Errorf("failed %v, %d bytes of %d", failed, out.exes, line<<20)
		}
	})
	t.Run("bytes", func(t *testing.T) {
		out, failed := run(t, "head -c 1m /dev/urandom; exit 1")
		if !failed {
			t.Error("it has not failed")
		}
		log := string(out.first)
		for i, r := range log {
			if control(r) {
				t.Fatalf("the log has the control character %U: %q", r, log[max(0, i-20):min(len(log), i+20)])
			}
		}
	})
	t.Run("escape sequences", func(t *testing.T) {
		out, failed := run(t, `printf '\033]0;title\007\033[2J\033[31mred\033[0m\033]8;;http://x\033\\link\033[6n\033P$q\033\\ \033c\2332J \302\2332J \342\200\256 a\rb\bc\n'; exit 1`)
		log := string(out.first)
		if !failed || !strings.Contains(log, "red") || !strings.Contains(log, "link") {
			t.Errorf("failed %v\n%s", failed, log)
		}
		if i := strings.IndexFunc(log, control); i >= 0 || !utf8.ValidString(log) {
			t.Errorf("a terminal obeys the log from %d on:\n%q", i, log)
		}
	})
	t.Run("the log is whole", func(t *testing.T) {
		p := newProject(t, filepath.Join(t.TempDir(), "root"), map[string]string{"Dockerfile": fmt.Sprintf("FROM base\nRUN yes 0123456789abcdef | head -c %dm\n", much)})
		if err := runWithoutLog(t, p.kiln("--progress=none")); err != nil {
			t.Fatal(err)
		}
		logs, err := filepath.Glob(filepath.Join(p.root, "records", "*", "*.log"))
		if err != nil || len(logs) != 1 {
			t.Fatalf("%v, %v", logs, err)
		}
		info, err := os.Stat(logs[0])
		if err != nil || info.Size() != int64(much)<<20 {
			t.Errorf("%v, %v", info, err)
		}
	})
}

// output counts what is written to it, and keeps its beginning and its end.
type output struct {
	bytes, lines, exes int
	first              []byte // at most 8 MiB
	last               []byte // at most 64 KiB
}

func (o *output) Write(p []byte) (int, error) {
	o.bytes += len(p)
	o.lines += bytes.Count(p, []byte("\n"))
	o.exes += bytes.Count(p, []byte("x"))
	o.first = append(o.first, p[:min(len(p), 8<<20-len(o.first))]...)
	o.last = append(o.last, p...)
	o.last = o.last[max(0, len(o.last)-64<<10):]
	return len(p), nil
}
