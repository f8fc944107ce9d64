package imagecmd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/attestation/slsa"
	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/report"
	"github.com/kilnbuild/kiln/cmd/internal/table"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/registry/layout"
	"github.com/kilnbuild/kiln/store/images"
	"github.com/spf13/cobra"
)

// Attest returns the commands of kiln attest.
func Attest(a *app.App) []*cobra.Command {
	return []*cobra.Command{listAttestations(a), showAttestations(a)}
}

// AttestationTypes are the values of --type, besides types of predicates.
var AttestationTypes = []string{"provenance", "sbom"}

// attestFlags choose attestations.
type attestFlags struct {
	platform, kind string
	remote         bool
}

func (f *attestFlags) add(a *app.App, cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.platform, "platform", "", "`OS/ARCH` only those of the image for a platform")
	flags.StringVar(&f.kind, "type", "", "`TYPE` only provenance, sbom, or a type of predicates")
	flags.BoolVar(&f.remote, "remote", false, "look in the registry, even if the image is in the store")
	a.RegistryFlags(flags)
}

// chosen reports whether attestations of a type of predicates are wanted.
func (f *attestFlags) chosen(predicateType string) bool {
	switch f.kind {
	case "":
		return true
	case "provenance":
		return attestation.IsProvenance(predicateType)
	case "sbom":
		return predicateType == attestation.SPDX
	}
	return predicateType == f.kind
}

// read calls do with an image and those of its attestations that are chosen.
func (f *attestFlags) read(a *app.App, cmd *cobra.Command, name string, do func(context.Context, *images.Attested) error) error {
	if f.kind != "" && !slices.Contains(AttestationTypes, f.kind) && !strings.Contains(f.kind, ":") {
		return app.UsageErrorf("--type %q: it is neither provenance, sbom nor the URI of a type of predicates", f.kind)
	}
	name, err := absoluteLayout(name)
	if err != nil {
		return err
	}
	return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
		found, err := k.Images.Attested(cmd.Context(), name, f.platform, f.remote)
		if err != nil {
			return err
		}
		for i := range found.Images {
			img := &found.Images[i]
			img.Attestations = slices.DeleteFunc(img.Attestations, func(s images.StoredAttestation) bool { return !f.chosen(s.PredicateType) })
		}
		return errors.Join(do(cmd.Context(), found), found.Close())
	})
}

// absoluteLayout returns the name of an image with an absolute path, if it is in an OCI layout. It is called before the working directory
// changes.
func absoluteLayout(name string) (string, error) {
	dir, ok := strings.CutPrefix(name, layout.Scheme)
	if !ok {
		return name, nil
	}
	err := rootdir.Absolute(&dir)
	return layout.Scheme + dir, err
}

// attestationColumns are the fields of kiln attest ls.
var attestationColumns = []table.Column{
	{Field: "Platform", Heading: "PLATFORM"}, {Field: "Type", Heading: "TYPE"}, {Field: "Digest", Heading: "DIGEST"},
	{Field: "Size", Heading: "SIZE"}, {Field: "Image", Heading: "IMAGE"},
}

func listAttestations(a *app.App) *cobra.Command {
	var f attestFlags
	var format string
	cmd := &cobra.Command{
		Use:   "ls [flags] IMAGE",
		Short: "List the attestations of an image",
		Long: `List the attestations of an image of the store, or else of its registry, or of an OCI layout: oci-layout://DIR[:TAG]. They are
statements that whoever built the image has attached to it; nothing is verified.`,
		Example: `  kiln attest ls app
  kiln attest ls --type sbom registry.example/app:v1`,
		Args: app.ExactArgs("an IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			printer, err := table.New(format, attestationColumns, "Platform", "Type", "Digest", "Size")
			if err != nil {
				return err
			}
			return f.read(a, cmd, args[0], func(_ context.Context, found *images.Attested) error {
				var rows []table.Row
				for _, img := range found.Images {
					for _, s := range img.Attestations {
						rows = append(rows, table.Row{
							"Platform": img.Platform, "Type": s.PredicateType, "Digest": s.Desc.Digest.String(), "Size": report.Size(s.Desc.Size),
							"Image": img.Digest.String(),
						})
					}
				}
				return printer.Print(a.Stdout, rows)
			})
		},
	}
	f.add(a, cmd)
	cmd.Flags().StringVar(&format, "format", "", "`FORMAT` table, json, a Go template, or 'table TEMPLATE' with \\t between columns")
	return cmd
}

// Formats of kiln attest show.
const (
	formatText = "text"
	formatJSON = "json"
	formatRaw  = "raw"
)

// AttestFormats are the values of --format of kiln attest show.
var AttestFormats = []string{formatText, formatJSON, formatRaw}

func showAttestations(a *app.App) *cobra.Command {
	var f attestFlags
	var format string
	cmd := &cobra.Command{
		Use:   "show [flags] IMAGE",
		Short: "Show what the attestations of an image say",
		Long: `Show what the attestations of an image say: who built it, from what, how, and what is in it. They are statements that whoever built
the image has attached to it; nothing is verified but that they are about the image.`,
		Example: `  kiln attest show app
  kiln attest show --type provenance --format json registry.example/app:v1
  kiln attest show --type sbom --format raw app > sbom.intoto.json`,
		Args: app.ExactArgs("an IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(AttestFormats, format) {
				return app.UsageErrorf("--format %q: use %s", format, strings.Join(AttestFormats, ", "))
			}
			return f.read(a, cmd, args[0], func(ctx context.Context, found *images.Attested) error {
				n := 0
				for _, img := range found.Images {
					n += len(img.Attestations)
				}
				switch {
				case n == 0 && f.kind != "":
					return fmt.Errorf("%s has no attestations of the type %s", found.Name, f.kind)
				case n == 0:
					return fmt.Errorf("%s has no attestations", found.Name)
				case n > 1 && format == formatRaw:
					return app.UsageErrorf("--format raw is for one attestation, and %s has %d: choose one with --type and --platform", found.Name, n)
				}
				s := shower{ctx: ctx, to: a.Stdout, found: found}
				return s.all(format)
			})
		},
	}
	f.add(a, cmd)
	cmd.Flags().StringVar(&format, "format", formatText, "`FORMAT` text, json (an array of statements), or raw (one statement, as it is)")
	return cmd
}

// shower prints attestations.
type shower struct {
	ctx   context.Context
	to    io.Writer
	found *images.Attested
}

// shownJSON is an element of the array that --format json prints.
type shownJSON struct {
	Platform  string          `json:"platform,omitempty"`
	Image     string          `json:"image"`
	Digest    string          `json:"digest"`
	Statement json.RawMessage `json:"statement"`
}

// all prints all attestations in a format, one after the other.
func (s *shower) all(format string) error {
	n := 0
	for _, img := range s.found.Images {
		for _, stored := range img.Attestations {
			data, err := s.found.Read(s.ctx, stored)
			if err != nil {
				return err
			}
			if format == formatRaw {
				_, err := s.to.Write(data)
				return err
			}
			statement, err := attestation.ParseStatement(data)
			if err == nil && stored.PredicateType != "" && statement.PredicateType != stored.PredicateType {
				err = fmt.Errorf("it is listed as %.200q, and says that it is %.200q", stored.PredicateType, statement.PredicateType)
			}
			if err != nil {
				return fmt.Errorf("read the attestation %s: %w", stored.Desc.Digest, err)
			}
			var out bytes.Buffer
			if format == formatJSON {
				err = s.json(&out, n, shownJSON{img.Platform, img.Digest.String(), stored.Desc.Digest.String(), data})
			} else {
				if n > 0 {
					out.WriteByte('\n')
				}
				s.text(&out, img, statement)
			}
			if err == nil {
				_, err = s.to.Write(out.Bytes())
			}
			if err != nil {
				return err
			}
			n++
		}
	}
	if format == formatJSON {
		_, err := io.WriteString(s.to, "\n]\n")
		return err
	}
	return nil
}

// json prints the element of an array with an index.
func (s *shower) json(out *bytes.Buffer, n int, v shownJSON) error {
	begin := "[\n  "
	if n > 0 {
		begin = ",\n  "
	}
	out.WriteString(begin)
	data, err := json.MarshalIndent(v, "  ", "  ")
	out.Write(termtext.JSON(data))
	return err
}

// text prints a statement for people.
func (s *shower) text(out *bytes.Buffer, img images.AttestedImage, st *attestation.Statement) {
	line := func(format string, args ...any) {
		out.WriteString(termtext.Line(fmt.Sprintf(format, args...)))
		out.WriteByte('\n')
	}
	about := img.Platform
	if about != "" {
		about += " "
	}
	line("%s%s", about, img.Digest)
	line("%s", st.PredicateType)
	hex := img.Digest.Encoded()
	for i, r := range st.Subject {
		if i == maxShown {
			line("  Subject:       and %d more", len(st.Subject)-i)
			break
		}
		wrong := ""
		if r.Digest[img.Digest.Algorithm().String()] != hex {
			wrong = ", which is not this image"
		}
		line("  Subject:       %s%s", r.Name, wrong)
	}
	switch {
	case attestation.IsProvenance(st.PredicateType):
		showProvenance(line, st)
	case st.PredicateType == attestation.SPDX:
		showSPDX(line, st)
	default:
		line("  Size:          %s", report.Size(int64(len(st.Predicate))))
	}
}

// maxShown is how many items of one kind kiln attest show prints as text; --format json has all.
const maxShown = 1000

// showProvenance prints the provenance of a build.
func showProvenance(line func(string, ...any), st *attestation.Statement) {
	p, err := slsa.Parse(st.PredicateType, st.Predicate)
	if err != nil {
		line("  cannot be read: %v", err)
		return
	}
	d, m := &p.BuildDefinition, &p.RunDetails.Metadata
	value := func(name, value string) {
		if value != "" {
			line("  %-14s %s", name+":", value)
		}
	}
	value("Builder", p.RunDetails.Builder.ID)
	for _, name := range slices.Sorted(maps.Keys(p.RunDetails.Builder.Version)) {
		value("Version", name+" "+p.RunDetails.Builder.Version[name])
	}
	value("Build type", d.BuildType)
	value("Invocation", m.InvocationID)
	if m.StartedOn != nil && m.FinishedOn != nil {
		value("Built", fmt.Sprintf("%s, in %s", m.StartedOn.Format("2006-01-02 15:04:05 MST"), m.FinishedOn.Sub(*m.StartedOn).Round(1e6)))
	}
	source := d.ExternalParameters.ConfigSource
	value("Source", strings.TrimSpace(source.URI+" "+attestation.DigestText(source.Digest)))
	value("Dockerfile", source.Path)
	value("Checkout", strings.TrimSpace(m.BuildKit.VCS["source"]+" "+m.BuildKit.VCS["revision"]))
	value("Built on", d.InternalParameters.BuilderPlatform)
	request := &d.ExternalParameters.Request
	for _, name := range limited(slices.Sorted(maps.Keys(request.Args))) {
		value("Argument", name+"="+request.Args[name])
	}
	for _, n := range limited(request.Secrets) {
		value("Secret", n.ID)
	}
	for _, n := range limited(request.SSH) {
		value("SSH agent", n.ID)
	}
	for _, l := range limited(request.Locals) {
		value("Local source", l.Name)
	}
	for _, used := range limited(d.ResolvedDependencies) {
		value("Material", strings.TrimSpace(used.URI+" "+attestation.DigestText(used.Digest)))
	}
	if c := d.InternalParameters.BuildConfig; c != nil && len(c.Steps) > 0 {
		value("Steps", fmt.Sprint(len(c.Steps)))
	}
	var lacks []string
	if !m.Completeness.Request {
		lacks = append(lacks, "arguments")
	}
	if !m.Completeness.ResolvedDependencies {
		lacks = append(lacks, "materials")
	}
	if len(lacks) > 0 {
		value("Incomplete", strings.Join(lacks, ", "))
	}
}

// showSPDX prints a software bill of materials.
func showSPDX(line func(string, ...any), st *attestation.Statement) {
	var doc struct {
		Name         string `json:"name"`
		CreationInfo struct {
			Created  string   `json:"created"`
			Creators []string `json:"creators"`
		} `json:"creationInfo"`
		Packages []struct {
			Name    string `json:"name"`
			Version string `json:"versionInfo"`
		} `json:"packages"`
	}
	if err := json.Unmarshal(st.Predicate, &doc); err != nil {
		line("  cannot be read: %v", err)
		return
	}
	line("  Document:      %s", doc.Name)
	for _, c := range limited(doc.CreationInfo.Creators) {
		line("  Creator:       %s", c)
	}
	line("  Created:       %s", doc.CreationInfo.Created)
	line("  Packages:      %d", len(doc.Packages))
	for _, p := range limited(doc.Packages) {
		line("    %s %s", p.Name, p.Version)
	}
	if n := len(doc.Packages) - maxShown; n > 0 {
		line("    and %d more, which --format json shows", n)
	}
}

// limited returns the first items of a list.
func limited[T any](list []T) []T { return list[:min(len(list), maxShown)] }
