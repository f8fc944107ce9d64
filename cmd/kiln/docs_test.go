package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/cmd/internal/dialect"
)

// TestDocuments shows that kiln understands the commands in README and docs: those of indented blocks, and of fenced ones.
func TestDocuments(t *testing.T) {
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	inImage := regexp.MustCompile(`(docker|podman) run .*registry\.example/kiln:v1 `)
	checked := 0
	for _, file := range append(files, "../../README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		fenced := false
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "```") {
				fenced = !fenced
			}
			if !fenced && !strings.HasPrefix(line, "    ") {
				continue
			}
			line = strings.NewReplacer(`"`, "", " <<< ", " < ", " >> ", " > ").Replace(strings.TrimPrefix(strings.TrimSpace(line), "- "))
			line = inImage.ReplaceAllString(line, "kiln ")
			if strings.Contains(line, "kiln ") {
				checkExample(t, line)
				checked++
			}
		}
	}
	if checked < 60 {
		t.Errorf("only %d lines were checked", checked)
	}
}

// kanikoFlags are those of kaniko's executor 1.24, with the deprecated ones.
const kanikoFlags = `bucket build-arg cache cache-copy-layers cache-dir cache-repo cache-run-layers cache-ttl cleanup compressed-caching compression
compression-level context context-sub-path custom-platform customPlatform destination digest-file dockerfile force force-build-metadata git
ignore-path ignore-var-run image-download-retry image-fs-extract-retry image-name-tag-with-digest-file image-name-with-digest-file insecure
insecure-pull insecure-registry kaniko-dir label log-format log-timestamp no-push no-push-cache oci-layout-path
push-ignore-immutable-tag-errors push-retry registry-certificate registry-client-cert registry-map registry-mirror reproducible
single-snapshot skip-default-registry-fallback skip-push-permission-check skip-tls-verify skip-tls-verify-pull skip-tls-verify-registry
skip-unused-stages snapshot-mode snapshotMode tar-path tarPath target use-new-run verbosity whitelist-var-run`

// TestKanikoFlags shows that docs/ci.md has a row for each flag of kaniko, with flags that kiln build has, and that kiln tells what to use
// in place of each one that it has not.
func TestKanikoFlags(t *testing.T) {
	text, err := os.ReadFile("../../docs/ci.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "| kaniko | kiln build |")
	build, _, err := newRoot("kiln", "build").Find([]string{"build"})
	if err != nil {
		t.Fatal(err)
	}
	quoted, flag := regexp.MustCompile("`--([A-Za-z-]+)`"), regexp.MustCompile(`--([a-z-]+)`)
	var found []string
	for line := range strings.Lines(table) {
		cells := strings.Split(line, " | ")
		if len(cells) < 2 {
			continue
		}
		same := cells[1] == "the same"
		for _, m := range quoted.FindAllStringSubmatch(cells[0], -1) {
			found = append(found, m[1])
			if has := build.Flag(m[1]) != nil; has != same {
				t.Errorf("kiln build has a flag --%s: %v, and docs/ci.md says: %s", m[1], has, cells[1])
			}
			if !same && dialect.Flag("build", "--"+m[1]) == "" {
				t.Errorf("kiln build says nothing about --%s", m[1])
			}
		}
		for _, m := range flag.FindAllStringSubmatch(cells[1], -1) {
			if build.Flag(m[1]) == nil {
				t.Errorf("docs/ci.md names --%s in place of %s, and kiln build has none", m[1], cells[0])
			}
		}
	}
	slices.Sort(found)
	if want := slices.Sorted(strings.FieldsSeq(kanikoFlags)); !slices.Equal(found, want) {
		t.Errorf("docs/ci.md has the flags\n%q, want\n%q", found, want)
	}
}
