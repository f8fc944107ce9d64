package pack

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"slices"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/signing"
	"github.com/kilnbuild/kiln/solver"
)

// Everything that a build takes from a cache without being able to check it is a statement that can be signed: what a step made, where a
// shortcut leads, when a layer was made and where its manifest is, and which tar is its. A signature is of the statement's fields in their
// order, each with its length, after the name of the kind of statement. So it stays valid whatever else a cache has, and however it is
// written, and is worth nothing on another statement. docs/cache-format.md lists the fields.

// Signature is one of a statement.
type Signature struct {
	// Key is the signing.PublicKey.ID of the key that is said to have made it, and Bytes the signature.
	Key, Bytes string
}

// maxSignatures bounds how many signatures a statement keeps.
const maxSignatures = 8

// Signatures are those of one statement, sorted, each once, at most maxSignatures.
type Signatures []Signature

// with returns the signatures of both. It does not depend on the order in which they are added.
func (s Signatures) with(other Signatures) Signatures {
	if len(other) == 0 {
		return s
	}
	all := slices.Concat(s, other)
	slices.SortFunc(all, func(a, b Signature) int { return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Bytes, b.Bytes)) })
	all = slices.Compact(all)
	return all[:min(len(all), maxSignatures)]
}

// covers reports whether each key that made one of other has made one of s.
func (s Signatures) covers(other Signatures) bool {
	for _, o := range other {
		if !slices.ContainsFunc(s, func(have Signature) bool { return have.Key == o.Key }) {
			return false
		}
	}
	return true
}

// compareSigned orders what has no signatures before what has some, so that writers without a key do not displace what others need. Who
// writes a cache does not know which keys its readers trust, and verifies nothing: somebody who puts a signature there that is worth
// nothing can displace what is truly signed. Those who verify then miss it, as they do if the same writer removes it.
func compareSigned(a, b Signatures) int {
	return cmp.Compare(min(len(a), 1), min(len(b), 1))
}

// valid reports whether a signature can be one.
func (s Signature) valid() bool {
	b, err := hex.DecodeString(s.Key)
	return err == nil && len(b) == 32 && hex.EncodeToString(b) == s.Key && len(s.Bytes) > 0 && len(s.Bytes) <= signing.MaxSignature
}

// statement is the bytes that a signature is of.
type statement []byte

func newStatement(kind string) statement { return statement("kiln cache " + kind + " v1\n") }

// text adds a string as it is after it has been JSON.
func (s *statement) text(v string) {
	v = string([]rune(v)) // what is not UTF-8 becomes U+FFFD
	s.number(int64(len(v)))
	*s = append(*s, v...)
}

func (s *statement) number(v int64) { *s = binary.LittleEndian.AppendUint64(*s, uint64(v)) }

func (s statement) sign(key *signing.PrivateKey) (Signature, error) {
	sig, err := key.Sign(s)
	return Signature{key.Public().ID(), string(sig)}, err
}

func (r *Record) statement(key solver.Key) statement {
	s := newStatement("record")
	s.text(key.String())
	s.text(r.Version)
	s.number(int64(len(r.Inputs)))
	for _, in := range r.Inputs {
		s.text(in.Name)
		s.text(in.Value)
	}
	s.number(int64(len(r.Outputs)))
	for _, m := range r.Outputs {
		s.number(int64(m.Output))
		s.text(m.ID)
		s.text(m.Content.String())
	}
	s.number(int64(len(r.Materials)))
	for _, m := range r.Materials {
		s.text(m.URI)
		s.text(m.Digest)
	}
	s.text(r.Name)
	s.number(r.Started.Unix())
	s.number(int64(r.Started.Nanosecond()))
	s.number(int64(r.Took))
	return s
}

func (l *Layer) statement() statement {
	s := newStatement("layer")
	s.text(string(l.ID))
	s.text(l.Content.String())
	s.number(l.Created.Unix())
	s.number(int64(l.Created.Nanosecond()))
	opaque := int64(0)
	if l.Opaque {
		opaque = 1
	}
	s.number(opaque)
	s.text(string(l.Manifest.Digest))
	s.number(l.Manifest.Size)
	return s
}

func (b *Blob) statement(id layer.ID, encoding string) statement {
	s := newStatement("blob")
	s.text(string(id))
	s.text(encoding)
	s.text(b.Desc.MediaType)
	s.text(string(b.Desc.Digest))
	s.number(b.Desc.Size)
	s.text(string(b.DiffID))
	s.text(string(b.Members.Digest))
	s.number(b.Members.Size)
	return s
}

func (t Shortcut) statement(from solver.Key) statement {
	s := newStatement("shortcut")
	s.text(from.String())
	s.text(t.Key.String())
	return s
}

// Sign adds a signature of the record of a step.
func (r *Record) Sign(k *signing.PrivateKey, key solver.Key) error {
	sig, err := r.statement(key).sign(k)
	r.Signatures = r.Signatures.with(Signatures{sig})
	return err
}

// Sign adds signatures of the layer and of its blobs.
func (l *Layer) Sign(k *signing.PrivateKey) error {
	sig, err := l.statement().sign(k)
	if err != nil {
		return err
	}
	l.Signatures = l.Signatures.with(Signatures{sig})
	for encoding, b := range l.Blobs {
		if sig, err = b.statement(l.ID, encoding).sign(k); err != nil {
			return err
		}
		b.Signatures = b.Signatures.with(Signatures{sig})
		l.Blobs[encoding] = b
	}
	return nil
}

// Sign adds a signature of the shortcut from a key.
func (t *Shortcut) Sign(k *signing.PrivateKey, from solver.Key) error {
	sig, err := t.statement(from).sign(k)
	t.Signatures = t.Signatures.with(Signatures{sig})
	return err
}

// Keys are those whose signatures count.
type Keys []*signing.PublicKey

func (k Keys) signed(s statement, by Signatures) bool {
	return slices.ContainsFunc(by, func(sig Signature) bool {
		return slices.ContainsFunc(k, func(key *signing.PublicKey) bool {
			return key.ID() == sig.Key && key.Verify(s, []byte(sig.Bytes))
		})
	})
}

// Record reports whether one of the keys has signed the record of a step.
func (k Keys) Record(key solver.Key, r Record) bool { return k.signed(r.statement(key), r.Signatures) }

// Shortcut reports whether one of the keys has signed the shortcut from a key.
func (k Keys) Shortcut(from solver.Key, t Shortcut) bool {
	return k.signed(t.statement(from), t.Signatures)
}

// Layer returns a layer with those of its blobs that the keys have signed; false if none of them has signed the layer itself.
func (k Keys) Layer(l Layer) (Layer, bool) {
	if !k.signed(l.statement(), l.Signatures) {
		return l, false
	}
	blobs := map[string]Blob{}
	for encoding, b := range l.Blobs {
		if k.signed(b.statement(l.ID, encoding), b.Signatures) {
			blobs[encoding] = b
		}
	}
	l.Blobs = blobs
	return l, true
}
