package values

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/internal/signing"
	"github.com/spf13/pflag"
	csvvalue "github.com/tonistiigi/go-csvvalue"
)

// AttestationTypes and ProvenanceKeys are what --attest and --provenance take.
var (
	AttestationTypes = []string{"provenance", "sbom"}
	ProvenanceKeys   = []string{
		"mode=min", "mode=max", "version=v1", "version=v0.2", "builder-id=", "filename=", "inline-only=true", "reproducible=true",
		"complete-materials=true", "anonymous=true", "true", "false",
	}
)

// Attestations reads --attest, --provenance and --sbom. "" asks for nothing.
func Attestations(all []string, provenance, sbom string) (attestation.Options, error) {
	var o attestation.Options
	// As for buildx; what is no boolean is ignored there.
	info, err := strconv.ParseBool(os.Getenv("BUILDX_GIT_INFO"))
	o.NoVCS = err == nil && !info
	for _, v := range all {
		if strings.TrimSpace(v) == "" {
			continue
		}
		values, err := attestationFields(v)
		if err == nil {
			kind := values["type"]
			delete(values, "type")
			err = o.Set(kind, values)
		}
		if err != nil {
			return o, usagef("--attest %q: %w", v, err)
		}
	}
	for _, f := range []struct{ kind, value string }{{"provenance", provenance}, {"sbom", sbom}} {
		if strings.TrimSpace(f.value) == "" {
			continue
		}
		values, err := shorthand(f.value)
		if err == nil {
			err = o.Set(f.kind, values)
		}
		if err != nil {
			return o, usagef("--%s %q: %w", f.kind, f.value, err)
		}
	}
	return o, nil
}

// shorthand reads the value of --provenance or --sbom: true, false, or the values of an --attest.
func shorthand(v string) (map[string]string, error) {
	if on, err := strconv.ParseBool(v); err == nil {
		return map[string]string{"disabled": strconv.FormatBool(!on)}, nil
	}
	values, err := attestationFields(v)
	if err == nil && values["type"] != "" {
		err = fmt.Errorf("type= belongs to --attest")
	}
	return values, err
}

func attestationFields(v string) (map[string]string, error) {
	fields, err := csvvalue.Fields(v, nil)
	if err != nil {
		return nil, fmt.Errorf("it is not a comma separated list: %w", err)
	}
	values := map[string]string{}
	for _, field := range fields {
		key, value, ok := strings.Cut(field, "=")
		if key = strings.TrimSpace(key); !ok || key == "" {
			return nil, fmt.Errorf("%q is not KEY=VALUE", field)
		}
		// The others may be parameters of a generator, which has them as they are written.
		if lower := strings.ToLower(key); lower == "type" || lower == "disabled" {
			key = lower
		}
		if _, twice := values[key]; twice {
			return nil, fmt.Errorf("%s is given twice", key)
		}
		values[key] = value
	}
	return values, nil
}

// SignFlag adds --sign, with the files of keys for what is pushed.
func SignFlag(flags *pflag.FlagSet, files *[]string) {
	flags.StringArrayVar(files, "sign", nil, "`KEY` sign what is pushed with this private key, as cosign does; the password of an encrypted one is in $"+signing.PasswordVariable)
}

// metadataProvenance is the variable that says how much provenance --metadata-file has, as for buildx.
const metadataProvenance = "BUILDX_METADATA_PROVENANCE"

// MetadataProvenance returns how much provenance the metadata of a build has: the least, unless the environment says otherwise.
func MetadataProvenance() (build.MetadataMode, error) {
	switch v := os.Getenv(metadataProvenance); v {
	case "max":
		return build.MetadataMax, nil
	case "min", "":
		return build.MetadataMin, nil
	case "disabled":
		return "", nil
	default:
		on, err := strconv.ParseBool(v)
		if err != nil {
			return "", usagef("%s=%s is none of min, max and disabled", metadataProvenance, v)
		}
		if on {
			return build.MetadataMin, nil
		}
		return "", nil
	}
}
