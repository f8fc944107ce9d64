// Package spdx writes what was found in an image as a document of SPDX 2.3 in JSON. What is equal is written equally, in one order.
package spdx

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/github/go-spdx/v2/spdxexp"
	"github.com/kilnbuild/kiln/sbom/internal/found"
)

// Source is what a document is made of.
type Source struct {
	// Name is that of the document, and of the image in it.
	Name string
	// Tool wrote the document: "kiln-1.0".
	Tool    string
	Created time.Time
	Release found.Release
	// Packages may repeat: those that have a package URL in common become one.
	Packages []Located
}

// Located is a package with the path of the file that tells of it, without a leading slash.
type Located struct {
	*found.Package
	Path string
}

// The document (spdx.github.io/spdx-spec/v2.3, schema spdx-schema.json).
type document struct {
	SPDXVersion       string         `json:"spdxVersion"`
	DataLicense       string         `json:"dataLicense"`
	SPDXID            string         `json:"SPDXID"`
	Name              string         `json:"name"`
	DocumentNamespace string         `json:"documentNamespace"`
	CreationInfo      creation       `json:"creationInfo"`
	Packages          []pkg          `json:"packages"`
	Licenses          []license      `json:"hasExtractedLicensingInfos,omitempty"`
	Relationships     []relationship `json:"relationships"`
}

type creation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type pkg struct {
	Name             string     `json:"name"`
	SPDXID           string     `json:"SPDXID"`
	VersionInfo      string     `json:"versionInfo,omitempty"`
	Supplier         string     `json:"supplier,omitempty"`
	DownloadLocation string     `json:"downloadLocation"`
	FilesAnalyzed    bool       `json:"filesAnalyzed"`
	SourceInfo       string     `json:"sourceInfo,omitempty"`
	LicenseConcluded string     `json:"licenseConcluded"`
	LicenseDeclared  string     `json:"licenseDeclared"`
	CopyrightText    string     `json:"copyrightText"`
	Purpose          string     `json:"primaryPackagePurpose,omitempty"`
	ExternalRefs     []external `json:"externalRefs,omitempty"`
}

type external struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type license struct {
	ID   string `json:"licenseId"`
	Text string `json:"extractedText"`
}

type relationship struct {
	Element string `json:"spdxElementId"`
	Type    string `json:"relationshipType"`
	Related string `json:"relatedSpdxElement"`
}

const (
	documentID  = "SPDXRef-DOCUMENT"
	imageID     = "SPDXRef-Image"
	releaseID   = "SPDXRef-OperatingSystem"
	noAssertion = "NOASSERTION"
	// namespace begins the namespaces of documents, which end in the digest of what is in them. There is nothing at these addresses.
	namespace = "https://github.com/kilnbuild/kiln/spdx/"
	// maxPaths is how many paths of a package are named.
	maxPaths = 100
)

// Write returns a document.
func Write(s *Source) ([]byte, error) {
	d := &document{
		SPDXVersion: "SPDX-2.3", DataLicense: "CC0-1.0", SPDXID: documentID, Name: s.Name,
		CreationInfo:  creation{s.Created.UTC().Format("2006-01-02T15:04:05Z"), []string{"Tool: " + s.Tool}},
		Relationships: []relationship{{documentID, "DESCRIBES", imageID}},
	}
	d.add(pkg{Name: s.Name, SPDXID: imageID, Purpose: "CONTAINER"})
	if s.Release.ID != "" {
		d.add(pkg{
			Name: s.Release.ID, SPDXID: releaseID, VersionInfo: s.Release.VersionID, Purpose: "OPERATING-SYSTEM", SourceInfo: s.Release.Name,
		})
		d.contain(releaseID)
	}
	licenses := map[string]string{} // by their IDs
	for _, p := range merge(s) {
		declared := noAssertion
		if p.License != "" {
			var other string
			if declared, other = expression(p.License); other != "" {
				licenses[declared] = other
			}
		}
		one := pkg{
			Name: fullName(p.Package), SPDXID: packageID(p.Package, p.url), VersionInfo: version(p.Package), LicenseDeclared: declared,
			SourceInfo:   "found in " + paths(p.paths),
			ExternalRefs: []external{{"PACKAGE-MANAGER", "purl", p.url}},
		}
		if p.Supplier != "" {
			one.Supplier = supplier(p.Package)
		}
		d.add(one)
		d.contain(one.SPDXID)
	}
	for id, text := range licenses {
		d.Licenses = append(d.Licenses, license{id, text})
	}
	slices.SortFunc(d.Licenses, func(a, b license) int { return strings.Compare(a.ID, b.ID) })
	plain, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("encode the SPDX document: %w", err)
	}
	sum := sha256.Sum256(plain)
	d.DocumentNamespace = namespace + hex.EncodeToString(sum[:])
	return json.Marshal(d)
}

func (d *document) add(p pkg) {
	p.DownloadLocation, p.LicenseConcluded, p.CopyrightText = noAssertion, noAssertion, noAssertion
	if p.LicenseDeclared == "" {
		p.LicenseDeclared = noAssertion
	}
	d.Packages = append(d.Packages, p)
}

func (d *document) contain(id string) {
	d.Relationships = append(d.Relationships, relationship{imageID, "CONTAINS", id})
}

// merged is a package with all files that tell of it.
type merged struct {
	*found.Package
	url   string
	paths []string
}

// merge returns the packages by their package URLs, each once.
func merge(s *Source) []*merged {
	byURL := map[string]*merged{}
	var all []*merged
	for _, l := range s.Packages {
		url := packageURL(l.Package, &s.Release)
		m := byURL[url]
		if m == nil {
			m = &merged{Package: l.Package, url: url}
			byURL[url] = m
			all = append(all, m)
		}
		if m.License == "" && l.License != "" {
			m.Package = l.Package
		}
		m.paths = append(m.paths, "/"+l.Path)
	}
	for _, m := range all {
		slices.Sort(m.paths)
		m.paths = slices.Compact(m.paths)
	}
	slices.SortFunc(all, func(a, b *merged) int { return strings.Compare(a.url, b.url) })
	return all
}

// paths returns paths as text.
func paths(all []string) string {
	if n := len(all) - maxPaths; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:maxPaths], ", "), n)
	}
	return found.Field(strings.Join(all, ", "))
}

// fullName returns the name that people know a package by.
func fullName(p *found.Package) string {
	if p.Namespace == "" || p.Type == "maven" {
		return p.Name
	}
	return p.Namespace + "/" + p.Name
}

// version returns the version with the epoch, as rpm writes it.
func version(p *found.Package) string {
	if p.Epoch != "" {
		return p.Epoch + ":" + p.Version
	}
	return p.Version
}

// supplier returns a supplier in the form of SPDX: "Person: NAME (ADDRESS)" or "Organization: NAME".
func supplier(p *found.Package) string {
	if name, address, ok := strings.Cut(strings.TrimSuffix(p.Supplier, ">"), "<"); ok && strings.Contains(address, "@") {
		return fmt.Sprintf("Person: %s (%s)", strings.TrimSpace(name), strings.TrimSpace(address))
	}
	return "Organization: " + p.Supplier
}

// packageID returns the identifier of a package with a package URL: letters, digits, dots and hyphens.
func packageID(p *found.Package, url string) string {
	sum := sha256.Sum256([]byte(url))
	name := p.Name[:min(len(p.Name), 64)]
	return "SPDXRef-Package-" + p.Type + "-" + identifier(name) + "-" + hex.EncodeToString(sum[:8])
}

func identifier(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' {
			return r
		}
		return '-'
	}, s)
}

// maxExpression bounds a license expression in bytes: what is longer is taken for text.
const maxExpression = 1 << 10

// expression returns what a package declares of its license as an expression of SPDX. What is none is a license of this document alone,
// with its text.
func expression(declared string) (expr, text string) {
	if len(declared) <= maxExpression && !strings.Contains(declared, "Ref-") {
		if valid, _ := spdxexp.ValidateAndNormalizeLicensesWithOptions([]string{declared}, spdxexp.ValidateLicensesOptions{}); len(valid) == 1 {
			return valid[0], ""
		}
	}
	sum := sha256.Sum256([]byte(declared))
	return "LicenseRef-" + hex.EncodeToString(sum[:8]), declared
}
