// Package binaries reads what compilers write into programs of what they were made of: the Go command, and cargo auditable of Rust.
package binaries

import (
	"bytes"
	"compress/zlib"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/sbom/internal/found"
)

// maxProgram bounds a program in bytes, and maxAudit what cargo auditable says, decompressed.
const (
	maxProgram = 2 << 30
	maxAudit   = 8 << 20
)

// auditSection is the name of the section that cargo auditable writes (cargo-auditable, PARSING.md).
const auditSection = ".dep-v0"

// IsELF reports whether a file that begins with b is a program or library of Linux.
func IsELF(b []byte) bool { return bytes.HasPrefix(b, []byte(elf.ELFMAG)) }

// Read returns the modules or crates that a program was made of; none for one that does not say it.
func Read(f *found.File) ([]found.Package, error) {
	r, size, free, err := f.Spool(f, maxProgram)
	if err != nil {
		return nil, err
	}
	defer free()
	r = io.NewSectionReader(r, 0, size)
	var all found.Packages
	if info, err := buildinfo.Read(r); err == nil {
		err = modules(&all, info)
		return all.All, err
	}
	program, err := elf.NewFile(r)
	if err != nil {
		return nil, nil // it only begins as one
	}
	if section := program.Section(auditSection); section != nil && section.Type != elf.SHT_NOBITS {
		err = crates(&all, section.Open())
	}
	return all.All, err
}

// modules adds the modules of a program of Go, and the standard library.
func modules(all *found.Packages, info *buildinfo.BuildInfo) error {
	if err := all.Add(found.Package{Type: "golang", Name: "stdlib", Version: strings.TrimPrefix(info.GoVersion, "go")}); err != nil {
		return err
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	add := func(name, version string) error {
		p := found.Package{Type: "golang", Namespace: path.Dir(name), Name: path.Base(name), Version: version}
		if name == "" {
			return nil
		}
		if p.Namespace == "." {
			p.Namespace = ""
		}
		return all.Add(p)
	}
	version := info.Main.Version
	if version == "(devel)" {
		version = pseudoVersion(settings["vcs.revision"], settings["vcs.time"])
	}
	if err := add(info.Main.Path, version); err != nil {
		return err
	}
	for _, m := range info.Deps {
		if m == nil {
			continue
		}
		if m.Replace != nil {
			m = m.Replace
		}
		if err := add(m.Path, m.Version); err != nil {
			return err
		}
	}
	return nil
}

// pseudoVersion returns the version of a commit, as later versions of the Go command write it where there is no tag; "" if it is not known.
func pseudoVersion(revision, when string) string {
	t, err := time.Parse(time.RFC3339, when)
	if err != nil || len(revision) < 12 {
		return ""
	}
	return "v0.0.0-" + t.UTC().Format("20060102150405") + "-" + revision[:12]
}

// audit is what cargo auditable writes.
type audit struct {
	Packages []struct {
		Name    string `json:"name"`
		Version string `json:"version"`
		// Kind is "runtime", which may be left out, or "build" for what only helped to build the program.
		Kind string `json:"kind"`
	} `json:"packages"`
}

// crates adds those of the section of cargo auditable.
func crates(all *found.Packages, section io.Reader) error {
	z, err := zlib.NewReader(section)
	if err != nil {
		return fmt.Errorf("its list of crates is damaged: %w", err)
	}
	data, err := io.ReadAll(io.LimitReader(z, maxAudit+1))
	if err != nil {
		return fmt.Errorf("its list of crates is damaged: %w", err)
	}
	if len(data) > maxAudit {
		return fmt.Errorf("its list of crates is longer than %d MiB", maxAudit>>20)
	}
	var a audit
	if err := json.Unmarshal(data, &a); err != nil {
		return fmt.Errorf("its list of crates is damaged: %w", err)
	}
	for _, p := range a.Packages {
		if p.Kind != "" && p.Kind != "runtime" {
			continue
		}
		if err := all.Add(found.Package{Type: "cargo", Name: p.Name, Version: p.Version}); err != nil {
			return err
		}
	}
	return nil
}
