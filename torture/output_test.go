package torture

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestOutputFlood has steps print much, in lines without end, and in what a terminal would obey. kiln's memory stays small,
// what it writes moves no terminal, and the end of the log of a step that fails is there.
func TestOutputFlood(t *testing.T) {
	much, line := 40, 32 // MiB
	if rounds(t, 0) > 0 {
		much, line = 10<<10, 1<<10
	}
	run := func(t *testing.T, script string, args ...string) (log string, failed bool) {
		p := newProject(t, filepath.Join(t.TempDir(), "root"), map[string]string{"Dockerfile": "FROM base\nRUN <<EOF\n" + script + "\nEOF\n"})
		cmd := p.kiln(args...)
		_, log, err := runBounded(t, cmd)
		p.clean()
		return log, err != nil
	}
	t.Run("much", func(t *testing.T) {
		log, failed := run(t, fmt.Sprintf("echo cc: no such file >&2; yes 0123456789abcdef | head -c %dm; exit 3", much))
		if !failed || strings.Count(log, "\n") < much<<20/17 {
			t.Errorf("failed %v, %d lines", failed, strings.Count(log, "\n"))
		}
		end := log[strings.LastIndex(log, "\nkiln: "):]
		if !strings.Contains(end, "cc: no such file\n...\n0123456789abcdef\n") || len(end) > 4<<10 {
			t.Errorf("the error is\n%s", end[:min(len(end), 4<<10)])
		}
	})
	t.Run("quiet", func(t *testing.T) {
		if log, failed := run(t, fmt.Sprintf("yes 0123456789abcdef | head -c %dm", much), "--progress=none"); failed || log != "" {
			t.Errorf("failed %v, %d bytes", failed, len(log))
		}
	})
	t.Run("a line", func(t *testing.T) {
		log, failed := run(t, fmt.Sprintf("head -c %dm /dev/zero | tr '\\0' x", line))
		if failed || strings.Count(log, "x") < line<<20 {
			t.Errorf("failed %v, %d bytes", failed, len(log))
		}
	})
	t.Run("bytes", func(t *testing.T) {
		log, failed := run(t, "head -c 1m /dev/urandom; exit 1")
		if !failed {
			t.Error("it has not failed")
		}
		for i, r := range log {
			if r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 {
				t.Fatalf("the log has the control character %U: %q", r, log[max(0, i-20):min(len(log), i+20)])
			}
		}
	})
	t.Run("escape sequences", func(t *testing.T) {
		log, failed := run(t, `printf '\033]0;title\007\033[2J\033[31mred\033[0m\033]8;;http://x\033\\link\033[6n\033P$q\033\\ \033c\2332J a\rb\bc\n'; exit 1`)
		if !failed || !strings.Contains(log, "red") || !strings.Contains(log, "link") {
			t.Errorf("failed %v\n%s", failed, log)
		}
		for _, c := range []byte(log) {
			if c == 0x1b || c == 7 || c == 8 || c == 0x0d || c == 0x9b && !bytes.Contains([]byte(log), []byte("\u009b")) {
				t.Errorf("%q is in the log:\n%q", c, log)
			}
		}
	})
	t.Run("the log is whole", func(t *testing.T) {
		p := newProject(t, filepath.Join(t.TempDir(), "root"), map[string]string{"Dockerfile": "FROM base\nRUN yes 0123456789abcdef | head -c 70m\n"})
		if _, log, err := runBounded(t, p.kiln("--progress=none")); err != nil {
			t.Fatalf("%v\n%s", err, log)
		}
		logs, err := filepath.Glob(filepath.Join(p.root, "records", "*", "*.log"))
		if err != nil || len(logs) != 1 {
			t.Fatalf("%v, %v", logs, err)
		}
		info, err := os.Stat(logs[0])
		if err != nil || info.Size() != 70<<20 {
			t.Errorf("%v, %v", info, err)
		}
	})
}
