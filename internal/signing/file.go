package signing

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"

	"github.com/kilnbuild/kiln/internal/regularfile"
)

// maxFile bounds a file with a key, in bytes.
const maxFile = 64 << 10

// PasswordVariable is the environment variable with the password of keys that cosign has encrypted.
const PasswordVariable = "COSIGN_PASSWORD"

// Problem is why a file cannot be used as a key.
type Problem int

// The problems of a KeyError.
const (
	None           Problem = iota
	Unreadable             // the file cannot be read; Err says why
	NotPEM                 // it has no PEM block
	SSH                    // it is a key of OpenSSH's own format
	Certificate            // it is a certificate
	IsPublic               // it is a public key, and a private one is needed
	IsPrivate              // it is a private key, and a public one is needed
	NoPassword             // it is encrypted, and there is no password
	WrongPassword          // it cannot be decrypted with the password; Detail says why
	OtherFormat            // it is encrypted in a way that is not read, or another kind of PEM; Detail is its type
	OtherAlgorithm         // it is a key for something else; Detail says for what
	Several                // it has more than one key
	Malformed              // it is not what its type says; Detail says why
)

// KeyError says which file cannot be used as a key, and what to do.
type KeyError struct {
	File    string
	Problem Problem
	Detail  string
	Err     error // of reading
}

const advice = "; make a key with openssl genpkey -algorithm ed25519 -out KEY, and openssl pkey -in KEY -pubout -out PUBLICKEY"

func (e *KeyError) Error() string {
	return "key " + e.File + ": " + e.reason()
}

func (e *KeyError) reason() string {
	switch e.Problem {
	case Unreadable:
		if p, ok := errors.AsType[*fs.PathError](e.Err); ok {
			return p.Err.Error()
		}
		return e.Err.Error()
	case NotPEM:
		return "it is not a PEM file, which begins with -----BEGIN" + advice
	case SSH:
		return "it is a key of OpenSSH's format, which is not read" + advice
	case Certificate:
		return "it is a certificate, and a key is needed: openssl x509 -in CERTIFICATE -noout -pubkey prints its public key"
	case IsPublic:
		return "it is a public key, and the private one is needed"
	case IsPrivate:
		return "it is a private key, and the public one is needed: openssl pkey -in KEY -pubout prints it"
	case NoPassword:
		return "it is encrypted, and $" + PasswordVariable + " is not set"
	case WrongPassword:
		return "it cannot be decrypted with the password in $" + PasswordVariable + ": " + e.Detail
	case OtherFormat:
		return fmt.Sprintf("it is of the type %q: use an unencrypted key, or one that cosign has encrypted", e.Detail) + advice
	case OtherAlgorithm:
		return "it is a key of " + e.Detail + ", and one of Ed25519, ECDSA P-256 or ECDSA P-384 is needed" + advice
	case Several:
		return "it has several keys, and one is needed"
	}
	return "it is damaged: " + e.Detail
}

// Unwrap returns the cause.
func (e *KeyError) Unwrap() error { return e.Err }

const (
	publicType    = "PUBLIC KEY"
	pkcs8Type     = "PRIVATE KEY"
	sec1Type      = "EC PRIVATE KEY"
	sigstoreType  = "ENCRYPTED SIGSTORE PRIVATE KEY"
	cosignType    = "ENCRYPTED COSIGN PRIVATE KEY"
	encryptedType = "ENCRYPTED PRIVATE KEY" // of PKCS #8
	parameterType = "EC PARAMETERS"         // what openssl ecparam -genkey writes before a key
)

// ReadPrivateKey reads a private key: PKCS #8 or SEC 1 in PEM, or the format in which cosign encrypts them. password returns that of an
// encrypted one, and false if there is none. Errors are *KeyError.
func ReadPrivateKey(file string, password func() (string, bool)) (*PrivateKey, error) {
	data, err := read(file)
	if err != nil {
		return nil, err
	}
	key, problem, detail := parsePrivateKey(data, password)
	if problem != None {
		return nil, &KeyError{File: file, Problem: problem, Detail: detail}
	}
	return key, nil
}

// Password returns the password in PasswordVariable, for ReadPrivateKey.
func Password() (string, bool) { return os.LookupEnv(PasswordVariable) }

// ReadPrivateKeys reads private keys, with Password, each once. Errors are *KeyError.
func ReadPrivateKeys(files []string) ([]*PrivateKey, error) {
	var all []*PrivateKey
	for _, file := range files {
		key, err := ReadPrivateKey(file, Password)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(all, func(k *PrivateKey) bool { return k.Public().ID() == key.Public().ID() }) {
			all = append(all, key)
		}
	}
	return all, nil
}

// ReadPublicKeys reads public keys. Errors are *KeyError.
func ReadPublicKeys(files []string) ([]*PublicKey, error) {
	var all []*PublicKey
	for _, file := range files {
		key, err := ReadPublicKey(file)
		if err != nil {
			return nil, err
		}
		all = append(all, key)
	}
	return all, nil
}

// ReadPublicKey reads a public key: PKIX in PEM. Errors are *KeyError.
func ReadPublicKey(file string) (*PublicKey, error) {
	data, err := read(file)
	if err != nil {
		return nil, err
	}
	key, problem, detail := parsePublicKey(data)
	if problem != None {
		return nil, &KeyError{File: file, Problem: problem, Detail: detail}
	}
	return key, nil
}

func read(file string) ([]byte, error) {
	data, err := regularfile.Read(file, maxFile)
	if err != nil {
		return nil, &KeyError{File: file, Problem: Unreadable, Err: err}
	}
	return data, nil
}

// only returns the one block of a file.
func only(data []byte) (*pem.Block, Problem) {
	var found *pem.Block
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		data = rest
		if block.Type == parameterType {
			continue
		}
		if found != nil {
			return nil, Several
		}
		found = block
	}
	switch text := string(bytes.TrimSpace(data)); {
	case found != nil:
		return found, None
	case strings.HasPrefix(text, "ssh-") || strings.HasPrefix(text, "ecdsa-sha2-") || strings.HasPrefix(text, "sk-"):
		return nil, SSH
	}
	return nil, NotPEM
}

func parsePrivateKey(data []byte, password func() (string, bool)) (*PrivateKey, Problem, string) {
	block, problem := only(data)
	if problem != None {
		return nil, problem, ""
	}
	der, pkcs8 := block.Bytes, true
	switch block.Type {
	case pkcs8Type:
	case sec1Type:
		pkcs8 = false
	case sigstoreType, cosignType:
		word, ok := password()
		if !ok {
			return nil, NoPassword, ""
		}
		var err error
		if der, err = encrypted.Decrypt(block.Bytes, []byte(word)); err != nil {
			return nil, WrongPassword, err.Error()
		}
	case encryptedType:
		return nil, OtherFormat, block.Type
	default:
		problem, detail := other(block.Type)
		return nil, problem, detail
	}
	if _, ok := block.Headers["DEK-Info"]; ok {
		return nil, OtherFormat, block.Type + " with a password"
	}
	var parsed any
	var err error
	if pkcs8 {
		parsed, err = x509.ParsePKCS8PrivateKey(der)
	} else {
		parsed, err = x509.ParseECPrivateKey(der)
	}
	if err != nil {
		return nil, Malformed, err.Error()
	}
	return newPrivateKey(parsed)
}

func parsePublicKey(data []byte) (*PublicKey, Problem, string) {
	block, problem := only(data)
	if problem != None {
		return nil, problem, ""
	}
	if block.Type != publicType {
		problem, detail := other(block.Type)
		return nil, problem, detail
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, Malformed, err.Error()
	}
	return newPublicKey(parsed)
}

// other says what a block is that is not what was wanted.
func other(kind string) (problem Problem, detail string) {
	switch {
	case kind == publicType:
		return IsPublic, ""
	case kind == "CERTIFICATE" || kind == "TRUSTED CERTIFICATE":
		return Certificate, ""
	case kind == "OPENSSH PRIVATE KEY" || kind == "SSH2 PUBLIC KEY":
		return SSH, ""
	case strings.HasPrefix(kind, "RSA "):
		return OtherAlgorithm, "RSA"
	case strings.HasPrefix(kind, "DSA "):
		return OtherAlgorithm, "DSA"
	case kind == pkcs8Type || kind == sec1Type || kind == sigstoreType || kind == cosignType || kind == encryptedType:
		return IsPrivate, ""
	}
	return OtherFormat, kind
}

// algorithm names what a key is for.
func algorithm(key any) string {
	switch key := key.(type) {
	case *rsa.PublicKey, *rsa.PrivateKey:
		return "RSA"
	case *ecdh.PublicKey, *ecdh.PrivateKey:
		return "X25519, which only exchanges keys"
	case *ecdsa.PublicKey:
		return "ECDSA " + key.Curve.Params().Name
	}
	return fmt.Sprintf("another algorithm (%T)", key)
}
