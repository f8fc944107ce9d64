// Package signing signs messages with keys in files, and verifies signatures: Ed25519, and ECDSA over P-256 and P-384 with SHA-256, as
// cosign does. It does not know what a message says.
package signing

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
)

// MaxSignature bounds a signature in bytes: one over P-384 has at most 104.
const MaxSignature = 128

// PrivateKey makes signatures.
type PrivateKey struct {
	signer crypto.Signer
	public *PublicKey
}

// PublicKey verifies signatures.
type PublicKey struct {
	key crypto.PublicKey // an ed25519.PublicKey or an *ecdsa.PublicKey
	der []byte
	id  string
}

// Public returns the key that verifies what k signs.
func (k *PrivateKey) Public() *PublicKey { return k.public }

// Sign returns a signature of a message: the 64 bytes of Ed25519, or the ASN.1 DER of ECDSA. It is the same each time.
func (k *PrivateKey) Sign(message []byte) ([]byte, error) {
	options, digest := crypto.SignerOpts(crypto.Hash(0)), message
	if _, ok := k.signer.(*ecdsa.PrivateKey); ok {
		sum := sha256.Sum256(message)
		options, digest = crypto.SHA256, sum[:]
	}
	sig, err := k.signer.Sign(nil, digest, options) // without a source of random numbers, ECDSA is that of RFC 6979
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return sig, nil
}

// ID returns the SHA-256 of the key in the form of PKIX, as 64 hexadecimal digits: a hint which key made a signature.
func (k *PublicKey) ID() string { return k.id }

// PEM returns the key as a file has it.
func (k *PublicKey) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: publicType, Bytes: k.der})
}

// Verify reports whether a signature is the key's, of this message.
func (k *PublicKey) Verify(message, signature []byte) bool {
	if key, ok := k.key.(*ecdsa.PublicKey); ok {
		sum := sha256.Sum256(message)
		return ecdsa.VerifyASN1(key, sum[:], signature)
	}
	key, ok := k.key.(ed25519.PublicKey)
	return ok && ed25519.Verify(key, message, signature)
}

// newPrivateKey returns the key of a private one that crypto/x509 has parsed. The problem says why it is not usable.
func newPrivateKey(parsed any) (*PrivateKey, Problem, string) {
	signer, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, OtherAlgorithm, algorithm(parsed)
	}
	public, problem, name := newPublicKey(signer.Public())
	return &PrivateKey{signer, public}, problem, name
}

func newPublicKey(parsed any) (*PublicKey, Problem, string) {
	switch key := parsed.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
			return nil, OtherAlgorithm, algorithm(parsed)
		}
	default:
		return nil, OtherAlgorithm, algorithm(parsed)
	}
	der, err := x509.MarshalPKIXPublicKey(parsed)
	if err != nil {
		return nil, Malformed, err.Error()
	}
	sum := sha256.Sum256(der)
	return &PublicKey{parsed, der, hex.EncodeToString(sum[:])}, None, ""
}
