package main

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestManualPages shows that every command that is listed has a page, and that the programs that show pages find nothing wrong with them.
func TestManualPages(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command("kiln", "man", dir)
	cmd.Env = append(cmd.Environ(), "SOURCE_DATE_EPOCH=1700000000")
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%v: %s", err, out)
	}
	pages, err := filepath.Glob(filepath.Join(dir, "man?", "*"))
	if err != nil || len(pages) == 0 {
		t.Fatalf("%d pages: %v", len(pages), err)
	}
	for _, c := range newRoot().Commands() {
		if page := filepath.Join(dir, "man1", "kiln-"+c.Name()+".1"); c.IsAvailableCommand() && !slices.Contains(pages, page) {
			t.Errorf("there is no page for %s", c.CommandPath())
		}
	}
	for _, page := range pages {
		out, err := exec.Command("mandoc", "-T", "lint", "-W", "style", page).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("mandoc: %v: %s (Debian's package mandoc)", err, out)
		}
		cmd := exec.Command("man", "--warnings", "--local-file", "--encoding=UTF-8", page)
		cmd.Env = append(cmd.Environ(), "LC_ALL=C.UTF-8", "MANWIDTH=80", "PAGER=cat")
		var stderr strings.Builder
		cmd.Stderr = &stderr
		text, err := cmd.Output()
		if err != nil || stderr.Len() > 0 {
			t.Errorf("man: %v: %s (Debian's packages man-db and groff-base)", err, stderr.String())
		}
		if !strings.Contains(string(text), "SEE ALSO") {
			t.Errorf("%s: it has no end:\n%s", page, text)
		}
	}
}
