package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/signing"
	"github.com/kilnbuild/kiln/registry/registrytest"
	"github.com/kilnbuild/kiln/signature"
	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// tampered is a repository with a signed image under the tag v1, which a test changes as someone who may write to it.
type tampered struct {
	*testing.T
	host, name string
	dir        string // of the files of the test: key, Dockerfile.lock
	key        *signing.PrivateKey
	digest     digest.Digest // of the image as it was signed
}

func (r *tampered) check(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// do makes a request, whose status has to be a success.
func (r *tampered) do(method, path, mediaType string, body []byte) ([]byte, http.Header) {
	r.Helper()
	if !strings.HasPrefix(path, "http") {
		path = "http://" + r.host + "/v2/" + path
	}
	req, err := http.NewRequest(method, path, bytes.NewReader(body))
	r.check(err)
	req.Header.Set("Content-Type", mediaType)
	req.Header.Set("Accept", ocispec.MediaTypeImageIndex+", "+ocispec.MediaTypeImageManifest)
	resp, err := http.DefaultClient.Do(req)
	r.check(err)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	r.check(err)
	if resp.StatusCode/100 != 2 {
		r.Fatalf("%s %s: %s: %s", method, path, resp.Status, data)
	}
	return data, resp.Header
}

// get gets a manifest of a repository into a value.
func (r *tampered) get(repository, id string, into any) {
	r.Helper()
	data, _ := r.do("GET", repository+"/manifests/"+id, "", nil)
	r.check(json.Unmarshal(data, into))
}

// put puts a manifest under a tag, or under its digest for "".
func (r *tampered) put(tag, mediaType string, v any) ocispec.Descriptor {
	r.Helper()
	data, err := json.Marshal(v)
	r.check(err)
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if tag == "" {
		tag = d.Digest.String()
	}
	r.do("PUT", r.name+"/manifests/"+tag, mediaType, data)
	return d
}

func (r *tampered) blob(mediaType string, data []byte) ocispec.Descriptor {
	r.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	_, h := r.do("POST", r.name+"/blobs/uploads/", "", nil)
	at := h.Get("Location")
	at += map[bool]string{true: "&", false: "?"}[strings.Contains(at, "?")] + "digest=" + d.Digest.String()
	r.do("PUT", at, "application/octet-stream", data)
	return d
}

func (r *tampered) read(d ocispec.Descriptor) []byte {
	r.Helper()
	data, _ := r.do("GET", r.name+"/blobs/"+d.Digest.String(), "", nil)
	return data
}

// listTag is that of the list of referrers, and sigTag that of the signatures, of an image.
func listTag(d digest.Digest) string { return "sha256-" + d.Encoded() }
func sigTag(d digest.Digest) string  { return listTag(d) + ".sig" }

// without removes what is under a tag.
func (r *tampered) without(tag string) {
	r.Helper()
	data, _ := r.do("GET", r.name+"/manifests/"+tag, "", nil)
	r.do("DELETE", r.name+"/manifests/"+digest.FromBytes(data).String(), "", nil)
}

// sign returns the annotation of a signature by the right key.
func (r *tampered) sign(payload []byte) string {
	r.Helper()
	sig, err := r.key.Sign(payload)
	r.check(err)
	return base64.StdEncoding.EncodeToString(sig)
}

// simple leaves only the signature by the tag, after a change of its payload and annotation.
func (r *tampered) simple(change func(payload string, l *ocispec.Descriptor) string) {
	r.Helper()
	r.without(listTag(r.digest))
	var m ocispec.Manifest
	r.get(r.name, sigTag(r.digest), &m)
	l := &m.Layers[0]
	d := r.blob(l.MediaType, []byte(change(string(r.read(*l)), l)))
	l.Digest, l.Size = d.Digest, d.Size
	r.put(sigTag(r.digest), m.MediaType, m)
}

// bundled leaves only the bundle, after a change of its text and manifest.
func (r *tampered) bundled(change func(bundle string, m *ocispec.Manifest) string) {
	r.Helper()
	r.without(sigTag(r.digest))
	var list ocispec.Index
	r.get(r.name, listTag(r.digest), &list)
	var m ocispec.Manifest
	r.get(r.name, list.Manifests[0].Digest.String(), &m)
	d := r.blob(m.Layers[0].MediaType, []byte(change(string(r.read(m.Layers[0])), &m)))
	m.Layers[0].Digest, m.Layers[0].Size = d.Digest, d.Size
	d = r.put("", m.MediaType, m)
	list.Manifests[0].Digest, list.Manifests[0].Size = d.Digest, d.Size
	r.put(listTag(r.digest), list.MediaType, list)
}

// envelope is that of a bundle, for a test to change it; signed is what its signature is of.
func (r *tampered) envelope(bundle string, change func(payload, payloadType string) (newPayload, newType, signed string)) string {
	r.Helper()
	var b map[string]any
	r.check(json.Unmarshal([]byte(bundle), &b))
	e := b["dsseEnvelope"].(map[string]any)
	payload, err := base64.StdEncoding.DecodeString(e["payload"].(string))
	r.check(err)
	p, t, signed := change(string(payload), e["payloadType"].(string))
	e["payload"], e["payloadType"] = base64.StdEncoding.EncodeToString([]byte(p)), t
	if signed != "" {
		e["signatures"] = []any{map[string]any{"sig": r.sign([]byte(signed))}}
	}
	data, err := json.Marshal(b)
	r.check(err)
	return string(data)
}

// pae is what of an envelope is signed.
func pae(payload, payloadType string) string {
	return fmt.Sprintf("DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload)
}

// index changes the index of the image.
func (r *tampered) index(change func(ix *ocispec.Index)) {
	r.Helper()
	var ix ocispec.Index
	r.get(r.name, "v1", &ix)
	change(&ix)
	r.put("v1", ix.MediaType, ix)
}

// attested changes the attestations of the image for the first platform. Their entry in the index becomes that of the new manifest.
func (r *tampered) attested(change func(m *ocispec.Manifest, entry *ocispec.Descriptor)) {
	r.Helper()
	r.index(func(ix *ocispec.Index) {
		i := slices.IndexFunc(ix.Manifests, func(d ocispec.Descriptor) bool {
			return d.Annotations["vnd.docker.reference.digest"] == ix.Manifests[0].Digest.String()
		})
		var m ocispec.Manifest
		r.get(r.name, ix.Manifests[i].Digest.String(), &m)
		change(&m, &ix.Manifests[i])
		d := r.put("", m.MediaType, m)
		ix.Manifests[i].Digest, ix.Manifests[i].Size = d.Digest, d.Size
	})
}

// statement changes the text of the provenance for the first platform.
func (r *tampered) statement(change func(text string) string) {
	r.Helper()
	r.attested(func(m *ocispec.Manifest, _ *ocispec.Descriptor) {
		l := &m.Layers[0]
		before := string(r.read(*l))
		after := change(before)
		if after == before {
			r.Fatal("the statement has not changed")
		}
		d := r.blob(l.MediaType, []byte(after))
		l.Digest, l.Size = d.Digest, d.Size
	})
}

// predicate changes the predicate of the provenance for the first platform.
func (r *tampered) predicate(change func(definition, run map[string]any)) {
	r.Helper()
	r.statement(func(text string) string {
		var s map[string]any
		r.check(json.Unmarshal([]byte(text), &s))
		p := s["predicate"].(map[string]any)
		change(p["buildDefinition"].(map[string]any), p["runDetails"].(map[string]any))
		data, err := json.Marshal(s)
		r.check(err)
		return string(data)
	})
}

// lock changes the lock file.
func (r *tampered) lock(change func(text string) string) {
	r.Helper()
	file := filepath.Join(r.dir, "Dockerfile.lock")
	data, err := os.ReadFile(file)
	r.check(err)
	r.check(os.WriteFile(file, []byte(change(string(data))), 0o600))
}

// replaced replaces a text that has to be there.
func (r *tampered) replaced(text, old, by string) string {
	r.Helper()
	if !strings.Contains(text, old) {
		r.Fatalf("there is no %q in %s", old, text)
	}
	return strings.Replace(text, old, by, 1)
}

// zeros are the hexadecimal digits of a digest of nothing.
var zeros = strings.Repeat("0", 64)

// tampering are ways to change an image, its signature, its attestations or the lock file. Of those with resign the signer is deceived, and
// signs the image once more. The last column is what kiln verify says.
var tampering = []struct {
	name   string
	resign bool
	tamper func(r *tampered)
	says   string
}{
	{"payload of another digest", false, func(r *tampered) {
		r.simple(func(p string, _ *ocispec.Descriptor) string { return r.replaced(p, r.digest.Encoded(), zeros) })
	}, "1 by other keys"},
	{"payload of another digest that the key has signed", false, func(r *tampered) {
		r.simple(func(p string, l *ocispec.Descriptor) string {
			p = r.replaced(p, r.digest.Encoded(), zeros)
			l.Annotations[signature.SignatureAnnotation] = r.sign([]byte(p))
			return p
		})
	}, "signature 1 of the tag: it is of another image"},
	{"signature of another image", false, func(r *tampered) {
		r.without(listTag(r.digest))
		var other ocispec.Manifest
		r.get("second", sigTag(r.second()), &other)
		data, _ := r.do("GET", "second/blobs/"+other.Layers[0].Digest.String(), "", nil)
		other.Config = r.blob(other.Config.MediaType, []byte("{}"))
		r.blob(signature.SimpleMediaType, data)
		r.put(sigTag(r.digest), other.MediaType, other)
	}, "it is of another image"},
	{"signature by another key", false, func(r *tampered) {
		key := filepath.Join(r.TempDir(), "key")
		r.check(exec.Command("openssl", "genpkey", "-algorithm", "ed25519", "-out", key).Run())
		r.without(listTag(r.digest))
		r.without(sigTag(r.digest))
		r.check(exec.Command("kiln", "sign", "--key", key, r.host+"/"+r.name+":v1").Run())
	}, "2 by other keys"},
	{"no signature", false, func(r *tampered) {
		r.without(listTag(r.digest))
		r.without(sigTag(r.digest))
	}, "has no signature"},
	{"type of the payload", false, func(r *tampered) {
		r.simple(func(p string, l *ocispec.Descriptor) string {
			p = r.replaced(p, "cosign container image signature", "atomic container signature")
			l.Annotations[signature.SignatureAnnotation] = r.sign([]byte(p))
			return p
		})
	}, `it is of the type "atomic container signature"`},
	{"payload with a name twice", false, func(r *tampered) {
		r.simple(func(p string, l *ocispec.Descriptor) string {
			p = r.replaced(p, `"image":{`, `"image":{"docker-manifest-digest":"sha256:`+zeros+`",`)
			l.Annotations[signature.SignatureAnnotation] = r.sign([]byte(p))
			return p
		})
	}, `the name "docker-manifest-digest" is there twice`},
	{"truncated base64", false, func(r *tampered) {
		r.simple(func(p string, l *ocispec.Descriptor) string {
			l.Annotations[signature.SignatureAnnotation] = l.Annotations[signature.SignatureAnnotation][:21]
			return p
		})
	}, "illegal base64 data"},
	{"no annotation", false, func(r *tampered) {
		r.simple(func(p string, l *ocispec.Descriptor) string { l.Annotations = nil; return p })
	}, "1 by other keys"},
	{"huge payload", false, func(r *tampered) {
		r.simple(func(p string, l *ocispec.Descriptor) string {
			p += strings.Repeat(" ", signature.MaxPayload)
			l.Annotations[signature.SignatureAnnotation] = r.sign([]byte(p))
			return p
		})
	}, "are not read"},
	{"media type of the payload", false, func(r *tampered) {
		r.simple(func(p string, l *ocispec.Descriptor) string { l.MediaType = "text/plain"; return p })
	}, `its type is "text/plain"`},
	{"index of signatures", false, func(r *tampered) {
		r.without(listTag(r.digest))
		r.put(sigTag(r.digest), ocispec.MediaTypeImageIndex, ocispec.Index{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{},
		})
	}, "it is an index"},

	{"bundle of another subject", false, func(r *tampered) {
		r.bundled(func(b string, _ *ocispec.Manifest) string {
			return r.envelope(b, func(p, t string) (string, string, string) { return r.replaced(p, r.digest.Encoded(), zeros), t, "" })
		})
	}, "1 by other keys"},
	{"bundle of another subject that the key has signed", false, func(r *tampered) {
		r.bundled(func(b string, _ *ocispec.Manifest) string {
			return r.envelope(b, func(p, t string) (string, string, string) {
				p = r.replaced(p, r.digest.Encoded(), zeros)
				return p, t, pae(p, t)
			})
		})
	}, "it is of another image"},
	{"payload type of the bundle", false, func(r *tampered) {
		r.bundled(func(b string, _ *ocispec.Manifest) string {
			return r.envelope(b, func(p, t string) (string, string, string) { return p, "application/json", pae(p, "application/json") })
		})
	}, `it signs something of the type "application/json"`},
	{"signature of the payload alone", false, func(r *tampered) {
		r.bundled(func(b string, _ *ocispec.Manifest) string {
			return r.envelope(b, func(p, t string) (string, string, string) { return p, t, p })
		})
	}, "1 by other keys"},
	{"payload that goes on in its type", false, func(r *tampered) {
		r.bundled(func(b string, _ *ocispec.Manifest) string {
			return r.envelope(b, func(p, t string) (string, string, string) {
				signed := pae(p, t) // of which nobody can tell where the type ends, but by its length
				return p[1:], t + fmt.Sprintf(" %d %s", len(p), p[:1]), signed
			})
		})
	}, "it signs something of the type"},
	{"signed statement that is no signature", false, func(r *tampered) {
		r.bundled(func(b string, _ *ocispec.Manifest) string {
			return r.envelope(b, func(p, t string) (string, string, string) {
				p = r.replaced(p, signature.PredicateType, "https://example.com/review")
				return p, t, pae(p, t)
			})
		})
	}, "it is not a signature"},
	{"statement with a name twice", false, func(r *tampered) {
		r.bundled(func(b string, _ *ocispec.Manifest) string {
			return r.envelope(b, func(p, t string) (string, string, string) {
				p = r.replaced(p, `{"_type"`, `{"Subject":[{"digest":{"sha256":"`+zeros+`"}}],"_type"`)
				return p, t, pae(p, t)
			})
		})
	}, "is there twice"},
	{"bundle with two signatures", false, func(r *tampered) {
		r.bundled(func(b string, _ *ocispec.Manifest) string {
			return r.replaced(b, `"signatures":[`, `"signatures":[{"sig":"AAAA"},`)
		})
	}, "has 2 signatures"},
	{"bundle with a certificate", false, func(r *tampered) {
		r.bundled(func(b string, _ *ocispec.Manifest) string { return r.replaced(b, `"publicKey"`, `"certificate"`) })
	}, "with a certificate"},
	{"bundle of another version", false, func(r *tampered) {
		r.bundled(func(b string, _ *ocispec.Manifest) string { return r.replaced(b, "v0.3+json", "v0.9+json") })
	}, "it is a bundle of the type"},
	{"base64 with line breaks", false, func(r *tampered) {
		r.bundled(func(b string, _ *ocispec.Manifest) string { return r.replaced(b, `"payload":"`, `"payload":"\n`) })
	}, "line breaks"},
	{"huge bundle", false, func(r *tampered) {
		r.bundled(func(b string, _ *ocispec.Manifest) string { return b + strings.Repeat(" ", signature.MaxBundle) })
	}, "are not read"},
	{"bundle of another image", false, func(r *tampered) {
		r.bundled(func(b string, m *ocispec.Manifest) string {
			m.Subject.Digest = r.second()
			return b
		})
	}, "its subject is another"},
	{"list of referrers that lies", false, func(r *tampered) {
		r.without(sigTag(r.digest))
		var ix ocispec.Index
		r.get(r.name, "v1", &ix)
		d := ix.Manifests[0]
		d.ArtifactType = signature.BundleMediaType
		ix.Manifests = []ocispec.Descriptor{d}
		r.put(listTag(r.digest), ix.MediaType, ix)
	}, "its subject is another"},

	{"tag moved to an image that is not signed", false, func(r *tampered) {
		r.index(func(ix *ocispec.Index) { ix.Annotations = map[string]string{"a": "b"} })
	}, "has no signature"},
	{"image of a platform swapped", true, func(r *tampered) {
		r.index(func(ix *ocispec.Index) {
			ix.Manifests[0].Digest, ix.Manifests[0].Size = ix.Manifests[1].Digest, ix.Manifests[1].Size
		})
	}, "and the index has it for linux/amd64"},
	{"image of two platforms", true, func(r *tampered) {
		r.index(func(ix *ocispec.Index) {
			ix.Manifests[1].Digest, ix.Manifests[1].Size = ix.Manifests[0].Digest, ix.Manifests[0].Size
		})
	}, "and the index has it for linux/arm64"},
	{"attestations removed", true, func(r *tampered) {
		r.index(func(ix *ocispec.Index) { ix.Manifests = ix.Manifests[:2] })
	}, "it has no provenance"},
	{"attestations of another image", true, func(r *tampered) {
		r.index(func(ix *ocispec.Index) {
			ix.Manifests[2].Digest, ix.Manifests[2].Size = ix.Manifests[3].Digest, ix.Manifests[3].Size
		})
	}, "their subject is"},
	{"attestations that point at another image", true, func(r *tampered) {
		r.attested(func(_ *ocispec.Manifest, entry *ocispec.Descriptor) {
			entry.Annotations["vnd.docker.reference.digest"] = "sha256:" + zeros
		})
	}, "it has no provenance"},
	{"statement about another image", true, func(r *tampered) {
		r.statement(func(text string) string {
			at := strings.Index(text, `"sha256":"`) + len(`"sha256":"`)
			return text[:at] + zeros + text[at+64:]
		})
	}, "it is about another image"},
	{"statement of another type", true, func(r *tampered) {
		r.statement(func(text string) string { return r.replaced(text, "slsa.dev/provenance/v1", "slsa.dev/provenance/v9") })
	}, "it is listed as"},
	{"provenance with a name twice", true, func(r *tampered) {
		r.statement(func(text string) string { return r.replaced(text, `"predicate":{`, `"predicate":{"runDetails":{},`) })
	}, `the name "runDetails" is there twice`},
	{"provenance without a builder", true, func(r *tampered) {
		r.predicate(func(_, run map[string]any) { delete(run, "builder") })
	}, "does not say who built it"},
	{"one material more", true, func(r *tampered) {
		r.predicate(func(d, _ map[string]any) {
			more := map[string]any{"uri": "https://example.com/x", "digest": map[string]string{"sha256": zeros}}
			d["resolvedDependencies"] = append(d["resolvedDependencies"].([]any), more)
		})
	}, "made from https://example.com/x, which is not in Dockerfile.lock"},
	{"material without a digest", true, func(r *tampered) {
		r.predicate(func(d, _ map[string]any) { delete(d["resolvedDependencies"].([]any)[0].(map[string]any), "digest") })
	}, "without a digest"},
	{"material with another digest", true, func(r *tampered) {
		r.predicate(func(d, _ map[string]any) {
			d["resolvedDependencies"].([]any)[0].(map[string]any)["digest"] = map[string]string{"sha256": zeros}
		})
	}, "with the digest sha256:" + zeros},
	{"materials missing", true, func(r *tampered) {
		// Of both platforms: what one of them has is enough for a line of the lock file.
		for range 2 {
			r.predicate(func(d, _ map[string]any) { d["resolvedDependencies"] = d["resolvedDependencies"].([]any)[1:] })
			r.index(func(ix *ocispec.Index) {
				slices.Reverse(ix.Manifests[:2])
			})
		}
	}, "which it was not made from"},
	{"digest in the lock file", false, func(r *tampered) {
		r.lock(func(text string) string {
			at := strings.Index(text, " sha256:") + len(" sha256:")
			return text[:at] + zeros + text[at+64:]
		})
	}, "and Dockerfile.lock has sha256:" + zeros},
	{"line of the lock file removed", false, func(r *tampered) {
		r.lock(func(text string) string {
			lines := strings.SplitAfter(text, "\n")
			return lines[0] + strings.Join(lines[2:], "")
		})
	}, "which is not in Dockerfile.lock"},
	{"line of the lock file added", false, func(r *tampered) {
		r.lock(func(text string) string { return text + "image registry.example/x:v1 sha256:" + zeros + "\n" })
	}, "Dockerfile.lock has image registry.example/x:v1, which it was not made from"},
}

// second returns the digest of the image of the repository "second", which is signed as well.
func (r *tampered) second() digest.Digest {
	r.Helper()
	data, _ := r.do("GET", "second/manifests/v1", "", nil)
	return digest.FromBytes(data)
}

// TestTampering shows that kiln verify refuses an image after each way of tampering with it, and not before.
func TestTampering(t *testing.T) {
	open := registrytest.Start(t)
	files := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "file") }))
	t.Cleanup(files.Close)
	dir := t.TempDir()
	t.Setenv("KILN_ROOT", filepath.Join(dir, "root"))
	t.Setenv("KILN_CONFIG", os.DevNull)
	run := func(t *testing.T, args ...string) (string, error) {
		t.Helper()
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	must := func(t *testing.T, args ...string) {
		t.Helper()
		if out, err := run(t, args...); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const platforms = "--platform=linux/amd64,linux/arm64"
	write("base.df", "FROM scratch\nCOPY base.df /base\n")
	write("Dockerfile", "FROM "+open.Host+"/base:v1\nCOPY --from="+open.Host+"/tools:v1 /base /tools\nADD "+files.URL+"/file /file\n")
	must(t, "openssl", "genpkey", "-algorithm", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "key")
	must(t, "openssl", "pkey", "-in", "key", "-pubout", "-out", "key.pub")
	must(t, "kiln", "build", "-q", platforms, "-f", "base.df", "-t", open.Host+"/base:v1", "-t", open.Host+"/tools:v1", "--push", ".")
	must(t, "kiln", "build", "-q", platforms, "-f", "base.df", "-t", open.Host+"/second:v1", "--label", "second=1", "--push", "--sign", "key", ".")
	must(t, "kiln", "lock", platforms)
	key, err := signing.ReadPrivateKey(filepath.Join(dir, "key"), signing.Password)
	if err != nil {
		t.Fatal(err)
	}
	lock, err := os.ReadFile(filepath.Join(dir, "Dockerfile.lock"))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(tampering); n < 20 {
		t.Errorf("there are %d ways of tampering", n)
	}
	for i, c := range tampering {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			r := &tampered{T: t, host: open.Host, name: fmt.Sprintf("app%d", i), dir: dir, key: key}
			name := r.host + "/" + r.name + ":v1"
			write("Dockerfile.lock", string(lock))
			must(t, "kiln", "build", "-q", platforms, "--locked", "--provenance=mode=min", "--sign", "key", "-t", name, "--push", ".")
			data, _ := r.do("GET", r.name+"/manifests/v1", "", nil)
			r.digest = digest.FromBytes(data)
			verify := []string{"kiln", "verify", "--key", "key.pub", "--locked", name}
			must(t, verify...)
			c.tamper(r)
			if c.resign {
				must(t, "kiln", "sign", "--key", "key", name)
			}
			out, err := run(t, verify...)
			if err == nil {
				t.Fatalf("it is verified:\n%s", out)
			}
			if code := err.(*exec.ExitError).ExitCode(); code != 1 || !strings.Contains(out, c.says) {
				t.Errorf("exit status %d, and it does not say %q:\n%s", code, c.says, out)
			}
		})
	}
}
