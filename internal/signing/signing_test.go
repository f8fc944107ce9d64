package signing

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
)

// run runs a command in a directory.
func run(t *testing.T, dir, command string) {
	t.Helper()
	c := exec.Command("sh", "-ec", command)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
}

func noPassword() (string, bool) { return "", false }

func givenPassword() (string, bool) { return "secret", true }

// Keys that openssl makes sign, what they sign is verified by openssl, and by nobody's key but theirs.
func TestKeysOfOpenSSL(t *testing.T) {
	dir := t.TempDir()
	run(t, dir, `
		openssl genpkey -algorithm ed25519 -out ed25519
		openssl genpkey -algorithm ec -pkeyopt ec_paramgen_curve:P-256 -out p256
		openssl ecparam -name secp384r1 -genkey -out p384`) // with the parameters before the key, in SEC 1
	message := []byte("a message\n")
	if err := os.WriteFile(filepath.Join(dir, "message"), message, 0o600); err != nil {
		t.Fatal(err)
	}
	keys := map[string]*PublicKey{}
	signatures := map[string][]byte{}
	for _, name := range []string{"ed25519", "p256", "p384"} {
		run(t, dir, "openssl pkey -in "+name+" -pubout -out "+name+".pub")
		private, err := ReadPrivateKey(filepath.Join(dir, name), noPassword)
		if err != nil {
			t.Fatal(err)
		}
		public, err := ReadPublicKey(filepath.Join(dir, name+".pub"))
		if err != nil {
			t.Fatal(err)
		}
		if want, _ := os.ReadFile(filepath.Join(dir, name+".pub")); private.Public().ID() != public.ID() || !bytes.Equal(public.PEM(), want) {
			t.Errorf("%s: the public key is another", name)
		}
		sig, err := private.Sign(message)
		if err != nil {
			t.Fatal(err)
		}
		if again, _ := private.Sign(message); !bytes.Equal(sig, again) || len(sig) > MaxSignature {
			t.Errorf("%s: signing again gives another signature, or one that is too long", name)
		}
		if err := os.WriteFile(filepath.Join(dir, name+".sig"), sig, 0o600); err != nil {
			t.Fatal(err)
		}
		how := "dgst -sha256 -verify " + name + ".pub -signature " + name + ".sig message"
		if name == "ed25519" {
			how = "pkeyutl -verify -rawin -pubin -inkey ed25519.pub -sigfile ed25519.sig -in message"
		}
		run(t, dir, "openssl "+how)
		keys[name], signatures[name] = public, sig
	}
	for name, key := range keys {
		for by, sig := range signatures {
			if key.Verify(message, sig) != (name == by) {
				t.Errorf("the key %s takes the signature of %s wrongly", name, by)
			}
		}
		if key.Verify([]byte("another"), signatures[name]) || key.Verify(message, nil) || key.Verify(message, signatures[name][:8]) {
			t.Errorf("the key %s takes a signature that is wrong", name)
		}
	}
}

func encryptedKey(t *testing.T, kind string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	data, err := encrypted.Encrypt(der, []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: data})
}

// A file that is no key is an error that says what it is, and what to do.
func TestProblems(t *testing.T) {
	dir := t.TempDir()
	run(t, dir, `
		openssl genpkey -algorithm ed25519 -out ed25519
		openssl pkey -in ed25519 -pubout -out ed25519.pub
		openssl req -x509 -key ed25519 -subj /CN=x -out certificate
		openssl genpkey -algorithm rsa -out rsa
		openssl pkey -in rsa -pubout -out rsa.pub
		openssl genrsa -traditional -out rsa.traditional
		openssl genpkey -algorithm x25519 -out x25519
		openssl pkey -in x25519 -pubout -out x25519.pub
		openssl genpkey -algorithm ec -pkeyopt ec_paramgen_curve:P-521 -out p521
		openssl pkey -in p521 -pubout -out p521.pub
		openssl pkcs8 -topk8 -in ed25519 -passout pass:secret -out encrypted
		openssl ecparam -name prime256v1 -genkey -noout | openssl ec -aes128 -passout pass:secret -out encrypted.traditional
		ssh-keygen -q -t ed25519 -N '' -f ssh
		cat ed25519 rsa > several
		head -c 60 ed25519 > truncated
		printf -- '-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n' > damaged
		printf -- '-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n' > damaged.pub
		head -c 70000 /dev/zero > large
		printf '\0\1\2' > binary; : > empty; mkdir directory; mkfifo fifo`)
	for name, kind := range map[string]string{"cosign": cosignType, "sigstore": sigstoreType} {
		if err := os.WriteFile(filepath.Join(dir, name), encryptedKey(t, kind), 0o600); err != nil {
			t.Fatal(err)
		}
		if key, err := ReadPrivateKey(filepath.Join(dir, name), givenPassword); err != nil || key.Public().ID() == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, c := range []struct {
		file            string
		private, public Problem
		says            string
	}{
		{"missing", Unreadable, Unreadable, "no such file"},
		{"directory", Unreadable, Unreadable, "not a regular file"},
		{"fifo", Unreadable, Unreadable, "not a regular file"},
		{"large", Unreadable, Unreadable, "is larger than"},
		{"empty", NotPEM, NotPEM, "openssl genpkey"},
		{"binary", NotPEM, NotPEM, "-----BEGIN"},
		{"truncated", NotPEM, NotPEM, ""},
		{"certificate", Certificate, Certificate, "openssl x509"},
		{"ed25519", None, IsPrivate, "openssl pkey"},
		{"ed25519.pub", IsPublic, None, "private one"},
		{"rsa", OtherAlgorithm, IsPrivate, ""},
		{"rsa.pub", IsPublic, OtherAlgorithm, ""},
		{"rsa.traditional", OtherAlgorithm, OtherAlgorithm, "RSA"},
		{"x25519", OtherAlgorithm, IsPrivate, ""},
		{"x25519.pub", IsPublic, OtherAlgorithm, ""},
		{"p521", OtherAlgorithm, IsPrivate, ""},
		{"p521.pub", IsPublic, OtherAlgorithm, ""},
		{"encrypted", OtherFormat, IsPrivate, ""},
		{"encrypted.traditional", OtherFormat, IsPrivate, ""},
		{"ssh", SSH, SSH, "OpenSSH"},
		{"ssh.pub", SSH, SSH, "openssl genpkey -algorithm ed25519"},
		{"several", Several, Several, "several keys"},
		{"damaged", Malformed, IsPrivate, ""},
		{"damaged.pub", IsPublic, Malformed, ""},
		{"cosign", NoPassword, IsPrivate, ""},
		{"sigstore", NoPassword, IsPrivate, ""},
	} {
		path := filepath.Join(dir, c.file)
		_, private := ReadPrivateKey(path, noPassword)
		_, public := ReadPublicKey(path)
		for _, got := range []struct {
			err  error
			want Problem
		}{{private, c.private}, {public, c.public}} {
			e, ok := errors.AsType[*KeyError](got.err)
			if got.want == None && got.err == nil {
				continue
			}
			if !ok || e.Problem != got.want || e.File != path || !strings.Contains(e.Error(), path) || !strings.Contains(e.Error(), c.says) && c.private == c.public {
				t.Errorf("%s: %v, and problem %d is expected, with %q", c.file, got.err, got.want, c.says)
			}
		}
	}
	_, err := ReadPrivateKey(filepath.Join(dir, "cosign"), func() (string, bool) { return "wrong", true })
	if e, ok := errors.AsType[*KeyError](err); !ok || e.Problem != WrongPassword || !strings.Contains(err.Error(), "$COSIGN_PASSWORD") {
		t.Errorf("a wrong password: %v", err)
	}
}

func FuzzKeys(f *testing.F) {
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n"))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n"))
	f.Add([]byte("-----BEGIN ENCRYPTED COSIGN PRIVATE KEY-----\ne30=\n-----END ENCRYPTED COSIGN PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if key, problem, _ := parsePublicKey(data); problem == None {
			again, problem, _ := parsePublicKey(key.PEM())
			if problem != None || again.ID() != key.ID() || key.Verify(nil, nil) {
				t.Error("a public key is not that of its own text")
			}
		}
		if key, problem, _ := parsePrivateKey(data, noPassword); problem == None {
			sig, err := key.Sign(data)
			if err != nil || !key.Public().Verify(data, sig) {
				t.Errorf("what a key signs is not its own: %v", err)
			}
		}
	})
}
