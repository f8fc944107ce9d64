//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestSigning has cosign verify what kiln signs, in both forms and with keys of both kinds, and kiln what cosign signs.
func TestSigning(t *testing.T) {
	cosign := filepath.Join(os.Getenv("TOOLS"), "cosign")
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("COSIGN_PASSWORD", "secret")
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")
	// With it, cosign asks no server for roots that keys have no need of.
	write("root.json", `{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`)
	verify := func(what, key, image string, more ...string) []string {
		args := []string{what, "--key", filepath.Join(dir, key), "--insecure-ignore-tlog=true", "--trusted-root", filepath.Join(dir, "root.json"), image}
		return append(args, more...)
	}
	command(t, cosign, "generate-key-pair", "--output-key-prefix", filepath.Join(dir, "theirs"))
	command(t, "openssl", "genpkey", "-algorithm", "ed25519", "-out", filepath.Join(dir, "other.key"))
	command(t, "openssl", "pkey", "-in", filepath.Join(dir, "other.key"), "-pubout", "-out", filepath.Join(dir, "other.pub"))
	for kind, options := range map[string][]string{
		"ed25519": {"-algorithm", "ed25519"}, "ecdsa": {"-algorithm", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"},
	} {
		t.Run(kind, func(t *testing.T) {
			key, public := filepath.Join(dir, kind+".key"), filepath.Join(dir, kind+".pub")
			command(t, "openssl", append([]string{"genpkey", "-out", key}, options...)...)
			command(t, "openssl", "pkey", "-in", key, "-pubout", "-out", public)
			image, copied := registry+"/signed-"+kind, registry+"/copied-"+kind
			command(t, kilnPath, "build", "-q", "--platform", "linux/amd64,linux/arm64", "--provenance=true", "--sbom=true", "--label", "kind="+kind,
				"--sign", key, "-t", image+":v1", "--push", dir)
			var report struct{ Digest string }
			if err := json.Unmarshal([]byte(command(t, kilnPath, "verify", "--key", public, "--provenance", "--format", "json", image+":v1")), &report); err != nil {
				t.Fatal(err)
			}
			// The bundle; and the other form, in a repository that has no bundle.
			command(t, cosign, verify("verify", kind+".pub", image+":v1")...)
			for predicate, want := range map[string]int{"https://sigstore.dev/cosign/sign/v1": 1, "slsaprovenance1": 2, "spdxjson": 2} {
				out := command(t, cosign, verify("verify-attestation", kind+".pub", image+":v1", "--type", predicate)...)
				if n := strings.Count(out, `{"payload":`); n != want {
					t.Errorf("cosign verifies %d statements of the type %s, and there are %d", n, predicate, want)
				}
			}
			tag := ":" + strings.Replace(report.Digest, ":", "-", 1) + ".sig"
			for _, suffix := range []string{":v1", tag} {
				command(t, "skopeo", "copy", "-q", "--all", "--src-tls-verify=false", "--dest-tls-verify=false", "docker://"+image+suffix, "docker://"+copied+suffix)
			}
			command(t, cosign, verify("verify", kind+".pub", copied+":v1")...)
			command(t, kilnPath, "verify", "--key", public, "--provenance", copied+":v1")
			for _, image := range []string{image, copied} {
				if out, err := exec.Command(cosign, verify("verify", "other.pub", image+":v1")...).CombinedOutput(); err == nil {
					t.Errorf("cosign verifies %s with another key: %s", image, out)
				}
			}
			command(t, cosign, "sign", "--key", filepath.Join(dir, "theirs.key"), "--tlog-upload=false", "--yes", copied+":v1")
			command(t, kilnPath, "verify", "--key", filepath.Join(dir, "theirs.pub"), copied+":v1")
			command(t, kilnPath, "verify", "--key", public, copied+":v1")
			command(t, kilnPath, "sign", "--key", filepath.Join(dir, "theirs.key"), image+":v1")
			command(t, cosign, verify("verify", "theirs.pub", image+":v1")...)
		})
	}
}
