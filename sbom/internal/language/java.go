package language

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"strings"
	"sync"

	"github.com/kilnbuild/kiln/sbom/internal/found"
)

// Limits of archives of Java: their size in bytes, that of the list of their members, of all that is decompressed of one with those in it,
// and how deep one can be in another.
const (
	maxArchive   = 1 << 30
	maxDirectory = 32 << 20
	maxUnpacked  = 2 << 30
	maxNesting   = 4
	maxMetadata  = 1 << 20 // of a manifest or pom.properties
)

// IsArchive reports whether a file is an archive of Java by its name.
func IsArchive(name string) bool {
	switch strings.ToLower(path.Ext(name)) {
	case ".jar", ".war", ".ear", ".par", ".sar", ".nar", ".jpi", ".hpi":
		return true
	}
	return false
}

// archives reads an archive and those in it.
type archives struct {
	file *found.File
	all  found.Packages
	left int64 // bytes that may still be decompressed
}

// Java reads the manifests of an archive of Java and of those in it, and what Maven has written into them.
func Java(f *found.File) ([]found.Package, error) {
	r, size, free, err := f.Spool(f, maxArchive)
	if err != nil {
		return nil, err
	}
	defer free()
	a := &archives{file: f, left: maxUnpacked}
	err = a.read(r, size, f.Path, 0)
	return a.all.All, err
}

// budget is a ReaderAt that gives no more than so many bytes.
type budget struct {
	io.ReaderAt
	left int64
}

var errDirectory = fmt.Errorf("the list of its members is longer than %d MiB", maxDirectory>>20)

func (b *budget) ReadAt(p []byte, off int64) (int, error) {
	if b.left -= int64(len(p)); b.left < 0 {
		return 0, errDirectory
	}
	return b.ReaderAt.ReadAt(p, off)
}

var errUnpacked = fmt.Errorf("it has more than %d GiB of archives in it", maxUnpacked>>30)

// read reads an archive called name.
func (a *archives) read(r io.ReaderAt, size int64, name string, depth int) error {
	b := &budget{r, maxDirectory}
	z, err := zip.NewReader(b, size)
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		if errors.Is(err, errDirectory) {
			return errDirectory
		}
		return fmt.Errorf("%s: %w", path.Base(found.Field(name)), err)
	}
	b.left = 1 << 62 // what is read of members is counted by itself
	main := map[string]string{}
	var poms []map[string]string
	var bad error
	for _, m := range z.File {
		switch {
		case m.Name == "META-INF/MANIFEST.MF":
			data, err := a.member(m, maxMetadata)
			if err != nil {
				bad = err
				continue
			}
			main = manifest(data)
		case strings.HasPrefix(m.Name, "META-INF/maven/") && path.Base(m.Name) == "pom.properties":
			data, err := a.member(m, maxMetadata)
			if err != nil {
				bad = err
				continue
			}
			poms = append(poms, properties(data))
		case IsArchive(m.Name) && !m.FileInfo().IsDir():
			if depth == maxNesting {
				bad = fmt.Errorf("archives in it are nested deeper than %d", maxNesting)
				continue
			}
			if err := a.nested(m, depth+1); err != nil {
				if errors.Is(err, errUnpacked) || errors.Is(err, found.ErrTooMany) {
					return err
				}
				var read *found.ReadError
				if errors.As(err, &read) {
					return err
				}
				bad = err
			}
		}
	}
	if err := a.describe(name, main, poms); err != nil {
		return err
	}
	return bad
}

// member returns a member of at most limit bytes.
func (a *archives) member(m *zip.File, limit int64) ([]byte, error) {
	r, err := m.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, limit))
	a.left -= int64(len(data))
	if a.left < 0 {
		return nil, errUnpacked
	}
	return data, err
}

// nested reads an archive that is a member of another.
func (a *archives) nested(m *zip.File, depth int) error {
	if m.UncompressedSize64 > uint64(a.left) {
		return errUnpacked
	}
	member, err := m.Open()
	if err != nil {
		return err
	}
	defer member.Close()
	r, size, free, err := a.file.Spool(member, min(maxArchive, a.left))
	if err != nil {
		return err
	}
	defer free()
	a.left -= size
	return a.read(r, size, m.Name, depth)
}

// describe adds the packages of an archive: each that Maven describes, and the archive itself if that is none of them.
func (a *archives) describe(name string, main map[string]string, poms []map[string]string) error {
	base := strings.TrimSuffix(path.Base(name), path.Ext(name))
	artifact, version := base, ""
	if m := versioned().FindStringSubmatch(base); m != nil {
		artifact, version = m[1], m[2]
	}
	own := false
	for _, p := range poms {
		if p["artifactId"] == "" || p["version"] == "" {
			continue
		}
		own = own || len(poms) == 1 || p["artifactId"] == artifact || p["artifactId"] == base
		err := a.all.Add(found.Package{Type: "maven", Namespace: p["groupId"], Name: p["artifactId"], Version: p["version"]})
		if err != nil {
			return err
		}
	}
	if own || len(main) == 0 && version == "" {
		return nil
	}
	symbolic, _, _ := strings.Cut(main["Bundle-SymbolicName"], ";")
	p := found.Package{Type: "maven", Name: artifact, Version: version}
	for _, key := range []string{"Implementation-Version", "Specification-Version", "Bundle-Version"} {
		if p.Version == "" {
			p.Version = main[key]
		}
	}
	switch group, last, ok := cutLast(symbolic, "."); {
	case main["Implementation-Vendor-Id"] != "":
		p.Namespace = main["Implementation-Vendor-Id"]
	case ok && last == p.Name:
		p.Namespace = group
	case symbolic != "":
		p.Namespace = symbolic
	default:
		p.Namespace = p.Name
	}
	return a.all.Add(p)
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return "", s, false
	}
	return s[:i], s[i+len(sep):], true
}

// versioned is the name of an archive with a version.
var versioned = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^(.+?)-(\d[\w.+~-]*)$`) })

// manifest returns the attributes of the main section of a manifest. A line that begins with a space goes on with the one before.
func manifest(data []byte) map[string]string {
	all := map[string]string{}
	var last string
	for line := range bytes.Lines(data) {
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		if line[0] == ' ' {
			if last != "" && len(all[last]) < found.MaxField {
				all[last] += string(line[1:])
			}
			continue
		}
		key, value, _ := strings.Cut(string(line), ":")
		last = key
		all[key] = strings.TrimSpace(value)
	}
	return all
}

// properties returns what a file of Java properties without escapes says.
func properties(data []byte) map[string]string {
	all := map[string]string{}
	for line := range bytes.Lines(data) {
		key, value, ok := strings.Cut(strings.TrimSpace(string(line)), "=")
		if ok && !strings.HasPrefix(key, "#") {
			all[strings.TrimSpace(key)] = strings.TrimSpace(value)
		}
	}
	return all
}
