package imagecmd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/help"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/lockfile"
	"github.com/kilnbuild/kiln/internal/regularfile"
	"github.com/kilnbuild/kiln/internal/signing"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/registry/layout"
	"github.com/kilnbuild/kiln/verify"
	"github.com/spf13/cobra"
)

// VerifyFormats are the values of --format of kiln verify.
var VerifyFormats = []string{formatText, formatJSON}

// verifyFlags say what an image has to have.
type verifyFlags struct {
	keys             []string
	provenance, sbom bool
	lock             string
	allowUnused      bool
	platform, format string
	local            bool
}

// Verify returns the command of that name.
func Verify(a *app.App) *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify [flags] IMAGE",
		Short: "Verify the signature and attestations of an image",
		Long: `Verify that an image of a registry is signed with a key, that its attestations are about it, and that it was made from what a lock file
has. IMAGE may be in an OCI layout too: oci-layout://DIR[:TAG].

What is asked for is demanded of the image for each platform; whatever else it has of attestations has to be in order as well. A
signature may be in either of cosign's forms. The exit status is 0 only if everything was verified. A tag may be moved a moment later:
use the image by the digest that is printed.`,
		Example: `  kiln verify --key cosign.pub registry.example/app:v1
  kiln verify --key cosign.pub --provenance --locked registry.example/app:v1
  kiln verify --provenance oci-layout://dir:v1`,
		Args: app.ExactArgs("an IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(a, cmd, args[0]) },
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&f.keys, "key", nil, "`PUBLICKEY` it has to be signed with this key, or with one of several")
	flags.BoolVar(&f.provenance, "provenance", false, "it has to have provenance")
	flags.BoolVar(&f.sbom, "sbom", false, "it has to have a software bill of materials")
	flags.StringVar(&f.lock, "locked", "", "`FILE` it has to have provenance, with the sources that a lock file has and no others (default Dockerfile.lock)")
	flags.Lookup("locked").NoOptDefVal = "Dockerfile" + lockfile.Suffix
	flags.BoolVar(&f.allowUnused, "allow-unused", false, "with --locked, lines of which the image has nothing are in order: those of other targets")
	help.Group(flags, "What an image has to have")
	flags.StringVar(&f.platform, "platform", "", "`OS/ARCH` only the image for a platform")
	flags.BoolVar(&f.local, "local", false, "the image of the store; its signatures are looked for in its registry")
	flags.StringVar(&f.format, "format", formatText, "`FORMAT` text or json")
	help.Group(flags, "Image and output")
	a.RegistryFlags(flags)
	help.Group(flags, "Registries")
	return cmd
}

// request returns what is asked for.
func (f *verifyFlags) request() (r verify.Request, err error) {
	switch {
	case !slices.Contains(VerifyFormats, f.format):
		return r, app.UsageErrorf("--format %q: use %s", f.format, strings.Join(VerifyFormats, ", "))
	case len(f.keys) == 0 && !f.provenance && !f.sbom && f.lock == "":
		return r, app.UsageErrorf("there is nothing to verify: give --key PUBLICKEY, --provenance, --sbom or --locked")
	case f.allowUnused && f.lock == "":
		return r, app.UsageErrorf("--allow-unused is about --locked")
	}
	r.Provenance, r.SBOM = f.provenance, f.sbom
	if r.Keys, err = signing.ReadPublicKeys(f.keys); err != nil {
		return r, &input.Error{Err: err}
	}
	if f.lock == "" {
		return r, nil
	}
	data, err := regularfile.Read(f.lock, lockfile.MaxSize)
	if err != nil {
		return r, &input.Error{Err: fmt.Errorf("--locked: %w; kiln lock writes it", err)}
	}
	file, err := lockfile.Parse(f.lock, data)
	if err != nil {
		return r, &input.Error{Err: err}
	}
	r.Lock = &verify.Lock{Name: f.lock, File: file, AllowUnused: f.allowUnused}
	return r, nil
}

func (f *verifyFlags) run(a *app.App, cmd *cobra.Command, name string) error {
	request, err := f.request()
	if err != nil {
		return err
	}
	if f.local && strings.HasPrefix(name, layout.Scheme) {
		return app.UsageErrorf("--local is about images of the store, and %s is an OCI layout", name)
	}
	if name, err = absoluteLayout(name); err != nil {
		return err
	}
	return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
		found, err := k.Images.Attested(cmd.Context(), name, f.platform, !f.local)
		if err != nil {
			return err
		}
		report, err := verify.Verify(cmd.Context(), found, request)
		err = errors.Join(err, found.Close())
		if report == nil || err != nil && f.format == formatText {
			return err
		}
		var out bytes.Buffer
		if f.format == formatJSON {
			data, err := json.MarshalIndent(report, "", "  ")
			if err != nil {
				return err
			}
			out.Write(append(termtext.JSON(data), '\n'))
		} else {
			f.print(&out, report)
		}
		if _, failed := a.Stdout.Write(out.Bytes()); failed != nil {
			return failed
		}
		return err
	})
}

// print prints what was verified for people.
func (f *verifyFlags) print(out *bytes.Buffer, r *verify.Report) {
	line := func(format string, args ...any) {
		out.WriteString(termtext.Line(fmt.Sprintf(format, args...)))
		out.WriteByte('\n')
	}
	line("%s is verified", r.Image)
	line("  Digest:      %s", r.Digest)
	if !r.SignaturesChecked {
		line("  Signature:   not looked for: there is no --key")
	}
	for _, s := range r.Signatures {
		where := ""
		if s.Repository != "" {
			where = ", made for " + s.Repository
		}
		line("  Signature:   %s, by the key %s%s", s.Form, s.Key, where)
	}
	for _, img := range r.Images {
		about := "image"
		if img.Platform != "" {
			about = img.Platform
		}
		line("  %s %s", about, img.Digest)
		for _, at := range img.Attestations {
			switch {
			case at.Locked:
				line("    Provenance: by %s, of %d materials, which are those of %s", at.Builder, at.Materials, f.lock)
			case attestation.IsProvenance(at.Type):
				line("    Provenance: by %s, of %d materials", at.Builder, at.Materials)
			case at.Type == attestation.SPDX:
				line("    SBOM:       %s", at.Digest)
			default:
				line("    Statement:  %s", at.Type)
			}
		}
	}
}

// Sign returns the command of that name.
func Sign(a *app.App) *cobra.Command {
	var files []string
	var mode string
	cmd := &cobra.Command{
		Use:   "sign [flags] --key KEY IMAGE",
		Short: "Sign an image of a registry",
		Long: `Sign an image or index of a registry as cosign does, in both of its forms, and print its name with its digest. Other signatures stay.
kiln build --push --sign KEY signs an image before it has a tag.`,
		Example: "  kiln sign --key cosign.key registry.example/app:v1",
		Args:    app.ExactArgs("an IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(files) == 0 {
				return app.UsageErrorf("kiln sign needs a --key KEY; openssl genpkey -algorithm ed25519 -out KEY makes one")
			}
			keys, err := signing.ReadPrivateKeys(files)
			if err != nil {
				return &input.Error{Err: err}
			}
			return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
				var signed string
				err := a.WithProgress(cmd.Context(), mode, func(ctx context.Context, s *events.Stream) error {
					r, err := k.Images.Repository(args[0])
					if err != nil {
						return err
					}
					task := s.Task(llb.Place{}, "signing "+r.Name.String())
					signed, err = r.SignNamed(events.With(ctx, task), keys)
					task.Done(err)
					return err
				})
				if err == nil {
					_, err = fmt.Fprintln(a.Stdout, termtext.Line(signed))
				}
				return err
			})
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&files, "key", nil, "`KEY` private key; may be given several times; the password of an encrypted one is in $"+signing.PasswordVariable)
	app.ProgressFlag(flags, &mode)
	a.RegistryFlags(flags)
	return cmd
}
