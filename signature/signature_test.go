package signature

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnbuild/kiln/internal/signing"
	digest "github.com/opencontainers/go-digest"
)

// pem is a private key of Ed25519 that signs nothing elsewhere.
const pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n"

func key(t testing.TB) *signing.PrivateKey {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(pem), 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := signing.ReadPrivateKey(file, signing.Password)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// signed returns the signatures of an image in both forms.
func signed(t testing.TB, k *signing.PrivateKey, image digest.Digest) []Candidate {
	t.Helper()
	payload, err := Payload("registry.example/app", image)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := k.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	statement, err := Statement(image)
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := Bundle(k, statement)
	if err != nil {
		t.Fatal(err)
	}
	return []Candidate{{Form: Simple, Payload: payload, Signature: sig}, {Form: Bundled, Bundle: bundle}}
}

// TestForms holds the text of both forms, which cosign reads.
func TestForms(t *testing.T) {
	k, image := key(t), digest.FromString("image")
	all := signed(t, k, image)
	const hex = "6105d6cc76af400325e94d588ce511be5bfdbb73b437dc51eca43917d7a43e3d"
	if got, want := string(all[0].Payload), `{"critical":{"identity":{"docker-reference":"registry.example/app"},"image":{"docker-manifest-digest":"sha256:`+
		hex+`"},"type":"cosign container image signature"},"optional":null}`; got != want {
		t.Errorf("the payload is %s, want %s", got, want)
	}
	statement, id, err := open(all[1].Bundle, []*signing.PublicKey{k.Public()})
	if want := `{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"` + hex +
		`"}}],"predicateType":"https://sigstore.dev/cosign/sign/v1","predicate":{}}`; err != nil || string(statement) != want || id != k.Public().ID() {
		t.Errorf("the statement is %s, %s, %v, want %s", statement, id, err, want)
	}
	for _, c := range all {
		if v, err := c.Verify(image, []*signing.PublicKey{k.Public()}); err != nil || v.Key != k.Public().ID() {
			t.Errorf("%s: %v, %v", c.Form, v, err)
		}
		if _, err := c.Verify(digest.FromString("other"), []*signing.PublicKey{k.Public()}); err == nil {
			t.Errorf("%s: it is taken for another image", c.Form)
		}
		if _, err := c.Verify(image, nil); err == nil {
			t.Errorf("%s: it is taken without a key", c.Form)
		}
	}
}

// FuzzVerify changes signatures. What is accepted says what was signed.
func FuzzVerify(f *testing.F) {
	k, image := key(f), digest.FromString("image")
	all := signed(f, k, image)
	f.Add(all[0].Payload, all[0].Signature, all[1].Bundle)
	f.Fuzz(func(t *testing.T, payload, sig, bundle []byte) {
		keys := []*signing.PublicKey{k.Public()}
		simple := Candidate{Form: Simple, Payload: payload, Signature: sig}
		if _, err := simple.Verify(image, keys); err == nil && string(payload) != string(all[0].Payload) {
			t.Errorf("accepted: %s", payload)
		}
		bundled := Candidate{Form: Bundled, Bundle: bundle}
		if _, err := bundled.Verify(image, keys); err == nil {
			got, _, err := open(bundle, keys)
			want, _, _ := open(all[1].Bundle, keys)
			if err != nil || string(got) != string(want) {
				t.Errorf("accepted: %s, %v", got, err)
			}
		}
	})
}
